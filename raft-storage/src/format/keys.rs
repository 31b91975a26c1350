//! The keys in the RocksDB instance of the log.
//!
//! ```text
//! 'b' | 'f'                                batch mark, format: of the instance
//! 'g' | group u32 | 'h' | 'p' | 's'        hard state, published snapshot, log start of a group
//! 'g' | group u32 | 'e' | index u64        entry of a group
//! ```
//!
//! There is one group today, number 0; several Raft groups of a node would share the instance. No
//! key holds a byte that a client chose.

use raft_core::types::Index;

pub(crate) const KEY_FORMAT: &[u8] = b"f";
pub(crate) const KEY_BATCH: &[u8] = b"b";

/// The one Raft group.
const GROUP: u32 = 0;

const GROUP_PREFIX: u8 = b'g';
const KIND_ENTRY: u8 = b'e';
const GROUP_KEY_BYTES: usize = 1 + 4 + 1;
const ENTRY_KEY_BYTES: usize = GROUP_KEY_BYTES + 8;

pub(crate) const KEY_HARD_STATE: Key = Key::of_group(b'h');
pub(crate) const KEY_LOG_START: Key = Key::of_group(b's');
pub(crate) const KEY_SNAPSHOT: Key = Key::of_group(b'p');
/// Sorts after every entry's key.
pub(crate) const KEY_ENTRY_END: Key = Key::of_group(KIND_ENTRY + 1);

/// A key in a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    bytes: [u8; ENTRY_KEY_BYTES],
    len: u8,
}

impl Key {
    const fn of_group(kind: u8) -> Self {
        let group = GROUP.to_be_bytes();
        let mut bytes = [0; ENTRY_KEY_BYTES];
        bytes[0] = GROUP_PREFIX;
        bytes[1] = group[0];
        bytes[2] = group[1];
        bytes[3] = group[2];
        bytes[4] = group[3];
        bytes[5] = kind;
        Self { bytes, len: GROUP_KEY_BYTES as u8 }
    }
}

impl AsRef<[u8]> for Key {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

pub(crate) fn entry_key(index: Index) -> Key {
    let mut key = Key::of_group(KIND_ENTRY);
    key.bytes[GROUP_KEY_BYTES..].copy_from_slice(&index.to_be_bytes());
    key.len = ENTRY_KEY_BYTES as u8;
    key
}

/// The index in an entry's key; `None` if the key is not one.
pub(crate) fn entry_key_index(key: &[u8]) -> Option<Index> {
    let (group, index) = key.split_first_chunk::<GROUP_KEY_BYTES>()?;
    let expected = Key::of_group(KIND_ENTRY);
    if group != expected.as_ref() {
        return None;
    }
    Some(Index::from_be_bytes(index.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_sort_as_indexes_do() {
        let indexes = [0, 1, 255, 256, 65_535, 65_536, u64::MAX];
        let keys = indexes.map(entry_key);
        assert!(keys.is_sorted());
        assert!(keys.iter().all(|key| key.as_ref() < KEY_ENTRY_END.as_ref()));
        assert_eq!(keys.map(|key| entry_key_index(key.as_ref())), indexes.map(Some));
        let others = [KEY_HARD_STATE, KEY_LOG_START, KEY_SNAPSHOT];
        for other in others.iter().map(AsRef::as_ref).chain([KEY_BATCH, KEY_FORMAT]) {
            assert_eq!(entry_key_index(other), None);
            assert!(other < entry_key(0).as_ref() || other >= KEY_ENTRY_END.as_ref());
        }
    }

    #[test]
    fn keys_keep_their_format() {
        assert_eq!(KEY_HARD_STATE.as_ref(), b"g\0\0\0\0h");
        assert_eq!(entry_key(258).as_ref(), b"g\0\0\0\0e\0\0\0\0\0\0\x01\x02");
    }
}
