//! How `kv dev restart N` reaches the supervisor: a socket in the directory, one line each way.
//!
//! ```text
//!   -> restart 2
//!   <- ok node 2 is back, pid 4711          or        <- error WHY
//! ```
//!
//! The directory's permissions decide who may connect. One request is served at a time; others wait
//! in the socket's backlog.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::keeper::Restart;
use super::layout;
use super::{dir_flags, program, quoted};
use crate::exit::Exit;
use crate::output;

/// A longer request does not come from `kv dev restart`.
const REQUEST_BYTES_MAX: u64 = 256;
const REQUEST_PATIENCE: Duration = Duration::from_secs(2);
/// Longer paths do not fit into a socket's address.
const SOCKET_PATH_BYTES_MAX: usize = 100;

/// The channel for orders to each node's keeper.
pub(crate) type Orders = BTreeMap<u64, mpsc::Sender<Restart>>;

/// The supervisor's side of the socket.
pub(crate) struct Control {
    listener: UnixListener,
    path: PathBuf,
}

impl Control {
    /// Opens the socket. The caller holds the directory's lock, so a socket that is there belongs
    /// to no running supervisor.
    pub(crate) fn open(path: PathBuf) -> anyhow::Result<Self> {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| path.display().to_string());
            }
            _ => {}
        }
        let (short, _dir) = short_path(&path)?;
        let listener =
            UnixListener::bind(short).with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Self { listener, path })
    }

    /// Serves requests for as long as it is polled.
    pub(crate) async fn run(&self, orders: &Orders) {
        loop {
            match self.listener.accept().await {
                // A caller that went away needs no response.
                Ok((stream, _)) => drop(serve(stream, orders).await),
                Err(error) => {
                    tracing::warn!(%error, "the control socket fails");
                    tokio::time::sleep(REQUEST_PATIENCE).await;
                }
            }
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // A socket that stays is removed by the next supervisor.
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn serve(mut stream: UnixStream, orders: &Orders) -> io::Result<()> {
    let mut request = String::new();
    let mut limited = BufReader::new((&mut stream).take(REQUEST_BYTES_MAX));
    timeout(REQUEST_PATIENCE, limited.read_line(&mut request)).await??;
    let answer = match carry_out(&request, orders).await {
        Ok(text) => format!("ok {text}\n"),
        Err(text) => format!("error {text}\n"),
    };
    stream.write_all(answer.as_bytes()).await
}

async fn carry_out(request: &str, orders: &Orders) -> Result<String, String> {
    let id = parse(request)?;
    let node = orders.get(&id).ok_or_else(|| {
        format!("there is no node {id}: this cluster has nodes 1 to {}", orders.len())
    })?;
    let (answer, answered) = oneshot::channel();
    let stopping = || "`kv dev` is stopping".to_owned();
    node.send(Restart { answer }).await.map_err(|_| stopping())?;
    answered.await.unwrap_or_else(|_| Err(stopping()))
}

fn parse(request: &str) -> Result<u64, String> {
    let id = request.trim_end().strip_prefix("restart ").and_then(|id| id.parse().ok());
    id.ok_or_else(|| "not understood: is the other `kv` of another version?".to_owned())
}

/// `kv dev restart N`.
pub(crate) async fn restart(dir: &Path, node: u64) -> anyhow::Result<Exit> {
    let path = layout::socket(dir);
    let connected = match short_path(&path) {
        Ok((short, _dir)) => UnixStream::connect(short).await,
        Err(error) => Err(error),
    };
    let mut stream = match connected {
        Ok(stream) => stream,
        Err(error) => bail!("{}", nobody_there(dir, node, &error)),
    };
    stream.write_all(format!("restart {node}\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.context("`kv dev` went away")?;
    if let Some(done) = answer.strip_prefix("ok ") {
        output::tell(done.trim_end().as_bytes());
        return Ok(Exit::Done);
    }
    match answer.strip_prefix("error ") {
        Some(why) => bail!("{}", why.trim_end()),
        None => bail!("`kv dev` went away without an answer"),
    }
}

fn nobody_there(dir: &Path, node: u64, error: &io::Error) -> String {
    let (kv, config) = (program(), layout::node_config(dir, node));
    if !config.exists() {
        return format!(
            "there is no node {node} in {}: name the directory with --dir",
            dir.display()
        );
    }
    format!(
        "no `kv dev` runs on {} ({error}). Start all its nodes with `{kv} dev{}`, or this one alone with \
         `{kv} serve --config {}`",
        dir.display(),
        dir_flags(dir),
        quoted(&config.display().to_string())
    )
}

/// Returns a path to the same socket that fits into an address. The returned directory has to be
/// kept open for as long as the path is used.
fn short_path(path: &Path) -> io::Result<(PathBuf, Option<File>)> {
    if path.as_os_str().len() <= SOCKET_PATH_BYTES_MAX {
        return Ok((path.to_owned(), None));
    }
    let (dir, name) = (path.parent(), path.file_name());
    let (dir, name) = (dir.unwrap_or(Path::new(".")), name.ok_or(io::ErrorKind::InvalidInput)?);
    let dir = File::open(dir)?;
    Ok((Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name), Some(dir)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_strictly() {
        assert_eq!(parse("restart 2\n"), Ok(2));
        for nonsense in ["", "restart", "restart x", "stop 2", "restart 2 3"] {
            assert!(parse(nonsense).is_err(), "{nonsense}");
        }
    }

    #[tokio::test]
    async fn an_order_reaches_its_node_even_below_a_long_path() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("d".repeat(150));
        std::fs::create_dir(&dir).unwrap();
        let control = Control::open(layout::socket(&dir)).unwrap();
        let (orders, mut node) = mpsc::channel::<Restart>(1);
        let orders = Orders::from([(2, orders)]);
        let keeper = async {
            let _ = node.recv().await.unwrap().answer.send(Ok("is back".to_owned()));
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = control.run(&orders) => {}
            () = keeper => {}
            () = async {
                assert_eq!(restart(&dir, 2).await.unwrap(), Exit::Done);
                assert!(restart(&dir, 7).await.unwrap_err().to_string().contains("no node 7"));
            } => {}
        }
    }

    #[tokio::test]
    async fn without_a_supervisor_it_says_what_to_do() {
        let root = tempfile::tempdir().unwrap();
        let error = restart(root.path(), 2).await.unwrap_err().to_string();
        assert!(error.contains("there is no node 2"), "{error}");
        std::fs::write(root.path().join("node2.toml"), "").unwrap();
        let error = restart(root.path(), 2).await.unwrap_err().to_string();
        assert!(error.contains("serve --config") && error.contains("dev --dir"), "{error}");
    }
}
