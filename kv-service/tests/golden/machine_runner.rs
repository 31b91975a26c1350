//! Scripts for state machines: one in memory (`sessions`), or one on each engine (`engines`).
//!
//! Beside the commands of `machine`:
//!
//! ```text
//! disk memtable=BYTES         engines only, first: memtables rotate at that size
//! snapshot NAME   view   read NAME        a snapshot; a view that is read later, under a name
//! show NAME                   restores it elsewhere and prints its records
//! restore NAME [chunks=N]     all of it, or only so many pieces and no end
//! damage NAME byte=N | length=N           flips a bit; cuts it short
//! lose    replay              an empty machine; what it lacks of the log is applied
//! flush   reopen   crash      makes durable; stops in order or not, and starts again
//! inline KEY                  may a write of the key be applied without blocking?
//! same                        compares the states of the engines, byte by byte
//! generations                 directories that hold a state
//! ```
//!
//! Each engine executes each command. Their outputs must be equal and are printed once; only those
//! about durability, and those of a command with the tag `[differ]`, may differ, and then carry the
//! engine's name.

use std::collections::BTreeMap;

use bytes::Bytes;
use goldenscript::{ArgumentConsumer, Context};
use raft_core::state_machine::StateMachine;
use raft_core::types::{Entry, Payload};

use crate::machine::{self, Proposer};
use crate::subject::{Snapshot, Subject};
use crate::support::{
    Action, Command, Nonce, Operation, Outcome, Query, SessionId, VERSION_MAX, WriteLimits, number,
    word,
};

const MAY_DIFFER: [&str; 6] = ["flush", "reopen", "crash", "lose", "inline", "generations"];

/// Larger than any script writes, so that nothing becomes durable without a request.
#[cfg(feature = "rocksdb")]
const MEMTABLE_BYTES: usize = 64 << 20;

pub(crate) struct MachineRunner {
    subjects: Vec<Subject>,
    proposer: Proposer,
    snapshots: BTreeMap<String, Snapshot>,
    /// The outputs of this command may differ.
    may_differ: bool,
}

impl MachineRunner {
    pub(crate) fn in_memory() -> Self {
        Self::over(vec![Subject::memory()])
    }

    #[cfg(feature = "rocksdb")]
    pub(crate) fn on_both_engines() -> Self {
        let disk = Subject::on_disk(MEMTABLE_BYTES).expect("a store in a new directory");
        Self::over(vec![Subject::memory(), disk])
    }

    fn over(subjects: Vec<Subject>) -> Self {
        Self {
            subjects,
            proposer: Proposer::default(),
            snapshots: BTreeMap::new(),
            may_differ: false,
        }
    }

    /// Executes a command on every subject.
    fn on_each(&mut self, mut act: impl FnMut(&mut Subject) -> Outcome<String>) -> Outcome<String> {
        let mut told: Vec<(&str, Outcome<String>)> = Vec::new();
        for subject in &mut self.subjects {
            let subject_name = subject.name;
            told.push((subject_name, act(subject)));
        }
        let text = |outcome: &Outcome<String>| match outcome {
            Ok(text) => text.clone(),
            Err(error) => format!("Error: {error}"),
        };
        let texts: Vec<(&str, String)> =
            told.iter().map(|(name, outcome)| (*name, text(outcome))).collect();
        if texts.iter().all(|(_, text)| *text == texts[0].1) {
            return told.swap_remove(0).1;
        }
        let lines: Vec<String> =
            texts.iter().map(|(subject, text)| format!("{subject}: {text}")).collect();
        match self.may_differ {
            true => Ok(lines.join("\n")),
            false => Err(format!("the engines disagree\n{}", lines.join("\n")).into()),
        }
    }

    /// Keeps a snapshot that all subjects must produce alike.
    fn keep(
        &mut self,
        name: &str,
        mut take: impl FnMut(&mut Subject) -> Outcome<Snapshot>,
    ) -> Outcome<String> {
        let mut taken = Vec::new();
        for subject in &mut self.subjects {
            taken.push(take(subject)?);
        }
        if taken.iter().any(|snapshot| *snapshot != taken[0]) {
            return Err("the engines' snapshots differ".into());
        }
        let snapshot = taken.swap_remove(0);
        let through = snapshot.position.index;
        self.snapshots.insert(name.to_owned(), snapshot);
        Ok(format!("through {through}"))
    }

    fn snapshot(&self, args: &mut ArgumentConsumer<'_>) -> Outcome<Snapshot> {
        let name = word(args, "a snapshot")?;
        Ok(self.snapshots.get(name).ok_or("no such snapshot")?.clone())
    }

