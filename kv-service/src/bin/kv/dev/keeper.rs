//! The keeper of one node: owns the node's process through starts, crashes and restarts.
//!
//! A keeper takes one order at a time and reports what happens to its node. The process is in a
//! group of its own, so that a Ctrl-C in the terminal reaches the supervisor alone, which then
//! stops the nodes cleanly. The process's standard input is the reading end of a pipe: if the
//! supervisor is gone, for whatever reason, the node reads the end of its input and stops.

use std::fs::OpenOptions;
use std::io;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use kv_service::Client;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};

use super::layout::Layout;
use crate::exit::Exit;

/// How long a node may take to stop before it is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// How long a node that was brought back may take to answer before the keeper reports so and stops
/// asking.
const ANSWER_PATIENCE: Duration = Duration::from_secs(30);
/// How long a node may take to answer one question.
const STATUS_DEADLINE: Duration = Duration::from_millis(500);
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// The order to bring the node back; a running node is stopped first. The result goes to `answer`.
#[derive(Debug)]
pub(crate) struct Restart {
    pub(crate) answer: oneshot::Sender<Result<String, String>>,
}

/// An order to a keeper.
#[derive(Debug)]
pub(crate) enum Order {
    Restart(Restart),
    /// The node was removed from the cluster: stop it for good.
    Retire,
}

/// An event of a node, for the supervisor.
#[derive(Debug)]
pub(crate) enum Report {
    /// The process ended without an order, or could not be started.
    Died {
        id: u64,
        how: String,
    },
    CameBack {
        id: u64,
        pid: u32,
    },
    /// The node was removed from the cluster, and its process has ended.
    Retired {
        id: u64,
    },
}

/// Tells the keepers whether to stop, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stopping {
    Not,
    /// Stop cleanly.
    Clean,
    /// Kill.
    AtOnce,
}

pub(crate) struct Keeper {
    pub(crate) id: u64,
    pub(crate) layout: Arc<Layout>,
    pub(crate) program: PathBuf,
    pub(crate) client: Client,
    pub(crate) orders: mpsc::Receiver<Order>,
    pub(crate) reports: mpsc::Sender<Report>,
    pub(crate) stopping: watch::Receiver<Stopping>,
}

/// A running node.
struct Process {
    child: Child,
    pid: u32,
    /// Kept open as long as the node is to run.
    _lifeline: Option<ChildStdin>,
}

impl Keeper {
    /// Keeps the node until told to stop. When this returns, the node's process has ended.
    pub(crate) async fn run(mut self) {
        let mut process = self.start().await;
        loop {
            let order = tokio::select! {
                status = ended(&mut process) => {
                    process = None;
                    if is_removal(&status) {
                        return self.report(Report::Retired { id: self.id }).await;
                    }
                    self.report(Report::Died { id: self.id, how: exit_text(status) }).await;
                    continue;
                }
                Some(order) = self.orders.recv() => order,
                () = stop_wanted(&mut self.stopping) => break,
            };
            if let Some(running) = process.take() {
                running.terminate(&mut self.stopping).await;
            }
            match order {
                Order::Restart(order) => process = self.bring_back(order).await,
                Order::Retire => return self.report(Report::Retired { id: self.id }).await,
            }
        }
        if let Some(running) = process {
            running.terminate(&mut self.stopping).await;
        }
    }

    async fn start(&self) -> Option<Process> {
        match self.spawn() {
            Ok(process) => Some(process),
            Err(error) => {
                self.report(Report::Died { id: self.id, how: format!("{error:#}") }).await;
                None
            }
        }
    }

