//! Changes of the members (chapter 4): which configuration comes next, and which changes are
//! refused.
//!
//! Two pure functions decide. [`plan`] turns an operator's [`Change`] into the configuration that
//! the leader appends next, or refuses it. [`next_step`] is what the leader does on its own: it
//! leaves a joint configuration, and makes voters of the learners that want to be voters and are
//! ready. Both see the other members through a [`View`].
//!
//! The set of voters changes by joint consensus only (4.3). Learners and the records of members
//! change by a plain entry, because no majority depends on them. An intention is state: a learner
//! whose record says `wants_vote`, or a voter whose record says that it does not, is on its way,
//! whichever node leads and whether or not the operator's program still runs.
//!
//! An id is given out once. An id below [`Configuration::next_id`] that is no member was removed,
//! and never becomes a member again.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::quorum::reached_by_quorum;
use crate::error::Rejected;
use crate::types::{Configuration, Member, NodeId};

/// A change of the members that an operator asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// Adds a learner. If its record says `wants_vote`, it becomes a voter once it is ready.
    Add {
        /// The id that is given out next ([`Configuration::fresh_id`]).
        id: NodeId,
        /// The record of the new member.
        member: Member,
    },
    /// Makes a voter of a learner once it is ready, or keeps a voter that was to be replaced.
    Promote {
        /// The member.
        id: NodeId,
    },
    /// Makes a learner of a voter, or keeps a learner from becoming a voter.
    Demote {
        /// The member.
        id: NodeId,
    },
    /// Removes a member for good.
    Remove {
        /// The member.
        id: NodeId,
    },
    /// Makes a voter of a learner and removes a voter, in one step, once the learner is ready.
    Replace {
        /// The voter that leaves.
        old: NodeId,
        /// The learner that takes its place.
        new: NodeId,
    },
    /// Records the incarnation of a learner that has none: the identity of its disk.
    Bind {
        /// The member.
        id: NodeId,
        /// Not 0.
        incarnation: u64,
    },
    /// Replaces the opaque part of a member's record.
    SetContext {
        /// The member.
        id: NodeId,
        /// The new content.
        context: Bytes,
    },
    /// Replaces the opaque part of the configuration.
    SetClusterContext {
        /// The new content.
        context: Bytes,
    },
}

/// Checks that a caller switches off for one change, because the operator knows better.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Overrides {
    /// The change may leave a cluster that tolerates fewer failures than before.
    pub less_redundancy: bool,
    /// The change may remove a voter that is running.
    pub live: bool,
}

/// The leader's knowledge of another member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Standing {
    /// It sent a message within an election timeout.
    pub(super) responds: bool,
    /// Its votes and acknowledgements are not counted.
    pub(super) recovers: bool,
    /// It has kept up with the log for long enough.
    pub(super) is_ready: bool,
    /// The newest cluster version that it supports.
    pub(super) version_max: u32,
}

/// The leader's knowledge of all other members.
#[derive(Clone, Debug)]
pub(super) struct View {
    pub(super) own_id: NodeId,
    pub(super) standings: BTreeMap<NodeId, Standing>,
}

impl View {
    fn of(&self, id: NodeId) -> Standing {
        self.standings.get(&id).copied().unwrap_or_default()
    }

    /// Returns true if the voters that count and respond decide in this configuration.
    fn can_decide(&self, configuration: &Configuration) -> bool {
        let counts = |id| {
            let Standing { responds, recovers, .. } = self.of(id);
            id == self.own_id || (responds && !recovers)
        };
        reached_by_quorum(configuration, |id| u8::from(counts(id))) > 0
    }

    /// Returns true if this learner may become a voter now.
    fn is_ready(&self, configuration: &Configuration, id: NodeId) -> bool {
        let Standing { responds, recovers, is_ready, version_max } = self.of(id);
        responds && is_ready && !recovers && version_max >= configuration.cluster_version
    }
}

