//! How long the writes of a disk took lately: the leader's own, and those of each follower together
//! with the way there and back.
//!
//! A leader applies only what its own disk has, so a slow disk of the leader slows every client,
//! although the followers commit without it. Such a leader hands over (`role::leader::slow_disk`).

use std::time::Duration;

use crate::types::Time;

/// Latencies are kept for this long at least, and for twice as long at most.
const HALF: Duration = Duration::from_millis(2500);
/// Fewer latencies say nothing about a disk.
const COUNT_MIN: u32 = 16;

/// The first bucket is below 2^10 us; each octave above has two; the last takes all the rest, from
/// 3 s on.
const FIRST_OCTAVE: u32 = 10;
const BUCKETS: usize = 25;

/// The latencies of the last seconds, each rounded to half an octave.
#[derive(Clone, Debug)]
pub(super) struct Latencies {
    recent: [u32; BUCKETS],
    earlier: [u32; BUCKETS],
    /// When `recent` began.
    since: Time,
}

/// A latency is in `at_least .. below`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Bounds {
    pub(super) at_least: Duration,
    pub(super) below: Duration,
}

impl Latencies {
    pub(super) fn new(now: Time) -> Self {
        Self { recent: [0; BUCKETS], earlier: [0; BUCKETS], since: now }
    }

    pub(super) fn note(&mut self, now: Time, latency: Duration) {
        self.forget_old(now);
        let count = &mut self.recent[bucket_of(latency)];
        *count = count.saturating_add(1);
    }

    /// Returns the bounds of the latency that 19 of 20 did not exceed; `None` if there are too few
    /// to tell.
    pub(super) fn p95(&mut self, now: Time) -> Option<Bounds> {
        self.forget_old(now);
        let counts =
            || self.recent.iter().zip(&self.earlier).map(|(a, b)| u64::from(*a) + u64::from(*b));
        let total: u64 = counts().sum();
        if total < u64::from(COUNT_MIN) {
            return None;
        }
        let mut seen = 0;
        let bucket = counts().position(|count| {
            seen += count;
            seen * 20 >= total * 19
        });
        bucket.map(bounds_of)
    }

    fn forget_old(&mut self, now: Time) {
        let age = now.since(self.since);
        if age < HALF {
            return;
        }
        let recent = std::mem::replace(&mut self.recent, [0; BUCKETS]);
        self.earlier = if age < 2 * HALF { recent } else { [0; BUCKETS] };
        self.since = now;
    }
}

fn bucket_of(latency: Duration) -> usize {
    let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
    let Some(octave) = micros.checked_ilog2().filter(|octave| *octave >= FIRST_OCTAVE) else {
        return 0;
    };
    let upper_half = (micros >> (octave - 1)) & 1;
    let bucket = 1 + 2 * (octave - FIRST_OCTAVE) as usize + upper_half as usize;
    bucket.min(BUCKETS - 1)
}

fn bounds_of(bucket: usize) -> Bounds {
    let start_of = |bucket: usize| match bucket.checked_sub(1) {
        None => Duration::ZERO,
        Some(halves) => {
            let octave = 1 << (FIRST_OCTAVE as usize + halves / 2);
            Duration::from_micros(octave + octave / 2 * (halves as u64 % 2))
        }
    };
    let below = if bucket == BUCKETS - 1 { Duration::MAX } else { start_of(bucket + 1) };
    Bounds { at_least: start_of(bucket), below }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn each_latency_is_within_the_bounds_of_its_bucket() {
        for micros in (0..20_000).chain((0..40).map(|shift| 1 << shift)).chain([u64::MAX]) {
            let latency = Duration::from_micros(micros);
            let Bounds { at_least, below } = bounds_of(bucket_of(latency));
            assert!(at_least <= latency && latency < below, "{latency:?}");
            let is_narrow = below <= 2 * at_least.max(MS) || at_least > 2000 * MS;
            assert!(is_narrow, "{at_least:?} to {below:?}");
        }
    }

    /// A few slow writes among many do not move the 95th percentile, more than a twentieth does.
    #[test]
    fn the_p95_forgets_what_is_old() {
        let mut latencies = Latencies::new(Time::ZERO);
        let mut now = Time::ZERO;
        for _ in 0..COUNT_MIN - 1 {
            latencies.note(now, 2 * MS);
        }
        assert_eq!(latencies.p95(now), None);
        for _ in 0..100 {
            latencies.note(now, 2 * MS);
        }
        for _ in 0..5 {
            latencies.note(now, 50 * MS);
        }
        assert!(latencies.p95(now).is_some_and(|p95| p95.below < 4 * MS));
        for _ in 0..10 {
            latencies.note(now, 50 * MS);
        }
        assert!(latencies.p95(now).is_some_and(|p95| p95.at_least > 48 * MS));
        // The slow ones are half a window old: still seen.
        now = now + HALF;
        assert!(latencies.p95(now).is_some_and(|p95| p95.at_least > 48 * MS));
        now = now + HALF;
        assert_eq!(latencies.p95(now), None);
        // Nothing was noted for long.
        latencies.note(now, MS);
        now = now + 2 * HALF;
        assert_eq!(latencies.p95(now), None);
    }
}