    /// Starts the node again, and answers the order once the result is known.
    async fn bring_back(&mut self, order: Restart) -> Option<Process> {
        let id = self.id;
        let mut process = match self.spawn() {
            Ok(process) => process,
            Err(error) => {
                // The caller may have gone; the same below.
                let _ = order.answer.send(Err(format!("{error:#}")));
                return None;
            }
        };
        let pid = process.pid;
        let answer = tokio::select! {
            status = process.child.wait() => {
                if is_removal(&status) {
                    let why = format!("node {id} was removed from the cluster");
                    let _ = order.answer.send(Err(why));
                    self.report(Report::Retired { id }).await;
                    return None;
                }
                let log = self.layout.node_log(id);
                let how = format!("{}; see {}", exit_text(status), log.display());
                let _ = order.answer.send(Err(format!("node {id} {how}")));
                self.report(Report::Died { id, how }).await;
                return None;
            }
            () = answering(&self.client, id, pid) => Ok(format!("node {id} is back, pid {pid}")),
            () = sleep(ANSWER_PATIENCE) => {
                Ok(format!("node {id} was started, pid {pid}, and does not answer yet"))
            }
            () = stop_wanted(&mut self.stopping) => Err("`kv dev` is stopping".to_owned()),
        };
        let _ = order.answer.send(answer);
        self.report(Report::CameBack { id, pid }).await;
        Some(process)
    }

    fn spawn(&self) -> anyhow::Result<Process> {
        let path = self.layout.node_log(self.id);
        let log = OpenOptions::new().create(true).append(true).open(&path);
        let log = log.with_context(|| path.display().to_string())?;
        let mut child = Command::new(&self.program)
            .args(["serve", "--stop-on-stdin-eof", "--config"])
            .arg(self.layout.node_config(self.id))
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot run {}", self.program.display()))?;
        // Waiting for a child closes its standard input, unless it was taken.
        let lifeline = child.stdin.take();
        let pid = child.id().context("a process that was just started has a number")?;
        Ok(Process { child, pid, _lifeline: lifeline })
    }

    async fn report(&self, report: Report) {
        // The supervisor reads reports until all keepers are done.
        let _ = self.reports.send(report).await;
    }
}

impl Process {
    /// Stops the process with SIGTERM, and kills it if that takes too long.
    async fn terminate(mut self, stopping: &mut watch::Receiver<Stopping>) {
        let at_once = stopping.wait_for(|stopping| *stopping == Stopping::AtOnce);
        // The child has not been waited for, so its process id still names it.
        if let Some(pid) = self.child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())) {
            // The process may have ended by itself.
            let _ = kill_process(pid, Signal::TERM);
        }
        let ended = async {
            tokio::select! {
                _ = self.child.wait() => true,
                Ok(_) = at_once => false,
            }
        };
        if !timeout(STOP_PATIENCE, ended).await.unwrap_or(false) {
            // Kills and waits; fails only for a process that has ended.
            let _ = self.child.kill().await;
        }
    }
}

/// Waits until the process has ended. Without a process it waits forever.
async fn ended(process: &mut Option<Process>) -> io::Result<ExitStatus> {
    match process {
        Some(process) => process.child.wait().await,
        None => std::future::pending().await,
    }
}

async fn stop_wanted(stopping: &mut watch::Receiver<Stopping>) {
    // An error means that the supervisor is gone, which is a reason to stop.
    let _ = stopping.wait_for(|stopping| *stopping != Stopping::Not).await;
}

/// Waits until the node answers from this process: another process may hold its port.
async fn answering(client: &Client, id: u64, pid: u32) {
    let client = client.with_deadline(STATUS_DEADLINE);
    while !client.status(id).await.is_ok_and(|status| status.pid == pid) {
        sleep(ASK_AGAIN_AFTER).await;
    }
}

/// Returns true if the node has stopped because it was removed from the cluster.
fn is_removal(status: &io::Result<ExitStatus>) -> bool {
    status.as_ref().is_ok_and(|status| status.code() == Some(Exit::Removed.code().into()))
}

fn exit_text(status: io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => format!("ended with {status}"),
        Err(error) => format!("is lost: {error}"),
    }
}
