//! Majorities, simple and joint (4.3).
//!
//! ```
//! use raft_core::consensus::quorum::reached_by_quorum;
//! use raft_core::types::Configuration;
//!
//! let durable_index = |node| [0, 7, 5, 3, 9, 1][node as usize];
//! let mut configuration = Configuration::of_voters([1, 2, 3]);
//! assert_eq!(reached_by_quorum(&configuration, durable_index), 5);
//! // While joint, the majority of the outgoing voters is needed as well.
//! configuration.outgoing = [3, 4, 5].into();
//! assert_eq!(reached_by_quorum(&configuration, durable_index), 3);
//! ```

use std::collections::{BTreeMap, BTreeSet};

use crate::types::{Configuration, NodeId};

/// The state of a vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VoteResult {
    /// A quorum has granted it.
    Won,
    /// A majority can no longer be reached.
    Lost,
    /// It depends on votes that have not arrived.
    Pending,
}

/// Returns the largest value that a quorum has reached: at least a majority of the voters, and of
/// the outgoing voters while joint, are at it or beyond. Used for durable indexes, confirmed rounds
/// and the times when voters last sent a message. An empty configuration has reached nothing:
/// `T::default()`.
pub fn reached_by_quorum<T: Ord + Copy + Default>(
    configuration: &Configuration,
    value_of: impl Fn(NodeId) -> T,
) -> T {
    let incoming = reached_by_majority(&configuration.voters, &value_of);
    if configuration.is_joint() {
        incoming.min(reached_by_majority(&configuration.outgoing, &value_of))
    } else {
        incoming
    }
}

/// So many voters are counted without an allocation.
const FEW_VOTERS: usize = 8;

fn reached_by_majority<T: Ord + Copy + Default>(
    voters: &BTreeSet<NodeId>,
    value_of: &impl Fn(NodeId) -> T,
) -> T {
    if voters.is_empty() {
        return T::default();
    }
    let (mut few, mut many) = ([T::default(); FEW_VOTERS], Vec::new());
    let values = if voters.len() <= FEW_VOTERS {
        &mut few[..voters.len()]
    } else {
        many.resize(voters.len(), T::default());
        &mut many[..]
    };
    for (value, voter) in values.iter_mut().zip(voters) {
        *value = value_of(*voter);
    }
    values.sort_unstable();
    // A majority is at or above the middle one of 2k+1 sorted values, and the lower middle one of
    // 2k.
    values[(values.len() - 1) / 2]
}

/// Counts votes, true for granted. Nodes that are not voters are ignored; a joint configuration
/// needs both majorities (4.3).
///
/// ```
/// use std::collections::BTreeMap;
/// use raft_core::consensus::quorum::{VoteResult, vote_result};
/// use raft_core::types::Configuration;
///
/// let configuration = Configuration::of_voters([1, 2, 3]);
/// let mut votes = BTreeMap::from([(1, true)]);
/// assert_eq!(vote_result(&configuration, &votes), VoteResult::Pending);
/// votes.insert(3, true);
/// assert_eq!(vote_result(&configuration, &votes), VoteResult::Won);
/// ```
pub fn vote_result(configuration: &Configuration, votes: &BTreeMap<NodeId, bool>) -> VoteResult {
    let incoming = majority_result(&configuration.voters, votes);
    if !configuration.is_joint() {
        return incoming;
    }
    match (incoming, majority_result(&configuration.outgoing, votes)) {
        (VoteResult::Won, VoteResult::Won) => VoteResult::Won,
        (VoteResult::Lost, _) | (_, VoteResult::Lost) => VoteResult::Lost,
        _ => VoteResult::Pending,
    }
}

fn majority_result(voters: &BTreeSet<NodeId>, votes: &BTreeMap<NodeId, bool>) -> VoteResult {
    let majority = voters.len() / 2 + 1;
    let granted = voters.iter().filter(|voter| votes.get(voter) == Some(&true)).count();
    let refused = voters.iter().filter(|voter| votes.get(voter) == Some(&false)).count();
    if !voters.is_empty() && granted >= majority {
        VoteResult::Won
    } else if voters.len() - refused < majority {
        VoteResult::Lost
    } else {
        VoteResult::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joint(voters: &[NodeId], outgoing: &[NodeId]) -> Configuration {
        Configuration {
            voters: voters.iter().copied().collect(),
            outgoing: outgoing.iter().copied().collect(),
            ..Configuration::default()
        }
    }

    /// Tries every value, largest first, and counts: slow and plainly right.
    fn by_counting(configuration: &Configuration, values: &[u64]) -> u64 {
        let reached = |voters: &BTreeSet<NodeId>, value: u64| {
            let count = voters.iter().filter(|id| values[**id as usize] >= value).count();
            2 * count > voters.len()
        };
        (0..10u64)
            .rev()
            .find(|value| {
                reached(&configuration.voters, *value)
                    && (!configuration.is_joint() || reached(&configuration.outgoing, *value))
            })
            .unwrap_or(0)
    }

    #[test]
    fn quorum_equals_counting() {
        let mut rng = crate::rng::Rng::new(7);
        for _ in 0..20_000 {
            let values: Vec<u64> = (0..13).map(|_| rng.below(10)).collect();
            let mut pick = |bound: u64| -> Vec<NodeId> {
                let count = rng.below(bound);
                (0..count).map(|_| 1 + rng.below(12)).collect()
            };
            let mut voters = pick(16);
            voters.push(1);
            let configuration = joint(&voters, &pick(16));
            assert_eq!(
                reached_by_quorum(&configuration, |id| values[id as usize]),
                by_counting(&configuration, &values),
                "{configuration:?} {values:?}"
            );
        }
    }

    #[test]
    fn votes_in_joint_need_both() {
        let configuration = joint(&[1, 2, 3], &[3, 4, 5]);
        let votes = |granted: &[NodeId], refused: &[NodeId]| {
            let yes = granted.iter().map(|id| (*id, true));
            let no = refused.iter().map(|id| (*id, false));
            vote_result(&configuration, &yes.chain(no).collect())
        };
        assert_eq!(votes(&[1, 2], &[]), VoteResult::Pending);
        assert_eq!(votes(&[1, 3, 4], &[]), VoteResult::Won);
        assert_eq!(votes(&[1, 2, 3], &[4, 5]), VoteResult::Lost);
        assert_eq!(votes(&[9, 8, 7, 6], &[]), VoteResult::Pending);
    }

    #[test]
    fn nobody_wins_without_voters() {
        let nobody = Configuration::default();
        assert_ne!(vote_result(&nobody, &BTreeMap::from([(1, true)])), VoteResult::Won);
        assert_eq!(reached_by_quorum(&nobody, |_| 9u64), 0);
    }
}
