//! The bytes of a command.

use bytes::Bytes;
use kv_service::protocol::operation::{Nonce, SessionId};
use kv_service::state::{Action, Command, Opening, WriteLimits};
use kv_service::{Expect, Operation, VERSION_MAX, VERSION_MIN};
use proptest::prelude::*;

use crate::agreement::operation;
use crate::{put, text, write_command};

fn number() -> impl Strategy<Value = u64> {
    (any::<u64>(), 0u32..64).prop_map(|(number, shift)| number >> shift)
}

fn session() -> impl Strategy<Value = SessionId> {
    (number(), any::<u128>()).prop_map(|(index, nonce)| SessionId { index, nonce: Nonce(nonce) })
}

fn action() -> impl Strategy<Value = Action> {
    let n = number;
    let name = proptest::collection::vec(any::<u8>(), 0..40);
    prop_oneof![
        (any::<u128>(), n(), any::<u32>(), n(), n(), name).prop_map(
            |(nonce, ttl_ms, window, session_count_max, principal_session_count_max, name)| {
                Action::OpenSession(Opening {
                    nonce: Nonce(nonce),
                    ttl_ms,
                    window,
                    session_count_max,
                    principal_session_count_max,
                    principal: name.into(),
                })
            }
        ),
        session().prop_map(|session| Action::CloseSession { session }),
        (session(), n(), n(), [n(), n(), n()], operation()).prop_map(
            |(session, sequence, lowest_unanswered, limits, operation)| {
                let [key_bytes_max, value_bytes_max, answer_bytes_max] = limits;
                let limits = WriteLimits { key_bytes_max, value_bytes_max, answer_bytes_max };
                Action::Write { session, sequence, lowest_unanswered, limits, operation }
            }
        ),
    ]
}

/// Any command, also one with a key outside the limits.
fn command() -> impl Strategy<Value = Command> {
    (number(), action()).prop_map(|(time_ms, action)| {
        let mut command = Command { rules: VERSION_MIN, time_ms, action };
        command.rules = command.rules_min();
        command
    })
}

proptest! {
    #[test]
    fn comes_back_as_it_was_and_no_other_way(command in command(), more in any::<u8>()) {
        let bytes = command.encode();
        prop_assert_eq!(bytes.len(), command.size_bytes());
        prop_assert_eq!(Command::decode(&bytes).unwrap(), command);
        for end in 0..bytes.len() {
            prop_assert!(Command::decode(&bytes.slice(..end)).is_err(), "cut at {}", end);
        }
        let mut longer = bytes.to_vec();
        longer.push(more);
        prop_assert!(Command::decode(&Bytes::from(longer)).is_err());
    }

    /// Accepted bytes are those that the encoder writes: no two byte strings mean the same.
    #[test]
    fn garbage_is_refused_or_canonical(bytes in proptest::collection::vec(0u8..6, 0..80)) {
        let bytes = Bytes::from(bytes);
        if let Ok(command) = Command::decode(&bytes) {
            prop_assert_eq!(command.encode(), bytes);
        }
    }

    #[test]
    fn a_changed_byte_never_panics(command in command(), at in any::<usize>(), to in any::<u8>()) {
        let mut bytes = command.encode().to_vec();
        let at = at % bytes.len();
        bytes[at] = to;
        let bytes = Bytes::from(bytes);
        if let Ok(command) = Command::decode(&bytes) {
            prop_assert_eq!(command.encode(), bytes);
        }
    }
}

