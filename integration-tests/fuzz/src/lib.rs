//! Shared by all targets: runs a decoder and checks the memory that it allocates against the size
//! of its input.

mod memory;

/// Runs a decoder on any bytes.
pub fn run(bytes: &[u8], decoder: fn(&[u8])) {
    memory::within_bounds(bytes, decoder);
}
