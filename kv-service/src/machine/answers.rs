//! The answers that a session remembers: ascending by sequence, each sequence once.
//!
//! Most sessions have a single client that waits for each answer before its next request, and keep one
//! answer. It has its place here; only further ones take memory of their own, which is given back with
//! them.

use std::collections::VecDeque;

use crate::operation::{Refusal, WriteAnswer};

/// The outcome of executing a request.
pub(super) type Outcome = Result<WriteAnswer, Refusal>;

/// A remembered answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    /// Of the operation that was executed: a repeated request must be of the same one (S9).
    pub(super) digest: u32,
    pub(super) outcome: Outcome,
}

type Answer = (u64, Kept);

#[derive(Clone, Debug)]
pub(super) enum Answers {
    AtMostOne(Option<Answer>),
    Many(VecDeque<Answer>),
}

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
            Self::Many(answers) => (None, Some(answers)),
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

    /// # Panics
    /// If there is an answer of that sequence.
    pub(super) fn insert(&mut self, sequence: u64, kept: Kept) {
        if let Self::AtMostOne(answer) = self {
            if answer.is_none() {
                *answer = Some((sequence, kept));
                return;
            }
            *self = Self::Many(answer.iter().copied().collect());
        }
        let Self::Many(answers) = self else { unreachable!("it was just made so") };
        let place = answers.partition_point(|(answered, _)| *answered < sequence);
        assert!(answers.get(place).is_none_or(|(answered, _)| *answered != sequence), "once only");
        answers.insert(place, (sequence, kept));
    }

    /// Forgets the answers of all lower sequences.
    pub(super) fn forget_below(&mut self, lowest: u64) {
        match self {
            Self::AtMostOne(answer) => *answer = answer.filter(|(answered, _)| *answered >= lowest),
            Self::Many(answers) => {
                let heard = answers.partition_point(|(answered, _)| *answered < lowest);
                answers.drain(..heard);
                if answers.len() <= 1 {
                    *self = Self::AtMostOne(answers.pop_front());
                } else if answers.capacity() > 4 * answers.len() {
                    answers.shrink_to(2 * answers.len());
                }
            }
        }
    }
}

/// How they are kept makes no difference.
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
        Kept { digest, outcome: Ok(WriteAnswer { revision, changed: true, version: 1 }) }
    }

    proptest! {
        /// As a map, whose keys are taken once each and whose lower end moves up.
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
