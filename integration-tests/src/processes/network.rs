//! The network between the nodes: a relay of UDP datagrams for each pair, whose two directions can be
//! made bad independently of each other.
//!
//! ```text
//!   node a  <--->  front | back  <--->  node b          a < b
//! ```
//!
//! Each node is told the relay's side that faces it as the address of its peer. That is all it takes,
//! because a node has one socket and QUIC does not care through how many hands a datagram goes: no
//! right is needed, nothing of the machine is altered, and clusters do not see each other's faults.
//! Firewall rules would need both, and could neither repeat nor delay. To the transport a relay
//! looks like a peer whose address never changes, so nothing in it has to be switched off.
//!
//! Clients do not go through relays: a node that is cut off from its peers is still asked by them,
//! which is the harder case.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use raft_core::types::NodeId;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

/// Bytes that may be on their way in one direction, as in a router's buffer; what comes on top is lost.
const IN_FLIGHT_BYTES_MAX: usize = 512 << 10;

/// How one direction of a link treats a datagram. The default hands it on at once.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conditions {
    /// Nothing comes through.
    pub cut: bool,
    /// The share that is lost, that arrives twice, and that arrives with a flipped bit.
    pub loss: f64,
    pub duplication: f64,
    pub damage: f64,
    /// Each takes a time of its own, so later ones overtake earlier ones.
    pub delay: Range<Duration>,
    pub bytes_per_second: Option<u64>,
}

impl Conditions {
    pub fn cut() -> Self {
        Self { cut: true, ..Self::default() }
    }

    pub fn losing(loss: f64) -> Self {
        Self { loss, ..Self::default() }
    }
}

/// What has gone through one direction.
#[derive(Clone, Copy, Debug, Default)]
pub struct Traffic {
    pub passed_count: u64,
    pub lost_count: u64,
}

#[derive(Default)]
struct Direction {
    conditions: Conditions,
    traffic: Traffic,
}

type Shared = Arc<Mutex<Direction>>;

fn lock(direction: &Shared) -> MutexGuard<'_, Direction> {
    direction.lock().expect("nothing panics while it holds a direction")
}

/// All links of a cluster. Dropped, nothing goes through any more.
pub struct Network {
    directions: BTreeMap<(NodeId, NodeId), Shared>,
    /// As what (first) sees (second).
    addresses: BTreeMap<(NodeId, NodeId), SocketAddr>,
    _relays: JoinSet<()>,
}

impl Network {
    /// Links between all nodes, which listen where it says.
    ///
    /// # Panics
    /// If the machine gives no sockets.
    pub async fn between(nodes: &BTreeMap<NodeId, SocketAddr>, seed: u64) -> Self {
        let mut network = Self {
            directions: BTreeMap::new(),
            addresses: BTreeMap::new(),
            _relays: JoinSet::new(),
        };
        for (&a, &at_a) in nodes {
            for (&b, &at_b) in nodes.range(a + 1..) {
                let (front, back) = (socket(at_a.ip()).await, socket(at_b.ip()).await);
                let address = |socket: &UdpSocket| socket.local_addr().expect("it is bound");
                network.addresses.insert((a, b), address(&front));
                network.addresses.insert((b, a), address(&back));
                let sides = [(a, b, &front, at_a, &back, at_b), (b, a, &back, at_b, &front, at_a)];
                for (from, to, enters, source, leaves, target) in sides {
                    let direction = Shared::default();
                    network.directions.insert((from, to), direction.clone());
                    let (enters, leaves) = (Arc::clone(enters), Arc::clone(leaves));
                    let chance = StdRng::seed_from_u64(seed ^ (from << 8) ^ to);
                    let relay = Relay { direction, enters, source, leaves, target, chance };
                    network._relays.spawn(relay.run());
                }
            }
        }
        network
    }

    /// Where `viewer` finds `peer`.
    pub fn address(&self, viewer: NodeId, peer: NodeId) -> SocketAddr {
        self.addresses[&(viewer, peer)]
    }

    /// From now on, in this direction alone.
    pub fn set(&self, from: NodeId, to: NodeId, conditions: Conditions) {
        lock(&self.directions[&(from, to)]).conditions = conditions;
    }

