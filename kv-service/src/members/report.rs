//! The members as one node knows them, for operators.

use std::collections::BTreeSet;

use raft_core::checksum::Crc32c;
use raft_core::types::{Configuration, Index, NodeId};
use serde::{Deserialize, Serialize};

use super::{ClusterRecord, ClusterSettings, ClusterUid, MemberInfo};

/// A member that lacks more entries has not kept up.
const BEHIND_MAX: u64 = 10_000;

/// The members of the cluster, as one node knows them. The leader's report is the one to act on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterReport {
    /// The node that reports.
    pub node_id: NodeId,
    /// The leader, as far as that node knows.
    pub leader_id: Option<NodeId>,
    /// Random id of the cluster; `None` until its first leader has drawn it.
    pub uid: Option<ClusterUid>,
    /// Place of the members' configuration in the log, or the log's start once its entry was
    /// compacted.
    pub index: Index,
    /// Tells these members, records and settings from others, on every node and in every place of
    /// the log ([`MembersOrder::expected`](super::MembersOrder::expected)).
    pub digest: u32,
    /// False while a change waits for a majority.
    pub is_committed: bool,
    /// True while voters are being exchanged: majorities of the old and of the new ones decide.
    pub is_joint: bool,
    /// The id of the next member that is added. Smaller ids of nodes that are no members were
    /// removed, and are never used again.
    pub next_id: NodeId,
    /// In ascending order of ids.
    pub members: Vec<MemberReport>,
    /// The rules by which the leader changes the members without an operator.
    pub settings: ClusterSettings,
    /// The next steps of the leader by these settings, and the reasons why there are no more; a
    /// sentence each. Empty in reports of other nodes.
    pub plans: Vec<String>,
}

/// One member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberReport {
    /// The member.
    pub id: NodeId,
    /// Its name, address and zone, as recorded.
    pub info: MemberInfo,
    /// Identity of the data directory that is recorded for it; 0 if none is.
    pub incarnation: u64,
    /// Its role.
    pub role: MemberRole,
    /// Set for a learner that becomes a voter by itself; not set for a voter that is to be
    /// replaced.
    pub wants_vote: bool,
    /// The leader's knowledge of it; `None` for the leader itself and in reports of other nodes.
    pub progress: Option<MemberProgress>,
    /// Why the reporting node cannot reach it; `None` if it can.
    pub error: Option<String>,
}

/// The role of a member: the majorities in which it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberRole {
    /// Counted.
    Voter,
    /// Counted from the present change on; not in the majority that is being left.
    Joining,
    /// Counted until the present change is done.
    Leaving,
    /// Gets all data, and is not counted.
    Learner,
}

/// The leader's knowledge of another member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberProgress {
    /// It has on disk all entries through this index.
    pub match_index: Index,
    /// Entries that it lacks.
    pub behind: u64,
    /// It came back on an empty disk, and is not counted until it has all data.
    pub is_recovering: bool,
}

impl MemberRole {
    /// `voter`, `joining`, `leaving` or `learner`.
    pub fn name(self) -> &'static str {
        match self {
            MemberRole::Voter => "voter",
            MemberRole::Joining => "joining",
            MemberRole::Leaving => "leaving",
            MemberRole::Learner => "learner",
        }
    }

    fn of(configuration: &Configuration, id: NodeId) -> Self {
        match (configuration.voters.contains(&id), configuration.outgoing.contains(&id)) {
            (true, false) if configuration.is_joint() => MemberRole::Joining,
            (true, _) => MemberRole::Voter,
            (false, true) => MemberRole::Leaving,
            (false, false) => MemberRole::Learner,
        }
    }
}

impl MemberReport {
    /// Returns true for a member other than the leader that runs, is counted, and has kept up, as
    /// far as the leader knows.
    pub fn is_fit(&self) -> bool {
        let keeps_up =
            |progress: MemberProgress| !progress.is_recovering && progress.behind <= BEHIND_MAX;
        self.error.is_none() && self.progress.is_some_and(keeps_up)
    }

    /// Returns true for a learner that becomes a voter, and for a voter that is to be replaced.
    pub fn is_on_its_way(&self) -> bool {
        (self.role == MemberRole::Learner) == self.wants_vote
    }
}

