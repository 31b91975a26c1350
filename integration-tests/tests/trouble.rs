//! A node in trouble: a part of it breaks, or it runs for very long. It goes on or it stops with the
//! reason; it never hangs.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use integration_tests::counter::Counter;
use raft_core::driver::{Node, NodeConfig};
use raft_core::state_machine::StateMachine;
use raft_core::transport::channel::ChannelNetwork;
use raft_storage::memory::MemoryDisk;

/// In real time: what takes longer hangs.
const HANG: Duration = Duration::from_secs(60);

/// Runs the scenario on a paused clock, and fails if it does not end. A loop that spins keeps such a
/// clock from moving, so no timeout inside of the runtime would notice it.
fn ends(scenario: impl Future<Output = ()> + Send + 'static) {
    let (done, ended) = mpsc::channel();
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

/// A cluster of one, and it leads.
async fn alone<M: StateMachine>(disk: &MemoryDisk, machine: M) -> Node<M> {
    let transport = ChannelNetwork::new(1).transport(1);
    let storage = Arc::new(disk.storage());
    let node = Node::start(NodeConfig::new(1, [1]), storage, transport, machine).await;
    let node = node.expect("a node of a healthy disk starts");
    node.watch().wait_for(|seen| seen.is_leader).await.expect("it runs");
    node
}

#[test]
fn a_node_sleeps_between_its_turns_after_hours_as_well() {
    ends(async {
        let node = alone(&MemoryDisk::new(), Counter::default()).await;
        for hour in 1..=3 {
            tokio::time::sleep(Duration::from_secs(3_600)).await;
            let output = node.propose_and_wait("x".into()).await.expect("it leads");
            assert_eq!(output, hour);
        }
        node.shutdown().await;
    });
}
