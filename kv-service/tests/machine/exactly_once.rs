//! A request takes effect once, however often it is in the log.

use kv_service::machine::{Command, KvMachine, Output, SESSION_WINDOW};
use kv_service::operation::{Operation, Refusal};
use raft_core::state_machine::StateMachine;

use crate::{
    append, apply_command, get, open, put, restore, snapshot_bytes, text, value, write,
    write_command,
};

fn write_above(
    machine: &mut KvMachine,
    session: u64,
    sequence: u64,
    lowest_unanswered: u64,
    operation: Operation,
) -> Output {
    let mut command = write_command(session, sequence, operation);
    if let Command::Write { lowest_unanswered: lowest, .. } = &mut command {
        *lowest = lowest_unanswered;
    }
    apply_command(machine, &command)
}

#[test]
fn a_duplicate_hears_the_first_answer() {
    let mut machine = KvMachine::memory();
    let session = open(&mut machine, 0, 1000, 10);
    let first = write(&mut machine, session, 1, append("k", "x"));
    assert_eq!(write_above(&mut machine, session, 2, 1, put("other", "1")).clone(), {
        let revision = machine.last_applied().index;
        Output::Written(kv_service::operation::WriteAnswer { revision, changed: true, version: 1 })
    });
    for _ in 0..3 {
        assert_eq!(write(&mut machine, session, 1, append("k", "x")), first);
    }
    assert_eq!(value(&mut machine, "k").unwrap(), "x");
    assert_eq!(get(&mut machine, "k").unwrap().version, 1);
}

/// The answer is that of the request, not of what the bytes say: a client must not use a sequence
/// number for two things.
#[test]
fn requests_are_told_apart_by_number_and_session() {
    let mut machine = KvMachine::memory();
    let (one, two) = (open(&mut machine, 0, 1000, 10), open(&mut machine, 0, 1000, 10));
    write(&mut machine, one, 1, append("k", "a"));
    write(&mut machine, two, 1, append("k", "b"));
    write(&mut machine, one, 2, append("k", "c"));
    assert_eq!(value(&mut machine, "k").unwrap(), "abc");
}

#[test]
fn requests_may_arrive_in_any_order() {
    let mut machine = KvMachine::memory();
    let session = open(&mut machine, 0, 1000, 10);
    for sequence in [3, 1, 4, 2, 3, 1, 4, 2] {
        write_above(&mut machine, session, sequence, 1, append("k", &sequence.to_string()));
    }
    assert_eq!(value(&mut machine, "k").unwrap(), "3142");
}

#[test]
fn a_late_duplicate_is_forgotten_and_not_executed() {
    let mut machine = KvMachine::memory();
    let session = open(&mut machine, 0, 1000, 10);
    write_above(&mut machine, session, 1, 1, append("k", "1"));
    write_above(&mut machine, session, 2, 2, append("k", "2"));
    let late = write_above(&mut machine, session, 1, 1, append("k", "1"));
    assert_eq!(late, Output::Refused(Refusal::Forgotten));
    // Also one that was never seen.
    let contradiction = write_above(&mut machine, session, 3, 4, append("k", "3"));
    assert_eq!(contradiction, Output::Refused(Refusal::Forgotten));
    assert_eq!(value(&mut machine, "k").unwrap(), "12");
    // The refused one did not move the window.
    assert!(matches!(
        write_above(&mut machine, session, 3, 2, append("k", "3")),
        Output::Written(_)
    ));
}

#[test]
fn the_window_is_bounded() {
    let mut machine = KvMachine::memory();
    let session = open(&mut machine, 0, 1000, 10);
    let last = SESSION_WINDOW;
    assert!(matches!(
        write_above(&mut machine, session, last, 1, put("k", "v")),
        Output::Written(_)
    ));
    let beyond = write_above(&mut machine, session, last + 1, 1, put("k", "w"));
    assert_eq!(beyond, Output::Refused(Refusal::WindowExceeded));
    let huge = write_above(&mut machine, session, u64::MAX, 1, put("k", "w"));
    assert_eq!(huge, Output::Refused(Refusal::WindowExceeded));
    assert_eq!(value(&mut machine, "k").unwrap(), "v");
    // It is not an answer: once there is room, the same request is executed.
    assert!(matches!(
        write_above(&mut machine, session, last + 1, 2, put("k", "w")),
        Output::Written(_)
    ));
}

#[test]
fn an_unknown_session_is_refused_not_opened() {
    let mut machine = KvMachine::memory();
    let session = open(&mut machine, 0, 1000, 10);
    write(&mut machine, session, 1, append("k", "x"));
    let close = Command::CloseSession { time_ms: 0, session };
    assert_eq!(apply_command(&mut machine, &close), Output::SessionClosed);
    assert_eq!(apply_command(&mut machine, &close), Output::SessionClosed);
    for unknown in [session, 0, session + 1, u64::MAX] {
        let retry = write(&mut machine, unknown, 1, append("k", "x"));
        assert_eq!(retry, Output::Refused(Refusal::UnknownSession));
    }
    assert_eq!(value(&mut machine, "k").unwrap(), "x");
}

/// A refusal by the operation is its answer: executing the retry instead could succeed by now.
#[test]
fn a_refused_operation_stays_refused() {
    let mut machine = KvMachine::memory();
    let session = open(&mut machine, 0, 1000, 10);
    write(&mut machine, session, 1, put("k", "12345678"));
    let command = Command::Write {
        time_ms: 0,
        session,
        sequence: 2,
        lowest_unanswered: 1,
        value_bytes_max: 10,
        operation: append("k", "9ab"),
    };
    let refused = Output::Refused(Refusal::ValueTooLarge { size_bytes: 11, limit_bytes: 10 });
    assert_eq!(apply_command(&mut machine, &command), refused);
    write_above(&mut machine, session, 3, 1, Operation::Delete { key: text("k") });
    assert_eq!(apply_command(&mut machine, &command), refused);
    assert_eq!(value(&mut machine, "k"), None);
}

#[test]
fn a_retry_after_a_restore_is_still_a_retry() {
    let mut machine = KvMachine::memory();
    let session = open(&mut machine, 0, 1000, 10);
    let first = write(&mut machine, session, 1, append("k", "x"));
    let bytes = snapshot_bytes(&mut machine, 1 << 16);
    let mut other = KvMachine::memory();
    restore(&mut other, machine.last_applied(), &bytes, 1 << 16).unwrap();
    assert_eq!(write(&mut other, session, 1, append("k", "x")), first);
    assert_eq!(value(&mut other, "k").unwrap(), "x");
}
