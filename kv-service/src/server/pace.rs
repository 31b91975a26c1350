//! A minimum rate for a transfer whose speed the other side decides.
//!
//! A timeout for each step alone bounds nothing: a client that moves one byte before each timeout
//! holds memory forever. So a transfer starts with some slack. Elapsed time uses the slack up, and
//! transferred bytes restore it at the minimum rate, up to the initial amount.

use std::time::Duration;

#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    bytes_per_second: u32,
    slack_max: Duration,
    slack: Duration,
}

impl Pace {
    /// # Panics
    /// If the rate is 0.
    pub(super) const fn new(bytes_per_second: u32, slack_max: Duration) -> Self {
        assert!(bytes_per_second > 0, "a rate of 0 is none");
        Self { bytes_per_second, slack_max, slack: slack_max }
    }

    /// Longest time that the next step may take. Zero: the transfer is too slow.
    pub(super) fn patience(&self) -> Duration {
        self.slack
    }

    /// Records a step that moved so many bytes in this time.
    pub(super) fn on_step(&mut self, bytes: usize, took: Duration) {
        let seconds = bytes as f64 / f64::from(self.bytes_per_second);
        // A slice has less than 2^63 bytes, which is within a Duration.
        let earned = Duration::from_secs_f64(seconds);
        assert!(self.slack <= self.slack_max, "a fast step earns no more than the initial slack");
        self.slack = self.slack.saturating_sub(took).saturating_add(earned).min(self.slack_max);
    }

    /// Ends a transfer: the next one begins with the whole slack.
    pub(super) fn reset(&mut self) {
        self.slack = self.slack_max;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// S11. One byte before each step ends is no progress.
    #[test]
    fn a_byte_now_and_then_uses_the_slack_up() {
        let mut pace = Pace::new(1000, 10 * SECOND);
        let mut steps = 0;
        while pace.patience() >= 4 * SECOND {
            pace.on_step(1, 4 * SECOND);
            steps += 1;
        }
        assert_eq!(steps, 2, "the third byte comes too late");
    }

    #[test]
    fn the_minimum_rate_is_enough_and_what_was_fast_before_earns_no_more() {
        let mut pace = Pace::new(1000, 10 * SECOND);
        for _ in 0..1000 {
            pace.on_step(1000, SECOND);
            assert_eq!(pace.patience(), 10 * SECOND);
        }
        pace.on_step(usize::MAX / 2, Duration::ZERO);
        assert_eq!(pace.patience(), 10 * SECOND);
        pace.on_step(0, 4 * SECOND);
        pace.on_step(1000, Duration::ZERO);
        assert_eq!(pace.patience(), 7 * SECOND);
        pace.reset();
        assert_eq!(pace.patience(), 10 * SECOND);
    }
}
