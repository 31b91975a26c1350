//! Lab 2A: leaders are elected, and replaced.

use std::ops::Range;

use tokio::time::sleep;

use super::harness::{Lab, MS, SECOND, nodes};

const SEEDS: Range<u64> = 0..20;

/// A minute without failures changes neither leader nor term. (In the labs: two seconds, and a
/// warning.)
#[test]
fn initial_election() {
    nodes(3).run(SEEDS, async |lab: &mut Lab| {
        let leader = lab.check_one_leader().await;
        sleep(50 * MS).await;
        let term = lab.check_terms();
        assert!(term >= 1);
        for _ in 0..30 {
            sleep(2 * SECOND).await;
            assert_eq!(lab.check_terms(), term, "nothing had failed");
        }
        assert_eq!(lab.check_one_leader().await, leader);
    });
}

#[test]
fn re_election() {
    nodes(3).run(SEEDS, async |lab: &mut Lab| {
        let leader1 = lab.check_one_leader().await;
        lab.disconnect(&[leader1]);
        let leader2 = lab.check_one_leader().await;
        let term = lab.term(leader2);

        // An old leader that comes back disturbs no other node.
        lab.connect(&[leader1]);
        assert_eq!(lab.check_one_leader().await, leader2);
        assert_eq!(lab.check_terms(), term);

        // No node leads without a quorum, on either side.
        let rest = lab.after(leader2, 1);
        lab.disconnect(&[leader2, rest]);
        sleep(2 * SECOND).await;
        lab.check_no_leader();
        assert!(!lab.leads(leader2), "it has noticed that nobody hears it");

        lab.connect(&[rest]);
        let leader3 = lab.check_one_leader().await;
        lab.connect(&[leader2]);
        assert_eq!(lab.check_one_leader().await, leader3);
    });
}

#[test]
fn many_elections() {
    nodes(7).run(SEEDS, async |lab: &mut Lab| {
        lab.check_one_leader().await;
        let mut changes_count = 0;
        for iteration in 0..9 {
            let before = lab.check_one_leader().await;
            let mut cut = [(); 3].map(|()| lab.draw(1..=7));
            if iteration == 0 {
                // At least once: one of 600 seeds never drew the leader.
                cut[0] = before;
            }
            lab.disconnect(&cut);
            let leader = lab.check_one_leader().await;
            assert!(!cut.contains(&leader));
            changes_count += usize::from(leader != before);
            lab.connect(&cut);
        }
        lab.check_one_leader().await;
        assert!(changes_count > 0, "the leader was cut off");
    });
}
