//! What the two ends of a snapshot transfer say to each other, one frame each.
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
//! Offer and answers are MessagePack; leftovers and offers that no leader makes are refused. The whole content is verified against
//! its checksum by the follower's storage before anything is published.

use bytes::{BufMut, Bytes, BytesMut};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::transport::TransportError;
use crate::types::{SnapshotContent, SnapshotMeta, Term};

pub(super) const CHUNK_BYTES: usize = 256 << 10;
const OFFSET_BYTES: usize = 8;
/// No cluster reaches it; a node that took over such a term could not campaign any more.
const TERM_MAX: Term = (1 << 63) - 1;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Offer {
    pub(super) term: Term,
    pub(super) meta: SnapshotMeta,
    pub(super) content: SnapshotContent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Answer {
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

pub(super) fn encode<T: Serialize>(value: &T) -> Bytes {
    rmp_serde::to_vec(value).expect("plain data always encodes").into()
}

pub(super) fn decode<T: DeserializeOwned>(frame: &[u8]) -> Result<T, TransportError> {
    let mut rest = frame;
    let value = rmp_serde::from_read(&mut rest)
        .map_err(|error| TransportError::new(format!("malformed snapshot frame: {error}")))?;
    match rest.is_empty() {
        true => Ok(value),
        false => Err(TransportError::new("malformed snapshot frame: bytes left over")),
    }
}

/// An offer that a leader can have made: of a snapshot of something, from its own term at the latest.
pub(super) fn decode_offer(frame: &[u8]) -> Result<Offer, TransportError> {
    let offer: Offer = decode(frame)?;
    let Offer { term, meta, .. } = &offer;
    let position = meta.position;
    if *term > TERM_MAX || position.term > *term || position.term == 0 || position.index == 0 {
        return Err(TransportError::new(format!(
            "malformed snapshot frame: a snapshot at {position} in term {term}"
        )));
    }
    Ok(offer)
}

pub(super) fn encode_chunk(offset: u64, data: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(OFFSET_BYTES + data.len());
    frame.put_u64(offset);
    frame.put_slice(data);
    frame.freeze()
}

pub(super) fn decode_chunk(mut frame: Bytes) -> Result<(u64, Bytes), TransportError> {
    if frame.len() <= OFFSET_BYTES {
        return Err(TransportError::new("malformed snapshot frame: too short"));
    }
    let offset = frame.split_to(OFFSET_BYTES);
    let offset = u64::from_be_bytes(offset[..].try_into().expect("eight bytes were split off"));
    Ok((offset, frame))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Configuration, Position};

    /// S15: a position from beyond the leader's own term would come before every entry that this
    /// node or its followers can ever append.
    #[test]
    fn s15_an_offer_that_no_leader_makes_is_refused() {
        let decoded = |term, position| {
            let meta = SnapshotMeta { position, configuration: Configuration::of_voters([1]) };
            let content = SnapshotContent { size_bytes: 10, checksum: 99 };
            decode_offer(&encode(&Offer { term, meta, content }))
        };
        assert!(decoded(7, Position::new(7, 1)).is_ok());
        assert!(decoded(TERM_MAX, Position::new(7, 1)).is_ok());
        assert!(decoded(7, Position::new(8, 1)).is_err(), "beyond the leader's own term");
        assert!(decoded(TERM_MAX + 1, Position::new(7, 1)).is_err(), "a term made up");
        assert!(decoded(7, Position::ZERO).is_err(), "of nothing");
        assert!(decoded(7, Position::new(0, 1)).is_err(), "no entry is of term 0");
    }

    #[test]
    fn frames_round_trip_and_leftovers_are_refused() {
        let offer = Offer {
            term: 7,
            meta: SnapshotMeta {
                position: Position::new(6, 500),
                configuration: Configuration::of_voters([1, 2, 3]),
            },
            content: SnapshotContent { size_bytes: 10, checksum: 99 },
        };
        let frame = encode(&offer);
        assert_eq!(decode::<Offer>(&frame).unwrap(), offer);
        let mut longer = frame.to_vec();
        longer.push(0);
        assert!(decode::<Offer>(&longer).is_err());
        for end in 0..frame.len() {
            assert!(decode::<Offer>(&frame[..end]).is_err());
        }
        let (offset, data) = decode_chunk(encode_chunk(5, b"abc")).unwrap();
        assert_eq!((offset, &data[..]), (5, &b"abc"[..]));
        assert!(decode_chunk(Bytes::from_static(&[0; 8])).is_err());
    }
}
