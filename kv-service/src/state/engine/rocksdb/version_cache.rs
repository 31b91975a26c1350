//! The version cache: versions of recently written keys, so that a write need not look its key up.
//!
//! A write returns the key's version, which is one more than the version before. To find that in
//! RocksDB costs as much as the write itself, and most writes are to keys that were written a
//! moment ago. The memtables know those keys; the cache knows the keys of memtables that became SST
//! files.
//!
//! Every entry is right. A key without an entry must be looked up, while a key that is known to be
//! absent need not be.
//!
//! A key belongs to one of many small buckets. In a full bucket, the key that was noted the longest
//! ago is evicted. So the memory is bounded, and no table ever has to grow or to be emptied while
//! all callers wait.
//!
//! A key is represented by two 64-bit hashes under a secret of this process. It is far less likely
//! that two keys of one bucket ever share both than that memory or disk fail unnoticed, and no
//! client can bring it about.

use std::hash::{BuildHasher, RandomState};

use crate::state::engine::Versions;

/// Keys of a bucket.
const WAYS: usize = 8;

/// The hashes that stand for a key.
type Name = [u64; 2];

/// A key's name, version and revisions; version 0 is a key that does not exist. Plain numbers: a
/// table of zeros has empty slots, and takes no memory before it is used.
type Slot = [u64; 5];

/// The key that was noted last comes first.
type Bucket = [Slot; WAYS];

pub(super) struct VersionCache {
    buckets: Vec<Bucket>,
    secret: RandomState,
}

impl VersionCache {
    /// A cache of at most `bytes_max` bytes. With less than a bucket, it remembers nothing.
    pub(super) fn new(bytes_max: usize) -> Self {
        let buckets = vec![Bucket::default(); bytes_max / size_of::<Bucket>()];
        Self { buckets, secret: RandomState::new() }
    }

    /// The versions of the stored record, or `None` in the inner option if there is none, if that
    /// is known.
    pub(super) fn versions(&self, key: &[u8]) -> Option<Option<Versions>> {
        let name = self.name(key);
        let bucket = &self.buckets[self.place(name)?];
        let [.., version, create_revision, modify_revision] =
            *bucket.iter().find(|slot| slot[..2] == name)?;
        let versions = Versions { version, create_revision, modify_revision };
        Some((version > 0).then_some(versions))
    }

    /// Notes the versions of what is stored from now on.
    pub(super) fn note(&mut self, key: &[u8], versions: Option<Versions>) {
        let name = self.name(key);
        let Some(place) = self.place(name) else { return };
        let [version, create_revision, modify_revision] = versions.map_or([0; 3], |versions| {
            [versions.version, versions.create_revision, versions.modify_revision]
        });
        let bucket = &mut self.buckets[place];
        // Replaces the entry of the same key, or else the one that was noted the longest ago.
        let at = bucket.iter().position(|slot| slot[..2] == name).unwrap_or(WAYS - 1);
        bucket[at] = [name[0], name[1], version, create_revision, modify_revision];
        bucket[..=at].rotate_right(1);
    }

    fn name(&self, key: &[u8]) -> Name {
        // The lowest bit is set, so that no key has the name of an empty slot.
        [self.secret.hash_one((0_u8, key)), self.secret.hash_one((1_u8, key)) | 1]
    }

    /// The place of the key's bucket; `None` if there are no buckets.
    fn place(&self, [name, _]: Name) -> Option<usize> {
        let place = name.checked_rem(self.buckets.len() as u64)?;
        Some(usize::try_from(place).expect("below a length"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn versions(version: u64) -> Option<Versions> {
        Some(Versions { version, create_revision: 1, modify_revision: version })
    }

    #[test]
    fn what_it_knows_is_the_latest() {
        let mut version_cache = VersionCache::new(1 << 20);
        let slots = version_cache.buckets.len() * WAYS;
        let free_bytes = (1 << 20) - slots * size_of::<Slot>();
        assert!(free_bytes < size_of::<Bucket>(), "{free_bytes} bytes are not used");
        for round in 1..=3 {
            // Every third is deleted.
            let latest = |key: u64| versions(round).filter(|_| !key.is_multiple_of(3));
            for key in 0..2 * slots as u64 {
                version_cache.note(&key.to_be_bytes(), latest(key));
                assert_eq!(version_cache.versions(&key.to_be_bytes()), Some(latest(key)));
            }
            let is_known = |key: &u64| {
                let known = version_cache.versions(&key.to_be_bytes());
                assert!(known.is_none_or(|known| known == latest(*key)));
                known.is_some()
            };
            // It is full but for a bucket here and there, and mostly of what was noted last.
            let count = (0..2 * slots as u64).filter(is_known).count();
            assert!((slots * 19 / 20..=slots).contains(&count), "{count} of {slots}");
            let late_count = (slots as u64..2 * slots as u64).filter(is_known).count();
            assert!(late_count > slots * 3 / 4, "{late_count} of {slots}");
        }
    }

    #[test]
    fn of_a_bucket_the_key_that_was_noted_the_longest_ago_is_forgotten() {
        let mut version_cache = VersionCache::new(size_of::<Bucket>());
        let known = |version_cache: &VersionCache| {
            (0..20_u8).filter(|key| version_cache.versions(&[*key]).is_some()).collect::<Vec<_>>()
        };
        for key in 0..WAYS as u8 {
            version_cache.note(&[key], versions(1));
        }
        version_cache.note(&[0], versions(2));
        version_cache.note(&[18], None);
        version_cache.note(&[19], versions(1));
        assert_eq!(known(&version_cache), [0, 3, 4, 5, 6, 7, 18, 19]);
        assert_eq!(version_cache.versions(&[0]), Some(versions(2)));
        assert_eq!(version_cache.versions(&[18]), Some(None));
    }

    #[test]
    fn without_memory_it_remembers_nothing() {
        let mut nothing = VersionCache::new(0);
        nothing.note(b"", versions(1));
        assert_eq!(nothing.versions(b""), None);
    }
}
