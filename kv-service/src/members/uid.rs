//! The random id of a cluster.

use std::fmt;
use std::num::NonZeroU128;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::info::Invalid;

const DIGITS: usize = 32;

/// A random id that the first leader of a cluster draws. It tells apart two clusters that have the
/// same name and the same CA: their nodes refuse each other. Written as 32 hexadecimal digits.
///
/// ```
/// use kv_service::members::ClusterUid;
///
/// let uid: ClusterUid = "0123456789abcdef0123456789abcdef".parse()?;
/// assert_eq!(uid.to_string(), "0123456789abcdef0123456789abcdef");
/// assert!("0123".parse::<ClusterUid>().is_err());
/// # Ok::<(), kv_service::members::Invalid>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClusterUid(NonZeroU128);

impl ClusterUid {
    /// The id with this number; `None` for 0.
    pub(crate) fn new(number: u128) -> Option<Self> {
        NonZeroU128::new(number).map(Self)
    }

    #[allow(dead_code, reason = "nodes in one process know each other without it")]
    pub(crate) fn number(self) -> u128 {
        self.0.get()
    }
}

impl fmt::Display for ClusterUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for ClusterUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ClusterUid {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let has_digits = text.len() == DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = has_digits.then(|| u128::from_str_radix(text, 16).ok()).flatten();
        number.and_then(Self::new).ok_or_else(|| {
            Invalid(format!("a cluster's uid has {DIGITS} hexadecimal digits, not all 0"))
        })
    }
}

impl TryFrom<String> for ClusterUid {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<ClusterUid> for String {
    fn from(uid: ClusterUid) -> Self {
        uid.to_string()
    }
}
