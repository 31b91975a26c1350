//! Clusters of real processes on this machine, started, killed and started again.

pub(crate) mod etcd;
pub(crate) mod kv;

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

/// How long a cluster may take to come up or to heal.
const PATIENCE: Duration = Duration::from_secs(180);
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(20);

/// Creates a directory of our own below `parent`; it is removed when dropped.
pub(crate) fn scratch(parent: &Path) -> anyhow::Result<TempDir> {
    std::fs::create_dir_all(parent)
        .and_then(|()| tempfile::Builder::new().prefix("bench-").tempdir_in(parent))
        .with_context(|| format!("cannot make a directory in {}", parent.display()))
}

/// The servers of one cluster, numbered from 0. Dropping it kills them.
#[derive(Debug)]
pub(crate) struct Processes {
    members: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    command: Command,
    log: PathBuf,
    child: Option<Child>,
}

impl Processes {
    pub(crate) fn none() -> Self {
        Self { members: Vec::new() }
    }

    /// Starts a further server, whose output goes to `log`.
    pub(crate) fn add(&mut self, command: Command, log: PathBuf) -> anyhow::Result<()> {
        self.members.push(Member { command, log, child: None });
        self.start(self.members.len() - 1)
    }

    /// Starts a server that does not run, with what its data directory holds.
    pub(crate) fn start(&mut self, number: usize) -> anyhow::Result<()> {
        let Member { command, log, child } = &mut self.members[number];
        ensure!(child.is_none(), "server {number} runs already");
        let output = OpenOptions::new().create(true).append(true).open(&*log)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let name = command.get_program().to_owned();
        let spawned = command.spawn();
        *child = Some(spawned.with_context(|| format!("cannot start {}", name.display()))?);
        Ok(())
    }

    /// `kill -9`; returns when the process is gone.
    pub(crate) fn kill(&mut self, number: usize) -> anyhow::Result<()> {
        let child = self.members[number].child.take();
        let mut child = child.with_context(|| format!("server {number} does not run"))?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Returns the ids of the processes that were started and not killed.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.members.iter().filter_map(|member| Some(member.child.as_ref()?.id())).collect()
    }

    /// Checks that no server has ended by itself.
    ///
    /// # Errors
    /// A server has ended by itself; the text shows the end of its output.
    pub(crate) fn ensure_running(&mut self) -> anyhow::Result<()> {
        for (number, member) in self.members.iter_mut().enumerate() {
            let Some(child) = &mut member.child else { continue };
            if let Some(status) = child.try_wait()? {
                let said = std::fs::read_to_string(&member.log).unwrap_or_default();
                let last: Vec<&str> = said.lines().rev().take(5).collect();
                let last: Vec<&str> = last.into_iter().rev().collect();
                anyhow::bail!("server {number} ended with {status}: {}", last.join("\n"));
            }
        }
        Ok(())
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for number in 0..self.members.len() {
            // An error means that the server does not run.
            let _ = self.kill(number);
        }
    }
}

/// Polls a condition until it holds.
///
/// # Errors
/// The condition does not hold within [`PATIENCE`], or a server ends.
async fn until(
    processes: &mut Processes,
    what: &str,
    mut holds: impl AsyncFnMut() -> bool,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        processes.ensure_running()?;
        ensure!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        sleep(LOOK_AGAIN_AFTER).await;
    }
    Ok(())
}
