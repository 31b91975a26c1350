//! What each operation does, and what reads see.

use bytes::Bytes;
use kv_service::machine::{KvMachine, Output, SCAN_PAGE_BYTES_MAX};
use kv_service::operation::{Expect, Operation, Record, WriteAnswer};
use raft_core::state_machine::StateMachine;
use raft_core::types::{Configuration, Payload};

use crate::{append, get, next_entry, open, put, scan, text, value, write};

struct Client {
    machine: KvMachine,
    session: u64,
    sequence: u64,
}

impl Client {
    fn new() -> Self {
        let mut machine = KvMachine::memory();
        let session = open(&mut machine, 0, 1000, 10);
        Self { machine, session, sequence: 0 }
    }

    fn write(&mut self, operation: Operation) -> WriteAnswer {
        self.sequence += 1;
        match write(&mut self.machine, self.session, self.sequence, operation) {
            Output::Written(answer) => answer,
            other => panic!("not written: {other:?}"),
        }
    }
}

fn swap(key: &str, expect: Expect, value: &str) -> Operation {
    Operation::CompareAndSwap { key: text(key), expect, value: text(value) }
}

#[test]
fn versions_and_revisions_tell_a_keys_history() {
    let mut client = Client::new();
    assert_eq!(client.write(put("k", "a")), WriteAnswer { revision: 2, changed: true, version: 1 });
    client.write(put("other", "-"));
    let answer = client.write(append("k", "b"));
    assert_eq!(answer, WriteAnswer { revision: 4, changed: true, version: 2 });
    let record = get(&mut client.machine, "k").unwrap();
    let expected = Record { value: text("ab"), version: 2, create_revision: 2, modify_revision: 4 };
    assert_eq!(record, expected);

    let delete = Operation::Delete { key: text("k") };
    let answer = client.write(delete.clone());
    assert_eq!(answer, WriteAnswer { revision: 5, changed: true, version: 0 });
    let answer = client.write(delete);
    assert_eq!(answer, WriteAnswer { revision: 6, changed: false, version: 0 });
    // A key that comes back starts anew.
    client.write(append("k", "c"));
    let record = get(&mut client.machine, "k").unwrap();
    assert_eq!((record.version, record.create_revision), (1, 7));
}

#[test]
fn a_swap_happens_only_as_expected() {
    let mut client = Client::new();
    assert!(!client.write(swap("k", Expect::Value(text("")), "x")).changed, "absent is not empty");
    assert!(!client.write(swap("k", Expect::Version(1), "x")).changed);
    let created = client.write(swap("k", Expect::Version(0), "a"));
    assert_eq!((created.changed, created.version), (true, 1));
    let again = client.write(swap("k", Expect::Version(0), "b"));
    assert_eq!((again.changed, again.version), (false, 1));
    assert!(!client.write(swap("k", Expect::Value(text("z")), "b")).changed);
    assert!(client.write(swap("k", Expect::Value(text("a")), "b")).changed);
    assert!(client.write(swap("k", Expect::Version(2), "c")).changed);
    assert_eq!(value(&mut client.machine, "k").unwrap(), "c");
}

#[test]
fn a_scan_is_a_range_in_pages() {
    let mut client = Client::new();
    for key in ["a", "b", "ba", "c", "d"] {
        client.write(put(key, key));
    }
    let mut keys = |start: &str, end: &str, limit| {
        let page = scan(&mut client.machine, text(start), text(end), limit);
        let keys = page.records.into_iter().map(|(key, _)| String::from_utf8(key.into()).unwrap());
        (keys.collect::<Vec<_>>().join(" "), page.continue_at)
    };
    assert_eq!(keys("", "", 10), ("a b ba c d".into(), None));
    assert_eq!(keys("b", "d", 10), ("b ba c".into(), None));
    assert_eq!(keys("b", "d", 2), ("b ba".into(), Some(text("c"))));
    assert_eq!(keys("b", "d", 3), ("b ba c".into(), None));
    assert_eq!(keys("b", "", 0), ("b".into(), Some(text("ba"))));
    assert_eq!(keys("c", "b", 10), (String::new(), None));
    assert_eq!(keys("e", "", 10), (String::new(), None));
}

#[test]
fn a_page_is_bounded_by_bytes() {
    let mut client = Client::new();
    let half = "v".repeat(SCAN_PAGE_BYTES_MAX / 2);
    for key in ["a", "b", "c", "d"] {
        client.write(put(key, &half));
    }
    let page = scan(&mut client.machine, Bytes::new(), Bytes::new(), u32::MAX);
    assert_eq!(page.records.len(), 2);
    assert_eq!(page.continue_at, Some(text("c")));
}

#[test]
fn entries_that_are_no_commands_move_the_position_only() {
    let mut client = Client::new();
    client.write(put("k", "v"));
    let before = client.machine.last_applied().index;
    let mut outputs = Vec::new();
    for payload in [
        Payload::Noop,
        Payload::Configuration(Configuration::of_voters([1])),
        Payload::Command(Bytes::new()),
        Payload::Command(Bytes::from_static(b"\x02 of another version")),
    ] {
        let entry = next_entry(&client.machine, payload);
        client.machine.apply(&[entry], &mut outputs).unwrap();
    }
    assert_eq!(outputs, [Output::Malformed, Output::Malformed]);
    assert_eq!(client.machine.last_applied().index, before + 4);
    assert_eq!(value(&mut client.machine, "k").unwrap(), "v");
}