    pub fn set_both(&self, a: NodeId, b: NodeId, conditions: &Conditions) {
        self.set(a, b, conditions.clone());
        self.set(b, a, conditions.clone());
    }

    pub fn set_all(&self, conditions: &Conditions) {
        for direction in self.directions.values() {
            lock(direction).conditions = conditions.clone();
        }
    }

    /// Between this node and all others, in both directions.
    pub fn set_around(&self, node: NodeId, conditions: &Conditions) {
        for (&(from, to), direction) in &self.directions {
            if from == node || to == node {
                lock(direction).conditions = conditions.clone();
            }
        }
    }

    pub fn heal(&self) {
        self.set_all(&Conditions::default());
    }

    pub fn traffic(&self, from: NodeId, to: NodeId) -> Traffic {
        lock(&self.directions[&(from, to)]).traffic
    }

    /// Over all directions.
    pub fn lost_count(&self) -> u64 {
        self.directions.values().map(|direction| lock(direction).traffic.lost_count).sum()
    }
}

async fn socket(ip: IpAddr) -> Arc<UdpSocket> {
    let socket = UdpSocket::bind((ip, 0)).await.expect("a free port");
    let plain = socket2::SockRef::from(&socket);
    // Best effort. What does not fit is lost, as anywhere on the way.
    let _ = plain.set_recv_buffer_size(4 << 20);
    Arc::new(socket)
}

/// One direction of a link.
struct Relay {
    direction: Shared,
    enters: Arc<UdpSocket>,
    source: SocketAddr,
    leaves: Arc<UdpSocket>,
    target: SocketAddr,
    chance: StdRng,
}

/// Datagrams on their way, by when they arrive; the number keeps those of one time apart.
type InFlight = BTreeMap<(Instant, u64), Vec<u8>>;

impl Relay {
    async fn run(mut self) {
        let mut buffer = vec![0; 64 << 10];
        let mut in_flight = InFlight::new();
        let mut in_flight_bytes = 0;
        let mut number = 0;
        // When the line is free, if it is a narrow one.
        let mut free_at = Instant::now();
        loop {
            let next = in_flight.first_key_value().map(|((at, _), _)| *at);
            tokio::select! {
                received = self.enters.recv_from(&mut buffer) => {
                    // An error is that of an earlier datagram whose target was not there.
                    let Ok((length, from)) = received else { continue };
                    if from != self.source {
                        continue;
                    }
                    for datagram in self.admit(&buffer[..length], in_flight_bytes) {
                        let arrives = self.arrival(datagram.len(), &mut free_at);
                        in_flight_bytes += datagram.len();
                        number += 1;
                        in_flight.insert((arrives, number), datagram);
                    }
                }
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            }
            let now = Instant::now();
            while let Some(first) = in_flight.first_entry().filter(|first| first.key().0 <= now) {
                let datagram = first.remove();
                in_flight_bytes -= datagram.len();
                // Lost if nobody is there, or the machine has no room for it.
                let _ = self.leaves.send_to(&datagram, self.target).await;
            }
        }
    }

    /// What becomes of a datagram: nothing, itself, or itself twice.
    fn admit(&mut self, datagram: &[u8], in_flight_bytes: usize) -> Vec<Vec<u8>> {
        let mut direction = lock(&self.direction);
        let conditions = &direction.conditions;
        let chance = &mut self.chance;
        let lost = conditions.cut
            || chance.random_bool(conditions.loss)
            || in_flight_bytes + datagram.len() > IN_FLIGHT_BYTES_MAX;
        if lost {
            direction.traffic.lost_count += 1;
            return Vec::new();
        }
        let mut datagram = datagram.to_vec();
        if !datagram.is_empty() && chance.random_bool(conditions.damage) {
            let place = chance.random_range(0..datagram.len());
            datagram[place] ^= 1 << chance.random_range(0..8);
        }
        let twice = chance.random_bool(conditions.duplication);
        direction.traffic.passed_count += 1;
        if twice { vec![datagram.clone(), datagram] } else { vec![datagram] }
    }

