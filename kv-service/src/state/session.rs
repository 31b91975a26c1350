//! One session: its terms, its window, the outputs that it remembers, and its encoding.
//!
//! ```text
//!   nonce 16 bytes  reserved  ttl_ms  window  last_active_ms  lowest_unanswered
//!   name_len  principal  answer_count
//!   per answer:  place (sequence - lowest_unanswered)  tag u8  digest u32
//!                0, 1 written (unchanged, changed): revision  version
//!                2 value too large, 3 key out of range: size_bytes  limit_bytes
//! ```
//!
//! Numbers are varints (`codec`) unless a width is given.

use std::sync::Arc;

use bytes::{BufMut, BytesMut};
use imbl::OrdMap;
use raft_core::types::Index;

use super::answers::{Answers, Kept, Kind};
use super::codec::{ByteReader, DecodeError, DecodeResult, malformed, put_len, put_varint};
use crate::protocol::operation::Nonce;

/// Bytes that one remembered output counts against the limit of all sessions. A rule of every
/// cluster version so far.
pub const ANSWER_BYTES: u64 = 64;

/// All sessions at one moment, by index; a clone is O(1).
pub(super) type SessionMap = OrdMap<Index, Arc<Session>>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Session {
    /// [`Session::nonce`] as bytes, because a `u128` would be padded.
    pub(super) nonce_bytes: [u8; 16],
    /// The name in the certificate of the client that opened it.
    pub(super) principal: Arc<[u8]>,
    pub(super) ttl_ms: u64,
    /// How many requests may be unanswered, from `lowest_unanswered` on; at least 1.
    pub(super) window: u32,
    pub(super) last_active_ms: u64,
    pub(super) lowest_unanswered: u64,
    /// All within the window.
    pub(super) answers: Answers,
}

impl Session {
    pub(super) fn nonce(&self) -> Nonce {
        Nonce(u128::from_le_bytes(self.nonce_bytes))
    }

    /// About the bytes that [`Session::encode`] writes, and that the session takes in memory.
    pub(super) fn size_bytes(&self) -> usize {
        const HEAD_BYTES: usize = 64;
        HEAD_BYTES + self.principal.len() + self.answers.len() * ANSWER_BYTES as usize
    }

    pub(super) fn encode(&self, out: &mut BytesMut) {
        out.reserve(self.size_bytes());
        out.put_slice(&self.nonce_bytes);
        // Reserved.
        out.put_u8(0);
        put_varint(out, self.ttl_ms);
        put_varint(out, self.window.into());
        put_varint(out, self.last_active_ms);
        put_varint(out, self.lowest_unanswered);
        put_len(out, &self.principal);
        out.put_slice(&self.principal);
        put_varint(out, self.answers.len() as u64);
        for (sequence, kept) in self.answers.iter() {
            assert!(*sequence >= self.lowest_unanswered, "answers are within the window");
            put_varint(out, sequence - self.lowest_unanswered);
            encode_kept(kept, out);
        }
    }

    pub(super) fn decode(reader: &mut ByteReader) -> DecodeResult<Session> {
        let nonce_bytes = reader.u128()?.to_le_bytes();
        reader.reserved("a newer kind of session")?;
        let (ttl_ms, window) = (reader.varint()?, reader.varint_u32()?);
        let (last_active_ms, lowest_unanswered) = (reader.varint()?, reader.varint()?);
        let name_len = reader.varint()?;
        let principal = Arc::from(&reader.bytes(name_len)?[..]);
        let count = reader.varint()?;
        if window == 0 || count > u64::from(window) {
            return Err(malformed("a session has more answers than its window"));
        }
        let mut answers = Answers::new();
        let mut next_place = 0;
        for _ in 0..count {
            let place = reader.varint()?;
            let sequence = lowest_unanswered.checked_add(place);
            let Some(sequence) =
                sequence.filter(|_| place >= next_place && place < u64::from(window))
            else {
                return Err(malformed("a session's answers are out of order"));
            };
            next_place = place + 1;
            answers.insert(sequence, decode_kept(reader)?);
        }
        let session = Session {
            nonce_bytes,
            principal,
            ttl_ms,
            window,
            last_active_ms,
            lowest_unanswered,
            answers,
        };
        Ok(session)
    }
}

