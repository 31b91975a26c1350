//! Logs as hash chains: equal hashes at an index mean equal logs through it. So two logs, or a log
//! and a state, are compared in one step.

use std::collections::VecDeque;

use raft_core::types::{Configuration, Entry, Index, Payload, Position};

/// A position, and the hash of all entries through it. It is also the whole state of the state
/// machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    pub position: Position,
    pub chain: u64,
}

pub fn mix(hash: u64, word: u64) -> u64 {
    let mixed = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 29)
}

impl Stamp {
    pub const ZERO: Stamp = Stamp { position: Position::ZERO, chain: 0 };

    pub fn index(&self) -> Index {
        self.position.index
    }

    /// The stamp after one more entry.
    pub fn then(self, entry: &Entry) -> Stamp {
        assert_eq!(entry.index, self.index() + 1, "entries are contiguous");
        let mut chain = mix(mix(self.chain, entry.term), entry.index);
        match &entry.payload {
            Payload::Noop => chain = mix(chain, 1),
            Payload::Command(command) => {
                chain = mix(chain, command.len() as u64);
                for piece in command.chunks(8) {
                    let mut word = [0; 8];
                    word[..piece.len()].copy_from_slice(piece);
                    chain = mix(chain, u64::from_le_bytes(word));
                }
            }
            Payload::Configuration(configuration) => {
                chain = words_of(configuration).into_iter().fold(mix(chain, 2), mix);
            }
        }
        Stamp { position: entry.position(), chain }
    }
}

/// Everything that a configuration says, as numbers.
fn words_of(configuration: &Configuration) -> Vec<u64> {
    let Configuration { voters, outgoing, learners, .. } = configuration;
    let mut words = vec![configuration.next_id, u64::from(configuration.founded)];
    words.push(configuration.generation.into());
    words.push(configuration.cluster_version.into());
    for set in [voters, outgoing, learners] {
        words.push(set.len() as u64);
        words.extend(set);
    }
    for (id, member) in &configuration.members {
        words.extend([*id, member.incarnation, u64::from(member.wants_vote)]);
        words.extend(member.context.iter().map(|byte| u64::from(*byte)));
    }
    words.extend(configuration.context.iter().map(|byte| u64::from(*byte)));
    words
}

#[derive(Clone, Debug)]
pub struct Stamped {
    pub entry: Entry,
    pub stamp: Stamp,
}

/// A log after its start.
#[derive(Clone, Debug, Default)]
pub struct Log {
    pub start: Stamp,
    entries: VecDeque<Stamped>,
}

impl Log {
    pub fn last(&self) -> Stamp {
        self.entries.back().map_or(self.start, |last| last.stamp)
    }

    pub fn last_index(&self) -> Index {
        self.last().index()
    }

    /// The stamp at an index of this log or at its start; `None` beyond either end.
    pub fn at(&self, index: Index) -> Option<Stamp> {
        let offset = index.checked_sub(self.start.index())?;
        match offset.checked_sub(1) {
            None => Some(self.start),
            Some(offset) => self.entries.get(offset as usize).map(|stamped| stamped.stamp),
        }
    }

    /// At most `count` entries after the index `previous`.
    pub fn slice(&self, previous: Index, count: usize) -> Vec<Entry> {
        let skip = (previous - self.start.index()) as usize;
        self.entries.iter().skip(skip).take(count).map(|stamped| stamped.entry.clone()).collect()
    }

    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().map(|stamped| &stamped.entry)
    }

    /// The configurations in this log, the latest one first.
    pub fn configurations(&self) -> impl Iterator<Item = (Index, &Configuration)> {
        self.entries.iter().rev().filter_map(|stamped| match &stamped.entry.payload {
            Payload::Configuration(configuration) => Some((stamped.entry.index, &**configuration)),
            Payload::Noop | Payload::Command(_) => None,
        })
    }

    pub fn push(&mut self, stamped: Stamped) {
        assert_eq!(stamped.entry.index, self.last_index() + 1, "entries follow the log");
        self.entries.push_back(stamped);
    }

    pub fn truncate_from(&mut self, index: Index) {
        assert!(index > self.start.index() && index <= self.last_index(), "nothing to truncate");
        self.entries.truncate((index - self.start.index() - 1) as usize);
    }

    pub fn compact(&mut self, through: Index) {
        while self.start.index() < through {
            self.start = self.entries.pop_front().expect("compacted within the log").stamp;
        }
    }

    pub fn start_over(&mut self, start: Stamp) {
        self.entries.clear();
        self.start = start;
    }
}
