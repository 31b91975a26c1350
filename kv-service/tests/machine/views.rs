//! Views of the engine on disk, beside the thread that writes its memtables.

use std::sync::mpsc;
use std::time::Duration;

use kv_service::{KvMachine, RocksStateOptions};
use raft_core::state_machine::StateMachine;
use tempfile::TempDir;

use crate::{open, put, write};

/// More views than immutable memtables may wait to be written.
const VIEWS_COUNT: u64 = 10;

/// S17. Each view makes a memtable immutable. If the writer thread did not learn of it, the writes
/// that follow would never return.
#[test]
fn s17_views_do_not_keep_the_writes_that_follow_waiting() {
    let (done, ended) = mpsc::sync_channel(1);
    // If it hangs, the thread is left behind.
    std::thread::spawn(move || {
        let directory = TempDir::new().unwrap();
        let options = RocksStateOptions::default();
        let mut machine = KvMachine::rocksdb(directory.path(), options).unwrap();
        let session = open(&mut machine, 0, 1_000, 10);
        let mut views = Vec::new();
        for sequence in 1..=VIEWS_COUNT {
            write(&mut machine, session, sequence, put("key", "value"));
            views.push(machine.snapshot().unwrap());
        }
        done.send(views.len()).unwrap();
    });
    let views_count = ended.recv_timeout(Duration::from_secs(60)).expect("a write waits for ever");
    assert_eq!(views_count as u64, VIEWS_COUNT);
}
