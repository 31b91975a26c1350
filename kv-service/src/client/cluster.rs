//! The members of the cluster, from a client: shows and changes them, and moves leadership.

use std::time::Duration;

use raft_core::types::NodeId;
use tokio::time::{Instant, sleep};

use super::attempts::{Attempts, Target};
use super::error::{ClientError, Outcome, Reason, unexpected};
use super::{Client, DEADLINE_MAX};
use crate::members::{
    ClusterReport, ClusterSettings, MemberInfo, MemberReport, MemberRole, MembersChange,
    MembersOrder,
};
use crate::protocol::{Reply, RequestKind};

/// Pause between two looks at a change that is under way.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// How often an order is given anew because another operator's came first.
const ORDER_ATTEMPTS_MAX: usize = 8;

/// The members of a client's cluster ([`Client::cluster`]).
///
/// A change returns once the leader has begun it, and the cluster carries it through, also under a
/// later leader and after the caller has gone. [`Cluster::settled`] waits for that. A change that
/// is ordered again does nothing more: after an unknown outcome, order it again.
///
/// ```
/// # use kv_service::*;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let network = Network::Channel(LocalNetwork::new(1));
/// # let store = Store::Memory(MemoryDisk::of_new_member());
/// # let server = Server::start_with(ServerConfig::in_process(1, [1]), store, network).await?;
/// use kv_service::members::{MemberInfo, MemberRole};
///
/// let cluster = server.client().cluster();
/// // A learner that stays one: it has all data and is not counted.
/// let id = cluster.add(MemberInfo::default(), false).await?;
/// let members = cluster.members().await?;
/// assert_eq!(members.member(id).map(|member| member.role), Some(MemberRole::Learner));
/// assert_eq!(members.failures_tolerated(), 0, "one voter");
/// # server.shutdown().await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Cluster {
    client: Client,
}

impl Client {
    /// The members of the cluster: shows and changes them.
    pub fn cluster(&self) -> Cluster {
        Cluster { client: self.clone() }
    }

    /// Returns true if the node proves that it runs at this address.
    pub(crate) async fn finds(&self, node: NodeId, address: &str) -> bool {
        self.shared.links.finds(node, address).await
    }
}

impl Cluster {
    /// Returns the members as the leader knows them.
    ///
    /// # Errors
    /// No leader answered in time.
    pub async fn members(&self) -> Result<ClusterReport, ClientError> {
        let asked = self.ask(|| RequestKind::Cluster).await;
        asked.map_err(|error| ClientError::not_executed(error.reason))
    }

