//! Helpers of the tests that look into every window of the house. Nobody depends on this crate.

pub mod counter;
pub mod linearizability;
pub mod processes;