/// The format is a promise: these bytes are in logs.
#[test]
fn bytes_stay_what_they_were() {
    let (session, limits) = fixture();
    let operation = Operation::CompareAndSwap {
        key: text("k"),
        expect: Expect::Value(text("old")),
        value: text("new!"),
    };
    let write = Action::Write { session, sequence: 300, lowest_unanswered: 4, limits, operation };
    let write = Command { rules: 1, time_ms: 1, action: write };
    let expected: &[u8] = b"\x02\x01\x03\0\0\0\x01\
        \x02\x07\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\xac\x02\x04\x05\x06\x08\
        \x04\x01\x04\x03knew!old\0";
    assert_eq!(write.encode(), expected);
    assert_eq!(Command::decode(&Bytes::from_static(expected)), Ok(write));

    let opening = Opening {
        nonce: Nonce(1 << 120),
        ttl_ms: 2,
        window: 1024,
        session_count_max: 3,
        principal_session_count_max: 4,
        principal: text("name"),
    };
    let open = Command { rules: 1, time_ms: 1, action: Action::OpenSession(opening) };
    let expected: &[u8] = b"\x02\x01\x01\0\0\0\x01\
        \0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\x02\x80\x08\x03\x04\x04name\0";
    assert_eq!(open.encode(), expected);
    assert_eq!(Command::decode(&Bytes::from_static(expected)), Ok(open));

    let close = Command { rules: 1, time_ms: 1, action: Action::CloseSession { session } };
    let expected: &[u8] = b"\x02\x01\x02\0\0\0\x01\x02\x07\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    assert_eq!(close.encode(), expected);
    assert_eq!(Command::decode(&Bytes::from_static(expected)), Ok(close));
}

fn fixture() -> (SessionId, WriteLimits) {
    let session = SessionId { index: 2, nonce: Nonce(7) };
    let limits = WriteLimits { key_bytes_max: 5, value_bytes_max: 6, answer_bytes_max: 8 };
    (session, limits)
}

/// A swap by revision, as version 2 writes it.
const SWAP_BY_REVISION: &[u8] = b"\x02\x02\x03\0\0\0\x01\
    \x02\x07\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x03\x04\x05\x06\x08\
    \x06\x01\x03\x2aknew\0";

/// S3, S16. A program that supports version 2 decodes its operation as a command. Any other
/// program, also this one when it is built to pretend so, gets the reason to stop.
#[test]
fn what_version_2_brought_needs_version_2() {
    let decoded = Command::decode(&Bytes::from_static(SWAP_BY_REVISION));
    if VERSION_MAX < 2 {
        let error = decoded.unwrap_err();
        assert!(error.is_newer() && error.to_string() == "cluster version 2", "{error}");
        // Nor does it decode the operation under rules that it knows.
        let mut older = SWAP_BY_REVISION.to_vec();
        older[1] = 1;
        assert!(Command::decode(&Bytes::from(older)).unwrap_err().is_newer());
        return;
    }
    let (session, limits) = fixture();
    let operation = Operation::CompareAndSwap {
        key: text("k"),
        expect: Expect::Revision(42),
        value: text("new"),
    };
    let write = Action::Write { session, sequence: 3, lowest_unanswered: 4, limits, operation };
    let command = Command { rules: 2, time_ms: 1, action: write };
    assert_eq!(command.rules_min(), 2);
    assert_eq!(command.encode(), SWAP_BY_REVISION);
    assert_eq!(decoded, Ok(command));
    // Under the rules of version 1 no program writes it.
    let mut older = SWAP_BY_REVISION.to_vec();
    older[1] = 1;
    assert!(Command::decode(&Bytes::from(older)).is_err());
}

#[test]
#[should_panic = "a command of a later version than the cluster's"]
fn an_operation_is_not_written_before_its_version() {
    let operation =
        Operation::CompareAndSwap { key: text("k"), expect: Expect::Revision(1), value: text("v") };
    let mut command = write_command(crate::session_at(1), 1, operation);
    command.rules = 1;
    command.encode();
}

#[test]
fn payloads_are_slices_of_the_input() {
    let bytes = write_command(crate::session_at(1), 1, put("key", "value")).encode();
    let range = bytes.as_ptr_range();
    let decoded = Command::decode(&bytes).map(|command| command.action);
    let Ok(Action::Write { operation: Operation::Put { key, value }, .. }) = decoded else {
        panic!("a put was encoded");
    };
    assert!(range.contains(&key.as_ptr()) && range.contains(&value.as_ptr()));
}
