//! Tests of the rules, one by one, without a node: events in, actions out.

use super::*;

const LIMIT_BYTES: u64 = 1000;
const HEARTBEAT: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(10);

/// A core in which each entry takes ten bytes, applied as far as it reaches.
#[derive(Clone, Debug)]
struct TestCore {
    leads: bool,
    start_index: Index,
    last_index: Index,
    snapshot_index: Index,
    half_full: bool,
    restoring: bool,
    peer: Option<PeerView>,
}

const ENTRY_BYTES: u64 = 10;

impl TestCore {
    /// A leader with these entries behind the start of its log.
    fn with_entries(start_index: Index, last_index: Index) -> Self {
        let peer = Some(PeerView { match_index: 0, needs_snapshot: true });
        let (half_full, restoring) = (false, false);
        let snapshot_index = start_index;
        Self { leads: true, start_index, last_index, snapshot_index, half_full, restoring, peer }
    }
}

impl CoreView for TestCore {
    fn leads(&self) -> bool {
        self.leads
    }
    fn commit_index(&self) -> Index {
        self.last_index
    }
    fn last_applied(&self) -> Index {
        self.last_index
    }
    fn snapshot_index(&self) -> Index {
        self.snapshot_index
    }
    fn log_start_index(&self) -> Index {
        self.start_index
    }
    fn log_is_half_full(&self) -> bool {
        self.half_full
    }
    fn is_restoring(&self) -> bool {
        self.restoring
    }
    fn index_leaving_bytes(&self, bytes: u64) -> Index {
        self.last_index.saturating_sub(bytes / ENTRY_BYTES).max(self.start_index)
    }
    fn log_bytes(&self) -> u64 {
        (self.last_index - self.start_index) * ENTRY_BYTES
    }
    fn peer(&self, _: NodeId) -> Option<PeerView> {
        self.peer
    }
}

fn policy(is_durable: bool) -> Policy {
    let mut config = NodeConfig::new(1, [1, 2, 3], 1);
    config.max_raft_state_bytes = LIMIT_BYTES;
    config.raft.heartbeat_interval = HEARTBEAT;
    config.snapshot_patience = PATIENCE;
    Policy::new(&config, is_durable, None, 0)
}

fn at(millis: u64) -> Time {
    Time::ZERO + Duration::from_millis(millis)
}

/// Runs one turn. Entries are dropped as ordered, and storage drops them at once.
fn turn(policy: &mut Policy, core: &mut TestCore, now: Time) -> Vec<Action> {
    let mut actions = policy.begin_turn(core);
    for action in &actions {
        if let Action::DropEntries(through) = *action {
            let dropped = (through > core.start_index).then_some(through);
            core.start_index = core.start_index.max(through);
            if policy.on_entries_dropped(dropped) {
                policy.on_compacted(core.log_bytes());
            }
        }
    }
    actions.extend(policy.end_turn(core, now));
    actions
}

/// Takes, writes and publishes a view of all that is applied.
fn publish(policy: &mut Policy, core: &mut TestCore, now: Time) {
    assert!(policy.on_view_taken(now, core.last_index, true));
    policy.on_written(core.last_index, 500, true);
    core.snapshot_index = core.last_index;
    policy.on_published(core, core.last_index);
}

/// A durable machine's leader that sends a copy at index 100 to a peer.
fn leader_that_sends() -> (Policy, TestCore) {
    let mut policy = policy(true);
    let mut core = TestCore::with_entries(50, 100);
    policy.flushed_index = 100;
    assert_eq!(policy.on_peer_wanted(2), None);
    assert_eq!(turn(&mut policy, &mut core, at(0)), [Action::TakeView]);
    publish(&mut policy, &mut core, at(0));
    assert_eq!(turn(&mut policy, &mut core, at(0)), [Action::DropEntries(75), SEND]);
    (policy, core)
}

const SEND: Action = Action::Send { peer: 2, failures_in_a_row: 0 };

#[test]
fn a_volatile_machine_is_asked_for_a_view_once_the_log_is_too_large() {
    let mut policy = policy(false);
    let mut core = TestCore::with_entries(0, 100);
    assert_eq!(turn(&mut policy, &mut core, at(0)), []);
    core.last_index += 1;
    assert_eq!(turn(&mut policy, &mut core, at(0)), [Action::TakeView]);
    // One at a time.
    assert_eq!(turn(&mut policy, &mut core, at(0)), []);
}

