//! What is known of keys that were written lately, so that a write need not look for its key.
//!
//! A write answers with the key's version, which is one more than the version before. To find that in
//! RocksDB costs as much as the write itself, and the keys that are written are mostly those that were
//! written a moment ago: the layers know them, and this those of layers that have become tables.
//!
//! Two generations bound it: when the younger one is full, it becomes the older one, and what the older
//! one held is forgotten. What is here is right, and says more than what is not: a key that is unknown
//! has to be looked for, one that is known to be absent need not.

use std::collections::HashMap;

use super::layer::ShortKey;
use crate::machine::engine::Versions;

/// Known versions by key; `None` is a key that is not there.
type Generation = HashMap<ShortKey, Option<Versions>>;

/// What an entry takes beyond its key: the slot, the key's allocation, and room that is not used.
const ENTRY_BYTES: usize = 96;

pub(super) struct Recent {
    young: Generation,
    old: Generation,
    young_bytes: usize,
    /// Of one generation.
    bytes_max: usize,
}

impl Recent {
    /// Keeps to about `bytes_max`; 0 remembers nothing.
    pub(super) fn new(bytes_max: usize) -> Self {
        let (young, old) = Default::default();
        Self { young, old, young_bytes: 0, bytes_max: bytes_max / 2 }
    }

    /// What is stored under the key, if that is known.
    pub(super) fn versions(&self, key: &[u8]) -> Option<Option<Versions>> {
        self.young.get(key).or_else(|| self.old.get(key)).copied()
    }

    /// This is what is stored from now on.
    pub(super) fn note(&mut self, key: &[u8], versions: Option<Versions>) {
        if let Some(known) = self.young.get_mut(key) {
            *known = versions;
            return;
        }
        let size_bytes = ENTRY_BYTES + key.len();
        if self.young_bytes + size_bytes > self.bytes_max {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        if size_bytes <= self.bytes_max {
            self.young.insert(key.into(), versions);
            self.young_bytes += size_bytes;
        } else {
            // What the older generation says of it is not right any more.
            self.old.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn versions(version: u64) -> Option<Versions> {
        Some(Versions { version, create_revision: 1 })
    }

    #[test]
    fn what_it_knows_is_the_latest_and_what_it_keeps_is_bounded() {
        const KEPT: usize = 10;
        let mut recent = Recent::new(2 * KEPT * (ENTRY_BYTES + 8));
        for version in 1..=3 {
            for key in 0..1_000_u64 {
                recent.note(&key.to_be_bytes(), versions(version));
                assert_eq!(recent.versions(&key.to_be_bytes()), Some(versions(version)));
                assert!(recent.young.len() <= KEPT && recent.old.len() <= KEPT);
            }
        }
        assert_eq!(recent.versions(&0_u64.to_be_bytes()), None);
        // Known in the older generation, written anew in the younger one.
        recent.note(&995_u64.to_be_bytes(), None);
        assert_eq!(recent.versions(&995_u64.to_be_bytes()), Some(None));
    }

    #[test]
    fn a_key_that_does_not_fit_is_not_remembered_as_it_was() {
        let mut recent = Recent::new(2 * (ENTRY_BYTES + 8));
        recent.note(b"small", versions(1));
        recent.note(&[7; 9], versions(2));
        assert_eq!(recent.versions(&[7; 9]), None);
        let mut nothing = Recent::new(0);
        nothing.note(b"", versions(1));
        assert_eq!(nothing.versions(b""), None);
    }
}
