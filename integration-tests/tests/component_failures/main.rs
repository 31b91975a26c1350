//! Component failures: a part of a node breaks, or a node runs for very long. The node goes on or
//! it stops with the reason; it never hangs.

mod durable;

use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use bytes::Bytes;
use integration_tests::counter::Counter;
use raft_core::driver::{Node, NodeConfig};
use raft_core::error::{Fatal, ProposeError, Rejected};
use raft_core::state_machine::{MachineError, MachineResult, SnapshotSource, StateMachine};
use raft_core::transport::channel::ChannelNetwork;
use raft_core::types::{Entry, Payload, Position, SnapshotMeta};
use raft_storage::memory::MemoryDisk;

/// In real time: a scenario that takes longer hangs.
const HANG: Duration = Duration::from_secs(60);

/// Runs the scenario on a paused clock, and fails if it does not end. A loop that spins keeps such
/// a clock from moving, so no timeout inside of the runtime would notice it.
fn ends(scenario: impl Future<Output = ()> + Send + 'static) {
    let (done, ended) = mpsc::sync_channel(1);
    let run = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime with a clock can be built");
        runtime.block_on(scenario);
        let _ = done.send(());
    });
    match ended.recv_timeout(HANG) {
        Ok(()) => {}
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("the scenario hangs"),
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            std::panic::resume_unwind(run.join().expect_err("it sent nothing"))
        }
    }
}

/// A cluster of one node, which leads.
async fn alone<M: StateMachine>(disk: &MemoryDisk, machine: M) -> Node<M> {
    alone_with(NodeConfig::new(1, [1], 1), disk, machine).await
}

async fn alone_with<M: StateMachine>(config: NodeConfig, disk: &MemoryDisk, machine: M) -> Node<M> {
    let transport = ChannelNetwork::new(1).transport(1);
    let storage = Arc::new(disk.storage());
    let node = Node::start(config, storage, transport, machine).await;
    let node = node.expect("a node of a healthy disk starts");
    node.watch().wait_for(|seen| seen.is_leader).await.expect("it runs");
    node
}

#[test]
fn a_node_sleeps_between_its_turns_after_hours_as_well() {
    ends(async {
        let node = alone(&MemoryDisk::of_new_member(), Counter::default()).await;
        for hour in 1..=3 {
            tokio::time::sleep(Duration::from_secs(3_600)).await;
            let output = node.propose_and_wait("x".into()).await.expect("it leads");
            assert_eq!(output, hour);
        }
        node.shutdown().await;
    });
}

const SCAN_TIME: Duration = Duration::from_micros(100);

/// A counter on a thread of its own, except for commands that begin with `light`, which can be
/// applied inline. The command `wait` blocks it until the test releases it, `panic` makes it panic,
/// and on `light failure` it returns an error.
struct Gated {
    inner: Counter,
    gate: mpsc::Receiver<()>,
    /// Names of the threads that have applied commands.
    threads: Arc<Mutex<Vec<Option<String>>>>,
}

fn gated() -> (Gated, mpsc::SyncSender<()>) {
    let (let_go, gate) = mpsc::sync_channel(1);
    (Gated { inner: Counter::default(), gate, threads: Arc::default() }, let_go)
}

fn is_light(entry: &Entry) -> bool {
    matches!(&entry.payload, Payload::Command(command) if command.starts_with(b"light"))
}

impl StateMachine for Gated {
    type Output = u64;
    type Query = ();
    type Answer = Vec<Bytes>;

    fn last_applied(&self) -> Position {
        self.inner.last_applied()
    }

    fn apply(&mut self, entries: &[Entry], outputs: &mut Vec<u64>) -> MachineResult<()> {
        let holds = |word: &'static str| {
            entries.iter().any(|entry| entry.payload == Payload::Command(word.into()))
        };
        if holds("wait") {
            self.gate.recv().expect("the test lets it go");
        }
        assert!(!holds("panic"), "as the test wants it");
        if holds("light failure") {
            return Err(MachineError("as the test wants it".into()));
        }
        let thread = std::thread::current().name().map(str::to_owned);
        self.threads.lock().expect("no panic").extend(std::iter::repeat_n(thread, entries.len()));
        self.inner.apply(entries, outputs)
    }

    fn can_apply_inline(&self, entries: &[Entry]) -> bool {
        entries.iter().all(is_light)
    }

    /// Takes as long as a scan.
    fn query(&mut self, (): ()) -> Vec<Bytes> {
        std::thread::park_timeout(SCAN_TIME);
        self.inner.query(())
    }

    fn snapshot(&mut self) -> MachineResult<Box<dyn SnapshotSource>> {
        self.inner.snapshot()
    }

    fn begin_restore(&mut self, meta: &SnapshotMeta) -> MachineResult<()> {
        self.inner.begin_restore(meta)
    }

    fn restore_chunk(&mut self, chunk: Bytes) -> MachineResult<()> {
        self.inner.restore_chunk(chunk)
    }

    fn finish_restore(&mut self) -> MachineResult<()> {
        self.inner.finish_restore()
    }

    fn blocks(&self) -> bool {
        true
    }
}

