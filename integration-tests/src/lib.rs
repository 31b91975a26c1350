//! Helpers for tests that span several crates of the workspace. No other crate depends on this one.

pub mod counter;
pub mod processes;
