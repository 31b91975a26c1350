//! Scopes in which the members change, with and without a lost disk.
//!
//! Two nodes are searched exhaustively, three to a number of steps. Where three voters become two,
//! each majority of the new half is one of the old half too; so in other scopes one voter becomes
//! three, or one is replaced by another, and the halves of the joint configuration have majorities
//! without a common node.
//!
//! Larger bounds take up to a minute each in release mode:
//! `EXPLORE="term_max=3 heartbeats=2 duplicates=0"` with `replaced`, `replaced_and_a_lost_disk` or
//! `grown_from_one`, `EXPLORE="steps_max=14 term_max=3"` with `grown_to_three_and_a_lost_disk`, and
//! `EXPLORE="steps_max=13 heartbeats=2"` with `a_voter_leaves_and_a_lost_disk`.

use crate::members::Order;
use crate::scope::Scope;
use crate::search::Seen;

/// The base of these scopes: an order, two terms, one more round of heartbeats.
const CHANGING: Scope = Scope {
    name: "changing",
    changes: 1,
    term_max: 2,
    heartbeats_arrive: true,
    heartbeats: 1,
    ..Scope::PLAIN
};

/// Searches the scope, and requires that changes were seen under way and completed.
fn explore(scope: Scope) -> Seen {
    let seen = super::explore(scope);
    assert!(seen.joint > 0 && seen.changed > 0, "{seen:?}");
    seen
}

/// One of three voters leaves, or becomes a learner: the leader or another one.
#[test]
fn a_voter_leaves() {
    explore(Scope {
        name: "a voter leaves",
        orders: &[Order::Remove(1), Order::Remove(3), Order::Demote(1), Order::Demote(3)],
        steps_max: 12,
        ..CHANGING
    });
}

/// M-R10. One of three voters leaves, and any node loses its disk at any moment.
#[test]
fn a_voter_leaves_and_a_lost_disk() {
    explore(Scope {
        name: "a voter leaves and a lost disk",
        orders: &[Order::Remove(1), Order::Remove(3), Order::Demote(3)],
        lost_disks: 1,
        steps_max: 12,
        ..CHANGING
    });
}

/// M-R1, exhaustively: a cluster that was founded with node 1 alone grows to two, and one of them
/// loses its disk. Node 1 then restarts with every old file, and must not lead.
#[test]
fn grown_from_one() {
    let seen = explore(Scope {
        name: "grown from one",
        logs: &[&[], &[]],
        voters: &[1],
        orders: &[Order::Promote(2)],
        lost_disks: 1,
        restarts: 1,
        fair_run_every: 500,
        ..CHANGING
    });
    assert!(seen.everything, "no state is left");
}

/// The only voter is replaced, exhaustively.
#[test]
fn replaced() {
    let seen = explore(Scope {
        name: "replaced",
        logs: &[&[], &[]],
        voters: &[1],
        orders: &[Order::Replace(1, 2)],
        duplicates: 1,
        restarts: 1,
        fair_run_every: 500,
        ..CHANGING
    });
    assert!(seen.everything, "no state is left");
}

/// The only voter is replaced, exhaustively, and one of the two nodes loses its disk.
#[test]
fn replaced_and_a_lost_disk() {
    let seen = explore(Scope {
        name: "replaced and a lost disk",
        logs: &[&[], &[]],
        voters: &[1],
        orders: &[Order::Replace(1, 2)],
        lost_disks: 1,
        restarts: 1,
        fair_run_every: 500,
        ..CHANGING
    });
    assert!(seen.everything, "no state is left");
}

/// M-R1, M-R2. A cluster grows from one voter to three, in one step or two.
#[test]
fn grown_to_three() {
    explore(Scope {
        name: "grown to three",
        voters: &[1],
        orders: &[Order::Promote(2), Order::Promote(3)],
        changes: 2,
        steps_max: 12,
        ..CHANGING
    });
}

/// M-R1, M-R2. The same with a lost disk.
#[test]
fn grown_to_three_and_a_lost_disk() {
    explore(Scope {
        name: "grown to three and a lost disk",
        voters: &[1],
        orders: &[Order::Promote(2), Order::Promote(3)],
        changes: 2,
        lost_disks: 1,
        steps_max: 12,
        ..CHANGING
    });
}

/// M-R10. One of two voters is replaced, the leader or the other one, and a disk is lost. All three
/// nodes are needed while the configuration is joint.
#[test]
fn one_of_two_is_replaced() {
    explore(Scope {
        name: "one of two is replaced",
        voters: &[1, 2],
        orders: &[Order::Replace(1, 3), Order::Replace(2, 3)],
        lost_disks: 1,
        steps_max: 15,
        ..CHANGING
    });
}
