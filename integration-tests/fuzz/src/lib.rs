//! What all targets share: a decoder is run, and what it takes of memory is held against what it was given.

mod memory;

/// Runs a decoder on any bytes.
pub fn run(bytes: &[u8], decoder: fn(&[u8])) {
    memory::within_bounds(bytes, decoder);
}
