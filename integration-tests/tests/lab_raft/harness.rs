//! The labs' harness on a simulated cluster: networks, assertions and their exact meanings.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::{Range, RangeInclusive};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use integration_tests::counter::{Counter, Counters, command, commands};
use kv_service::sim::{Cluster, LinkFaults, Observed, for_seeds};
use raft_core::consensus::RoleKind;
use raft_core::driver::{Node, NodeConfig};
use raft_core::transport::channel::Traffic;
use raft_core::types::{Message, MessageBody, NodeId, Term};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::ledger::{Ledger, Outcomes, Started};

pub(crate) const MS: Duration = Duration::from_millis(1);
pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// The longest that a test of the labs may take, on the labs' clock and on ours.
const TEST_DURATION_MAX: Duration = Duration::from_secs(120);
/// How long the labs wait for an agreement: in all, and after one proposal.
const AGREEMENT_PATIENCE: Duration = Duration::from_secs(10);
const PROPOSAL_PATIENCE: Duration = Duration::from_secs(2);
/// The labs' `wait`: the sum of its sleeps.
const WAIT_PATIENCE: Duration = Duration::from_secs(31);

/// The behaviour of the links.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Links {
    /// Messages arrive at once, each once, in order.
    Reliable,
    /// Each message is lost with a probability of 10 %; the others take up to 26 ms and overtake
    /// each other freely. In the labs only requests are delayed; here responses are as well.
    Unreliable,
    /// `Unreliable`, and two responses in three are 200 to 2,200 ms late.
    LongReordering,
}

impl Links {
    fn faults(self) -> LinkFaults {
        let unreliable = LinkFaults::none().losing(0.1).reordering(1.0, 26 * MS);
        match self {
            Links::Reliable => LinkFaults::none(),
            Links::Unreliable => unreliable,
            Links::LongReordering => unreliable.answering_late(2.0 / 3.0, 200 * MS, 2_200 * MS),
        }
    }
}

/// The timeouts that the labs' thresholds are stated for: 100 ms between heartbeats, 300 to 600 ms
/// until an election.
pub(crate) fn lab_profile(config: &mut NodeConfig) {
    config.raft.heartbeat_interval = 100 * MS;
    config.raft.election_timeout = 300 * MS;
    config.raft.disk_patience = 1_200 * MS;
}

/// How a test's cluster is made.
#[derive(Clone, Copy)]
pub(crate) struct Setup {
    pub(crate) size: u64,
    pub(crate) links: Links,
    pub(crate) max_raft_state_bytes: u64,
    pub(crate) check_quorum: bool,
}

pub(crate) const fn nodes(size: u64) -> Setup {
    Setup { size, links: Links::Reliable, max_raft_state_bytes: 0, check_quorum: true }
}

impl Setup {
    pub(crate) const fn with(self, links: Links) -> Self {
        Self { links, ..self }
    }

    pub(crate) const fn compacting_at(self, max_raft_state_bytes: u64) -> Self {
        Self { max_raft_state_bytes, ..self }
    }

    pub(crate) const fn without_check_quorum(self) -> Self {
        Self { check_quorum: false, ..self }
    }

    /// Runs the test for each seed, and ends it with [`Lab::end`].
    pub(crate) fn run(self, seeds: Range<u64>, test: impl AsyncFn(&mut Lab)) {
        for_seeds(seeds, async |seed| {
            let mut lab = Lab::new(seed, self).await;
            test(&mut lab).await;
            lab.end().await;
        });
    }
}

/// Permission for [`Lab::one`] to propose a command again.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Retry {
    Yes,
    No,
}

/// One test's cluster.
pub(crate) struct Lab {
    pub(crate) cluster: Counters,
    clients: Clients,
    started: Instant,
    chance: RefCell<StdRng>,
    next_command: RefCell<usize>,
    frame_count: Arc<AtomicU64>,
    founding_count: Arc<AtomicU64>,
}

impl Lab {
    pub(crate) async fn new(seed: u64, setup: Setup) -> Self {
        let started = Instant::now();
        let configure = move |config: &mut NodeConfig| {
            lab_profile(config);
            config.max_raft_state_bytes = setup.max_raft_state_bytes;
            config.raft.check_quorum = setup.check_quorum;
        };
        let cluster =
            Cluster::with_config(seed, setup.size, configure, |_| Counter::default()).await;
        cluster.network.set_default_faults(setup.links.faults());
        let frame_count = Arc::new(AtomicU64::new(0));
        let founding_count = Arc::new(AtomicU64::new(0));
        let (frames, foundings) = (Arc::clone(&frame_count), Arc::clone(&founding_count));
        cluster.network.listen(move |_, _, traffic| match traffic {
            Traffic::Frame(_) => _ = frames.fetch_add(1, Relaxed),
            Traffic::Sent(Message { body: MessageBody::Founding { .. }, .. }) => {
                foundings.fetch_add(1, Relaxed);
            }
            Traffic::Sent(_) | Traffic::Delivered(_) => {}
        });
        let lab = Self {
            cluster,
            clients: Clients::default(),
            started,
            chance: RefCell::new(StdRng::seed_from_u64(seed)),
            next_command: RefCell::new(1),
            frame_count,
            founding_count,
        };
        lab.nodes_changed();
        lab
    }

