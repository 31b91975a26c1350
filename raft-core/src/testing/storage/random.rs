//! Random operations on a storage and on the model, with restarts and crashes at random moments.

use std::future::Future;
use std::pin::pin;
use std::task::Poll;

use bytes::Bytes;

use super::model::{Model, Operation};
use super::{Disk, content_bytes, crash, entry, must, restart, start};
use crate::types::{
    Batch, Configuration, Entry, HardState, Index, Memory, Payload, Position, PublishSnapshot,
    SnapshotMeta, Term,
};

/// Xorshift: good enough to choose operations, and the same everywhere.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Returns a generator for this seed.
    pub fn new(seed: u64) -> Self {
        // Neighbouring seeds must not walk alike, and the state is never 0.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Returns a number below `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % limit
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }
}

/// Claim: whatever is done in whatever order, a storage holds what the model holds, and after a
/// crash, also in the midst of an operation, what the model permits.
///
/// # Panics
///
/// If the claim does not hold; the text tells the seed and the number of the operation.
pub async fn random_operations(disk: &impl Disk, seed: u64, operation_count: usize) {
    let mut random = Random::new(seed);
    let mut model = Model::new();
    let (mut storage, _) = start(disk).await;
    for number in 0..operation_count {
        let at = format!("random operations, seed {seed}, operation {number}");
        let operation = model.random_operation(&mut random);
        let before = model.clone();
        let kind = random.below(12);
        if kind == 0 {
            poll_once(operation.run(storage.as_ref())).await;
        } else {
            must(&format!("{at}: {operation:?}"), operation.run(storage.as_ref()).await);
        }
        model.apply(&operation);
        let loaded;
        match kind {
            0 => {
                (storage, loaded) = crash(disk, storage).await;
                if before.check(storage.as_ref(), &loaded, true).await.is_ok() {
                    model = before;
                }
            }
            1 => (storage, loaded) = crash(disk, storage).await,
            2 => (storage, loaded) = restart(disk, storage).await,
            _ => continue,
        }
        if let Err(difference) = model.check(storage.as_ref(), &loaded, kind < 2).await {
            panic!("{at} ({operation:?}, how it ended: {kind}): {difference}");
        }
        match kind {
            2 => model.restart(),
            _ => model.settle(&loaded),
        }
    }
}

/// Polls a future once and drops it: the operation is interrupted where it waits.
async fn poll_once(future: impl Future) {
    let mut future = pin!(future);
    std::future::poll_fn(|context| {
        let _ = future.as_mut().poll(context);
        Poll::Ready(())
    })
    .await;
}

impl Model {
    /// Returns an operation that may be done next.
    pub fn random_operation(&self, random: &mut Random) -> Operation {
        let last = self.last_index();
        match random.below(12) {
            0 => self.random_compaction(random),
            1 if self.published().is_some() && random.one_in(4) => {
                Operation::Persist(Batch { withdraw_snapshot: true, ..Batch::default() })
            }
            1 => self.random_snapshot(random),
            2 | 3 if self.finished().is_some() => self.random_publication(random),
            4 if last > self.log_start().index() => {
                let start = self.log_start().index();
                let from = start + 1 + random.below(last - start);
                let term = self.hard_state.term + 1;
                let entries =
                    if random.one_in(4) { Vec::new() } else { random_entries(from, term, random) };
                let hard_state = Some(HardState {
                    term,
                    voted_for: None,
                    commit_index: start,
                    ..self.hard_state
                });
                Operation::Persist(Batch {
                    truncate_from: Some(from),
                    entries,
                    hard_state,
                    ..Batch::default()
                })
            }
            5 => {
                let voted_for = Some(1 + random.below(3));
                let hard_state = HardState {
                    term: self.hard_state.term + 1,
                    voted_for,
                    memory: if random.one_in(2) { Memory::Lost } else { Memory::Intact },
                    ..self.hard_state
                };
                Operation::Persist(Batch { hard_state: Some(hard_state), ..Batch::default() })
            }
            6 | 7 => {
                let commit_index = (self.hard_state.commit_index + random.below(4)).min(last);
                let hard_state = HardState { commit_index, ..self.hard_state };
                Operation::Persist(Batch { hard_state: Some(hard_state), ..Batch::default() })
            }
            _ => {
                let entries = random_entries(last + 1, self.hard_state.term, random);
                let hard_state = random.one_in(3).then_some(self.hard_state);
                Operation::Persist(Batch { entries, hard_state, ..Batch::default() })
            }
        }
    }

    /// Compacts mostly forwards; a compaction backwards does nothing.
    fn random_compaction(&self, random: &mut Random) -> Operation {
        let entries = self.entries();
        match entries.get(random.below(entries.len() as u64 + 1) as usize) {
            Some(entry) => Operation::Compact(random_meta(entry.position(), random)),
            None => {
                let start = self.log_start();
                let index = start.index().saturating_sub(random.below(3));
                Operation::Compact(SnapshotMeta {
                    position: Position::new(start.position.term, index),
                    ..start
                })
            }
        }
    }

    /// Takes a snapshot at a position in the log, or at one that only a peer has.
    fn random_snapshot(&self, random: &mut Random) -> Operation {
        let entries = self.entries();
        let position = match entries.get(random.below(entries.len() as u64 + 2) as usize) {
            Some(entry) => entry.position(),
            None => Position::new(self.hard_state.term, self.last_index() + 1 + random.below(50)),
        };
        let len = [0, 1, 5_000, 65_536, 200_000][random.below(5) as usize];
        let bytes: Bytes = content_bytes(random.below(1 << 32), len);
        Operation::WriteSnapshot { meta: random_meta(position, random), bytes }
    }

    /// Publishes the newest finished snapshot. If the log or the published snapshot is past it,
    /// compacts instead.
    fn random_publication(&self, random: &mut Random) -> Operation {
        let meta = self.finished().cloned().unwrap_or_default();
        let behind = self.log_start().index().max(self.published().map_or(0, SnapshotMeta::index));
        if meta.index() <= behind {
            return self.random_compaction(random);
        }
        let replaces_log = !self.entries().iter().any(|entry| entry.position() == meta.position);
        let next = if replaces_log { meta.index() } else { self.last_index() } + 1;
        let term = self.hard_state.term;
        let entries =
            if random.one_in(2) { random_entries(next, term, random) } else { Vec::new() };
        let hard_state =
            random.one_in(2).then_some(HardState { term: term + 1, ..self.hard_state });
        let publish = Some(PublishSnapshot { meta, replaces_log });
        Operation::Persist(Batch {
            publish,
            truncate_from: None,
            entries,
            hard_state,
            ..Batch::default()
        })
    }
}

fn random_meta(position: Position, random: &mut Random) -> SnapshotMeta {
    SnapshotMeta::new(position, random_configuration(random))
}

fn random_configuration(random: &mut Random) -> Configuration {
    let mut configuration = Configuration::of_voters(1..=1 + random.below(5));
    configuration.learners.extend(10..10 + random.below(3));
    configuration.outgoing.extend(1..1 + random.below(3));
    configuration
}

fn random_entries(first: Index, term: Term, random: &mut Random) -> Vec<Entry> {
    let end = first + 1 + random.below(8);
    let random_entry = |index| match random.below(10) {
        0 => Entry { index, term, payload: Payload::Noop },
        1 => Entry {
            index,
            term,
            payload: Payload::Configuration(Box::new(random_configuration(random))),
        },
        2 => entry(index, term, random.below(100_000) as usize),
        _ => entry(index, term, random.below(600) as usize),
    };
    (first..end).map(random_entry).collect()
}
