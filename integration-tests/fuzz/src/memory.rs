//! No decoder takes memory because a length says so. Shared by the fuzz targets, the replay in
//! `integration-tests/tests/decoders`, and the tests of the `kv` binary.

/// What may be taken for a start: buffers, and what serde reserves for a claimed length at most.
const START_BYTES_MAX: u64 = 4 << 20;

/// What a byte may come to: an empty command, of one byte, becomes an entry, which is kept in a vector
/// that has just grown, twice over because what was decoded is written and read again.
const BYTES_PER_BYTE_MAX: u64 = 1024;

/// Runs the decoder and counts.
pub(crate) fn within_bounds(bytes: &[u8], decoder: fn(&[u8])) {
    let taken = allocation_counter::measure(|| decoder(bytes)).bytes_max;
    let allowed = START_BYTES_MAX + BYTES_PER_BYTE_MAX * bytes.len() as u64;
    assert!(taken <= allowed, "{taken} bytes of memory were taken for {} bytes", bytes.len());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As no decoder may be: it believes the length that comes first.
    fn believes_a_length(bytes: &[u8]) {
        let Some((claimed, rest)) = bytes.split_first_chunk::<4>() else { return };
        let mut body = Vec::with_capacity(u32::from_be_bytes(*claimed) as usize);
        body.extend_from_slice(rest);
        assert!(std::hint::black_box(body).ends_with(rest));
    }

    #[test]
    fn what_may_be_taken_for_a_start_may_be_claimed() {
        within_bounds(&(START_BYTES_MAX as u32).to_be_bytes(), believes_a_length);
    }

    #[test]
    #[should_panic(expected = "bytes of memory were taken for 4 bytes")]
    fn a_length_that_is_believed_is_noticed() {
        let beyond = START_BYTES_MAX + 4 * BYTES_PER_BYTE_MAX + 1;
        within_bounds(&(beyond as u32).to_be_bytes(), believes_a_length);
    }

    /// No piece of it is large, and it is given back before the end.
    #[test]
    #[should_panic(expected = "bytes of memory were taken for 2 bytes")]
    fn a_count_that_is_believed_is_noticed() {
        within_bounds(&u16::MAX.to_be_bytes(), |bytes| {
            let count = u16::from_be_bytes([bytes[0], bytes[1]]);
            let pieces: Vec<Vec<u8>> = (0..count).map(|_| Vec::with_capacity(100)).collect();
            drop(std::hint::black_box(pieces));
        });
    }
}
