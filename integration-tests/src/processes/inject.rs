//! Faults of all system calls of one kind in a running node, made by `strace`. For faults of single
//! calls see [`super::preload`].

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::node::Node;

/// System calls of the node are tampered with while this lives.
pub struct Injection {
    tracer: Child,
}

impl Injection {
    /// Attaches to a running node. `faults` use the syntax of `strace`: `fdatasync:error=EIO`.
    ///
    /// # Errors
    /// The reason, if `strace` is missing or has no permission.
    pub fn into_node(node: &Node, faults: &[&str]) -> Result<Self, String> {
        let calls: Vec<&str> = faults.iter().filter_map(|fault| fault.split(':').next()).collect();
        let mut command = Command::new("strace");
        command.args(["-f", "-p", &node.pid().to_string(), "-o", "/dev/null"]);
        command.args(["-e", &format!("trace={}", calls.join(","))]);
        for fault in faults {
            command.args(["-e", &format!("inject={fault}")]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut tracer = command.spawn().map_err(|error| format!("`strace`: {error}"))?;
        let said = BufReader::new(tracer.stderr.take().expect("it is piped"));
        let mut told = String::new();
        let mut lines = said.lines().map_while(Result::ok);
        // `strace` reports when it is attached to all threads.
        for line in lines.by_ref() {
            if line.contains("attached") {
                // Drain the rest of its output: a full pipe would block it.
                std::thread::spawn(move || lines.for_each(drop));
                return Ok(Self { tracer });
            }
            told.push_str(&line);
        }
        let ended = tracer.wait().map_err(|error| error.to_string())?;
        Err(format!("`strace` ended with {ended}: {told}"))
    }
}

impl Drop for Injection {
    fn drop(&mut self) {
        // `strace` detaches from the node then; or it has ended together with the node.
        if let Some(pid) = Pid::from_raw(self.tracer.id().cast_signed())
            && matches!(self.tracer.try_wait(), Ok(None))
        {
            let _ = kill_process(pid, Signal::TERM);
        }
        let _ = self.tracer.wait();
    }
}
