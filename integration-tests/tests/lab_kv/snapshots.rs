//! Lab 3B (4B in 2024, 4C in 2025): the service compacts its log at 1000 bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kv_service::sim::for_seeds;
use raft_core::transport::channel::Traffic;
use tokio::time::sleep;

use crate::book::Book;
use crate::lab::{ELECTION, Lab, check_raft_state};
use crate::replicated::speed;

const SNAPSHOT_BYTES_MAX: u64 = 500;

/// A server that was away while the log was compacted is given a snapshot.
#[test]
fn snapshot_rpc_3b() {
    for_seeds(0..3, async |seed| {
        let lab = Lab::new(1, 3).snapshots();
        let service = lab.service(seed).await;
        let book = Book::new(&service);
        let frames = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&frames);
        service.network.peers().listen(move |_, to, traffic| {
            if to == 3 && matches!(traffic, Traffic::Frame(_)) {
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        let clerk = book.clerk(&service, 1);
        clerk.put("a", "A").await;
        assert_eq!(clerk.value("a").await, "A");

        service.partition(&[&[1, 2], &[3]]);
        service.reach_only(2, &[1, 2]);
        let clerk = book.clerk(&service, 2);
        for number in 0..50 {
            clerk.put(&number.to_string(), &number.to_string()).await;
        }
        sleep(ELECTION).await;
        clerk.put("b", "B").await;
        check_raft_state(&service, lab.max_raft_state);
        assert_eq!(frames.load(Ordering::Relaxed), 0);

        // The server that was away is needed for a majority.
        service.heal();
        service.partition(&[&[1, 3], &[2]]);
        service.reach_only(3, &[1, 3]);
        let clerk = book.clerk(&service, 3);
        clerk.put("c", "C").await;
        clerk.put("d", "D").await;
        for (key, value) in [("a", "A"), ("b", "B"), ("1", "1"), ("49", "49")] {
            assert_eq!(clerk.value(key).await, value);
        }
        assert!(frames.load(Ordering::Relaxed) > 0, "server 3 was given a snapshot");

        service.heal();
        let clerk = book.clerk(&service, 4);
        clerk.put("e", "E").await;
        for (key, value) in [("c", "C"), ("e", "E"), ("1", "1")] {
            assert_eq!(clerk.value(key).await, value);
        }
        book.check();
        assert_eq!(service.converged().await.len(), 55);
    });
}

/// The state that is kept for a client, beside its data, is small.
#[test]
fn snapshot_size_3b() {
    for_seeds(0..1, async |seed| {
        let lab = Lab::new(1, 3).snapshots();
        let service = lab.service(seed).await;
        let book = Book::new(&service);
        let clerk = book.clerk(&service, 1);
        let started = tokio::time::Instant::now();
        for round in 0..200 {
            for value in [format!("0 of {round},"), format!("1 of {round},")] {
                clerk.put("x", &value).await;
                assert_eq!(clerk.value("x").await, value);
            }
        }
        assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
        check_raft_state(&service, lab.max_raft_state);
        for id in service.ids() {
            let bytes = service.disk(id).snapshot_bytes().expect("the log was compacted");
            assert!(bytes <= SNAPSHOT_BYTES_MAX, "the snapshot of {id} has {bytes} bytes");
        }
        book.check();
    });
}

#[test]
fn speed_3b() {
    speed(Lab::new(1, 3).snapshots());
}

#[test]
fn snapshot_recover_3b() {
    Lab::new(1, 5).crash().snapshots().run();
}

#[test]
fn snapshot_recover_many_clients_3b() {
    Lab::new(20, 5).crash().snapshots().run();
}

#[test]
fn snapshot_unreliable_3b() {
    Lab::new(5, 5).unreliable().snapshots().run();
}

#[test]
fn snapshot_unreliable_recover_3b() {
    Lab::new(5, 5).unreliable().crash().snapshots().run();
}

#[test]
fn snapshot_unreliable_recover_concurrent_partition_3b() {
    Lab::new(5, 5).unreliable().crash().partitions().snapshots().run();
}

#[test]
fn snapshot_unreliable_recover_concurrent_partition_linearizable_3b() {
    Lab::new(15, 7).unreliable().crash().partitions().snapshots().random_keys().run();
}
