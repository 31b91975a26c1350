//! A linearizable, exactly-once, replicated key-value store to link into an application.

pub mod config;
pub mod operation;
pub mod units;
