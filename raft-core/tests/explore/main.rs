//! Explores every state of small clusters.
//!
//! The same [`Raft`](raft_core::consensus::Raft) that runs in production is taken through
//! everything that can happen to two or three nodes within a scope: deadlines pass at any moment,
//! messages arrive in any order, twice, or never, nodes crash and lose unwritten batches. In every
//! state the properties of figure 3.2 and the durability of 3.8 are checked. From a sample of the
//! states a fair run must elect a leader and commit.
//!
//! Two nodes are searched exhaustively; three, to a number of steps at which the tests take
//! seconds. Each test prints its scope and its statistics, and requires that they are large enough:
//! `cargo test -p raft-core --test explore -- --nocapture`. `EXPLORE` changes bounds, for all tests
//! that run: `EXPLORE="steps_max=14" cargo test --release -p raft-core --test explore crashes --
//! --nocapture`.
//!
//! In the scopes of `changes` the members change. A majority is then one of the configuration that
//! was in force, as `properties` has it.
//!
//! Left out: snapshots, reads, transfers other than that of a leader that leaves. Random runs
//! (`smoke`, the simulator) cover those.

// Nothing here is visible outside this test binary.
#![allow(unreachable_pub)]

#[path = "../common/mod.rs"]
mod common;

mod changes;
mod fair;
mod members;
mod node;
mod properties;
mod scope;
mod search;
mod world;

use std::time::Instant;

use scope::Scope;
use search::{Search, Seen};

/// Searches the scope, and requires that the search has covered enough to show something.
#[allow(clippy::disallowed_methods)] // The time is only printed.
fn explore(scope: Scope) -> Seen {
    let scope = &scope.or_as_asked();
    let start = Instant::now();
    let mut seen = match Search::new(scope).run() {
        Ok(seen) => seen,
        Err(story) => panic!("{story}"),
    };
    seen.took = start.elapsed();
    println!("{scope:?}\n{seen:?}");
    assert_eq!(seen.term_led_max, scope.term_max, "somebody led in each term");
    assert!(seen.committed_max > 0, "something was committed");
    assert!((seen.everything || seen.states > 20_000) && seen.fair_runs >= 10, "{seen:?}");
    seen
}

/// Two nodes, exhaustively: two terms, a proposal, a crash that loses unwritten batches, a message
/// that arrives twice.
#[test]
fn two_nodes() {
    let seen = explore(Scope {
        name: "two nodes",
        logs: &[&[], &[]],
        slow_disks: true,
        proposals: 1,
        restarts: 1,
        duplicates: 1,
        fair_run_every: 1000,
        ..Scope::PLAIN
    });
    assert!(seen.everything, "no state is left");
}

/// Candidates in three terms, and a crash.
#[test]
fn elections() {
    explore(Scope { name: "elections", term_max: 3, restarts: 1, steps_max: 8, ..Scope::PLAIN });
}

/// A leader's entries arrive late and twice.
#[test]
fn replication() {
    explore(Scope {
        name: "replication",
        proposals: 1,
        duplicates: 1,
        steps_max: 9,
        ..Scope::PLAIN
    });
}

/// Batches reach the disk at any time, and a crash loses those that have not.
#[test]
fn crashes() {
    explore(Scope {
        name: "crashes",
        slow_disks: true,
        restarts: 1,
        steps_max: 12,
        ..Scope::PLAIN
    });
}

/// Logs as in figure 8: an entry of an older term is not committed by being on a majority of disks.
#[test]
fn figure_8() {
    let seen = explore(Scope {
        name: "figure 8",
        logs: &[&[1], &[2], &[]],
        term: 2,
        term_max: 4,
        single_entries: true,
        steps_max: 11,
        ..Scope::PLAIN
    });
    assert!(seen.truncations > 0, "entries were replaced");
}

/// A node that helped to commit an entry loses its disk: the entry and its vote.
#[test]
fn lost_disks() {
    explore(Scope {
        name: "lost disks",
        logs: &[&[1], &[1], &[]],
        term: 1,
        committed: 1,
        term_max: 3,
        lost_disks: 1,
        heartbeats_arrive: true,
        heartbeats: 1,
        steps_max: 8,
        ..Scope::PLAIN
    });
}

/// Two nodes, exhaustively; one of them loses its disk.
#[test]
fn lost_disk_of_two() {
    let seen = explore(Scope {
        name: "lost disk of two",
        logs: &[&[1], &[1]],
        term: 1,
        committed: 1,
        lost_disks: 1,
        restarts: 1,
        proposals: 1,
        heartbeats_arrive: true,
        heartbeats: 1,
        fair_run_every: 200,
        ..Scope::PLAIN
    });
    assert!(seen.everything, "no state is left");
}

/// Two members of a new cluster; both restart, one of them during the founding.
#[test]
fn founding() {
    let seen = explore(Scope {
        name: "founding",
        logs: &[&[], &[]],
        is_founding: true,
        heartbeats_arrive: true,
        slow_disks: true,
        restarts: 1,
        term_max: 1,
        fair_run_every: 500,
        steps_max: 26,
        ..Scope::PLAIN
    });
    assert!(seen.depth > 12, "{seen:?}");
}

/// C4. A member of a founded cluster loses its disk, with entries and a vote, and the operator
/// declares the empty disk new. Batches reach the disks at any time, so that promises to and from
/// the earlier disk are held back across the loss (T4).
#[test]
fn a_lost_disk_that_is_declared_new() {
    explore(Scope {
        name: "lost disk declared new",
        logs: &[&[1], &[1], &[]],
        term: 1,
        committed: 1,
        term_max: 3,
        lost_disks: 1,
        lost_disks_are_new: true,
        heartbeats_arrive: true,
        heartbeats: 1,
        slow_disks: true,
        steps_max: 10,
        ..Scope::PLAIN
    });
}

/// C5, T4. The same with an empty disk that is not declared new.
#[test]
fn lost_disks_beside_slow_disks() {
    explore(Scope {
        name: "lost disks beside slow disks",
        logs: &[&[1], &[1], &[]],
        term: 1,
        committed: 1,
        term_max: 3,
        lost_disks: 1,
        heartbeats_arrive: true,
        heartbeats: 1,
        slow_disks: true,
        steps_max: 10,
        ..Scope::PLAIN
    });
}

/// Pre-vote, check quorum and heartbeats on, as by default.
#[test]
fn as_shipped() {
    explore(Scope {
        name: "as shipped",
        pre_vote: true,
        check_quorum: true,
        heartbeats_arrive: true,
        steps_max: 10,
        ..Scope::PLAIN
    });
}

/// Two members of a new cluster. One of them loses its disk at any moment and is declared new
/// again.
#[test]
fn founding_and_a_lost_disk() {
    explore(Scope {
        name: "founding and a lost disk",
        logs: &[&[], &[]],
        is_founding: true,
        heartbeats_arrive: true,
        slow_disks: true,
        restarts: 1,
        lost_disks: 1,
        lost_disks_are_new: true,
        term_max: 1,
        fair_run_every: 500,
        steps_max: 20,
        ..Scope::PLAIN
    });
}
