//! The secret of one log: it masks the bytes that clients choose, and authenticates the marks of
//! batches.
//!
//! RocksDB overwrites old write-ahead files. The newest record is followed by bytes of the file's
//! earlier use, and replay continues exactly where the newest record ends. So bytes that a client
//! can choose must never be in such a file as the client chose them: they could be records that the
//! client forged. Two lines of defence keep them out:
//!
//! 1. **The mask.** All values of a batch are XORed with a ChaCha8 keystream under this secret and
//!    a nonce that the operating system draws for the batch. The client learns neither of them, nor
//!    any of the result, so the bytes on the disk are random to it: each attempt at a header with a
//!    right checksum is a blind guess. The nonce is in each record, because records move into
//!    tables and are read alone.
//! 2. **The MAC.** The mark of each batch carries a keyed 64-bit MAC over its numbers and the
//!    checksum of the rest of the batch. `format/wal` accepts no other mark, and keeps RocksDB from
//!    replaying records without one.
//!
//! The mask does not make the log confidential: the secret is in a file beside the log. ChaCha8 is
//! enough, because a client would have to predict the keystream and is never shown any of it.

use std::fmt;

use chacha20::cipher::{KeyIvInit, StreamCipher, StreamCipherSeek};
use chacha20::rand_core::{Rng, SeedableRng};
use chacha20::{ChaCha8, ChaCha8Rng};
use raft_core::storage::{StorageError, StorageResult};

use crate::record::{Damage, seal, unseal};

/// Length of the secret: a key for the mask, and one for MACs and the fingerprint.
pub(crate) const LOG_KEY_BYTES: usize = 64;

const TAG_LOG_KEY: u8 = b'M';
/// Bytes of one nonce's keystream: 2^32 blocks.
const KEYSTREAM_BYTES: u64 = 64 << 32;
/// Words of a ChaCha block.
const BLOCK_WORDS: u128 = 16;
/// No batch has this number, so the fingerprint is not the MAC of a batch.
const FINGERPRINT_STREAM: u64 = u64::MAX;

/// The secret of one log.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct LogKey {
    mask: [u8; 32],
    mac: [u8; 32],
}

impl LogKey {
    pub(crate) fn new(secret: &[u8; LOG_KEY_BYTES]) -> Self {
        let (mask, mac) = secret.split_at(LOG_KEY_BYTES / 2);
        Self {
            mask: mask.try_into().expect("half of the secret"),
            mac: mac.try_into().expect("half of the secret"),
        }
    }

    /// Masks `bytes`, which are at byte `at` of the nonce's keystream, or removes the mask again.
    pub(crate) fn mask(&self, nonce: u64, at: usize, bytes: &mut [u8]) {
        // The block counter has 64 bits in the original cipher and 32 in this one, which is enough
        // for a batch of 256 GiB.
        assert!(
            (at + bytes.len()) as u64 <= KEYSTREAM_BYTES,
            "no part of a keystream is used twice"
        );
        let mut full_nonce = [0; 12];
        full_nonce[4..].copy_from_slice(&nonce.to_le_bytes());
        let mut cipher = ChaCha8::new(&self.mask.into(), &full_nonce.into());
        cipher.seek(at as u64);
        cipher.apply_keystream(bytes);
    }

    /// Authenticates the mark of a batch.
    pub(crate) fn mac(&self, number: u64, durable_through: u64, content: u32) -> u64 {
        self.function(number, durable_through, content)
    }

    /// Distinguishes this secret from others, and reveals nothing of it.
    pub(crate) fn fingerprint(&self) -> u64 {
        self.function(FINGERPRINT_STREAM, 0, 0)
    }

    /// A pseudorandom function of 160 bits: one ChaCha block is a function of 128 of them, and its
    /// output is the key for the other 32.
    fn function(&self, stream: u64, block: u64, last: u32) -> u64 {
        let mut first = ChaCha8Rng::from_seed(self.mac);
        first.set_stream(stream);
        first.set_word_pos(u128::from(block) * BLOCK_WORDS);
        let mut key = [0u8; 32];
        first.fill_bytes(&mut key);
        let mut second = ChaCha8Rng::from_seed(key);
        second.set_stream(u64::from(last));
        second.next_u64()
    }

