//! The part that waits: runs one node of the core on tokio, against the three ports.
//!
//! ```text
//!   callers     ──▶ inbox ──▶ ┌────────────┐ ──▶ persist task ──▶ Storage
//!   peers       ──▶       ──▶ │ event loop │ ──▶ apply task   ──▶ StateMachine ──▶ replies
//!   completions ──▶       ──▶ │ owns Raft  │ ──▶ Transport
//!                             └────────────┘ ──▶ snapshot tasks
//! ```
//!
//! One owner per state: the event loop owns the core, and the apply task owns the state machine,
//! which the loop may use for an instant while that task has nothing to do. The loop itself never
//! waits for a component: it hands out work only against credit, so that every queue it fills has
//! room, and the inbox always has room for the completions that the work leads to.
//!
//! # Threads
//!
//! [`Node::start`] needs a tokio runtime with its time driver enabled, and runs on it: one task is
//! the event loop, one writes to storage, one drives the state machine, and short-lived ones send
//! and receive snapshots. A state machine that may wait for a disk ([`StateMachine::blocks`]) gets
//! a thread of its own instead of a task. [`Node`]'s methods may be called from any thread.
//!
//! # Code of others on the loop
//!
//! The loop runs code that is not the driver's in three places: a `reply` that ends a proposal
//! which was replaced or whose leader stepped down; entries that the machine can apply inline
//! ([`StateMachine::can_apply_inline`]) and their replies; and wakers of tasks that wait for a
//! reply. That this code returns at once is a promise of the machine and of the callers, which the
//! driver cannot enforce: a `reply` that waits delays heartbeats, and with them the node's
//! leadership. A `reply` that panics does no harm to the node: the panic is caught.
//!
//! # Determinism
//!
//! The loop has no unordered map, no random choice between branches and no clock but tokio's, so a
//! whole node runs deterministically on a paused, single-threaded runtime.
//!
//! Every proposal and query is answered exactly once. A proposal's outcome is *executed* with the
//! state machine's output, *not executed* ([`Rejected`]), or *unknown*.

mod apply;
mod boot;
mod config;
mod event_loop;
mod inbox;
mod members;
mod peer_queue;
mod persist;
mod proposal;
mod reads;
pub(crate) mod snapshots;
mod status;
mod tasks;
mod waiters;

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;

pub use self::config::{MAX_RAFT_STATE_BYTES_CEILING, NodeConfig};
pub use self::members::Members;
pub use self::proposal::Proposal;
pub use self::status::{Leadership, SnapshotTransfer, Status};
use crate::consensus::{Change, Overrides};
use crate::error::{Fatal, ProposeError, Rejected};
use crate::state_machine::StateMachine;
use crate::storage::Storage;
use crate::transport::Transport;
use crate::types::{Configuration, NodeId, Position};
use boot::NodeShared;
use inbox::Request;
use members::MembersOrder;
use waiters::{ProposeReply, Reply};

/// A running node. Cheap to clone; dropping all clones does not stop it, [`Node::shutdown`] does.
/// Dropping the runtime under it stops it as well, and answers all requests.
pub struct Node<M: StateMachine> {
    shared: Arc<NodeShared<M>>,
}

