//! The network of a cluster: relays of UDP datagrams between each two nodes, and between the
//! clients and each node. The two directions of a relay can be made bad independently of each
//! other.
//!
//! ```text
//!   node a  <--->  front | back  <--->  node b          a < b
//!   client  <--->  front | back, one for each client  <--->  node
//! ```
//!
//! Each node is told the relay's side that faces it as the address of its peer. That is all it
//! takes, because a node has one socket and QUIC does not care how many relays a datagram passes:
//! no privilege is needed, nothing of the machine is altered, and clusters do not observe each
//! other's faults. Firewall rules would need a privilege and alter the machine, and could neither
//! repeat nor delay. To the transport a relay looks like a peer whose address never changes, so no
//! feature of the transport has to be switched off.
//!
//! Clients come in two groups with links of their own, so that one group can be cut off from a node
//! that the other one reaches. Faults between nodes leave clients alone: a node that is cut off
//! from its peers still receives requests, which is the harder case.

mod clients;
mod line;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use raft_core::types::NodeId;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

use self::line::{Line, Shared, lock, relay};

/// The groups of clients, which are ends of links like nodes.
pub const CLIENTS: [NodeId; 2] = [101, 102];

/// How one direction of a link treats a datagram. The default passes it on at once.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conditions {
    /// No datagram comes through.
    pub cut: bool,
    /// The share that is lost, that arrives twice, and that arrives with a flipped bit.
    pub loss: f64,
    pub duplication: f64,
    pub damage: f64,
    /// Each datagram takes a time of its own, so later ones overtake earlier ones.
    pub delay: Range<Duration>,
    pub bytes_per_second: Option<u64>,
}

impl Conditions {
    pub fn partition() -> Self {
        Self { cut: true, ..Self::default() }
    }

    pub fn losing(loss: f64) -> Self {
        Self { loss, ..Self::default() }
    }

    pub fn narrow(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: Some(bytes_per_second), ..Self::default() }
    }
}

/// Datagrams of one direction.
#[derive(Clone, Copy, Debug, Default)]
pub struct Traffic {
    pub passed_count: u64,
    pub lost_count: u64,
}

/// All links of a cluster. When this is dropped, no datagram comes through.
pub struct Network {
    directions: BTreeMap<(NodeId, NodeId), Shared>,
    /// The address at which the first node or group finds the second.
    addresses: BTreeMap<(NodeId, NodeId), SocketAddr>,
    seed: u64,
    tasks: JoinSet<()>,
}

impl Network {
    /// Links between all nodes, which listen at the given addresses, and from the clients to them.
    ///
    /// # Panics
    /// If no socket can be opened.
    pub async fn between(nodes: &BTreeMap<NodeId, SocketAddr>, seed: u64) -> Self {
        let mut network = Self {
            directions: BTreeMap::new(),
            addresses: BTreeMap::new(),
            seed,
            tasks: JoinSet::new(),
        };
        for (&a, &at_a) in nodes {
            for (&b, &at_b) in nodes.range(a + 1..) {
                let (front, back) = (socket(at_a.ip()).await, socket(at_b.ip()).await);
                network.addresses.insert((a, b), address(&front));
                network.addresses.insert((b, a), address(&back));
                let sides = [(a, b, &front, at_a, &back, at_b), (b, a, &back, at_b, &front, at_a)];
                for (from, to, enters, source, leaves, target) in sides {
                    let line = network.line(from, to);
                    let (enters, leaves) = (Arc::clone(enters), Arc::clone(leaves));
                    network.tasks.spawn(relay(enters, source, leaves, target, line));
                }
            }
        }
        for group in CLIENTS {
            for (&node, &at) in nodes {
                let front = socket(at.ip()).await;
                network.addresses.insert((group, node), address(&front));
                let (there, back) = (network.line(group, node), network.line(node, group));
                network.tasks.spawn(clients::serve(front, at, there, back));
            }
        }
        network
    }

    /// Creates the line of this direction; returns its entrance.
    fn line(&mut self, from: NodeId, to: NodeId) -> line::Entrance {
        let direction = Shared::default();
        self.directions.insert((from, to), Arc::clone(&direction));
        let chance = StdRng::seed_from_u64(self.seed ^ (from << 8) ^ to);
        let (entrance, line) = Line::new(direction, chance);
        self.tasks.spawn(line.run());
        entrance
    }

    /// Where `viewer`, a node or a group of clients, finds the node `peer`.
    pub fn address(&self, viewer: NodeId, peer: NodeId) -> SocketAddr {
        self.addresses[&(viewer, peer)]
    }

    /// Sets the conditions of this direction alone.
    pub fn set(&self, from: NodeId, to: NodeId, conditions: Conditions) {
        lock(&self.directions[&(from, to)]).conditions = conditions;
    }

    pub fn set_both(&self, a: NodeId, b: NodeId, conditions: &Conditions) {
        self.set(a, b, conditions.clone());
        self.set(b, a, conditions.clone());
    }

    /// Sets the conditions between all nodes.
    pub fn set_all(&self, conditions: &Conditions) {
        self.set_where(conditions, |from, to| !is_client(from) && !is_client(to));
    }

    /// Sets the conditions between this node and all others, in both directions.
    pub fn set_around(&self, node: NodeId, conditions: &Conditions) {
        self.set_where(conditions, |from, to| {
            (from == node && !is_client(to)) || (to == node && !is_client(from))
        });
    }

    /// Restores all links, also those of clients.
    pub fn heal(&self) {
        self.set_where(&Conditions::default(), |_, _| true);
    }

    fn set_where(&self, conditions: &Conditions, applies: impl Fn(NodeId, NodeId) -> bool) {
        for (&(from, to), direction) in &self.directions {
            if applies(from, to) {
                lock(direction).conditions = conditions.clone();
            }
        }
    }

    pub fn traffic(&self, from: NodeId, to: NodeId) -> Traffic {
        lock(&self.directions[&(from, to)]).traffic
    }

    /// Over all directions.
    pub fn lost_count(&self) -> u64 {
        self.directions.values().map(|direction| lock(direction).traffic.lost_count).sum()
    }
}

fn is_client(end: NodeId) -> bool {
    CLIENTS.contains(&end)
}

fn address(socket: &UdpSocket) -> SocketAddr {
    socket.local_addr().expect("it is bound")
}

async fn socket(ip: IpAddr) -> Arc<UdpSocket> {
    let socket = UdpSocket::bind((ip, 0)).await.expect("a free port");
    let plain = socket2::SockRef::from(&socket);
    // Best effort. Datagrams that do not fit are lost, as anywhere else on a network.
    let _ = plain.set_recv_buffer_size(4 << 20);
    Arc::new(socket)
}
