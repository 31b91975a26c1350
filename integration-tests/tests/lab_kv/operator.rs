//! The operator of a lab whose members change: adds, removes, replaces, promotes and demotes
//! servers, and moves leadership, one change after the other.

use std::time::Duration;

use kv_service::members::{ClusterReport, MemberInfo, MemberRole, MembersChange, MembersOrder};
use kv_service::{Client, ClientError, NodeId, Outcome, Reason};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use tokio::time::{Instant, sleep};

use crate::cluster::Cluster;

/// Fewer voters are never left: one of them may fail.
const VOTERS_MIN: usize = 3;
/// Members from which on the operator removes one before it adds another.
const MEMBERS_MAX: usize = 7;
/// The deadline of one attempt at a change.
const ATTEMPT: Duration = Duration::from_secs(5);
/// Pause before another attempt.
const AGAIN_AFTER: Duration = Duration::from_millis(100);
/// Longest time that a change takes, the phases of faults included.
const CHANGE: Duration = Duration::from_secs(60);
/// Longest time that a change takes without faults: a second in which a learner keeps up, and one
/// for an election.
const SMOOTH_CHANGE: Duration = Duration::from_secs(2);

/// A change of the members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Move {
    AddVoter,
    AddLearner,
    Promote,
    Demote,
    Remove,
    /// A voter loses power for good, and is removed.
    RemoveDead,
    /// A fresh server takes the place of a voter.
    Replace,
    Transfer,
}

pub(crate) const MOVES: [Move; 8] = [
    Move::AddVoter,
    Move::AddLearner,
    Move::Promote,
    Move::Demote,
    Move::Remove,
    Move::RemoveDead,
    Move::Replace,
    Move::Transfer,
];

pub(crate) struct Operator<'a> {
    cluster: &'a Cluster,
    client: Client,
    rng: StdRng,
    /// The members after the last change.
    report: ClusterReport,
    /// Names of the servers that were added: a name shows if an addition took place.
    added_count: u64,
}

impl<'a> Operator<'a> {
    pub(crate) async fn new(cluster: &'a Cluster, rng: StdRng) -> Self {
        let client = cluster.client().with_deadline(ATTEMPT);
        let report = ClusterReport::default();
        let mut operator = Self { cluster, client, rng, report, added_count: 0 };
        operator.wait(|_| true).await;
        operator
    }

    /// Carries out a change, with others before it that make it possible.
    pub(crate) async fn carry_out(&mut self, change: Move) {
        self.cluster.trace.note(format_args!("the operator begins: {change:?}"));
        self.cluster.is_changing.set(true);
        if self.report.members.len() >= MEMBERS_MAX {
            self.remove().await;
        }
        match change {
            Move::AddVoter => drop(self.add(true).await),
            Move::AddLearner => drop(self.add(false).await),
            Move::Promote => self.promote().await,
            Move::Demote => self.demote().await,
            Move::Remove => self.remove().await,
            Move::RemoveDead => self.remove_dead().await,
            Move::Replace => self.replace().await,
            Move::Transfer => self.transfer().await,
        }
        self.cluster.is_changing.set(false);
    }

    /// The members once no change is under way.
    pub(crate) async fn settled(&mut self) -> &ClusterReport {
        self.wait(|_| true).await;
        &self.report
    }

    async fn add(&mut self, wants_vote: bool) -> NodeId {
        self.added_count += 1;
        let name = format!("server{}", self.added_count);
        let start = Instant::now();
        let id = loop {
            let info = MemberInfo { name: name.clone(), ..MemberInfo::default() };
            match self.client.cluster().add(info, wants_vote).await {
                Ok(id) => break id,
                Err(error) => self.try_again(start, &error).await,
            }
            if let Some(id) = self.id_of(&name).await {
                break id;
            }
        };
        self.cluster.join(id).await;
        let role = if wants_vote { MemberRole::Voter } else { MemberRole::Learner };
        self.wait(|report| has_role(report, id, role)).await;
        id
    }

    /// The member of this name, as far as a leader that answers knows.
    async fn id_of(&self, name: &str) -> Option<NodeId> {
        let report = self.client.cluster().members().await.ok()?;
        report.members.iter().find(|member| member.info.name == name).map(|member| member.id)
    }

    async fn promote(&mut self) {
        let id = match self.any(MemberRole::Learner) {
            Some(id) => id,
            None => self.add(false).await,
        };
        self.order(MembersChange::Promote { id }).await;
        self.wait(|report| has_role(report, id, MemberRole::Voter)).await;
    }

    async fn demote(&mut self) {
        let id = self.spare_voter().await;
        self.order(MembersChange::Demote { id }).await;
        self.wait(|report| has_role(report, id, MemberRole::Learner)).await;
    }

