//! Servers that come and go: the nodes of a lab whose members change.
//!
//! Unlike `kv_service::sim::Service`, whose servers are fixed, it starts a server for each member
//! that an operator adds. A server that was removed runs on until it learns of that, and starts
//! again with the others: it must not disturb them.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use kv_service::members::ClusterReport;
use kv_service::net::Chunk;
use kv_service::sim::{Latency, MemoryDisk, Operation, Trace};
use kv_service::state::{MachineQuery, QueryOutput};
use kv_service::{
    Answer, Client, LocalNetwork, Network, NodeId, Query, Record, ScanPage, Server, ServerConfig,
    ServerError, Store,
};
use raft_core::driver::Members;
use raft_core::transport::channel::Traffic;
use raft_core::types::{MessageBody, Term};
use tokio::time::{Instant, timeout};

use crate::lab::{DISK_LATENCY, Lab};

/// A learner that has kept up for this long becomes a voter.
const STABILIZATION: Duration = Duration::from_secs(1);
/// Longest time in which the servers of a healed network agree.
const AGREEMENT: Duration = Duration::from_secs(10);
/// Ten election timeouts, in which the leader tells a server that it was removed, and one more.
const FAREWELL: Duration = Duration::from_millis(11 * 300);

pub(crate) struct Cluster {
    pub(crate) lab: Lab,
    pub(crate) network: LocalNetwork,
    pub(crate) trace: Trace,
    state: RefCell<ClusterState>,
    /// Starts are made one at a time: a server that is being started does not run yet.
    starting: tokio::sync::Mutex<()>,
    observed: Arc<Mutex<Observed>>,
    /// True while the operator waits for a change.
    pub(crate) is_changing: Cell<bool>,
}

#[derive(Default)]
struct ClusterState {
    running: BTreeMap<NodeId, Server>,
    /// All servers that were ever added, with the configuration of each.
    machines: BTreeMap<NodeId, (ServerConfig, MemoryDisk)>,
    /// The members, as far as the operator knows.
    members: BTreeSet<NodeId>,
    /// Servers that never start again.
    lost: BTreeSet<NodeId>,
}

/// Events that the nodes cause, for the checks at the end.
#[derive(Default)]
struct Observed {
    /// Servers that stopped for good, because they learned that they were removed.
    removed: BTreeSet<NodeId>,
    /// The node that sent entries in a term.
    leaders: BTreeMap<Term, NodeId>,
    /// Two leaders of one term.
    rivals: Option<String>,
    /// Servers that were sent a frame of a snapshot.
    given_snapshots: BTreeSet<NodeId>,
}

impl Cluster {
    /// Starts the founders.
    pub(crate) async fn new(lab: Lab, seed: u64) -> Self {
        let cluster = Self {
            lab,
            network: LocalNetwork::new(seed),
            trace: Trace::new(),
            state: RefCell::default(),
            starting: tokio::sync::Mutex::default(),
            observed: Arc::default(),
            is_changing: Cell::new(false),
        };
        lab.set_faults(&cluster.network);
        cluster.trace.listen_to(cluster.network.peers());
        let observed = Arc::clone(&cluster.observed);
        cluster.network.peers().listen(move |from, to, traffic| {
            observe(&observed).note(from, to, traffic);
        });
        let trace = cluster.trace.clone();
        cluster.network.listen(move |Chunk { node, to_node, bytes, lost, .. }| {
            let direction = if to_node { "to" } else { "from" };
            let lost = if lost { ", lost" } else { "" };
            let text = bytes.escape_ascii();
            trace.note(format_args!("a client {direction} {node}{lost}: {text}"));
        });
        for id in 1..=lab.server_count {
            let config = ServerConfig::in_process(id, 1..=lab.server_count);
            cluster.install(config, MemoryDisk::of_new_member());
        }
        cluster.start_all().await;
        cluster
    }

    /// Starts the server of a member that was added, on an empty disk.
    pub(crate) async fn join(&self, id: NodeId) {
        let mut config = ServerConfig::in_process(id, self.members());
        config.join = true;
        self.install(config, MemoryDisk::new());
        self.start_all().await;
    }

