//! Snapshots of this node and of its leader, and the part of the log they replace (5).

use super::Raft;
use crate::consensus::node_state::Restoring;
use crate::consensus::role::Role;
use crate::consensus::role::follower::{refusal_of_configuration, refusal_of_version};
use crate::types::{
    Configuration, Index, MessageBody, NodeId, Position, PublishSnapshot, SnapshotMeta, TERM_MAX,
    Term, Time,
};

/// A follower's response to a snapshot that its leader offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OfferDecision {
    /// The follower takes it.
    Wanted,
    /// The follower's commit index covers it.
    NotNeeded,
    /// This program does not support its configuration. The leader offers it again later, because a
    /// newer program may run by then.
    Refused,
    /// The sender no longer leads.
    Stale {
        /// The receiver's term.
        term: Term,
    },
}

impl Raft {
    /// Publishes a finished local snapshot at an applied index with the next batch. Returns false
    /// if a snapshot from the leader has overtaken it, or another one is about to be published. Or
    /// if it names no members: a node that joins has applied the entries before the first
    /// configuration, and a peer refuses a snapshot without one.
    pub fn publish_snapshot(&mut self, meta: SnapshotMeta) -> bool {
        let log = &self.node.log;
        if !self.node.restoring.is_none()
            || self.node.durability.publish.is_some()
            || !log.contains(meta.position)
            || meta.configuration.is_empty()
        {
            return false;
        }
        assert!(meta.index() <= log.last_applied());
        self.node.durability.publish = Some(PublishSnapshot { meta, replaces_log: false });
        true
    }

    /// Reports that the state machine itself is durable through an applied index.
    pub fn on_state_durable(&mut self, index: Index) {
        if self.node.restoring.is_none() {
            // The machine may be further than it has told so far.
            self.node.log.on_state_durable(index.min(self.node.log.last_applied()));
        }
    }

    /// Forgets the entries through `index`, which a durable state must cover. Returns the new log
    /// start for storage to remember, or `None` if nothing changes.
    pub fn compact(&mut self, index: Index) -> Option<SnapshotMeta> {
        if !self.node.restoring.is_none() {
            return None;
        }
        let position = self.node.log.compact(index)?;
        Some(SnapshotMeta::new(position, self.configuration_at(position.index)))
    }

    /// Returns the smallest index such that the entries after it take at most `bytes`: compacting
    /// there leaves the entries that a slightly lagging peer still needs.
    pub fn index_leaving_bytes(&self, bytes: u64) -> Index {
        self.node.log.index_leaving_bytes(bytes)
    }

    /// Returns the meta of a snapshot at an index of this log; `None` if the log no longer knows
    /// the term there, or does not reach it.
    pub fn snapshot_meta(&self, index: Index) -> Option<SnapshotMeta> {
        let term = self.node.log.term_at(index)?;
        let position = Position::new(term, index);
        Some(SnapshotMeta::new(position, self.configuration_at(index)))
    }

    /// C8. Returns the configuration in force at an index, and not a newer one that may yet be
    /// truncated.
    fn configuration_at(&self, index: Index) -> Configuration {
        self.node.log.configuration_at(index).clone()
    }

    /// Handles a leader's offer of a snapshot.
    pub fn on_snapshot_offer(
        &mut self,
        now: Time,
        from: NodeId,
        term: Term,
        meta: &SnapshotMeta,
    ) -> OfferDecision {
        let is_own = from == self.node.id();
        if is_own
            || term > TERM_MAX
            || term < self.node.term
            || !self.observe_leader(now, from, term)
        {
            return OfferDecision::Stale { term: self.node.term };
        }
        if meta.index() <= self.node.log.commit_index() {
            return OfferDecision::NotNeeded;
        }
        // The snapshot may replace configurations that are not committed here.
        let known = self.committed_configuration();
        if let Some(refusal) = refusal_of_configuration(&self.node, known, &meta.configuration) {
            let alarm = format!("node {from} offered a snapshot with {refusal}; it is refused");
            self.node.tell_refusal(alarm);
            return OfferDecision::Refused;
        }
        OfferDecision::Wanted
    }

    /// Takes a complete and verified snapshot from a leader of `term`. Its entries are committed,
    /// so it is taken even if that leader has stepped down since. Returns true if it will be
    /// published.
    pub fn on_snapshot_received(
        &mut self,
        now: Time,
        from: NodeId,
        term: Term,
        meta: SnapshotMeta,
    ) -> bool {
        let position = meta.position;
        if refusal_of_version(&self.node, &meta.configuration).is_some() {
            return false;
        }
        let leads = term >= self.node.term && self.observe_leader(now, from, term);
        let node = &mut self.node;
        let needed = position.index > node.log.commit_index();
        if needed && node.log.contains(position) {
            // The log agrees with it: the entries that it replaces can simply be applied.
            node.log.commit_to(position.index);
        } else if needed {
            node.durability.gate.withdraw_accepted_from(0);
            node.log.replace_by_snapshot(position, Configuration::clone(&meta.configuration));
            node.restoring = Restoring::Unpublished(meta.clone());
            let publish = &mut node.durability.publish;
            assert!(publish.is_none(), "no snapshot is received beside another one's batch");
            *publish = Some(PublishSnapshot { meta, replaces_log: true });
        }
        if needed {
            self.give_up_candidacy(now);
        }
        let node = &mut self.node;
        if leads {
            let match_index = position.index.min(node.log.commit_index());
            node.send_when_durable(from, MessageBody::AppendAccepted { match_index });
        }
        node.durability.publish.as_ref().is_some_and(|publish| publish.meta.position == position)
    }

    /// A candidate asks for votes for the log and among the voters that it had before a snapshot of
    /// an earlier leader arrived. It may no longer be a voter.
    fn give_up_candidacy(&mut self, now: Time) {
        if matches!(self.role, Role::PreCandidate(_) | Role::Candidate(_)) {
            self.become_follower(now, None);
        }
    }

    /// Reports that a snapshot was sent to a peer through `sent`, or failed (`None`).
    pub fn on_snapshot_sent(&mut self, now: Time, peer: NodeId, sent: Option<Index>) {
        if let Role::Leader(leader) = &mut self.role {
            leader.on_snapshot_sent(&self.node, now, peer, sent);
        }
    }
}
