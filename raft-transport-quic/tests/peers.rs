//! Connections between peers: order, classes, overload, restarts.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{Node, addresses, append, cluster, config, control, eventually};
use raft_core::transport::Transport;
use raft_core::types::Class;
use raft_transport_quic::DevCa;
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout};

#[tokio::test]
async fn two_exchange_messages_in_order_in_both_classes() {
    let nodes = cluster(2).await;
    for id in 0..1000 {
        nodes[0].send(2, control(id));
        nodes[0].send(2, append(id, &[10, 5000, 0]));
        nodes[1].send(1, control(id));
    }
    let seen = nodes[1].inbound.messages(2000).await;
    assert!(seen.iter().all(|(from, _)| *from == 1));
    let of = |class: Class| {
        seen.iter().map(|(_, message)| message).filter(move |message| message.class() == class)
    };
    assert!(of(Class::Control).eq(&(0..1000).map(control).collect::<Vec<_>>()));
    let appends: Vec<_> = (0..1000).map(|id| append(id, &[10, 5000, 0])).collect();
    assert!(of(Class::Log).eq(&appends));
    let back = nodes[0].inbound.messages(1000).await;
    assert!(back.into_iter().eq((0..1000).map(|id| (2, control(id)))));
    for node in &nodes {
        node.transport.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_know_who_speaks() {
    let nodes = cluster(3).await;
    for (node, id) in nodes.iter().zip(1..=3) {
        for to in (1..=3).filter(|to| *to != id) {
            node.send(to, control(10 * id + to));
        }
    }
    for (node, id) in nodes.iter().zip(1..=3u64) {
        let mut seen = node.inbound.messages(2).await;
        seen.sort_by_key(|(from, _)| *from);
        let others = (1..=3).filter(|from| *from != id);
        let expected: Vec<_> = others.map(|from| (from, control(10 * from + id))).collect();
        assert_eq!(seen, expected);
    }
}

#[tokio::test]
async fn control_overtakes_appends_of_megabytes() {
    let nodes = cluster(2).await;
    const APPENDS: u64 = 40;
    for number in 0..APPENDS {
        nodes[0].send(2, append(number, &[1 << 20]));
    }
    nodes[0].send(2, control(1));
    let seen = nodes[1].inbound.messages(APPENDS as usize + 1).await;
    let place = seen.iter().position(|(_, message)| *message == control(1)).unwrap();
    assert!(place < APPENDS as usize / 2, "control came behind {place} appends");
    let log = seen.iter().filter(|(_, message)| message.class() == Class::Log);
    assert!(
        log.map(|(_, message)| message)
            .eq(&(0..APPENDS).map(|number| append(number, &[1 << 20])).collect::<Vec<_>>())
    );
}

#[tokio::test]
async fn what_does_not_fit_is_dropped_and_the_rest_arrives() {
    let nodes = cluster(2).await;
    let fits = (1 << 20) / control(0).size_bytes();
    // Nothing is awaited in between, so no writer runs on this single thread.
    for id in 0..fits + 100 {
        nodes[0].send(2, control(id));
    }
    assert_eq!(nodes[0].transport.dropped_count(2, Class::Control), 100);
    let seen = nodes[1].inbound.messages(fits as usize).await;
    assert!(seen.into_iter().eq((0..fits).map(|id| (1, control(id)))));
    nodes[0].send(2, control(7));
    assert_eq!(nodes[1].inbound.messages(1).await, [(1, control(7))]);
    // A message that fits into no frame is dropped alone.
    nodes[0].send(2, append(0, &[49 << 20]));
    nodes[0].send(2, append(0, &[1]));
    assert_eq!(nodes[1].inbound.messages(1).await, [(1, append(0, &[1]))]);
    assert_eq!(nodes[0].transport.dropped_count(2, Class::Log), 1);
}

/// A node in a runtime of its own, so that it can vanish without closing its connections, as a
/// killed process does.
struct Process {
    runtime: Option<tokio::runtime::Runtime>,
    node: Option<Node>,
}

impl Process {
    fn start(config: raft_transport_quic::QuicConfig) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let node = std::thread::scope(|scope| {
            scope.spawn(|| runtime.block_on(Node::start(config))).join().unwrap()
        });
        Self { runtime: Some(runtime), node: Some(node) }
    }

    fn node(&self) -> &Node {
        self.node.as_ref().unwrap()
    }

    fn kill(&mut self) {
        let runtime = self.runtime.take().unwrap();
        // On another thread, since a runtime must not wait within a runtime.
        std::thread::scope(|scope| {
            scope.spawn(|| runtime.shutdown_timeout(Duration::from_secs(10)));
        });
        self.node = None;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.runtime.is_some() {
            self.kill();
        }
    }
}

/// Sends until something arrives.
async fn reaches(from: &Node, to: &Node, peer: u64) {
    let deadline = Instant::now() + common::PATIENCE;
    loop {
        from.send(peer, control(1));
        let arrived = to.inbound.messages(1);
        if tokio::time::timeout(Duration::from_millis(5), arrived).await.is_ok() {
            return;
        }
        assert!(Instant::now() < deadline, "no message arrives");
    }
}

/// The idle timeout is long, so only the reset of the old connection can tell node 1 of the
/// restart.
#[tokio::test]
async fn a_dialled_peer_that_was_killed_is_back_within_a_second() {
    let ca = DevCa::create("test").unwrap();
    let peers = addresses(2);
    let mut patient = config(&ca, 1, &peers);
    patient.idle_timeout = Duration::from_secs(60);
    let mut impatient = config(&ca, 2, &peers);
    impatient.idle_timeout = Duration::from_secs(60);
    let one = Node::start(patient).await;
    let mut two = Process::start(impatient.clone());
    reaches(&one, two.node(), 2).await;
    two.kill();
    assert!(one.transport.reachability(2).is_ok(), "nothing told node 1 so far");
    two = Process::start(impatient);
    let up = Instant::now();
    reaches(&one, two.node(), 2).await;
    reaches(two.node(), &one, 1).await;
    assert!(up.elapsed() < Duration::from_secs(1), "it took {:?}", up.elapsed());
    one.inbound.wait("the loss", |seen| seen.unreachable.contains(&2).then_some(())).await;
}

#[tokio::test]
async fn a_dialling_peer_that_was_killed_is_back_within_a_second() {
    let ca = DevCa::create("test").unwrap();
    let peers = addresses(2);
    let two = Node::start(config(&ca, 2, &peers)).await;
    let mut settings = config(&ca, 1, &peers);
    settings.idle_timeout = Duration::from_secs(60);
    let mut one = Process::start(settings.clone());
    reaches(&two, one.node(), 1).await;
    one.kill();
    one = Process::start(settings);
    let up = Instant::now();
    reaches(&two, one.node(), 1).await;
    assert!(up.elapsed() < Duration::from_secs(1), "it took {:?}", up.elapsed());
    two.inbound.wait("the loss", |seen| seen.unreachable.contains(&1).then_some(())).await;
}

#[tokio::test]
async fn a_peer_that_is_not_there_is_said_to_be_silent() {
    let ca = DevCa::create("test").unwrap();
    let peers = addresses(2);
    let one = Node::start(config(&ca, 1, &peers)).await;
    one.fails_with(2, "timed out").await;
    one.send(2, control(1));
    assert_eq!(one.transport.dropped_count(2, Class::Control), 1, "nothing is kept for it");
    assert!(one.transport.reachability(9).unwrap_err().0.contains("no address"));
    let mut two = Process::start(config(&ca, 2, &peers));
    reaches(&one, two.node(), 2).await;
    two.kill();
    one.fails_with(2, "timed out").await;
}

#[tokio::test]
async fn closing_tells_the_peers_and_frees_the_port() {
    let ca = DevCa::create("test").unwrap();
    let peers = addresses(2);
    let one = Node::start(config(&ca, 1, &peers)).await;
    let two = Node::start(config(&ca, 2, &peers)).await;
    one.connected_to(2).await;
    two.transport.close().await;
    one.fails_with(2, "stopping").await;
    assert!(two.transport.accept_client().await.is_none());
    std::net::UdpSocket::bind(&peers[&2]).unwrap();
}

#[tokio::test]
async fn another_directory_of_a_node_is_refused_while_the_first_lives() {
    let ca = DevCa::create("test").unwrap();
    let peers = addresses(2);
    let two = Node::start(config(&ca, 2, &peers)).await;
    let mut settings = config(&ca, 1, &peers);
    let mut one = Process::start(settings.clone());
    two.connected_to(1).await;
    // Incarnations are random, so neither the lower nor the higher one is the right one.
    for incarnation in [0, u64::MAX] {
        settings.incarnation = incarnation;
        settings.listen.set_port(0);
        let twin = Node::start(settings.clone()).await;
        twin.fails_with(2, "another directory of the same node is running").await;
        reaches(one.node(), &two, 2).await;
        twin.transport.close().await;
    }
    assert!(two.inbound.wait("nothing", |seen| Some(seen.unreachable.is_empty())).await);
    // The killed node closes nothing. Its connection ends after the idle timeout.
    one.kill();
    let twin = Node::start(settings).await;
    reaches(&twin, &two, 2).await;
}

/// R4. The receiver learns the incarnation of the sender's directory before the first message from
/// it, whichever side dials, and also when it is another one after a restart.
#[tokio::test]
async fn r4_each_message_comes_from_a_known_directory() {
    let ca = DevCa::create("test").unwrap();
    let peers = addresses(2);
    for (id, other_id) in [(1, 2), (2, 1)] {
        let other = Node::start(config(&ca, other_id, &peers)).await;
        for incarnation in [7, 8] {
            let mut settings = config(&ca, id, &peers);
            settings.incarnation = incarnation;
            let node = Node::start(settings).await;
            reaches(&node, &other, other_id).await;
            let origins = |seen: &mut common::Seen| Some(std::mem::take(&mut seen.origins));
            let origins = other.inbound.wait("a message", origins).await;
            assert!(!origins.is_empty());
            assert!(origins.iter().all(|origin| *origin == (id, Some(incarnation))), "{origins:?}");
            node.transport.close().await;
        }
        other.transport.close().await;
    }
}

/// Passes datagrams between one dialling node and the node at `to`, each after `delay`.
async fn far_away(to: String, delay: Duration) -> String {
    let near = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let far = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    far.connect(to).await.unwrap();
    let address = near.local_addr().unwrap().to_string();
    let dialling = Arc::new(Mutex::new(None));
    let (from_near, to_far, known) = (near.clone(), far.clone(), dialling.clone());
    tokio::spawn(async move {
        let mut buffer = vec![0; 10_000];
        while let Ok((length, from)) = from_near.recv_from(&mut buffer).await {
            *known.lock().unwrap() = Some(from);
            let (datagram, to_far) = (buffer[..length].to_vec(), to_far.clone());
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                let _ = to_far.send(&datagram).await;
            });
        }
    });
    tokio::spawn(async move {
        let mut buffer = vec![0; 10_000];
        while let Ok(length) = far.recv(&mut buffer).await {
            let Some(to) = *dialling.lock().unwrap() else { continue };
            let (datagram, near) = (buffer[..length].to_vec(), near.clone());
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                let _ = near.send_to(&datagram, to).await;
            });
        }
    });
    address
}

