//! A state of the whole cluster: the state of each node, the messages in flight, and the unused
//! part of the scope. Node states and messages are numbers here, so that a world is small and cheap
//! to compare.

use std::hash::{BuildHasherDefault, Hasher};

use crate::node::Input;
use crate::scope::Scope;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct World {
    pub nodes: Vec<u32>,
    /// Sorted, without duplicates. A message that may be lost may also stay here forever.
    pub network: Vec<u32>,
    pub left: Left,
}

/// The unused part of the scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    pub proposals: u8,
    pub restarts: u8,
    pub lost_disks: u8,
    pub duplicates: u8,
    pub heartbeats: u8,
    pub changes: u8,
}

/// One input to one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Action {
    /// Counted from 0.
    pub node: u8,
    pub input: Input,
    /// The message that arrives also stays in flight.
    pub twice: bool,
}

impl Left {
    pub fn all_of(scope: &Scope) -> Self {
        let Scope { proposals, restarts, lost_disks, duplicates, heartbeats, changes, .. } = *scope;
        Self { proposals, restarts, lost_disks, duplicates, heartbeats, changes }
    }

    /// The rest after this action; `None` if the scope does not allow the action.
    pub fn after(mut self, action: Action, leads: bool) -> Option<Self> {
        let budget = match action.input {
            Input::Propose => &mut self.proposals,
            Input::Restart { .. } => &mut self.restarts,
            Input::Change(_) => &mut self.changes,
            Input::LoseDisk => &mut self.lost_disks,
            Input::Deadline if leads => &mut self.heartbeats,
            Input::Message { .. } if action.twice => &mut self.duplicates,
            Input::Message { .. } | Input::Deadline | Input::Lonely | Input::Write => {
                return Some(self);
            }
        };
        *budget = budget.checked_sub(1)?;
        Some(self)
    }
}

impl World {
    /// A hash of 64 bits: among ten million states the probability that two share it is about 3 in
    /// a million.
    pub fn fingerprint(&self) -> u64 {
        let Left { proposals, restarts, lost_disks, duplicates, heartbeats, changes } = self.left;
        let mut hasher = Mix::default();
        self.nodes.iter().for_each(|node| hasher.write_u32(*node));
        let left = [0, 0, changes, proposals, restarts, lost_disks, duplicates, heartbeats];
        hasher.write_u64(u64::from_be_bytes(left));
        self.network.iter().for_each(|message| hasher.write_u32(*message));
        hasher.finish()
    }
}

/// A fast hash of numbers (a step of splitmix64 for each).
#[derive(Clone, Copy, Debug, Default)]
pub struct Mix(u64);

pub type BuildMix = BuildHasherDefault<Mix>;

impl Hasher for Mix {
    fn write_u64(&mut self, number: u64) {
        let mut z = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15) ^ number;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        self.0 = z ^ (z >> 31);
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(number.into());
    }

    fn write_u8(&mut self, number: u8) {
        self.write_u64(number.into());
    }

    fn write_isize(&mut self, number: isize) {
        self.write_u64(number as u64);
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u8(*byte));
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
