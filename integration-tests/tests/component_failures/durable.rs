//! Machines with files of their own, and snapshots that cannot be read.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use integration_tests::counter::Counter;
use raft_core::driver::{Node, NodeConfig};
use raft_core::error::Fatal;
use raft_core::state_machine::{
    Flusher, MachineError, MachineResult, SnapshotSource, StateMachine,
};
use raft_core::storage::{SnapshotReader, SnapshotWriter, Storage, StorageError, StorageResult};
use raft_core::transport::channel::ChannelNetwork;
use raft_core::types::{
    Batch, Configuration, Entry, HardState, Index, Loaded, NodeId, Payload, Position,
    PublishSnapshot, SnapshotContent, SnapshotMeta,
};
use raft_storage::memory::{MemoryDisk, MemoryStorage};

use super::{HANG, alone, alone_with};

/// A counter that claims to be durable, and cannot restore a snapshot.
struct Durable {
    inner: Counter,
    /// Stands for open files: while a reference exists, they are in use.
    files: Arc<()>,
    on_flush: fn(),
}

struct DurableFlusher {
    _files: Arc<()>,
    on_flush: fn(),
}

impl Flusher for DurableFlusher {
    fn flush(&mut self) -> MachineResult<Index> {
        (self.on_flush)();
        // Promises too little, which is allowed.
        Ok(0)
    }
}

impl StateMachine for Durable {
    type Output = u64;
    type Query = ();
    type Answer = Vec<Bytes>;

    fn last_applied(&self) -> Position {
        self.inner.last_applied()
    }

    fn apply(&mut self, entries: &[Entry], outputs: &mut Vec<u64>) -> MachineResult<()> {
        self.inner.apply(entries, outputs)
    }

    fn query(&mut self, (): ()) -> Vec<Bytes> {
        self.inner.query(())
    }

    fn snapshot(&mut self) -> MachineResult<Box<dyn SnapshotSource>> {
        self.inner.snapshot()
    }

    fn begin_restore(&mut self, _: &SnapshotMeta) -> MachineResult<()> {
        Err(MachineError("the whole state would be written again".into()))
    }

    fn restore_chunk(&mut self, _: Bytes) -> MachineResult<()> {
        Ok(())
    }

    fn finish_restore(&mut self) -> MachineResult<()> {
        Ok(())
    }

    fn flusher(&self) -> Option<Box<dyn Flusher>> {
        let (files, on_flush) = (Arc::clone(&self.files), self.on_flush);
        Some(Box::new(DurableFlusher { _files: files, on_flush }))
    }
}

/// A node that is about to flush its state, because its log is at its limit.
async fn flushing(files: &Arc<()>, on_flush: fn()) -> Node<Durable> {
    let mut config = NodeConfig::new(1, [1], 1);
    config.max_raft_state_bytes = 100;
    let machine = Durable { inner: Counter::default(), files: Arc::clone(files), on_flush };
    let node = alone_with(config, &MemoryDisk::of_new_member(), machine).await;
    node.propose(Bytes::from(vec![0; 200]), |_| {});
    node
}

#[tokio::test]
async fn a_flush_that_panics_stops_the_node() {
    let node = flushing(&Arc::new(()), || panic!("as the test wants it")).await;
    let stopped = tokio::time::timeout(HANG, node.stopped()).await.expect("it does not hang");
    let stopped = stopped.as_ref().map_err(|error| &**error);
    assert!(matches!(stopped, Err(Fatal::Internal(_))), "{stopped:?}");
}

/// A node that then opens the same files must not find them in use.
#[tokio::test]
async fn a_node_has_stopped_only_when_nothing_runs_any_more() {
    static BEGUN: Gate = Gate::new();
    static LET_GO: Gate = Gate::new();
    let files = Arc::new(());
    let node = flushing(&files, || {
        BEGUN.open();
        LET_GO.wait();
    })
    .await;
    tokio::task::spawn_blocking(|| BEGUN.wait()).await.expect("it only waits");
    let stopping = tokio::spawn({
        let node = node.clone();
        async move { node.shutdown().await }
    });
    let early = tokio::time::timeout(Duration::from_millis(300), node.stopped()).await;
    assert!(early.is_err(), "stopped, and a flush goes on");
    LET_GO.open();
    tokio::time::timeout(HANG, stopping).await.expect("it does not hang").expect("it stops");
    assert_eq!(Arc::strong_count(&files), 1, "somebody has the files open");
}

/// A gate that is opened once.
struct Gate {
    is_open: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    const fn new() -> Self {
        Self { is_open: Mutex::new(false), opened: Condvar::new() }
    }

    fn open(&self) {
        *self.is_open.lock().expect("nobody panics with it") = true;
        self.opened.notify_all();
    }

    fn wait(&self) {
        let is_open = self.is_open.lock().expect("nobody panics with it");
        let waited = self.opened.wait_timeout_while(is_open, HANG, |is_open| !*is_open);
        assert!(!waited.expect("nobody panics with it").1.timed_out(), "it is never opened");
    }
}

