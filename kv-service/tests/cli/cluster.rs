//! A cluster as a user has it: `kv dev` in a directory of its own, and the `kv` command.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use raft_core::testing::free_ports;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;

const KV: &str = env!("CARGO_BIN_EXE_kv");
/// Time limit for anything that has to happen, on a machine that is busy with other things as well.
const PATIENCE: Duration = Duration::from_secs(60);

/// Clusters run one at a time: each needs the machine for itself.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

pub(crate) struct Cluster {
    pub(crate) dir: PathBuf,
    pub(crate) base_port: u16,
    supervisor: Option<Supervisor>,
    _root: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

struct Supervisor {
    child: Child,
    lines: Receiver<String>,
}

impl Cluster {
    /// Starts `kv dev` in a new directory and waits until it says that it is ready.
    pub(crate) fn start() -> Self {
        // A failed test leaves nothing behind that could affect another one.
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let root = tempfile::tempdir().unwrap();
        let mut cluster = Self {
            dir: root.path().join("data"),
            base_port: free_ports(5).start - 1,
            supervisor: None,
            _root: root,
            _turn: turn,
        };
        let port = cluster.base_port.to_string();
        cluster.up(&["--base-port", &port]);
        cluster
    }

    /// Starts `kv dev` on the directory, with flags.
    pub(crate) fn up(&mut self, flags: &[&str]) {
        assert!(self.supervisor.is_none());
        let mut child = Command::new(KV)
            .args(["dev", "--dir"])
            .arg(&self.dir)
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = sync_channel(1024);
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                eprintln!("{line}");
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        self.supervisor = Some(Supervisor { child, lines });
        self.heard("Ctrl-C stops all nodes");
    }

    /// Waits until the supervisor prints the text; returns the line.
    pub(crate) fn heard(&self, text: &str) -> String {
        let supervisor = self.supervisor.as_ref().unwrap();
        loop {
            match supervisor.lines.recv_timeout(PATIENCE) {
                Ok(line) if line.contains(text) => return line,
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => panic!("`kv dev` did not say {text:?} in time"),
                Err(RecvTimeoutError::Disconnected) => panic!("`kv dev` ended before {text:?}"),
            }
        }
    }

    /// Sends the supervisor a signal and waits for its end.
    pub(crate) fn down(&mut self, with: Signal) -> ExitStatus {
        let mut supervisor = self.supervisor.take().unwrap();
        kill(supervisor.child.id(), with);
        supervisor.child.wait().unwrap()
    }

    /// Asks the supervisor to stop, and again once it has begun to stop.
    pub(crate) fn down_at_once(&mut self) -> ExitStatus {
        kill(self.supervisor.as_ref().unwrap().child.id(), Signal::INT);
        self.heard("stopping");
        self.down(Signal::INT)
    }

    pub(crate) fn client_config(&self) -> PathBuf {
        self.dir.join("client.toml")
    }

    /// Runs a client command.
    pub(crate) fn kv(&self, args: &[&str]) -> Output {
        Command::new(KV).args(args).env("KV_CONFIG", self.client_config()).output().unwrap()
    }

    /// Runs a client command that cannot print, and returns its exit code and its standard error.
    pub(crate) fn kv_into(&self, stdout: Stdio, args: &[&str]) -> (i32, String) {
        let mut command = Command::new(KV);
        command.args(args).env("KV_CONFIG", self.client_config()).stdin(Stdio::null());
        let output = command.stdout(stdout).stderr(Stdio::piped()).spawn().unwrap();
        let output = output.wait_with_output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    }

    /// Runs a client command, which must end with this code, and returns what it prints.
    pub(crate) fn kv_ends(&self, code: i32, args: &[&str]) -> String {
        let output = self.kv(args);
        let stdout = String::from_utf8(output.stdout).unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {stdout}{stderr}");
        assert_eq!(stderr.is_empty(), code == 0 || stdout.contains("revision="), "{stderr}");
        stdout
    }

    /// The nodes as `kv status --json` reports them.
    pub(crate) fn nodes(&self) -> Vec<Value> {
        let output = self.kv(&["status", "--json"]);
        let status: Value = serde_json::from_slice(&output.stdout).unwrap();
        status["nodes"].as_array().unwrap().clone()
    }

    /// The leader's id and pid, once there is one.
    pub(crate) fn leader(&self) -> (u64, u32) {
        let mut found = None;
        eventually("a leader", || {
            let nodes = self.nodes();
            let leader = nodes.iter().find(|node| node["role"] == "leader");
            found = leader.map(|node| (node["id"].as_u64().unwrap(), pid(node)));
            found.is_some()
        });
        found.unwrap()
    }

    /// A `kv batch` session.
    pub(crate) fn batch(&self, flags: &[&str]) -> Batch {
        let mut child = Command::new(KV)
            .arg("batch")
            .args(flags)
            .env("KV_CONFIG", self.client_config())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Batch { child, stdin, stdout }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut supervisor) = self.supervisor.take() {
            kill(supervisor.child.id(), Signal::TERM);
            // Ignored: a panic in a panic would hide the first one.
            let _ = supervisor.child.wait();
        }
    }
}

pub(crate) struct Batch {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<std::process::ChildStdout>,
}

impl Batch {
    pub(crate) fn send(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().unwrap();
        stdin.write_all(line.as_bytes()).unwrap();
        stdin.write_all(b"\n").unwrap();
        stdin.flush().unwrap();
    }

    pub(crate) fn receive(&mut self) -> Value {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    pub(crate) fn ask(&mut self, line: &str) -> Value {
        self.send(line);
        self.receive()
    }

    /// Ends the requests.
    pub(crate) fn close(&mut self) {
        self.stdin = None;
    }

    pub(crate) fn finish(mut self) -> Option<i32> {
        self.close();
        let mut rest = String::new();
        assert_eq!(self.stdout.read_line(&mut rest).unwrap(), 0, "{rest}");
        self.child.wait().unwrap().code()
    }
}

/// Runs `kv` without a cluster.
pub(crate) fn kv(args: &[&str], dir: &Path) -> Output {
    Command::new(KV).args(args).current_dir(dir).env_remove("KV_CONFIG").output().unwrap()
}

/// Starts `kv` and lets it run, at most as long as the test.
pub(crate) fn spawn(args: &[&str], dir: &Path) -> Running {
    let mut command = Command::new(KV);
    let silent = || Stdio::null();
    command.args(args).current_dir(dir).stdin(silent()).stdout(silent()).stderr(silent());
    Running(command.spawn().unwrap())
}

pub(crate) struct Running(Child);

impl Running {
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn ends_well(&mut self) {
        kill(self.pid(), Signal::TERM);
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn pid(node: &Value) -> u32 {
    node["pid"].as_u64().unwrap().try_into().unwrap()
}

pub(crate) fn kill(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
}

pub(crate) fn is_alive(pid: u32) -> bool {
    test_kill_process(Pid::from_raw(pid.cast_signed()).unwrap()).is_ok()
}

/// Polls the condition: events in another process cannot be awaited.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let step = Duration::from_millis(20);
    for _ in 0..PATIENCE.as_millis() / step.as_millis() {
        if holds() {
            return;
        }
        #[allow(clippy::disallowed_methods)]
        std::thread::sleep(step);
    }
    panic!("waited in vain for {what}");
}
