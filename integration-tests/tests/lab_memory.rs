//! The labs' bounds of memory (`kvsrv`, 2024 and 2025): the bytes that the state keeps for each
//! client, and the values that it must not keep. The state machine is measured, since log,
//! snapshots and connections have limits of their own; reads are measured through the whole
//! service.
//!
//! A measurement reads the resident memory of its process, so each has a process for itself: the
//! test starts its own program again, with only itself in it. It reads `/proc`, so it is for Linux
//! alone.

#![cfg(target_os = "linux")]

use std::process::Command as Process;
use std::time::Duration;

use bytes::Bytes;
use kv_service::protocol::operation::{Nonce, SessionId};
use kv_service::sim::{Service, run};
use kv_service::state::{
    Action, Command, MachineQuery, Opening, Output, SESSION_ANSWER_BYTES_MAX, SESSION_WINDOW,
    WriteLimits,
};
use kv_service::{KvMachine, Operation, Query, VERSION_MIN};
use raft_core::state_machine::StateMachine;
use raft_core::types::{Entry, Payload};

const MIB: u64 = 1 << 20;
const CLIENT_COUNT: u64 = 100_000;

/// Bytes that a client that wrote once may cost.
const CLIENT_BYTES_MAX: u64 = 200;

/// Growth of the allocator itself during a run; far less than the growth that is looked for.
const NOISE_BYTES: u64 = 256 << 10;

/// Runs `measure` in a process of its own.
fn alone(test: &str, measure: impl FnOnce()) {
    const ALONE: &str = "LAB_MEMORY_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return measure();
    }
    let program = std::env::current_exe().expect("the test program is there");
    let output = Process::new(program)
        .args(["--exact", test, "--nocapture"])
        .env(ALONE, "1")
        // Freed memory goes back to the system: fixed thresholds do not rise after a large free.
        .env("MALLOC_MMAP_THRESHOLD_", "65536")
        .env("MALLOC_TRIM_THRESHOLD_", "65536")
        .output()
        .expect("the test program starts");
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    print!("{text}");
    assert!(output.status.success(), "{text}");
    assert!(text.contains("1 passed"), "nothing was measured: {text}");
}

/// Resident memory of this process, in bytes.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux tells");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("its size too");
    let kib = line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok());
    kib.expect("in KiB") << 10
}

/// Resident memory at the start of some work, to measure its growth.
struct Growth(u64);

impl Growth {
    fn begin() -> Self {
        Self(resident_bytes())
    }

    #[track_caller]
    fn is_at_most(&self, limit_bytes: u64, what: &str) {
        let grown = resident_bytes().saturating_sub(self.0);
        println!("{what}: {grown} bytes of at most {limit_bytes}");
        assert!(grown <= limit_bytes, "{what}: {grown} bytes, the limit is {limit_bytes}");
    }
}

/// A state machine and the commands of its clients.
struct State {
    machine: KvMachine,
    index: u64,
}

impl State {
    fn new() -> Self {
        Self { machine: KvMachine::memory(), index: 0 }
    }

    fn apply(&mut self, command: &Command) -> Output {
        self.index += 1;
        let payload = Payload::Command(command.encode());
        let entry = Entry { index: self.index, term: 1, payload };
        let mut outputs = Vec::new();
        self.machine.apply(&[entry], &mut outputs).expect("memory does not fail");
        outputs.remove(0)
    }

    fn open(&mut self) -> SessionId {
        let opening = Opening {
            nonce: Nonce(self.index.into()),
            ttl_ms: 3_600_000,
            window: SESSION_WINDOW,
            session_count_max: 2 * CLIENT_COUNT,
            principal_session_count_max: 2 * CLIENT_COUNT,
            principal: Bytes::new(),
        };
        match self.apply(&self.command(Action::OpenSession(opening))) {
            Output::SessionOpened { session, .. } => session,
            other => panic!("not opened: {other:?}"),
        }
    }

    fn command(&self, action: Action) -> Command {
        Command { rules: VERSION_MIN, time_ms: self.index, action }
    }

