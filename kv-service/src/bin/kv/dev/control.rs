//! How `kv dev restart`, `add`, `remove` and `replace` reach the supervisor: a socket in the
//! directory, one line each way.
//!
//! ```text
//!   -> restart 2
//!   <- ok node 2 is back, pid 4711          or        <- error WHY
//! ```
//!
//! The directory's permissions decide who may connect. One request is served at a time; others wait
//! in the socket's backlog.

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

use super::layout;
use super::{dir_flags, program, quoted};
use crate::exit::Exit;
use crate::output;

/// A longer request does not come from `kv dev restart`.
const REQUEST_BYTES_MAX: u64 = 256;
const REQUEST_PATIENCE: Duration = Duration::from_secs(2);
/// Longer paths do not fit into a socket's address.
const SOCKET_PATH_BYTES_MAX: usize = 100;

/// An action that `kv dev` is asked to carry out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Restart(u64),
    Add,
    Remove(u64),
    Replace(u64),
}

/// A request to the supervisor; the result goes to `answer`.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) action: Action,
    pub(crate) answer: oneshot::Sender<Result<String, String>>,
}

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
    pub(crate) async fn run(&self, supervisor: &mpsc::Sender<Wanted>) {
        loop {
            match self.listener.accept().await {
                // A caller that went away needs no response.
                Ok((stream, _)) => drop(serve(stream, supervisor).await),
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

async fn serve(mut stream: UnixStream, supervisor: &mpsc::Sender<Wanted>) -> io::Result<()> {
    let mut request = String::new();
    let mut limited = BufReader::new((&mut stream).take(REQUEST_BYTES_MAX));
    timeout(REQUEST_PATIENCE, limited.read_line(&mut request)).await??;
    let answer = match carry_out(&request, supervisor).await {
        Ok(text) => format!("ok {text}\n"),
        Err(text) => format!("error {text}\n"),
    };
    stream.write_all(answer.as_bytes()).await
}

async fn carry_out(request: &str, supervisor: &mpsc::Sender<Wanted>) -> Result<String, String> {
    let action = parse(request)?;
    let (answer, answered) = oneshot::channel();
    let stopping = || "`kv dev` is stopping".to_owned();
    supervisor.send(Wanted { action, answer }).await.map_err(|_| stopping())?;
    answered.await.unwrap_or_else(|_| Err(stopping()))
}

fn parse(request: &str) -> Result<Action, String> {
    let mut words = request.split_whitespace();
    let action = match (words.next(), words.next().map(str::parse), words.next()) {
        (Some("add"), None, None) => Some(Action::Add),
        (Some("restart"), Some(Ok(id)), None) => Some(Action::Restart(id)),
        (Some("remove"), Some(Ok(id)), None) => Some(Action::Remove(id)),
        (Some("replace"), Some(Ok(id)), None) => Some(Action::Replace(id)),
        _ => None,
    };
    action.ok_or_else(|| "not understood: is the other `kv` of another version?".to_owned())
}

impl Action {
    fn line(self) -> String {
        match self {
            Action::Restart(id) => format!("restart {id}\n"),
            Action::Add => "add\n".to_owned(),
            Action::Remove(id) => format!("remove {id}\n"),
            Action::Replace(id) => format!("replace {id}\n"),
        }
    }

    fn node(self) -> Option<u64> {
        match self {
            Action::Restart(id) | Action::Remove(id) | Action::Replace(id) => Some(id),
            Action::Add => None,
        }
    }
}

/// `kv dev restart N`, `add`, `remove N` and `replace N`.
pub(crate) async fn order(dir: &Path, action: Action) -> anyhow::Result<Exit> {
    let path = layout::socket(dir);
    let connected = match short_path(&path) {
        Ok((short, _dir)) => UnixStream::connect(short).await,
        Err(error) => Err(error),
    };
    let mut stream = match connected {
        Ok(stream) => stream,
        Err(error) => bail!("{}", nobody_there(dir, action.node(), &error)),
    };
    stream.write_all(action.line().as_bytes()).await?;
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

fn nobody_there(dir: &Path, node: Option<u64>, error: &io::Error) -> String {
    let kv = program();
    let start = format!(
        "no `kv dev` runs on {} ({error}). Start all its nodes with `{kv} dev{}`",
        dir.display(),
        dir_flags(dir)
    );
    let Some(node) = node else { return start };
    let config = layout::node_config(dir, node);
    if !config.exists() {
        return format!(
            "there is no node {node} in {}: name the directory with --dir",
            dir.display()
        );
    }
    let config = quoted(&config.display().to_string());
    format!("{start}, or this one alone with `{kv} serve --config {config}`")
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
        let actions = [Action::Restart(2), Action::Add, Action::Remove(3), Action::Replace(4)];
        for action in actions {
            assert_eq!(parse(&action.line()), Ok(action));
        }
        for nonsense in ["", "restart", "restart x", "stop 2", "restart 2 3", "add 4"] {
            assert!(parse(nonsense).is_err(), "{nonsense}");
        }
    }

    #[tokio::test]
    async fn an_order_reaches_the_supervisor_even_below_a_long_path() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("d".repeat(150));
        std::fs::create_dir(&dir).unwrap();
        let control = Control::open(layout::socket(&dir)).unwrap();
        let (wanted, mut supervisor) = mpsc::channel::<Wanted>(1);
        let supervise = async {
            while let Some(Wanted { action, answer }) = supervisor.recv().await {
                let _ = answer.send(match action {
                    Action::Restart(2) => Ok("is back".to_owned()),
                    _ => Err("there is no node 7".to_owned()),
                });
            }
        };
        tokio::select! {
            () = control.run(&wanted) => {}
            () = supervise => {}
            () = async {
                assert_eq!(order(&dir, Action::Restart(2)).await.unwrap(), Exit::Done);
                let error = order(&dir, Action::Remove(7)).await.unwrap_err().to_string();
                assert!(error.contains("no node 7"), "{error}");
            } => {}
        }
    }

    #[tokio::test]
    async fn without_a_supervisor_it_says_what_to_do() {
        let root = tempfile::tempdir().unwrap();
        let error = order(root.path(), Action::Restart(2)).await.unwrap_err().to_string();
        assert!(error.contains("there is no node 2"), "{error}");
        std::fs::write(root.path().join("node2.toml"), "").unwrap();
        let error = order(root.path(), Action::Restart(2)).await.unwrap_err().to_string();
        assert!(error.contains("serve --config") && error.contains("dev --dir"), "{error}");
    }
}