/// S7. The round trip is longer than the hello timeout, which doubles with each failure.
#[tokio::test]
async fn s07_peers_far_apart_get_to_know_each_other() {
    let ca = DevCa::create("test").unwrap();
    let peers = addresses(2);
    let mut seen_from_one = peers.clone();
    seen_from_one.insert(2, far_away(peers[&2].clone(), Duration::from_millis(150)).await);
    let settings = |id, peers| {
        let mut settings = config(&ca, id, peers);
        settings.hello_timeout = Duration::from_millis(100);
        settings.idle_timeout = Duration::from_secs(10);
        settings
    };
    let two = Node::start(settings(2, &peers)).await;
    let one = Node::start(settings(1, &seen_from_one)).await;
    one.connected_to(2).await;
    two.connected_to(1).await;
    reaches(&two, &one, 1).await;
}

/// One address for each peer.
fn lists(addresses: &BTreeMap<u64, String>) -> BTreeMap<u64, Vec<String>> {
    addresses.iter().map(|(id, address)| (*id, vec![address.clone()])).collect()
}

/// Membership: a node that is added is connected to, and one that is removed is let go; nodes that
/// learn of it one after the other do not refuse each other meanwhile.
#[tokio::test]
async fn members_come_and_go() {
    let ca = DevCa::create("test").unwrap();
    let all = addresses(4);
    let without = |gone: u64| {
        let mut others = all.clone();
        others.remove(&gone);
        others
    };
    let mut nodes = Vec::new();
    for id in 1..=3 {
        nodes.push(Node::start(config(&ca, id, &without(4))).await);
    }
    nodes[0].connected_to(3).await;
    let mut joining = config(&ca, 4, &all);
    joining.members_from_log = true;
    nodes.push(Node::start(joining).await);
    // Only node 1 knows of node 4 yet. Node 2 follows the log, and lags behind.
    nodes[0].transport.set_peers(&lists(&all), 5);
    nodes[1].transport.set_peers(&lists(&without(4)), 4);
    nodes[3].connected_to(1).await;
    nodes[0].connected_to(4).await;
    nodes[0].send(4, control(14));
    assert_eq!(nodes[3].inbound.messages(1).await, [(1, control(14))]);
    // Node 4 shows itself, and node 2 dials back.
    nodes[3].connected_to(2).await;
    nodes[1].connected_to(4).await;
    nodes[3].send(2, control(42));
    nodes[1].send(4, control(24));
    assert_eq!(nodes[1].inbound.messages(1).await, [(4, control(42))]);
    assert_eq!(nodes[3].inbound.messages(1).await, [(2, control(24))]);
    // Node 3 has its members from its file, until it follows the log as well.
    assert!(nodes[2].transport.reachability(4).is_err());
    nodes[2].transport.set_peers(&lists(&all), 5);
    nodes[2].connected_to(4).await;

    // Node 3 is removed. It still believes that it is a member, and is told otherwise.
    for place in [0, 1, 3] {
        nodes[place].transport.set_peers(&lists(&without(3)), 5);
    }
    eventually("node 3 is told that it was removed", || {
        let error = nodes[2].transport.reachability(4).err();
        error.is_some_and(|error| error.to_string().contains("was removed"))
    })
    .await;
    timeout(common::PATIENCE, nodes[2].transport.removed()).await.unwrap();
    for place in [0, 1, 3] {
        assert!(nodes[place].transport.reachability(3).is_err());
        assert!(timeout(Duration::ZERO, nodes[place].transport.removed()).await.is_err());
    }
    nodes[0].send(4, control(15));
    assert_eq!(nodes[3].inbound.messages(1).await, [(1, control(15))]);
}