    /// The operator knows that a member was removed.
    pub(crate) fn leave(&self, id: NodeId) {
        self.trace.note(format_args!("{id} has left"));
        assert!(self.state.borrow_mut().members.remove(&id), "{id} was a member");
    }

    fn install(&self, mut config: ServerConfig, disk: MemoryDisk) {
        self.lab.configure(&mut config);
        config.timeouts.stabilization = STABILIZATION;
        let latency = Latency { before: DISK_LATENCY / 2, after: DISK_LATENCY / 2 };
        disk.set_latency(Operation::Persist, latency);
        let mut state = self.state.borrow_mut();
        let id = config.node_id;
        assert!(state.members.insert(id), "no id is given out twice");
        assert!(state.machines.insert(id, (config, disk)).is_none(), "no id is given out twice");
    }

    /// Members that clients and nodes can ask first.
    pub(crate) fn members(&self) -> BTreeSet<NodeId> {
        self.state.borrow().members.clone()
    }

    pub(crate) fn running(&self) -> Vec<NodeId> {
        self.state.borrow().running.keys().copied().collect()
    }

    pub(crate) fn runs(&self, id: NodeId) -> bool {
        self.state.borrow().running.contains_key(&id)
    }

    fn server(&self, id: NodeId) -> Server {
        self.state.borrow().running[&id].clone()
    }

    /// A client that begins with the present members and follows them.
    pub(crate) fn client(&self) -> Client {
        self.network.client_of_members(self.members())
    }

    /// Starts all servers that do not run, those that were removed and do not know it too.
    pub(crate) async fn start_all(&self) {
        let _alone = self.starting.lock().await;
        let ids: Vec<NodeId> = self.state.borrow().machines.keys().copied().collect();
        for id in ids {
            let is_done = {
                let state = self.state.borrow();
                let is_gone = observe(&self.observed).removed.contains(&id);
                is_gone || state.lost.contains(&id) || state.running.contains_key(&id)
            };
            if is_done {
                continue;
            }
            self.trace.note(format_args!("{id} starts"));
            let (config, disk) = self.state.borrow().machines[&id].clone();
            let network = Network::Channel(self.network.clone());
            let server = Server::start_with(config, Store::Memory(disk), network).await;
            let server = server.expect("a server of a healthy disk starts");
            tokio::spawn(note_end(id, server.clone(), Arc::clone(&self.observed)));
            self.state.borrow_mut().running.insert(id, server);
        }
    }

    /// Cuts a server's power.
    pub(crate) fn crash(&self, id: NodeId) {
        self.trace.note(format_args!("{id} crashes"));
        let mut state = self.state.borrow_mut();
        let server = state.running.remove(&id).expect("it runs");
        self.network.power_off(id);
        state.machines[&id].1.crash();
        // The rest of the server can neither write nor send.
        tokio::spawn(async move { server.node().shutdown().await });
    }

    /// Cuts a server's power for good.
    pub(crate) fn lose(&self, id: NodeId) {
        if self.runs(id) {
            self.crash(id);
        }
        self.state.borrow_mut().lost.insert(id);
    }

    /// Partitions servers of different groups, and no others.
    pub(crate) fn partition(&self, groups: &[&[NodeId]]) {
        self.trace.note(format_args!("partition {groups:?}"));
        self.network.heal();
        self.network.peers().partition(groups);
    }

    /// Heals all links.
    pub(crate) fn heal(&self) {
        self.trace.note(format_args!("all links are healed"));
        self.network.heal();
    }

    /// # Panics
    /// If a term had two leaders, if a member has stopped as if it was removed, if a server that
    /// was removed leads, or if the persisted log of a member is larger than the labs allow.
    pub(crate) fn check(&self) {
        let state = self.state.borrow();
        let observed = observe(&self.observed);
        assert_eq!(observed.rivals, None, "one leader in each term");
        let stopped: Vec<_> = state.members.intersection(&observed.removed).collect();
        assert!(stopped.is_empty(), "{stopped:?} are members, and have stopped for good");
        for (id, server) in &state.running {
            let leads = server.node().watch().borrow().is_leader;
            assert!(!leads || state.members.contains(id), "{id} was removed, and leads");
        }
        for id in &state.members {
            self.lab.check_size(*id, &state.machines[id].1);
        }
    }

