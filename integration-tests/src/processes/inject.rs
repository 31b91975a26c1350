//! Faults of all system calls of a kind of a running node, made by `strace`. Single ones are made by
//! [`super::preload`].

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::node::Node;

/// While it lives, system calls of the node are tampered with.
pub struct Injection {
    tracer: Child,
}

impl Injection {
    /// Takes hold of a running node. `faults` are what `strace` calls them: `fdatasync:error=EIO`.
    ///
    /// # Errors
    /// `strace` is not there, or may not; why.
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
        // It says so once it has hold of all threads.
        for line in lines.by_ref() {
            if line.contains("attached") {
                // The rest of its words fits into the pipe, or stops it from saying more.
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
        // It lets go of the node then; or it has ended with it.
        if let Some(pid) = Pid::from_raw(self.tracer.id().cast_signed())
            && matches!(self.tracer.try_wait(), Ok(None))
        {
            let _ = kill_process(pid, Signal::TERM);
        }
        let _ = self.tracer.wait();
    }
}