/// The configuration that carries out `change`, or takes the first step of it. `None`: there is
/// nothing to do, as for a request that is repeated.
pub(super) fn plan(
    current: &Configuration,
    view: &View,
    change: &Change,
    overrides: Overrides,
) -> Result<Option<Configuration>, Rejected> {
    let mut next = match change {
        Change::Add { id, member } => add(current, *id, member)?,
        Change::Promote { id } => want_vote(current, *id)?,
        Change::Demote { id } => demote(current, *id)?,
        Change::Remove { id } => remove(current, view, *id, overrides)?,
        Change::Replace { old, new } => replace(current, *old, *new)?,
        Change::Bind { id, incarnation } => bind(current, *id, *incarnation)?,
        Change::SetContext { id, context } => set_context(current, *id, context)?,
        Change::SetClusterContext { context } => {
            Configuration { context: context.clone(), ..current.clone() }
        }
    };
    forget_replacements(&mut next);
    if next == *current {
        return Ok(None);
    }
    check(current, view, &next, overrides)?;
    Ok(Some(next))
}

/// The configuration that the leader appends on its own, if there is one. The current one is
/// committed, and so is an entry of the leader's own term.
pub(super) fn next_step(current: &Configuration, view: &View) -> Option<Configuration> {
    if current.is_joint() {
        return Some(leave_joint(current));
    }
    let wanted = |id: &&NodeId| current.wants_vote(**id) && view.is_ready(current, **id);
    let joining: BTreeSet<NodeId> = current.learners.iter().filter(wanted).copied().collect();
    if joining.is_empty() {
        return None;
    }
    // Only as many leave as join, so that a replacement never shrinks the cluster.
    let leaving = current.voters.iter().filter(|id| !current.wants_vote(**id));
    let leaving: BTreeSet<NodeId> = leaving.take(joining.len()).copied().collect();
    let voters = current.voters.union(&joining).copied().filter(|id| !leaving.contains(id));
    let learners = current.learners.difference(&joining).copied().collect();
    let next = joint(current, voters.collect(), learners);
    (view.can_decide(&next) && next.is_storable()).then_some(next)
}

fn refused(text: String) -> Rejected {
    Rejected::Refused(format!("not executed: {text}"))
}

fn no_member(current: &Configuration, id: NodeId) -> Rejected {
    if id < current.next_id {
        return refused(format!("node {id} was removed; its id is never used again"));
    }
    refused(format!("there is no member {id}; the members are {:?}", current.members()))
}

fn add(current: &Configuration, id: NodeId, member: &Member) -> Result<Configuration, Rejected> {
    if let Some(known) = current.members.get(&id)
        && known.context == member.context
        && known.wants_vote == member.wants_vote
    {
        return Ok(current.clone());
    }
    let fresh_id = current.fresh_id();
    if id != fresh_id {
        return Err(match current.is_member(id) {
            true => {
                refused(format!("node {id} is a member already; the next free id is {fresh_id}"))
            }
            false if id < fresh_id => {
                no_member(&Configuration { next_id: fresh_id, ..current.clone() }, id)
            }
            false => refused(format!("ids are given out in order: the next one is {fresh_id}")),
        });
    }
    let mut next = current.clone();
    next.next_id = id.checked_add(1).ok_or_else(|| refused("all ids are used".to_owned()))?;
    next.learners.insert(id);
    next.members.insert(id, member.clone());
    Ok(next)
}

fn want_vote(current: &Configuration, id: NodeId) -> Result<Configuration, Rejected> {
    if !current.is_member(id) {
        return Err(no_member(current, id));
    }
    let mut next = current.clone();
    next.set_wants_vote(id, true);
    Ok(next)
}

fn demote(current: &Configuration, id: NodeId) -> Result<Configuration, Rejected> {
    if !current.is_member(id) {
        return Err(no_member(current, id));
    }
    let mut next = current.clone();
    if current.voters.contains(&id) {
        let mut voters = current.voters.clone();
        voters.remove(&id);
        let mut learners = current.learners.clone();
        learners.insert(id);
        next = joint(current, voters, learners);
    }
    next.set_wants_vote(id, false);
    Ok(next)
}

fn remove(
    current: &Configuration,
    view: &View,
    id: NodeId,
    overrides: Overrides,
) -> Result<Configuration, Rejected> {
    if !current.is_member(id) {
        // A repeated request. An id that was never given out is a mistake.
        return match id < current.next_id {
            true => Ok(current.clone()),
            false => Err(no_member(current, id)),
        };
    }
    if !current.voters.contains(&id) {
        let mut next = current.clone();
        next.next_id = current.fresh_id();
        next.learners.remove(&id);
        next.members.remove(&id);
        return Ok(next);
    }
    let is_running = id == view.own_id || view.of(id).responds;
    if is_running && !overrides.live {
        return Err(refused(format!(
            "node {id} is running: stop it first, or say that it is meant (`live`)"
        )));
    }
    let mut voters = current.voters.clone();
    voters.remove(&id);
    Ok(joint(current, voters, current.learners.clone()))
}

