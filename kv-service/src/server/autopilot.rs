//! Changes that the leader makes without an operator: a spare takes the place of a dead voter, a
//! dead learner goes, leadership moves to a voter that is preferred.
//!
//! [`Observer::look`] decides from what the leader sees, and changes nothing; `members/steering.rs`
//! carries the decisions out. The cluster never has fewer voters by them. Times count from when
//! *this* leader last reached a node: a new leader waits anew.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use raft_core::types::NodeId;
use tokio::time::Instant;

use crate::members::{ClusterReport, ClusterSettings, MemberReport, MemberRole, MembersChange};

/// A voter must have been fit for this long before it is handed leadership.
const FIT_FOR: Duration = Duration::from_secs(10);

/// A leader leads for at least this long, so that leadership does not come and go.
const LEADS_FOR_MIN: Duration = Duration::from_secs(60);

/// The leader's plans about the members.
#[derive(Default)]
pub(super) struct Autopilot {
    plans: Mutex<Vec<String>>,
}

impl Autopilot {
    /// The next steps of the leader, and the reasons why there are no more. Empty if the node does
    /// not lead.
    pub(super) fn plans(&self) -> Vec<String> {
        self.lock().clone()
    }

    pub(super) fn set_plans(&self, plans: Vec<String>) {
        *self.lock() = plans;
    }

    fn lock(&self) -> MutexGuard<'_, Vec<String>> {
        self.plans.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One leader's view of the members over time.
pub(super) struct Observer {
    /// When it may next hand over.
    hands_over_at: Instant,
    /// Members that it has reached.
    met: BTreeSet<NodeId>,
    /// Since when it has not reached a member.
    lost: BTreeMap<NodeId, Instant>,
    /// The voter that is to lead rather than this one, and since when it is fit for that.
    preferred: Option<(NodeId, Instant)>,
}

#[derive(Debug, PartialEq)]
pub(super) enum Step {
    Change(MembersChange),
    HandOver(NodeId),
}

#[derive(Debug, Default, PartialEq)]
pub(super) struct Decision {
    pub(super) step: Option<Step>,
    /// A sentence each.
    pub(super) plans: Vec<String>,
}

impl Observer {
    pub(super) fn begin(now: Instant) -> Self {
        Self {
            hands_over_at: now + LEADS_FOR_MIN,
            met: BTreeSet::new(),
            lost: BTreeMap::new(),
            preferred: None,
        }
    }

    /// Decides what to do next, and tells what is to come.
    pub(super) fn look(&mut self, report: &ClusterReport, now: Instant) -> Decision {
        self.note(report, now);
        let mut plans = Vec::new();
        if report.is_joint {
            return Decision { step: None, plans: vec!["voters are being exchanged".to_owned()] };
        }
        let decided = self
            .fill_up(report, &mut plans)
            .or_else(|| self.replace_dead(report, now, &mut plans))
            .or_else(|| self.remove_dead(report, now, &mut plans));
        let step = decided.or_else(|| self.hand_over(report, now, &mut plans));
        note_zones(report, &mut plans);
        Decision { step, plans }
    }

    /// The leader hands over now, and leads for a while if that fails.
    pub(super) fn hands_over(&mut self, now: Instant) {
        self.hands_over_at = now + LEADS_FOR_MIN;
    }

    fn note(&mut self, report: &ClusterReport, now: Instant) {
        self.lost.retain(|id, _| report.member(*id).is_some());
        self.met.retain(|id| report.member(*id).is_some());
        for member in report.members.iter().filter(|member| member.id != report.node_id) {
            if member.error.is_some() {
                self.lost.entry(member.id).or_insert(now);
            } else {
                self.lost.remove(&member.id);
                self.met.insert(member.id);
            }
        }
    }

    /// Spares become voters while there are too few.
    fn fill_up(&self, report: &ClusterReport, plans: &mut Vec<String>) -> Option<Step> {
        let voters = voters(report).count();
        let wanted = report.settings.voters as usize;
        if voters >= wanted {
            return None;
        }
        if let Some(coming) = report.members.iter().find(|member| is_coming(member)) {
            plans.push(format!("node {} becomes a voter once it has kept up", coming.id));
            return None;
        }
        let Some(spare) = best_spare(report, None) else {
            plans.push(format!(
                "there are {voters} voters, and {wanted} are wanted: there is no spare that runs \
                 (`kv member add --spare`)"
            ));
            return None;
        };
        if let Some(step) = call_back(report, plans) {
            return Some(step);
        }
        plans.push(format!("spare {spare} becomes a voter: {voters} of {wanted} are there"));
        Some(Step::Change(MembersChange::Promote { id: spare }))
    }

