//! Random numbers: from the system's entropy, or from a seed where a run must be repeatable.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// The rng of one owner. Equal seeds give equal numbers.
#[derive(Debug)]
pub(crate) struct NodeRng(Mutex<StdRng>);

impl NodeRng {
    pub(crate) fn from_system() -> Self {
        Self(Mutex::new(StdRng::from_os_rng()))
    }

    pub(crate) fn from_seed(seed: u64) -> Self {
        Self(Mutex::new(StdRng::seed_from_u64(seed)))
    }

    /// Returns a uniformly drawn number in `0..end`, which must not be empty.
    pub(crate) fn below(&self, end: usize) -> usize {
        self.lock().random_range(0..end)
    }

    /// Returns a uniformly drawn number in `range`, which must not be empty.
    pub(crate) fn factor(&self, range: Range<f32>) -> f32 {
        self.lock().random_range(range)
    }

    /// Returns 128 bits that cannot be predicted without the seed.
    pub(crate) fn nonce(&self) -> u128 {
        self.lock().random()
    }

    fn lock(&self) -> MutexGuard<'_, StdRng> {
        // No draw panics half-way, so a poisoned rng is consistent.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
