//! The effect of each operation, and the results of reads.

use bytes::Bytes;
use kv_service::protocol::operation::{Refusal, SessionId};
use kv_service::state::{Output, SCAN_PAGE_BYTES_MAX};
use kv_service::{Expect, KvMachine, Operation, Record, VERSION_MAX, VERSION_MIN, WriteResponse};
use raft_core::state_machine::StateMachine;
use raft_core::types::{Configuration, Payload};

use crate::{append, get, next_entry, open, put, scan, text, value, write};

struct Client {
    machine: KvMachine,
    session: SessionId,
    sequence: u64,
}

impl Client {
    fn new() -> Self {
        let mut machine = KvMachine::memory();
        let session = open(&mut machine, 0, 1000, 10);
        Self { machine, session, sequence: 0 }
    }

    fn write(&mut self, operation: Operation) -> WriteResponse {
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
    assert_eq!(
        client.write(put("k", "a")),
        WriteResponse { revision: 2, changed: true, version: 1 }
    );
    client.write(put("other", "-"));
    let answer = client.write(append("k", "b"));
    assert_eq!(answer, WriteResponse { revision: 4, changed: true, version: 2 });
    let record = get(&mut client.machine, "k").unwrap();
    let expected = Record { value: text("ab"), version: 2, create_revision: 2, modify_revision: 4 };
    assert_eq!(record, expected);

    let delete = Operation::Delete { key: text("k") };
    let answer = client.write(delete.clone());
    assert_eq!(answer, WriteResponse { revision: 5, changed: true, version: 0 });
    let answer = client.write(delete);
    assert_eq!(answer, WriteResponse { revision: 6, changed: false, version: 0 });
    // A key that is created again starts with version 1.
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

/// S16. Between a read and its swap the key was deleted and created anew: the version is the same,
/// the revision is not.
#[test]
fn a_swap_by_revision_has_no_aba() {
    let mut client = Client::new();
    client.write(put("k", "a"));
    let seen = get(&mut client.machine, "k").unwrap();
    client.write(Operation::Delete { key: text("k") });
    client.write(put("k", "b"));
    assert_eq!(get(&mut client.machine, "k").unwrap().version, seen.version);
    let by_revision = Expect::Revision(seen.modify_revision);
    assert!(!client.write(swap("k", by_revision, "lost update")).changed);
    assert_eq!(value(&mut client.machine, "k").unwrap(), "b");

    let now = get(&mut client.machine, "k").unwrap().modify_revision;
    assert!(!client.write(swap("k", Expect::Revision(now + 1), "c")).changed);
    assert!(!client.write(swap("k", Expect::Revision(0), "c")).changed, "it exists");
    let swapped = client.write(swap("k", Expect::Revision(now), "c"));
    assert_eq!((swapped.changed, swapped.version), (true, 2));
    assert!(!client.write(swap("new", Expect::Revision(now), "d")).changed, "it does not exist");
    assert!(client.write(swap("new", Expect::Revision(0), "d")).changed);
}

/// A key outside the limits is refused for good and changes nothing, even if the proposer let it
/// through.
#[test]
fn keys_are_within_the_limits_of_their_command() {
    let mut client = Client::new();
    let longest = "k".repeat(crate::LIMITS.key_bytes_max as usize);
    assert!(client.write(put(&longest, "v")).changed);
    for key in [String::new(), longest + "k"] {
        client.sequence += 1;
        let (session, sequence) = (client.session, client.sequence);
        for _ in 0..2 {
            let output = write(&mut client.machine, session, sequence, put(&key, "v"));
            let (size_bytes, limit_bytes) = (key.len() as u64, crate::LIMITS.key_bytes_max);
            let refused = Output::Refused(Refusal::KeyOutOfRange { size_bytes, limit_bytes });
            assert_eq!(output, refused);
        }
    }
}

#[test]
fn entries_that_are_no_commands_move_the_position_only() {
    let mut client = Client::new();
    client.write(put("k", "v"));
    let before = client.machine.last_applied().index;
    let mut outputs = Vec::new();
    for payload in [Payload::Noop, Payload::Configuration(Box::new(Configuration::of_voters([1])))]
    {
        let entry = next_entry(&client.machine, payload);
        client.machine.apply(&[entry], &mut outputs).unwrap();
    }
    assert_eq!(outputs, []);
    assert_eq!(client.machine.last_applied().index, before + 2);
    assert_eq!(value(&mut client.machine, "k").unwrap(), "v");
}

/// The text of the error with which the machine stops at an entry.
fn stops_at(machine: &mut KvMachine, bytes: Bytes) -> String {
    let entry = next_entry(machine, Payload::Command(bytes));
    let mut outputs = Vec::new();
    let before = machine.last_applied();
    let error = machine.apply(&[entry], &mut outputs).unwrap_err().to_string();
    assert_eq!((machine.last_applied(), outputs), (before, vec![]), "nothing is skipped");
    error
}

/// S3. A node that does not know the version, the kind or the operation of a committed command
/// stops, and names the version to install. It never goes on without the command.
#[test]
fn a_command_of_a_newer_version_stops_the_node() {
    let mut client = Client::new();
    client.write(put("k", "v"));
    let known = crate::write_command(client.session, 2, put("k", "w")).encode();
    let changed = |at: usize, to: u8| {
        let mut bytes = known.to_vec();
        bytes[at] = to;
        Bytes::from(bytes)
    };
    // The operation's tag stands before two lengths, the key, the value and the extensions.
    let operation_at = known.len() - 1 - 2 - 3;
    assert_eq!(known[operation_at], 1, "a put");
    let newer = VERSION_MAX as u8 + 1;
    for (what, bytes, version) in [
        ("rules", changed(1, newer), true),
        (
            "format and rules",
            {
                let mut b = changed(1, newer).to_vec();
                b[0] = 3;
                b.into()
            },
            true,
        ),
        ("format", changed(0, 3), false),
        ("kind", changed(2, 99), false),
        ("namespace", changed(3, 1), false),
        ("principal", changed(4, 1), false),
        ("auth_revision", changed(5, 1), false),
        ("operation", changed(operation_at, 99), false),
        ("extension", changed(known.len() - 1, 1), false),
    ] {
        let error = stops_at(&mut client.machine, bytes);
        assert!(error.contains("written by a newer version of kv"), "{what}: {error}");
        let supported = format!("supports cluster versions {VERSION_MIN} to {VERSION_MAX}");
        assert!(error.contains(&supported), "{what}: {error}");
        assert_eq!(error.contains(&format!("cluster version {newer}")), version, "{error}");
    }
    assert_eq!(value(&mut client.machine, "k").unwrap(), "v");

    // Nor does the machine take part in a cluster that has gone on to that version.
    let configuration =
        Configuration { cluster_version: newer.into(), ..Configuration::of_voters([1]) };
    let entry = next_entry(&client.machine, Payload::Configuration(Box::new(configuration)));
    let error = client.machine.apply(&[entry], &mut Vec::new()).unwrap_err().to_string();
    assert!(error.contains(&format!("cluster version {newer}")), "{error}");
}

/// S3. Bytes that no version has written stop the node as well: the machine cannot tell whether its
/// peers hold the same bytes. Format 1 is named in the error, since no release has it.
#[test]
fn an_entry_of_no_version_stops_the_node() {
    let mut client = Client::new();
    let whole = crate::write_command(client.session, 1, put("k", "v")).encode();
    let version_1 = [&[1, 1][..], &[0; 24]].concat();
    assert!(stops_at(&mut client.machine, version_1.into()).contains("format 1 of commands"));
    let leftover = [&whole[..], b"x"].concat();
    for bytes in [Bytes::new(), whole.slice(..whole.len() - 1), leftover.into()] {
        let error = stops_at(&mut client.machine, bytes);
        assert!(error.contains("no command of any version"), "{error}");
        assert!(error.contains("join again"), "it says what to do: {error}");
    }
    let applied = write(&mut client.machine, client.session, 1, put("k", "v"));
    assert!(matches!(applied, Output::Written(_)), "nothing was half done");
}