    /// Ends a test: checks that it took no longer than the labs allow, and that all nodes, with all
    /// links healed, hold one state that every outcome agrees with.
    pub(crate) async fn end(&mut self) -> Outcomes {
        let elapsed = self.started.elapsed();
        assert!(elapsed <= TEST_DURATION_MAX, "the test took {elapsed:?}");
        self.set_links(Links::Reliable);
        self.cluster.heal();
        for id in self.cluster.ids() {
            if !self.is_up(id) {
                self.start(id).await;
            }
        }
        let marker = Bytes::from_static(b"the end");
        let (_, answer) = self.clients.ledger.enter(marker.clone());
        let index = self.cluster.converged(marker).await;
        let applied = commands(&self.cluster).await;
        assert!(index > 0 && applied.len() as u64 == self.cluster.command_count());
        answer(Ok(applied.len() as u64));
        self.clients.ledger.check(&applied).await
    }

    pub(crate) fn set_links(&self, links: Links) {
        self.cluster.network.set_default_faults(links.faults());
    }

    /// Messages that nodes have handed to the network so far: requests and responses.
    pub(crate) fn message_count(&self) -> u64 {
        self.cluster.network.stats().sent
    }

    /// The messages by which new members meet, since the test began.
    pub(crate) fn founding_count(&self) -> u64 {
        self.founding_count.load(Relaxed)
    }

    /// Frames of snapshots that were sent so far.
    pub(crate) fn frame_count(&self) -> u64 {
        self.frame_count.load(Relaxed)
    }

    /// A command that is unique in the run.
    pub(crate) fn command(&self) -> Bytes {
        let mut next = self.next_command.borrow_mut();
        *next += 1;
        command(*next - 1)
    }

    /// A uniformly distributed number of the range.
    pub(crate) fn draw(&self, range: RangeInclusive<u64>) -> u64 {
        self.chance.borrow_mut().random_range(range)
    }

    pub(crate) fn strikes(&self, probability: f64) -> bool {
        self.chance.borrow_mut().random_bool(probability)
    }

    /// To the microsecond, so that the next action also falls between the timers of nodes.
    pub(crate) async fn sleep_up_to(&self, max: Duration) {
        let micros = u64::try_from(max.as_micros()).unwrap();
        sleep(Duration::from_micros(self.draw(0..=micros))).await;
    }

    /// The `distance`-th node after this one, around the ring.
    pub(crate) fn after(&self, id: NodeId, distance: u64) -> NodeId {
        1 + (id - 1 + distance) % self.cluster.ids().count() as u64
    }

    pub(crate) fn is_up(&self, id: NodeId) -> bool {
        self.cluster.nodes.contains_key(&id)
    }

    /// The nodes that run and are not isolated.
    pub(crate) fn connected(&self) -> Vec<NodeId> {
        let is_connected = |id: &NodeId| self.is_up(*id) && !self.cluster.is_isolated(*id);
        self.cluster.ids().filter(is_connected).collect()
    }

    pub(crate) fn disconnect(&mut self, ids: &[NodeId]) {
        ids.iter().for_each(|id| self.cluster.isolate(*id));
    }

    pub(crate) fn connect(&mut self, ids: &[NodeId]) {
        ids.iter().for_each(|id| self.cluster.reconnect(*id));
    }

    pub(crate) fn crash(&mut self, id: NodeId) {
        self.cluster.crash(id);
        self.nodes_changed();
    }

    pub(crate) async fn start(&mut self, id: NodeId) {
        self.cluster.start(id).await;
        self.nodes_changed();
    }

    /// The node loses power, if it runs, and starts again.
    pub(crate) async fn restart(&mut self, id: NodeId) {
        if self.is_up(id) {
            self.crash(id);
        }
        self.start(id).await;
    }

    pub(crate) async fn restart_all(&mut self) {
        for id in self.cluster.ids() {
            if self.is_up(id) {
                self.crash(id);
            }
        }
        for id in self.cluster.ids() {
            self.start(id).await;
        }
    }

    /// Stops all nodes at once, and waits until they have stopped.
    pub(crate) async fn stop_all(&mut self) {
        let nodes = std::mem::take(&mut self.cluster.nodes);
        let stops: Vec<_> = nodes
            .into_values()
            .map(|node| tokio::spawn(async move { node.shutdown().await }))
            .collect();
        self.nodes_changed();
        for stop in stops {
            stop.await.unwrap();
        }
    }

    /// Tells the clients which nodes run.
    fn nodes_changed(&self) {
        *self.clients.nodes.lock().unwrap() = self.cluster.nodes.clone();
    }

    /// Clients for a task of its own.
    pub(crate) fn clients(&self) -> Clients {
        self.clients.clone()
    }

    pub(crate) fn leads(&self, id: NodeId) -> bool {
        self.clients.leads(id)
    }

