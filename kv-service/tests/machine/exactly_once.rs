//! A request takes effect once, however often it is in the log.

use kv_service::protocol::operation::{Nonce, Refusal, SessionId};
use kv_service::state::{Action, Opening, Output, SESSION_WINDOW, WriteLimits};
use kv_service::{KvMachine, Operation};
use raft_core::state_machine::StateMachine;

use crate::{
    LIMITS, append, apply_command, command, get, open, open_command, opened, put, restore,
    session_at, snapshot_bytes, text, value, write, write_command,
};

fn write_above(
    machine: &mut KvMachine,
    session: SessionId,
    sequence: u64,
    lowest_unanswered: u64,
    operation: Operation,
) -> Output {
    let mut command = write_command(session, sequence, operation);
    if let Action::Write { lowest_unanswered: lowest, .. } = &mut command.action {
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
        Output::Written(kv_service::WriteResponse { revision, changed: true, version: 1 })
    });
    for _ in 0..3 {
        assert_eq!(write(&mut machine, session, 1, append("k", "x")), first);
    }
    assert_eq!(value(&mut machine, "k").unwrap(), "x");
    assert_eq!(get(&mut machine, "k").unwrap().version, 1);
}

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
    // Also a number that was never used.
    let contradiction = write_above(&mut machine, session, 3, 4, append("k", "3"));
    assert_eq!(contradiction, Output::Refused(Refusal::Forgotten));
    assert_eq!(value(&mut machine, "k").unwrap(), "12");
    // The refused write did not move the window.
    assert!(matches!(
        write_above(&mut machine, session, 3, 2, append("k", "3")),
        Output::Written(_)
    ));
}

#[test]
fn the_window_is_bounded() {
    let mut machine = KvMachine::memory();
    let session = open(&mut machine, 0, 1000, 10);
    let last = u64::from(SESSION_WINDOW);
    assert!(matches!(
        write_above(&mut machine, session, last, 1, put("k", "v")),
        Output::Written(_)
    ));
    let beyond = write_above(&mut machine, session, last + 1, 1, put("k", "w"));
    assert_eq!(beyond, Output::Refused(Refusal::WindowExceeded));
    let huge = write_above(&mut machine, session, u64::MAX, 1, put("k", "w"));
    assert_eq!(huge, Output::Refused(Refusal::WindowExceeded));
    assert_eq!(value(&mut machine, "k").unwrap(), "v");
    // The refusal is not remembered: once there is room, the same request is executed.
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
    let close = command(0, Action::CloseSession { session });
    assert_eq!(apply_command(&mut machine, &close), Output::SessionClosed);
    assert_eq!(apply_command(&mut machine, &close), Output::SessionClosed);
    for unknown in [session.index, 0, session.index + 1, u64::MAX] {
        let retry = write(&mut machine, session_at(unknown), 1, append("k", "x"));
        assert_eq!(retry, Output::Refused(Refusal::UnknownSession));
    }
    assert_eq!(value(&mut machine, "k").unwrap(), "x");
}

