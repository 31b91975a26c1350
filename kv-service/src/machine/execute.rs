//! What each operation does to its key.
//!
//! Reads the key, decides, then writes: an operation that is refused or that changes nothing has
//! touched nothing. The revision of a change is the index of its entry.

use bytes::{BufMut, Bytes, BytesMut};
use raft_core::state_machine::MachineResult;

use super::engine::{Engine, Versions};
use super::sessions::Outcome;
use crate::operation::{Expect, Operation, Record, Refusal, Revision, WriteAnswer};

pub(super) fn execute(
    engine: &mut dyn Engine,
    operation: Operation,
    revision: Revision,
    value_bytes_max: u64,
) -> MachineResult<Outcome> {
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
            Ok(Ok(WriteAnswer { revision, changed, version: 0 }))
        }
        Operation::CompareAndSwap { key, expect, value } => {
            let (before, as_expected) = compare(engine, &key, &expect)?;
            if !as_expected {
                let version = before.map_or(0, |before| before.version);
                return Ok(Ok(WriteAnswer { revision, changed: false, version }));
            }
            Ok(store(engine, key, before, value, revision, value_bytes_max))
        }
    }
}

/// It asks nothing of its key but the versions, and moves no value: it does not cost more the more there is.
pub(super) fn reads_versions_only(operation: &Operation) -> bool {
    match operation {
        Operation::Put { .. }
        | Operation::Delete { .. }
        | Operation::CompareAndSwap { expect: Expect::Version(_), .. } => true,
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
    Ok(WriteAnswer { revision, changed: true, version })
}
