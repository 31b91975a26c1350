//! The node's writes in flight, and the promises that wait for them (3.8).
//!
//! Every decision of a node goes into a batch, and a message that rests on a decision leaves after
//! that batch is on disk. This file numbers the batches, remembers the ones in flight, and holds
//! messages back. It does not write: the driver does, and reports by `Raft::on_persisted`.

use std::collections::VecDeque;
use std::time::Duration;

use crate::types::{Index, Memory, Message, MessageBody, NodeId, PersistId, PublishSnapshot, Time};

/// A batch that was handed to storage and is not reported durable yet.
#[derive(Clone, Debug)]
pub(super) struct PersistInFlight {
    pub(super) id: PersistId,
    pub(super) since: Time,
    pub(super) publish: Option<PublishSnapshot>,
}

/// Everything that waits for the disk, or waits to be handed to it, except the log's entries.
#[derive(Clone, Debug, Default)]
pub(super) struct Durability {
    /// Term, vote or memory changed since the last batch.
    pub(super) hard_state_changed: bool,
    /// The snapshot that the next batch publishes.
    pub(super) publish: Option<PublishSnapshot>,
    /// The next batch withdraws the published snapshot.
    pub(super) withdraw_snapshot: bool,
    /// The memory that the node has once this batch is on disk.
    pub(super) next_memory: Option<(PersistId, Memory)>,
    pub(super) gate: DurabilityGate,
    pub(super) last_persist_id: PersistId,
    pub(super) in_flight: VecDeque<PersistInFlight>,
}

/// The parts of a batch beside the log's entries and the hard state.
#[derive(Debug)]
pub(super) struct StartedPersist {
    pub(super) id: PersistId,
    pub(super) publish: Option<PublishSnapshot>,
    pub(super) withdraw_snapshot: bool,
}

/// The effect of batches that are now on disk.
#[derive(Debug, Default)]
pub(super) struct Completed {
    /// The snapshots that they published, in order.
    pub(super) published: Vec<PublishSnapshot>,
    /// The memory that one of them wrote.
    pub(super) memory: Option<Memory>,
    /// When the first of them was handed out.
    pub(super) since: Option<Time>,
}

impl Durability {
    /// Returns true if the next batch has something to write beside the log's entries.
    pub(super) fn has_unpersisted(&self) -> bool {
        self.hard_state_changed || self.publish.is_some() || self.withdraw_snapshot
    }

    /// Gives the node another memory once the next batch is on disk.
    pub(super) fn change_memory(&mut self, memory: Memory) {
        assert!(self.next_memory.is_none(), "one change of the memory at a time");
        self.next_memory = Some((self.last_persist_id + 1, memory));
        self.hard_state_changed = true;
    }

    /// Starts the next batch.
    pub(super) fn start(&mut self, now: Time) -> StartedPersist {
        let publish = self.publish.take();
        let withdraw_snapshot = std::mem::take(&mut self.withdraw_snapshot) && publish.is_none();
        self.hard_state_changed = false;
        self.last_persist_id += 1;
        let id = self.last_persist_id;
        self.in_flight.push_back(PersistInFlight { id, since: now, publish: publish.clone() });
        StartedPersist { id, publish, withdraw_snapshot }
    }

    /// Notes that the batches through `id` are on disk.
    pub(super) fn complete(&mut self, id: PersistId) -> Completed {
        assert!(id <= self.last_persist_id, "only what was handed out can be persisted");
        let mut completed = Completed::default();
        while let Some(first) = self.in_flight.front()
            && first.id <= id
        {
            completed.since = completed.since.or(Some(first.since));
            let publish = self.in_flight.pop_front().and_then(|persist| persist.publish);
            completed.published.extend(publish);
        }
        completed.memory = self.next_memory.take_if(|(by, _)| *by <= id).map(|(_, memory)| memory);
        completed
    }

    /// Holds a message until the writes that it rests on are durable: the next batch if
    /// `has_unpersisted`, else the newest in flight. Returns the message if it waits for nothing.
    pub(super) fn hold(
        &mut self,
        has_unpersisted: bool,
        to: NodeId,
        message: Message,
    ) -> Option<Message> {
        if has_unpersisted {
            self.gate.hold(self.last_persist_id + 1, to, message);
        } else if let Some(newest) = self.in_flight.back() {
            self.gate.hold(newest.id, to, message);
        } else {
            return Some(message);
        }
        None
    }

    /// Holds a message that waits for no write, until the gate is next opened.
    pub(super) fn hold_for_nothing(&mut self, to: NodeId, message: Message) {
        self.gate.hold(self.last_persist_id, to, message);
    }

    /// Takes the messages whose batches are durable.
    pub(super) fn release(&mut self) -> Vec<(NodeId, Message)> {
        let persisted = self.in_flight.front().map_or(self.last_persist_id, |oldest| oldest.id - 1);
        self.gate.release(persisted)
    }

    /// Returns true if the oldest batch has been outstanding for `patience`.
    pub(super) fn is_stuck(&self, now: Time, patience: Duration) -> bool {
        self.in_flight.front().is_some_and(|oldest| now.since(oldest.since) >= patience)
    }

    pub(super) fn in_flight_count(&self) -> usize {
        self.in_flight.len()
    }
}

/// Messages that promise durability, each with the batch that it rests on.
///
/// A message rests on nothing later than the next batch, and batches complete in order. So it waits
/// for the next batch if there is something to write, else for the newest batch in flight (a
/// repeated vote with nothing to write rides on that one), else for nothing.
#[derive(Clone, Debug, Default)]
pub(super) struct DurabilityGate {
    pub(super) held: VecDeque<(PersistId, NodeId, Message)>,
}

impl DurabilityGate {
    pub(super) fn hold(&mut self, until: PersistId, to: NodeId, message: Message) {
        assert!(self.held.back().is_none_or(|(last, ..)| *last <= until), "batches are in order");
        if let Some((last, last_to, last_message)) = self.held.back_mut()
            && (*last, *last_to, last_message.term) == (until, to, message.term)
            && let MessageBody::AppendAccepted { match_index } = &mut last_message.body
            && let MessageBody::AppendAccepted { match_index: newer } = message.body
        {
            // One acknowledgement covers all earlier ones.
            *match_index = newer.max(*match_index);
            return;
        }
        self.held.push_back((until, to, message));
    }

    /// Returns the messages that rest on batches through `persisted`.
    pub(super) fn release(&mut self, persisted: PersistId) -> Vec<(NodeId, Message)> {
        if self.held.is_empty() {
            return Vec::new();
        }
        let count = self.held.partition_point(|(until, ..)| *until <= persisted);
        self.held.drain(..count).map(|(_, to, message)| (to, message)).collect()
    }

    /// Drops acknowledgements of entries from `index` on: an acknowledgement must not claim entries
    /// that were since replaced.
    pub(super) fn withdraw_accepted_from(&mut self, index: Index) {
        self.held.retain(|(_, _, message)| match message.body {
            MessageBody::AppendAccepted { match_index } => match_index < index,
            _ => true,
        });
    }

    pub(super) fn len(&self) -> usize {
        self.held.len()
    }
}