    /// If the flag is false, the client never confirms that it received a response.
    fn write(&mut self, session: SessionId, sequence: u64, heard: bool, operation: Operation) {
        let command = self.command(Action::Write {
            session,
            sequence,
            lowest_unanswered: if heard { sequence } else { 1 },
            limits: WriteLimits {
                key_bytes_max: 1 << 16,
                value_bytes_max: 32 * MIB,
                answer_bytes_max: SESSION_ANSWER_BYTES_MAX,
            },
            operation,
        });
        match self.apply(&command) {
            Output::Written(_) => {}
            other => panic!("not written: {other:?}"),
        }
    }

    fn get(&mut self) -> usize {
        let query = MachineQuery::Read(Query::Get { key: key() });
        let reply = self.machine.query(query);
        format!("{:?}", reply.expect("memory does not fail")).len()
    }
}

fn key() -> Bytes {
    Bytes::from_static(b"k")
}

fn put(value: Vec<u8>) -> Operation {
    Operation::Put { key: key(), value: value.into() }
}

fn append(value: Vec<u8>) -> Operation {
    Operation::Append { key: key(), value: value.into() }
}

#[test]
fn mem_get() {
    alone("mem_get", || {
        let mut state = State::new();
        let session = state.open();
        let growth = Growth::begin();
        state.write(session, 1, true, put(vec![b'x'; 10 << 20]));
        for _ in 0..2 {
            assert!(state.get() > 10 << 20);
        }
        state.write(session, 2, true, put(b"0".to_vec()));
        growth.is_at_most(MIB, "after a large value was read twice and replaced");
    });
}

#[test]
fn mem_put() {
    alone("mem_put", || {
        let mut state = State::new();
        let session = state.open();
        let growth = Growth::begin();
        state.write(session, 1, true, put(vec![b'x'; 10 << 20]));
        state.write(session, 2, true, put(Vec::new()));
        growth.is_at_most(MIB, "after a large value was replaced by nothing");
    });
}

#[test]
fn mem_append() {
    alone("mem_append", || {
        let mut state = State::new();
        let session = state.open();
        let growth = Growth::begin();
        for sequence in 1..=2 {
            state.write(session, sequence, true, append(vec![b'x'; 10 << 20]));
        }
        growth.is_at_most(30 * MIB, "two appends of 10 MiB");
    });
}

#[test]
fn mem_put_many_clients() {
    alone("mem_put_many_clients", || {
        let mut state = State::new();
        let first = state.open();
        state.write(first, 1, true, put(vec![b'x'; 1000]));
        let growth = Growth::begin();
        for _ in 0..CLIENT_COUNT {
            let session = state.open();
            state.write(session, 1, true, put(vec![b'x'; 1000]));
        }
        growth.is_at_most(CLIENT_BYTES_MAX * CLIENT_COUNT, "100,000 clients that wrote once");
    });
}

#[test]
fn mem_many_appends() {
    alone("mem_many_appends", || {
        let mut state = State::new();
        let session = state.open();
        let growth = Growth::begin();
        for sequence in 1..=1000 {
            state.write(session, sequence, false, append(vec![b'x'; 1000]));
        }
        growth.is_at_most(3_000_000, "1000 appends of 1000 bytes, no answer of them heard");
    });
}

/// Through servers and connections: each client connects, reads, and leaves.
#[test]
fn mem_get_many_clients() {
    const READERS: u64 = 20_000;
    alone("mem_get_many_clients", || {
        run(0, async |seed| {
            let service = Service::new(seed, 1).await;
            let writer = service.client(1);
            writer.put("k", vec![b'x'; 1000]).await.expect("it is answered");
            let read = async |count| {
                for _ in 0..count {
                    let client = service.client(2);
                    let record = client.get("k").await.expect("it is answered");
                    assert_eq!(record.expect("it was put").value.len(), 1000);
                    client.close().await;
                }
                // Everything that ends with a connection has ended.
                tokio::time::sleep(Duration::from_secs(60)).await;
            };
            read(READERS / 10).await;
            let last_index = service.servers[&1].status().last_index;
            let growth = Growth::begin();
            read(READERS).await;
            assert_eq!(service.servers[&1].status().last_index, last_index, "a read is no command");
            growth.is_at_most(10 * READERS + NOISE_BYTES, "20,000 clients that read once");
        });
    });
}
