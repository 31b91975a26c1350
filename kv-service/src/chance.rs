//! Where chance comes from: the system's entropy, or a seed where a run has to repeat itself.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Draws for one owner. Equal seeds give equal draws.
#[derive(Debug)]
pub(crate) struct Chance(Mutex<StdRng>);

impl Chance {
    pub(crate) fn from_system() -> Self {
        Self(Mutex::new(StdRng::from_os_rng()))
    }

    pub(crate) fn from_seed(seed: u64) -> Self {
        Self(Mutex::new(StdRng::seed_from_u64(seed)))
    }

    /// Evenly out of `0..end`, which is not empty.
    pub(crate) fn below(&self, end: usize) -> usize {
        self.lock().random_range(0..end)
    }

    /// Evenly out of the range, which is not empty.
    pub(crate) fn factor(&self, range: Range<f32>) -> f32 {
        self.lock().random_range(range)
    }

    /// 128 bits, unforeseeable without the seed.
    pub(crate) fn nonce(&self) -> u128 {
        self.lock().random()
    }

    fn lock(&self) -> MutexGuard<'_, StdRng> {
        // A draw does not stop half-way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
