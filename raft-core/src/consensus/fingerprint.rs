//! `Hash` of a node's state, for tests that count and compare states (the explorer).
//!
//! Equal hashes mean that two nodes react to equal events alike, except for timing, random draws,
//! and alarms that were raised before. So an implementation by hand leaves out the times, which
//! decide only when something happens, the rng, and the number of a read attempt. It also leaves
//! out how fast disks were: a leader leaves a slow disk, and no disk of the explorer is slow. Each
//! names every field of its type, so that a new field cannot be forgotten. Types without such
//! fields derive `Hash` where they are defined.

use std::hash::{Hash, Hasher};

use super::durability::{Durability, PersistInFlight};
use super::founding::Founding;
use super::inflights::Inflight;
use super::log::InFlight;
use super::node_state::NodeState;
use super::progress::Progress;
use super::ready::Ready;
use super::role::candidate::Candidate;
use super::role::follower::{Asked, Follower};
use super::role::leader::{Leader, Transfer};

/// Implements `Hash` for a type by naming every field. The fields before `left out` decide what a
/// node does next. Those left out only decide when, or come from the rng.
macro_rules! hash_of {
    ($type:ident { $($field:ident),+; left out: $($left_out:ident),+ }) => {
        impl Hash for $type {
            fn hash<H: Hasher>(&self, state: &mut H) {
                let Self { $($field,)+ $($left_out: _,)+ } = self;
                $(Hash::hash($field, state);)+
            }
        }
    };
}

hash_of!(Founding { number, peers; left out: next_at, is_extra_round, extra_round_used });
hash_of!(Candidate { votes, uncounted; left out: deadline, ask_again_at });
hash_of!(Follower { leader, reads; left out: heard_at, election_deadline });
// An attempt is drawn from the rng.
hash_of!(Asked { reads; left out: attempt, give_up_at });
hash_of!(Leader {
    progress, round, recovery_round, reads, transfer, stage;
    left out: next_heartbeat, next_check, committed_at, leave_again_at, is_leaving
});
hash_of!(Transfer { to, told; left out: deadline });
hash_of!(Progress {
    recovery, match_index, next_index, state, inflights, acked_round, commit_sent, refused_probes,
    version_max;
    left out: last_heard, probe_again_at, catch_up, farewell, ack_latencies
});
hash_of!(Inflight { last_index, bytes; left out: sent_at });
// Batches complete in order, so their order identifies them.
hash_of!(InFlight { through; left out: id });
hash_of!(PersistInFlight { publish; left out: id, since });

/// The number of this start counts only while the node's messages carry it. What the operator was
/// told decides only whether an alarm is raised again.
impl Hash for NodeState {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self {
            config,
            term,
            voted_for,
            memory,
            number,
            founding,
            founding_version,
            log,
            rng: _,
            applied_at: _,
            restoring,
            durability,
            ready,
            told_majority_lost: _,
            told_versions_differ: _,
            told_refusal_in: _,
            needed_until: _,
            agreed: _,
            avoided,
            peer_disks,
            disk_latencies: _,
            left_slow_disk_at: _,
        } = self;
        (config, term, voted_for, log).hash(state);
        (memory, founding, founding_version, avoided, peer_disks).hash(state);
        (!memory.counts()).then_some(number).hash(state);
        (self.agreed_index(), restoring, durability).hash(state);
        hash_gathered(ready, state);
    }
}

/// The numbers of batches count from the last one: equal states hash alike, no matter how many
/// batches came before.
impl Hash for Durability {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self {
            hard_state_changed,
            publish,
            withdraw_snapshot,
            next_memory,
            gate,
            last_persist_id,
            in_flight,
        } = self;
        (hard_state_changed, publish, withdraw_snapshot, in_flight).hash(state);
        let next_memory =
            next_memory.map(|(by, memory)| (by.wrapping_sub(*last_persist_id), memory));
        next_memory.hash(state);
        gate.held.len().hash(state);
        for (until, to, message) in &gate.held {
            (until.wrapping_sub(*last_persist_id), to, message).hash(state);
        }
    }
}

/// Hashes the parts of a [`Ready`] that are gathered before it is taken.
fn hash_gathered(ready: &Ready, state: &mut impl Hasher) {
    let Ready {
        persist,
        messages,
        committed,
        restore,
        read_states,
        snapshot_requests,
        snapshot_published,
        role_change,
        alarms,
        notices: _,
    } = ready;
    assert!(persist.is_none() && committed.is_empty() && restore.is_none());
    assert!(role_change.is_none(), "decided when it is taken");
    (messages, read_states, snapshot_requests, snapshot_published, alarms).hash(state);
}
