//! The keys of a benchmark: `bench/256/00012345` for values of 256 bytes, picked at random, and
//! written beforehand if they are to be read.
//!
//! `append` has keys of its own, `bench/append-256/00012345`: with appends of one size only, a
//! key's version tells its size, so it can be deleted in time. A value that only grows would reach
//! the cluster's limit, and before that the benchmark would measure the copying of large values.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;
use bytes::Bytes;
use kv_service::Client;
use rand::Rng;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::report;
use crate::args::BenchOp;

/// A key whose value has grown to this size by appends is deleted.
const APPENDED_BYTES_MAX: usize = 64 << 10;
/// Writes under way at once while loading.
const LOADERS: usize = 256;

#[derive(Clone, Debug)]
pub(super) struct Keys {
    prefix: Arc<str>,
    count: u64,
    value_bytes: usize,
}

impl Keys {
    pub(super) fn new(op: BenchOp, count: u64, value_bytes: usize) -> Self {
        let kind = if op == BenchOp::Append { "append-" } else { "" };
        Self { prefix: format!("bench/{kind}{value_bytes}").into(), count, value_bytes }
    }

    pub(super) fn random(&self, rng: &mut impl Rng) -> Bytes {
        self.key(rng.random_range(0..self.count))
    }

    fn key(&self, number: u64) -> Bytes {
        format!("{}/{number:08}", self.prefix).into()
    }

    /// Returns true if a key that has been appended to `version` times is to be deleted.
    pub(super) fn is_full(&self, version: u64) -> bool {
        version.saturating_mul(self.value_bytes as u64) >= APPENDED_BYTES_MAX as u64
    }

    /// Writes all keys, unless an earlier run has. The number of keys written is itself kept under
    /// a key.
    pub(super) async fn load(&self, clients: &[Client], value: &Bytes) -> anyhow::Result<()> {
        let mark = Bytes::from(format!("{}/loaded", self.prefix));
        let [first, ..] = clients else { return Ok(()) };
        let loaded = first.get(mark.clone()).await.context("cannot look for the keys")?;
        let loaded =
            loaded.and_then(|record| String::from_utf8(record.value.into()).ok()?.parse().ok());
        let loaded: u64 = loaded.unwrap_or(0);
        if loaded >= self.count {
            return Ok(());
        }
        let next = Arc::new(AtomicU64::new(loaded));
        let mut loaders = JoinSet::new();
        for number in 0..LOADERS {
            let client = clients[number % clients.len()].clone();
            loaders.spawn(load_some(self.clone(), client, value.clone(), next.clone()));
        }
        let bar = report::loading_bar(self.count);
        let mut tick = Instant::now();
        while !loaders.is_empty() {
            tokio::select! {
                Some(done) = loaders.join_next() => done?.context("cannot write the keys")?,
                () = sleep_until(tick), if !bar.is_hidden() => {
                    tick += report::BAR_EVERY;
                    bar.set_position(next.load(Ordering::Relaxed).min(self.count));
                }
            }
        }
        bar.finish_and_clear();
        first.put(mark, self.count.to_string()).await.context("cannot write the keys")?;
        Ok(())
    }
}

async fn load_some(
    keys: Keys,
    client: Client,
    value: Bytes,
    next: Arc<AtomicU64>,
) -> anyhow::Result<()> {
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= keys.count {
            return Ok(());
        }
        client.put(keys.key(number), value.clone()).await?;
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    #[test]
    fn keys_are_of_one_length_and_within_their_number() {
        let keys = Keys::new(BenchOp::Put, 7, 256);
        let mut rng = StdRng::seed_from_u64(1);
        for _ in 0..100 {
            let key = String::from_utf8(keys.random(&mut rng).into()).unwrap();
            let number = key.strip_prefix("bench/256/").unwrap();
            assert!(number.len() == 8 && number.parse::<u64>().unwrap() < 7, "{key}");
        }
    }

    #[test]
    fn a_key_that_is_appended_to_ends_below_the_limit_of_values() {
        let keys = Keys::new(BenchOp::Append, 7, 256);
        assert!(!keys.is_full(255) && keys.is_full(256) && keys.is_full(u64::MAX));
        assert!(Keys::new(BenchOp::Append, 7, 1 << 20).is_full(1));
        assert!(!Keys::new(BenchOp::Append, 7, 0).is_full(1 << 40));
    }
}
