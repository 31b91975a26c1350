use super::*;
use crate::members::{MemberInfo, MemberProgress};

const MINUTE: Duration = Duration::from_secs(60);

/// The members as node 1 sees them, which leads: all run, and have kept up.
fn report(roles: &[MemberRole]) -> ClusterReport {
    let progress = MemberProgress { match_index: 9, behind: 0, is_recovering: false };
    let member = |(id, role): (NodeId, &MemberRole)| MemberReport {
        id,
        info: MemberInfo { spare: *role == MemberRole::Learner, ..MemberInfo::default() },
        incarnation: 0,
        role: *role,
        wants_vote: *role == MemberRole::Voter,
        progress: (id != 1).then_some(progress),
        error: None,
    };
    ClusterReport {
        node_id: 1,
        leader_id: Some(1),
        is_committed: true,
        members: (1..).zip(roles).map(member).collect(),
        ..ClusterReport::default()
    }
}

/// Voters 1 to 3, and node 4 as a spare.
fn with_spare() -> ClusterReport {
    use MemberRole::{Learner, Voter};
    report(&[Voter, Voter, Voter, Learner])
}

fn member(report: &mut ClusterReport, id: NodeId) -> &mut MemberReport {
    report.members.iter_mut().find(|member| member.id == id).expect("a member")
}

fn lose(report: &mut ClusterReport, id: NodeId) {
    member(report, id).error = Some("timed out".to_owned());
}

/// Looks at the members each second for so long, and returns the first step, and when it came.
fn watch(
    observer: &mut Observer,
    report: &ClusterReport,
    for_long: Duration,
) -> Option<(u64, Step)> {
    let began = observer.hands_over_at - LEADS_FOR_MIN;
    (1..=for_long.as_secs()).find_map(|second| {
        let step = observer.look(report, began + Duration::from_secs(second)).step;
        step.map(|step| (second, step))
    })
}

fn observer() -> Observer {
    Observer::begin(Instant::now())
}

fn plans(observer: &mut Observer, report: &ClusterReport) -> String {
    observer.look(report, Instant::now()).plans.join("; ")
}

/// M-D8. A spare takes the place of a dead voter after the time that is set, in one step.
#[tokio::test]
async fn m_d8_a_spare_takes_the_place_of_a_dead_voter() {
    let mut report = with_spare();
    assert_eq!(watch(&mut observer(), &report, 20 * MINUTE), None, "all run");
    lose(&mut report, 3);
    let replace = Step::Change(MembersChange::Replace { old: 3, new: 4 });
    assert_eq!(watch(&mut observer(), &report, 20 * MINUTE), Some((601, replace)));
    assert!(plans(&mut observer(), &report).contains("spare 4 takes its place after 10m"));
    report.settings.replace_dead_after = None;
    assert_eq!(watch(&mut observer(), &report, 20 * MINUTE), None);
    assert!(plans(&mut observer(), &report).contains("replace_dead_after is never"));
}

/// M-D8. Without a spare that runs and has kept up, nothing changes: the cluster never shrinks.
#[tokio::test]
async fn m_d8_without_a_spare_a_dead_voter_stays() {
    let spoil: [fn(&mut MemberReport); 4] = [
        |spare| spare.info.spare = false,
        |spare| spare.error = Some("timed out".to_owned()),
        |spare| spare.progress = None,
        |spare| {
            spare.progress =
                Some(MemberProgress { match_index: 1, behind: 1, is_recovering: true });
        },
    ];
    for spoil in spoil {
        let mut report = with_spare();
        lose(&mut report, 3);
        spoil(member(&mut report, 4));
        assert_eq!(watch(&mut observer(), &report, 60 * MINUTE), None);
        assert!(plans(&mut observer(), &report).contains("there is no spare that runs"));
    }
}

/// A voter that comes back in between is not dead, and one that was away twice was not away for
/// the sum.
#[tokio::test]
async fn a_voter_that_comes_back_is_not_replaced() {
    let (whole, mut lost) = (with_spare(), with_spare());
    lose(&mut lost, 3);
    let (mut observer, began) = (observer(), Instant::now());
    for minute in 0..60 {
        let report = if minute % 10 == 9 { &whole } else { &lost };
        assert_eq!(observer.look(report, began + minute * MINUTE).step, None);
    }
}

/// M-L6. While a learner is on its way to be a voter, no second change is begun beside it.
#[tokio::test]
async fn m_l6_a_learner_on_its_way_comes_first() {
    let mut report = with_spare();
    lose(&mut report, 3);
    member(&mut report, 4).wants_vote = true;
    assert_eq!(watch(&mut observer(), &report, 20 * MINUTE), None);
    assert!(plans(&mut observer(), &report).contains("node 4 becomes a voter first"));
    // One that never starts does not keep the dead voter in place.
    report.members.push(MemberReport { id: 5, wants_vote: false, ..report.members[3].clone() });
    lose(&mut report, 4);
    member(&mut report, 4).info.spare = false;
    let replace = || Step::Change(MembersChange::Replace { old: 3, new: 5 });
    assert_eq!(watch(&mut observer(), &report, 20 * MINUTE), Some((601, replace())));
    // A spare that died on its way is called back first, or both would become voters.
    member(&mut report, 4).info.spare = true;
    let call_back = || Step::Change(MembersChange::Demote { id: 4 });
    assert_eq!(watch(&mut observer(), &report, 20 * MINUTE), Some((601, call_back())));
    report.settings.voters = 5;
    assert_eq!(watch(&mut observer(), &report, MINUTE), Some((1, call_back())));
    report.settings.voters = 0;
    member(&mut report, 4).wants_vote = false;
    assert_eq!(watch(&mut observer(), &report, 20 * MINUTE), Some((601, replace())));
}