    fn arrival(&mut self, bytes: usize, free_at: &mut Instant) -> Instant {
        let direction = lock(&self.direction);
        let Conditions { delay, bytes_per_second, .. } = &direction.conditions;
        let mut at = Instant::now();
        if let Some(rate) = bytes_per_second {
            let transmission = Duration::from_secs_f64(bytes as f64 / *rate as f64);
            *free_at = at.max(*free_at) + transmission;
            at = *free_at;
        }
        if delay.is_empty() {
            at + delay.start
        } else {
            at + self.chance.random_range(delay.clone())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    struct Pair {
        network: Network,
        one: UdpSocket,
        two: UdpSocket,
    }

    async fn pair() -> Pair {
        let localhost = IpAddr::from(Ipv4Addr::LOCALHOST);
        let one = UdpSocket::bind((localhost, 0)).await.unwrap();
        let two = UdpSocket::bind((localhost, 0)).await.unwrap();
        let nodes = [(1, one.local_addr().unwrap()), (2, two.local_addr().unwrap())];
        let network = Network::between(&nodes.into(), 7).await;
        Pair { network, one, two }
    }

    impl Pair {
        /// Sends so many, numbered, and returns what arrived until all was sent and nothing came any more.
        async fn send(&self, count: u32) -> Vec<u32> {
            let to = self.network.address(1, 2);
            let sending = async {
                for number in 0..count {
                    self.one.send_to(&number.to_be_bytes(), to).await.unwrap();
                    // The relay is not to be overrun: this is no test of the system's buffers.
                    tokio::time::sleep(Duration::from_micros(50)).await;
                }
            };
            // At the same time, for the same reason.
            let receiving = async {
                let mut seen = Vec::new();
                let mut buffer = [0; 64];
                let quiet = Duration::from_millis(300);
                while let Ok(received) =
                    tokio::time::timeout(quiet, self.two.recv_from(&mut buffer)).await
                {
                    let (length, from) = received.unwrap();
                    assert_eq!(from, self.network.address(2, 1), "the peer looks the same always");
                    seen.push(u32::from_be_bytes(buffer[..length].try_into().unwrap()));
                }
                seen
            };
            tokio::join!(sending, receiving).1
        }
    }

    #[tokio::test]
    async fn a_healthy_link_hands_on_and_a_cut_one_does_not() {
        let pair = pair().await;
        assert_eq!(pair.send(20).await, Vec::from_iter(0..20));
        pair.network.set(1, 2, Conditions::cut());
        assert!(pair.send(20).await.is_empty());
        assert_eq!(pair.network.traffic(1, 2).lost_count, 20);
        // The other direction is another matter.
        pair.two.send_to(b"back", pair.network.address(2, 1)).await.unwrap();
        let mut buffer = [0; 64];
        assert_eq!(pair.one.recv_from(&mut buffer).await.unwrap().0, 4);
        pair.network.heal();
        assert_eq!(pair.send(20).await, Vec::from_iter(0..20));
    }

    #[tokio::test]
    async fn a_bad_link_loses_repeats_delays_and_reorders() {
        let pair = pair().await;
        let bad = Conditions {
            loss: 0.2,
            duplication: 0.3,
            delay: Duration::from_millis(1)..Duration::from_millis(30),
            ..Conditions::default()
        };
        pair.network.set(1, 2, bad);
        let seen = pair.send(500).await;
        let mut distinct = seen.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert!((350..450).contains(&distinct.len()), "{} of 500 came through", distinct.len());
        assert!(seen.len() > distinct.len() + 50, "few came twice");
        assert!(!seen.is_sorted(), "none was overtaken");
    }

    #[tokio::test]
    async fn a_narrow_link_takes_its_time() {
        let pair = pair().await;
        let narrow = Conditions { bytes_per_second: Some(200), ..Conditions::default() };
        pair.network.set(1, 2, narrow);
        let before = Instant::now();
        assert_eq!(pair.send(25).await, Vec::from_iter(0..25));
        // 100 bytes, and the pause by which the end is known.
        assert!(before.elapsed() >= Duration::from_millis(500 + 300));
    }
}