    /// Adds a learner and returns its id. With `wants_vote` it becomes a voter by itself once its
    /// node runs and has kept up for a while. Start the node with `join = true` in its file
    /// ([`ServerConfig::join`](crate::ServerConfig::join)), before or after.
    ///
    /// # Errors
    /// The leader refused, or was not found in time. After an unknown outcome the member may have
    /// been added: [`Cluster::members`] shows it, by its name or address. Adding it again could add
    /// a second one.
    pub async fn add(&self, info: MemberInfo, wants_vote: bool) -> Result<NodeId, ClientError> {
        let mut refused = None;
        for _ in 0..ORDER_ATTEMPTS_MAX {
            let now = self.members().await?;
            let mut order = MembersOrder::new(MembersChange::Add {
                id: now.next_id,
                info: info.clone(),
                wants_vote,
            });
            order.expected = Some(now.digest);
            match self.order(order).await {
                Ok(_) => return Ok(now.next_id),
                // Another operator may have been faster, with this id. An order that may have been
                // carried out is not repeated under another one.
                Err(error) if is_refusal(&error) => {
                    let then = self.members().await?;
                    if then.digest == now.digest {
                        return Err(error);
                    }
                    refused = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        Err(refused.expect("it was tried at least once"))
    }

    /// Changes the record of a member. What the node's own file says about name, address and zone
    /// is recorded again by the node.
    ///
    /// # Errors
    /// There is no such member, or the leader refused, or was not found in time. After an unknown
    /// outcome, order it again.
    pub async fn describe(
        &self,
        id: NodeId,
        edit: impl Fn(&mut MemberInfo),
    ) -> Result<ClusterReport, ClientError> {
        self.revise(|now| {
            let Some(member) = now.member(id) else {
                let text = format!("there is no member {id}");
                return Err(ClientError::not_executed(Reason::Invalid(text)));
            };
            let mut info = member.info.clone();
            edit(&mut info);
            Ok(MembersChange::Describe { id, info })
        })
        .await
    }

    /// Changes the settings of the cluster: what it does about its members by itself.
    ///
    /// # Errors
    /// The leader refused, or was not found in time. After an unknown outcome, order it again.
    pub async fn configure(
        &self,
        edit: impl Fn(&mut ClusterSettings),
    ) -> Result<ClusterReport, ClientError> {
        self.revise(|now| {
            let mut settings = now.settings.clone();
            edit(&mut settings);
            Ok(MembersChange::Configure { settings })
        })
        .await
    }

    /// Orders the change that follows from the members as they are, and again if another change
    /// came first.
    async fn revise(
        &self,
        change: impl Fn(&ClusterReport) -> Result<MembersChange, ClientError>,
    ) -> Result<ClusterReport, ClientError> {
        let mut attempts_left = ORDER_ATTEMPTS_MAX;
        loop {
            attempts_left -= 1;
            let now = self.members().await?;
            let mut order = MembersOrder::new(change(&now)?);
            order.expected = Some(now.digest);
            match self.order(order).await {
                Err(error) if is_refusal(&error) && attempts_left > 0 => {
                    if self.members().await?.digest == now.digest {
                        return Err(error);
                    }
                }
                done => return done,
            }
        }
    }

    /// Prepares a node to be stopped, or, with `draining` false, ends that: while other voters can
    /// lead, it hands leadership over and is not handed it. It goes on serving clients. Returns
    /// once that is recorded and, if the node led and another voter can lead, once another one
    /// leads.
    ///
    /// # Errors
    /// There is no such member, or the leader refused, or was not found in time. After an unknown
    /// outcome, order it again.
    pub async fn drain(&self, id: NodeId, draining: bool) -> Result<ClusterReport, ClientError> {
        let members = self.describe(id, |info| info.draining = draining).await?;
        let can_lead = |member: &MemberReport| {
            member.id != id
                && member.role == MemberRole::Voter
                && !member.info.avoids_leadership()
                && member.error.is_none()
                && member.progress.is_some_and(|progress| !progress.is_recovering)
        };
        let must_leave = members.leader_id == Some(id) && members.members.iter().any(can_lead);
        if !draining || !must_leave {
            return Ok(members);
        }
        self.settled(|report| report.leader_id.is_some_and(|leader| leader != id)).await
    }

    /// Orders a change; returns the members as they are once it has begun, or, for a dry run, as
    /// they would be.
    ///
    /// # Errors
    /// The leader refused: the text says why, and what to do. Or no leader was found in time; after
    /// an unknown outcome, order it again.
    pub async fn order(&self, order: MembersOrder) -> Result<ClusterReport, ClientError> {
        self.ask(|| RequestKind::ChangeMembers(Box::new(order.clone()))).await
    }

    /// Waits until no change is under way, or until `is_done` says so of the members that the
    /// leader reports, and returns them.
    ///
    /// # Errors
    /// The deadline passed, or no leader answered: always [`Outcome::Unknown`]. A change
    /// that was begun goes on.
    ///
    /// [`Outcome::Unknown`]: crate::Outcome::Unknown
    pub async fn settled(
        &self,
        is_done: impl Fn(&ClusterReport) -> bool,
    ) -> Result<ClusterReport, ClientError> {
        assert!(self.client.deadline <= DEADLINE_MAX, "a deadline can be added to any time");
        let deadline = Instant::now() + self.client.deadline;
        loop {
            // The change was begun before, so a failure to watch it says nothing about it.
            let members = self.members().await;
            let members = members.map_err(|error| ClientError::unknown(error.reason))?;
            if is_done(&members) {
                return Ok(members);
            }
            if Instant::now() >= deadline {
                let last = "the change was still under way".to_owned();
                return Err(ClientError::unknown(Reason::Deadline { last }));
            }
            sleep(LOOK_AGAIN_AFTER).await;
        }
    }

    /// Hands leadership to `to`, or to the voter whose log is furthest, and returns the new leader
    /// once it leads. Does nothing if `to` leads already.
    ///
    /// # Errors
    /// There is no such voter, or it did not take over in time: then the old leader goes on, or
    /// another node leads.
    pub async fn transfer_leadership(&self, to: Option<NodeId>) -> Result<NodeId, ClientError> {
        let leader = |report: &ClusterReport| report.node_id;
        let before = leader(&self.members().await?);
        if to == Some(before) {
            return Ok(before);
        }
        let attempts = self.attempts();
        let told = attempts.run(|| RequestKind::TransferLeadership { to }).await?;
        let Reply::Done(_) = told.reply else { return Err(unexpected(&told.reply)) };
        let moved = |report: &ClusterReport| match to {
            Some(to) => leader(report) == to,
            None => leader(report) != before,
        };
        self.settled(moved).await.map(|report| leader(&report))
    }

    async fn ask(&self, request: impl Fn() -> RequestKind) -> Result<ClusterReport, ClientError> {
        match self.attempts().run(request).await?.reply {
            Reply::Cluster(report) => Ok(*report),
            other => Err(unexpected(&other)),
        }
    }

    fn attempts(&self) -> Attempts<'_> {
        let deadline = Instant::now() + self.client.deadline;
        Attempts::new(&self.client.shared.links, Target::Leader, deadline)
    }
}

/// Returns true if the leader has refused an order, and no attempt of it may have been carried out.
fn is_refusal(error: &ClientError) -> bool {
    error.outcome == Outcome::NotExecuted && matches!(error.reason, Reason::Invalid(_))
}