impl ClusterReport {
    /// The members of a configuration, without what a node knows beyond it.
    pub(crate) fn of(configuration: &Configuration) -> Self {
        let report = |id: NodeId| MemberReport {
            id,
            info: MemberInfo::decode(
                configuration.members.get(&id).map_or(&[][..], |member| &member.context),
            ),
            incarnation: configuration.incarnation(id),
            role: MemberRole::of(configuration, id),
            wants_vote: configuration.wants_vote(id),
            progress: None,
            error: None,
        };
        let ClusterRecord { uid, settings } = ClusterRecord::decode(&configuration.context);
        Self {
            uid,
            is_joint: configuration.is_joint(),
            digest: digest(configuration),
            next_id: configuration.fresh_id(),
            members: configuration.members().into_iter().map(report).collect(),
            settings,
            ..Self::default()
        }
    }

    /// The member of this id.
    pub fn member(&self, id: NodeId) -> Option<&MemberReport> {
        self.members.iter().find(|member| member.id == id)
    }

    /// How many voters may fail at the same time, if all others run and are counted.
    pub fn failures_tolerated(&self) -> usize {
        let tolerated = |half: MemberRole| self.half(half).count().saturating_sub(1) / 2;
        self.halves().iter().map(|half| tolerated(*half)).min().unwrap_or(0)
    }

    /// The zones without which no majority is left, if all other voters run. A voter without a zone
    /// is in none. Empty if the cluster survives no failure at all.
    pub fn zones_needed(&self) -> BTreeSet<&str> {
        let mut needed = BTreeSet::new();
        if self.failures_tolerated() == 0 {
            return needed;
        }
        for half in self.halves() {
            let voters = self.half(*half).count();
            for zone in self.half(*half).map(|member| member.info.zone.as_str()) {
                let inside = self.half(*half).filter(|member| member.info.zone == zone).count();
                if !zone.is_empty() && voters - inside <= voters / 2 {
                    needed.insert(zone);
                }
            }
        }
        needed
    }

    /// The roles that count in one half only: of the voters to be, and while joint of the voters
    /// that were.
    fn halves(&self) -> &'static [MemberRole] {
        if self.is_joint {
            &[MemberRole::Joining, MemberRole::Leaving]
        } else {
            &[MemberRole::Joining]
        }
    }

    /// The members that count in this half.
    fn half(&self, half: MemberRole) -> impl Iterator<Item = &MemberReport> {
        let is_in = move |role| role == MemberRole::Voter || role == half;
        self.members.iter().filter(move |member| is_in(member.role))
    }

    /// How many further voters may fail now, as far as the reporting leader knows: the others must
    /// still be a majority. `None` if too few run already, or if this is no leader's report.
    pub fn failures_tolerated_now(&self) -> Option<usize> {
        if self.leader_id != Some(self.node_id) {
            return None;
        }
        let counts = |member: &&MemberReport| {
            let recovers = member.progress.is_some_and(|progress| progress.is_recovering);
            member.id == self.node_id || (member.error.is_none() && !recovers)
        };
        let spare = |half: MemberRole| -> Option<usize> {
            let majority = self.half(half).count() / 2 + 1;
            self.half(half).filter(counts).count().checked_sub(majority)
        };
        self.halves().iter().map(|half| spare(*half)).min().flatten()
    }

    /// Tells whether these nodes may be stopped, as far as the reporting leader knows: the others
    /// that run, are counted and have kept up must be a majority, of the old and of the new voters
    /// while voters are being exchanged.
    ///
    /// # Errors
    /// Text that says why not.
    pub fn ok_to_stop(&self, nodes: &[NodeId]) -> Result<(), String> {
        if let Some(unknown) = nodes.iter().find(|id| self.member(**id).is_none()) {
            return Err(format!("there is no member {unknown}"));
        }
        let goes_on = |member: &MemberReport| {
            let runs = member.id == self.node_id || member.is_fit();
            runs && !nodes.contains(&member.id)
        };
        for half in self.halves() {
            let count = self.half(*half).count();
            let left = self.half(*half).filter(|member| goes_on(member)).count();
            if left <= count / 2 {
                return Err(format!(
                    "{left} of {count} voters would be left that run, are counted and have kept up; \
                     {} are needed",
                    count / 2 + 1
                ));
            }
        }
        Ok(())
    }

    /// True once no change is under way: it is committed and not joint, no member is on its way to
    /// another role, and the leader is a member.
    pub fn is_settled(&self) -> bool {
        let is_led = self.leader_id.is_some_and(|leader| self.member(leader).is_some());
        self.is_committed
            && !self.is_joint
            && is_led
            && !self.members.iter().any(MemberReport::is_on_its_way)
    }
}

