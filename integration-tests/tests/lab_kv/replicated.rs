//! Lab 3A (4A in 2024, 4B in 2025): the replicated service without snapshots.

use std::time::Duration;

use kv_service::sim::{for_seeds, run};
use tokio::time::Instant;

use crate::book::{Book, Clerk};
use crate::lab::Lab;

/// A third of a heartbeat: a service that waits for heartbeats to commit is too slow.
pub(crate) const OPERATION_TIME_MAX: Duration = Duration::from_micros(33_333);

#[test]
fn basic_3a() {
    Lab::new(1, 5).run();
}

#[test]
fn speed_3a() {
    speed(Lab::new(1, 3));
}

#[test]
fn concurrent_3a() {
    Lab::new(5, 5).run();
}

#[test]
fn unreliable_3a() {
    Lab::new(5, 5).unreliable().run();
}

#[test]
fn unreliable_one_key_3a() {
    for_seeds(0..3, async |seed| {
        let service = Lab::new(5, 3).unreliable().service(seed).await;
        let book = Book::new(&service);
        book.clerk(&service, 1).put("k", "start,").await;
        let appending: Vec<_> = (0..5)
            .map(|client| {
                let clerk = book.clerk(&service, client + 1);
                tokio::spawn(async move {
                    for number in 0..10 {
                        clerk.append("k", &format!("x {client} {number} y,")).await;
                    }
                })
            })
            .collect();
        for appending in appending {
            appending.await.expect("every append is answered");
        }
        let value = book.clerk(&service, 1).value("k").await;
        let appended: Vec<&str> = value.split_terminator(',').skip(1).collect();
        assert_eq!(appended.len(), 50, "each once: {value}");
        for client in 0..5 {
            let own = appended.iter().filter(|text| text.starts_with(&format!("x {client} ")));
            let expected: Vec<String> = (0..10).map(|n| format!("x {client} {n} y")).collect();
            assert!(own.eq(&expected), "each once, in order: {value}");
        }
        book.check();
        service.converged().await;
    });
}

#[test]
fn many_partitions_one_client_3a() {
    Lab::new(1, 5).partitions().run();
}

#[test]
fn many_partitions_many_clients_3a() {
    Lab::new(5, 5).partitions().run();
}

#[test]
fn persist_one_client_3a() {
    Lab::new(1, 5).crash().run();
}

#[test]
fn persist_concurrent_3a() {
    Lab::new(5, 5).crash().run();
}

#[test]
fn persist_concurrent_unreliable_3a() {
    Lab::new(5, 5).unreliable().crash().run();
}

#[test]
fn persist_partition_3a() {
    Lab::new(5, 5).crash().partitions().run();
}

#[test]
fn persist_partition_unreliable_3a() {
    Lab::new(5, 5).unreliable().crash().partitions().run();
}

/// All faults at once.
const LINEARIZABLE: Lab = Lab::new(15, 7).unreliable().crash().partitions().random_keys();

#[test]
fn persist_partition_unreliable_linearizable_3a() {
    LINEARIZABLE.run();
}

/// A seed identifies a failing run only if equal seeds give equal runs.
#[test]
fn equal_seeds_give_equal_traces() {
    let first = run(0, async |seed| LINEARIZABLE.scenario(seed).await);
    assert!(first.event_count > 10_000, "{first:?}");
    assert_eq!(first, run(0, async |seed| LINEARIZABLE.scenario(seed).await));
    assert_ne!(first, run(1, async |seed| LINEARIZABLE.scenario(seed).await));
}

/// One client, a thousand appends, one after the other.
pub(crate) fn speed(lab: Lab) {
    for_seeds(0..1, async |seed| {
        let service = lab.service(seed).await;
        let book = Book::new(&service);
        let clerk = book.clerk(&service, 1);
        assert_eq!(clerk.get("x").await, None);
        let started = Instant::now();
        append_all(&clerk).await;
        let took = started.elapsed();
        assert!(took <= 1000 * OPERATION_TIME_MAX, "{:?} for each", took / 1000);
        let expected: String = (0..1000).map(|number| format!("x 0 {number} y")).collect();
        assert_eq!(clerk.value("x").await, expected);
        book.check();
    });
}

async fn append_all(clerk: &Clerk) {
    for number in 0..1000 {
        clerk.append("x", &format!("x 0 {number} y")).await;
    }
}
