//! Messages between the two ends of a snapshot transfer, one frame each.
//!
//! ```text
//!   leader                                  follower
//!     Offer { term, meta, content }  ──▶
//!                                    ◀──  Accept { offset } | NotNeeded | Stale | Busy
//!     offset u64 BE, bytes           ──▶      (as often as it takes; the follower owns the offset)
//!     end of stream                  ──▶
//!                                    ◀──  Done
//! ```
//!
//! Offers and responses are MessagePack, and are refused unless they are exactly what this side
//! would have written. A follower takes over the term of an offer before a byte of the snapshot has
//! arrived. So offers that no leader makes are refused here: terms and indexes out of range, and a
//! snapshot of a later term than the leader's. The follower's storage verifies the whole content
//! against its checksum before anything is published.

use bytes::{BufMut, Bytes, BytesMut};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::transport::{BULK_FRAME_BYTES_MAX, TransportError};
use crate::types::{SnapshotContent, SnapshotMeta, TERM_MAX, Term};

pub(crate) const CHUNK_BYTES: usize = 256 << 10;
const OFFSET_BYTES: usize = 8;
const _: () = assert!(OFFSET_BYTES + CHUNK_BYTES <= BULK_FRAME_BYTES_MAX);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Offer {
    pub(crate) term: Term,
    pub(crate) meta: SnapshotMeta,
    pub(crate) content: SnapshotContent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) enum OfferResponse {
    Accept {
        offset: u64,
    },
    NotNeeded,
    Stale {
        term: Term,
    },
    /// Another snapshot is being received or taken; try again later.
    Busy,
    Done,
}

pub(crate) fn encode<T: Serialize>(value: &T) -> Bytes {
    rmp_serde::to_vec(value).expect("plain data always encodes").into()
}

pub(crate) fn decode_offer(frame: &[u8]) -> Result<Offer, TransportError> {
    let offer: Offer = decode(frame)?;
    let position = offer.meta.position;
    if offer.term > TERM_MAX || !position.is_in_range() {
        return Err(malformed("a term or an index is out of range"));
    }
    if position.term == 0 || position.index == 0 {
        return Err(malformed("a snapshot of nothing"));
    }
    if position.term > offer.term {
        return Err(malformed("the snapshot is of a later term than the leader"));
    }
    if !offer.meta.configuration.is_storable() {
        return Err(malformed("a configuration with records of other nodes, or too many bytes"));
    }
    Ok(offer)
}

pub(crate) fn decode_answer(frame: &[u8]) -> Result<OfferResponse, TransportError> {
    decode(frame)
}

fn decode<T: Serialize + DeserializeOwned>(frame: &[u8]) -> Result<T, TransportError> {
    let value = rmp_serde::from_slice(frame).map_err(malformed)?;
    // Rejects frames that this side would not have written: trailing bytes, fields by name, numbers
    // in more bytes than they need.
    if encode(&value) == frame {
        Ok(value)
    } else {
        Err(malformed("it is not in the form in which it is written"))
    }
}

fn malformed(reason: impl std::fmt::Display) -> TransportError {
    TransportError::new(format!("malformed snapshot frame: {reason}"))
}

pub(crate) fn encode_chunk(offset: u64, data: &[u8]) -> Bytes {
    assert!(!data.is_empty(), "an empty chunk would not be accepted");
    let mut frame = BytesMut::with_capacity(OFFSET_BYTES + data.len());
    frame.put_u64(offset);
    assert_eq!(frame.len(), OFFSET_BYTES, "the offset has a fixed size");
    frame.put_slice(data);
    frame.freeze()
}

