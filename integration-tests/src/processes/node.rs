//! One node: a `kv serve` process, its directory and its log.
//!
//! The process stops when its standard input, a pipe, is closed: it does not outlive a test that is
//! killed.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use kv_service::ServerConfig;
use raft_core::types::NodeId;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::timeout;

use super::binary::Program;
use super::preload::Preload;

/// Time limit for anything that has to happen, on a machine that is busy with other things as well.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Node {
    pub id: NodeId,
    pub data: PathBuf,
    config: PathBuf,
    program: Program,
    log: PathBuf,
    preload: Option<Preload>,
    process: Option<Child>,
    /// Open as long as the node is to run.
    lifeline: Option<ChildStdin>,
    /// Length of the log when the process was started.
    log_before: usize,
}

impl Node {
    pub(super) fn new(id: NodeId, config: PathBuf, data: PathBuf, log: PathBuf) -> Self {
        let (preload, process, lifeline) = (None, None, None);
        let program = Program::Current;
        Self { id, data, config, program, log, preload, process, lifeline, log_before: 0 }
    }

    /// From the next start on, the node runs this program.
    pub fn run_as(&mut self, program: Program) {
        self.program = program;
    }

    /// Changes the file that the node reads at its next start.
    ///
    /// # Panics
    /// If the file cannot be read or written.
    pub fn edit_config(&self, edit: impl FnOnce(&mut ServerConfig)) {
        let mut config = ServerConfig::read(&self.config).expect("it was written here");
        edit(&mut config);
        std::fs::write(&self.config, config.to_toml()).expect("it can be written");
    }

    /// From the next start on, single writes and syncs of the node can be made to fail.
    ///
    /// # Errors
    /// The reason, if this machine has no means for that.
    pub fn prepare_file_faults(&mut self) -> Result<(), String> {
        self.preload = Some(Preload::new(self.log.with_extension("fault"))?);
        Ok(())
    }

    /// # Panics
    /// If [`Node::prepare_file_faults`] was not called.
    pub fn preload(&self) -> &Preload {
        self.file_faults().expect("it was prepared")
    }

    pub fn file_faults(&self) -> Option<&Preload> {
        self.preload.as_ref()
    }

    /// Path of the node's log.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Makes the node's directory, as that of a new member of a new cluster.
    ///
    /// # Panics
    /// If `kv init` fails.
    pub fn init(&self) {
        let mut command = std::process::Command::new(self.program.path());
        command.arg("init").arg("--config").arg(&self.config).stdin(Stdio::null());
        let done = command.output().expect("`kv` can be started");
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "node {} is not initialised: {said}", self.id);
    }

    /// # Panics
    /// If it runs already, or cannot be started.
    pub fn start(&mut self) {
        assert!(self.process.is_none(), "node {} runs already", self.id);
        self.log_before = self.log().len();
        let log = OpenOptions::new().create(true).append(true).open(&self.log);
        let log = log.expect("a log can be written");
        let mut command = Command::new(self.program.path());
        command.arg("serve").arg("--config").arg(&self.config).arg("--stop-on-stdin-eof");
        command
            .env("KV_LOG", "info,raft_storage=debug")
            .env("RUST_BACKTRACE", "1")
            .kill_on_drop(true);
        command.envs(self.preload.iter().flat_map(Preload::environment));
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log);
        let mut process = command.spawn().expect("`kv` can be started");
        // Taken out of the process, because waiting for a process closes its input.
        self.lifeline = process.stdin.take();
        self.process = Some(process);
    }

    pub fn is_started(&self) -> bool {
        self.process.is_some()
    }

    /// # Panics
    /// If it was not started, or has been waited for.
    pub fn pid(&self) -> u32 {
        let process = self.process.as_ref().expect("the node runs");
        process.id().expect("its end was not waited for")
    }

    /// Bytes of memory that the process has in use (`VmRSS`); `None` where the system does not
    /// report it.
    pub fn memory_bytes(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).ok()?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
        let kibibytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
        Some(kibibytes << 10)
    }

    pub(super) fn pid_if_running(&self) -> Option<u32> {
        self.process.as_ref().and_then(Child::id)
    }

    /// # Panics
    /// If the process does not exist.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid().cast_signed()).expect("a process id is positive");
        kill_process(pid, signal).expect("the process is there");
    }

    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Ends the process without warning (SIGKILL). Writes that were not synced stay with the
    /// kernel.
    pub async fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.ended().await;
    }

    /// Kills the node unless it has ended by itself or was not started.
    pub async fn kill_if_running(&mut self) {
        if !self.is_started() {
            return;
        }
        if self.has_ended().is_none() {
            self.signal(Signal::KILL);
        }
        self.ended().await;
    }

    /// Asks the process to stop, and waits.
    pub async fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.ended().await
    }

    /// Waits until the process has ended, for whatever reason.
    ///
    /// # Panics
    /// If it does not within [`PATIENCE`].
    pub async fn ended(&mut self) -> ExitStatus {
        let mut process = self.process.take().expect("the node runs");
        let ended = timeout(PATIENCE, process.wait()).await;
        self.lifeline = None;
        ended.unwrap_or_else(|_| panic!("node {} does not end", self.id)).expect("it is our child")
    }

    /// The status of a process that has ended and was not waited for.
    pub fn has_ended(&mut self) -> Option<ExitStatus> {
        let process = self.process.as_mut()?;
        process.try_wait().expect("it is our child")
    }

    /// Waits until the node stops of its own accord, which it must do with an error; returns its
    /// log since the start.
    ///
    /// # Panics
    /// If it goes on, or ends without an error.
    pub async fn gives_up(&mut self) -> String {
        let status = self.ended().await;
        let said = self.said();
        assert_eq!(status.code(), Some(2), "node {} ended with {status}:\n{said}", self.id);
        said
    }

    /// Files of the log directory with this ending, the newest last.
    pub fn log_files(&self, ending: &str) -> Vec<PathBuf> {
        files_below(&self.data.join("log"), ending)
    }

    /// The log since the last start.
    pub fn said(&self) -> String {
        self.log().split_off(self.log_before)
    }

    /// The log since the node's first start.
    pub fn log(&self) -> String {
        std::fs::read(&self.log).map_or(String::new(), |all| String::from_utf8_lossy(&all).into())
    }
}

/// All files below a folder with this ending, by name.
pub fn files_below(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found = Vec::new();
    for path in entries.map(|entry| entry.path()) {
        if path.is_dir() {
            found.extend(files_below(&path, ending));
        } else if path.to_string_lossy().ends_with(ending) {
            found.push(path);
        }
    }
    found.sort();
    found
}