/// Proposes, and waits until the command is committed and handed to the machine, if that has room.
async fn hand_over(node: &Node<Gated>, command: &'static str) {
    let before = node.status().commit_index;
    node.propose(command.into(), |_| {});
    let mut status = node.watch_status();
    let committed = status.wait_for(|status| status.commit_index > before);
    let committed = tokio::time::timeout(HANG, committed).await;
    committed.expect("the node does not wait for its machine").expect("it runs");
}

#[tokio::test]
async fn a_machine_that_panics_with_all_its_work_in_flight_stops_the_node() {
    let (machine, let_go) = gated();
    let node = alone(&MemoryDisk::of_new_member(), machine).await;
    hand_over(&node, "wait").await;
    hand_over(&node, "panic").await;
    hand_over(&node, "more").await;
    let_go.send(()).expect("it waits");
    let stopped = tokio::time::timeout(HANG, node.stopped()).await.expect("it does not hang");
    assert!(
        matches!(stopped.as_ref().map_err(|error| &**error), Err(Fatal::Internal(_))),
        "{stopped:?}"
    );
}

/// Commands that can be applied inline are applied by the event loop, as long as they are few,
/// small and next in order.
#[tokio::test]
async fn few_light_commands_need_no_thread() {
    let (machine, let_go) = gated();
    let threads = Arc::clone(&machine.threads);
    let node = alone(&MemoryDisk::of_new_member(), machine).await;
    let applied = || {
        let names = std::mem::take(&mut *threads.lock().expect("no panic"));
        names.iter().map(|name| name.as_deref() == Some("apply-1")).collect::<Vec<_>>()
    };
    let mut status = node.watch_status();
    let founded = status.wait_for(|seen| seen.founded && seen.last_applied == seen.last_index);
    founded.await.expect("it runs");
    assert_eq!(applied(), [true, true], "the leader's own entry, and the cluster's founding");
    assert_eq!(node.propose_and_wait("light".into()).await, Ok(1));
    assert_eq!(node.propose_and_wait("heavy".into()).await, Ok(2));
    assert_eq!(applied(), [false, true]);

    // Commands that arrive together are applied together.
    let (first, second) =
        tokio::join!(node.propose_and_wait("light".into()), node.propose_and_wait("heavy".into()));
    assert_eq!((first, second), (Ok(3), Ok(4)));
    let (answered, mut answers) = tokio::sync::mpsc::channel(96);
    for _ in 5..=100 {
        let answered = answered.clone();
        node.propose("light".into(), move |count| answered.try_send(count).expect("room"));
    }
    for count in 5..=100 {
        assert_eq!(answers.recv().await, Some(Ok(count)));
    }
    let large = Bytes::from(format!("light {}", "x".repeat(100_000)));
    assert_eq!(node.propose_and_wait(large).await, Ok(101));
    assert_eq!(applied(), [true; 99], "many, or large, is not little");

    hand_over(&node, "wait").await;
    node.propose("light".into(), move |count| answered.try_send(count).expect("room"));
    hand_over(&node, "heavy").await;
    let_go.send(()).expect("it waits");
    assert_eq!(answers.recv().await, Some(Ok(103)), "in its turn");
    assert_eq!(node.query_and_wait((), true).await.expect("it leads").len(), 104);
    assert_eq!(applied(), [true; 3]);
    node.shutdown().await;
}

#[tokio::test]
async fn a_machine_that_fails_at_a_light_command_stops_the_node_and_says_why() {
    let (machine, _let_go) = gated();
    let node = alone(&MemoryDisk::of_new_member(), machine).await;
    let unknown = node.propose_and_wait("light failure".into()).await;
    assert!(matches!(unknown, Err(ProposeError::Unknown(_))), "{unknown:?}");
    let stopped = tokio::time::timeout(HANG, node.stopped()).await.expect("it does not hang");
    let fatal = stopped.expect_err("it failed");
    assert!(matches!(&*fatal, Fatal::Machine(_)), "{fatal:?}");
}

