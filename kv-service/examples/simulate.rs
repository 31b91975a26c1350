//! Tests a state machine of one's own in virtual time: three nodes that lose power while clients
//! propose, on a network that loses and delays messages.
//!
//! ```text
//! cargo run -p kv-service --features sim --example simulate
//! SEEDS=17..18 TRACE=1 cargo run -p kv-service --features sim --example simulate
//! ```
//!
//! The first command runs a hundred seeds. The second replays one of them and prints every message.
//! A scenario that fails names the seed to replay.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use kv_service::sim::{Cluster, LinkFaults, for_seeds, run};
use raft_core::driver::NodeConfig;
use raft_core::error::ProposeError;
use raft_core::state_machine::{MachineError, MachineResult, SnapshotSource, StateMachine};
use raft_core::types::{Entry, Payload, Position, SnapshotMeta};

/// Gives out tickets: each command asks for a number of tickets, and returns the first of them. No
/// ticket may be given out twice, whatever happens to the nodes.
#[derive(Default)]
struct Tickets {
    position: Position,
    next: u64,
}

impl StateMachine for Tickets {
    type Output = u64;
    type Query = ();
    type Answer = u64;

    fn last_applied(&self) -> Position {
        self.position
    }

    fn apply(&mut self, entries: &[Entry], outputs: &mut Vec<u64>) -> MachineResult<()> {
        for entry in entries {
            self.position = entry.position();
            if let Payload::Command(command) = &entry.payload {
                outputs.push(self.next);
                self.next += number_in(command)?;
            }
        }
        Ok(())
    }

    fn query(&mut self, (): ()) -> u64 {
        self.next
    }

    fn snapshot(&mut self) -> MachineResult<Box<dyn SnapshotSource>> {
        Ok(Box::new(View { position: self.position, next: Some(self.next) }))
    }

    fn begin_restore(&mut self, meta: &SnapshotMeta) -> MachineResult<()> {
        self.position = meta.position;
        Ok(())
    }

    fn restore_chunk(&mut self, chunk: Bytes) -> MachineResult<()> {
        self.next = number_in(&chunk)?;
        Ok(())
    }

    fn finish_restore(&mut self) -> MachineResult<()> {
        Ok(())
    }
}

struct View {
    position: Position,
    next: Option<u64>,
}

impl SnapshotSource for View {
    fn position(&self) -> Position {
        self.position
    }

    fn next_chunk(&mut self, _bytes_max: usize) -> MachineResult<Option<Bytes>> {
        Ok(self.next.take().map(|next| Bytes::copy_from_slice(&next.to_be_bytes())))
    }
}

fn number_in(bytes: &Bytes) -> MachineResult<u64> {
    let bytes = bytes[..].try_into().map_err(|_| MachineError("8 bytes are a number".into()))?;
    Ok(u64::from_be_bytes(bytes))
}

/// Sends sixty requests. In every tenth round a node loses power, the leader in its turn.
async fn tickets_are_given_out_once(seed: u64) -> u64 {
    let configure = |config: &mut NodeConfig| {
        // So small that snapshots are taken, and sent to nodes that were away.
        config.max_raft_state_bytes = 500;
    };
    let mut cluster = Cluster::with_config(seed, 3, configure, |_| Tickets::default()).await;
    let ms = Duration::from_millis(1);
    cluster.slow_disks(2 * ms);
    cluster.network.set_default_faults(LinkFaults::none().losing(0.05).delaying(ms, 10 * ms));

    let mut given_out = BTreeMap::new();
    for round in 0..60_u64 {
        let count = 1 + round % 7;
        let leader = cluster.leader().await;
        let node = cluster.nodes[&leader].clone();
        let command = Bytes::copy_from_slice(&count.to_be_bytes());
        let asking = tokio::spawn(async move { node.propose_and_wait(command).await });
        if round % 10 == 5 {
            // Crash a node while the request is under way.
            tokio::time::sleep((seed + round) as u32 % 20 * ms).await;
            let victim = 1 + (leader + round / 10) % 3;
            cluster.crash(victim);
            record(&mut given_out, asking.await.expect("it does not panic"), count);
            cluster.leader().await;
            cluster.start(victim).await;
        } else {
            record(&mut given_out, asking.await.expect("it does not panic"), count);
        }
    }
    let mut next_free = 0;
    for (first, count) in given_out {
        assert!(first >= next_free, "ticket {first} was given out twice");
        next_free = first + count;
    }
    cluster.trace.digest().hash
}

/// A request without a result may have been executed: its tickets are lost, but not given out.
fn record(given_out: &mut BTreeMap<u64, u64>, answer: Result<u64, ProposeError>, count: u64) {
    if let Ok(first) = answer {
        let before = given_out.insert(first, count);
        assert_eq!(before, None, "ticket {first} was given out twice");
    }
}

fn main() {
    for_seeds(0..100, async |seed| {
        let hash = tickets_are_given_out_once(seed).await;
        println!("seed {seed}: trace {hash:016x}");
    });
    let twice = [(); 2].map(|()| run(1, tickets_are_given_out_once));
    assert_eq!(twice[0], twice[1], "a seed is a run");
}
