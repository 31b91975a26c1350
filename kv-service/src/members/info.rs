//! The description of a member, which Raft carries as opaque bytes
//! (`raft_core::types::Member::context`).

use std::net::SocketAddr;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::context;

/// Longest name or zone, in bytes.
const LABEL_BYTES_MAX: usize = 63;

/// Longest address, in bytes: a host name and a port.
const ADDRESS_BYTES_MAX: usize = 261;

/// Priority of a member whose record has none.
const PRIORITY: u8 = 50;

const PRIORITY_MAX: u8 = 100;

/// The cluster's record of a member, for people and for other nodes.
///
/// ```
/// use kv_service::members::MemberInfo;
///
/// let info = MemberInfo { address: "10.0.0.4:7400".into(), ..MemberInfo::default() };
/// assert!(info.check().is_ok());
/// let info = MemberInfo { address: "10.0.0.4".into(), ..info };
/// assert!(info.check().unwrap_err().to_string().contains("host:port"));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MemberInfo {
    /// A name for people; may be empty.
    #[serde(default)]
    pub name: String,
    /// `host:port`; empty until the node has announced it.
    #[serde(default)]
    pub address: String,
    /// Where the node stands, such as a rack or a data centre; may be empty.
    #[serde(default)]
    pub zone: String,
    /// The node is about to be stopped: it leads only if no other voter can
    /// ([`Cluster::drain`](crate::Cluster::drain)).
    #[serde(default)]
    pub draining: bool,
    /// The member is to lead rather than those of a smaller priority: 0 to 100, and 50 if it is not
    /// set. One of priority 0 leads only if no other voter can.
    #[serde(default)]
    pub priority: Option<u8>,
    /// The member, while it is a learner, takes the place of a voter that died
    /// ([`ClusterSettings`](super::ClusterSettings)).
    #[serde(default)]
    pub spare: bool,
}

/// A description that is refused; the text says why. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub(super) String);

impl MemberInfo {
    /// The priority, or 50 if it is not set.
    pub fn leader_priority(&self) -> u8 {
        self.priority.unwrap_or(PRIORITY)
    }

    /// Returns true if the member leads only if no other voter can: it is draining, or has priority
    /// 0.
    pub fn avoids_leadership(&self) -> bool {
        self.draining || self.leader_priority() == 0
    }

    /// Checks the form of each field.
    ///
    /// # Errors
    /// Text that names the field and what it must be.
    pub fn check(&self) -> Result<(), Invalid> {
        check_label("name", &self.name)?;
        check_label("zone", &self.zone)?;
        if self.leader_priority() > PRIORITY_MAX {
            let priority = self.leader_priority();
            return Err(Invalid(format!("the priority {priority}: 0 to {PRIORITY_MAX}")));
        }
        if self.address.len() > ADDRESS_BYTES_MAX {
            let size = self.address.len();
            return Err(Invalid(format!(
                "the address has {size} bytes: at most {ADDRESS_BYTES_MAX}"
            )));
        }
        if !self.address.is_empty() && !is_address(&self.address) {
            return Err(Invalid(format!(
                "the address {:?}: write host:port, as other machines reach it",
                self.address
            )));
        }
        Ok(())
    }

    pub(crate) fn encode(&self) -> Bytes {
        context::encode(self)
    }

    /// The description in a member's record; an empty one if there is none, or if it is of a
    /// program that this one does not understand.
    pub(crate) fn decode(context: &[u8]) -> Self {
        let decoded: Option<Self> = context::decode(context);
        decoded.filter(|info| info.check().is_ok()).unwrap_or_default()
    }
}

/// Checks a name or a zone.
pub(super) fn check_label(what: &str, label: &str) -> Result<(), Invalid> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if label.len() > LABEL_BYTES_MAX {
        let size = label.len();
        return Err(Invalid(format!("the {what} has {size} bytes: at most {LABEL_BYTES_MAX}")));
    }
    if !label.chars().all(plain) {
        return Err(Invalid(format!("the {what} {label:?}: letters, digits, any of -_.")));
    }
    Ok(())
}

/// Returns true for a host and a port that another machine can dial.
fn is_address(address: &str) -> bool {
    if let Ok(numeric) = address.parse::<SocketAddr>() {
        return numeric.port() != 0 && !numeric.ip().is_unspecified();
    }
    let Some((host, port)) = address.rsplit_once(':') else { return false };
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !host.is_empty() && host.chars().all(plain) && port.parse::<u16>().is_ok_and(|port| port != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info() -> MemberInfo {
        let [name, address, zone] = ["kv4", "kv4.example.net:7400", "b"].map(str::to_owned);
        MemberInfo { name, address, zone, draining: true, priority: Some(70), spare: true }
    }

    #[test]
    fn a_description_is_read_as_it_was_written() {
        assert_eq!(MemberInfo::decode(&info().encode()), info());
        let serving = MemberInfo { draining: false, ..info() };
        assert_eq!(MemberInfo::decode(&serving.encode()), serving);
        assert_eq!(MemberInfo::decode(&[]), MemberInfo::default());
        assert_eq!(MemberInfo::decode(b"\x02whatever"), MemberInfo::default());
        assert_eq!(MemberInfo::decode(b"\x01\xc1"), MemberInfo::default());
    }

    /// A later program may add fields.
    #[test]
    fn unknown_fields_are_skipped() {
        #[derive(Serialize)]
        struct Later {
            name: &'static str,
            shelf: u8,
        }
        let bytes = context::encode(&Later { name: "kv4", shelf: 7 });
        let read = MemberInfo::decode(&bytes);
        assert_eq!(read, MemberInfo { name: "kv4".to_owned(), ..MemberInfo::default() });
    }

    #[test]
    fn what_a_terminal_or_a_resolver_would_not_take_is_refused() {
        assert_eq!(info().check(), Ok(()));
        let address = "[::1]:7400".to_owned();
        assert_eq!(MemberInfo { address, ..info() }.check(), Ok(()));
        let bad = [
            MemberInfo { name: "a b".to_owned(), ..info() },
            MemberInfo { zone: "\x1b[2J".to_owned(), ..info() },
            MemberInfo { name: "x".repeat(64), ..info() },
            MemberInfo { priority: Some(101), ..info() },
            MemberInfo { address: "host".to_owned(), ..info() },
            MemberInfo { address: "host:0".to_owned(), ..info() },
            MemberInfo { address: "ho st:1".to_owned(), ..info() },
            MemberInfo { address: ":7400".to_owned(), ..info() },
            MemberInfo { address: "0.0.0.0:7400".to_owned(), ..info() },
            MemberInfo { address: "h\"ost:7400".to_owned(), ..info() },
            MemberInfo { address: format!("{}:1", "h".repeat(300)), ..info() },
        ];
        for info in bad {
            assert!(info.check().is_err(), "{info:?}");
        }
    }
}
