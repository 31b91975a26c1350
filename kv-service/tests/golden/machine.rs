//! The state machine as a script drives it: one command, one committed entry.
//!
//! ```text
//! S: open [ttl=] [window=] [sessions=] [own=] [by=NAME]    S is the session's name in the script
//! S: put KEY VALUE    S: append KEY VALUE    S: delete KEY
//! S: cas KEY VALUE value=OLD | version=N | revision=N      S: close
//!     each write takes [seq=N] [lowest=N] and the limits [key_max=] [value_max=] [outputs_max=];
//!     without seq it takes the next number, without lowest all before it are acknowledged;
//!     [size=N] repeats the value, [key_size=N] the key, to that length
//!     all of these take [time=MS], the replicated time, [rules=N], the cluster version of the
//!     command, and [index=N] [nonce=guess], another session than S
//! S: many COUNT PREFIX VALUE [size=]      puts PREFIX-00000 and so on, in batches
//! S: drop COUNT PREFIX                    deletes them
//! get KEY    scan [start=] [end=] [limit=] [brief=yes]    clock    applied
//! noop    cluster VERSION                 entries without a command
//! ```
//!
//! A line of output begins with the entry's index. A revision below that index means that the
//! output was remembered, and nothing was executed.

use std::collections::BTreeMap;

use bytes::Bytes;
use goldenscript::ArgumentConsumer;
use raft_core::state_machine::StateMachine;
use raft_core::types::{Configuration, Entry, Payload};

use crate::support::{
    Action, Answer, Command, Expect, KvMachine, MachineQuery, Nonce, Opening, Operation, Outcome,
    Output, Query, QueryOutput, SessionId, VERSION_MAX, WriteLimits, number, record, word, written,
};

/// Entries of one call of `apply` while many keys are written.
const BATCH_ENTRIES: u64 = 256;

struct ScriptSession {
    id: SessionId,
    next_sequence: u64,
}

/// Makes entries from commands of the script.
#[derive(Default)]
pub(crate) struct Proposer {
    sessions: BTreeMap<String, ScriptSession>,
    /// All entries so far.
    pub(crate) log: Vec<Entry>,
}

fn text(text: &str, size: Option<u64>) -> Bytes {
    match size {
        Some(size) => text.chars().cycle().take(size as usize).collect::<String>().into(),
        None => Bytes::copy_from_slice(text.as_bytes()),
    }
}

impl Proposer {
    fn append(&mut self, payload: Payload) -> Entry {
        let entry = Entry { index: self.log.len() as u64 + 1, term: 1, payload };
        self.log.push(entry.clone());
        entry
    }

    fn session(&self, name: &str) -> Outcome<&ScriptSession> {
        self.sessions.get(name).ok_or_else(|| format!("no session {name}").into())
    }

    /// The entries that a command of the script proposes; `None` if it is no such command.
    pub(crate) fn propose(
        &mut self,
        name: &str,
        session: Option<&str>,
        args: &mut ArgumentConsumer<'_>,
    ) -> Outcome<Option<Vec<Entry>>> {
        let entry = match (name, session) {
            ("noop", None) => self.append(Payload::Noop),
            ("cluster", None) => {
                let cluster_version = word(args, "a version")?.parse()?;
                let configuration = Configuration { cluster_version, ..Configuration::default() };
                self.append(Payload::Configuration(Box::new(configuration)))
            }
            ("many" | "drop", Some(session)) => {
                return self.many(session, name, args).map(Some);
            }
            (_, Some(session)) => self.command(session, name, args)?,
            _ => return Ok(None),
        };
        Ok(Some(vec![entry]))
    }