#[tokio::test(start_paused = true)]
async fn a_durable_machine_that_the_log_can_bring_up_to_date_is_not_restored() {
    let entry = |index| Entry { index, term: 1, payload: Payload::Command("x".into()) };
    let entries: Vec<Entry> = (1..=10).map(entry).collect();
    let disk = MemoryDisk::of_new_member();
    let storage = disk.storage();
    storage.load().await.expect("a new disk");
    let hard_state = Some(HardState { term: 1, commit_index: 10, ..HardState::INITIAL });
    let batch = Batch { entries: entries.clone(), hard_state, ..Batch::default() };
    storage.persist(batch).await.expect("a healthy disk");
    let configuration = Configuration::of_voters([1]);
    let meta = SnapshotMeta::new(Position::new(1, 8), configuration);
    let writer = storage.snapshot_writer(meta.clone(), None).await.expect("a healthy disk");
    writer.finish().await.expect("a healthy disk");
    let publish = Some(PublishSnapshot { meta, replaces_log: false });
    storage.persist(Batch { publish, ..Batch::default() }).await.expect("a healthy disk");

    let mut machine = Durable { inner: Counter::default(), files: Arc::new(()), on_flush: || {} };
    machine.apply(&entries[..3], &mut Vec::new()).expect("a counter applies everything");
    let node = alone(&disk, machine).await;
    let commands = node.query_and_wait((), true).await.expect("it leads");
    assert_eq!(commands.len(), 10);
}

/// A disk with one published snapshot that can no longer be read.
struct BadSector {
    inner: MemoryStorage,
    /// The index of that snapshot.
    index: AtomicU64,
}

#[async_trait]
impl Storage for BadSector {
    async fn load(&self) -> StorageResult<Loaded> {
        self.inner.load().await
    }

    async fn persist(&self, batch: Batch) -> StorageResult<()> {
        self.inner.persist(batch).await
    }

    async fn compact(&self, through: SnapshotMeta) -> StorageResult<()> {
        self.inner.compact(through).await
    }

    async fn snapshot_writer(
        &self,
        meta: SnapshotMeta,
        expected: Option<SnapshotContent>,
    ) -> StorageResult<Box<dyn SnapshotWriter>> {
        // A new snapshot is written elsewhere, even if it has the same index.
        self.index.store(0, Ordering::Relaxed);
        self.inner.snapshot_writer(meta, expected).await
    }

    async fn snapshot_reader(&self) -> StorageResult<Option<Box<dyn SnapshotReader>>> {
        let reader = self.inner.snapshot_reader().await?;
        let bad = self.index.load(Ordering::Relaxed);
        match reader {
            Some(reader) if reader.meta().index() == bad => {
                Err(StorageError::Corrupt("as the test wants it".into()))
            }
            reader => Ok(reader),
        }
    }

    fn log_bytes(&self) -> u64 {
        self.inner.log_bytes()
    }
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_cannot_be_read_is_replaced() {
    let network = ChannelNetwork::new(1);
    let start = async |id: NodeId, storage: Arc<dyn Storage>| {
        let mut config = NodeConfig::new(id, [1, 2, 3], id);
        config.max_raft_state_bytes = 1_000;
        let started = Node::start(config, storage, network.transport(id), Counter::default());
        started.await.expect("a node of a healthy disk starts")
    };
    let storages = [1, 2].map(|_| {
        let inner = MemoryDisk::of_member().storage();
        Arc::new(BadSector { inner, index: AtomicU64::new(0) })
    });
    let first = start(1, storages[0].clone()).await;
    let second = start(2, storages[1].clone()).await;
    let mut watch = first.watch();
    let seen = *watch.wait_for(|seen| seen.leader.is_some()).await.expect("it runs");
    let (leader, disk) = match seen.leader {
        Some(1) => (first, &storages[0]),
        _ => (second, &storages[1]),
    };
    leader.watch().wait_for(|seen| seen.is_leader).await.expect("it runs");
    for _ in 0..100 {
        leader.propose_and_wait("a command of some length".into()).await.expect("it leads");
    }
    let mut status = leader.watch_status();
    let status = status.wait_for(|status| status.snapshot_index > 0).await;
    // A copy: while the original is borrowed, the node cannot update its status.
    let status = status.expect("it runs").clone();
    disk.index.store(status.snapshot_index, Ordering::Relaxed);
    // The third node has missed everything, and only a snapshot helps.
    let third = start(3, Arc::new(MemoryDisk::new().storage())).await;
    let mut third = third.watch_status();
    let caught_up = third.wait_for(|third| third.last_applied >= status.last_index);
    let patience = Duration::from_secs(600);
    tokio::time::timeout(patience, caught_up).await.expect("it gets a snapshot").expect("it runs");
    assert_eq!(disk.index.load(Ordering::Relaxed), 0, "another snapshot was written");
}