    /// A spare takes the place of a dead voter.
    fn replace_dead(
        &self,
        report: &ClusterReport,
        now: Instant,
        plans: &mut Vec<String>,
    ) -> Option<Step> {
        let mut dead: Vec<_> = voters(report)
            .filter_map(|voter| Some((*self.lost.get(&voter.id)?, voter.id)))
            .collect();
        dead.sort_unstable();
        for (since, old) in dead {
            let lost_for = seconds(now - since);
            let Some(after) = report.settings.replace_dead_after else {
                plans.push(format!(
                    "voter {old} was not reached for {lost_for}: it stays, since \
                     replace_dead_after is never"
                ));
                continue;
            };
            if let Some(coming) = report.members.iter().find(|member| is_coming(member)) {
                plans.push(format!(
                    "voter {old} was not reached for {lost_for}: node {} becomes a voter first",
                    coming.id
                ));
                continue;
            }
            let Some(new) = best_spare(report, Some(old)) else {
                plans.push(format!(
                    "voter {old} was not reached for {lost_for}: there is no spare that runs \
                     (`kv member add --spare`)"
                ));
                continue;
            };
            if now - since < after {
                plans.push(format!(
                    "voter {old} was not reached for {lost_for}: spare {new} takes its place after \
                     {}",
                    seconds(after)
                ));
                continue;
            }
            if let Some(step) = call_back(report, plans) {
                return Some(step);
            }
            plans.push(format!("spare {new} takes the place of voter {old}"));
            return Some(Step::Change(MembersChange::Replace { old, new }));
        }
        None
    }

    /// A learner that this leader has reached, and then no longer, goes. One that was never reached
    /// may still be on its way.
    fn remove_dead(
        &self,
        report: &ClusterReport,
        now: Instant,
        plans: &mut Vec<String>,
    ) -> Option<Step> {
        let after = report.settings.remove_dead_after?;
        for learner in learners(report).filter(|learner| self.met.contains(&learner.id)) {
            let Some(since) = self.lost.get(&learner.id) else { continue };
            let (id, lost_for) = (learner.id, seconds(now - *since));
            if now - *since >= after {
                plans.push(format!("learner {id} was not reached for {lost_for}: it is removed"));
                return Some(Step::Change(MembersChange::Remove { id }));
            }
            plans.push(format!(
                "learner {id} was not reached for {lost_for}: it is removed after {}",
                seconds(after)
            ));
        }
        None
    }

    /// Leadership goes to the voter that is preferred, once it was fit for a while.
    fn hand_over(
        &mut self,
        report: &ClusterReport,
        now: Instant,
        plans: &mut Vec<String>,
    ) -> Option<Step> {
        let own = report.member(report.node_id)?;
        let fit = voters(report).filter(|voter| voter.is_fit() && !voter.info.avoids_leadership());
        let best = fit.max_by_key(|voter| (rank(&report.settings, voter), u64::MAX - voter.id));
        let better = best.filter(|best| rank(&report.settings, best) > rank(&report.settings, own));
        let Some(id) = better.map(|better| better.id) else {
            self.preferred = None;
            return None;
        };
        let since = match self.preferred {
            Some((preferred, since)) if preferred == id => since,
            _ => now,
        };
        self.preferred = Some((id, since));
        let due = (since + FIT_FOR).max(self.hands_over_at);
        if now < due {
            let wait = seconds(due - now);
            plans.push(format!("node {id} is to lead rather than this one: it does in {wait}"));
            return None;
        }
        plans.push(format!("leadership goes to node {id}"));
        Some(Step::HandOver(id))
    }
}

fn voters(report: &ClusterReport) -> impl Iterator<Item = &MemberReport> {
    report.members.iter().filter(|member| member.role == MemberRole::Voter)
}

fn learners(report: &ClusterReport) -> impl Iterator<Item = &MemberReport> {
    report.members.iter().filter(|member| member.role == MemberRole::Learner)
}

/// A learner that runs, and becomes a voter by itself.
fn is_coming(member: &MemberReport) -> bool {
    member.role == MemberRole::Learner && member.wants_vote && member.error.is_none()
}

/// A spare that died on its way to be a voter stays a spare, before another one is sent.
/// Otherwise both could become voters.
fn call_back(report: &ClusterReport, plans: &mut Vec<String>) -> Option<Step> {
    let is_lost =
        |member: &&MemberReport| member.info.spare && member.wants_vote && member.error.is_some();
    let id = learners(report).find(is_lost)?.id;
    plans.push(format!("spare {id} is not reached, and is no longer to be a voter"));
    Some(Step::Change(MembersChange::Demote { id }))
}

/// The larger, the rather the voter is to lead.
fn rank(settings: &ClusterSettings, voter: &MemberReport) -> (bool, u8) {
    let zone = &settings.leader_zone;
    (!zone.is_empty() && *zone == voter.info.zone, voter.info.leader_priority())
}

/// The spare that is to become a voter, in place of `old` or beside the others: one of a zone with
/// few voters, and of those the one that is furthest.
fn best_spare(report: &ClusterReport, old: Option<NodeId>) -> Option<NodeId> {
    let voters_beside = |spare: &MemberReport| {
        let stays = |voter: &&MemberReport| Some(voter.id) != old;
        let beside = voters(report).filter(stays);
        beside.filter(|voter| voter.info.zone == spare.info.zone).count()
    };
    let behind = |spare: &MemberReport| spare.progress.map_or(u64::MAX, |progress| progress.behind);
    let spares = learners(report).filter(|member| member.info.spare && member.is_fit());
    let best = spares.min_by_key(|spare| (voters_beside(spare), behind(spare), spare.id));
    best.map(|spare| spare.id)
}

fn note_zones(report: &ClusterReport, plans: &mut Vec<String>) {
    for zone in report.zones_needed() {
        plans.push(format!(
            "zone {zone} holds so many voters that the cluster stops without it: place a voter in \
             another zone instead"
        ));
    }
}

fn seconds(duration: Duration) -> String {
    humantime::format_duration(Duration::from_secs(duration.as_secs())).to_string()
}

#[cfg(test)]
#[path = "autopilot_tests.rs"]
mod tests;
