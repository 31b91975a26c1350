use super::*;
use crate::types::CONFIGURATION_BYTES_MAX;

const ALL: Overrides = Overrides { less_redundancy: true, live: true };

/// Node 1 leads; the nodes in `up` respond, and are ready.
fn view(up: &[NodeId]) -> View {
    let standing = Standing { responds: true, recovers: false, is_ready: true, version_max: 1 };
    View { own_id: 1, standings: up.iter().map(|id| (*id, standing)).collect() }
}

/// Voters 1 to 3, and learner 4, which wants to be a voter.
fn growing() -> Configuration {
    let member = Member { incarnation: 7, wants_vote: true, context: Bytes::new() };
    Configuration {
        learners: [4].into(),
        members: [(4, member)].into(),
        next_id: 5,
        founded: true,
        cluster_version: 1,
        ..Configuration::of_voters([1, 2, 3])
    }
}

fn next(current: &Configuration, up: &[NodeId], change: &Change) -> Configuration {
    let planned = plan(current, &view(up), change, ALL);
    planned.expect("it is not refused").expect("it changes something")
}

fn refusal(current: &Configuration, up: &[NodeId], change: &Change) -> String {
    let planned = plan(current, &view(up), change, Overrides::default());
    planned.expect_err("it is refused").to_string()
}

#[test]
fn ids_are_given_out_in_order_and_once() {
    let current = Configuration::of_voters([1, 2, 3]);
    let add = |id| Change::Add { id, member: Member::default() };
    assert!(refusal(&current, &[2, 3], &add(5)).contains("the next one is 4"));
    assert!(refusal(&current, &[2, 3], &add(2)).contains("is a member already"));
    let four = next(&current, &[2, 3], &add(4));
    assert_eq!((&four.learners, four.next_id), (&[4].into(), 5));
    assert_eq!(plan(&four, &view(&[2, 3]), &add(4), ALL), Ok(None), "it is repeated");
    let without = next(&four, &[2, 3], &Change::Remove { id: 4 });
    assert!(!without.is_member(4) && without.members.is_empty());
    assert!(refusal(&without, &[2, 3], &add(4)).contains("was removed"));
    assert_eq!(plan(&without, &view(&[2, 3]), &Change::Remove { id: 4 }, ALL), Ok(None));
    assert!(refusal(&without, &[2, 3], &Change::Remove { id: 9 }).contains("there is no member 9"));
}

/// A learner becomes a voter only while it responds, has caught up, is counted, and knows the
/// cluster's version.
#[test]
fn only_a_ready_learner_is_promoted() {
    let current = growing();
    let promoted = next_step(&current, &view(&[2, 3, 4])).expect("it is ready");
    assert_eq!(promoted.voters, [1, 2, 3, 4].into());
    assert_eq!((promoted.outgoing, promoted.learners.len()), ([1, 2, 3].into(), 0));
    let spoil: [fn(&mut Standing); 4] = [
        |standing| standing.responds = false,
        |standing| standing.recovers = true,
        |standing| standing.is_ready = false,
        |standing| standing.version_max = 0,
    ];
    for spoil in spoil {
        let mut view = view(&[2, 3, 4]);
        spoil(view.standings.get_mut(&4).expect("it is known"));
        assert_eq!(next_step(&current, &view), None);
    }
    let mut read_replica = current;
    read_replica.set_wants_vote(4, false);
    assert_eq!(next_step(&read_replica, &view(&[2, 3, 4])), None, "it is to stay a learner");
}

/// The voter that is replaced leaves in the step in which its successor comes, and not before.
#[test]
fn a_replacement_is_one_step() {
    let mut current = growing();
    current.set_wants_vote(4, false);
    let intended = next(&current, &[2], &Change::Replace { old: 3, new: 4 });
    assert_eq!((intended.is_joint(), intended.wants_vote(3)), (false, false));
    assert_eq!(next_step(&intended, &view(&[2])), None, "4 does not respond");
    let joint = next_step(&intended, &view(&[2, 4])).expect("4 is ready");
    assert_eq!(joint.voters, [1, 2, 4].into());
    assert!(joint.is_consistent() && joint.is_storable());
    let last = next_step(&joint, &view(&[2, 4])).expect("a joint configuration is left");
    assert_eq!((last.is_joint(), last.members()), (false, [1, 2, 4].into()));
    assert!(!last.members.contains_key(&3));
    assert_eq!(next_step(&last, &view(&[2, 4])), None);
    let kept = next(&intended, &[2], &Change::Promote { id: 3 });
    assert!(kept.wants_vote(3), "the operator has changed his mind");
}

