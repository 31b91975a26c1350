//! Write-ahead files made by hand, for tests and for the fuzzer.

use super::{
    BLOCK_BYTES, BatchMark, KEY_BATCH, OPERATION_PUT, REUSABLE_HEADER_BYTES,
    WRITE_BATCH_HEADER_BYTES, mask,
};
use crate::format::records::{BATCH_MARK_BYTES, encode_batch_mark};

/// Writes a file as RocksDB does.
#[derive(Default)]
pub(crate) struct Wal {
    pub(crate) number: u32,
    pub(crate) bytes: Vec<u8>,
}

impl Wal {
    pub(crate) fn new(number: u32) -> Self {
        Self { number, bytes: Vec::new() }
    }

    /// A batch of ours with `filler` bytes of operations behind the mark.
    pub(crate) fn batch(mut self, number: u64, durable_through: u64, filler: usize) -> Self {
        let mut record = vec![0; WRITE_BATCH_HEADER_BYTES];
        record.extend([OPERATION_PUT, 1, KEY_BATCH[0], BATCH_MARK_BYTES as u8]);
        record.extend(encode_batch_mark(BatchMark { number, durable_through }));
        record.resize(record.len() + filler, 0x77);
        self.record(&record);
        self
    }

    fn record(&mut self, record: &[u8]) {
        let mut rest = record;
        let mut is_first = true;
        loop {
            let mut left = BLOCK_BYTES - self.bytes.len() % BLOCK_BYTES;
            if left < REUSABLE_HEADER_BYTES {
                self.bytes.resize(self.bytes.len() + left, 0);
                left = BLOCK_BYTES;
            }
            let len = rest.len().min(left - REUSABLE_HEADER_BYTES);
            let (now, later) = rest.split_at(len);
            let kind = match (is_first, later.is_empty()) {
                (true, true) => 5,
                (true, false) => 6,
                (false, false) => 7,
                (false, true) => 8,
            };
            let mut checked = vec![kind];
            checked.extend(self.number.to_le_bytes());
            checked.extend(now);
            self.bytes.extend(mask(crc32c::crc32c(&checked)).to_le_bytes());
            self.bytes.extend((len as u16).to_le_bytes());
            self.bytes.extend(checked);
            (rest, is_first) = (later, false);
            if rest.is_empty() {
                return;
            }
        }
    }
}
