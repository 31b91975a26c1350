//! Configuration of a node and of a client, as values and as TOML files.
//!
//! Unknown keys are errors. Relative paths in a file are relative to the file's directory, so that
//! a directory with its files can be used from anywhere. Every setting with a sensible default has
//! one.

mod check;
mod client;
mod cluster;
pub(crate) mod file;
mod limits;
mod server;
#[cfg(test)]
mod tests;
mod timing;
pub(crate) mod units;

pub use self::client::{ClientConfig, default_deadline};
pub use self::cluster::{NODES_CEILING, NodeAddress, TlsFiles};
pub use self::file::ConfigError;
pub use self::limits::{
    CONNECTIONS_CEILING, KEY_BYTES_CEILING, Limits, REQUESTS_CEILING, SIZE_CEILING,
    VALUE_BYTES_CEILING,
};
pub use self::server::{
    ServerConfig, StorageKind, UpgradePolicy, default_max_raft_state, default_upgrade_delay,
};
pub use self::timing::{SESSIONS_CEILING, SessionLimits, Timeouts};
pub use self::units::{ByteSize, NotASize};
