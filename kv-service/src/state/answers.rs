//! The outputs that a session remembers: ascending by sequence number, each number once.
//!
//! Most sessions have a single client that waits for each response before its next request, and
//! keep one output. That one is stored inline. Only further ones take memory of their own, which is
//! freed with them.

use std::collections::VecDeque;

use crate::protocol::operation::{Refusal, WriteResponse};

/// The output of executing a write.
pub(super) type Outcome = Result<WriteResponse, Refusal>;

/// A remembered output. In 24 bytes, because there are as many as clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    /// Digest of the executed operation: a repeated request must carry the same one (S9).
    pub(super) digest: u32,
    pub(super) kind: Kind,
    /// Revision and version of an executed write; size and limit, in bytes, of a refused one.
    pub(super) numbers: [u64; 2],
}

const UNCHANGED: u8 = 0;
const CHANGED: u8 = 1;
const VALUE_TOO_LARGE: u8 = 2;
const KEY_OUT_OF_RANGE: u8 = 3;

/// The kinds of outputs that are kept, by their tags in the encoding of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Unchanged = UNCHANGED,
    Changed = CHANGED,
    ValueTooLarge = VALUE_TOO_LARGE,
    KeyOutOfRange = KEY_OUT_OF_RANGE,
}

impl Kind {
    pub(super) fn of(tag: u8) -> Option<Self> {
        match tag {
            UNCHANGED => Some(Kind::Unchanged),
            CHANGED => Some(Kind::Changed),
            VALUE_TOO_LARGE => Some(Kind::ValueTooLarge),
            KEY_OUT_OF_RANGE => Some(Kind::KeyOutOfRange),
            _ => None,
        }
    }
}

impl Kept {
    pub(super) fn new(digest: u32, outcome: Outcome) -> Self {
        let (kind, numbers) = match outcome {
            Ok(WriteResponse { revision, changed: false, version }) => {
                (Kind::Unchanged, [revision, version])
            }
            Ok(WriteResponse { revision, changed: true, version }) => {
                (Kind::Changed, [revision, version])
            }
            Err(Refusal::ValueTooLarge { size_bytes, limit_bytes }) => {
                (Kind::ValueTooLarge, [size_bytes, limit_bytes])
            }
            Err(Refusal::KeyOutOfRange { size_bytes, limit_bytes }) => {
                (Kind::KeyOutOfRange, [size_bytes, limit_bytes])
            }
            Err(
                Refusal::UnknownSession
                | Refusal::Forgotten
                | Refusal::WindowExceeded
                | Refusal::OtherOperation,
            ) => unreachable!("refusals by the table itself are not kept"),
        };
        Self { digest, kind, numbers }
    }

    pub(super) fn outcome(&self) -> Outcome {
        let [first, second] = self.numbers;
        let written = |changed| WriteResponse { revision: first, changed, version: second };
        let (size_bytes, limit_bytes) = (first, second);
        match self.kind {
            Kind::Unchanged => Ok(written(false)),
            Kind::Changed => Ok(written(true)),
            Kind::ValueTooLarge => Err(Refusal::ValueTooLarge { size_bytes, limit_bytes }),
            Kind::KeyOutOfRange => Err(Refusal::KeyOutOfRange { size_bytes, limit_bytes }),
        }
    }
}

type Answer = (u64, Kept);

#[derive(Clone, Debug)]
pub(super) enum Answers {
    AtMostOne(Option<Answer>),
    /// Boxed, because the queue itself is larger than one output.
    #[allow(clippy::box_collection, reason = "the size of the enum is what counts")]
    Many(Box<VecDeque<Answer>>),
}

const _: () = assert!(size_of::<Answers>() == 32);