pub(crate) fn decode_chunk(mut frame: Bytes) -> Result<(u64, Bytes), TransportError> {
    if frame.len() <= OFFSET_BYTES {
        return Err(malformed("too short"));
    }
    let offset = frame.split_to(OFFSET_BYTES);
    let offset = u64::from_be_bytes(offset[..].try_into().expect("eight bytes were split off"));
    Ok((offset, frame))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::{Configuration, INDEX_MAX, Position};

    fn offer() -> impl Strategy<Value = Offer> {
        let members = || proptest::collection::btree_set(1u64.., 0..4);
        let term = || prop_oneof![1u64..300, 1..=TERM_MAX];
        let configuration =
            (members(), members(), members()).prop_map(|(voters, outgoing, learners)| {
                Configuration { voters, outgoing, learners, ..Configuration::default() }
            });
        let content = any::<(u64, u32)>()
            .prop_map(|(size_bytes, checksum)| SnapshotContent { size_bytes, checksum });
        (term(), term(), 1..=INDEX_MAX, configuration, content).prop_map(
            |(one, other, index, configuration, content)| {
                let position = Position::new(one.min(other), index);
                let meta = SnapshotMeta::new(position, configuration);
                Offer { term: one.max(other), meta, content }
            },
        )
    }

    fn answer() -> impl Strategy<Value = OfferResponse> {
        prop_oneof![
            any::<u64>().prop_map(|offset| OfferResponse::Accept { offset }),
            Just(OfferResponse::NotNeeded),
            any::<u64>().prop_map(|term| OfferResponse::Stale { term }),
            Just(OfferResponse::Busy),
            Just(OfferResponse::Done),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_and_nothing_less_or_more(
            offer in offer(),
            answer in answer(),
            offset in any::<u64>(),
            data in proptest::collection::vec(any::<u8>(), 1..40),
            more in any::<u8>(),
        ) {
            let frame = encode(&offer);
            prop_assert_eq!(decode_offer(&frame).unwrap(), offer);
            prop_assert!(decode_offer(&[&frame[..], &[more]].concat()).is_err());
            for end in 0..frame.len() {
                prop_assert!(decode_offer(&frame[..end]).is_err());
            }
            let frame = encode(&answer);
            prop_assert_eq!(decode_answer(&frame).unwrap(), answer);
            prop_assert!(decode_answer(&[&frame[..], &[more]].concat()).is_err());
            let (read, rest) = decode_chunk(encode_chunk(offset, &data)).unwrap();
            prop_assert_eq!((read, &rest[..]), (offset, &data[..]));
        }
    }

    /// The header of a snapshot file could not hold such a configuration.
    #[test]
    fn an_offer_that_cannot_be_stored_is_refused() {
        for (id, bytes, is_refused) in [(1, 9, false), (1, 1 << 20, true), (4, 0, true)] {
            let mut configuration = Configuration::of_voters([1, 2, 3]);
            configuration.members.entry(id).or_default().context = vec![0; bytes].into();
            let meta = SnapshotMeta::new(Position::new(1, 1), configuration);
            let offer = Offer { term: 1, meta, content: SnapshotContent::default() };
            assert_eq!(decode_offer(&encode(&offer)).is_err(), is_refused, "node {id}, {bytes}");
        }
    }

    #[test]
    fn a_piece_has_an_offset_and_something_more() {
        assert!(decode_chunk(Bytes::from_static(&[0; 8])).is_err());
        assert!(decode_chunk(Bytes::from_static(&[0; 9])).is_ok());
    }

    /// A follower would take over the term at once, and the index with the snapshot. A position of
    /// a later term than the leader's own would precede all entries that the leader can append.
    #[test]
    fn s15_an_offer_that_no_leader_makes_is_refused() {
        let offer = |term, position| {
            let configuration = Configuration::of_voters([1, 2, 3]);
            let meta = SnapshotMeta::new(position, configuration);
            let content = SnapshotContent { size_bytes: 10, checksum: 99 };
            decode_offer(&encode(&Offer { term, meta, content }))
        };
        assert!(offer(TERM_MAX, Position::new(TERM_MAX, INDEX_MAX)).is_ok());
        for (term, position) in [
            (TERM_MAX + 1, Position::new(1, 1)),
            (u64::MAX, Position::new(u64::MAX, 1)),
            (7, Position::new(8, 1)),
            (7, Position::new(7, INDEX_MAX + 1)),
            (7, Position::new(7, u64::MAX)),
            (7, Position::ZERO),
            (7, Position::new(0, 1)),
            (7, Position::new(1, 0)),
        ] {
            assert!(offer(term, position).is_err(), "{term} {position}");
        }
    }

    /// A frame is `[term, [[term, index], configuration], [size, checksum]]`, one number a byte.
    /// Configuration: `[[voters], [], [], {}, next id, founded, generation, cluster version]`.
    #[test]
    fn what_is_written_in_another_way_is_refused() {
        let with_voters = |voters: &[u8]| {
            let mut frame = vec![0x93, 7, 0x92, 0x92, 6, 5, 0x98, 0x90 | voters.len() as u8];
            frame.extend_from_slice(voters);
            frame.extend_from_slice(&[0x90, 0x90, 0x80, 4, 0xc3, 0, 2, 0x92, 10, 99]);
            frame
        };
        let good = with_voters(&[1, 2, 3]);
        assert_eq!(encode(&decode_offer(&good).unwrap()), good);
        for voters in [&[2, 1][..], &[1, 1], &[0, 1]] {
            assert!(decode_offer(&with_voters(voters)).is_err(), "{voters:?}");
        }
        let mut wide = good.clone();
        wide.splice(1..2, [0xcc, 7]);
        assert!(decode_offer(&wide).is_err(), "a number in more bytes than it needs");
        let mut millions = good[..7].to_vec();
        millions.extend([0xdd, 0xff, 0xff, 0xff, 0xff, 1]);
        assert!(decode_offer(&millions).is_err(), "four billion voters");
        let named = b"\x81\xa6Accept\x81\xa6offset\x05";
        assert!(decode_answer(named).is_err(), "a field by its name");
    }
}
