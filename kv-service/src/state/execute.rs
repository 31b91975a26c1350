//! Operations on keys.
//!
//! Each operation reads its key, decides, then writes: an operation that is refused or changes
//! nothing has touched nothing. The revision of a change is the index of its entry.

use bytes::{BufMut, Bytes, BytesMut};
use raft_core::state_machine::MachineResult;

use super::answers::Outcome;
use super::command::{KEY_BYTES_LIMIT, VALUE_BYTES_LIMIT, WriteLimits};
use super::engine::{Engine, Versions};
use crate::protocol::operation::{Expect, Operation, Record, Refusal, Revision, WriteResponse};

pub(super) fn execute(
    engine: &mut dyn Engine,
    operation: Operation,
    revision: Revision,
    limits: &WriteLimits,
) -> MachineResult<Outcome> {
    let key_bytes_max = limits.key_bytes_max.min(KEY_BYTES_LIMIT as u64);
    let value_bytes_max = limits.value_bytes_max.min(VALUE_BYTES_LIMIT as u64);
    let key_bytes = operation.key().len() as u64;
    if key_bytes == 0 || key_bytes > key_bytes_max {
        let limit_bytes = key_bytes_max;
        return Ok(Err(Refusal::KeyOutOfRange { size_bytes: key_bytes, limit_bytes }));
    }
    match operation {
        Operation::Put { key, value } => {
            let before = engine.versions(&key)?;
            Ok(store(engine, key, before, value, revision, value_bytes_max))
        }
        Operation::Append { key, value } => append(engine, key, value, revision, value_bytes_max),
        Operation::Delete { key } => {
            let changed = engine.versions(&key)?.is_some();
            if changed {
                engine.delete(key);
            }
            Ok(Ok(WriteResponse { revision, changed, version: 0 }))
        }
        Operation::CompareAndSwap { key, expect, value } => {
            let (before, as_expected) = compare(engine, &key, &expect)?;
            if !as_expected {
                let version = before.map_or(0, |before| before.version);
                return Ok(Ok(WriteResponse { revision, changed: false, version }));
            }
            Ok(store(engine, key, before, value, revision, value_bytes_max))
        }
    }
}

/// Returns true if the operation reads only the versions of its key: its cost does not grow with
/// the size of the stored value.
pub(super) fn reads_versions_only(operation: &Operation) -> bool {
    match operation {
        Operation::Put { .. }
        | Operation::Delete { .. }
        | Operation::CompareAndSwap { expect: Expect::Version(_) | Expect::Revision(_), .. } => {
            true
        }
        Operation::Append { .. } | Operation::CompareAndSwap { expect: Expect::Value(_), .. } => {
            false
        }
    }
}

fn append(
    engine: &mut dyn Engine,
    key: Bytes,
    tail: Bytes,
    revision: Revision,
    value_bytes_max: u64,
) -> MachineResult<Outcome> {
    let Some(before) = engine.get(&key)? else {
        return Ok(store(engine, key, None, tail, revision, value_bytes_max));
    };
    let size_bytes = before.value.len() as u64 + tail.len() as u64;
    if size_bytes > value_bytes_max {
        return Ok(Err(Refusal::ValueTooLarge { size_bytes, limit_bytes: value_bytes_max }));
    }
    let mut value = BytesMut::with_capacity(before.value.len() + tail.len());
    value.put_slice(&before.value);
    value.put_slice(&tail);
    let versions = Some(Versions::of(&before));
    Ok(store(engine, key, versions, value.freeze(), revision, value_bytes_max))
}

fn compare(
    engine: &dyn Engine,
    key: &[u8],
    expect: &Expect,
) -> MachineResult<(Option<Versions>, bool)> {
    Ok(match expect {
        Expect::Value(expected) => {
            let before = engine.get(key)?;
            let as_expected = before.as_ref().is_some_and(|before| before.value == *expected);
            (before.as_ref().map(Versions::of), as_expected)
        }
        Expect::Version(expected) => {
            let before = engine.versions(key)?;
            (before, before.map_or(0, |before| before.version) == *expected)
        }
        Expect::Revision(expected) => {
            let before = engine.versions(key)?;
            (before, before.map_or(0, |before| before.modify_revision) == *expected)
        }
    })
}

fn store(
    engine: &mut dyn Engine,
    key: Bytes,
    before: Option<Versions>,
    value: Bytes,
    revision: Revision,
    value_bytes_max: u64,
) -> Outcome {
    let size_bytes = value.len() as u64;
    if size_bytes > value_bytes_max {
        return Err(Refusal::ValueTooLarge { size_bytes, limit_bytes: value_bytes_max });
    }
    let (version, create_revision) = match before {
        Some(before) => (before.version + 1, before.create_revision),
        None => (1, revision),
    };
    engine.put(key, Record { value, version, create_revision, modify_revision: revision });
    Ok(WriteResponse { revision, changed: true, version })
}
