//! `OnePartition`: a majority gets on, a minority does not, and operations begun in the minority
//! end after the partition.

use std::time::Duration;

use kv_service::sim::{Service, for_seeds};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::book::Book;
use crate::lab::{ELECTION, Lab};

const SECOND: Duration = Duration::from_secs(1);
/// Names of clients, which are also their places in the network.
const MAJORITY: u64 = 1;
const WRITER: u64 = 2;
const READER: u64 = 3;

#[test]
fn one_partition_3a() {
    one_partition(Lab::new(3, 5));
}

/// The lab of 2025 is on an unreliable network.
#[test]
fn one_partition_4b() {
    one_partition(Lab::new(3, 5).unreliable());
}

fn one_partition(lab: Lab) {
    for_seeds(0..3, async |seed| {
        let service = lab.service(seed).await;
        let book = Book::new(&service);
        book.clerk(&service, MAJORITY).put("1", "13").await;

        // The leader is one of the two nodes of the minority.
        let leader = service.leader().await;
        let (minority, majority) = split(&service, leader);
        service.partition(&[&minority, &majority]);
        service.reach_only(MAJORITY, &majority);
        let clerk = book.clerk(&service, MAJORITY);
        clerk.put("1", "14").await;
        assert_eq!(clerk.value("1").await, "14", "the majority gets on");

        for name in [WRITER, READER] {
            service.reach_only(name, &minority);
        }
        let (writer, reader) = (book.clerk(&service, WRITER), book.clerk(&service, READER));
        let mut put = tokio::spawn(async move { writer.put("1", "15").await });
        let mut get = tokio::spawn(async move { reader.value("1").await });
        let early = async {
            tokio::select! {
                biased;
                put = &mut put => format!("the put: {put:?}"),
                get = &mut get => format!("the get: {get:?}"),
            }
        };
        if let Ok(early) = timeout(SECOND, early).await {
            panic!("the minority answered {early}");
        }
        assert_eq!(clerk.value("1").await, "14");
        clerk.put("1", "16").await;
        assert_eq!(clerk.value("1").await, "16", "the majority goes on");

        service.heal();
        sleep(ELECTION).await;
        returns(put, "put").await;
        let seen = returns(get, "get").await;
        // The read was pending all the time, so it may return any value that was stored since.
        assert!(["14", "15", "16"].contains(&seen.as_str()), "{seen}");
        assert_eq!(clerk.value("1").await, "15", "the pending put came last");
        book.check();
        service.converged().await;
    });
}

async fn returns<T>(pending: JoinHandle<T>, what: &str) -> T {
    let returned = timeout(3 * SECOND, pending).await;
    let returned = returned.unwrap_or_else(|_| panic!("the pending {what} does not return"));
    returned.expect("it is answered")
}

/// The leader and one more node, and the rest.
fn split(service: &Service, leader: u64) -> (Vec<u64>, Vec<u64>) {
    let mut others: Vec<u64> = service.ids().filter(|id| *id != leader).collect();
    let majority = others.split_off(1);
    others.push(leader);
    (others, majority)
}
