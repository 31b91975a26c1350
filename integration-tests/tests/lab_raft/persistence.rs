//! Lab 2C: agreed commands survive crashes, partitions and a bad network.
//!
//! Where many random faults happen, disks and links have latency, so that the faults hit proposals
//! under way; the outcomes show that they did.

use std::ops::Range;

use bytes::Bytes;
use kv_service::sim::LinkFaults;
use tokio::time::{Instant, sleep, timeout};

use super::harness::{Clients, Lab, Links, MS, Retry, SECOND, nodes};

const SEEDS: Range<u64> = 0..20;
/// Seeds of the long tests.
const FEW_SEEDS: Range<u64> = 0..4;

#[test]
fn persist1() {
    nodes(3).run(SEEDS, async |lab: &mut Lab| {
        lab.one(lab.command(), 3, Retry::Yes).await;
        lab.restart_all().await;
        lab.one(lab.command(), 3, Retry::Yes).await;

        let leader = lab.check_one_leader().await;
        lab.restart(leader).await;
        lab.one(lab.command(), 3, Retry::Yes).await;

        let leader = lab.check_one_leader().await;
        lab.disconnect(&[leader]);
        let number = lab.one(lab.command(), 2, Retry::Yes).await;
        lab.restart(leader).await;
        lab.connect(&[leader]);
        lab.wait(number, 3).await;

        let leader = lab.check_one_leader().await;
        let victim = lab.after(leader, 1);
        lab.crash(victim);
        lab.one(lab.command(), 2, Retry::Yes).await;
        lab.start(victim).await;
        lab.one(lab.command(), 3, Retry::Yes).await;
    });
}

/// Three nodes can talk in the end. Two of them come back from a crash with an old log, so only the
/// third can lead.
#[test]
fn persist2() {
    nodes(5).run(SEEDS, async |lab: &mut Lab| {
        for _ in 0..5 {
            lab.one(lab.command(), 5, Retry::Yes).await;
            let leader = lab.check_one_leader().await;
            let [next1, next2, next3, next4] =
                [1, 2, 3, 4].map(|distance| lab.after(leader, distance));
            lab.disconnect(&[next1, next2]);
            lab.one(lab.command(), 3, Retry::Yes).await;
            lab.disconnect(&[leader, next3, next4]);
            lab.connect(&[next1, next2]);
            lab.restart(next1).await;
            lab.restart(next2).await;
            sleep(SECOND).await;
            lab.check_no_leader();

            lab.connect(&[next3]);
            lab.restart(next3).await;
            assert_eq!(lab.check_one_leader().await, next3, "the others lack what was agreed on");
            lab.one(lab.command(), 3, Retry::Yes).await;
            lab.connect(&[next4, leader]);
        }
        lab.one(lab.command(), 5, Retry::Yes).await;
    });
}

/// The second command is on the disks of two nodes that crash; one of them and a third go on.
#[test]
fn persist3() {
    nodes(3).run(SEEDS, async |lab: &mut Lab| {
        lab.one(lab.command(), 3, Retry::Yes).await;
        let leader = lab.check_one_leader().await;
        let [next1, next2] = [1, 2].map(|distance| lab.after(leader, distance));
        lab.disconnect(&[next2]);
        assert_eq!(lab.one(lab.command(), 2, Retry::Yes).await, 2);
        lab.crash(leader);
        lab.crash(next1);
        lab.connect(&[next2]);
        lab.start(leader).await;
        let number = lab.one(lab.command(), 2, Retry::Yes).await;
        assert_eq!(number, 3, "the second is still the second");
        lab.start(next1).await;
        lab.one(lab.command(), 3, Retry::Yes).await;
    });
}

/// Disks and links with enough latency that a node may crash, or be isolated, at any stage of a
/// proposal.
fn takes_time(lab: &Lab) {
    lab.cluster.slow_disks(2 * MS);
    lab.cluster.network.set_default_faults(LinkFaults::none().delaying(MS, 3 * MS));
}

/// Leaders crash just after a proposal, again and again. A leader that counted copies of an older
/// term's entry as agreement would have it replaced after it was applied (dissertation, figure
/// 3.7).
pub(crate) async fn leaders_crash(lab: &mut Lab) {
    takes_time(lab);
    lab.one(lab.command(), 1, Retry::Yes).await;
    for _ in 0..1_000 {
        let leaders = lab.propose_everywhere(&lab.command());
        match lab.strikes(0.1) {
            true => lab.sleep_up_to(499 * MS).await,
            false => lab.sleep_up_to(12 * MS).await,
        }
        if let Some((leader, _)) = leaders.last() {
            lab.crash(*leader);
        }
        let down: Vec<_> = lab.cluster.ids().filter(|id| !lab.is_up(*id)).collect();
        if down.len() > 2 {
            lab.start(down[lab.draw(0..=down.len() as u64 - 1) as usize]).await;
        }
    }
    for id in lab.cluster.ids() {
        if !lab.is_up(id) {
            lab.start(id).await;
        }
    }
    lab.one(lab.command(), 5, Retry::Yes).await;
}

