//! A state of the whole: which node state each node is in, which messages are under way, and how much
//! of the scope is used up. Node states and messages are numbers here, so that a world is small and is
//! told from others by a few words.

use std::hash::{BuildHasherDefault, Hasher};

use crate::node::Input;
use crate::scope::Scope;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct World {
    pub nodes: Vec<u32>,
    /// Sorted. Two messages that say the same are one; what may be lost may stay here for ever.
    pub network: Vec<u32>,
    pub left: Left,
}

/// What the scope still allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    pub proposals: u8,
    pub restarts: u8,
    pub lost_disks: u8,
    pub duplicates: u8,
    pub heartbeats: u8,
}

/// One thing happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Action {
    /// Counted from 0.
    pub node: u8,
    pub input: Input,
    /// The message that arrives stays under way.
    pub twice: bool,
}

impl Left {
    pub fn all_of(scope: &Scope) -> Self {
        let Scope { proposals, restarts, lost_disks, duplicates, heartbeats, .. } = *scope;
        Self { proposals, restarts, lost_disks, duplicates, heartbeats }
    }

    /// After an action of the scope; `None` if it is used up.
    pub fn after(mut self, action: Action, leads: bool) -> Option<Self> {
        let budget = match action.input {
            Input::Propose => &mut self.proposals,
            Input::Restart { .. } => &mut self.restarts,
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
    /// 64 bits of hash: for ten million states the chance that two share it is about 3 in a million.
    pub fn fingerprint(&self) -> u64 {
        let Left { proposals, restarts, lost_disks, duplicates, heartbeats } = self.left;
        let mut hasher = Mix::default();
        self.nodes.iter().for_each(|node| hasher.write_u32(*node));
        let left = [0, 0, 0, proposals, restarts, lost_disks, duplicates, heartbeats];
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