    fn command(
        &mut self,
        name: &str,
        action: &str,
        args: &mut ArgumentConsumer<'_>,
    ) -> Outcome<Entry> {
        let time_ms = number(args, "time")?.unwrap_or(0);
        let rules = number(args, "rules")?.map_or(VERSION_MAX, |rules| rules as u32);
        let action = match action {
            "open" => self.open(name, args)?,
            "close" => Action::CloseSession { session: self.id(name, args)? },
            action => {
                let operation = operation(action, args)?;
                self.write(name, operation, args)?
            }
        };
        let command = Command { rules, time_ms, action };
        Ok(self.append(Payload::Command(command.encode())))
    }

    fn open(&mut self, name: &str, args: &mut ArgumentConsumer<'_>) -> Outcome<Action> {
        let index = self.log.len() as u64 + 1;
        let id = SessionId { index, nonce: Nonce(0xabc + u128::from(index)) };
        self.sessions.insert(name.to_owned(), ScriptSession { id, next_sequence: 1 });
        Ok(Action::OpenSession(Opening {
            nonce: id.nonce,
            ttl_ms: number(args, "ttl")?.unwrap_or(60_000),
            window: number(args, "window")?.unwrap_or(1024) as u32,
            session_count_max: number(args, "sessions")?.unwrap_or(u64::MAX),
            principal_session_count_max: number(args, "own")?.unwrap_or(u64::MAX),
            principal: text(args.take_key("by").unwrap_or(""), None),
        }))
    }

    fn id(&self, name: &str, args: &mut ArgumentConsumer<'_>) -> Outcome<SessionId> {
        let mut id = self.session(name)?.id;
        id.index = number(args, "index")?.unwrap_or(id.index);
        Ok(match args.take_key("nonce") {
            Some("guess") => SessionId { nonce: Nonce(id.nonce.0 + 1), ..id },
            Some(other) => return Err(format!("nonce={other}: only guess").into()),
            None => id,
        })
    }

    fn write(
        &mut self,
        name: &str,
        operation: Operation,
        args: &mut ArgumentConsumer<'_>,
    ) -> Outcome<Action> {
        let session = self.id(name, args)?;
        let held = self.sessions.get_mut(name).expect("it was found");
        let sequence = number(args, "seq")?.unwrap_or(held.next_sequence);
        held.next_sequence = held.next_sequence.max(sequence.saturating_add(1));
        let lowest_unanswered = number(args, "lowest")?.unwrap_or(sequence);
        let limits = WriteLimits {
            key_bytes_max: number(args, "key_max")?.unwrap_or(1 << 16),
            value_bytes_max: number(args, "value_max")?.unwrap_or(1 << 20),
            answer_bytes_max: number(args, "outputs_max")?.unwrap_or(u64::MAX),
        };
        Ok(Action::Write { session, sequence, lowest_unanswered, limits, operation })
    }

    fn many(
        &mut self,
        name: &str,
        action: &str,
        args: &mut ArgumentConsumer<'_>,
    ) -> Outcome<Vec<Entry>> {
        let count: u64 = word(args, "a count")?.parse()?;
        let prefix = word(args, "a prefix")?;
        let size = number(args, "size")?;
        let value = args.next_pos().map_or(Bytes::new(), |value| text(value, size));
        let mut entries = Vec::new();
        for place in 0..count {
            let key = Bytes::from(format!("{prefix}-{place:05}"));
            let operation = match action {
                "many" => Operation::Put { key, value: value.clone() },
                _ => Operation::Delete { key },
            };
            let action = self.write(name, operation, args)?;
            let command = Command { rules: VERSION_MAX, time_ms: 0, action };
            entries.push(self.append(Payload::Command(command.encode())));
        }
        Ok(entries)
    }
}

fn operation(name: &str, args: &mut ArgumentConsumer<'_>) -> Outcome<Operation> {
    let key = text(word(args, "a key")?, number(args, "key_size")?);
    if name == "delete" {
        return Ok(Operation::Delete { key });
    }
    let value = text(word(args, "a value")?, number(args, "size")?);
    Ok(match name {
        "put" => Operation::Put { key, value },
        "append" => Operation::Append { key, value },
        "cas" => {
            let (version, revision) = (number(args, "version")?, number(args, "revision")?);
            let old = args.take_key("value").map(|old| Expect::Value(text(old, None)));
            let expect = old
                .or(version.map(Expect::Version))
                .or(revision.map(Expect::Revision))
                .ok_or("cas needs value=, version= or revision=")?;
            Operation::CompareAndSwap { key, expect, value }
        }
        _ => return Err(format!("no command {name}").into()),
    })
}

