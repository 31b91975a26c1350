//! The connections of one client, at most one to each node and opened on demand, and the node that
//! is believed to lead.
//!
//! After a leader dies, the other nodes still name it until they notice. A client that believed
//! them would wait for the dead node again. So a node that did not answer in time is passed over,
//! even if another node names it as the leader, for as long as the client had waited for it, at
//! most [`PASSED_OVER_MAX`]. The time is short because the node may live and the others may be
//! right.
//!
//! The patience of an attempt to connect adapts to the round trip, because nodes may be far away.
//! Until a first node is reached, it doubles with each attempt of the client that ends without an
//! answer. From then on, it is four times what the slowest connection took, and doubles only with
//! the attempts at the same node. Callers meanwhile wait no longer than they would for a live node:
//! a dead node must not make each call slow.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use raft_core::types::{Index, NodeId};
use tokio::sync::OwnedMutexGuard;
use tokio::time::{Instant, timeout};

use super::connection::Connection;
use crate::members::MemberList;
use crate::net::stream::Connector;
use crate::rng::NodeRng;

/// Patience of an attempt to connect while nothing is known about the round trip.
const CONNECT_PATIENCE: Duration = Duration::from_millis(700);
/// Longest attempt; three round trips of two seconds fit into it.
const CONNECT_PATIENCE_MAX: Duration = Duration::from_secs(8);
/// Longest attempt at a node that does not answer while others do, unless the learned patience is
/// longer. Short, because an attempt that began before the node was up notices late that it is.
const KNOWN_PATIENCE_MAX: Duration = Duration::from_secs(4);
/// An attempt may take this many times as long as the slowest connection took.
const CONNECT_MARGIN: u32 = 4;
/// Calls within this time after a failed attempt share its error.
const FAILURE_SHARED_FOR: Duration = Duration::from_millis(30);
/// Longest time for which a node is passed over. Within it, the other nodes notice that their
/// leader is dead; a node that was restarted is not avoided for longer.
const PASSED_OVER_MAX: Duration = Duration::from_millis(500);

pub(super) struct Links {
    connector: Arc<dyn Connector>,
    client_name: String,
    made_at: Instant,
    /// Random numbers of this client: for the first node to ask, and for the jitter of pauses.
    pub(super) rng: NodeRng,
    known: RwLock<Known>,
    /// Attempts that ended without an answer before the first node was reached.
    timeout_count: AtomicU32,
    /// The node that is asked first.
    target: AtomicU64,
    closed: AtomicBool,
}

/// The nodes that the client knows: those of its configuration, then the members that a node has
/// named.
struct Known {
    /// Place of the newest list of members in the log; `None` before the first.
    index: Option<Index>,
    nodes: Vec<NodeId>,
    links: BTreeMap<NodeId, Arc<NodeLink>>,
}

/// A node, and a connection to it.
pub(super) struct Reached {
    pub(super) connection: Arc<Connection>,
    link: Arc<NodeLink>,
}

#[derive(Default)]
struct NodeLink {
    live: Mutex<Option<Arc<Connection>>>,
    /// End of the time in which other nodes are asked because this one did not answer, in
    /// microseconds since [`Links::made_at`]; 0 when it has answered since.
    passed_over_until_us: AtomicU64,
    /// Duration of the last successful attempt to connect, which takes three round trips, in
    /// microseconds; 0 before the first.
    connect_us: AtomicU64,
    /// Attempts in a row that ended without an answer.
    timeout_count: AtomicU32,
    /// Held while connecting. Keeps when and why the last attempt failed.
    connecting: Arc<tokio::sync::Mutex<Option<(Instant, String)>>>,
}

impl Links {
    pub(super) fn new(connector: Arc<dyn Connector>, client_name: String, rng: NodeRng) -> Self {
        let nodes = connector.nodes();
        assert!(!nodes.is_empty(), "a checked configuration names nodes");
        let links = nodes.iter().map(|node| (*node, Arc::default())).collect();
        let target = AtomicU64::new(nodes[rng.below(nodes.len())]);
        let known = RwLock::new(Known { index: None, nodes, links });
        let closed = AtomicBool::new(false);
        let made_at = Instant::now();
        let timeout_count = AtomicU32::new(0);
        Self { connector, client_name, rng, made_at, known, timeout_count, target, closed }
    }

    pub(super) fn nodes(&self) -> Vec<NodeId> {
        self.known().nodes.clone()
    }

    pub(super) async fn finds(&self, node: NodeId, address: &str) -> bool {
        self.connector.finds(node, address).await
    }