    /// Returns true if the server was sent a frame of a snapshot.
    pub(crate) fn was_given_snapshot(&self, id: NodeId) -> bool {
        observe(&self.observed).given_snapshots.contains(&id)
    }

    /// Waits until a server that was removed has learned of it and stopped, as it does without
    /// faults.
    ///
    /// # Panics
    /// If it runs on after the farewell.
    pub(crate) async fn stopped(&self, id: NodeId) {
        let server = self.server(id);
        let stopped = timeout(FAREWELL, server.stopped()).await;
        let stopped = stopped.unwrap_or_else(|_| panic!("{id} was removed, and does not stop"));
        assert!(matches!(stopped, Err(ServerError::Removed(_))), "{id}: {stopped:?}");
    }

    /// Waits until all members have applied everything that is committed now, and compares their
    /// records and their configurations. No client may write meanwhile.
    ///
    /// # Panics
    /// If two members differ, if one of them does not catch up, or if the members are not those
    /// whose servers run.
    pub(crate) async fn converged(&self, report: &ClusterReport) {
        let ids: BTreeSet<NodeId> = report.members.iter().map(|member| member.id).collect();
        assert_eq!(ids, self.members(), "the members are those that the operator knows");
        let start = Instant::now();
        let index = loop {
            let leader = self.server(report.leader_id.expect("a settled cluster is led"));
            if leader.node().query_and_wait(MachineQuery::ClockMs, true).await.is_ok() {
                break leader.node().status().commit_index;
            }
            assert!(start.elapsed() < AGREEMENT, "the leader of a settled cluster leads on");
            tokio::task::yield_now().await;
        };
        let members = self.server(report.node_id).node().watch_members().borrow().clone();
        let mut agreed: Option<Vec<(Bytes, Record)>> = None;
        for id in ids {
            let server = self.server(id);
            let mut status = server.node().watch_status();
            let caught_up = status.wait_for(|status| status.last_applied >= index);
            let caught_up = timeout(AGREEMENT, caught_up).await;
            caught_up.unwrap_or_else(|_| panic!("{id} does not catch up")).expect("it runs");
            let records = records_of(&server).await;
            let agreed = agreed.get_or_insert_with(|| records.clone());
            assert!(*agreed == records, "server {id} differs: {records:?}, others: {agreed:?}");
            let mut known = server.node().watch_members();
            let is_same = |known: &Members| {
                known.is_committed && known.configuration == members.configuration
            };
            let follows = timeout(AGREEMENT, known.wait_for(is_same)).await;
            follows.unwrap_or_else(|_| panic!("{id} knows other members")).expect("it runs");
        }
    }
}

impl Observed {
    fn note(&mut self, from: NodeId, to: NodeId, traffic: Traffic<'_>) {
        match traffic {
            Traffic::Sent(message) if matches!(message.body, MessageBody::AppendEntries { .. }) => {
                let leader = *self.leaders.entry(message.term).or_insert(from);
                if leader != from {
                    let term = message.term;
                    self.rivals = Some(format!("{leader} and {from} led in term {term}"));
                }
            }
            Traffic::Frame(_) => {
                self.given_snapshots.insert(to);
            }
            Traffic::Sent(_) | Traffic::Delivered(_) => {}
        }
    }
}

fn observe(observed: &Mutex<Observed>) -> MutexGuard<'_, Observed> {
    // A panic under the lock is a panic of the test.
    observed.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Notes a server that stops by itself because it was removed.
async fn note_end(id: NodeId, server: Server, observed: Arc<Mutex<Observed>>) {
    if let Err(ServerError::Removed(_) | ServerError::Replaced(_)) = server.stopped().await {
        observe(&observed).removed.insert(id);
    }
}

/// All records that a server holds.
async fn records_of(server: &Server) -> Vec<(Bytes, Record)> {
    let query = Query::Scan { start: Bytes::new(), end: Bytes::new(), limit: u32::MAX };
    let reply = server.node().query_and_wait(MachineQuery::Read(query), false).await;
    let Ok(Ok(QueryOutput::Read(Answer::Scan(page)))) = reply else {
        panic!("a running server answers a scan: {reply:?}");
    };
    let ScanPage { records, continue_at } = page;
    assert_eq!(continue_at, None, "the records of a lab fit into a page");
    records
}