/// 1.6. A node with a new address shows it to the peers that dial it, and they find it.
#[tokio::test]
async fn a_node_with_a_new_address_is_found() {
    let ca = DevCa::create("test").unwrap();
    let old = addresses(2);
    let mut moved = old.clone();
    moved.insert(2, addresses(1)[&1].clone());
    let mut first = config(&ca, 1, &old);
    first.members_from_log = true;
    let first = Node::start(first).await;
    let mut second = config(&ca, 2, &moved);
    second.members_from_log = true;
    let second = Node::start(second).await;
    first.connected_to(2).await;
    second.connected_to(1).await;
    second.send(1, control(21));
    assert_eq!(first.inbound.messages(1).await, [(2, control(21))]);
}

/// 1.6. A peer has an address in the members' records and one in the operator's file; whichever is
/// right is found.
#[tokio::test]
async fn the_addresses_of_a_peer_are_tried_in_turn() {
    let ca = DevCa::create("test").unwrap();
    let (old, now) = (addresses(2), addresses(2));
    let mut settings = config(&ca, 1, &old);
    settings.members_from_log = true;
    let first = Node::start(settings).await;
    let mut settings = config(&ca, 2, &now);
    settings.members_from_log = true;
    // Node 2 does not know where node 1 is, so it cannot show its address.
    settings.peers = addresses(1);
    let second = Node::start(settings).await;
    let both = BTreeMap::from([(2, vec![old[&2].clone(), now[&2].clone()])]);
    first.transport.set_peers(&both, 0);
    first.connected_to(2).await;
    first.send(2, control(12));
    assert_eq!(second.inbound.messages(1).await, [(1, control(12))]);
}

