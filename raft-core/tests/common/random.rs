//! An rng with a seed (xorshift64*), so that runs can be repeated.

#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        // Zero is the one state that xorshift never leaves, so the lowest bit is set.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Skips the first numbers, which are close to each other for neighbouring seeds.
    pub fn stir(&mut self) {
        for _ in 0..4 {
            self.next();
        }
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 33) as usize % bound
    }

    pub fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// Returns true with a probability of `chance` in a thousand.
    pub fn permille(&mut self, chance: u64) -> bool {
        self.between(0, 999) < chance
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + (self.next() >> 11) % (high - low + 1)
    }

    /// A number from `low` to `high`; each doubling of the range is equally likely.
    pub fn scaled(&mut self, low: u64, high: u64) -> u64 {
        let low = low.max(1);
        let high = high.max(low);
        let doublings = u64::from((high / low).ilog2());
        let from = low << self.between(0, doublings);
        self.between(from, (2 * from - 1).min(high))
    }

    /// A number from `low` to `high` with a probability of `chance` percent, otherwise zero.
    pub fn sometimes(&mut self, chance: usize, low: u64, high: u64) -> u64 {
        if self.percent(chance) { self.scaled(low, high) } else { 0 }
    }
}
