//! Faults of a link. A seeded rng of each link decides when they happen.

use std::time::Duration;

pub(super) use crate::rng::Rng;

/// Faults of the link from one node to another. By default there are none: each message arrives at
/// once.
///
/// Probabilities are between 0 and 1. A message that is not lost takes its delay, may be held up
/// beyond that, and may arrive a second time. Bulk streams take the delay and no other fault,
/// because they are reliable.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LinkFaults {
    /// The probability that a message is lost.
    pub loss: f64,
    /// The probability that a message arrives a second time, after another delay.
    pub duplicate: f64,
    /// Least delay. Each message takes a delay between this and `delay_max`, but does not overtake
    /// earlier messages of its class.
    pub delay_min: Duration,
    /// Greatest delay.
    pub delay_max: Duration,
    /// The probability that a message is held up beyond its delay, and is overtaken by later ones.
    pub reorder: f64,
    /// The longest time that it is held up beyond its delay.
    pub reorder_delay_max: Duration,
    /// The probability that a response is held up beyond its delay, so that old responses arrive
    /// among new ones.
    pub late_answer: f64,
    /// Least time that a late response is held up. Short times are drawn more often than long ones:
    /// evenly below a bound that is itself drawn evenly.
    pub late_answer_delay_min: Duration,
    /// Greatest time that a late response is held up.
    pub late_answer_delay_max: Duration,
}

impl LinkFaults {
    /// No faults: messages arrive at once, each once, in order.
    pub const fn none() -> Self {
        Self {
            loss: 0.0,
            duplicate: 0.0,
            delay_min: Duration::ZERO,
            delay_max: Duration::ZERO,
            reorder: 0.0,
            reorder_delay_max: Duration::ZERO,
            late_answer: 0.0,
            late_answer_delay_min: Duration::ZERO,
            late_answer_delay_max: Duration::ZERO,
        }
    }

    /// Loses messages with this probability.
    pub const fn losing(self, loss: f64) -> Self {
        Self { loss, ..self }
    }

    /// Delivers messages a second time with this probability.
    pub const fn duplicating(self, duplicate: f64) -> Self {
        Self { duplicate, ..self }
    }

    /// Delays each message by a time between these two.
    pub const fn delaying(self, delay_min: Duration, delay_max: Duration) -> Self {
        Self { delay_min, delay_max, ..self }
    }

    /// Holds messages up with this probability, by at most this long.
    pub const fn reordering(self, reorder: f64, reorder_delay_max: Duration) -> Self {
        Self { reorder, reorder_delay_max, ..self }
    }

    /// Holds responses up with this probability, by a time between `min` and `max`.
    pub const fn answering_late(self, late_answer: f64, min: Duration, max: Duration) -> Self {
        Self { late_answer, late_answer_delay_min: min, late_answer_delay_max: max, ..self }
    }

    /// # Panics
    /// If a probability is not between 0 and 1, or the least delay exceeds the greatest: a defect
    /// of the test.
    pub(super) fn check(&self) {
        for probability in [self.loss, self.duplicate, self.reorder, self.late_answer] {
            assert!((0.0..=1.0).contains(&probability), "{probability} is not a probability");
        }
        for (min, max) in [
            (self.delay_min, self.delay_max),
            (self.late_answer_delay_min, self.late_answer_delay_max),
        ] {
            assert!(min <= max, "the shortest delay is the longest at most");
        }
    }

    pub(super) fn plan(&self, chance: &mut Rng, is_answer: bool) -> DeliveryPlan {
        if chance.strikes(self.loss) {
            return DeliveryPlan::Lost;
        }
        let delay = self.delay(chance);
        let is_overtaken = chance.strikes(self.reorder);
        let is_late = is_answer && chance.strikes(self.late_answer);
        let mut extra = Duration::ZERO;
        if is_overtaken {
            extra += chance.between(Duration::ZERO, self.reorder_delay_max);
        }
        if is_late {
            let (min, max) = (self.late_answer_delay_min, self.late_answer_delay_max);
            let max = chance.between(min, max);
            extra += chance.between(min, max);
        }
        let again = chance.strikes(self.duplicate).then(|| delay + self.delay(chance));
        DeliveryPlan::Arrives { delay: delay + extra, held_up: is_overtaken || is_late, again }
    }

    pub(super) fn delay(&self, chance: &mut Rng) -> Duration {
        chance.between(self.delay_min, self.delay_max)
    }
}

/// The outcome of sending one message over a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DeliveryPlan {
    Lost,
    Arrives {
        delay: Duration,
        /// Later messages may overtake it.
        held_up: bool,
        /// It arrives once more, after this long.
        again: Option<Duration>,
    },
}