/// M-L7. A learner that was never reached may still be restoring, or starting: it stays. Voters
/// are never removed.
#[tokio::test]
async fn m_l7_only_a_learner_that_was_reached_is_removed() {
    let (mut whole, mut report) = (with_spare(), with_spare());
    for report in [&mut whole, &mut report] {
        report.settings.remove_dead_after = Some(MINUTE);
        report.settings.replace_dead_after = None;
    }
    lose(&mut report, 3);
    lose(&mut report, 4);
    assert_eq!(watch(&mut observer(), &report, 60 * MINUTE), None, "node 4 was never reached");
    let mut observer = observer();
    assert_eq!(observer.look(&whole, observer.hands_over_at - LEADS_FOR_MIN).step, None);
    let remove = Step::Change(MembersChange::Remove { id: 4 });
    assert_eq!(watch(&mut observer, &report, 60 * MINUTE), Some((61, remove)));
}

/// Spares become voters while there are fewer voters than wanted; never beyond.
#[tokio::test]
async fn the_wanted_number_of_voters_is_filled_up() {
    use MemberRole::{Learner, Voter};
    let mut report = report(&[Voter, Learner, Learner]);
    assert_eq!(watch(&mut observer(), &report, MINUTE), None, "no number is wanted");
    report.settings.voters = 3;
    let promote = Step::Change(MembersChange::Promote { id: 2 });
    assert_eq!(watch(&mut observer(), &report, MINUTE), Some((1, promote)));
    member(&mut report, 2).wants_vote = true;
    assert_eq!(watch(&mut observer(), &report, MINUTE), None, "node 2 is on its way");
    report.settings.voters = 1;
    member(&mut report, 2).wants_vote = false;
    assert_eq!(watch(&mut observer(), &report, MINUTE), None);
    report.settings.voters = 3;
    lose(&mut report, 2);
    lose(&mut report, 3);
    assert!(plans(&mut observer(), &report).contains("1 voters, and 3 are wanted"));
}

/// The spare comes from the zone with the fewest voters, the dead one not counted.
#[tokio::test]
async fn a_spare_of_another_zone_is_taken_first() {
    use MemberRole::{Learner, Voter};
    let mut report = report(&[Voter, Voter, Voter, Learner, Learner]);
    for (member, zone) in report.members.iter_mut().zip(["a", "b", "c", "a", "c"]) {
        member.info.zone = zone.to_owned();
    }
    lose(&mut report, 3);
    let replace = Step::Change(MembersChange::Replace { old: 3, new: 5 });
    assert_eq!(watch(&mut observer(), &report, 20 * MINUTE), Some((601, replace)));
    lose(&mut report, 5);
    let replace = Step::Change(MembersChange::Replace { old: 3, new: 4 });
    assert_eq!(watch(&mut observer(), &report, 20 * MINUTE), Some((601, replace)));
    assert!(plans(&mut observer(), &with_spare()).is_empty());
    member(&mut report, 2).info.zone = "a".to_owned();
    assert!(plans(&mut observer(), &report).contains("zone a holds so many voters"));
}

/// A voter of a higher priority, or in the zone that is to lead, gets leadership once it was fit
/// for a while, and not before this leader has led for a minute.
#[tokio::test]
async fn leadership_goes_to_the_preferred_voter() {
    let mut report = with_spare();
    member(&mut report, 2).info.priority = Some(51);
    assert_eq!(watch(&mut observer(), &report, 5 * MINUTE), Some((60, Step::HandOver(2))));
    report.settings.leader_zone = "b".to_owned();
    member(&mut report, 3).info.zone = "b".to_owned();
    assert_eq!(watch(&mut observer(), &report, 5 * MINUTE), Some((60, Step::HandOver(3))));
    member(&mut report, 1).info.zone = "b".to_owned();
    assert_eq!(watch(&mut observer(), &report, 5 * MINUTE), None, "node 1 is in zone b as well");
    report.settings.leader_zone.clear();
    let unfit: [fn(&mut MemberReport); 4] = [
        |voter| voter.error = Some("timed out".to_owned()),
        |voter| voter.info.draining = true,
        |voter| voter.info.priority = Some(0),
        |voter| {
            voter.progress =
                Some(MemberProgress { match_index: 0, behind: 10_001, is_recovering: false });
        },
    ];
    for spoil in unfit {
        let mut report = report.clone();
        spoil(member(&mut report, 2));
        assert_eq!(watch(&mut observer(), &report, 5 * MINUTE), None);
    }
    // One that fails again and again is not fit for long enough.
    let (mut observer, began) = (observer(), Instant::now());
    let mut lost = report.clone();
    lose(&mut lost, 2);
    for second in 0..600 {
        let report = if second % 9 == 0 { &lost } else { &report };
        assert_eq!(observer.look(report, began + Duration::from_secs(second)).step, None);
    }
}
