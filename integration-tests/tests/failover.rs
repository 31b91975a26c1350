//! How soon clients go on after a leader dies silently, with the default timeouts.

use std::sync::Arc;
use std::time::Duration;

use kv_service::net::StreamFaults;
use kv_service::sim::{LinkFaults, Service, for_seeds};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

const MS: Duration = Duration::from_millis(1);

/// A client notices after half a second. The others elect a new leader after 300 to 600 ms, or 60
/// to 360 ms later when votes were split; a pause of the client and a few round trips come on top.
const GAP_MAX: Duration = Duration::from_millis(1_000);
/// Half of the seeds need no second election.
const GAP_MEDIAN_MAX: Duration = Duration::from_millis(650);

#[test]
fn clients_of_a_leader_that_dies_go_on_within_a_second() {
    let gaps = std::cell::RefCell::new(Vec::new());
    for_seeds(0..24, async |seed| {
        let mut service = Service::new(seed, 3).await;
        service.network.peers().set_default_faults(LinkFaults::none().delaying(MS / 10, MS));
        service
            .network
            .set_stream_faults(StreamFaults { delay_max: MS, ..StreamFaults::default() });
        let leader = service.leader().await;
        let dead = Arc::new(Notify::new());
        let clients: Vec<_> = (1..=4)
            .map(|name| {
                let (client, dead) = (service.client(name), Arc::clone(&dead));
                tokio::spawn(async move {
                    let mut longest = Duration::ZERO;
                    let end = Instant::now() + Duration::from_secs(2);
                    let mut count = 0;
                    while Instant::now() < end {
                        let asked_at = Instant::now();
                        client
                            .put(format!("key {name}"), format!("{count}"))
                            .await
                            .expect("a majority runs");
                        longest = longest.max(asked_at.elapsed());
                        count += 1;
                        if count == 100 {
                            dead.notify_one();
                        }
                    }
                    longest
                })
            })
            .collect();
        dead.notified().await;
        sleep(10 * MS).await;
        service.crash(leader);
        for client in clients {
            let gap = client.await.expect("puts are answered");
            assert!(gap <= GAP_MAX, "seed {seed}: a client waited for {gap:?}");
            gaps.borrow_mut().push(gap);
        }
    });
    let mut gaps = gaps.into_inner();
    gaps.sort();
    let median = gaps[gaps.len() / 2];
    println!("median {median:?}, longest {:?}", gaps[gaps.len() - 1]);
    assert!(median <= GAP_MEDIAN_MAX, "the median is {median:?}");
}