#[test]
fn a_published_view_leaves_a_quarter_of_the_limit_in_the_log() {
    let mut policy = policy(false);
    let mut core = TestCore::with_entries(0, 101);
    assert_eq!(turn(&mut policy, &mut core, at(0)), [Action::TakeView]);
    publish(&mut policy, &mut core, at(0));
    assert_eq!(turn(&mut policy, &mut core, at(0)), [Action::DropEntries(101 - 25)]);
    assert_eq!(turn(&mut policy, &mut core, at(0)), []);
}

#[test]
fn a_durable_machine_is_flushed_and_its_log_compacted() {
    let mut policy = policy(true);
    let mut core = TestCore::with_entries(0, 101);
    assert_eq!(turn(&mut policy, &mut core, at(0)), [Action::Flush]);
    assert!(policy.is_flushing());
    assert_eq!(turn(&mut policy, &mut core, at(0)), []);
    core.snapshot_index = 101;
    policy.on_flushed(&core, 101);
    assert!(!policy.is_flushing());
    assert_eq!(turn(&mut policy, &mut core, at(0)), [Action::DropEntries(76)]);
}

#[test]
fn many_entries_are_dropped_in_pieces() {
    let mut policy = policy(true);
    let mut core = TestCore::with_entries(0, 10_000);
    assert_eq!(turn(&mut policy, &mut core, at(0)), [Action::Flush]);
    core.snapshot_index = 10_000;
    policy.on_flushed(&core, 10_000);
    assert_eq!(turn(&mut policy, &mut core, at(0)), [Action::DropEntries(4096)]);
    assert_eq!(turn(&mut policy, &mut core, at(0)), [Action::DropEntries(8192)]);
    assert_eq!(turn(&mut policy, &mut core, at(0)), [Action::DropEntries(9975)]);
    assert_eq!(turn(&mut policy, &mut core, at(0)), []);
}

#[test]
fn a_request_is_served_by_a_snapshot_that_lacks_nothing() {
    let mut policy = policy(false);
    let mut core = TestCore::with_entries(10, 10);
    policy.on_requested();
    assert_eq!(turn(&mut policy, &mut core, at(0)), []);
    core.last_index += 1;
    assert_eq!(turn(&mut policy, &mut core, at(0)), [], "the request is over");
    policy.on_requested();
    assert_eq!(turn(&mut policy, &mut core, at(0)), [Action::TakeView]);
}

#[test]
fn a_view_of_no_use_is_followed_by_a_pause() {
    let mut policy = policy(false);
    let mut core = TestCore::with_entries(0, 101);
    assert_eq!(turn(&mut policy, &mut core, at(0)), [Action::TakeView]);
    assert!(!policy.on_view_taken(at(0), 101, false), "a leader's snapshot overtook it");
    assert_eq!(turn(&mut policy, &mut core, at(0)), []);
    assert_eq!(policy.next_deadline(), at(0) + VIEW_PAUSE);
    assert_eq!(turn(&mut policy, &mut core, at(0) + VIEW_PAUSE), [Action::TakeView]);
}

#[test]
fn a_lagging_peer_gets_a_copy_that_is_written_first() {
    let (mut policy, core) = leader_that_sends();
    assert!(policy.transfers()[0].is_sending);
    policy.on_sent(at(5), 2, Sent::Through(100), core.last_index);
    assert!(!policy.transfers()[0].is_sending);
    assert_eq!(policy.transfers()[0].rounds, 1);
}

#[test]
fn c12_a_durable_machine_is_flushed_beside_a_copy() {
    let mut policy = policy(true);
    let mut core = TestCore::with_entries(50, 100);
    assert_eq!(policy.on_peer_wanted(2), None);
    assert_eq!(turn(&mut policy, &mut core, at(0)), [Action::TakeView]);
    assert!(policy.on_view_taken(at(0), 100, true));
    core.last_index = 151;
    assert_eq!(turn(&mut policy, &mut core, at(0)), [Action::Flush]);
    core.snapshot_index = 151;
    policy.on_flushed(&core, 151);
    // The entries that the peer needs after the copy stay.
    assert_eq!(turn(&mut policy, &mut core, at(0)), [Action::DropEntries(100)]);
}

#[test]
fn c12_a_copy_that_compaction_overtook_is_given_up() {
    let mut policy = policy(true);
    let mut core = TestCore::with_entries(50, 100);
    assert_eq!(policy.on_peer_wanted(2), None);
    assert_eq!(turn(&mut policy, &mut core, at(0)), [Action::TakeView]);
    assert!(policy.on_view_taken(at(0), 100, true));
    core.last_index = 1000;
    core.snapshot_index = 1000;
    assert_eq!(turn(&mut policy, &mut core, at(0)), []);
    core.start_index = 500;
    assert_eq!(turn(&mut policy, &mut core, at(0)), [Action::StopWriting]);
    assert_eq!(turn(&mut policy, &mut core, at(0)), [], "stopped once");
    policy.on_writing_given_up();
    assert_eq!(turn(&mut policy, &mut core, at(0)), [Action::TakeView]);
}

