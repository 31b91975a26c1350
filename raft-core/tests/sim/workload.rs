//! Clients: they propose, read and request transfers, and remember the outcomes.

use bytes::Bytes;
use raft_core::consensus::{ReadState, RoleKind, invariants};
use raft_core::types::{ENTRY_OVERHEAD_BYTES, NodeId, Position};

use crate::coverage::What;
use crate::oracle::{Proposal, must};
use crate::simulation::{Event, Simulation};

const ID_DIGITS: usize = 7;

fn command(id: usize, size_bytes: u64) -> Bytes {
    let width = size_bytes as usize;
    Bytes::from(format!("{:.<width$}", format!("{id:0ID_DIGITS$}")))
}

pub fn command_id(command: &Bytes) -> usize {
    let digits = command[..ID_DIGITS].iter();
    digits.fold(0, |id, digit| 10 * id + usize::from(digit - b'0'))
}

impl Simulation {
    pub fn on_client(&mut self) {
        if self.is_busy {
            let gap_us = self.plan.mix.client_gap_us;
            let at = self.now + self.clients.between(1, 2 * gap_us);
            self.schedule(at, Event::Client);
            self.ask_something();
        }
    }

    fn ask_something(&mut self) {
        let (reads, transfers) = (self.plan.mix.reads, self.plan.mix.transfers);
        let Some(id) = self.choose_node() else { return };
        let changes = self.plan.mix.changes;
        if changes > 0 && !self.network.calm && self.operators.permille(changes) {
            return self.change_something(id);
        }
        if self.clients.permille(reads) {
            // Reads may go to any node.
            let any = 1 + self.clients.below(self.nodes.len()) as u64;
            let is_open = self.node(any).is_up() && self.node(any).paused_until <= self.now;
            self.read(if is_open { any } else { id });
        } else if self.clients.permille(transfers) {
            let to = 1 + self.clients.below(self.nodes.len()) as u64;
            let to = self.clients.percent(50).then_some(to);
            let result = self.with(id, |raft, now| raft.transfer_leadership(now, to));
            self.tell(|| format!("{id} is asked to hand over to {to:?}: {result:?}"));
        } else {
            let count = self.clients.between(1, self.plan.mix.batch_max);
            self.propose(id, count);
        }
    }

    /// Mostly a node that believes that it leads, sometimes any node.
    fn choose_node(&mut self) -> Option<NodeId> {
        let now = self.now;
        let open = |id: &NodeId| self.node(*id).is_up() && self.node(*id).paused_until <= now;
        let open: Vec<NodeId> = self.ids().into_iter().filter(open).collect();
        let leads = |id: &NodeId| self.node(*id).role() == Some(RoleKind::Leader);
        let leaders: Vec<NodeId> = open.iter().copied().filter(leads).collect();
        match (open.is_empty(), leaders.is_empty() || self.clients.percent(10)) {
            (true, _) => None,
            (false, true) => Some(*self.clients.pick(&open)),
            (false, false) => Some(*self.clients.pick(&leaders)),
        }
    }

    /// Returns the position of the last command, if the commands were appended.
    pub fn propose(&mut self, id: NodeId, count: u64) -> Option<Position> {
        let first_id = self.oracle.proposals.len();
        let size_bytes_max = self.plan.mix.command_bytes_max;
        let commands: Vec<Bytes> = (first_id..first_id + count as usize)
            .map(|id| command(id, self.clients.between(ID_DIGITS as u64, size_bytes_max.max(9))))
            .collect();
        let uncommitted_bytes_max = self.plan.mix.config(id, 0).uncommitted_bytes_max;
        let mut last = None;
        // The oracle learns of the commands before the node's `Ready`s, which contain them, are
        // processed.
        let life = self.life(id);
        let uncommitted = life.view.last_index - life.view.commit_index;
        match life.raft.propose(commands) {
            Ok(first) => {
                assert!(
                    uncommitted * ENTRY_OVERHEAD_BYTES < uncommitted_bytes_max,
                    "V24 node {id} takes more on top of {uncommitted} uncommitted entries"
                );
                for offset in 0..count {
                    let position = Position::new(first.term, first.index + offset);
                    self.oracle.proposals.push(Proposal::Appended(position));
                    self.life(id).waiting.push_back((position, first_id + offset as usize));
                    last = Some(position);
                }
                self.coverage.add(What::Proposal, count);
                self.tell(|| format!("{id} appends {count} commands from #{first_id} at {first}"));
            }
            Err(rejected) => {
                let refused = (0..count).map(|_| Proposal::Refused);
                self.oracle.proposals.extend(refused);
                self.coverage.add(What::Refusal, count);
                self.tell(|| format!("{id} refuses #{first_id}: {rejected}"));
            }
        }
        self.with(id, |_, _| ());
        last
    }

    /// Completes proposals once the machine has applied their positions.
    pub fn answer_waiting(&mut self, id: NodeId) {
        let applied = self.life(id).machine.index();
        while let Some((position, command)) = self.life(id).waiting.front().copied()
            && position.index <= applied
        {
            self.life(id).waiting.pop_front();
            let committed = self.oracle.committed(position.index);
            if committed.is_some_and(|committed| committed.stamp.position == position) {
                self.oracle.acknowledge(command);
                self.coverage.count(What::Acknowledged);
            } else {
                // Another leader's entry is there; this node has not learned of the new leader yet.
                self.oracle.proposals[command] = Proposal::Unknown(position);
            }
        }
    }

    /// Leadership or the process ended: the clients do not learn the outcomes.
    pub fn forget_waiting(&mut self, id: NodeId) {
        let Some(life) = self.node_mut(id).life.as_mut() else { return };
        for (position, command) in std::mem::take(&mut life.waiting) {
            self.oracle.proposals[command] = Proposal::Unknown(position);
            self.coverage.count(What::Unknown);
        }
    }

    fn read(&mut self, id: NodeId) {
        let number = self.reads.len();
        let life_number = self.node(id).life_number;
        self.reads.push((self.oracle.committed_index(), id, life_number));
        let life = self.life(id);
        let now = life.raft.role();
        let asked = self.with(id, |raft, now| raft.read_index(now, number as u64));
        self.tell(|| format!("{id} ({}) is asked read {number}: {asked:?}", now.name()));
        if asked.is_err() {
            self.coverage.count(What::ReadFailed);
        }
    }

    pub fn on_read_state(&mut self, id: NodeId, ReadState { id: number, outcome }: ReadState) {
        let read_index = outcome.index();
        self.tell(|| format!("{id} read {number}: {read_index:?}"));
        let (floor, asked, life_number) = self.reads[number as usize];
        assert_eq!((asked, life_number), (id, self.node(id).life_number), "V13 another's read");
        let Some(read_index) = read_index else {
            self.coverage.count(What::ReadFailed);
            return;
        };
        must("V13", id, invariants::read_is_linearizable(floor, read_index));
        self.coverage.count(What::ReadConfirmed);
        if self.node(id).role() != Some(RoleKind::Leader) {
            self.coverage.count(What::ReadForwarded);
        }
        self.life(id).reads.push((number as usize, read_index));
        self.answer_reads(id);
    }

    /// Completes the reads whose index the machine has applied.
    pub fn answer_reads(&mut self, id: NodeId) {
        let reads = &self.reads;
        let Some(life) = self.nodes[id as usize - 1].life.as_mut() else { return };
        let applied = life.machine.index();
        life.reads.retain(|(number, read_index)| {
            let is_due = *read_index <= applied;
            assert!(!is_due || applied >= reads[*number].0, "V13 read {number} is stale");
            !is_due
        });
    }
}
