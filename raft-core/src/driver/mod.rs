//! The part that waits: runs one node of the core on tokio, against the three ports.
//!
//! ```text
//!   clients ──▶ inbox ──▶ ┌────────────┐ ──▶ persist task ──▶ Storage
//!   peers   ──▶       ──▶ │ event loop │ ──▶ apply task   ──▶ StateMachine ──▶ replies
//!   reports ──▶       ──▶ │ owns Raft  │ ──▶ Transport
//!                         └────────────┘ ──▶ snapshot tasks
//! ```
//!
//! One owner per state: the loop owns the core, the apply task the state machine, which the loop may
//! use for an instant while that task has nothing to do. Nothing downstream can make the loop wait: it
//! hands out work only against credit, so that every queue it fills has room, and the inbox always has
//! room for the reports that the work leads to.
//!
//! The loop has no unordered map, no random choice between branches and no clock but tokio's, so a
//! whole node runs deterministically on a paused, single-threaded runtime.
//!
//! Every proposal and query is answered exactly once. A proposal's answer is *done* with the state
//! machine's output, *surely not done* ([`Rejected`]), or *unknown*.

mod apply;
mod boot;
mod event_loop;
mod inbox;
mod persist;
pub(crate) mod snapshot_wire;
mod snapshotter;
mod tasks;
mod waiters;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use crate::consensus::{Config, PeerStatus, RoleKind};
use crate::error::{Fatal, ProposeError, Rejected};
use crate::state_machine::StateMachine;
use crate::storage::Storage;
use crate::transport::Transport;
use crate::types::{Index, NodeId, Term};
use inbox::{Inbox, Request};
use waiters::{ProposeReply, Reply};

/// How one node is run.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    pub raft: Config,
    /// The voters to begin with; what the log says later wins.
    pub voters: BTreeSet<NodeId>,
    /// When the persisted log exceeds this many bytes, the node snapshots and compacts. 0: never.
    pub max_raft_state_bytes: u64,
    /// A larger command is rejected `TooLarge`.
    pub command_bytes_max: u64,
    /// Proposals and queries not yet answered; beyond, they are rejected `Busy`.
    pub requests_in_flight_max: usize,
    /// A snapshot transfer that makes no progress for this long is given up and started again.
    pub snapshot_patience: Duration,
}

impl NodeConfig {
    /// `seed` is what [`Config::seed`] says: to be drawn anew at each start.
    ///
    /// Defaults: 128 MiB of log before a snapshot, commands up to 4 MiB, 65,536 requests in flight.
    pub fn new(id: NodeId, voters: impl IntoIterator<Item = NodeId>, seed: u64) -> Self {
        Self {
            raft: Config::new(id, seed),
            voters: voters.into_iter().collect(),
            max_raft_state_bytes: 128 << 20,
            command_bytes_max: 4 << 20,
            requests_in_flight_max: 65_536,
            snapshot_patience: Duration::from_secs(10),
        }
    }
}

/// Who leads, as this node believes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    pub term: Term,
    pub leader: Option<NodeId>,
    pub is_leader: bool,
}

/// What a status page shows of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    pub id: NodeId,
    pub role: RoleKind,
    pub term: Term,
    pub leader_id: Option<NodeId>,
    /// Its disk was empty when it started, and no leader has filled it up yet: its votes and
    /// acknowledgements do not count.
    pub is_recovering: bool,
    pub commit_index: Index,
    pub last_applied: Index,
    pub last_index: Index,
    /// Persisted log behind its start; what `max_raft_state_bytes` is compared with.
    pub log_bytes: u64,
    pub snapshot_index: Index,
    /// Only on a leader.
    pub peers: Vec<PeerStatus>,
}

/// A running node. Cheap to clone; dropping all clones does not stop it, [`Node::shutdown`] does.
pub struct Node<M: StateMachine> {
    shared: Arc<Shared<M>>,
}

struct Shared<M: StateMachine> {
    inbox: Arc<Inbox<M>>,
    command_bytes_max: u64,
    status: watch::Receiver<Status>,
    leadership: watch::Receiver<Leadership>,
    stopped: watch::Receiver<Option<Result<(), Arc<Fatal>>>>,
}

