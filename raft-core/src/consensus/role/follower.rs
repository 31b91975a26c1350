//! A node that follows: takes the leader's entries, remembers when the leader last sent a message,
//! and asks it for read indexes on behalf of reads that wait here.
//!
//! Sections 3.4, 3.5, 6.4.

use super::transition::Transition;
use crate::consensus::log::AppendRefusal;
use crate::consensus::node_state::NodeState;
use crate::consensus::ready::ReadState;
use crate::types::{
    Configuration, Entry, Index, MessageBody, NodeId, Payload, Position, ReadOutcome, Time,
};

#[derive(Clone, Debug)]
pub(in crate::consensus) struct Follower {
    pub(in crate::consensus) leader: Option<NodeId>,
    /// When the leader last sent a message; meaningless without a leader.
    pub(in crate::consensus) heard_at: Time,
    pub(in crate::consensus) election_deadline: Time,
    pub(in crate::consensus) reads: ForwardedReads,
}

/// Reads of this node that were forwarded to the leader. One request at a time; reads that arrive
/// meanwhile share the next one.
#[derive(Clone, Debug, Default, Hash)]
pub(in crate::consensus) struct ForwardedReads {
    waiting: Vec<u64>,
    asked: Option<Asked>,
}

#[derive(Clone, Debug)]
pub(in crate::consensus) struct Asked {
    /// Drawn anew for every attempt: a response to an earlier attempt, or to an earlier run of this
    /// node, must not confirm this one.
    pub(in crate::consensus) attempt: u64,
    pub(in crate::consensus) reads: Vec<u64>,
    pub(in crate::consensus) give_up_at: Time,
}

impl Follower {
    pub(in crate::consensus) fn new(leader: Option<NodeId>, now: Time, deadline: Time) -> Self {
        Self {
            leader,
            heard_at: now,
            election_deadline: deadline,
            reads: ForwardedReads::default(),
        }
    }

    /// Returns true if the leader sent a message within the minimal election timeout. Then this
    /// node refuses candidates.
    pub(in crate::consensus) fn is_loyal(&self, node: &NodeState, now: Time) -> bool {
        self.leader.is_some() && now.since(self.heard_at) < node.config.election_timeout
    }

    /// Notes a message of the leader of this term. Every message counts, also an append that is
    /// refused.
    pub(in crate::consensus) fn observe_leader(
        &mut self,
        node: &mut NodeState,
        now: Time,
        leader: NodeId,
    ) {
        assert!(self.leader.is_none_or(|known| known == leader), "one leader in a term");
        self.leader = Some(leader);
        self.heard_at = now;
        self.election_deadline = node.draw_election_deadline(now);
    }

    pub(in crate::consensus) fn on_append(
        &mut self,
        node: &mut NodeState,
        previous: Position,
        entries: Vec<Entry>,
        commit_index: Index,
    ) {
        let leader = self.leader.expect("the leader was just observed");
        if let Some(refusal) = refusal_of(node, previous, &entries) {
            node.tell_refusal(format!("node {leader} sent {refusal}; the entries are ignored"));
            return;
        }
        let last_new_index = previous.index + entries.len() as u64;
        let grows = !entries.is_empty() && last_new_index > node.log.last_index();
        if grows && node.log_waits_for_compaction() {
            // As if the network had lost the append: the leader will send it again.
            return;
        }
        match node.log.merge(previous, entries) {
            Ok((match_index, truncated)) => {
                if let Some(index) = truncated {
                    node.durability.gate.withdraw_accepted_from(index);
                }
                node.note_agreed(match_index);
                // Beyond the last new entry this log may still differ from the leader's (A9).
                node.log.commit_to(commit_index.min(last_new_index));
                node.send_when_durable(leader, MessageBody::AppendAccepted { match_index });
            }
            Err(AppendRefusal::Conflict(hint)) => {
                let previous_index = previous.index;
                node.send(leader, MessageBody::AppendRejected { previous_index, hint });
            }
            Err(AppendRefusal::ConflictsWithCommitted(index)) => node.ready.alarms.push(format!(
                "node {leader} sent another entry for committed index {index}; refused. A disk was \
                 rolled back, or two nodes share an identity"
            )),
        }
    }

    pub(in crate::consensus) fn on_heartbeat(
        &mut self,
        node: &mut NodeState,
        now: Time,
        round: u64,
        commit_index: Index,
    ) {
        let leader = self.leader.expect("the leader was just observed");
        if node.disk_is_stuck(now) {
            // C10. Heartbeat responses of a node that cannot acknowledge entries would keep a
            // leader in office that cannot commit any.
            return;
        }
        // The leader names no commit index beyond what this node acknowledged to it. But that may
        // have been on another disk: on one that was lost (C1), or on one that replaced this one
        // (R4). So only what was found to agree since this node started is committed.
        node.log.commit_to(commit_index.min(node.agreed_index()));
        node.send(
            leader,
            MessageBody::HeartbeatResponse { round, version_max: node.config.version_max },
        );
    }

    pub(in crate::consensus) fn read_index(&mut self, node: &mut NodeState, now: Time, id: u64) {
        assert!(self.leader.is_some(), "the facade rejects reads without a leader");
        self.reads.waiting.push(id);
        self.ask(node, now);
    }

    pub(in crate::consensus) fn reads_count(&self) -> usize {
        self.reads.waiting.len() + self.reads.asked.as_ref().map_or(0, |asked| asked.reads.len())
    }

    fn ask(&mut self, node: &mut NodeState, now: Time) {
        let Some(leader) = self.leader else { return };
        if self.reads.asked.is_some() || self.reads.waiting.is_empty() {
            return;
        }
        let attempt = node.rng.next();
        let reads = std::mem::take(&mut self.reads.waiting);
        let give_up_at = now + node.config.election_timeout;
        self.reads.asked = Some(Asked { attempt, reads, give_up_at });
        node.send(leader, MessageBody::ReadIndex { id: attempt });
    }

