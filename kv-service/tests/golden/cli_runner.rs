//! Scripts for the `kv` command: real processes in a temporary directory, printed as DIR.
//!
//! ```text
//! kv ARG..                     runs it: standard output (`|`), standard error (`!`), exit code
//! input LINE..                 standard input of the next `kv`
//! node FILE [FROM TO]..        a node's file, with texts replaced; client FILE: a client's
//! file NAME TEXT   dir NAME   list NAME       in the temporary directory
//! env NAME VALUE               for all further commands
//! cluster                      `kv dev` with one node; further commands find it
//! ```
//!
//! An argument with other signs than letters, digits, `-`, `.`, `/` inside is quoted. With a
//! cluster, revisions and times differ from run to run, and are printed as `_`.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use goldenscript::{ArgumentConsumer, Context};
use raft_core::testing::free_ports;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::support::{Outcome, word};

const KV: &str = env!("CARGO_BIN_EXE_kv");

const NODE: &str = "\
cluster_id = \"shop\"
node_id = 1
data_dir = \"data\"
max_raft_state = \"1MiB\"
[timeouts]
heartbeat = \"50ms\"
election = \"400ms\"
[tls]
ca = \"ca.pem\"
cert = \"node1.pem\"
key = \"node1.key\"
[[nodes]]
id = 1
address = \"127.0.0.1:7401\"
[[nodes]]
id = 2
address = \"127.0.0.1:7402\"
";

const CLIENT: &str = "\
cluster_id = \"shop\"
deadline = \"1s\"
[tls]
ca = \"ca.pem\"
cert = \"client.pem\"
key = \"client.key\"
[[nodes]]
id = 1
address = \"127.0.0.1:7401\"
";

/// Numbers behind these differ from run to run.
const MASKED: [&str; 6] =
    ["\"start_ns\":", "\"end_ns\":", "\"revision\":", "_revision\":", "revision=", "revision "];

pub(crate) struct CliRunner {
    root: TempDir,
    environment: BTreeMap<String, String>,
    input: String,
    cluster: Option<Child>,
}

impl Default for CliRunner {
    fn default() -> Self {
        let root = TempDir::new().expect("a directory");
        Self { root, environment: BTreeMap::new(), input: String::new(), cluster: None }
    }
}

impl CliRunner {
    fn path(&self, args: &mut ArgumentConsumer<'_>) -> Outcome<PathBuf> {
        Ok(self.root.path().join(word(args, "a name")?))
    }

    /// The `kv` command, whatever the environment of the tests.
    fn command(&self) -> Command {
        let mut command = Command::new(KV);
        for name in ["KV_CONFIG", "KV_LOG", "COLUMNS", "RUST_BACKTRACE"] {
            command.env_remove(name);
        }
        command.current_dir(self.root.path()).envs(&self.environment);
        command
    }

    fn kv(&mut self, args: &mut ArgumentConsumer<'_>) -> Outcome<String> {
        let mut command = self.command();
        command.args(std::iter::from_fn(|| args.next_pos()));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let mut stdin = child.stdin.take().ok_or("no standard input")?;
        // A command that does not read its input may have ended.
        let _ = stdin.write_all(std::mem::take(&mut self.input).as_bytes());
        drop(stdin);
        let output = child.wait_with_output()?;
        let (stdout, stderr) = (self.plain(&output.stdout), self.plain(&output.stderr));
        let marked = |mark, line| format!("{mark} {line}").trim_end().to_owned();
        let mut lines: Vec<String> = stdout.lines().map(|line| marked('|', line)).collect();
        lines.extend(stderr.lines().map(|line| marked('!', line)));
        lines.push(match output.status.code() {
            Some(code) => format!("exit code {code}"),
            None => "killed".to_owned(),
        });
        Ok(lines.join("\n"))
    }

