//! A disk, a state machine and a cluster that tests can hinder.

pub(crate) mod cluster;
pub(crate) mod machine;
pub(crate) mod store;
