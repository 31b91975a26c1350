//! One batch before it is written: its operations, and their records in one buffer.
//!
//! The records are encoded one after the other and masked together, because a keystream that begins
//! anew for each small record costs twice as much. A masked record:
//!
//! ```text
//! +--------+-----------+--------+----------------------+------------+
//! | tag u8 | nonce u64 | at u32 | body XOR keystream   | CRC32C u32 |
//! +--------+-----------+--------+----------------------+------------+
//!   nonce: of the batch        at: where the body begins in the nonce's keystream
//! ```
//!
//! The checksum covers the record as it is on disk.

use std::ops::Range;

use super::keys::Key;
use super::log_key::LogKey;
use crate::record::{CHECKSUM_BYTES, Damage, Fields, unseal};

/// Tag, nonce and `at`, before the body.
const HEADER_BYTES: usize = 1 + 8 + 4;

/// The operations of RocksDB's write batch (`db/write_batch.cc`).
pub(crate) const OPERATION_PUT: u8 = 0x01;
pub(crate) const OPERATION_DELETE: u8 = 0x00;
const OPERATION_LOG_DATA: u8 = 0x03;
pub(crate) const OPERATION_DELETE_RANGE: u8 = 0x0f;

#[derive(Clone, Debug)]
enum Operation {
    Put { key: Key, tag: u8, record: Range<usize> },
    Delete { key: Key },
    DeleteRange { from: Key, to: Key },
}

/// A sealed operation.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Sealed<'a> {
    Put { key: Key, record: &'a [u8] },
    Delete { key: Key },
    DeleteRange { from: Key, to: Key },
}

/// The operations of a batch, which follow its mark. A draft is reused for its memory.
#[derive(Debug, Default)]
pub(crate) struct Draft {
    records: Vec<u8>,
    operations: Vec<Operation>,
}

impl Draft {
    pub(crate) fn clear(&mut self) {
        self.records.clear();
        self.operations.clear();
    }

    /// Frees the memory if it is more than `bytes_max`.
    pub(crate) fn shrink(&mut self, bytes_max: usize) {
        if self.records.capacity() > bytes_max {
            *self = Self::default();
        }
    }

    /// Bytes of all records.
    pub(crate) fn record_bytes(&self) -> usize {
        self.records.len()
    }

    pub(crate) fn operation_count(&self) -> usize {
        self.operations.len()
    }

    /// Adds the put of a record whose body is what `body` appends.
    pub(crate) fn put(&mut self, key: Key, tag: u8, body: impl FnOnce(&mut Vec<u8>)) {
        let start = self.records.len();
        self.records.resize(start + HEADER_BYTES, 0);
        body(&mut self.records);
        assert!(self.records.len() >= start + HEADER_BYTES, "a body only appends");
        self.records.resize(self.records.len() + CHECKSUM_BYTES, 0);
        let record = start..self.records.len();
        self.operations.push(Operation::Put { key, tag, record });
    }

    pub(crate) fn delete(&mut self, key: Key) {
        self.operations.push(Operation::Delete { key });
    }

    pub(crate) fn delete_range(&mut self, from: Key, to: Key) {
        assert!(from < to, "a range has a key");
        self.operations.push(Operation::DeleteRange { from, to });
    }

    /// Masks and seals all records; returns the checksum of the operations as RocksDB will write
    /// them, for the mark. Must be called only once: a second call would remove the mask again.
    pub(crate) fn seal(&mut self, key: &LogKey, nonce: u64) -> u32 {
        key.mask(nonce, 0, &mut self.records);
        let mut content = Content::default();
        let mut sealed_bytes = 0;
        for operation in &self.operations {
            match operation {
                Operation::Put { key, tag, record } => {
                    assert_eq!(record.start, sealed_bytes, "records follow each other");
                    sealed_bytes = record.end;
                    let at = u32::try_from(record.start + HEADER_BYTES)
                        .expect("a batch is far smaller than 4 GiB");
                    let record = &mut self.records[record.clone()];
                    record[0] = *tag;
                    record[1..9].copy_from_slice(&nonce.to_be_bytes());
                    record[9..HEADER_BYTES].copy_from_slice(&at.to_be_bytes());
                    let (sealed, checksum) = record.split_at_mut(record.len() - CHECKSUM_BYTES);
                    checksum.copy_from_slice(&crc32c::crc32c(sealed).to_be_bytes());
                    content.put(key.as_ref(), record);
                }
                Operation::Delete { key } => content.add(&[OPERATION_DELETE], key.as_ref()),
                Operation::DeleteRange { from, to } => content.delete_range(*from, *to),
            }
        }
        assert_eq!(sealed_bytes, self.records.len(), "every masked byte is sealed");
        content.0
    }

    /// The operations in their order, after [`Draft::seal`].
    pub(crate) fn sealed(&self) -> impl Iterator<Item = Sealed<'_>> {
        self.operations.iter().map(|operation| match operation {
            Operation::Put { key, record, .. } => {
                Sealed::Put { key: *key, record: &self.records[record.clone()] }
            }
            Operation::Delete { key } => Sealed::Delete { key: *key },
            Operation::DeleteRange { from, to } => Sealed::DeleteRange { from: *from, to: *to },
        })
    }
}

/// The checksum of a filler as RocksDB writes it.
pub(crate) fn content_of_filler(filler: &[u8]) -> u32 {
    let mut content = Content::default();
    content.add(&[OPERATION_LOG_DATA], filler);
    content.0
}

/// The checksum of a put as RocksDB writes it.
pub(crate) fn content_of_put(key: &[u8], value: &[u8]) -> u32 {
    let mut content = Content::default();
    content.put(key, value);
    content.0
}

/// Checksum of operations in the encoding of RocksDB's write batch: a byte for the kind, then each
/// key and value with its length in front.
#[derive(Default)]
struct Content(u32);

impl Content {
    fn put(&mut self, key: &[u8], record: &[u8]) {
        let mut head = [0; 2 + 16];
        head[..2].copy_from_slice(&[OPERATION_PUT, key.len() as u8]);
        head[2..2 + key.len()].copy_from_slice(key);
        self.add(&head[..2 + key.len()], record);
    }

    fn delete_range(&mut self, from: Key, to: Key) {
        let (from, to) = (from.as_ref(), to.as_ref());
        let mut head = vec![OPERATION_DELETE_RANGE, from.len() as u8];
        head.extend_from_slice(from);
        self.add(&head, to);
    }

    /// Adds `head`, the length of `bytes`, and `bytes`.
    fn add(&mut self, head: &[u8], bytes: &[u8]) {
        let mut buffer = [0; 32];
        buffer[..head.len()].copy_from_slice(head);
        let mut end = head.len();
        // LEB128, as RocksDB's varint32.
        let mut length = u32::try_from(bytes.len()).expect("far smaller than 4 GiB");
        while length >= 0x80 {
            buffer[end] = length as u8 | 0x80;
            length >>= 7;
            end += 1;
        }
        buffer[end] = length as u8;
        self.0 = crc32c::crc32c_append(self.0, &buffer[..=end]);
        self.0 = crc32c::crc32c_append(self.0, bytes);
    }
}

/// Returns the body of a masked record, if checksum and tag are right.
pub(crate) fn unmask(tag: u8, bytes: &[u8], key: &LogKey) -> Result<Vec<u8>, Damage> {
    let mut fields = unseal(tag, bytes)?;
    let (nonce, at) = (fields.u64()?, fields.u32()?);
    let Fields(body) = fields;
    let mut body = body.to_vec();
    key.mask(nonce, at as usize, &mut body);
    Ok(body)
}