/// A refusal by the operation is its output: a retry that was executed instead could succeed by
/// now.
#[test]
fn a_refused_operation_stays_refused() {
    let mut machine = KvMachine::memory();
    let session = open(&mut machine, 0, 1000, 10);
    crate::write(&mut machine, session, 1, put("k", "12345678"));
    let write = Action::Write {
        session,
        sequence: 2,
        lowest_unanswered: 1,
        limits: WriteLimits { value_bytes_max: 10, ..LIMITS },
        operation: append("k", "9ab"),
    };
    let command = command(0, write);
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

const UNKNOWN: Output = Output::Refused(Refusal::UnknownSession);

/// S9. The index of a session is public; without its nonce a client can neither write in it, nor
/// move its window, nor end it.
#[test]
fn a_session_belongs_to_the_client_that_has_its_nonce() {
    let mut machine = KvMachine::memory();
    let session = open(&mut machine, 0, 1000, 10);
    let first = write(&mut machine, session, 1, append("k", "x"));
    for nonce in [Nonce(0), Nonce(session.nonce.0 + 1)] {
        let guessed = SessionId { nonce, ..session };
        let silenced = write_above(&mut machine, guessed, 1 << 60, 1 << 60, append("k", "y"));
        assert_eq!(silenced, UNKNOWN);
        assert_eq!(write_above(&mut machine, guessed, 1, 1, append("k", "y")), UNKNOWN);
        assert_eq!(write_above(&mut machine, guessed, 2, 1, append("k", "y")), UNKNOWN);
        let close = command(0, Action::CloseSession { session: guessed });
        assert_eq!(apply_command(&mut machine, &close), Output::SessionClosed, "there is none");
    }
    assert_eq!(write_above(&mut machine, session, 1, 1, append("k", "x")), first);
    assert!(matches!(write(&mut machine, session, 2, append("k", "z")), Output::Written(_)));
    assert_eq!(value(&mut machine, "k").unwrap(), "xz");
}

/// S9. A repeated sequence number with another operation is refused: its client must not take the
/// output of the first operation for that of the second. The refusal survives a restore.
#[test]
fn a_number_answers_for_one_operation_only() {
    let mut machine = KvMachine::memory();
    let session = open(&mut machine, 0, 1000, 10);
    let first = write(&mut machine, session, 1, append("k", "x"));
    let bytes = snapshot_bytes(&mut machine, 1 << 16);
    let mut restored = KvMachine::memory();
    restore(&mut restored, machine.last_applied(), &bytes, 1 << 16).unwrap();
    let others = [
        append("k", "y"),
        append("kx", ""),
        append("", "kx"),
        put("k", "x"),
        Operation::Delete { key: text("k") },
    ];
    for machine in [&mut machine, &mut restored] {
        for other in others.clone() {
            let refused = write(machine, session, 1, other.clone());
            assert_eq!(refused, Output::Refused(Refusal::OtherOperation), "{other:?}");
        }
        assert_eq!(write(machine, session, 1, append("k", "x")), first);
        assert_eq!(value(machine, "k").unwrap(), "x");
    }
}

fn opening(name: &'static str, quota: u64, count_max: u64) -> kv_service::state::Command {
    let mut opening = open_command(0, 1000, count_max);
    if let Action::OpenSession(Opening { principal, principal_session_count_max, .. }) =
        &mut opening.action
    {
        *principal = name.into();
        *principal_session_count_max = quota;
    }
    opening
}

/// S9. A client that opens sessions without end evicts its own, not those of others.
#[test]
fn a_principal_evicts_its_own_sessions() {
    let mut machine = KvMachine::memory();
    let other = opened(&mut machine, &opening("other", 3, 10));
    write(&mut machine, other, 1, append("k", "x"));
    let first = opened(&mut machine, &opening("flood", 3, 10));
    let busy = opened(&mut machine, &opening("flood", 3, 10));
    for time_ms in 1..=100 {
        let mut write = write_command(busy, time_ms, put("f", "f"));
        write.time_ms = time_ms;
        assert!(matches!(apply_command(&mut machine, &write), Output::Written(_)), "{time_ms}");
        opened(&mut machine, &opening("flood", 3, 10));
    }
    assert_eq!(write(&mut machine, first, 1, put("f", "f")), UNKNOWN);
    assert!(matches!(write(&mut machine, other, 2, append("k", "y")), Output::Written(_)));
    // A restored table has the same order.
    let bytes = snapshot_bytes(&mut machine, 1 << 16);
    let mut restored = KvMachine::memory();
    restore(&mut restored, machine.last_applied(), &bytes, 1 << 16).unwrap();
    for machine in [&mut machine, &mut restored] {
        opened(machine, &opening("flood", 1, 10));
        assert_eq!(write(machine, busy, 101, put("f", "f")), UNKNOWN);
    }
    assert_eq!(snapshot_bytes(&mut machine, 1 << 16), snapshot_bytes(&mut restored, 1 << 16));
}

/// S11. The remembered outputs of all sessions are bounded in bytes, by a limit in the command. The
/// session that remembers the most is evicted, not one that is merely idle.
#[test]
fn remembered_answers_are_bounded_in_bytes() {
    const ANSWER_COUNT_MAX: u64 = 100;
    let mut machine = KvMachine::memory();
    let limits = WriteLimits {
        answer_bytes_max: ANSWER_COUNT_MAX * kv_service::state::ANSWER_BYTES,
        ..LIMITS
    };
    let write_within = |machine: &mut KvMachine, session, sequence, lowest_unanswered| {
        let operation = append("k", "x");
        let write = Action::Write { session, sequence, lowest_unanswered, limits, operation };
        apply_command(machine, &command(0, write))
    };
    let idle = open(&mut machine, 0, 1000, 1000);
    let first = write_within(&mut machine, idle, 1, 1);
    let size_before = snapshot_bytes(&mut machine, 1 << 16).len();
    let large: Vec<SessionId> = (0..9).map(|_| open(&mut machine, 0, 1000, 1000)).collect();
    let mut evicted_count = 0;
    // No session ever confirms that its client received a response.
    for sequence in 1..=50 {
        for session in &large {
            match write_within(&mut machine, *session, sequence, 1) {
                Output::Written(_) => {}
                refused => {
                    assert_eq!(refused, UNKNOWN);
                    evicted_count += 1;
                }
            }
        }
        let grown = snapshot_bytes(&mut machine, 1 << 16).len() - size_before;
        assert!(grown < 9 * 64 + 64 * ANSWER_COUNT_MAX as usize, "{grown} bytes of answers");
    }
    assert!(evicted_count > 0, "the limit was reached");
    assert_eq!(write_within(&mut machine, idle, 1, 1), first, "it keeps its answer");
}