/// Applies entries and tells their outputs, those of many in one line.
pub(crate) fn apply(machine: &mut KvMachine, entries: &[Entry]) -> Outcome<String> {
    let mut outputs = Vec::new();
    for batch in entries.chunks(BATCH_ENTRIES as usize) {
        machine.apply(batch, &mut outputs)?;
    }
    let [entry] = entries else {
        let is_executed = |output: &&Output| matches!(output, Output::Written(_));
        let count = outputs.iter().filter(is_executed).count();
        return Ok(format!("{}: executed {count} of {}", entries.len(), outputs.len()));
    };
    let index = entry.index;
    Ok(match outputs.as_slice() {
        [output] => format!("{index}: {}", tell(output)),
        _ => format!("{index}: no output"),
    })
}

fn tell(output: &Output) -> String {
    match output {
        Output::SessionOpened { session, window } => {
            format!("opened session {}, window {window}", session.index)
        }
        Output::SessionClosed => "closed".to_owned(),
        Output::Written(response) => written(response),
        Output::Refused(refusal) => format!("refused: {refusal:?}"),
    }
}

/// Executes a query of the script; `None` if the command is none.
pub(crate) fn query(
    machine: &mut KvMachine,
    name: &str,
    args: &mut ArgumentConsumer<'_>,
) -> Outcome<Option<String>> {
    Ok(Some(match name {
        "get" => {
            let key = word(args, "a key")?;
            match read(machine, Query::Get { key: text(key, None) })? {
                Answer::Get(Some(found)) => format!("{key} = {}", record(&found)),
                Answer::Get(None) => format!("{key} is absent"),
                Answer::Scan(_) => return Err("a page for a get".into()),
            }
        }
        "scan" => scan(machine, args)?,
        "clock" => match machine.query(MachineQuery::ClockMs)? {
            QueryOutput::ClockMs(now) => format!("clock {now} ms"),
            QueryOutput::Read(_) => return Err("a record for the clock".into()),
        },
        "applied" => format!("applied through {}", machine.last_applied().index),
        _ => return Ok(None),
    }))
}

fn read(machine: &mut KvMachine, query: Query) -> Outcome<Answer> {
    match machine.query(MachineQuery::Read(query))? {
        QueryOutput::Read(answer) => Ok(answer),
        QueryOutput::ClockMs(_) => Err("a clock for a read".into()),
    }
}

fn scan(machine: &mut KvMachine, args: &mut ArgumentConsumer<'_>) -> Outcome<String> {
    let start = text(args.take_key("start").unwrap_or(""), None);
    let end = text(args.take_key("end").unwrap_or(""), None);
    let limit = number(args, "limit")?.unwrap_or(100) as u32;
    let brief = args.take_key("brief").is_some();
    list(machine, Query::Scan { start, end, limit }, brief)
}

/// Lists the records of a scan, or only their number.
pub(crate) fn list(machine: &mut KvMachine, scan: Query, brief: bool) -> Outcome<String> {
    let Answer::Scan(page) = read(machine, scan)? else {
        return Err("a record for a scan".into());
    };
    let name = |key: &Bytes| String::from_utf8_lossy(key).into_owned();
    let mut lines: Vec<String> = match brief {
        true => vec![format!("{} records", page.records.len())],
        false => page
            .records
            .iter()
            .map(|(key, found)| format!("{} = {}", name(key), record(found)))
            .collect(),
    };
    lines.push(match &page.continue_at {
        Some(key) => format!("continue at {:?}", name(key)),
        None => "end".to_owned(),
    });
    Ok(lines.join("\n"))
}