    fn known(&self) -> RwLockReadGuard<'_, Known> {
        // Held for single steps only; none of them panics half-way.
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn link(&self, node: NodeId) -> Option<Arc<NodeLink>> {
        self.known().links.get(&node).cloned()
    }

    /// Takes note of the members that a node has named. A list that is older than the one in use,
    /// or empty, changes nothing. Connections to nodes that are no longer members close when the
    /// calls on them have ended.
    pub(super) fn learn(&self, list: &MemberList) {
        let is_newer = |known: &Known| known.index.is_none_or(|index| index < list.index);
        if list.members.is_empty() || !is_newer(&self.known()) {
            return;
        }
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if !is_newer(&known) || !self.connector.learn(&list.members) {
            return;
        }
        known.index = Some(list.index);
        known.nodes = list.members.iter().map(|member| member.id).collect();
        let mut before = std::mem::take(&mut known.links);
        let link = |node: &NodeId| (*node, before.remove(node).unwrap_or_default());
        known.links = known.nodes.iter().map(link).collect();
        let target = self.target();
        if !known.links.contains_key(&target) {
            let next = known.nodes[self.rng.below(known.nodes.len())];
            // It fails if another call has turned to another node.
            let _ =
                self.target.compare_exchange(target, next, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    pub(super) fn target(&self) -> NodeId {
        self.target.load(Ordering::Relaxed)
    }

    /// Aims at the leader that a node has named. Returns false, and changes nothing, if the client
    /// does not know that node or passes it over.
    pub(super) fn aim_at(&self, leader: NodeId) -> bool {
        let useful = self.link(leader).is_some_and(|link| !self.is_passed_over(&link));
        if useful {
            self.target.store(leader, Ordering::Relaxed);
        }
        useful
    }

    fn is_passed_over(&self, link: &NodeLink) -> bool {
        let until_us = link.passed_over_until_us.load(Ordering::Relaxed);
        until_us != 0 && self.made_at.elapsed() < Duration::from_micros(until_us)
    }

    /// Passes over a node that has not answered since `since`.
    pub(super) fn pass_over(&self, node: NodeId, since: Instant) {
        if let Some(link) = self.link(node) {
            let until = self.made_at.elapsed() + since.elapsed().min(PASSED_OVER_MAX);
            link.passed_over_until_us.fetch_max(until.as_micros() as u64, Ordering::Relaxed);
        }
    }

    /// Directs further calls from this node to the next one, unless another call has already done
    /// so.
    pub(super) fn turn_away_from(&self, node: NodeId) {
        let next = self.after(node);
        // It fails if another call has already turned away.
        let _ = self.target.compare_exchange(node, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The next node in the cycle of all nodes that is not passed over; if all are, the next node.
    pub(super) fn after(&self, node: NodeId) -> NodeId {
        let known = self.known();
        let place = known.nodes.iter().position(|known| *known == node).unwrap_or(0);
        let round = || known.nodes.iter().copied().cycle().skip(place + 1).take(known.nodes.len());
        let next = round().find(|next| !self.is_passed_over(&known.links[next]));
        next.or_else(|| round().next()).expect("a client knows at least one node")
    }

    /// Time that suffices to connect to the slowest node ever reached; `None` before the first one.
    fn learned_patience(&self) -> Option<Duration> {
        let connect_us = |link: &Arc<NodeLink>| link.connect_us.load(Ordering::Relaxed);
        let slowest_us = self.known().links.values().map(connect_us).max();
        let slowest = Duration::from_micros(slowest_us.filter(|took_us| *took_us != 0)?);
        let learned = slowest.saturating_mul(CONNECT_MARGIN);
        Some(learned.clamp(CONNECT_PATIENCE, CONNECT_PATIENCE_MAX))
    }

    /// How long the next attempt to connect may take.
    fn attempt_patience(&self, link: &NodeLink) -> Duration {
        let doubled = |patience: Duration, count: &AtomicU32| {
            let factor = 1u32.checked_shl(count.load(Ordering::Relaxed)).unwrap_or(u32::MAX);
            patience.saturating_mul(factor)
        };
        let patience = match self.learned_patience() {
            None => doubled(CONNECT_PATIENCE, &self.timeout_count).min(CONNECT_PATIENCE_MAX),
            Some(learned) => {
                doubled(learned, &link.timeout_count).min(KNOWN_PATIENCE_MAX.max(learned))
            }
        };
        assert!(
            (CONNECT_PATIENCE..=CONNECT_PATIENCE_MAX).contains(&patience),
            "{patience:?} is within the bounds of an attempt"
        );
        patience
    }

    /// The live connection to the node, if there is one.
    pub(super) fn reached(&self, node: NodeId) -> Option<Reached> {
        let link = self.link(node)?;
        Some(Reached { connection: link.live()?, link })
    }

    /// Connects to the node, unless it is connected. A caller that gives up waiting does not stop
    /// the attempt: the connection is there for the next caller.
    pub(super) async fn reach(self: &Arc<Self>, node: NodeId) -> Result<Reached, String> {
        let link = self.link(node).ok_or_else(|| format!("there is no node {node}"))?;
        let connection = match self.learned_patience() {
            None => self.new_connection(node, &link).await,
            Some(patience) => timeout(patience, self.new_connection(node, &link))
                .await
                .unwrap_or_else(|_| Err(format!("no connection within {patience:?}"))),
        };
        Ok(Reached { connection: connection?, link })
    }

    async fn new_connection(
        self: &Arc<Self>,
        node: NodeId,
        link: &Arc<NodeLink>,
    ) -> Result<Arc<Connection>, String> {
        let failure = Arc::clone(&link.connecting).lock_owned().await;
        if let Some(live) = link.live() {
            return Ok(live);
        }
        if let Some((at, why)) = &*failure
            && at.elapsed() < FAILURE_SHARED_FOR
        {
            return Err(why.clone());
        }
        let attempt = tokio::spawn(Arc::clone(self).connect(node, Arc::clone(link), failure));
        attempt.await.unwrap_or_else(|error| Err(error.to_string()))
    }

    async fn connect(
        self: Arc<Self>,
        node: NodeId,
        link: Arc<NodeLink>,
        mut failure: OwnedMutexGuard<Option<(Instant, String)>>,
    ) -> Result<Arc<Connection>, String> {
        let (since, patience) = (Instant::now(), self.attempt_patience(&link));
        let attempt = async {
            let connecting = self.connector.connect(node).await;
            let stream = connecting.map_err(|error| error.to_string())?;
            let links = Arc::downgrade(&self);
            let on_members = move |list: &MemberList| {
                if let Some(links) = links.upgrade() {
                    links.learn(list);
                }
            };
            Connection::open(stream, &self.client_name, Box::new(on_members)).await
        };
        let opened = match timeout(patience, attempt).await {
            Ok(result) => result,
            Err(_) => {
                self.timeout_count.fetch_add(1, Ordering::Relaxed);
                link.timeout_count.fetch_add(1, Ordering::Relaxed);
                Err(format!("no connection within {patience:?}"))
            }
        };
        *failure = opened.as_ref().err().map(|why| (Instant::now(), why.clone()));
        let connection = Arc::new(opened?);
        link.timeout_count.store(0, Ordering::Relaxed);
        link.connect_us.store(since.elapsed().as_micros().max(1) as u64, Ordering::Relaxed);
        if let Some(leader) = connection.hello().leader_id
            && self.target() == node
        {
            self.aim_at(leader);
        }
        link.keep(Arc::clone(&connection));
        if self.is_closed() {
            connection.close();
        }
        Ok(connection)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Forbids further attempts; [`Links::close`] then breaks the connections.
    pub(super) fn begin_close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    /// Breaks all connections.
    pub(super) async fn close(&self) {
        assert!(self.is_closed(), "a connection that comes later closes itself");
        let links: Vec<_> = self.known().links.values().cloned().collect();
        for link in links {
            if let Some(live) = link.live() {
                live.close();
            }
        }
        self.connector.close().await;
    }
}

impl Reached {
    /// How long a response of the node may be under way: as long as connecting took, which is three
    /// round trips.
    pub(super) fn round_trip_patience(&self) -> Duration {
        Duration::from_micros(self.link.connect_us.load(Ordering::Relaxed))
    }

    /// The node answered, so it is no longer passed over.
    pub(super) fn note_answer(&self) {
        let until_us = &self.link.passed_over_until_us;
        if until_us.load(Ordering::Relaxed) != 0 {
            until_us.store(0, Ordering::Relaxed);
        }
    }
}

impl NodeLink {
    fn live(&self) -> Option<Arc<Connection>> {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.as_ref().filter(|connection| !connection.is_broken()).cloned()
    }

    fn keep(&self, connection: Arc<Connection>) {
        assert!(self.live().is_none(), "there is at most one connection to a node");
        *self.live.lock().unwrap_or_else(PoisonError::into_inner) = Some(connection);
    }
}