    fn damage(&mut self, args: &mut ArgumentConsumer<'_>) -> Outcome<String> {
        let name = word(args, "a snapshot")?.to_owned();
        let (byte, length) = (number(args, "byte")?, number(args, "length")?);
        let snapshot = self.snapshots.get_mut(&name).ok_or("no such snapshot")?;
        if let Some(byte) = byte {
            snapshot.bytes[byte as usize] ^= 1;
        }
        if let Some(length) = length {
            snapshot.bytes.truncate(length as usize);
        }
        Ok(String::new())
    }

    fn on_snapshots(
        &mut self,
        name: &str,
        args: &mut ArgumentConsumer<'_>,
    ) -> Outcome<Option<String>> {
        Ok(Some(match name {
            "snapshot" => self.keep(word(args, "a name")?, Subject::snapshot)?,
            "read" => self.keep(word(args, "a name")?, Subject::read_view)?,
            "same" => {
                self.keep("same", Subject::snapshot)?;
                "equal states".to_owned()
            }
            "show" => show(&self.snapshot(args)?)?,
            "damage" => self.damage(args)?,
            "restore" => {
                let (snapshot, chunks) = (self.snapshot(args)?, number(args, "chunks")?);
                self.on_each(|subject| subject.restore(&snapshot, chunks))?
            }
            _ => return Ok(None),
        }))
    }

    fn on_subjects(&mut self, name: &str, args: &mut ArgumentConsumer<'_>) -> Outcome<String> {
        match name {
            #[cfg(feature = "rocksdb")]
            "disk" => {
                let memtable_bytes = number(args, "memtable")?.ok_or("memtable= is missing")?;
                self.subjects[1] = Subject::on_disk(memtable_bytes as usize)?;
                Ok(String::new())
            }
            "view" => self.on_each(Subject::take_view),
            "flush" => self.on_each(Subject::flush),
            "reopen" => self.on_each(|subject| subject.restart(false)),
            "crash" => self.on_each(|subject| subject.restart(true)),
            "lose" => self.on_each(Subject::lose),
            "generations" => self.on_each(|subject| subject.generations()),
            "replay" => {
                let log = self.proposer.log.clone();
                self.on_each(|subject| subject.replay(&log))
            }
            "inline" => {
                let key = Bytes::copy_from_slice(word(args, "a key")?.as_bytes());
                self.on_each(|subject| {
                    let inline = subject.machine().can_apply_inline(&[put(&key)]);
                    Ok(if inline { "without blocking" } else { "may block" }.to_owned())
                })
            }
            _ => Err(format!("no command {name}").into()),
        }
    }
}

/// An entry to ask about; it is not applied.
fn put(key: &Bytes) -> Entry {
    let action = Action::Write {
        session: SessionId { index: 1, nonce: Nonce(0) },
        sequence: 1,
        lowest_unanswered: 1,
        limits: WriteLimits { key_bytes_max: 100, value_bytes_max: 100, answer_bytes_max: 100 },
        operation: Operation::Put { key: key.clone(), value: Bytes::new() },
    };
    let command = Command { rules: VERSION_MAX, time_ms: 0, action };
    Entry { index: 1, term: 1, payload: Payload::Command(command.encode()) }
}

/// Restores the snapshot into another machine and lists its first records.
fn show(snapshot: &Snapshot) -> Outcome<String> {
    let mut other = Subject::memory();
    let applied = other.restore(snapshot, None)?;
    let everything = Query::Scan { start: Bytes::new(), end: Bytes::new(), limit: 100 };
    let records = machine::list(other.machine(), everything, false)?;
    Ok(format!("{applied}\n{records}"))
}

impl goldenscript::Runner for MachineRunner {
    type Command = goldenscript::Command;

    fn run(&mut self, command: &goldenscript::Command, context: &Context) -> Outcome<String> {
        let name = command.name.as_str();
        self.may_differ = MAY_DIFFER.contains(&name) || context.tags.contains("differ");
        let mut args = command.consume_args();
        let told = if let Some(entries) =
            self.proposer.propose(name, context.prefix.as_deref(), &mut args)?
        {
            self.on_each(|subject| machine::apply(subject.machine(), &entries))?
        } else if let Some(told) = self.on_snapshots(name, &mut args)? {
            told
        } else if matches!(name, "get" | "scan" | "clock" | "applied") {
            self.on_each(|subject| {
                args = command.consume_args();
                let told = machine::query(subject.machine(), name, &mut args)?;
                Ok(told.unwrap_or_default())
            })?
        } else {
            self.on_subjects(name, &mut args)?
        };
        args.reject_next()?;
        Ok(told)
    }
}
