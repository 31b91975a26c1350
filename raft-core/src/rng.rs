//! SplitMix64 (Steele, Lea, Flood 2014): randomness from a seed, equal on every platform.
//!
//! It decides timeouts and the faults of simulated links, and draws the numbers that tell the
//! starts of a node and its read attempts apart, so a production seed must come from the operating
//! system (`Config::seed`). It protects no secret. It never reads entropy itself: the caller passes
//! the seed in, so that a run can be replayed.

use std::time::Duration;

/// A generator of 64 bits of state. Two generators of the same seed draw the same numbers.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The rng of the link from one node to another. Each link has its own, so that faults of one
    /// link do not depend on the traffic of another.
    pub(crate) fn of_link(seed: u64, from: u64, to: u64) -> Self {
        let mut rng = Self(seed);
        for part in [from, to] {
            rng.0 = rng.next() ^ part;
        }
        rng
    }

    /// Draws 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Draws a number in `0..bound`, uniform as far as a modulus can be: `bound` is far below 2^64
    /// here.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0);
        self.next() % bound
    }

    /// Returns true with this probability. A probability of 0 draws nothing.
    pub(crate) fn strikes(&mut self, probability: f64) -> bool {
        // 53 bits are what a float between 0 and 1 can hold.
        probability > 0.0 && ((self.next() >> 11) as f64) < probability * (1u64 << 53) as f64
    }

    /// Draws evenly in whole microseconds, both bounds included. Equal bounds draw nothing.
    pub(crate) fn between(&mut self, min: Duration, max: Duration) -> Duration {
        match u64::try_from((max - min).as_micros()).unwrap_or(u64::MAX - 1) {
            0 => min,
            span_micros => min + Duration::from_micros(self.below(span_micros + 1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first numbers of the reference implementation for seed 1234567.
    #[test]
    fn draws_the_numbers_of_the_reference() {
        let mut rng = Rng::new(1_234_567);
        let drawn = [(); 3].map(|()| rng.next());
        assert_eq!(
            drawn,
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]
        );
    }
}
