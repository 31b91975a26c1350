//! Checks that no decoder allocates memory only because a length field claims a size. Shared by the
//! fuzz targets, the replay in `integration-tests/tests/decoders`, and the tests of the `kv`
//! binary.

/// Bytes allowed regardless of the input: buffers, and the most that serde reserves for a claimed
/// length.
const START_BYTES_MAX: u64 = 4 << 20;

/// Bytes allowed for each byte of input. The worst case is an empty command: its one byte becomes
/// an entry, in a vector that has just grown, and it exists twice, because the decoded value is
/// encoded and decoded again.
const BYTES_PER_BYTE_MAX: u64 = 1024;

/// Runs the decoder and checks the peak of the memory that it allocates.
pub(crate) fn within_bounds(bytes: &[u8], decoder: fn(&[u8])) {
    let taken = allocation_counter::measure(|| decoder(bytes)).bytes_max;
    let allowed = START_BYTES_MAX + BYTES_PER_BYTE_MAX * bytes.len() as u64;
    assert!(taken <= allowed, "{taken} bytes of memory were taken for {} bytes", bytes.len());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A decoder with the bug that the check looks for: it trusts the length prefix.
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

    /// No single allocation is large, and all are freed before the end.
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
