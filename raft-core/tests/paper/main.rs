//! One test for each claim of Ongaro's dissertation about the core, and for each scenario that
//! other implementations found worth testing. A test name begins with the section (`s3_4_`) or with
//! the scenario's number (`e5_`). Each test states the claim, arranges a state, gives one input,
//! and checks state and messages.

#[path = "../common/mod.rs"]
mod common;

mod catalogue;
mod election;
mod flow_control;
mod founding;
mod hung;
mod limits;
mod lost_disks;
mod membership;
mod membership_catalogue;
mod membership_findings;
mod membership_recovery;
mod membership_scenarios;
mod old_disks;
mod persistence;
mod pre_vote;
mod reads;
mod removed_nodes;
mod replication;
mod review;
mod second_review;
mod slow_disks;
mod snapshots;
mod transfer;
mod versions;

use std::collections::BTreeMap;

use common::{Cluster, Disk};
use raft_core::consensus::Config;
use raft_core::types::{Message, MessageBody, NodeId, Term};

/// Elections without pre-vote, so that a timeout starts a candidacy.
fn no_pre_vote(config: &mut Config) {
    config.pre_vote = false;
}

/// Plain Raft of chapter 3: no pre-vote, no check quorum.
fn plain(config: &mut Config) {
    config.pre_vote = false;
    config.check_quorum = false;
}

/// Nodes 1, 2, .. with logs of these terms, all in `term`; no pre-vote.
fn with_logs(logs: &[&[Term]], term: Term) -> Cluster {
    let disks: BTreeMap<NodeId, Disk> =
        (1..).zip(logs).map(|(id, terms)| (id, Disk::of_terms(terms, term))).collect();
    Cluster::with_disks(disks, plain)
}

fn is_vote(message: &Message) -> bool {
    matches!(message.body, MessageBody::RequestVote { .. })
}

/// The part that `pick` takes from the first message of its kind to `to`.
fn only<T>(sent: &[(NodeId, Message)], to: NodeId, pick: impl Fn(&MessageBody) -> Option<T>) -> T {
    let mut found = sent.iter().filter(|(receiver, _)| *receiver == to);
    found.find_map(|(_, message)| pick(&message.body)).expect("such a message was sent")
}
