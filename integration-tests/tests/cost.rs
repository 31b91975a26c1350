//! Measures the cost of a write where everything is counted: work of a fixed shape, as often as the
//! environment variable `OPERATIONS` says. `scripts/cost` counts the instructions of two runs of
//! different length, and compares the difference with the recorded one.

use bytes::Bytes;
use kv_service::{Client, LocalNetwork, Network, Server, ServerConfig, Store};
use raft_core::consensus::{Boot, Config, Persist, Raft, RoleKind};
use raft_core::types::{
    Configuration, HardState, Loaded, Message, NodeId, Payload, Position, Time,
};
use raft_storage::memory::MemoryDisk;

const NODES: std::ops::RangeInclusive<NodeId> = 1..=3;
/// Writes under way at a time.
const TOGETHER: usize = 16;
const VALUE: &[u8] = &[7; 256];

fn operation_count() -> usize {
    let count = std::env::var("OPERATIONS").map_or(Ok(1_000), |text| text.parse());
    count.expect("OPERATIONS is a number")
}

/// Three `Raft` values that pass their messages to each other, on disks that finish at once.
#[test]
fn core() {
    let mut nodes: Vec<Raft> = NODES.map(node).collect();
    let mut mail: Vec<(NodeId, NodeId, Message)> = Vec::new();
    let now = nodes[0].next_deadline();
    nodes[0].on_timeout(now);
    let mut applied_count = 0;
    settle(&mut nodes, &mut mail, now, &mut applied_count);
    assert_eq!(nodes[0].role(), RoleKind::Leader);

    let wanted = operation_count().next_multiple_of(TOGETHER);
    for _ in 0..wanted / TOGETHER {
        nodes[0].propose(vec![Bytes::from_static(VALUE); TOGETHER]).expect("there is room");
        settle(&mut nodes, &mut mail, now, &mut applied_count);
    }
    // A heartbeat tells the followers the last commit index: every node applies every command.
    nodes[0].on_timeout(now + Config::new(1, 1).heartbeat_interval);
    settle(&mut nodes, &mut mail, now, &mut applied_count);
    assert_eq!(applied_count, wanted * nodes.len());
}

fn node(id: NodeId) -> Raft {
    let boot = Boot {
        loaded: Loaded { hard_state: HardState::INITIAL, ..Loaded::default() },
        last_applied: Position::ZERO,
        bootstrap: Configuration::of_voters(NODES),
    };
    let mut config = Config::new(id, id);
    config.log_bytes_max = u64::MAX;
    Raft::new(config, boot, Time::ZERO).expect("the defaults are sound")
}

/// Runs all nodes until none has anything left to do.
fn settle(
    nodes: &mut [Raft],
    mail: &mut Vec<(NodeId, NodeId, Message)>,
    now: Time,
    applied_count: &mut usize,
) {
    loop {
        let mut is_quiet = true;
        for (raft, id) in nodes.iter_mut().zip(NODES) {
            let ready = raft.ready(now);
            is_quiet &= ready.is_empty();
            mail.extend(ready.messages.into_iter().map(|(to, message)| (id, to, message)));
            if let Some(Persist { id, .. }) = ready.persist {
                raft.on_persisted(now, id);
            }
            if let Some(last) = ready.committed.last() {
                raft.on_applied(last.index);
            }
            let is_command = |payload: &Payload| matches!(payload, Payload::Command(_));
            *applied_count +=
                ready.committed.iter().filter(|entry| is_command(&entry.payload)).count();
        }
        for (from, to, message) in std::mem::take(mail) {
            nodes[to as usize - 1].step(now, from, message);
        }
        if is_quiet {
            return;
        }
    }
}

/// Clients, sessions, drivers and state machines of a whole cluster, in memory.
#[test]
fn service() {
    run_clients(|client, key, count| async move {
        for _ in 0..count {
            client.put(key.clone(), Bytes::from_static(VALUE)).await.expect("all is well");
        }
        let record = client.get(key).await.expect("all is well").expect("it is there");
        assert_eq!(record.version, count as u64);
    });
}

/// The same cluster, asked for one value again and again.
#[test]
fn reads() {
    run_clients(|client, key, count| async move {
        client.put(key.clone(), Bytes::from_static(VALUE)).await.expect("all is well");
        for _ in 0..count {
            let record = client.get(key.clone()).await.expect("all is well");
            assert_eq!(record.expect("it is there").value, VALUE);
        }
    });
}

/// Runs `work` by each client, on a key of its own, so many times.
fn run_clients<F>(work: impl Fn(Client, String, usize) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let network = LocalNetwork::new(1);
        let mut servers = Vec::new();
        for id in NODES {
            let config = ServerConfig::in_process(id, NODES);
            let store = Store::Memory(MemoryDisk::of_new_member());
            let started = Server::start_with(config, store, Network::Channel(network.clone()));
            servers.push(started.await.expect("a server starts"));
        }
        let each = operation_count().div_ceil(TOGETHER);
        let clients: Vec<_> = (0..TOGETHER)
            .map(|number| {
                let key = format!("key of client {number}");
                tokio::spawn(work(network.client(NODES), key, each))
            })
            .collect();
        for client in clients {
            client.await.expect("it ends");
        }
    });
}
