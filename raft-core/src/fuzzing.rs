//! The decoders of this crate as a fuzzer sees them; not part of its interface.
//!
//! Each function takes any bytes. If they decode, the value must encode to the same bytes again,
//! and must keep what the decoder promises. `integration-tests/fuzz` runs these functions on
//! generated inputs, and `integration-tests/tests/decoders` on the inputs that were found.

use bytes::Bytes;

use crate::codec::{Encoder, LENGTH_BYTES, Version, check, decode};
use crate::driver::snapshots::wire::{
    decode_answer, decode_chunk, decode_offer, encode, encode_chunk,
};

/// The body of a message's frame.
pub fn message(frame: &[u8]) {
    let Ok(message) = decode(Version::NEWEST, Bytes::copy_from_slice(frame)) else { return };
    assert_eq!(check(&message), Ok(()));
    let mut encoder = Encoder::new(Version::NEWEST);
    encoder.push(&message).expect("what came in a frame fits into one");
    let written = Bytes::from(encoder.take().concat());
    assert_eq!(decode(Version::NEWEST, written.slice(LENGTH_BYTES..)).as_ref(), Ok(&message));
}

/// The frames of a snapshot transfer: an offer, a response, a chunk.
pub fn snapshot_frame(frame: &[u8]) {
    if let Ok(offer) = decode_offer(frame) {
        assert_eq!(encode(&offer), frame);
        assert!(offer.meta.position.is_in_range() && offer.meta.position.term <= offer.term);
        assert!(!offer.meta.configuration.is_member(0));
    }
    if let Ok(answer) = decode_answer(frame) {
        assert_eq!(encode(&answer), frame);
    }
    if let Ok((offset, data)) = decode_chunk(Bytes::copy_from_slice(frame)) {
        assert!(!data.is_empty());
        assert_eq!(encode_chunk(offset, &data), frame);
    }
}
