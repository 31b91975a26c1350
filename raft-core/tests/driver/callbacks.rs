//! Reply callbacks: on which stack they run, and what a caller's code may do in them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use raft_core::driver::{Node, NodeConfig};
use raft_core::error::{ProposeError, Rejected};
use raft_core::transport::channel::ChannelNetwork;
use tokio::sync::mpsc;

use crate::support::cluster::{Cluster, in_time};
use crate::support::machine::{Knobs, Machine};
use crate::support::store::Disk;

async fn alone(change: impl FnOnce(&mut NodeConfig)) -> Node<Machine> {
    let mut config = NodeConfig::new(1, [1], 1);
    change(&mut config);
    let machine = Machine::volatile(&Arc::new(Knobs::default()));
    let transport = ChannelNetwork::new(1).transport(1);
    let node = Node::start(config, Disk::of_member().open(), transport, machine).await;
    let node = node.expect("a node of a healthy disk starts");
    in_time("it leads", node.watch().wait_for(|seen| seen.is_leader)).await.expect("it runs");
    node
}

/// C19. The caller holds a lock across `propose`, and its callback takes the same lock. A callback
/// on the caller's stack would deadlock.
#[tokio::test(start_paused = true)]
async fn c19_a_refusal_is_not_delivered_on_the_callers_stack() {
    let node = alone(|config| config.requests_in_flight_max = 1).await;
    let (sender, mut refusals) = mpsc::channel(10);
    let lock = Arc::new(Mutex::new(()));
    let refused = |what: &'static str| {
        let (sender, lock) = (sender.clone(), Arc::clone(&lock));
        move |error: Option<String>| {
            assert!(lock.try_lock().is_ok(), "{what}: called on the caller's stack");
            sender.try_send((what, error)).expect("room");
        }
    };
    let of = |outcome: Result<u64, ProposeError>| outcome.err().map(|error| error.to_string());

    let held = lock.lock().expect("no panic under the lock");
    let reply = refused("too large");
    node.propose(Bytes::from(vec![0; 5 << 20]), move |outcome| reply(of(outcome)));
    node.propose("the one in flight".into(), |_| {});
    let reply = refused("busy");
    node.propose("x".into(), move |outcome| reply(of(outcome)));
    let reply = refused("query");
    node.query((), true, move |answer| reply(answer.err().map(|error| error.to_string())));
    drop(held);
    for what in ["too large", "busy", "query"] {
        let (refused, error) = in_time(what, refusals.recv()).await.expect("a sender is left");
        assert_eq!(refused, what);
        error.expect(what);
    }

    node.shutdown().await;
    let held = lock.lock().expect("no panic under the lock");
    let reply = refused("stopped");
    node.propose("x".into(), move |outcome| reply(of(outcome)));
    drop(held);
    let (_, error) = in_time("stopped", refusals.recv()).await.expect("a sender is left");
    assert_eq!(error, Some(Rejected::ShuttingDown.to_string()));
}

/// C27. Queries that wait for the event loop count towards its limit on waiting bytes, too.
#[tokio::test(start_paused = true)]
async fn c27_queries_that_wait_are_bounded_in_bytes() {
    let node = alone(|config| {
        config.raft.uncommitted_bytes_max = 2_560;
        config.command_bytes_max = 1_000;
    })
    .await;
    // The event loop runs only when this task yields, so all the queries wait for it.
    let (sender, mut answers) = mpsc::channel(100);
    for _ in 0..100 {
        let sender = sender.clone();
        node.query((), true, move |answer| sender.try_send(answer.is_ok()).expect("room"));
    }
    let mut answered_count = 0;
    for _ in 0..100 {
        let answer = in_time("each is answered", answers.recv()).await;
        answered_count += u32::from(answer.expect("a sender is left"));
    }
    assert_eq!(answered_count, 10, "a query is charged 256 bytes");
    node.shutdown().await;
}

/// C20. Holds wherever the reply is called: on the event loop, at the state machine, for a
/// rejection.
#[tokio::test(start_paused = true)]
async fn c20_a_reply_that_panics_does_not_stop_the_node() {
    let mut cluster = Cluster::new(1, 3);
    cluster.start_all().await;
    let leader = cluster.leader().await;
    let node = &cluster.nodes[&leader];
    node.propose("x".into(), |_| panic!("a caller's callback"));
    node.query((), true, |_| panic!("a caller's callback"));
    node.propose(Bytes::from(vec![0; 5 << 20]), |_| panic!("a caller's callback"));
    assert_eq!(node.propose_and_wait("y".into()).await, Ok(2), "the node goes on");
    cluster.until("panics are counted", leader, |status| status.reply_panics_count == 3).await;

    // The event loop completes the proposal with an error, because this node no longer leads.
    cluster.network.isolate(leader);
    node.propose("lost".into(), |_| panic!("a caller's callback"));
    cluster.until("panics are counted", leader, |status| status.reply_panics_count == 4).await;
    cluster.network.heal();
    cluster.until("it follows", leader, |status| status.leader_id.is_some()).await;
}