    pub(crate) fn encode(version: u16, secret: &[u8; LOG_KEY_BYTES]) -> Vec<u8> {
        seal(TAG_LOG_KEY, |out| {
            out.extend_from_slice(&version.to_be_bytes());
            out.extend_from_slice(secret);
        })
    }

    /// Returns the version and the secret.
    pub(crate) fn decode(bytes: &[u8]) -> Result<(u16, [u8; LOG_KEY_BYTES]), Damage> {
        let mut fields = unseal(TAG_LOG_KEY, bytes)?;
        let version = fields.u16()?;
        let secret = fields.bytes(LOG_KEY_BYTES)?.try_into().expect("as many as were asked for");
        fields.done()?;
        Ok((version, secret))
    }
}

/// Shows the fingerprint, and not the secret.
impl fmt::Debug for LogKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LogKey({:016x})", self.fingerprint())
    }
}

/// Draws the nonce of a batch. It comes from the operating system each time, so that not even two
/// copies of one running machine draw the same one.
pub(crate) fn draw_nonce() -> StorageResult<u64> {
    getrandom::u64().map_err(|error| StorageError::Engine {
        operation: "draw a nonce".to_owned(),
        message: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(seed: u8) -> LogKey {
        LogKey::new(&std::array::from_fn(|at| at as u8 ^ seed))
    }

    /// A record is unmasked alone, at its place in the keystream of the batch.
    #[test]
    fn a_part_is_masked_as_in_the_whole() {
        let plain: Vec<u8> = (0..5_000u32).map(|at| (at * 7) as u8).collect();
        let mut whole = plain.clone();
        key(1).mask(9, 0, &mut whole);
        for at in [0, 1, 3, 4, 63, 64, 255, 256, 1_021, 1_024, 3_333] {
            for len in [0, 1, 5, 64, 1_500] {
                let mut part = whole[at..at + len].to_vec();
                key(1).mask(9, at, &mut part);
                assert_eq!(part, plain[at..at + len], "{len} at {at}");
            }
        }
    }

    #[test]
    fn nonce_and_secret_change_every_part() {
        let masked = |key: LogKey, nonce| {
            let mut bytes = [0; 64];
            key.mask(nonce, 0, &mut bytes);
            bytes
        };
        let one = masked(key(1), 1);
        for other in [masked(key(1), 2), masked(key(2), 1), [0; 64]] {
            let equal = one.iter().zip(&other).filter(|(one, other)| one == other).count();
            assert!(equal < 8, "{equal} of 64 bytes are equal");
        }
    }

    #[test]
    fn a_mac_is_of_all_its_inputs() {
        let one = key(1).mac(3, 2, 7);
        assert_eq!(one, key(1).mac(3, 2, 7));
        for other in [
            key(2).mac(3, 2, 7),
            key(1).mac(4, 2, 7),
            key(1).mac(3, 1, 7),
            key(1).mac(3, 2, 8),
            key(1).mac(2, 3, 7),
        ] {
            assert_ne!(one, other);
        }
        assert_ne!(key(1).fingerprint(), key(2).fingerprint());
    }

    /// The construction is part of the format: another one could not read older logs.
    #[test]
    fn mask_and_mac_keep_their_format() {
        let mut masked = [0; 8];
        key(0).mask(0x0102_0304_0506_0708, 5, &mut masked);
        let found =
            [u64::from_be_bytes(masked), key(0).mac(77, 76, 0xdead_beef), key(0).fingerprint()];
        let expected = [0xb3c3_ac27_6274_6438, 0x94e3_e012_ad8b_2800, 0x97ad_4f26_4bd6_8753];
        assert_eq!(found, expected, "{found:#018x?}");
    }
}
