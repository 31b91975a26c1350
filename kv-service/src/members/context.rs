//! The form of what the service keeps in Raft's opaque bytes: a format byte, then a map by field
//! name in MessagePack. A decoder skips fields that it does not know.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

const FORMAT: u8 = 1;

pub(super) fn encode(fields: &impl Serialize) -> Bytes {
    let mut bytes = vec![FORMAT];
    bytes.extend(rmp_serde::to_vec_named(fields).expect("plain fields have a form in MessagePack"));
    bytes.into()
}

/// Returns `None` for no bytes, and for those of a program that this one does not understand.
pub(super) fn decode<T: DeserializeOwned>(context: &[u8]) -> Option<T> {
    match context.split_first() {
        Some((&FORMAT, fields)) => rmp_serde::from_slice(fields).ok(),
        _ => None,
    }
}