#[test]
fn figure8() {
    nodes(5).run(FEW_SEEDS, async |lab: &mut Lab| {
        leaders_crash(lab).await;
        let outcomes = lab.end().await;
        assert!(outcomes.done_count >= 10, "{outcomes:?}");
        assert!(outcomes.unknown_count >= 10, "crashes hit what was under way: {outcomes:?}");
    });
}

#[test]
fn unreliable_agree() {
    nodes(5).with(Links::Unreliable).run(FEW_SEEDS, async |lab: &mut Lab| {
        for _ in 0..49 {
            let one = || lab.one(lab.command(), 1, Retry::Yes);
            tokio::join!(one(), one(), one(), one(), one());
        }
        lab.set_links(Links::Reliable);
        let number = lab.one(lab.command(), 5, Retry::Yes).await;
        assert!(number >= 246, "{number}");
    });
}

/// Leaders are isolated at any time, on lossy links; later, responses of two seconds ago arrive as
/// well.
pub(crate) async fn leaders_are_cut_off(lab: &mut Lab) {
    lab.one(lab.command(), 1, Retry::Yes).await;
    for iteration in 0..1_000 {
        if iteration == 200 {
            lab.set_links(Links::LongReordering);
        }
        let leaders = lab.propose_everywhere(&lab.command());
        match lab.strikes(0.1) {
            true => lab.sleep_up_to(499 * MS).await,
            false => lab.sleep_up_to(12 * MS).await,
        }
        if let Some((leader, _)) = leaders.last()
            && lab.strikes(0.5)
        {
            lab.disconnect(&[*leader]);
        }
        if lab.connected().len() < 3 {
            let id = lab.draw(1..=5);
            lab.connect(&[id]);
        }
    }
    let all: Vec<_> = lab.cluster.ids().collect();
    lab.connect(&all);
    lab.one(lab.command(), 5, Retry::Yes).await;
}

#[test]
fn figure8_unreliable() {
    nodes(5).with(Links::Unreliable).run(FEW_SEEDS, async |lab: &mut Lab| {
        leaders_are_cut_off(lab).await;
        let outcomes = lab.end().await;
        assert!(outcomes.unknown_count >= 20, "cuts hit what was under way: {outcomes:?}");
    });
}

/// Clients propose to the current leader while nodes are isolated, crash and come back.
pub(crate) async fn churn(lab: &mut Lab) {
    // The cluster is founded first: all its members must meet once.
    lab.cluster.leader().await;
    lab.cluster.slow_disks(4 * MS);
    let until = Instant::now() + 20 * 700 * MS + SECOND;
    let clients: Vec<_> =
        (0..3).map(|number| tokio::spawn(client(lab.clients(), number, until))).collect();
    for _ in 0..20 {
        if lab.strikes(0.2) {
            let id = lab.draw(1..=5);
            lab.disconnect(&[id]);
        }
        if lab.strikes(0.5) {
            let id = lab.draw(1..=5);
            if !lab.is_up(id) {
                lab.start(id).await;
            }
            lab.connect(&[id]);
        }
        if lab.strikes(0.2) {
            let id = lab.draw(1..=5);
            if lab.is_up(id) {
                lab.crash(id);
            }
        }
        sleep(700 * MS).await;
    }
    sleep(SECOND).await;
    lab.set_links(Links::Reliable);
    for id in lab.cluster.ids() {
        if !lab.is_up(id) {
            lab.start(id).await;
        }
        lab.connect(&[id]);
    }
    let mut seen = Vec::new();
    for client in clients {
        seen.extend(client.await.unwrap());
    }
    sleep(SECOND).await;
    let last = lab.one(lab.command(), 5, Retry::Yes).await;
    assert!(seen.len() >= 10, "clients got on: {}", seen.len());
    for (number, command) in seen {
        assert!(number <= last);
        assert_eq!(lab.cluster.command(number), Some(command), "{number} was acknowledged");
    }
}

/// Returns the commands that it observed as agreed on, with their numbers.
async fn client(clients: Clients, client: u64, until: Instant) -> Vec<(u64, Bytes)> {
    let mut seen = Vec::new();
    let mut count = 0;
    while Instant::now() < until {
        count += 1;
        let command = Bytes::from(format!("client {client}, {count}"));
        let started = (1..=5).filter_map(|id| clients.propose(id, command.clone())).last();
        let Some(started) = started else {
            sleep((79 + 17 * client as u32) * MS).await;
            continue;
        };
        // The labs' sum of 10, 20, 50, 100 and 200 ms.
        if let Ok(Ok(number)) = timeout(380 * MS, started.answer()).await {
            seen.push((number, command));
        }
        // On a network without latency an agreement takes no time at all.
        sleep(MS).await;
    }
    seen
}

#[test]
fn reliable_churn() {
    nodes(5).run(FEW_SEEDS, async |lab: &mut Lab| {
        takes_time(lab);
        churn(lab).await;
    });
}

#[test]
fn unreliable_churn() {
    nodes(5).with(Links::Unreliable).run(FEW_SEEDS, churn);
}
