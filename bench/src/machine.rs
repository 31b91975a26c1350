//! The machine that the figures were measured on.

use std::fmt;
use std::fs;
use std::process::Command;

use serde::Serialize;

#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    processor: String,
    cores: usize,
    memory_gib: u64,
    kernel: String,
    /// Average over one minute before the benchmark began: figures of a busy machine are not worth
    /// much.
    load_average: String,
    /// The revision that was measured, marked if the tree differs from it.
    revision: String,
}

impl Machine {
    pub(crate) fn describe() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            let value = line.and_then(|line| line.split_once(':'));
            value.map_or_else(|| "unknown".to_owned(), |(_, value)| value.trim().to_owned())
        };
        let memory_kib = field(&read("/proc/meminfo"), "MemTotal");
        let memory_kib = memory_kib.split(' ').next().and_then(|kib| kib.parse::<u64>().ok());
        let load_average = read("/proc/loadavg");
        let git = Command::new("git")
            .args([
                "-C",
                env!("CARGO_MANIFEST_DIR"),
                "describe",
                "--always",
                "--dirty",
                "--abbrev=12",
            ])
            .output();
        let revision = git.ok().filter(|git| git.status.success());
        let revision = revision.and_then(|git| String::from_utf8(git.stdout).ok());
        Self {
            processor: field(&read("/proc/cpuinfo"), "model name"),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_gib: memory_kib.unwrap_or(0) >> 20,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load_average: load_average.split(' ').next().unwrap_or("unknown").to_owned(),
            revision: revision.map_or_else(|| "unknown".to_owned(), |name| name.trim().to_owned()),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { processor, cores, memory_gib, kernel, load_average, revision } = self;
        write!(
            f,
            "revision {revision}; {cores} cores of {processor}, {memory_gib} GiB, Linux {kernel}, \
             load {load_average} before"
        )
    }
}
