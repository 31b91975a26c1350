//! From the command line to a client: which file describes the cluster, and what to say if none does.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use kv_service::client::Client;
use kv_service::config::ClientConfig;

/// Where `kv dev` puts it by default.
const DEFAULT_FILE: &str = "./kv-data/client.toml";
/// Names the file if `--config` does not.
const ENVIRONMENT: &str = "KV_CONFIG";
/// Patience of a client that has only asked questions: enough to send a packet.
pub(crate) const AFTER_QUESTIONS: Duration = Duration::from_millis(5);
/// Patience of a client that has written once: the request to close its session is on its way, and
/// will be carried out whether somebody waits for the answer or not.
pub(crate) const AFTER_A_WRITE: Duration = Duration::from_millis(30);
/// Patience of a client that had much to say.
pub(crate) const AFTER_MUCH: Duration = Duration::from_millis(500);

/// Reads the configuration of the cluster that is meant.
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

/// Connects to the cluster that is meant; does not wait for the network.
pub(crate) fn client(flag: Option<&Path>, deadline: Option<Duration>) -> anyhow::Result<Client> {
    Ok(Client::connect(&client_config(flag, deadline)?)?)
}

/// Says goodbye, so that the nodes need keep neither session nor connection until they expire. It is
/// courtesy, so nobody waits longer than `patience` for it.
pub(crate) async fn close(client: &Client, patience: Duration) {
    // If nobody listens, session and connection expire by themselves.
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