    /// The text without what differs from run to run.
    fn plain(&self, bytes: &[u8]) -> String {
        let text = String::from_utf8_lossy(bytes);
        let text = text.replace(&self.root.path().display().to_string(), "DIR");
        match self.cluster {
            Some(_) => MASKED.iter().fold(text, |text, marker| mask(&text, marker)),
            None => text,
        }
    }

    fn write(&self, base: &str, args: &mut ArgumentConsumer<'_>) -> Outcome<()> {
        let (path, mut text) = (self.path(args)?, base.to_owned());
        while let Some(from) = args.next_pos() {
            if !text.contains(from) {
                return Err(format!("nothing to replace: {from}").into());
            }
            text = text.replacen(from, word(args, "a replacement")?, 1);
        }
        Ok(std::fs::write(path, text)?)
    }

    fn start_cluster(&mut self) -> Outcome<()> {
        let base_port = free_ports(3).start - 1;
        let mut command = self.command();
        command.args(["dev", "--nodes", "1", "--base-port", &base_port.to_string()]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut stdout = BufReader::new(child.stdout.take().ok_or("no standard output")?);
        self.cluster = Some(child);
        let mut line = String::new();
        while !line.contains("Ctrl-C stops all nodes") {
            line.clear();
            if stdout.read_line(&mut line)? == 0 {
                return Err("`kv dev` ended".into());
            }
        }
        // Read on, so that the supervisor can write.
        std::thread::spawn(move || stdout.read_to_end(&mut Vec::new()));
        Ok(())
    }

    fn files(&self, name: &str, args: &mut ArgumentConsumer<'_>) -> Outcome<String> {
        match name {
            "node" => self.write(NODE, args)?,
            "client" => self.write(CLIENT, args)?,
            "file" => std::fs::write(self.path(args)?, word(args, "a text")?)?,
            "dir" => std::fs::create_dir_all(self.path(args)?)?,
            "list" => return list(&self.path(args)?),
            _ => return Err(format!("no command {name}").into()),
        }
        Ok(String::new())
    }
}

impl Drop for CliRunner {
    fn drop(&mut self) {
        if let Some(mut cluster) = self.cluster.take() {
            let pid = i32::try_from(cluster.id()).ok().and_then(Pid::from_raw);
            let _ = kill_process(pid.expect("a process"), Signal::INT);
            let _ = cluster.wait();
        }
    }
}

fn list(path: &Path) -> Outcome<String> {
    if !path.exists() {
        return Ok("absent".to_owned());
    }
    let entries = std::fs::read_dir(path)?.collect::<Result<Vec<_>, _>>()?;
    let mut names: Vec<String> =
        entries.iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    Ok(if names.is_empty() { "empty".to_owned() } else { names.join("\n") })
}

/// Replaces the number behind each marker.
fn mask(text: &str, marker: &str) -> String {
    let mut masked = String::new();
    let mut parts = text.split(marker);
    masked.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let rest = part.trim_start_matches(|c: char| c.is_ascii_digit());
        masked.push_str(marker);
        if rest.len() < part.len() {
            masked.push('_');
        }
        masked.push_str(rest);
    }
    masked
}

impl goldenscript::Runner for CliRunner {
    type Command = goldenscript::Command;

    fn run(&mut self, command: &goldenscript::Command, _: &Context) -> Outcome<String> {
        let mut args = command.consume_args();
        let told = match command.name.as_str() {
            "kv" => self.kv(&mut args)?,
            "input" => {
                while let Some(line) = args.next_pos() {
                    self.input.push_str(line);
                    self.input.push('\n');
                }
                String::new()
            }
            "env" => {
                let (name, value) = (word(&mut args, "a name")?, word(&mut args, "a value")?);
                self.environment.insert(name.to_owned(), value.to_owned());
                String::new()
            }
            "cluster" => {
                self.start_cluster()?;
                String::new()
            }
            name => self.files(name, &mut args)?,
        };
        args.reject_next()?;
        Ok(told)
    }
}
