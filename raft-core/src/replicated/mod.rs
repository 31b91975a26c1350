//! A replicated state machine from one small trait: typed commands and whole-state snapshots.
//!
//! Implement [`ReplicatedState`] for a type of yours and start it with [`Replicated::start`], on
//! any [`Storage`] and any [`Transport`]. The module encodes commands and state by serde
//! (MessagePack) and implements [`StateMachine`](crate::state_machine::StateMachine) for you.
//!
//! ```
//! use raft_core::replicated::ReplicatedState;
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Clone, Default, Serialize, Deserialize)]
//! struct Counter {
//!     total: u64,
//! }
//!
//! #[derive(Serialize, Deserialize)]
//! struct Add(u64);
//!
//! impl ReplicatedState for Counter {
//!     type Command = Add;
//!     type Output = u64;
//!     type Query = ();
//!     type Answer = u64;
//!
//!     fn apply(&mut self, Add(number): Add) -> u64 {
//!         self.total = self.total.saturating_add(number);
//!         self.total
//!     }
//!
//!     fn query(&self, (): ()) -> u64 {
//!         self.total
//!     }
//! }
//!
//! // A state machine is an ordinary type, and its rules are tested without a cluster.
//! let mut counter = Counter::default();
//! assert_eq!(counter.apply(Add(2)), 2);
//! assert_eq!(counter.query(()), 2);
//! ```
//!
//! `kv-service/examples/counter.rs` runs one in memory and on RocksDB and QUIC, and
//! `docs/src/replicated.md` is the guide.
//!
//! # What it does not give
//!
//! * **Exactly once.** After [`ProposeError::Unknown`] the command may have been applied, or may
//!   yet be. A caller that sends it again may have it applied twice. Put a request id into the
//!   command and remember it in the state where that matters:
//!
//! ```
//! # use std::collections::BTreeMap;
//! # use raft_core::replicated::ReplicatedState;
//! # use serde::{Deserialize, Serialize};
//! #[derive(Clone, Default, Serialize, Deserialize)]
//! struct Tickets {
//!     next: u64,
//!     /// The last request of each client, and its output. One request of a client at a time.
//!     answered: BTreeMap<u64, (u64, u64)>,
//! }
//!
//! #[derive(Clone, Serialize, Deserialize)]
//! struct Take {
//!     client: u64,
//!     request: u64,
//! }
//!
//! impl ReplicatedState for Tickets {
//!     type Command = Take;
//!     type Output = Option<u64>;
//!     type Query = ();
//!     type Answer = u64;
//!
//!     fn apply(&mut self, Take { client, request }: Take) -> Option<u64> {
//!         match self.answered.get(&client) {
//!             Some((last, output)) if *last == request => return Some(*output),
//!             // A late copy of a request that the client has given up.
//!             Some((last, _)) if *last > request => return None,
//!             _ => {}
//!         }
//!         self.next += 1;
//!         self.answered.insert(client, (request, self.next));
//!         Some(self.next)
//!     }
//!
//!     fn query(&self, (): ()) -> u64 {
//!         self.next
//!     }
//! }
//!
//! let mut tickets = Tickets::default();
//! let take = Take { client: 7, request: 1 };
//! assert_eq!(tickets.apply(take.clone()), Some(1));
//! assert_eq!(tickets.apply(take), Some(1), "the second copy changes nothing");
//! ```
//!
//! * **Large states.** A snapshot clones the whole state between two commands and encodes it in one
//!   piece, on the node's runtime; [`ReplicatedState::STATE_BYTES_MAX`] bounds it. Meant for states
//!   that encode to some tens of MiB. Beyond, implement
//!   [`StateMachine`](crate::state_machine::StateMachine) itself.
//! * **Forwarding.** Commands are executed through the leader; another node rejects them and names
//!   the leader. Queries are answered on any node.
//!
//! # Format 1
//!
//! ```text
//!   command   =  format u8 = 1 | needed version u32 | MessagePack of the command
//!   snapshot  =  format u8 = 1 | version u32 | MessagePack of the state | CRC32C u32 of all before
//! ```
//!
//! Numbers are big-endian. Structs are arrays of their fields, in order, and enum variants are
//! named: a program that does not know a field refuses it instead of leaving it out.

mod format;
mod machine;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use self::format::EncodingError;
pub use self::machine::Machine;
use crate::driver::{Node, NodeConfig, Status};
use crate::error::{Fatal, ProposeError, Rejected};
use crate::storage::Storage;
use crate::transport::Transport;
use crate::types::{NodeId, Position};

