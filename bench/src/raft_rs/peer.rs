//! The other side: three `RawNode`s of raft-rs on its own storage in memory, driven as its guide
//! says.

use anyhow::{Context, ensure};
use raft::eraftpb::{Entry, Message, MessageType};
use raft::storage::MemStorage;
use raft::{Config, RawNode, StateRole};
use slog::{Discard, Logger, o};

use super::{FORGET_EVERY, KEPT_ENTRIES, Trio};

const NODES: [u64; 3] = [1, 2, 3];

pub(super) struct Nodes {
    nodes: Vec<Node>,
}

struct Node {
    raw: RawNode<MemStorage>,
    inbox: Vec<Message>,
    /// The first index that the storage still holds.
    first_index: u64,
}

impl Nodes {
    /// Starts three nodes, of which the first leads.
    pub(super) fn start() -> anyhow::Result<Self> {
        let logger = Logger::root(Discard, o!());
        let mut nodes = Vec::new();
        for id in NODES {
            let config = Config {
                id,
                // As ours: a mebibyte an append, 256 of them in flight.
                max_size_per_msg: 1 << 20,
                max_inflight_msgs: 256,
                batch_append: true,
                ..Config::default()
            };
            let storage = MemStorage::new_with_conf_state((NODES.to_vec(), vec![]));
            let raw = RawNode::new(&config, storage, &logger)?;
            nodes.push(Node { raw, inbox: Vec::new(), first_index: 1 });
        }
        let mut trio = Self { nodes };
        trio.nodes[0].raw.campaign().context("the first node does not campaign")?;
        for _ in 0..8 {
            trio.turn();
        }
        let leads = trio.nodes[0].raw.raft.state == StateRole::Leader;
        ensure!(leads, "the first node does not lead");
        Ok(trio)
    }

    fn send(&mut self, messages: Vec<Message>) {
        for message in messages {
            let to = NODES.iter().position(|id| *id == message.to).expect("one of the three");
            self.nodes[to].inbox.push(message);
        }
    }

    /// Carries out everything that a node wants done, until it wants nothing. Returns the number of
    /// commands that it applied.
    fn carry_out(&mut self, place: usize) -> usize {
        let mut applied = 0;
        while self.nodes[place].raw.has_ready() {
            applied += self.carry_out_one(place);
        }
        applied
    }

    fn carry_out_one(&mut self, place: usize) -> usize {
        let mut ready = self.nodes[place].raw.ready();
        let mut messages = ready.take_messages();
        let mut committed = ready.take_committed_entries();
        let raw = &mut self.nodes[place].raw;
        {
            let mut storage = raw.mut_store().wl();
            storage.append(ready.entries()).expect("entries follow each other");
            if let Some(hard_state) = ready.hs() {
                storage.set_hardstate(hard_state.clone());
            }
        }
        messages.append(&mut ready.take_persisted_messages());
        let mut light = raw.advance(ready);
        if let Some(commit) = light.commit_index() {
            raw.mut_store().wl().mut_hard_state().commit = commit;
        }
        messages.append(&mut light.take_messages());
        committed.append(&mut light.take_committed_entries());
        raw.advance_apply();
        self.forget(place, committed.last());
        self.send(messages);
        committed.iter().filter(|entry| !entry.data.is_empty()).count()
    }

    fn forget(&mut self, place: usize, last: Option<&Entry>) {
        let node = &mut self.nodes[place];
        let Some(last) = last.map(|entry| entry.index) else { return };
        if last - node.first_index >= KEPT_ENTRIES + FORGET_EVERY {
            node.first_index = last - KEPT_ENTRIES;
            let compacted = node.raw.mut_store().wl().compact(node.first_index);
            compacted.expect("what is applied may be forgotten");
        }
    }
}

impl Trio for Nodes {
    fn propose(&mut self, commands: Vec<Vec<u8>>) {
        let entry = |data: Vec<u8>| Entry { data: data.into(), ..Entry::default() };
        let mut message = Message { from: NODES[0], to: NODES[0], ..Message::default() };
        message.set_msg_type(MessageType::MsgPropose);
        message.set_entries(commands.into_iter().map(entry).collect::<Vec<_>>().into());
        self.nodes[0].raw.step(message).expect("the leader takes proposals");
    }

    fn turn(&mut self) -> usize {
        let mut committed = 0;
        for place in 0..self.nodes.len() {
            let node = &mut self.nodes[place];
            for message in node.inbox.drain(..) {
                node.raw.step(message).expect("messages of the three are taken");
            }
            let applied = self.carry_out(place);
            if place == 0 {
                committed = applied;
            }
        }
        committed
    }
}
