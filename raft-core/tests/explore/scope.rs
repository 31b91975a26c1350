//! The bounds of a search. Everything that could go on without end has a bound here.

use std::time::Duration;

use raft_core::consensus::Config;
use raft_core::types::{NodeId, Term};

use crate::members::Order;

#[derive(Clone, Debug)]
pub struct Scope {
    pub name: &'static str,
    /// The nodes' logs at the start, by the terms of their entries. All nodes are in `term` and
    /// have not voted.
    pub logs: &'static [&'static [Term]],
    pub term: Term,
    /// A node that would campaign beyond this term does nothing.
    pub term_max: Term,
    pub proposals: u8,
    pub restarts: u8,
    /// Restarts on an empty disk.
    pub lost_disks: u8,
    /// The operator initialises the empty disks as those of members of a new cluster.
    pub lost_disks_are_new: bool,
    /// Number of entries at the start of node 1's log that are committed. The nodes that hold these
    /// entries know that they are committed.
    pub committed: usize,
    /// The cluster is being founded, from disks that the operator has just initialised.
    pub is_founding: bool,
    /// The voters at the start; empty: all nodes. The other nodes join before the search starts.
    pub voters: &'static [NodeId],
    /// The changes of the members that any leader may be asked for. If there are some, the search
    /// starts once node 1 leads, and every node has everything (see `members`).
    pub orders: &'static [Order],
    /// Number of orders that are given.
    pub changes: u8,
    /// Number of messages that arrive twice.
    pub duplicates: u8,
    /// Rounds of heartbeats after the first one, which a new leader sends.
    pub heartbeats: u8,
    /// If false, every heartbeat is lost.
    pub heartbeats_arrive: bool,
    /// Each batch is written when the search says so, and a crash loses the unwritten ones. If
    /// false, a batch is on disk before anything else happens.
    pub slow_disks: bool,
    /// Each append carries one entry.
    pub single_entries: bool,
    pub pre_vote: bool,
    pub check_quorum: bool,
    /// Starts a fair run (see `fair`) from one in so many states.
    pub fair_run_every: u64,
    /// The search ends after this many steps, even if states are left.
    pub steps_max: u32,
}

impl Scope {
    /// Three new nodes, two terms, plain Raft: the base of every other scope.
    pub const PLAIN: Scope = Scope {
        name: "plain",
        logs: &[&[], &[], &[]],
        term: 0,
        term_max: 2,
        proposals: 0,
        restarts: 0,
        lost_disks: 0,
        lost_disks_are_new: false,
        committed: 0,
        is_founding: false,
        voters: &[],
        orders: &[],
        changes: 0,
        duplicates: 0,
        heartbeats: 0,
        heartbeats_arrive: false,
        slow_disks: false,
        single_entries: false,
        pre_vote: false,
        check_quorum: false,
        fair_run_every: 2000,
        steps_max: u32::MAX,
    };

    /// Replaces bounds by those in `EXPLORE`: words like `term_max=4` or `slow_disks=1`.
    pub fn or_as_asked(mut self) -> Self {
        let asked = std::env::var("EXPLORE").unwrap_or_default();
        for word in asked.split_whitespace() {
            let (bound, value) = word.split_once('=').expect("EXPLORE is made of BOUND=NUMBER");
            let value: u64 = value.parse().expect("EXPLORE is made of BOUND=NUMBER");
            match bound {
                "term_max" => self.term_max = value,
                "proposals" => self.proposals = value as u8,
                "restarts" => self.restarts = value as u8,
                "changes" => self.changes = value as u8,
                "lost_disks" => self.lost_disks = value as u8,
                "duplicates" => self.duplicates = value as u8,
                "heartbeats" => self.heartbeats = value as u8,
                "heartbeats_arrive" => self.heartbeats_arrive = value != 0,
                "slow_disks" => self.slow_disks = value != 0,
                "single_entries" => self.single_entries = value != 0,
                "pre_vote" => self.pre_vote = value != 0,
                "check_quorum" => self.check_quorum = value != 0,
                "fair_run_every" => self.fair_run_every = value,
                "steps_max" => self.steps_max = value as u32,
                _ => panic!("EXPLORE: no bound is called {bound}"),
            }
        }
        self
    }

    pub fn ids(&self) -> impl Iterator<Item = NodeId> {
        1..=self.logs.len() as NodeId
    }

    pub fn changes_members(&self) -> bool {
        !self.orders.is_empty()
    }

    /// The voters at the start.
    pub fn founders(&self) -> Vec<NodeId> {
        if self.voters.is_empty() { self.ids().collect() } else { self.voters.to_vec() }
    }

    /// Returns true if all nodes start with the same log. They then differ only by number, so only
    /// node 1 needs to act first.
    pub fn starts_alike(&self) -> bool {
        !self.changes_members() && self.logs.iter().all(|log| *log == self.logs[0])
    }

    pub fn configure(&self, config: &mut Config) {
        config.pre_vote = self.pre_vote;
        config.check_quorum = self.check_quorum;
        // A learner that has kept up during one round may be promoted.
        config.promotion_delay = Duration::ZERO;
        if self.single_entries {
            config.append_bytes_max = 1;
        }
        // No patience ends: the search decides how slow a disk is.
        config.disk_patience = Duration::from_secs(1_000_000);
        config.stall_patience = config.disk_patience;
    }
}