#[test]
fn c15_entries_are_kept_for_a_peer_as_far_as_four_limits_allow() {
    let (mut policy, mut core) = leader_that_sends();
    core.last_index = 500;
    assert_eq!(turn(&mut policy, &mut core, at(0)), [Action::Flush]);
    core.snapshot_index = 500;
    policy.on_flushed(&core, 500);
    assert_eq!(turn(&mut policy, &mut core, at(0)), [Action::DropEntries(100)]);
    core.last_index = 501;
    policy.on_requested();
    assert_eq!(turn(&mut policy, &mut core, at(0)), [Action::Flush]);
    core.snapshot_index = 501;
    policy.on_flushed(&core, 501);
    // The copy is of no use without the entries behind it.
    assert_eq!(turn(&mut policy, &mut core, at(0)), [Action::DropEntries(476), Action::Withdraw]);
}

#[test]
fn c14_the_pause_before_the_next_offer_doubles() {
    let (mut policy, mut core) = leader_that_sends();
    let mut now = at(0);
    for (failures_in_a_row, pause_ms) in [(1, 100), (2, 200), (3, 400), (4, 800), (5, 1600)] {
        policy.on_sent(now, 2, Sent::Interrupted, core.last_index);
        assert_eq!(policy.on_peer_wanted(2), None);
        assert_eq!(turn(&mut policy, &mut core, now), []);
        now = now + Duration::from_millis(pause_ms);
        assert_eq!(policy.next_deadline(), now);
        let send = Action::Send { peer: 2, failures_in_a_row };
        assert_eq!(turn(&mut policy, &mut core, now), [send]);
    }
}

#[test]
fn c15_the_operator_is_told_of_a_peer_that_never_catches_up() {
    let (mut policy, mut core) = leader_that_sends();
    for round in 1..=4 {
        policy.on_sent(at(0), 2, Sent::Through(100), core.last_index);
        let warning = Action::WarnOfRounds { peer: 2, rounds: 3 };
        assert_eq!(policy.on_peer_wanted(2), (round == 3).then_some(warning), "{round}");
        assert_eq!(turn(&mut policy, &mut core, at(0)), [SEND]);
    }
}

#[test]
fn a_copy_that_cannot_be_read_is_withdrawn_and_written_again() {
    let (mut policy, mut core) = leader_that_sends();
    policy.on_sent(at(0), 2, Sent::Unreadable, core.last_index);
    assert_eq!(policy.on_peer_wanted(2), None);
    let again = turn(&mut policy, &mut core, at(100));
    assert_eq!(again, [Action::Withdraw, Action::TakeView]);
}

/// S14. The copy goes only once the machine is durable through its index.
#[test]
fn s14_a_copy_is_withdrawn_once_no_peer_needs_it() {
    let (mut policy, mut core) = leader_that_sends();
    policy.flushed_index = 99;
    policy.on_sent(at(0), 2, Sent::Through(100), core.last_index);
    core.peer = Some(PeerView { match_index: 100, needs_snapshot: false });
    assert_eq!(turn(&mut policy, &mut core, at(0)), [Action::Flush]);
    assert!(!policy.has_peer(2));
    assert_eq!(turn(&mut policy, &mut core, at(0)), []);
    policy.on_flushed(&core, 100);
    assert_eq!(turn(&mut policy, &mut core, at(0)), [Action::DropEntries(75), Action::Withdraw]);
}

#[test]
fn s14_a_copy_is_kept_for_a_peer_that_is_absent_for_a_while() {
    let (mut policy, mut core) = leader_that_sends();
    policy.on_sent(at(0), 2, Sent::Interrupted, core.last_index);
    assert_eq!(turn(&mut policy, &mut core, at(59_999)), []);
    assert_eq!(turn(&mut policy, &mut core, at(60_000)), [Action::Withdraw]);
}

#[test]
fn s14_the_snapshot_of_a_volatile_machine_stays() {
    let mut policy = policy(false);
    let mut core = TestCore::with_entries(0, 101);
    assert_eq!(turn(&mut policy, &mut core, at(0)), [Action::TakeView]);
    publish(&mut policy, &mut core, at(0));
    for seconds in 0..100 {
        let actions = turn(&mut policy, &mut core, at(1000 * seconds));
        assert!(!actions.contains(&Action::Withdraw));
    }
}