/// Many large scans of one client must not keep the writes of all others waiting.
#[tokio::test]
async fn a_proposal_does_not_wait_for_all_queries_before_it() {
    const QUERY_COUNT: usize = 1_000;
    let (machine, let_go) = gated();
    let node = alone(&MemoryDisk::of_new_member(), machine).await;
    hand_over(&node, "wait").await;
    let (answered, answers) = mpsc::sync_channel(QUERY_COUNT + 1);
    for _ in 0..QUERY_COUNT {
        let answered = answered.clone();
        node.query((), false, move |answer| {
            answer.expect("it runs");
            let _ = answered.send("query");
        });
    }
    // All of them are gathered in one batch, because nothing else runs until the test waits.
    hand_over_counted(&node, answered).await;
    let_go.send(()).expect("it waits");
    let order: Vec<&str> = tokio::task::spawn_blocking(move || {
        std::iter::from_fn(|| answers.recv_timeout(HANG).ok()).collect()
    })
    .await
    .expect("it only receives");
    assert_eq!(order.len(), QUERY_COUNT + 1, "everything is answered");
    let before = order.iter().position(|what| *what == "proposal").expect("counted");
    assert!(before < QUERY_COUNT / 2, "{before} queries were answered before the proposal");
    node.shutdown().await;
}

/// The number of requests in flight is bounded, and a request beyond the limit is rejected at once.
#[tokio::test]
async fn requests_beyond_the_limit_are_turned_away() {
    const LIMIT: usize = 10;
    let mut config = NodeConfig::new(1, [1], 1);
    config.requests_in_flight_max = LIMIT;
    let (machine, let_go) = gated();
    let node = alone_with(config, &MemoryDisk::of_new_member(), machine).await;
    hand_over(&node, "wait").await;
    let (answered, answers) = mpsc::sync_channel(2 * LIMIT);
    // One request is in flight already.
    for number in 1..LIMIT + 3 {
        let answered = answered.clone();
        node.propose("x".into(), move |output| {
            answered.send((number, output)).expect("there is room");
        });
    }
    // Each refusal is delivered by a task of its own.
    tokio::task::yield_now().await;
    let mut refused: Vec<usize> = answers
        .try_iter()
        .inspect(|(number, output)| {
            let busy = matches!(output, Err(ProposeError::Rejected(Rejected::Busy(_))));
            assert!(busy, "{number}: {output:?}");
        })
        .map(|(number, _)| number)
        .collect();
    refused.sort_unstable();
    assert_eq!(refused, [LIMIT, LIMIT + 1, LIMIT + 2]);
    let refused = node.query_and_wait((), false).await;
    assert!(matches!(refused, Err(Rejected::Busy(_))), "{refused:?}");
    let_go.send(()).expect("it waits");
    let taken = tokio::task::spawn_blocking(move || {
        (1..LIMIT).map(|_| answers.recv_timeout(HANG)).collect::<Result<Vec<_>, _>>()
    });
    let taken = taken.await.expect("it only receives").expect("each is answered");
    assert_eq!(taken, (1..LIMIT).map(|n| (n, Ok(n as u64 + 1))).collect::<Vec<_>>());
    assert_eq!(node.propose_and_wait("y".into()).await, Ok(LIMIT as u64 + 1));
    node.shutdown().await;
}

/// Entries committed while the snapshot is written are not in it.
#[tokio::test]
async fn a_snapshot_is_of_what_was_applied_when_it_was_taken() {
    let mut config = NodeConfig::new(1, [1], 1);
    config.max_raft_state_bytes = 1_000;
    let (machine, let_go) = gated();
    let disk = MemoryDisk::of_new_member();
    let node = alone_with(config, &disk, machine).await;
    let mut status = node.watch_status();
    let founded = status.wait_for(|seen| seen.founded && seen.last_applied == seen.last_index);
    founded.await.expect("it runs");
    assert_eq!(node.status().snapshot_index, 0, "founding alone fits into the log");
    // Together they are too much for the log, so a view is taken once both are applied.
    node.propose(Bytes::from(vec![0; 2_000]), |_| {});
    hand_over(&node, "wait").await;
    let viewed_index = node.status().commit_index;
    hand_over(&node, "more").await;
    let_go.send(()).expect("it waits");
    let published = status.wait_for(|status| status.snapshot_index > 0);
    let published = tokio::time::timeout(HANG, published).await.expect("it does not hang");
    assert_eq!(published.expect("it runs").snapshot_index, viewed_index);
    node.shutdown().await;
    let node = alone(&disk, Counter::default()).await;
    assert_eq!(node.query_and_wait((), true).await.expect("it leads").len(), 3);
    node.shutdown().await;
}

async fn hand_over_counted(node: &Node<Gated>, answered: mpsc::SyncSender<&'static str>) {
    let before = node.status().commit_index;
    node.propose("x".into(), move |output| {
        output.expect("it leads");
        let _ = answered.send("proposal");
    });
    let mut status = node.watch_status();
    let committed = status.wait_for(|status| status.commit_index > before);
    let committed = tokio::time::timeout(HANG, committed).await;
    committed.expect("the node does not wait for its machine").expect("it runs");
}
