//! Scans over deleted keys are bounded work.

use bytes::Bytes;
use kv_service::protocol::operation::{Operation, SessionId};
use kv_service::state::{KvMachine, Output, RocksStateOptions, SCAN_KEYS_MAX};
use raft_core::state_machine::StateMachine;
use raft_core::types::{Entry, Payload};
use rocksdb::perf::{PerfContext, PerfMetric, PerfStatsLevel, set_perf_stats};
use tempfile::TempDir;

use super::flusher;
use crate::{open, put, scan, text, write, write_command};

/// Keys whose names are their numbers.
fn numbered(number: u64) -> String {
    format!("n{number:08}")
}

/// A machine whose keys were all deleted, except for the last one.
struct Deleted {
    machine: KvMachine,
    session: SessionId,
    sequence: u64,
}

impl Deleted {
    /// Number of keys: a page covers at most a few percent of them.
    const KEY_COUNT: u64 = 250_000;

    fn apply_to_all(&mut self, operation: impl Fn(u64) -> Operation) {
        const BATCH: u64 = 1000;
        for batch in 0..Self::KEY_COUNT / BATCH {
            let index = self.machine.last_applied().index + 1;
            let entry = |place| {
                let operation = operation(BATCH * batch + place);
                let command = write_command(self.session, self.sequence + 1 + place, operation);
                Entry { index: index + place, term: 1, payload: Payload::Command(command.encode()) }
            };
            let entries: Vec<Entry> = (0..BATCH).map(entry).collect();
            self.machine.apply(&entries, &mut Vec::new()).unwrap();
            self.sequence += BATCH;
        }
    }

    fn write(&mut self, operation: Operation) {
        self.sequence += 1;
        let output = write(&mut self.machine, self.session, self.sequence, operation);
        assert!(matches!(output, Output::Written(_)), "{output:?}");
    }

    /// Scans to the one key that is alive, with a write beside each page. Reports to `page_passed`
    /// how many numbers each page went over.
    fn scan(&mut self, mut page_passed: impl FnMut(u64)) -> u64 {
        let (mut at, mut passed, mut page_count) = (text("n"), 0, 0);
        loop {
            let page = scan(&mut self.machine, at.clone(), Bytes::new(), 10);
            page_count += 1;
            let Some(next) = page.continue_at else {
                page_passed(Self::KEY_COUNT - passed);
                let keys: Vec<Bytes> = page.records.into_iter().map(|(key, _)| key).collect();
                assert_eq!(keys, [numbered(Self::KEY_COUNT)]);
                return page_count;
            };
            assert!(next >= at && page.records.is_empty(), "only the last key is there");
            let number = std::str::from_utf8(&next[1..9]).unwrap().parse::<u64>().unwrap();
            page_passed(number - passed);
            // A page that ends where it began waits for compactions.
            assert!(page_count < 10_000, "still at {next:?}");
            (at, passed) = (next, number);
            self.write(put("a", "beside"));
        }
    }
}

/// S13. A page of a scan over deleted keys examines a bounded number of them, in a memtable as in a
/// table, and in a table whose deletions compactions have turned into RocksDB's own tombstones. It
/// may be empty, and writes go on between the pages.
#[test]
fn a_scan_over_deleted_keys_is_bounded_work() {
    const WORDS_MAX: u64 = SCAN_KEYS_MAX as u64;
    /// RocksDB's own tombstones, which a page may pass over in addition.
    const SKIPPED_MAX: u64 = 100_000;
    let directory = TempDir::new().unwrap();
    // Everything is one memtable, so that nothing is compacted before it is scanned.
    let options =
        RocksStateOptions { write_buffer_bytes: 256 << 20, ..RocksStateOptions::default() };
    let mut machine = KvMachine::rocksdb(directory.path(), options).unwrap();
    let session = open(&mut machine, 0, 1000, 10);
    let mut flusher = flusher(&machine);
    let mut deleted = Deleted { machine, session, sequence: 0 };
    deleted.write(put(&numbered(Deleted::KEY_COUNT), "alive"));
    let delete = |number| Operation::Delete { key: numbered(number).into() };
    let create = |number| put(&numbered(number), "");
    deleted.apply_to_all(create);
    deleted.apply_to_all(delete);
    for place in ["in a layer", "in a table"] {
        let page_count = deleted.scan(|passed| {
            assert!(passed <= WORDS_MAX, "{passed} deleted keys in one page, {place}");
        });
        assert!(page_count >= Deleted::KEY_COUNT / WORDS_MAX, "{page_count} pages, {place}");
        flusher.flush().unwrap();
    }

    // Now there are values below the deletions, and tables to merge.
    for round in 0..3 {
        deleted.apply_to_all(create);
        flusher.flush().unwrap();
        deleted.apply_to_all(delete);
        flusher.flush().unwrap();
        set_perf_stats(PerfStatsLevel::EnableCount);
        let skipped = |perf: &PerfContext| {
            perf.metric(PerfMetric::InternalDeleteSkippedCount)
                + perf.metric(PerfMetric::InternalKeySkippedCount)
        };
        let mut perf = PerfContext::default();
        perf.reset();
        let mut before = 0;
        deleted.scan(|_| {
            let now = skipped(&perf);
            let work = now - before;
            // A page also examines the records of each table that it passes over.
            assert!(work <= SKIPPED_MAX + 3 * WORDS_MAX, "{work} skipped in round {round}");
            before = now;
        });
        set_perf_stats(PerfStatsLevel::Disable);
    }
}
