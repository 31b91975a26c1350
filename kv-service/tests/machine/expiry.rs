//! Sessions end by replicated time and by number, and cost little.

use kv_service::KvMachine;
use kv_service::protocol::operation::{Refusal, SessionId};
use kv_service::state::{MachineQuery, Output, QueryOutput};
use raft_core::state_machine::StateMachine;

use crate::{apply_command, open, put, snapshot_bytes, write_command};

fn write_at(machine: &mut KvMachine, time: u64, session: SessionId, sequence: u64) -> Output {
    let mut command = write_command(session, sequence, put("k", "v"));
    command.time_ms = time;
    apply_command(machine, &command)
}

const UNKNOWN: Output = Output::Refused(Refusal::UnknownSession);

#[test]
fn a_session_lives_as_long_as_it_is_used() {
    let mut machine = KvMachine::memory();
    let session = open(&mut machine, 1000, 100, 10);
    assert!(matches!(write_at(&mut machine, 1100, session, 1), Output::Written(_)));
    assert!(matches!(write_at(&mut machine, 1200, session, 2), Output::Written(_)));
    // A duplicate is activity too: its client is alive.
    assert!(matches!(write_at(&mut machine, 1290, session, 2), Output::Written(_)));
    assert!(matches!(write_at(&mut machine, 1390, session, 3), Output::Written(_)));
    assert_eq!(write_at(&mut machine, 1491, session, 4), UNKNOWN);
    assert_eq!(write_at(&mut machine, 1491, session, 3), UNKNOWN);
}

#[test]
fn a_refused_request_keeps_nothing_alive() {
    let mut machine = KvMachine::memory();
    let session = open(&mut machine, 1000, 100, 10);
    assert!(matches!(write_at(&mut machine, 1000, session, 5), Output::Written(_)));
    let late = write_at(&mut machine, 1090, session, 1);
    assert_eq!(late, Output::Refused(Refusal::Forgotten));
    assert_eq!(write_at(&mut machine, 1101, session, 6), UNKNOWN);
}

/// A new leader's timestamps may be a little lower than its predecessor's.
#[test]
fn the_clock_does_not_go_back() {
    let mut machine = KvMachine::memory();
    let session = open(&mut machine, 5000, 100, 10);
    assert!(matches!(write_at(&mut machine, 10, session, 1), Output::Written(_)));
    assert_eq!(machine.query(MachineQuery::ClockMs).unwrap(), QueryOutput::ClockMs(5000));
    assert!(matches!(write_at(&mut machine, 5100, session, 2), Output::Written(_)));
}

#[test]
fn the_longest_idle_gives_way() {
    let mut machine = KvMachine::memory();
    let one = open(&mut machine, 1, 1000, 3);
    let two = open(&mut machine, 2, 1000, 3);
    let three = open(&mut machine, 3, 1000, 3);
    write_at(&mut machine, 4, one, 1);
    let four = open(&mut machine, 5, 1000, 3);
    assert_eq!(write_at(&mut machine, 6, two, 1), UNKNOWN);
    for session in [one, three, four] {
        assert!(matches!(write_at(&mut machine, 6, session, 2), Output::Written(_)));
    }
    // A smaller limit takes effect with the next session; the newest session always stays.
    let five = open(&mut machine, 7, 1000, 0);
    for session in [one, three, four] {
        assert_eq!(write_at(&mut machine, 8, session, 3), UNKNOWN);
    }
    assert!(matches!(write_at(&mut machine, 8, five, 1), Output::Written(_)));
}

#[test]
fn a_session_that_never_ends_does_not_overflow() {
    let mut machine = KvMachine::memory();
    let session = open(&mut machine, 1000, u64::MAX, u64::MAX);
    assert!(matches!(write_at(&mut machine, u64::MAX, session, 1), Output::Written(_)));
}

#[test]
fn a_client_with_one_request_in_flight_costs_at_most_200_bytes() {
    const CLIENT_COUNT: u64 = 1000;
    let mut machine = KvMachine::memory();
    let size_before = snapshot_bytes(&mut machine, 1 << 16).len() as u64;
    for _ in 0..CLIENT_COUNT {
        let session = open(&mut machine, 0, 1000, CLIENT_COUNT);
        for sequence in 1..4 {
            write_at(&mut machine, 0, session, sequence);
        }
    }
    let size = snapshot_bytes(&mut machine, 1 << 16).len() as u64 - size_before;
    assert!(size <= 200 * CLIENT_COUNT, "{} bytes per client", size / CLIENT_COUNT);
}
