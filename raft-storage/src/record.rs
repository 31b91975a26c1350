//! A sealed record: the envelope of all data that this crate stores.
//!
//! ```text
//! +--------+----------------+------------------+
//! | tag u8 | body           | CRC32C u32       |   numbers are big-endian;
//! +--------+----------------+------------------+   the CRC covers tag and body
//! ```
//!
//! The tag gives the kind of the record, so that a record in another one's place is detected.
//! Decoding is strict: a record must be read to its last byte.

use std::fmt;

/// Why bytes are not the record that they should be. The caller adds where they were read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Damage(pub(crate) String);

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Length of the checksum at the end of a record.
pub(crate) const CHECKSUM_BYTES: usize = 4;

/// Seals the bytes that `body` appends.
pub(crate) fn seal(tag: u8, body: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = vec![tag];
    body(&mut out);
    assert_eq!(out[0], tag, "a body only appends");
    let checksum = crc32c::crc32c(&out);
    out.extend_from_slice(&checksum.to_be_bytes());
    out
}

/// The fields of a sealed record whose checksum and tag are right.
pub(crate) fn unseal(tag: u8, bytes: &[u8]) -> Result<Fields<'_>, Damage> {
    let Some(sealed_len) = bytes.len().checked_sub(CHECKSUM_BYTES).filter(|len| *len >= 1) else {
        return Err(Damage(format!("only {} bytes long", bytes.len())));
    };
    let (sealed, stored) = bytes.split_at(sealed_len);
    let stored = Fields(stored).u32()?;
    let computed = crc32c::crc32c(sealed);
    if stored != computed {
        return Err(Damage(format!("checksum {computed:08x}, but {stored:08x} was stored")));
    }
    if sealed[0] != tag {
        return Err(Damage(format!("a record of tag {:02x} where {tag:02x} belongs", sealed[0])));
    }
    Ok(Fields(&sealed[1..]))
}

/// Reads fixed-width fields from the front.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn bytes(&mut self, len: usize) -> Result<&'a [u8], Damage> {
        let Some((head, tail)) = self.0.split_at_checked(len) else {
            return Err(Damage(format!("a field of {len} bytes, {} are left", self.0.len())));
        };
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Damage> {
        let bytes = self.bytes(N)?;
        Ok(bytes.try_into().expect("bytes() returns as many as were asked for"))
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Damage> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Damage> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Damage> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Damage> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    /// Fails if bytes are left over.
    pub(crate) fn done(self) -> Result<(), Damage> {
        match self.0.len() {
            0 => Ok(()),
            left => Err(Damage(format!("{left} bytes left over"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let sealed = seal(b'x', |out| out.extend_from_slice(b"some body"));
        let mut fields = unseal(b'x', &sealed).unwrap();
        assert_eq!(fields.bytes(9).unwrap(), b"some body");
        fields.done().unwrap();
        for bit in 0..sealed.len() * 8 {
            let mut damaged = sealed.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(unseal(b'x', &damaged).is_err(), "bit {bit}");
        }
        for len in 0..sealed.len() {
            assert!(unseal(b'x', &sealed[..len]).is_err(), "cut to {len}");
        }
    }

    #[test]
    fn another_tag_leftovers_and_missing_fields_are_refused() {
        let sealed = seal(b'x', |out| out.extend_from_slice(&7u16.to_be_bytes()));
        assert!(unseal(b'y', &sealed).is_err());
        assert!(unseal(b'x', &sealed).unwrap().u32().is_err());
        let mut fields = unseal(b'x', &sealed).unwrap();
        assert_eq!(fields.u8().unwrap(), 0);
        assert!(fields.done().is_err());
    }
}
