//! No decoder takes memory because a length says so. Shared by the fuzz targets and the replay in
//! `integration-tests/tests/decoders`.

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