/// A state that every node holds, changed by commands only.
///
/// The rules, which no compiler checks:
///
/// * [`apply`](ReplicatedState::apply) is a function of the state and the command. No clock, no
///   randomness, no iteration over a `HashMap`, no locale, no global variable. Put a time or a
///   random number into the command.
/// * `Default` is the state before the first command, on every node and in every version.
/// * A command gives the same result in every later version of the program, because a restart
///   applies the log again. Add a new command instead of changing one that was released.
/// * A panic in `apply`, also of an addition that overflows, stops every node, and again at its
///   next start. Return an output that says what is wrong.
pub trait ReplicatedState: Clone + Default + Serialize + DeserializeOwned + Send + 'static {
    /// A change. Encoded by serde, kept in the log and sent to the other nodes.
    type Command: Serialize + DeserializeOwned + Send + 'static;
    /// The result of a command for its caller.
    type Output: Send + 'static;
    /// A read-only request; not encoded.
    type Query: Send + 'static;
    /// The answer to a query.
    type Answer: Send + 'static;

    /// Version of the program, from 1. Raise it when the previous program cannot read what this one
    /// writes: a new command, a new field at the end of a command or of the state. This program
    /// reads everything that earlier versions wrote; `#[serde(default)]` fills a field that they
    /// did not have.
    ///
    /// It is a cluster version: [`Replicated::raise_version`] brings it into force once all nodes
    /// run a program that knows it.
    const VERSION: u32 = 1;

    /// Most bytes of an encoded state. A state that is larger stops the node when it takes a
    /// snapshot. Nothing is lost: a program with a larger limit goes on. From half of the limit on,
    /// each snapshot logs a warning.
    const STATE_BYTES_MAX: usize = 1 << 30;

    /// Returns the first version whose program can read and apply this command. A command that
    /// needs a version which is not in force is rejected before it enters the log. The default is
    /// the careful one: after an upgrade nothing is executed through this program until
    /// [`Replicated::raise_version`].
    ///
    /// ```
    /// # use raft_core::replicated::ReplicatedState;
    /// # use serde::{Deserialize, Serialize};
    /// # #[derive(Clone, Default, Serialize, Deserialize)]
    /// # struct Counter(u64);
    /// #[derive(Serialize, Deserialize)]
    /// enum Command {
    ///     Add(u64),
    ///     /// New in version 2.
    ///     Reset,
    /// }
    ///
    /// impl ReplicatedState for Counter {
    ///     const VERSION: u32 = 2;
    ///
    ///     fn needed_version(command: &Command) -> u32 {
    ///         match command {
    ///             Command::Add(_) => 1,
    ///             Command::Reset => 2,
    ///         }
    ///     }
    ///     # type Command = Command;
    ///     # type Output = ();
    ///     # type Query = ();
    ///     # type Answer = u64;
    ///     # fn apply(&mut self, command: Command) {
    ///     #     match command {
    ///     #         Command::Add(number) => self.0 += number,
    ///     #         Command::Reset => self.0 = 0,
    ///     #     }
    ///     # }
    ///     # fn query(&self, (): ()) -> u64 { self.0 }
    ///     // The rest as before.
    /// }
    /// # let mut counter = Counter(0);
    /// # [Command::Add(2), Command::Reset, Command::Add(3)].map(|command| counter.apply(command));
    /// # assert_eq!((counter.query(()), Counter::needed_version(&Command::Reset)), (3, 2));
    /// ```
    fn needed_version(command: &Self::Command) -> u32 {
        let _ = command;
        Self::VERSION
    }

    /// Changes the state, and returns the output for the caller.
    fn apply(&mut self, command: Self::Command) -> Self::Output;

    /// Reads the state.
    fn query(&self, query: Self::Query) -> Self::Answer;
}

/// A running node of a replicated state. Cheap to clone; dropping all clones does not stop it,
/// [`Replicated::shutdown`] does.
///
/// ```no_run
/// # use std::sync::Arc;
/// # use raft_core::driver::NodeConfig;
/// # use raft_core::error::{ProposeError, Rejected};
/// # use raft_core::replicated::{Replicated, ReplicatedState};
/// # use raft_core::storage::Storage;
/// # use raft_core::transport::Transport;
/// # async fn node<Counter: ReplicatedState<Command = u64, Query = (), Answer = u64>>(
/// #     seed: u64,
/// #     storage: Arc<dyn Storage>,
/// #     transport: Arc<dyn Transport>,
/// # ) -> Result<(), Box<dyn std::error::Error>> {
/// let config = NodeConfig::new(1, [1, 2, 3], seed);
/// let counter = Replicated::<Counter>::start(config, storage, transport).await?;
/// match counter.execute(5).await {
///     Ok(_) => println!("executed"),
///     Err(ProposeError::Rejected(Rejected::NotLeader { leader })) => println!("ask {leader:?}"),
///     Err(ProposeError::Rejected(why)) => println!("surely not executed: {why}"),
///     Err(ProposeError::Unknown(why)) => println!("executed or not: {why}"),
/// }
/// println!("{}", counter.query(()).await?);
/// counter.shutdown().await;
/// # Ok(())
/// # }
/// ```
pub struct Replicated<S: ReplicatedState> {
    node: Node<Machine<S>>,
}