#[test]
fn a_node_that_no_longer_leads_stops_its_transfers() {
    let (mut policy, mut core) = leader_that_sends();
    core.leads = false;
    assert_eq!(turn(&mut policy, &mut core, at(0)), [Action::StopSending(2)]);
    assert_eq!(turn(&mut policy, &mut core, at(0)), [], "stopped once");
    policy.on_sent(at(0), 2, Sent::Interrupted, core.last_index);
    assert!(!policy.has_peer(2));
    assert_eq!(turn(&mut policy, &mut core, at(0)), [Action::Withdraw]);
}

fn offer(policy: &mut Policy, core: &TestCore, from: NodeId, term: Term) -> OfferVerdict {
    policy.on_offered(core, OfferDecision::Wanted, (from, term), 200)
}

fn follower() -> TestCore {
    TestCore { leads: false, ..TestCore::with_entries(0, 10) }
}

const BUSY: OfferVerdict = OfferVerdict::Refuse(OfferResponse::Busy);

#[test]
fn one_snapshot_is_received_at_a_time_and_never_beside_a_copy() {
    let (mut policy, core) = (policy(false), follower());
    assert_eq!(offer(&mut policy, &core, 2, 7), OfferVerdict::Admit);
    assert_eq!(offer(&mut policy, &core, 3, 7), BUSY);
    policy.on_requested();
    assert_eq!(turn(&mut policy, &mut core.clone(), at(0)), [], "no view beside it");
    policy.on_receive_ended();
    assert_eq!(turn(&mut policy, &mut core.clone(), at(0)), [Action::TakeView]);
    assert_eq!(offer(&mut policy, &core, 3, 7), BUSY);
}

#[test]
fn c13_a_newer_leader_replaces_the_transfer_of_an_older_one() {
    let (mut policy, core) = (policy(false), follower());
    assert_eq!(offer(&mut policy, &core, 2, 7), OfferVerdict::Admit);
    assert_eq!(offer(&mut policy, &core, 3, 6), BUSY);
    assert_eq!(offer(&mut policy, &core, 3, 8), OfferVerdict::RefuseAndStopReceiving);
    assert_eq!(offer(&mut policy, &core, 3, 8), BUSY, "the earlier task has not ended");
    policy.on_receive_ended();
    assert_eq!(offer(&mut policy, &core, 3, 8), OfferVerdict::Admit);
    // Another attempt of the same leader.
    assert_eq!(offer(&mut policy, &core, 3, 8), OfferVerdict::RefuseAndStopReceiving);
}

#[test]
fn c13_a_snapshot_that_is_not_needed_is_received_no_further() {
    let (mut policy, mut core) = (policy(false), follower());
    assert_eq!(offer(&mut policy, &core, 2, 7), OfferVerdict::Admit);
    assert_eq!(turn(&mut policy, &mut core, at(0)), []);
    core.leads = true;
    assert_eq!(turn(&mut policy, &mut core, at(0)), [Action::StopReceiving]);
    assert_eq!(turn(&mut policy, &mut core, at(0)), [], "stopped once");
}

#[test]
fn what_the_core_says_of_an_offer_is_passed_on() {
    let (mut policy, core) = (policy(false), follower());
    let mut answer = |decision| policy.on_offered(&core, decision, (2, 7), 200);
    let not_needed = answer(OfferDecision::NotNeeded);
    assert_eq!(not_needed, OfferVerdict::Refuse(OfferResponse::NotNeeded));
    let stale = answer(OfferDecision::Stale { term: 9 });
    assert_eq!(stale, OfferVerdict::Refuse(OfferResponse::Stale { term: 9 }));
    assert_eq!(answer(OfferDecision::Refused), BUSY);
}

#[test]
fn a_log_that_is_half_full_and_covered_is_compacted_without_a_snapshot() {
    let mut policy = policy(true);
    let mut core = TestCore::with_entries(0, 90);
    core.snapshot_index = 90;
    policy.flushed_index = 90;
    assert_eq!(turn(&mut policy, &mut core, at(0)), []);
    core.half_full = true;
    assert_eq!(turn(&mut policy, &mut core, at(0)), [Action::DropEntries(65)]);
}

#[test]
fn nothing_is_flushed_viewed_or_received_while_the_machine_restores() {
    for is_durable in [false, true] {
        let mut policy = policy(is_durable);
        let mut core = TestCore { restoring: true, ..TestCore::with_entries(0, 200) };
        core.leads = false;
        policy.on_replaced(200);
        policy.on_requested();
        assert_eq!(turn(&mut policy, &mut core, at(0)), []);
        assert_eq!(offer(&mut policy, &core, 2, 7), BUSY);
    }
}
