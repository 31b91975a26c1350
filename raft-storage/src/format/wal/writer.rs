//! Writes write-ahead files without RocksDB, for tests and for the fuzzer.

use super::fragment::{BLOCK_BYTES, NUMBERED_HEADER_BYTES, mask};
use super::{BatchMark, KEY_BATCH, OPERATION_PUT, WRITE_BATCH_HEADER_BYTES};
use crate::format::draft::{Draft, OPERATION_DELETE, OPERATION_DELETE_RANGE, Sealed};
use crate::format::log_key::{LOG_KEY_BYTES, LogKey};
use crate::format::records::{BATCH_MARK_BYTES, encode_batch_mark};

/// The secret of a log in tests; each seed gives another one.
pub(crate) fn key_of(seed: u8) -> LogKey {
    LogKey::new(&[seed; LOG_KEY_BYTES])
}

/// The kind of header that fragments get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Header {
    /// Names the file, as in files that are reused.
    Numbered,
    /// Does not name the file.
    Legacy,
}

/// Writes a file as RocksDB does.
pub(crate) struct Wal {
    pub(crate) number: u32,
    pub(crate) bytes: Vec<u8>,
    pub(crate) header: Header,
    key: LogKey,
}

impl Wal {
    /// A file of the log with this secret.
    pub(crate) fn of(key: LogKey, number: u32) -> Self {
        Self { number, bytes: Vec::new(), header: Header::Numbered, key }
    }

    /// A file of the log with the first secret.
    pub(crate) fn new(number: u32) -> Self {
        Self::of(key_of(1), number)
    }

    /// The same file with other bytes in it.
    pub(crate) fn with_bytes(number: u32, bytes: Vec<u8>) -> Self {
        Self { bytes, ..Self::new(number) }
    }

    /// Adds a batch of this log with `filler` bytes of operations after the mark.
    pub(crate) fn batch(self, number: u64, durable_through: u64, filler: usize) -> Self {
        let operations = vec![0x77; filler];
        let content = crc32c::crc32c(&operations);
        self.marked(BatchMark { number, durable_through, content }, &operations)
    }

    /// Adds a batch with the draft's operations, and with the sequence number that RocksDB has
    /// reached.
    pub(crate) fn draft(
        self,
        numbers: (u64, u64),
        sequence: u64,
        draft: &mut Draft,
        nonce: u64,
    ) -> Self {
        let content = draft.seal(&self.key, nonce);
        let mut operations = Vec::new();
        for operation in draft.sealed() {
            match operation {
                Sealed::Put { key, record } => {
                    operations.push(OPERATION_PUT);
                    put_string(&mut operations, key.as_ref());
                    put_string(&mut operations, record);
                }
                Sealed::Delete { key } => {
                    operations.push(OPERATION_DELETE);
                    put_string(&mut operations, key.as_ref());
                }
                Sealed::DeleteRange { from, to } => {
                    operations.push(OPERATION_DELETE_RANGE);
                    put_string(&mut operations, from.as_ref());
                    put_string(&mut operations, to.as_ref());
                }
            }
        }
        assert_eq!(content, crc32c::crc32c(&operations), "as RocksDB writes them");
        let (number, durable_through) = numbers;
        let mark = BatchMark { number, durable_through, content };
        let count = 1 + draft.operation_count() as u32;
        let mut record = Vec::new();
        record.extend_from_slice(&sequence.to_le_bytes());
        record.extend_from_slice(&count.to_le_bytes());
        self.headed(record, mark, &operations)
    }

    /// Adds the batch without operations with which RocksDB begins a file after damage.
    pub(crate) fn empty_batch(mut self, sequence: u64) -> Self {
        let mut record = sequence.to_le_bytes().to_vec();
        record.extend_from_slice(&0u32.to_le_bytes());
        self.record(&record);
        self
    }

    pub(crate) fn marked(self, mark: BatchMark, operations: &[u8]) -> Self {
        self.headed(vec![0; WRITE_BATCH_HEADER_BYTES], mark, operations)
    }

    fn headed(mut self, mut record: Vec<u8>, mark: BatchMark, operations: &[u8]) -> Self {
        assert_eq!(record.len(), WRITE_BATCH_HEADER_BYTES);
        record.extend([OPERATION_PUT, 1, KEY_BATCH[0], BATCH_MARK_BYTES as u8]);
        record.extend(encode_batch_mark(mark, &self.key));
        record.extend_from_slice(operations);
        self.record(&record);
        self
    }

    /// Adds any record.
    pub(crate) fn record(&mut self, record: &[u8]) {
        let header_bytes = match self.header {
            Header::Numbered => NUMBERED_HEADER_BYTES,
            Header::Legacy => NUMBERED_HEADER_BYTES - 4,
        };
        let mut rest = record;
        let mut is_first = true;
        loop {
            let mut left = BLOCK_BYTES - self.bytes.len() % BLOCK_BYTES;
            if left < header_bytes {
                self.bytes.resize(self.bytes.len() + left, 0);
                left = BLOCK_BYTES;
            }
            let len = rest.len().min(left - header_bytes);
            let (now, later) = rest.split_at(len);
            let kind = match (is_first, later.is_empty()) {
                (true, true) => 1,
                (true, false) => 2,
                (false, false) => 3,
                (false, true) => 4,
            };
            self.fragment(kind, now);
            (rest, is_first) = (later, false);
            if rest.is_empty() {
                return;
            }
        }
    }

    /// Adds one fragment; `kind` is the type in the legacy header.
    pub(crate) fn fragment(&mut self, kind: u8, payload: &[u8]) {
        let mut checked = match self.header {
            Header::Numbered => vec![kind + 4],
            Header::Legacy => vec![kind],
        };
        if self.header == Header::Numbered {
            checked.extend(self.number.to_le_bytes());
        }
        checked.extend(payload);
        self.bytes.extend(mask(crc32c::crc32c(&checked)).to_le_bytes());
        self.bytes.extend((payload.len() as u16).to_le_bytes());
        self.bytes.extend(checked);
    }
}

/// A string as RocksDB puts it into a write batch.
fn put_string(out: &mut Vec<u8>, bytes: &[u8]) {
    let mut length = bytes.len();
    while length >= 0x80 {
        out.push(length as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend_from_slice(bytes);
}
