//! From the command line to a client: finds the file that describes the cluster, or tells the user
//! what to do without one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use kv_service::{Client, ClientConfig};

/// Where `kv dev` puts the client's file by default.
const DEFAULT_FILE: &str = "./kv-data/client.toml";
/// The environment variable that names the file if `--config` does not.
const ENVIRONMENT: &str = "KV_CONFIG";
/// How long [`close`] waits after reads only: enough to send a packet.
pub(crate) const AFTER_QUESTIONS: Duration = Duration::from_millis(5);
/// How long [`close`] waits after one write: the request to close the session is on its way, and is
/// executed whether or not the client waits for the response.
pub(crate) const AFTER_A_WRITE: Duration = Duration::from_millis(30);
/// How long [`close`] waits after many requests.
pub(crate) const AFTER_MUCH: Duration = Duration::from_millis(500);

/// Reads the configuration of the cluster that the flag, the environment or the default names.
pub(crate) fn client_config(
    flag: Option<&Path>,
    deadline: Option<Duration>,
) -> anyhow::Result<ClientConfig> {
    let path = find(flag, std::env::var_os(ENVIRONMENT).map(PathBuf::from))?;
    let mut config = ClientConfig::read(path)?;
    if let Some(deadline) = deadline {
        config.deadline = deadline;
    }
    Ok(config)
}

/// Makes a client of that cluster; does not wait for the network.
pub(crate) fn client(flag: Option<&Path>, deadline: Option<Duration>) -> anyhow::Result<Client> {
    Ok(Client::connect(&client_config(flag, deadline)?)?)
}

/// Closes the session and the connection, so that the nodes need not keep them until they expire.
/// This is a courtesy, so it takes no longer than `patience`.
pub(crate) async fn close(client: &Client, patience: Duration) {
    // If this fails, the session and the connection expire by themselves.
    let _ = tokio::time::timeout(patience, client.close()).await;
}

fn find(flag: Option<&Path>, environment: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    if let Some(path) = flag {
        return Ok(path.to_owned());
    }
    if let Some(path) = environment.filter(|path| !path.as_os_str().is_empty()) {
        if !path.exists() {
            bail!("{ENVIRONMENT} names {}, which does not exist", path.display());
        }
        return Ok(path);
    }
    let path = PathBuf::from(DEFAULT_FILE);
    path.try_exists()
        .with_context(|| format!("cannot look for {DEFAULT_FILE}"))?
        .then_some(path)
        .with_context(|| {
            format!(
                "no cluster is named: {DEFAULT_FILE} does not exist here. Start a cluster with \
                 `kv dev`, or name a client's file with --config or {ENVIRONMENT}"
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_goes_before_the_environment() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let environment = Some(file.path().to_owned());
        assert_eq!(find(Some(Path::new("a")), environment.clone()).unwrap(), Path::new("a"));
        assert_eq!(find(None, environment).unwrap(), file.path());
        let gone = find(None, Some("/no/such/file".into())).unwrap_err().to_string();
        assert!(gone.contains("KV_CONFIG names /no/such/file"), "{gone}");
    }

    #[test]
    fn without_any_file_it_says_what_to_do() {
        let error = find(None, Some(PathBuf::new())).unwrap_err().to_string();
        assert!(error.contains("kv dev") && error.contains("KV_CONFIG"), "{error}");
    }
}