impl<M: StateMachine> Clone for Node<M> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<M: StateMachine> Node<M> {
    /// Loads what survived, restores the state machine from the snapshot if it holds less, and starts
    /// to take part in the cluster.
    ///
    /// # Errors
    /// What cannot be loaded or does not belong together; the text says what to do.
    pub async fn start(
        config: NodeConfig,
        storage: Arc<dyn Storage>,
        transport: Arc<dyn Transport>,
        machine: M,
    ) -> Result<Node<M>, Fatal> {
        boot::start(config, storage, transport, machine).await
    }

    /// Proposes a command and returns at once. `reply` is called exactly once, on one of the node's
    /// own tasks, and must not wait: with the output once the command is committed and applied here,
    /// or with an error that says whether it may have been executed.
    pub fn propose(
        &self,
        command: Bytes,
        reply: impl FnOnce(Result<M::Output, ProposeError>) + Send + 'static,
    ) {
        self.propose_with(command, Reply::new(reply));
    }

    fn propose_with(&self, command: Bytes, reply: ProposeReply<M::Output>) {
        let size_bytes = command.len() as u64;
        let limit_bytes = self.shared.command_bytes_max;
        if size_bytes > limit_bytes {
            return reply.send(Err(Rejected::TooLarge { size_bytes, limit_bytes }.into()));
        }
        self.shared.inbox.push_request(Request::Propose { command, reply });
    }

    /// [`Node::propose`] as a future.
    ///
    /// # Errors
    /// As the `reply` of `propose`. Dropping the future does not withdraw the proposal.
    pub async fn propose_and_wait(&self, command: Bytes) -> Result<M::Output, ProposeError> {
        let (reply, receiver) = Reply::channel();
        self.propose_with(command, reply);
        receiver.await.unwrap_or(Err(ProposeError::Unknown("the node stopped")))
    }

    /// Asks the state machine, and returns at once; `reply` is called exactly once, as for
    /// `propose`. `linearizable`: reflects everything that completed before this call, on any node.
    /// Otherwise whatever is applied here.
    pub fn query(
        &self,
        query: M::Query,
        linearizable: bool,
        reply: impl FnOnce(Result<M::Answer, Rejected>) + Send + 'static,
    ) {
        let reply = Reply::new(reply);
        self.shared.inbox.push_request(Request::Query { query, linearizable, reply });
    }

    /// [`Node::query`] as a future.
    ///
    /// # Errors
    /// The query was not answered; ask again, perhaps elsewhere.
    pub async fn query_and_wait(
        &self,
        query: M::Query,
        linearizable: bool,
    ) -> Result<M::Answer, Rejected> {
        let (reply, receiver) = Reply::channel();
        self.shared.inbox.push_request(Request::Query { query, linearizable, reply });
        receiver.await.unwrap_or(Err(Rejected::ShuttingDown))
    }

    pub fn status(&self) -> Status {
        self.shared.status.borrow().clone()
    }

    /// Follows the status; changes are coalesced.
    pub fn watch_status(&self) -> watch::Receiver<Status> {
        self.shared.status.clone()
    }

    /// Follows who leads; leader-only work of a service starts and stops with it.
    pub fn watch(&self) -> watch::Receiver<Leadership> {
        self.shared.leadership.clone()
    }

    /// Asks the leader, if it is this node, to hand leadership to `to` or to whoever is furthest.
    /// Whether it worked shows in [`Node::watch`].
    pub fn transfer_leadership(&self, to: Option<NodeId>) {
        self.shared.inbox.push_request(Request::Transfer { to });
    }

    /// Resolves when the node has stopped: `Ok` after a shutdown, else why it could not go on.
    ///
    /// # Errors
    /// The reason. Nothing was acknowledged that rests on what failed.
    pub async fn stopped(&self) -> Result<(), Arc<Fatal>> {
        let mut stopped = self.shared.stopped.clone();
        match stopped.wait_for(Option::is_some).await {
            Ok(result) => result.clone().expect("just waited for it"),
            Err(_) => Err(Arc::new(Fatal::Internal("the node vanished".into()))),
        }
    }

    /// Hands leadership over if this node leads (waiting up to two election timeouts), answers
    /// whoever still waits, and stops. Returns when nothing runs any more.
    pub async fn shutdown(&self) {
        self.shared.inbox.push_shutdown();
        // The reason, if there is one, is for whoever waits for `stopped`.
        let _ = self.stopped().await;
    }
}