impl<S: ReplicatedState> Clone for Replicated<S> {
    fn clone(&self) -> Self {
        Self { node: self.node.clone() }
    }
}

impl<S: ReplicatedState> Replicated<S> {
    /// Starts a node with the state that its storage holds, or the default state on a new storage.
    /// Must be called within a tokio runtime that has its time driver enabled. Sets
    /// `config.raft.version_max` to [`ReplicatedState::VERSION`]. Give a transport that tells its
    /// peers cluster versions (`QuicConfig::cluster_versions`) the same one.
    ///
    /// # Errors
    /// Those of [`Node::start`], also if the snapshot or the log's configuration is of a newer
    /// version; the text says which version to install. A newer command in the log stops the node
    /// when it is applied ([`Replicated::stopped`]). The default state does not survive serde.
    pub async fn start(
        mut config: NodeConfig,
        storage: Arc<dyn Storage>,
        transport: Arc<dyn Transport>,
    ) -> Result<Self, Fatal> {
        const { assert!(S::VERSION > 0, "versions count from 1") };
        config.raft.version_max = S::VERSION;
        format::encode_state(S::VERSION, Box::<S>::default(), S::STATE_BYTES_MAX)
            .map_err(|error| Fatal::Config(format!("the default state {error}")))?;
        let node = Node::start(config, storage, transport, Machine::on_a_thread()).await?;
        Ok(Self { node })
    }

    /// Executes a command: returns its output once a majority holds it and this node has applied
    /// it. Dropping the future does not withdraw the command.
    ///
    /// # Errors
    /// [`ProposeError::Rejected`]: not executed, and never will be. Also if the command cannot be
    /// decoded again or needs a version that is not in force.
    /// [`ProposeError::Unknown`]: it may have been executed, or may yet be; executing it again may
    /// do so twice.
    pub async fn execute(&self, command: S::Command) -> Result<S::Output, ProposeError> {
        let needed = S::needed_version(&command);
        let in_force = self.node.cluster_version();
        // Version 1 needs no agreement: each program knows it.
        if needed > 1 && needed > in_force {
            let status = self.node.status();
            if status.leader_id != Some(status.id) {
                return Err(Rejected::NotLeader { leader: status.leader_id }.into());
            }
            if !status.founded {
                return Err(Rejected::Busy("the cluster is being founded").into());
            }
            return Err(Rejected::Refused(format!(
                "not executed: the command needs version {needed}, and version {in_force} is in \
                 force; install version {needed} on all nodes, then call raise_version on the leader"
            ))
            .into());
        }
        let bytes = Machine::<S>::encode(&command)
            .map_err(|error| Rejected::Refused(format!("not executed: the command {error}")))?;
        self.node.propose_and_wait(bytes).await
    }

    /// Answers a query, linearizably and on any node: the answer reflects every command that was
    /// acknowledged before this call.
    ///
    /// # Errors
    /// The query was not answered; try again, perhaps at another node.
    pub async fn query(&self, query: S::Query) -> Result<S::Answer, Rejected> {
        self.node.query_and_wait(query, true).await
    }

    /// Answers a query from the commands that this node has applied, without asking other nodes.
    ///
    /// # Errors
    /// The node stops, or has too many requests in flight.
    pub async fn query_stale(&self, query: S::Query) -> Result<S::Answer, Rejected> {
        self.node.query_and_wait(query, false).await
    }

    /// Waits until this node knows a leader, and returns that leader. `None`: this node has
    /// stopped.
    pub async fn leader(&self) -> Option<NodeId> {
        let mut watch = self.node.watch();
        tokio::select! {
            biased;
            _ = self.node.stopped() => None,
            known = watch.wait_for(|leadership| leadership.leader.is_some()) => known.ok()?.leader,
        }
    }

    /// The node as it was at the end of its event loop's last turn.
    pub fn status(&self) -> Status {
        self.node.status()
    }

    /// Brings [`ReplicatedState::VERSION`] into force, through the leader. From then on earlier
    /// programs refuse to start. Returns the position of the entry that does so; the version is in
    /// force once that entry is committed ([`Status::cluster_version`]).
    ///
    /// # Errors
    /// Nothing has changed: this node does not lead, the version is in force already, or a member
    /// is not known to run a program of this version.
    pub async fn raise_version(&self) -> Result<Position, Rejected> {
        self.node.raise_cluster_version(S::VERSION).await
    }

    /// Hands leadership over if this node leads, answers all requests, and stops. Returns once all
    /// tasks of the node have ended.
    pub async fn shutdown(&self) {
        self.node.shutdown().await;
    }

    /// Resolves when the node has stopped: `Ok` after [`Replicated::shutdown`].
    ///
    /// # Errors
    /// The reason why the node could not go on.
    pub async fn stopped(&self) -> Result<(), Arc<Fatal>> {
        self.node.stopped().await
    }

    /// The node, for everything else: leadership, snapshots on request, status changes.
    pub fn node(&self) -> &Node<Machine<S>> {
        &self.node
    }
}