impl Answers {
    pub(super) const fn new() -> Self {
        Self::AtMostOne(None)
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::AtMostOne(answer) => usize::from(answer.is_some()),
            Self::Many(answers) => answers.len(),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Answer> {
        let (one, many) = match self {
            Self::AtMostOne(answer) => (answer.as_ref(), None),
            Self::Many(answers) => (None, Some(answers.iter())),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }

    pub(super) fn get(&self, sequence: u64) -> Option<Kept> {
        match self {
            Self::AtMostOne(answer) => {
                answer.filter(|(answered, _)| *answered == sequence).map(|(_, kept)| kept)
            }
            Self::Many(answers) => {
                let place = answers.binary_search_by_key(&sequence, |(answered, _)| *answered);
                place.ok().map(|place| answers[place].1)
            }
        }
    }

    /// Remembers an output.
    ///
    /// # Panics
    /// If there is an output for that sequence number already.
    pub(super) fn insert(&mut self, sequence: u64, kept: Kept) {
        if let Self::AtMostOne(answer) = self {
            if answer.is_none() {
                *answer = Some((sequence, kept));
                return;
            }
            *self = Self::Many(Box::new(answer.iter().copied().collect()));
        }
        let Self::Many(answers) = self else { unreachable!("it was just made so") };
        let place = answers.partition_point(|(answered, _)| *answered < sequence);
        assert!(answers.get(place).is_none_or(|(answered, _)| *answered != sequence), "once only");
        answers.insert(place, (sequence, kept));
    }

    /// Forgets the outputs of all lower sequence numbers.
    pub(super) fn forget_below(&mut self, lowest: u64) {
        match self {
            Self::AtMostOne(answer) => *answer = answer.filter(|(answered, _)| *answered >= lowest),
            Self::Many(answers) => {
                let received = answers.partition_point(|(answered, _)| *answered < lowest);
                answers.drain(..received);
                assert!(answers.front().is_none_or(|(lowest_kept, _)| *lowest_kept >= lowest));
                if answers.len() <= 1 {
                    *self = Self::AtMostOne(answers.pop_front());
                } else if answers.capacity() > 4 * answers.len() {
                    answers.shrink_to(2 * answers.len());
                }
            }
        }
    }
}

/// Compares the outputs; how they are stored makes no difference.
impl PartialEq for Answers {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Answers {}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::collections::btree_map::Entry;

    use proptest::prelude::*;

    use super::*;

    fn kept(revision: u64) -> Kept {
        let digest = revision as u32;
        Kept::new(digest, Ok(WriteResponse { revision, changed: true, version: 1 }))
    }

    proptest! {
        /// Model: a map in which each key is inserted once, and whose lower end moves up.
        #[test]
        fn they_are_a_map(steps in proptest::collection::vec((0..20_u64, any::<bool>()), 0..200)) {
            let (mut answers, mut map) = (Answers::new(), BTreeMap::new());
            let mut lowest = 0;
            for (revision, (ahead, forget)) in (1..).zip(steps) {
                let sequence = lowest + ahead;
                if forget {
                    lowest += ahead / 4;
                    answers.forget_below(lowest);
                    map = map.split_off(&lowest);
                } else if let Entry::Vacant(place) = map.entry(sequence) {
                    answers.insert(sequence, kept(revision));
                    place.insert(kept(revision));
                }
                prop_assert_eq!(answers.get(sequence), map.get(&sequence).copied());
                prop_assert_eq!(answers.len(), map.len());
                prop_assert!(answers.iter().copied().eq(map.clone()));
            }
        }
    }

    #[test]
    fn what_is_forgotten_gives_its_memory_back() {
        let mut answers = Answers::new();
        (0..1000).for_each(|sequence| answers.insert(sequence, kept(1)));
        answers.forget_below(990);
        let Answers::Many(kept) = &answers else { panic!("ten are left") };
        assert!(kept.capacity() < 40, "{} places for ten", kept.capacity());
        answers.forget_below(999);
        assert!(matches!(answers, Answers::AtMostOne(Some(_))), "{answers:?}");
    }

    #[test]
    #[should_panic = "once only"]
    fn a_sequence_is_answered_once() {
        let mut answers = Answers::new();
        answers.insert(1, kept(1));
        answers.insert(1, kept(2));
    }
}