fn digest(configuration: &Configuration) -> u32 {
    let bytes = rmp_serde::to_vec(configuration).expect("it has a form in MessagePack");
    let mut checksum = Crc32c::default();
    checksum.update(&bytes);
    checksum.value()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(configuration: &Configuration) -> ClusterReport {
        let report = ClusterReport::of(configuration);
        ClusterReport { node_id: 1, leader_id: Some(1), is_committed: true, ..report }
    }

    #[test]
    fn a_joint_configuration_shows_who_comes_and_who_goes() {
        let joint = Configuration {
            outgoing: [1, 2, 3].into(),
            learners: [5].into(),
            ..Configuration::of_voters([1, 2, 4])
        };
        let report = of(&joint);
        let roles: Vec<_> = report.members.iter().map(|member| member.role.name()).collect();
        assert_eq!(roles, ["voter", "voter", "leaving", "joining", "learner"]);
        assert_eq!((report.next_id, report.failures_tolerated()), (6, 1));
        assert!(!report.is_settled());
    }

    #[test]
    fn failures_are_counted_among_the_voters_that_run() {
        let mut report = of(&Configuration::of_voters([1, 2, 3]));
        assert_eq!(report.failures_tolerated_now(), Some(1));
        report.members[1].error = Some("down".to_owned());
        assert_eq!(report.failures_tolerated_now(), Some(0));
        let is_recovering = true;
        report.members[2].progress =
            Some(MemberProgress { match_index: 0, behind: 9, is_recovering });
        assert_eq!(report.failures_tolerated_now(), None);
        assert_eq!(report.failures_tolerated(), 1);
        report.leader_id = Some(2);
        assert_eq!(report.failures_tolerated_now(), None);
    }

    #[test]
    fn a_node_may_be_stopped_if_the_others_can_go_on() {
        let mut report = of(&Configuration::of_voters([1, 2, 3]));
        let fine = MemberProgress { match_index: 9, behind: 1, is_recovering: false };
        for member in &mut report.members[1..] {
            member.progress = Some(fine);
        }
        assert_eq!(report.ok_to_stop(&[1]), Ok(()));
        assert!(report.ok_to_stop(&[2, 3]).unwrap_err().contains("1 of 3 voters"));
        assert!(report.ok_to_stop(&[9]).unwrap_err().contains("no member 9"));
        report.members[1].progress = Some(MemberProgress { is_recovering: true, ..fine });
        assert!(report.ok_to_stop(&[3]).is_err() && report.ok_to_stop(&[2]).is_ok());
        report.members[1].progress = Some(MemberProgress { behind: BEHIND_MAX + 1, ..fine });
        assert!(report.ok_to_stop(&[3]).is_err());
    }

    /// M-L6. Two operators who read the members at the same time do not both change them, and a
    /// compaction of the log between reading and changing is no change.
    #[test]
    fn a_digest_is_of_the_members_and_not_of_their_place() {
        let configuration = Configuration::of_voters([1, 2, 3]);
        let report = of(&configuration);
        let moved = ClusterReport { index: 9, ..of(&configuration) };
        assert_eq!(report.digest, moved.digest);
        let mut described = configuration.clone();
        let member = raft_core::types::Member { context: "x".into(), ..Default::default() };
        described.members.insert(1, member);
        let configured = Configuration { context: "y".into(), ..configuration };
        let digests = [&report, &of(&described), &of(&configured)].map(|report| report.digest);
        assert_eq!(BTreeSet::from(digests).len(), 3);
    }

    #[test]
    fn a_zone_with_a_majority_is_needed() {
        let in_zones = |zones: &[&str]| {
            let mut report = of(&Configuration::of_voters(1..=zones.len() as u64));
            for (member, zone) in report.members.iter_mut().zip(zones) {
                member.info.zone = (*zone).to_owned();
            }
            report
        };
        assert_eq!(in_zones(&["a", "b", "c"]).zones_needed(), [].into());
        assert_eq!(in_zones(&["a", "a", "b"]).zones_needed(), ["a"].into());
        assert_eq!(in_zones(&["a", "a", "b", "b"]).zones_needed(), ["a", "b"].into());
        assert_eq!(in_zones(&["a", "b"]).zones_needed(), [].into(), "each voter is needed");
        assert_eq!(in_zones(&["", "", "b"]).zones_needed(), [].into(), "they are not known");
    }

    #[test]
    fn a_learner_that_waits_to_be_a_voter_is_not_settled() {
        let mut configuration = Configuration::of_voters([1]);
        configuration.learners.insert(2);
        assert!(of(&configuration).is_settled(), "it stays a learner");
        configuration
            .members
            .insert(2, raft_core::types::Member { wants_vote: true, ..Default::default() });
        assert!(!of(&configuration).is_settled());
    }
}