    pub(crate) fn term(&self, id: NodeId) -> Term {
        self.cluster.nodes[&id].status().term
    }

    /// The labs' `Start`: proposes if the node believes that it leads.
    pub(crate) fn propose(&self, id: NodeId, command: Bytes) -> Option<Started> {
        self.clients.propose(id, command)
    }

    /// Proposes to every running node; only nodes that believe they lead accept.
    pub(crate) fn propose_everywhere(&self, command: &Bytes) -> Vec<(NodeId, Started)> {
        let started = |id: NodeId| Some((id, self.propose(id, command.clone())?));
        self.cluster.nodes.keys().copied().filter_map(started).collect()
    }

    /// The labs' `checkOneLeader`: within about five seconds, one of the connected nodes leads.
    /// Several may believe that they lead, each in a term of its own; the one in the latest term is
    /// returned.
    pub(crate) async fn check_one_leader(&self) -> NodeId {
        for _ in 0..10 {
            sleep(self.draw(450..=549) as u32 * MS).await;
            let mut leaders = BTreeMap::new();
            for id in self.connected().into_iter().filter(|id| self.leads(*id)) {
                let other = leaders.insert(self.term(id), id);
                assert_eq!(other, None, "and {id} lead in term {}", self.term(id));
            }
            if let Some((_, leader)) = leaders.pop_last() {
                return leader;
            }
        }
        panic!("no leader within ten rounds");
    }

    /// The term that all connected nodes are in.
    pub(crate) fn check_terms(&self) -> Term {
        let mut terms: Vec<Term> = self.connected().into_iter().map(|id| self.term(id)).collect();
        terms.dedup();
        assert_eq!(terms.len(), 1, "connected nodes are in different terms: {terms:?}");
        terms[0]
    }

    pub(crate) fn check_no_leader(&self) {
        let leaders: Vec<_> = self.connected().into_iter().filter(|id| self.leads(*id)).collect();
        assert!(leaders.is_empty(), "without a quorum: {leaders:?}");
    }

    /// The labs' `nCommitted`.
    pub(crate) fn applied_count(&self, number: u64) -> usize {
        self.cluster.applied_count(number)
    }

    /// The labs' `one`: within ten seconds, `count` nodes apply the command at the same number,
    /// which is returned. Without [`Retry::Yes`] the first proposal has to succeed within two
    /// seconds.
    pub(crate) async fn one(&self, command: Bytes, count: usize, retry: Retry) -> u64 {
        let until = Instant::now() + AGREEMENT_PATIENCE;
        while Instant::now() < until {
            let ids = self.connected();
            let first = self.draw(0..=ids.len().max(1) as u64 - 1) as usize;
            let in_turn = ids[first..].iter().chain(&ids[..first]);
            let Some(started) = in_turn.copied().find_map(|id| self.propose(id, command.clone()))
            else {
                sleep(50 * MS).await;
                continue;
            };
            let patience = Instant::now() + PROPOSAL_PATIENCE;
            let agreed = timeout_at(patience, async {
                let Ok(number) = started.answer().await else {
                    // As in the labs, which learn of no failure.
                    return std::future::pending().await;
                };
                self.cluster.until(|| self.applied_count(number) >= count).await;
                number
            });
            match agreed.await {
                Ok(number) => {
                    assert_eq!(self.cluster.command(number), Some(command), "at {number}");
                    return number;
                }
                Err(_) => assert!(retry == Retry::Yes, "{command:?} was not agreed on at once"),
            }
        }
        panic!("{command:?} was not agreed on by {count} nodes");
    }

    /// The labs' `wait`: `count` nodes apply the command with this number.
    pub(crate) async fn wait(&self, number: u64, count: usize) -> Bytes {
        let applied = self.cluster.until(|| self.applied_count(number) >= count);
        timeout(WAIT_PATIENCE, applied).await.expect("enough nodes get there");
        self.cluster.command(number).expect("just applied")
    }

    /// The largest log that a node holds on disk, in bytes.
    pub(crate) fn log_bytes_max(&self) -> u64 {
        self.cluster.nodes.values().map(|node| node.status().log_bytes).max().unwrap_or(0)
    }
}

/// Knows the nodes that run, and the proposals made to them. Clones share both.
#[derive(Clone, Default)]
pub(crate) struct Clients {
    nodes: Arc<Mutex<BTreeMap<NodeId, Node<Observed<Counter>>>>>,
    ledger: Ledger,
}

impl Clients {
    pub(crate) fn leads(&self, id: NodeId) -> bool {
        let nodes = self.nodes.lock().unwrap();
        nodes.get(&id).is_some_and(|node| node.status().role == RoleKind::Leader)
    }

    pub(crate) fn propose(&self, id: NodeId, command: Bytes) -> Option<Started> {
        if !self.leads(id) {
            return None;
        }
        let node = self.nodes.lock().unwrap().get(&id)?.clone();
        let (started, answer) = self.ledger.enter(command.clone());
        node.propose(command, answer);
        Some(started)
    }
}