fn encode_kept(kept: &Kept, out: &mut BytesMut) {
    out.put_u8(kept.kind as u8);
    out.put_u32_le(kept.digest);
    for number in kept.numbers {
        put_varint(out, number);
    }
}

fn decode_kept(reader: &mut ByteReader) -> DecodeResult<Kept> {
    let (number, digest) = (reader.u8()?, reader.u32()?);
    let numbers = [reader.varint()?, reader.varint()?];
    let kind = Kind::of(number).ok_or(DecodeError::Newer("an unknown outcome in a session"))?;
    Ok(Kept { digest, kind, numbers })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::answers::Outcome;
    use super::*;
    use crate::protocol::operation::{Refusal, WriteResponse};

    fn outcome() -> impl Strategy<Value = Outcome> {
        let written =
            any::<(u64, bool, u64)>().prop_map(|(revision, changed, version)| -> Outcome {
                Ok(WriteResponse { revision, changed, version })
            });
        let refused = any::<(u64, u64, bool)>().prop_map(|(size_bytes, limit_bytes, is_key)| {
            Err(if is_key {
                Refusal::KeyOutOfRange { size_bytes, limit_bytes }
            } else {
                Refusal::ValueTooLarge { size_bytes, limit_bytes }
            })
        });
        prop_oneof![3 => written, 1 => refused]
    }

    fn session() -> impl Strategy<Value = Session> {
        const WINDOW: u32 = 1024;
        let kept =
            (any::<u32>(), outcome()).prop_map(|(digest, outcome)| Kept::new(digest, outcome));
        let answers = prop::collection::btree_map(0..u64::from(WINDOW), kept, 0..6);
        let lowest = prop_oneof![Just(0), Just(u64::MAX - 1024), any::<u64>()];
        let name = prop::collection::vec(any::<u8>(), 0..9);
        (any::<u128>(), name, any::<[u64; 2]>(), lowest, answers).prop_map(
            |(nonce, name, [ttl_ms, last_active_ms], lowest_unanswered, outcomes)| {
                let mut answers = Answers::new();
                for (place, kept) in outcomes {
                    if let Some(sequence) = lowest_unanswered.checked_add(place) {
                        answers.insert(sequence, kept);
                    }
                }
                let (nonce_bytes, principal) = (u128::to_le_bytes(nonce), name.into());
                let window = WINDOW;
                Session {
                    nonce_bytes,
                    principal,
                    ttl_ms,
                    window,
                    last_active_ms,
                    lowest_unanswered,
                    answers,
                }
            },
        )
    }

    /// A claimed number of outputs is accepted up to the window; beyond it, none of them is read.
    #[test]
    fn a_window_of_answers_is_read_and_no_more() {
        const WINDOW: u64 = 1024;
        let claimed = |count: u64, answers: u64| {
            let mut encoded = BytesMut::new();
            encoded.put_u128_le(7);
            for number in [0, 0, WINDOW, 0, 0, 0, count] {
                put_varint(&mut encoded, number);
            }
            for place in 0..answers {
                put_varint(&mut encoded, place);
                encoded.put_u8(Kind::Unchanged as u8);
                encoded.put_bytes(0, 4 + 2);
            }
            Session::decode(&mut ByteReader::new(&encoded.freeze()))
        };
        let full = claimed(WINDOW, WINDOW).unwrap();
        assert_eq!(full.answers.len() as u64, WINDOW);
        let error = claimed(WINDOW + 1, 0).unwrap_err();
        assert_eq!(error, malformed("a session has more answers than its window"));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_and_nothing_less_or_more(session in session()) {
            let mut encoded = BytesMut::new();
            session.encode(&mut encoded);
            let size_bytes = encoded.len();
            encoded.put_u8(7);
            let encoded = encoded.freeze();
            let mut reader = ByteReader::new(&encoded);
            prop_assert_eq!(Session::decode(&mut reader), Ok(session));
            prop_assert_eq!(reader.u8(), Ok(7), "what follows is left to others");
            prop_assert!(reader.finish().is_ok());
            for end in 0..size_bytes {
                let cut = encoded.slice(..end);
                let mut reader = ByteReader::new(&cut);
                prop_assert!(Session::decode(&mut reader).is_err(), "cut at {}", end);
            }
        }
    }
}
