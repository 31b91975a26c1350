//! The list of scenarios of membership, which [`super::catalogue`] explains and checks.
//!
//! M-J are joint and single changes, M-L learners and joiners, M-D removed, dead and disturbing
//! nodes, M-C check quorum and pre-vote, M-R lost disks, M-S snapshots, M-A addresses, M-K keys and
//! certificates. A test of M-J7 begins with `m_j7_`.

use crate::catalogue::Instead::{self, NotBuilt, Test};
use crate::catalogue::{check, tests_of};

const SUBJECTS: [(&str, u32); 8] = [
    ("m_j", 19),
    ("m_l", 9),
    ("m_d", 9),
    ("m_c", 4),
    ("m_r", 10),
    ("m_s", 3),
    ("m_a", 3),
    ("m_k", 3),
];

const ADDRESSES: &str = "integration-tests/tests/processes/addresses.rs";
const CERTIFICATES: &str = "raft-transport-quic/tests/certificates.rs";
const FOUNDING: &str = "raft-core/tests/paper/founding.rs";
const INVITATIONS: &str = "integration-tests/tests/processes/certificates.rs";
const MEMBERSHIP: &str = "raft-core/tests/paper/membership.rs";
const PROCESSES: &str = "integration-tests/tests/processes/members.rs";

const LINES: &[(&str, Instead)] = &[
    ("m_l5", Test("kv-service/tests/members.rs", "a_member_that_never_starts_changes_nothing")),
    ("m_l8", Test(MEMBERSHIP, "m_s3_a_joiner_gets_a_snapshot")),
    ("m_d5", Test(PROCESSES, "a_node_that_was_removed_while_it_was_away_is_told")),
    ("m_d7", Test(MEMBERSHIP, "a_change_without_a_reachable_quorum_is_refused")),
    ("m_d8", Test("kv-service/tests/members.rs", "m_d8_a_dead_voter_is_replaced_by_a_spare")),
    ("m_d9", NotBuilt("a cluster that has lost its majority is not recovered from one directory")),
    ("m_r1", Test(MEMBERSHIP, "c7_a_wiped_founder_does_not_found_again")),
    ("m_r3", Test(FOUNDING, "c4_a_lost_majority_stops_the_cluster")),
    ("m_r4", Test(FOUNDING, "c4_no_empty_cluster_appears")),
    ("m_r9", Test(MEMBERSHIP, "a_dead_voter_is_replaced_in_one_step")),
    ("m_a1", Test(ADDRESSES, "m_a1_each_node_moves_under_load")),
    ("m_a2", Test(ADDRESSES, "all_nodes_move_at_once")),
    ("m_a3", Test(ADDRESSES, "m_a3_another_node_answers_at_the_address_of_a_peer")),
    ("m_k1", Test(INVITATIONS, "m_k1_a_ca_is_replaced_under_load")),
    ("m_k2", Test(CERTIFICATES, "s18_a_set_that_does_not_fit_keeps_the_earlier_one")),
    ("m_k3", Test(INVITATIONS, "m_k3_an_invitation_brings_one_node_in")),
];

#[test]
fn every_scenario_of_membership_has_a_test_or_a_reason() {
    check(&SUBJECTS, LINES, &tests_of(true));
}
