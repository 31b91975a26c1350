//! The values of a key that matter: those that were observed or compared with, and their prefixes.
//!
//! A value that is not a prefix of any of these can never be observed again, whatever is appended
//! to it. All such values are one, [`Value::Dead`], which keeps the search small. Every other value
//! is kept as a range of the sorted values, so a value of any length is a few numbers.

use bytes::Bytes;

/// The value stored under a key, up to differences that no client could observe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Value {
    Missing,
    Dead,
    /// The first `len` bytes of the values in `first..end`, and of no others.
    Live {
        first: u32,
        end: u32,
        len: u32,
    },
}

#[derive(Debug)]
pub(super) struct Live {
    /// Sorted, without duplicates.
    values: Vec<Bytes>,
}

impl Live {
    pub(super) fn new(mut values: Vec<Bytes>) -> Self {
        values.sort_unstable();
        values.dedup();
        assert!(u32::try_from(values.len()).is_ok(), "more values than can be numbered");
        Self { values }
    }

    /// Appends `tail` to the value `from`; a missing value counts as empty.
    pub(super) fn extend(&self, from: Value, tail: &[u8]) -> Value {
        let (first, end, len) = match from {
            Value::Dead => return Value::Dead,
            Value::Missing => (0, self.values.len(), 0),
            Value::Live { first, end, len } => (first as usize, end as usize, len as usize),
        };
        let range = &self.values[first..end];
        let before = range.partition_point(|value| &value[len..] < tail);
        let count = range[before..].partition_point(|value| value[len..].starts_with(tail));
        if count == 0 {
            return Value::Dead;
        }
        let number = |number: usize| u32::try_from(number).expect("values have less than 4 GiB");
        Value::Live {
            first: number(first + before),
            end: number(first + before + count),
            len: number(len + tail.len()),
        }
    }

    /// The value with these bytes.
    pub(super) fn place(&self, value: &[u8]) -> Value {
        self.extend(Value::Missing, value)
    }

    /// Returns true if the bytes occur anywhere in a live value.
    pub(super) fn contains(&self, bytes: &[u8]) -> bool {
        if bytes.is_empty() {
            return true;
        }
        let longest = self.values.iter().enumerate().filter(|(at, value)| {
            !self.values.get(at + 1).is_some_and(|next| next.starts_with(value))
        });
        longest.into_iter().any(|(_, value)| value.windows(bytes.len()).any(|part| part == bytes))
    }

    /// The bytes of a live value.
    pub(super) fn bytes(&self, first: u32, len: u32) -> &[u8] {
        &self.values[first as usize][..len as usize]
    }
}