    pub(in crate::consensus) fn on_read_index_answer(
        &mut self,
        node: &mut NodeState,
        now: Time,
        attempt: u64,
        outcome: ReadOutcome,
    ) {
        if self.reads.asked.as_ref().is_none_or(|asked| asked.attempt != attempt) {
            return;
        }
        let asked = self.reads.asked.take().expect("just seen");
        let states = asked.reads.into_iter().map(|id| ReadState { id, outcome });
        node.ready.read_states.extend(states);
        self.ask(node, now);
    }

    /// Campaigns because the leader asks for it (3.10).
    pub(in crate::consensus) fn on_timeout_now(
        &self,
        node: &NodeState,
        now: Time,
        from: NodeId,
        last: Position,
    ) -> Transition {
        // C30. The leader may name a position that this node acknowledged before it lost its disk.
        let is_current = node.log.last_position() >= last;
        if self.leader == Some(from) && is_current && node.may_campaign(now) {
            Transition::Campaign { transfer: true }
        } else {
            Transition::Stay
        }
    }

    /// The leader readmits this node, if it is meant by its present number (`recovery`).
    pub(in crate::consensus) fn on_recovered(
        &self,
        node: &mut NodeState,
        from: NodeId,
        number: u64,
    ) {
        let is_meant = node.has_lost_memory() && node.recovering() == Some(number);
        if self.leader == Some(from) && is_meant {
            node.recover_under(from);
        }
    }

    /// Fails all forwarded reads, because this node stops following this leader. The callers must
    /// ask again.
    pub(in crate::consensus) fn fail_reads(&mut self, node: &mut NodeState) {
        let asked = self.reads.asked.take().map_or_else(Vec::new, |asked| asked.reads);
        let failed = asked.into_iter().chain(self.reads.waiting.drain(..));
        node.ready
            .read_states
            .extend(failed.map(|id| ReadState { id, outcome: ReadOutcome::NotLeader }));
    }

    pub(in crate::consensus) fn on_timeout(
        &mut self,
        node: &mut NodeState,
        now: Time,
    ) -> Transition {
        if let Some(asked) = self.reads.asked.take_if(|asked| asked.give_up_at <= now) {
            self.reads.waiting.extend(asked.reads);
            self.ask(node, now);
        }
        if now < self.election_deadline {
            return Transition::Stay;
        }
        campaign(node, now, &mut self.election_deadline)
    }

    pub(in crate::consensus) fn next_deadline(&self) -> Time {
        let read = self.reads.asked.as_ref().map_or(Time::NEVER, |asked| asked.give_up_at);
        self.election_deadline.min(read)
    }
}

/// Returns the refusal of the first configuration among these entries that this program cannot put
/// in force. Entries that the log holds already were checked before: an append that arrives twice,
/// or late, may bring older members than those in force now. And entries that do not follow this
/// log are not taken anyway.
fn refusal_of(node: &NodeState, previous: Position, entries: &[Entry]) -> Option<String> {
    let is_configuration = |entry: &Entry| matches!(entry.payload, Payload::Configuration(_));
    if !entries.iter().any(is_configuration) {
        return None;
    }
    let start_index = node.log.start().index;
    if previous.index > start_index && !node.log.contains(previous) {
        return None;
    }
    let is_held =
        |entry: &&Entry| entry.index <= start_index || node.log.contains(entry.position());
    let mut new = entries.iter().skip_while(is_held).peekable();
    // The log's own entries from the first new one on are replaced, if there are any.
    let mut known = node.log.configuration_at(new.peek()?.index - 1);
    for entry in new {
        let Payload::Configuration(next) = &entry.payload else { continue };
        let refusal = refusal_of_configuration(node, known, next);
        if refusal.is_some() {
            return refusal;
        }
        known = next;
    }
    None
}

/// Returns the refusal of a configuration that this node must not put in force after `known`: it
/// contradicts itself, cannot be stored, or is of a newer version.
///
/// C6. Members that come from the operators' files (`next_id` is 0) never change, so others there
/// are a mistake. A node that joins knows no members before it has received some.
pub(in crate::consensus) fn refusal_of_configuration(
    node: &NodeState,
    known: &Configuration,
    new: &Configuration,
) -> Option<String> {
    if new.next_id == 0 && !known.is_empty() && !new.has_members_of(known) {
        return Some(format!(
            "a configuration of other members, {:?}, that no change of the members brought about",
            new.members()
        ));
    }
    if !new.is_consistent() {
        return Some(format!("a configuration that contradicts itself: {new:?}"));
    }
    if !new.is_storable() {
        return Some("a configuration with records of other nodes, or too many bytes".to_owned());
    }
    refusal_of_version(node, new)
}

/// Returns the refusal of a newer cluster version, whose formats this program does not know.
pub(in crate::consensus) fn refusal_of_version(
    node: &NodeState,
    new: &Configuration,
) -> Option<String> {
    let version_max = node.config.version_max;
    (new.cluster_version > version_max).then(|| {
        format!(
            "a configuration of cluster version {}, and this program knows versions up to \
             {version_max}: install a newer program",
            new.cluster_version
        )
    })
}

/// The election timeout has passed. A node that may not campaign only restarts the timer.
pub(super) fn campaign(node: &mut NodeState, now: Time, deadline: &mut Time) -> Transition {
    *deadline = node.draw_election_deadline(now);
    if !node.may_campaign(now) {
        Transition::Stay
    } else if node.config.pre_vote {
        Transition::PreCampaign
    } else {
        Transition::Campaign { transfer: false }
    }
}
