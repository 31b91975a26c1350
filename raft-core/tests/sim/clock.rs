//! A node's own clock: it has its own origin and rate, and never runs backwards.

use raft_core::types::Time;

#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// This clock showed `own_us` at the true time `true_us`.
    own_us: u64,
    true_us: u64,
    /// Microseconds of this clock in a million true ones.
    rate: u64,
    rate_as_built: u64,
}

impl Clock {
    pub fn new(own_us: u64, rate: u64) -> Self {
        Self { own_us, true_us: 0, rate, rate_as_built: rate }
    }

    pub fn at(&self, true_us: u64) -> Time {
        Time::from_micros(self.own_us + (true_us - self.true_us) * self.rate / 1_000_000)
    }

    /// The first true microsecond at which this clock shows `own`; the anchor if that is past.
    pub fn when(&self, own: Time) -> u64 {
        let ahead_us = own.as_micros().saturating_sub(self.own_us);
        self.true_us + ahead_us.saturating_mul(1_000_000).div_ceil(self.rate)
    }

    pub fn run_at(&mut self, rate: u64, true_us: u64) {
        *self = Self { own_us: self.at(true_us).as_micros(), true_us, rate, ..*self };
    }

    pub fn run_as_built(&mut self, true_us: u64) {
        self.run_at(self.rate_as_built, true_us);
    }

    pub fn jump(&mut self, ahead_us: u64, true_us: u64) {
        *self = Self { own_us: self.at(true_us).as_micros() + ahead_us, true_us, ..*self };
    }
}