impl<M: StateMachine> Clone for Node<M> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<M: StateMachine> Node<M> {
    /// Loads the log, restores the state machine from the snapshot if it holds less, and starts to
    /// take part in the cluster. Must be called within a tokio runtime that has its time driver
    /// enabled.
    ///
    /// # Errors
    /// If the configuration cannot work, or storage and state machine cannot be loaded or do not
    /// belong together. The text says what to do.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use raft_core::driver::{Node, NodeConfig};
    /// # use raft_core::testing::example::{Adder, MemoryStorage};
    /// # use raft_core::transport::channel::ChannelNetwork;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let transport = ChannelNetwork::new(1).transport(1);
    /// let storage = Arc::new(MemoryStorage::of_new_member());
    /// let config = NodeConfig::new(1, [1], 1);
    /// let node = Node::start(config, storage, transport, Adder::default()).await?;
    /// // A cluster of one elects itself.
    /// node.watch().wait_for(|leadership| leadership.is_leader).await?;
    /// # node.shutdown().await;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn start(
        config: NodeConfig,
        storage: Arc<dyn Storage>,
        transport: Arc<dyn Transport>,
        machine: M,
    ) -> Result<Node<M>, Fatal> {
        let shared = boot::start(config, storage, transport, machine).await?;
        Ok(Node { shared: Arc::new(shared) })
    }

    /// Proposes a command and returns at once.
    ///
    /// `reply` is called exactly once: with the output once the command is committed and applied
    /// here, or with an error that says whether the command may have been executed. It is called on
    /// one of the node's own tasks, never on the caller's stack, and must return at once; it may
    /// call the node. A panic in it is caught. Only when the runtime under the node is gone is a
    /// refused `reply` called by `propose` itself.
    ///
    /// A caller that never waits for replies is not slowed down: beyond the limits, each refused
    /// `reply` occupies a task until it has run.
    pub fn propose(
        &self,
        command: Bytes,
        reply: impl FnOnce(Result<M::Output, ProposeError>) + Send + 'static,
    ) {
        self.propose_with(command, Reply::new(self.shared.inbox.place(), reply));
    }

    fn propose_with(&self, command: Bytes, reply: ProposeReply<M::Output>) {
        let size_bytes = command.len() as u64;
        let limit_bytes = self.shared.command_bytes_max;
        let request = Request::Propose { command, reply };
        if size_bytes > limit_bytes {
            let too_large = Rejected::TooLarge { size_bytes, limit_bytes };
            return self.shared.inbox.refuse(request, too_large);
        }
        self.shared.inbox.push_request(request);
    }

    /// [`Node::propose`] as a future.
    ///
    /// # Errors
    /// The error says whether the command may have been executed, as for `propose`. Dropping the
    /// future does not withdraw the proposal.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use raft_core::driver::{Node, NodeConfig};
    /// # use raft_core::testing::example::{Adder, MemoryStorage};
    /// # use raft_core::transport::channel::ChannelNetwork;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let transport = ChannelNetwork::new(1).transport(1);
    /// # let storage = Arc::new(MemoryStorage::of_new_member());
    /// # let config = NodeConfig::new(1, [1], 1);
    /// # let node = Node::start(config, storage, transport, Adder::default()).await?;
    /// # node.watch().wait_for(|leadership| leadership.is_leader).await?;
    /// // This state machine adds up the lengths of its commands.
    /// assert_eq!(node.propose_and_wait("seven by".into()).await?, 8);
    /// assert_eq!(node.propose_and_wait("two".into()).await?, 11);
    /// # node.shutdown().await;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn propose_and_wait(&self, command: Bytes) -> Result<M::Output, ProposeError> {
        let (reply, receiver) = Reply::channel(self.shared.inbox.place());
        self.propose_with(command, reply);
        receiver.await.unwrap_or(Err(ProposeError::Unknown("the node stopped")))
    }

    /// [`Node::propose`] with a handle that tells the position of the command in the log once it is
    /// appended, and the outcome later.
    #[must_use = "without its handle a proposal has no outcome; use `propose` with an empty reply"]
    pub fn propose_tracked(&self, command: Bytes) -> Proposal<M::Output> {
        let (reply, outcome) = Reply::channel(self.shared.inbox.place());
        let (appended, position) = tokio::sync::oneshot::channel();
        self.propose_with(command, reply.with_position(appended));
        Proposal::new(position, outcome)
    }

    /// Queries the state machine, and returns at once. `reply` is called as for [`Node::propose`].
    /// `linearizable`: the answer reflects every request that completed before this call, on any
    /// node. Otherwise it reflects the entries that are applied here.
    pub fn query(
        &self,
        query: M::Query,
        linearizable: bool,
        reply: impl FnOnce(Result<M::Answer, Rejected>) + Send + 'static,
    ) {
        let reply = Reply::new(self.shared.inbox.place(), reply);
        self.shared.inbox.push_request(Request::Query { query, linearizable, reply });
    }

    /// [`Node::query`] as a future.
    ///
    /// # Errors
    /// The query was not answered; try again, perhaps at another node.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use raft_core::driver::{Node, NodeConfig};
    /// # use raft_core::testing::example::{Adder, MemoryStorage};
    /// # use raft_core::transport::channel::ChannelNetwork;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let transport = ChannelNetwork::new(1).transport(1);
    /// # let storage = Arc::new(MemoryStorage::of_new_member());
    /// # let config = NodeConfig::new(1, [1], 1);
    /// # let node = Node::start(config, storage, transport, Adder::default()).await?;
    /// # node.watch().wait_for(|leadership| leadership.is_leader).await?;
    /// node.propose_and_wait("four".into()).await?;
    /// let linearizable = true;
    /// assert_eq!(node.query_and_wait((), linearizable).await?, 4);
    /// # node.shutdown().await;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn query_and_wait(
        &self,
        query: M::Query,
        linearizable: bool,
    ) -> Result<M::Answer, Rejected> {
        let (reply, receiver) = Reply::channel(self.shared.inbox.place());
        self.shared.inbox.push_request(Request::Query { query, linearizable, reply });
        receiver.await.unwrap_or(Err(Rejected::ShuttingDown))
    }

    /// The node as it was at the end of the loop's last turn. A stopped node leads nothing.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use raft_core::driver::{Node, NodeConfig};
    /// # use raft_core::testing::example::{Adder, MemoryStorage};
    /// # use raft_core::transport::channel::ChannelNetwork;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let transport = ChannelNetwork::new(1).transport(1);
    /// # let storage = Arc::new(MemoryStorage::of_new_member());
    /// # let config = NodeConfig::new(1, [1], 1);
    /// # let node = Node::start(config, storage, transport, Adder::default()).await?;
    /// # node.watch().wait_for(|leadership| leadership.is_leader).await?;
    /// let status = node.status();
    /// assert_eq!((status.id, status.leader_id), (1, Some(1)));
    /// assert!(status.last_applied <= status.commit_index);
    /// # node.shutdown().await;
    /// # Ok(())
    /// # }
    /// ```
    pub fn status(&self) -> Status {
        self.shared.status.borrow().clone()
    }

    /// Returns the cluster version in force ([`Status::cluster_version`]), without copying the
    /// whole status.
    pub fn cluster_version(&self) -> u32 {
        self.shared.status.borrow().cluster_version
    }

    /// Follows the status; changes are coalesced. The receiver's first wait returns at once. While
    /// there is a receiver, each batch of entries costs a notification: drop it when it is no
    /// longer needed.
    pub fn watch_status(&self) -> watch::Receiver<Status> {
        let mut status = watch::Receiver::clone(&self.shared.status);
        // Changes are not notified while there is no watcher, so this receiver may have missed
        // some.
        status.mark_changed();
        status
    }

    /// Follows the leadership: a service starts and stops its leader-only work with it.
    pub fn watch(&self) -> watch::Receiver<Leadership> {
        self.shared.leadership.clone()
    }

    /// Hands leadership to `to`, or to the voter whose log is furthest, if this node leads. Success
    /// shows in [`Node::watch`].
    pub fn transfer_leadership(&self, to: Option<NodeId>) {
        let place = self.shared.inbox.place();
        self.shared.inbox.push_request(Request::Transfer { to, place });
    }

    /// Names the nodes that are to lead only if no other voter can
    /// ([`Raft::avoid_as_leaders`](crate::consensus::Raft::avoid_as_leaders)).
    pub fn avoid_as_leaders(&self, nodes: BTreeSet<NodeId>) {
        self.shared.inbox.push_avoided(nodes);
    }

    /// Takes a snapshot of what is applied here, or flushes a durable machine, and compacts the
    /// log, whatever the log's size. Success shows in [`Status::snapshot_index`]. Which index the
    /// snapshot has is up to the machine ([`StateMachine::snapshot`]).
    pub fn take_snapshot(&self) {
        let place = self.shared.inbox.place();
        self.shared.inbox.push_request(Request::Snapshot { place });
    }

    /// Appends the entry that lets all members use the features of this cluster version. The
    /// version is in force once that entry is committed ([`Status::cluster_version`]); from then
    /// on, programs that do not know the version refuse to start. Returns the position of the
    /// entry.
    ///
    /// # Errors
    /// Nothing was appended: this node does not lead, another change of the configuration is not
    /// yet committed, the version is not newer, or a member is not known to support it.
    pub async fn raise_cluster_version(&self, version: u32) -> Result<Position, Rejected> {
        let (reply, receiver) = Reply::channel(self.shared.inbox.place());
        self.shared.inbox.push_request(Request::RaiseVersion { version, reply });
        receiver.await.unwrap_or(Err(Rejected::ShuttingDown))
    }

    /// Begins a change of the members, if this node leads. The cluster carries it through, also
    /// under a later leader: a learner whose record says `wants_vote` becomes a voter once it is
    /// ready, and a removed leader hands leadership over. Returns the position of the configuration
    /// that begins the change, or of the present one if nothing is left to do: a request may be
    /// repeated. [`Node::watch_members`] shows the progress.
    ///
    /// `expected`: the configuration that the caller has seen. If another one is in force, the
    /// change is refused.
    ///
    /// # Errors
    /// Nothing was appended: this node does not lead, another change is not committed yet, or the
    /// change is refused. The text of the refusal says why, and what to do.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use raft_core::driver::{Node, NodeConfig};
    /// # use raft_core::testing::example::{Adder, MemoryStorage};
    /// # use raft_core::transport::channel::ChannelNetwork;
    /// use raft_core::consensus::{Change, Overrides};
    /// use raft_core::types::Member;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let network = ChannelNetwork::new(1);
    /// # let storage = Arc::new(MemoryStorage::of_new_member());
    /// # let (config, one) = (NodeConfig::new(1, [1], 1), network.transport(1));
    /// # let node = Node::start(config, storage, one, Adder::default()).await?;
    /// # node.watch().wait_for(|leadership| leadership.is_leader).await?;
    /// let incarnation = 7; // Drawn at random when the disk of node 2 was initialised.
    /// let member = Member { incarnation, wants_vote: true, ..Member::default() };
    /// node.change_members(Change::Add { id: 2, member }, None, Overrides::default()).await?;
    ///
    /// // Node 2 starts on an empty disk, and knows no members.
    /// let mut config = NodeConfig::new(2, [], 2);
    /// config.raft.incarnation = incarnation;
    /// # let two = network.transport(2);
    /// # let storage = Arc::new(MemoryStorage::of_joiner());
    /// let joiner = Node::start(config, storage, two, Adder::default()).await?;
    /// joiner.watch_members().wait_for(|members| members.configuration.is_member(2)).await?;
    /// # node.shutdown().await;
    /// # joiner.shutdown().await;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn change_members(
        &self,
        change: Change,
        expected: Option<Configuration>,
        overrides: Overrides,
    ) -> Result<Position, Rejected> {
        let (reply, receiver) = Reply::channel(self.shared.inbox.place());
        let order = Box::new(MembersOrder { change, expected, overrides });
        self.shared.inbox.push_request(Request::ChangeMembers { order, reply });
        receiver.await.unwrap_or(Err(Rejected::ShuttingDown))
    }

    /// Checks a change of the members as [`Node::change_members`] would, and appends nothing.
    /// Returns the configuration that would begin the change; `None` if nothing is left to do.
    ///
    /// # Errors
    /// The change would be refused now, or this node does not lead.
    pub async fn plan_members(
        &self,
        change: Change,
        overrides: Overrides,
    ) -> Result<Option<Configuration>, Rejected> {
        let (reply, receiver) = Reply::channel(self.shared.inbox.place());
        let order = Box::new(MembersOrder { change, expected: None, overrides });
        self.shared.inbox.push_request(Request::PlanMembers { order, reply });
        receiver.await.unwrap_or(Err(Rejected::ShuttingDown))
    }

    /// Follows the members, as this node knows them.
    pub fn watch_members(&self) -> watch::Receiver<Members> {
        self.shared.members.clone()
    }

    /// Resolves when the node has stopped: `Ok` after [`Node::shutdown`] or [`Node::abort`].
    ///
    /// # Errors
    /// The reason why the node could not go on. Nothing was acknowledged that rests on the part
    /// that failed.
    pub async fn stopped(&self) -> Result<(), Arc<Fatal>> {
        let mut stopped = self.shared.stopped.clone();
        match stopped.wait_for(Option::is_some).await {
            Ok(result) => result.clone().expect("just waited for it"),
            Err(_) => Err(Arc::new(Fatal::Internal("the node vanished".into()))),
        }
    }

    /// Hands leadership over if this node leads (waiting up to two election timeouts), answers all
    /// requests, and stops. Returns once all tasks of the node have ended.
    pub async fn shutdown(&self) {
        self.shared.inbox.push_shutdown();
        // The reason of a failure, if there is one, is for callers of `stopped`.
        let _ = self.stopped().await;
    }

    /// Stops at once, as a crash would: no leadership is handed over, the transport is not closed
    /// (drop it, or close it), and a batch that is being written may or may not reach the disk.
    /// Requests are answered, with *unknown* where a command may have been executed. Returns once
    /// all tasks of the node have ended. For tests.
    pub async fn abort(&self) {
        self.shared.abort.notify_one();
        let _ = self.stopped().await;
    }
}
