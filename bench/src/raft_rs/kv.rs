//! Our side: three [`Raft`] values.

use anyhow::ensure;
use bytes::Bytes;
use raft_core::consensus::{Boot, Config, Persist, Raft, Ready, RoleKind};
use raft_core::types::{
    Configuration, HardState, Loaded, Message, NodeId, Payload, Position, Time,
};

use super::{FORGET_EVERY, KEPT_ENTRIES, Trio};

const NODES: [NodeId; 3] = [1, 2, 3];

pub(super) struct Nodes {
    nodes: Vec<Node>,
    now: Time,
}

struct Node {
    raft: Raft,
    inbox: Vec<(NodeId, Message)>,
}

impl Nodes {
    /// Starts three nodes, of which the first leads.
    pub(super) fn start() -> anyhow::Result<Self> {
        let mut nodes = Vec::new();
        for id in NODES {
            let boot = Boot {
                loaded: Loaded { hard_state: HardState::INITIAL, ..Loaded::default() },
                last_applied: Position::ZERO,
                bootstrap: Configuration::of_voters(NODES),
            };
            let raft = Raft::new(Config::new(id, id), boot, Time::ZERO)?;
            nodes.push(Node { raft, inbox: Vec::new() });
        }
        let now = nodes[0].raft.next_deadline();
        let mut trio = Self { nodes, now };
        trio.nodes[0].raft.on_timeout(now);
        for _ in 0..8 {
            trio.turn();
        }
        ensure!(trio.nodes[0].raft.role() == RoleKind::Leader, "the first node does not lead");
        Ok(trio)
    }

    /// Carries out everything that a node wants done, until it wants nothing. Returns the number of
    /// commands that it applied.
    fn carry_out(&mut self, place: usize) -> usize {
        let mut applied = 0;
        loop {
            let ready = self.nodes[place].raft.ready(self.now);
            if ready.is_empty() {
                return applied;
            }
            applied += self.carry_out_one(place, ready);
        }
    }

    fn carry_out_one(&mut self, place: usize, ready: Ready) -> usize {
        let Ready {
            persist,
            messages,
            committed,
            restore,
            read_states,
            snapshot_requests,
            snapshot_published: _,
            role_change: _,
            alarms,
        } = ready;
        assert!(restore.is_none() && read_states.is_empty() && snapshot_requests.is_empty());
        assert!(alarms.is_empty(), "{alarms:?}");
        for (to, message) in messages {
            let to = NODES.iter().position(|id| *id == to).expect("one of the three");
            self.nodes[to].inbox.push((NODES[place], message));
        }
        let raft = &mut self.nodes[place].raft;
        if let Some(Persist { id, batch }) = persist {
            drop(batch);
            raft.on_persisted(self.now, id);
        }
        let Some(last) = committed.last().map(|entry| entry.index) else { return 0 };
        raft.on_applied(last);
        if last - raft.log_start_index() > KEPT_ENTRIES + FORGET_EVERY {
            let through = last - KEPT_ENTRIES;
            raft.on_state_durable(through);
            raft.compact(through);
        }
        committed.iter().filter(|entry| matches!(entry.payload, Payload::Command(_))).count()
    }
}

impl Trio for Nodes {
    fn propose(&mut self, commands: Vec<Vec<u8>>) {
        let commands = commands.into_iter().map(Bytes::from).collect();
        self.nodes[0].raft.propose(commands).expect("the leader has room");
    }

    fn turn(&mut self) -> usize {
        let mut committed = 0;
        for place in 0..self.nodes.len() {
            let node = &mut self.nodes[place];
            for (from, message) in node.inbox.drain(..) {
                node.raft.step(self.now, from, message);
            }
            let applied = self.carry_out(place);
            if place == 0 {
                committed = applied;
            }
        }
        committed
    }
}
