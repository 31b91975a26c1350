//! CRC32C (Castagnoli), for storages that bring no checksum of their own.
//!
//! A table of 256 words, one byte at a time: some 400 MB/s. A backend with large snapshots may
//! prefer an implementation that uses the processor's CRC32C instruction; the checksums are the
//! same.

/// The reflected polynomial.
const POLYNOMIAL: u32 = 0x82f6_3b78;

const TABLE: [u32; 256] = table();

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut word = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            word = (word >> 1) ^ (POLYNOMIAL & (word & 1).wrapping_neg());
            bit += 1;
        }
        table[byte] = word;
        byte += 1;
    }
    table
}

/// A running checksum over bytes; the default is the checksum of no bytes.
///
/// ```
/// let mut checksum = raft_core::checksum::Crc32c::default();
/// checksum.update(b"1234");
/// checksum.update(b"56789");
/// assert_eq!(checksum.value(), 0xe306_9283);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crc32c(u32);

impl Default for Crc32c {
    fn default() -> Self {
        Self(!0)
    }
}

impl Crc32c {
    /// Appends bytes to those so far.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |checksum, byte| {
            (checksum >> 8) ^ TABLE[usize::from(checksum as u8 ^ byte)]
        });
    }

    /// Returns the checksum of all bytes so far.
    #[must_use]
    pub fn value(self) -> u32 {
        !self.0
    }
}

/// Returns the checksum of these bytes.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    let mut checksum = Crc32c::default();
    checksum.update(bytes);
    checksum.value()
}
