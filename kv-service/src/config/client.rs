//! Configuration of a client.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::cluster::{NodeAddress, TlsFiles, check_cluster};
use super::file::{ConfigError, read};
use super::units::{duration_text, is_default};

/// Configuration of a client.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
///
/// use kv_service::ClientConfig;
///
/// let dir = tempfile::tempdir()?;
/// let file = dir.path().join("client.toml");
/// let text = r#"
///     cluster_id = "test"
///     deadline = "3s"
///     tls = { ca = "ca.pem", cert = "client.pem", key = "client.key" }
///     nodes = [{ id = 1, address = "127.0.0.1:7401" }]
/// "#;
/// std::fs::write(&file, text)?;
/// let config = ClientConfig::read(&file)?;
/// assert_eq!(config.deadline, Duration::from_secs(3));
/// assert_eq!(config.tls.ca, dir.path().join("ca.pem"));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientConfig {
    /// Id of the cluster; nodes of another cluster are refused.
    pub cluster_id: String,
    /// How long an operation is retried before the client gives up.
    #[serde(with = "duration_text", default = "default_deadline")]
    pub deadline: Duration,
    /// True if the client keeps to `nodes`, at the addresses of this file, as when ports are
    /// forwarded.
    #[serde(default, skip_serializing_if = "is_default")]
    pub fixed_nodes: bool,
    /// This client's certificate files.
    pub tls: TlsFiles,
    /// Nodes that the client asks first. From the first one that answers it learns who the members
    /// are and where, and of every change of them.
    pub nodes: Vec<NodeAddress>,
}

/// The default deadline: ten seconds.
pub const fn default_deadline() -> Duration {
    Duration::from_secs(10)
}

impl ClientConfig {
    /// A client with defaults for everything that has one.
    pub fn new(cluster_id: impl Into<String>, tls: TlsFiles, nodes: Vec<NodeAddress>) -> Self {
        let (cluster_id, deadline) = (cluster_id.into(), default_deadline());
        Self { cluster_id, deadline, fixed_nodes: false, tls, nodes }
    }

    /// Reads and checks a file.
    ///
    /// # Errors
    /// The errors of [`ServerConfig::read`](crate::ServerConfig::read).
    pub fn read(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let (mut config, base): (Self, _) = read(path.as_ref())?;
        config.tls.rebase(&base);
        config.check()?;
        Ok(config)
    }

    /// Returns the text of a file that [`ClientConfig::read`] reads.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("every field has a form in TOML")
    }

    /// Checks that the settings make sense.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] names the field and what it must be.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.deadline.is_zero() {
            return Err(ConfigError::Invalid("deadline: more than 0".to_owned()));
        }
        check_cluster(&self.cluster_id, &self.nodes)
    }
}