fn replace(current: &Configuration, old: NodeId, new: NodeId) -> Result<Configuration, Rejected> {
    if !current.is_member(old) && old < current.next_id && current.voters.contains(&new) {
        return Ok(current.clone());
    }
    if !current.voters.contains(&old) {
        return Err(refused(format!(
            "node {old} is no voter; the voters are {:?}",
            current.voters
        )));
    }
    if !current.learners.contains(&new) {
        return Err(refused(format!("node {new} is no learner; add it first")));
    }
    let mut next = current.clone();
    next.set_wants_vote(new, true);
    next.set_wants_vote(old, false);
    Ok(next)
}

fn bind(current: &Configuration, id: NodeId, incarnation: u64) -> Result<Configuration, Rejected> {
    if !current.is_member(id) {
        return Err(no_member(current, id));
    }
    let known = current.members.get(&id).map_or(0, |member| member.incarnation);
    if known == incarnation && incarnation != 0 {
        return Ok(current.clone());
    }
    if incarnation == 0 || known != 0 || !current.learners.contains(&id) {
        return Err(refused(format!(
            "node {id} was not added with this data directory, and only the first one of a learner \
             is recorded: remove the node, and add a new member"
        )));
    }
    let mut next = current.clone();
    next.record(id).incarnation = incarnation;
    Ok(next)
}

fn set_context(
    current: &Configuration,
    id: NodeId,
    context: &Bytes,
) -> Result<Configuration, Rejected> {
    if !current.is_member(id) {
        return Err(no_member(current, id));
    }
    let mut next = current.clone();
    next.record(id).context = context.clone();
    Ok(next)
}

/// A voter that was to be replaced stays, once no learner is left that wants to be a voter.
/// Otherwise a member that is added later would take its place.
fn forget_replacements(next: &mut Configuration) {
    if next.is_joint() || next.learners.iter().any(|id| next.wants_vote(*id)) {
        return;
    }
    for id in next.voters.clone() {
        next.set_wants_vote(id, true);
    }
}

/// A joint configuration from the current voters to these. Its records are those of all members;
/// the ones of the nodes that leave go with the joint configuration.
fn joint(
    current: &Configuration,
    voters: BTreeSet<NodeId>,
    learners: BTreeSet<NodeId>,
) -> Configuration {
    assert!(!current.is_joint(), "one change at a time");
    Configuration {
        outgoing: current.voters.clone(),
        next_id: current.fresh_id(),
        voters,
        learners,
        ..current.clone()
    }
}

fn leave_joint(current: &Configuration) -> Configuration {
    let mut next = Configuration { outgoing: BTreeSet::new(), ..current.clone() };
    let members = next.members();
    next.members.retain(|id, _| members.contains(id));
    next
}

/// The checks that every change must pass.
fn check(
    current: &Configuration,
    view: &View,
    next: &Configuration,
    overrides: Overrides,
) -> Result<(), Rejected> {
    if next.voters.is_empty() {
        return Err(refused("a cluster needs a voter".to_owned()));
    }
    if !next.is_storable() {
        return Err(refused(
            "the records of the members and the settings take too many bytes".to_owned(),
        ));
    }
    if !next.is_joint() {
        return Ok(());
    }
    let tolerated = |voters: &BTreeSet<NodeId>| voters.len().saturating_sub(1) / 2;
    let (before, after) = (tolerated(&current.voters), tolerated(&next.voters));
    if after < before && !overrides.less_redundancy {
        return Err(refused(format!(
            "the cluster would tolerate {after} failed nodes, and tolerates {before} now: add a \
             member first, or say that it is meant (`less_redundancy`)"
        )));
    }
    let alone = Configuration { outgoing: BTreeSet::new(), ..next.clone() };
    if !view.can_decide(next) || !view.can_decide(&alone) {
        return Err(refused(format!(
            "too few of the voters {:?} and {:?} are running and counted: the change could not be \
             committed, and the cluster would stop",
            next.voters, next.outgoing
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
