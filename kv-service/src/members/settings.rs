//! Settings of the whole cluster, which Raft carries as opaque bytes
//! (`raft_core::types::Configuration::context`).

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::info::{Invalid, check_label};
use super::{ClusterUid, context};
use crate::config::NODES_CEILING;

/// The shortest time after which a node is taken for dead.
const DEAD_AFTER_MIN: Duration = Duration::from_secs(1);

/// The rules by which the leader changes the members without an operator. All nodes have the same
/// settings, because they are replicated with the members; whichever node leads acts by them.
///
/// ```
/// use std::time::Duration;
///
/// use kv_service::members::ClusterSettings;
///
/// let mut settings = ClusterSettings::default();
/// assert_eq!(settings.replace_dead_after, Some(Duration::from_secs(600)));
/// settings.voters = 4;
/// assert!(settings.check().unwrap_err().to_string().contains("odd"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterSettings {
    /// Voters that the cluster should have; an odd number. While there are fewer, spares are made
    /// voters. 0: as many as there are.
    pub voters: u32,
    /// A spare takes the place of a voter that the leader has not reached for this long, in one
    /// step. `None`: never.
    pub replace_dead_after: Option<Duration>,
    /// A learner that the leader has reached, and then not for this long, is removed. `None`:
    /// never.
    pub remove_dead_after: Option<Duration>,
    /// Voters in this zone are to lead, before those in others; empty for no preference.
    pub leader_zone: String,
}

impl Default for ClusterSettings {
    fn default() -> Self {
        Self {
            voters: 0,
            replace_dead_after: Some(Duration::from_secs(600)),
            remove_dead_after: None,
            leader_zone: String::new(),
        }
    }
}

impl ClusterSettings {
    /// Checks each setting.
    ///
    /// # Errors
    /// Text that names the setting and what it must be.
    pub fn check(&self) -> Result<(), Invalid> {
        let voters = self.voters as usize;
        if voters != 0 && (voters.is_multiple_of(2) || voters > NODES_CEILING) {
            let text = format!(
                "voters is {voters}: an odd number up to {NODES_CEILING}, or 0 for as many as there \
                 are. One more than an odd number survives no more failures"
            );
            return Err(Invalid(text));
        }
        for (what, after) in [
            ("replace_dead_after", self.replace_dead_after),
            ("remove_dead_after", self.remove_dead_after),
        ] {
            if after.is_some_and(|after| after < DEAD_AFTER_MIN) {
                return Err(Invalid(format!("{what} is less than {DEAD_AFTER_MIN:?}")));
            }
        }
        check_label("leader_zone", &self.leader_zone)
    }
}

/// All that the service keeps in the configuration for the whole cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ClusterRecord {
    /// Drawn by the first leader, and never changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) uid: Option<ClusterUid>,
    #[serde(flatten)]
    pub(crate) settings: ClusterSettings,
}

impl ClusterRecord {
    pub(crate) fn encode(&self) -> Bytes {
        if *self == Self::default() {
            return Bytes::new();
        }
        context::encode(self)
    }

    /// The record in a configuration; the default if there is none, or if it is of a program that
    /// this one does not understand.
    pub(crate) fn decode(context: &[u8]) -> Self {
        let mut record: Self = context::decode(context).unwrap_or_default();
        if record.settings.check().is_err() {
            record.settings = ClusterSettings::default();
        }
        record
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_as_they_were_written() {
        let settings = ClusterSettings {
            voters: 5,
            replace_dead_after: None,
            remove_dead_after: Some(Duration::from_millis(1500)),
            leader_zone: "a".to_owned(),
        };
        for uid in [None, ClusterUid::new(u128::MAX / 3)] {
            let record = ClusterRecord { uid, settings: settings.clone() };
            assert_eq!(ClusterRecord::decode(&record.encode()), record);
        }
        let nothing = ClusterRecord::default();
        assert!(nothing.encode().is_empty());
        assert_eq!(ClusterRecord::decode(&[]), nothing);
        for unknown in [&b"\x02whatever"[..], b"\x01\xc1"] {
            assert_eq!(ClusterRecord::decode(unknown), nothing);
        }
        // A later program may add a setting, and an earlier one may know fewer.
        let other = [&b"\x01"[..], b"\x82\xa6voters\x03\xa4more\x01"].concat();
        let expected = ClusterSettings { voters: 3, ..ClusterSettings::default() };
        assert_eq!(ClusterRecord::decode(&other), ClusterRecord { uid: None, settings: expected });
    }

    #[test]
    fn settings_that_make_no_sense_are_refused() {
        let fine = ClusterSettings { voters: 3, ..ClusterSettings::default() };
        assert_eq!(fine.check(), Ok(()));
        let short = Some(Duration::from_millis(999));
        let bad = [
            ClusterSettings { voters: 2, ..fine.clone() },
            ClusterSettings { voters: 1_000_001, ..fine.clone() },
            ClusterSettings { replace_dead_after: short, ..fine.clone() },
            ClusterSettings { remove_dead_after: short, ..fine.clone() },
            ClusterSettings { leader_zone: "a b".to_owned(), ..fine },
        ];
        for settings in bad {
            assert!(settings.check().is_err(), "{settings:?}");
            // Stored settings are checked as well, and the uid stays.
            let uid = ClusterUid::new(7);
            let decoded = ClusterRecord::decode(&ClusterRecord { uid, settings }.encode());
            assert_eq!(decoded, ClusterRecord { uid, ..ClusterRecord::default() });
        }
    }
}