/// C20. The payload of the panic may itself panic when it is dropped.
#[tokio::test(start_paused = true)]
async fn c20_a_payload_that_panics_does_not_stop_the_node() {
    struct Explosive;
    impl Drop for Explosive {
        fn drop(&mut self) {
            panic!("a payload that panics when it is dropped");
        }
    }
    let node = alone(|_| {}).await;
    node.propose("x".into(), |_| std::panic::panic_any(Explosive));
    assert_eq!(node.propose_and_wait("y".into()).await, Ok(2), "the node goes on");
    node.shutdown().await;
}

/// C20. The state machine panics, and the replies that it holds are called during that unwinding. A
/// second panic in one of them would abort the process.
#[tokio::test(start_paused = true)]
async fn c20_a_reply_may_panic_while_the_node_breaks() {
    let knobs = Arc::new(Knobs::default());
    let transport = ChannelNetwork::new(1).transport(1);
    let machine = Machine::volatile(&knobs);
    let config = NodeConfig::new(1, [1], 1);
    let node = Node::start(config, Disk::of_member().open(), transport, machine).await;
    let node = node.expect("a node of a healthy disk starts");
    in_time("it leads", node.watch().wait_for(|seen| seen.is_leader)).await.expect("it runs");
    assert_eq!(node.propose_and_wait("x".into()).await, Ok(1));
    knobs.panics.store(true, Ordering::SeqCst);
    let (sender, mut called) = mpsc::channel(1);
    node.propose("y".into(), move |outcome| {
        sender.try_send(outcome).expect("room");
        panic!("a caller's callback");
    });
    let outcome = in_time("it is called", called.recv()).await.expect("a sender is left");
    assert!(matches!(outcome, Err(ProposeError::Unknown(_))), "{outcome:?}");
    let stopped = in_time("the node stops", node.stopped()).await;
    assert!(stopped.is_err(), "the machine is broken");
}

/// A callback may call its node: the node holds no lock while a callback runs.
#[tokio::test(start_paused = true)]
async fn a_reply_may_use_the_node() {
    let node = alone(|_| {}).await;
    let (sender, mut answers) = mpsc::channel(1);
    let again = node.clone();
    node.propose("one".into(), move |outcome| {
        assert_eq!(outcome, Ok(1));
        let once_more = again.clone();
        again.propose("two".into(), move |outcome| {
            assert_eq!(outcome, Ok(2));
            once_more.query((), true, move |answer| {
                sender.try_send(answer.expect("it leads").len()).expect("room");
            });
            drop(once_more.status());
        });
    });
    assert_eq!(in_time("all are called", answers.recv()).await, Some(2));
    node.shutdown().await;
}

/// A completed request leaves its place to the next before its reply is called.
#[tokio::test(start_paused = true)]
async fn an_answered_request_has_left_before_its_reply_is_called() {
    let node = alone(|config| config.requests_in_flight_max = 1).await;
    let (sender, mut answers) = mpsc::channel(1);
    let again = node.clone();
    node.propose("one".into(), move |_| {
        again.propose("two".into(), move |outcome| sender.try_send(outcome).expect("room"));
    });
    assert_eq!(in_time("it is called", answers.recv()).await, Some(Ok(2)));
}

/// A callback that blocks delays the event loop, as documented, and does no other harm: afterwards
/// the node continues.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_that_blocks_delays_the_node_and_no_more() {
    let node = alone(|_| {}).await;
    let released = Arc::new(AtomicBool::new(false));
    let gate = Arc::clone(&released);
    node.propose("x".into(), move |_| {
        while !gate.load(Ordering::SeqCst) {
            std::thread::park_timeout(Duration::from_millis(1));
        }
    });
    let waiting = node.clone();
    let waiting = tokio::spawn(async move { waiting.propose_and_wait("y".into()).await });
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert!(!waiting.is_finished(), "the callback did not block what it should");
    released.store(true, Ordering::SeqCst);
    // The election timeout has passed meanwhile; a single node becomes leader again.
    let outcome = in_time("it goes on", waiting).await.expect("no panic");
    assert!(matches!(outcome, Ok(2) | Err(_)), "{outcome:?}");
    in_time("it leads", node.watch().wait_for(|seen| seen.is_leader)).await.expect("it runs");
    node.shutdown().await;
}

/// API finding 1. The caller learns a proposal's position before its outcome; the position names
/// the entry.
#[tokio::test(start_paused = true)]
async fn a_proposal_tells_its_position() {
    let node = alone(|_| {}).await;
    let before = node.status().last_index;
    let mut first = node.propose_tracked("one".into());
    let mut second = node.propose_tracked("two".into());
    let position = first.position().await.expect("it leads");
    assert_eq!(position.index, before + 1);
    assert_eq!(first.position().await, Some(position), "asked again");
    assert_eq!(second.position().await.expect("it leads").index, before + 2);
    assert_eq!((first.outcome().await, second.outcome().await), (Ok(1), Ok(2)));

    let mut rejected = node.propose_tracked(Bytes::from(vec![0; 5 << 20]));
    assert_eq!(rejected.position().await, None);
    let outcome = rejected.outcome().await;
    assert!(matches!(outcome, Err(ProposeError::Rejected(Rejected::TooLarge { .. }))));
}
