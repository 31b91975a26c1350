//! One node's disk, which survives a crash: log, hard state, snapshot, and the state of a durable
//! machine.
//!
//! A batch is on disk as a whole or not at all, and batches stay in order: that is the storage
//! contract, and the storage crate's own tests cover torn writes below it. A crash loses the
//! accepted and unwritten batches, from any batch on.

use raft_core::types::{Configuration, HardState, Index, Loaded, SnapshotMeta};

use crate::chain::{Log, Stamp, Stamped};

/// The state at a position, as a snapshot file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    pub meta: SnapshotMeta,
    pub state: Stamp,
    pub size_bytes: u64,
}

/// A batch whose entries the oracle has checked.
#[derive(Clone, Debug)]
pub struct Write {
    pub id: u64,
    /// Time of acceptance, on the node's own clock.
    pub since_us: u64,
    pub publish: Option<(SnapshotMeta, bool)>,
    pub truncate_from: Option<Index>,
    pub entries: Vec<Stamped>,
    pub hard_state: Option<HardState>,
}

#[derive(Clone, Debug, Default)]
pub struct Disk {
    pub hard_state: HardState,
    pub log: Log,
    /// The configuration of the last compaction, or of the snapshot that replaced the log.
    start_configuration: Box<Configuration>,
    pub snapshot: Option<Snapshot>,
    /// A snapshot written in full that waits for the batch that publishes it.
    finished: Option<Snapshot>,
    /// The durable machine's state on disk.
    pub machine: Stamp,
}

impl Disk {
    pub fn finish_snapshot(&mut self, snapshot: Snapshot) {
        assert_eq!(
            snapshot.meta.position, snapshot.state.position,
            "V20 a snapshot is labelled with another position than its state's"
        );
        self.finished = Some(snapshot);
    }

    pub fn finished(&self, meta: &SnapshotMeta) -> &Snapshot {
        let finished = self.finished.as_ref().filter(|finished| finished.meta == *meta);
        finished.expect("V20 only a finished snapshot is published")
    }

    pub fn write(&mut self, write: Write) {
        let Write { publish, truncate_from, entries, hard_state, .. } = write;
        if let Some((meta, replaces_log)) = publish {
            let snapshot = self.finished(&meta).clone();
            self.finished = None;
            if replaces_log {
                self.log.start_over(snapshot.state);
                self.start_configuration = meta.configuration;
            }
            self.snapshot = Some(snapshot);
        }
        if let Some(from) = truncate_from {
            self.log.truncate_from(from);
        }
        entries.into_iter().for_each(|stamped| self.log.push(stamped));
        if let Some(hard_state) = hard_state {
            self.write_hard_state(hard_state);
        }
    }

    fn write_hard_state(&mut self, hard_state: HardState) {
        let before = self.hard_state;
        assert!(hard_state.term >= before.term, "V2 the term on disk fell");
        assert!(
            hard_state.term > before.term
                || before.voted_for.is_none()
                || hard_state.voted_for == before.voted_for,
            "V2 the vote on disk changed within term {}",
            before.term
        );
        assert!(hard_state.commit_index <= self.log.last_index(), "V8 committed beyond the log");
        self.hard_state = hard_state;
    }

    /// Drops the part of the log that a durable state covers.
    pub fn compact(&mut self, through: &SnapshotMeta) {
        if through.index() <= self.log.start.index() {
            return;
        }
        let snapshot_index = self.snapshot.as_ref().map_or(0, |snapshot| snapshot.meta.index());
        let covered = snapshot_index.max(self.machine.index());
        assert!(through.index() <= covered, "V8 compacted beyond what is durable");
        self.log.compact(through.index());
        self.start_configuration = through.configuration.clone();
    }

    pub fn load(&self) -> Loaded {
        let log_start = SnapshotMeta {
            position: self.log.start.position,
            configuration: self.start_configuration.clone(),
        };
        Loaded {
            hard_state: self.hard_state,
            log_start,
            snapshot: self.snapshot.as_ref().map(|snapshot| snapshot.meta.clone()),
            entries: self.log.entries().cloned().collect(),
        }
    }
}