/// 1.6. A node that moved shows itself at each address of a peer that moved as well, one after the
/// other.
#[tokio::test]
async fn a_node_that_moved_finds_a_peer_that_moved() {
    let ca = DevCa::create("test").unwrap();
    let (old, now) = (addresses(2), addresses(2));
    let place = |of_one: &str, of_two: &str| {
        BTreeMap::from([(1, of_one.to_owned()), (2, of_two.to_owned())])
    };
    let mut first = config(&ca, 1, &place(&now[&1], &old[&2]));
    first.members_from_log = true;
    let first = Node::start(first).await;
    let mut second = config(&ca, 2, &place(&old[&1], &now[&2]));
    second.members_from_log = true;
    let second = Node::start(second).await;
    let both = BTreeMap::from([(1, vec![old[&1].clone(), now[&1].clone()])]);
    second.transport.set_peers(&both, 0);
    first.connected_to(2).await;
    second.connected_to(1).await;
}

/// A peer that is no member is not believed, and neither is a single member of three.
#[tokio::test]
async fn a_majority_has_to_say_that_a_node_was_removed() {
    let ca = DevCa::create("test").unwrap();
    let all = addresses(5);
    let of = |ids: &[u64]| -> BTreeMap<u64, String> {
        ids.iter().map(|id| (*id, all[id].clone())).collect()
    };
    let mut nodes = Vec::new();
    for id in 1..=5 {
        let mut settings = config(&ca, id, &all);
        settings.peers = of(&[1, 2, 3, 4]);
        settings.members_from_log = true;
        nodes.push(Node::start(settings).await);
    }
    // Node 5 is no member, is a guest of node 1, and believes that node 1 was removed.
    nodes[0].connected_to(5).await;
    nodes[0].transport.set_peers(&lists(&of(&[2, 3, 4])), 5);
    nodes[4].transport.set_peers(&lists(&of(&[2, 3, 4])), 5);
    let refused_by = |by: u64| {
        let transport = Arc::clone(&nodes[0].transport);
        eventually("a refusal", move || {
            let error = transport.reachability(by).err();
            error.is_some_and(|error| error.to_string().contains("was removed"))
        })
    };
    refused_by(5).await;
    // One member has an odd view of the cluster.
    nodes[1].transport.set_peers(&lists(&of(&[3, 4])), 5);
    refused_by(2).await;
    assert!(timeout(Duration::ZERO, nodes[0].transport.removed()).await.is_err());
    nodes[2].transport.set_peers(&lists(&of(&[2, 4])), 5);
    timeout(common::PATIENCE, nodes[0].transport.removed()).await.unwrap();
}