    async fn remove(&mut self) {
        let learner = self.any(MemberRole::Learner).filter(|_| self.rng.random());
        let id = match learner {
            Some(id) => id,
            None => self.spare_voter().await,
        };
        self.remove_this(id).await;
    }

    async fn remove_dead(&mut self) {
        let id = self.spare_voter().await;
        self.cluster.lose(id);
        self.remove_this(id).await;
    }

    async fn remove_this(&mut self, id: NodeId) {
        self.order(MembersChange::Remove { id }).await;
        self.wait(|report| report.member(id).is_none()).await;
        self.has_left(id).await;
    }

    async fn replace(&mut self) {
        let new = self.add(false).await;
        let old = self.any(MemberRole::Voter).expect("there are voters");
        self.order(MembersChange::Replace { old, new }).await;
        let is_done = |report: &ClusterReport| {
            report.member(old).is_none() && has_role(report, new, MemberRole::Voter)
        };
        self.wait(is_done).await;
        self.has_left(old).await;
    }

    /// Moves leadership to a random voter. One that is down or cut off does not take over, and
    /// another one is tried.
    async fn transfer(&mut self) {
        let start = Instant::now();
        loop {
            let to = self.any(MemberRole::Voter).expect("there are voters");
            match self.client.cluster().transfer_leadership(Some(to)).await {
                Ok(leader) => return assert_eq!(leader, to, "it leads"),
                Err(error) => self.try_again(start, &error).await,
            }
        }
    }

    /// Without faults, a server that was removed learns of that and stops.
    async fn has_left(&self, id: NodeId) {
        self.cluster.leave(id);
        if self.cluster.lab.is_smooth() && self.cluster.runs(id) {
            self.cluster.stopped(id).await;
        }
    }

    /// A voter that may leave: the leader or another one. If too few are left, one is added first.
    async fn spare_voter(&mut self) -> NodeId {
        if self.of_role(MemberRole::Voter).len() <= VOTERS_MIN {
            self.add(true).await;
        }
        self.any(MemberRole::Voter).expect("there are voters")
    }

    fn of_role(&self, role: MemberRole) -> Vec<NodeId> {
        let members = self.report.members.iter().filter(|member| member.role == role);
        members.map(|member| member.id).collect()
    }

    fn any(&mut self, role: MemberRole) -> Option<NodeId> {
        let members = self.of_role(role);
        members.choose(&mut self.rng).copied()
    }

    /// Orders a change until the leader has begun it.
    async fn order(&self, change: MembersChange) {
        let mut order = MembersOrder::new(change);
        (order.live, order.less_redundancy) = (true, true);
        let start = Instant::now();
        while let Err(error) = self.client.cluster().order(order.clone()).await {
            self.try_again(start, &error).await;
        }
    }

    /// Waits until no change is under way, the members are as expected, and a voter leads: a leader
    /// that was demoted hands leadership over.
    async fn wait(&mut self, is_done: impl Fn(&ClusterReport) -> bool) {
        let start = Instant::now();
        let is_done = |report: &ClusterReport| {
            let is_led = has_role(report, report.node_id, MemberRole::Voter);
            report.is_settled() && is_led && is_done(report)
        };
        self.report = loop {
            match self.client.cluster().settled(is_done).await {
                Ok(report) => break report,
                Err(error) => self.try_again(start, &error).await,
            }
        };
        let took = start.elapsed();
        assert!(took <= self.change_max(), "the change took {took:?}: {:?}", self.report);
    }

    fn change_max(&self) -> Duration {
        if self.cluster.lab.is_smooth() { SMOOTH_CHANGE } else { CHANGE }
    }

    /// Waits before another attempt.
    ///
    /// # Panics
    /// If the leader refused the change for good, or if the change has taken too long.
    async fn try_again(&self, start: Instant, error: &ClientError) {
        self.cluster.trace.note(format_args!("the operator tries again: {error}"));
        if let (Reason::Invalid(text), Outcome::NotExecuted) = (&error.reason, error.outcome) {
            // The index of the members moves when their entry is compacted. An order that names it
            // is then refused, although the members are the same.
            let has_moved = text.contains("the members have changed since");
            let is_quorum_away = text.contains("too few of the voters");
            let is_smooth = self.cluster.lab.is_smooth();
            assert!(has_moved || (is_quorum_away && !is_smooth), "{error}");
        }
        let took = start.elapsed();
        assert!(took <= self.change_max(), "after {took:?}: {error}");
        sleep(AGAIN_AFTER).await;
    }
}

fn has_role(report: &ClusterReport, id: NodeId, role: MemberRole) -> bool {
    report.member(id).is_some_and(|member| member.role == role)
}
