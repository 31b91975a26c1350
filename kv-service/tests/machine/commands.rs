//! The bytes of a command.

use bytes::Bytes;
use kv_service::machine::{Command, KEY_BYTES_LIMIT};
use kv_service::operation::{Expect, Operation};
use proptest::prelude::*;

use crate::agreement::operation;
use crate::{put, text, write_command};

fn command() -> impl Strategy<Value = Command> {
    let n = any::<u64>;
    prop_oneof![
        (n(), n(), n()).prop_map(|(time_ms, ttl_ms, session_count_max)| {
            Command::OpenSession { time_ms, ttl_ms, session_count_max }
        }),
        (n(), n()).prop_map(|(time_ms, session)| Command::CloseSession { time_ms, session }),
        (n(), n(), n(), n(), n(), operation()).prop_map(
            |(time_ms, session, sequence, lowest_unanswered, value_bytes_max, operation)| {
                Command::Write {
                    time_ms,
                    session,
                    sequence,
                    lowest_unanswered,
                    value_bytes_max,
                    operation,
                }
            }
        ),
    ]
}

proptest! {
    #[test]
    fn comes_back_as_it_was_and_no_other_way(command in command(), more in any::<u8>()) {
        let bytes = command.encode();
        prop_assert_eq!(bytes.len(), command.size_bytes());
        prop_assert_eq!(Command::decode(bytes.clone()).unwrap(), command);
        for end in 0..bytes.len() {
            prop_assert!(Command::decode(bytes.slice(..end)).is_err(), "cut at {}", end);
        }
        let mut longer = bytes.to_vec();
        longer.push(more);
        prop_assert!(Command::decode(longer.into()).is_err());
    }

    /// Whatever is accepted is what the encoder writes: no two byte strings mean the same.
    #[test]
    fn garbage_is_refused_or_canonical(bytes in proptest::collection::vec(0u8..6, 0..80)) {
        let bytes = Bytes::from(bytes);
        if let Ok(command) = Command::decode(bytes.clone()) {
            prop_assert_eq!(command.encode(), bytes);
        }
    }

    #[test]
    fn a_changed_byte_never_panics(command in command(), at in any::<usize>(), to in any::<u8>()) {
        let mut bytes = command.encode().to_vec();
        let at = at % bytes.len();
        bytes[at] = to;
        let bytes = Bytes::from(bytes);
        if let Ok(command) = Command::decode(bytes.clone()) {
            prop_assert_eq!(command.encode(), bytes);
        }
    }
}

/// The format is a promise: these bytes are in logs.
#[test]
fn bytes_stay_what_they_were() {
    let command = Command::Write {
        time_ms: 1,
        session: 2,
        sequence: 3,
        lowest_unanswered: 4,
        value_bytes_max: 5,
        operation: Operation::CompareAndSwap {
            key: text("k"),
            expect: Expect::Value(text("old")),
            value: text("new!"),
        },
    };
    let mut expected = vec![1, 3];
    for number in 1u64..=5 {
        expected.extend(number.to_le_bytes());
    }
    expected.extend([4, 1, 0, 0, 0, 4, 0, 0, 0, 3, 0, 0, 0]);
    expected.extend(b"knew!old");
    assert_eq!(command.encode(), expected);

    let open = Command::OpenSession { time_ms: 1, ttl_ms: 2, session_count_max: 3 };
    let mut expected = vec![1, 1];
    for number in 1u64..=3 {
        expected.extend(number.to_le_bytes());
    }
    assert_eq!(open.encode(), expected);
}

#[test]
fn keys_are_neither_empty_nor_too_long() {
    assert!(Command::decode(write_command(1, 1, put("", "v")).encode()).is_err());
    let longest = "k".repeat(KEY_BYTES_LIMIT);
    assert!(Command::decode(write_command(1, 1, put(&longest, "v")).encode()).is_ok());
    let longer = "k".repeat(KEY_BYTES_LIMIT + 1);
    assert!(Command::decode(write_command(1, 1, put(&longer, "v")).encode()).is_err());
}

#[test]
fn payloads_are_slices_of_the_input() {
    let bytes = write_command(1, 1, put("key", "value")).encode();
    let range = bytes.as_ptr_range();
    let Ok(Command::Write { operation: Operation::Put { key, value }, .. }) =
        Command::decode(bytes.clone())
    else {
        panic!("a put was encoded");
    };
    assert!(range.contains(&key.as_ptr()) && range.contains(&value.as_ptr()));
}
