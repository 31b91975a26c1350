//! Cluster versions: which encodings and rules all members of a cluster may use.
//!
//! A program supports the cluster versions [`VERSION_MIN`] to [`VERSION_MAX`]. The version in force
//! is in the replicated configuration (`Configuration::cluster_version`); the leader raises it once
//! every member supports the next one. Until that entry is committed, no node proposes anything
//! that a [`Feature`] of the next version brings.
//!
//! Each encoder of something new names its feature, and each decoder refuses what is newer than
//! [`VERSION_MAX`]: the node stops with an error that names the version to install, and skips
//! nothing. An older program therefore never applies half of what a newer one meant.
//!
//! The Cargo feature `pretend-version-1` builds a program of the past, for tests of upgrades: it
//! supports version 1 only, and cannot decode what version 2 brought.

/// The oldest cluster version that this program supports.
pub const VERSION_MIN: u32 = 1;

/// The newest cluster version that this program supports.
pub const VERSION_MAX: u32 = if cfg!(feature = "pretend-version-1") { 1 } else { 2 };

/// A change of an encoding or of a rule, which needs all members to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// Compare-and-swap by modify revision
    /// ([`Expect::Revision`](crate::protocol::operation::Expect)).
    CompareRevision,
    /// Members that change while the cluster runs, their descriptions, and the cluster's settings
    /// ([`crate::members`]).
    Members,
}

impl Feature {
    /// The first cluster version that has the feature.
    pub const fn since(self) -> u32 {
        match self {
            Feature::CompareRevision => 2,
            Feature::Members => 2,
        }
    }
}

/// Returns true if a cluster of this version may use the feature.
pub const fn has(cluster_version: u32, feature: Feature) -> bool {
    cluster_version >= feature.since()
}

const _: () = assert!(VERSION_MIN >= 1 && VERSION_MIN <= VERSION_MAX);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_feature_is_there_from_its_version_on() {
        assert!(!has(1, Feature::CompareRevision));
        assert!(has(2, Feature::CompareRevision) && has(u32::MAX, Feature::CompareRevision));
    }
}