/// The successor is gone, so the voter stays: the next member that is added takes no one's place.
#[test]
fn a_replacement_ends_with_its_successor() {
    let mut current = growing();
    current.set_wants_vote(4, false);
    let intended = next(&current, &[2], &Change::Replace { old: 3, new: 4 });
    for change in [Change::Remove { id: 4 }, Change::Demote { id: 4 }] {
        let ended = next(&intended, &[2], &change);
        assert!(ended.wants_vote(3), "{change:?}");
    }
}

#[test]
fn a_disk_is_recorded_once() {
    let mut current = growing();
    current.record(4).incarnation = 0;
    let bind = |incarnation| Change::Bind { id: 4, incarnation };
    let bound = next(&current, &[2, 3], &bind(8));
    assert_eq!(bound.members[&4].incarnation, 8);
    assert_eq!(plan(&bound, &view(&[2, 3]), &bind(8), ALL), Ok(None));
    assert!(refusal(&bound, &[2, 3], &bind(9)).contains("with this data directory"));
    assert!(refusal(&current, &[2, 3], &bind(0)).contains("with this data directory"));
    assert!(
        refusal(&current, &[2, 3], &Change::Bind { id: 2, incarnation: 8 })
            .contains("only the first")
    );
}

/// A change of the voters needs a majority of each set that responds and is counted.
#[test]
fn a_change_that_could_not_be_committed_is_refused() {
    let current = growing();
    let remove = Change::Remove { id: 2 };
    assert!(refusal(&current, &[2, 3], &remove).contains("is running"));
    let planned = plan(&current, &view(&[2]), &remove, ALL);
    let text = planned.expect_err("1 alone decides nothing").to_string();
    assert!(text.contains("too few of the voters"), "{text}");
    assert!(refusal(&current, &[3], &remove).contains("would tolerate 0 failed nodes"));
    let joint = next(&current, &[3], &remove);
    assert_eq!((joint.voters, joint.outgoing), ([1, 3].into(), [1, 2, 3].into()));
    let alone = Configuration::of_voters([1]);
    assert!(plan(&alone, &view(&[]), &Change::Remove { id: 1 }, ALL).is_err(), "the last voter");
}

#[test]
fn a_demoted_voter_stays_as_a_learner() {
    let mut current = growing();
    current.set_wants_vote(4, false);
    let joint = next(&current, &[2, 3], &Change::Demote { id: 3 });
    assert!(joint.learners.contains(&3) && joint.outgoing.contains(&3));
    let last = next_step(&joint, &view(&[2, 3])).expect("a joint configuration is left");
    assert_eq!((&last.voters, &last.learners), (&[1, 2].into(), &[3, 4].into()));
    assert!(!last.wants_vote(3));
}

/// The context of the cluster changes by a plain entry, and outlives every change.
#[test]
fn the_context_of_the_cluster_stays() {
    let change = Change::SetClusterContext { context: Bytes::from_static(b"settings") };
    let current = next(&growing(), &[], &change);
    assert_eq!(Configuration { context: Bytes::new(), ..current.clone() }, growing());
    assert_eq!(plan(&current, &view(&[]), &change, ALL), Ok(None), "it is repeated");
    let joint = next(&current, &[2, 3], &Change::Remove { id: 3 });
    let left = next_step(&joint, &view(&[2])).expect("a joint configuration is left");
    assert!(joint.is_joint() && !left.is_joint());
    assert_eq!([&joint.context, &left.context], ["settings"; 2]);
    let context = Bytes::from(vec![7; CONFIGURATION_BYTES_MAX as usize]);
    assert!(refusal(&current, &[2, 3], &Change::SetClusterContext { context }).contains("bytes"));
}
