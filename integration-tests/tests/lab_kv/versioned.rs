//! The labs of 2025, where a put names the version it replaces: a compare-and-swap here. Where a
//! client of the labs gets `ErrMaybe`, a client of ours that gave up gets an unknown outcome.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kv_service::Outcome;
use kv_service::sim::for_seeds;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::{Instant, sleep};

use crate::book::{Book, Clerk};
use crate::lab::{Lab, Write};
use crate::replicated::OPERATION_TIME_MAX;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn reliable_put() {
    for_seeds(0..1, async |seed| {
        let service = Lab::new(1, 3).service(seed).await;
        let book = Book::new(&service);
        let clerk = book.clerk(&service, 1);
        let created = clerk.try_put("k", "first", 0).await.unwrap();
        assert_eq!((created.changed, created.version), (true, 1));
        let record = clerk.get("k").await.expect("just created");
        assert_eq!((&record.value[..], record.version), (&b"first"[..], 1));
        let again = clerk.try_put("k", "second", 0).await.unwrap();
        assert_eq!((again.changed, again.version), (false, 1), "it exists");
        let missing = clerk.try_put("y", "value", 1).await.unwrap();
        assert_eq!((missing.changed, missing.version), (false, 0), "there is no such key");
        assert_eq!(clerk.get("y").await, None);
        book.check();
    });
}

#[test]
fn put_concurrent_reliable() {
    for_seeds(0..1, async |seed| {
        let service = Lab::new(10, 3).service(seed).await;
        let book = Book::new(&service);
        let until = Instant::now() + SECOND;
        let putting: Vec<_> = (1..=10)
            .map(|name| {
                let clerk = book.clerk(&service, name);
                tokio::spawn(async move { put_until(&clerk, until).await })
            })
            .collect();
        let mut count = 0;
        for putting in putting {
            count += putting.await.expect("puts are answered");
        }
        let record = book.clerk(&service, 1).get("k").await.expect("somebody was first");
        assert_eq!(record.version, count, "one version for each success");
        assert!(count >= 10, "{count} puts in a second");
        book.check();
    });
}

async fn put_until(clerk: &Clerk, until: Instant) -> u64 {
    let mut count = 0;
    for number in 0.. {
        if Instant::now() >= until {
            break;
        }
        let version = clerk.get("k").await.map_or(0, |record| record.version);
        let value = format!("{number} of {},", clerk.name);
        let put = clerk.try_put("k", &value, version).await.expect("it is answered");
        count += u64::from(put.changed);
    }
    count
}

/// Clients give up early, and a later read shows the outcome of their put.
#[test]
fn unreliable_net() {
    for_seeds(0..3, async |seed| {
        let service = Lab::new(1, 3).unreliable().service(seed).await;
        let book = Book::new(&service);
        let clerk = book.clerk(&service, 1);
        let mut maybe_count = 0;
        for round in 0..100 {
            let value = format!("round {round},");
            let hasty = clerk.with_deadline(Duration::from_millis(60));
            loop {
                match hasty.try_put("k", &value, round).await {
                    Ok(put) => {
                        // Or an earlier attempt of this loop had its effect.
                        assert_eq!(put.version, round + 1);
                        break;
                    }
                    Err(error) => {
                        maybe_count += u32::from(error.outcome == Outcome::Unknown);
                    }
                }
            }
            let again = clerk.try_put("k", "never", round).await.unwrap();
            assert_eq!((again.changed, again.version), (false, round + 1), "once for each round");
            let record = clerk.get("k").await.expect("it is there");
            assert_eq!((record.value, record.version), (value.into(), round + 1));
        }
        assert!(maybe_count > 0, "no outcome was unknown: the network was too good");
        book.check();
    });
}

#[test]
fn one_client_reliable_lock() {
    locks(Lab::new(1, 3));
}

#[test]
fn many_clients_reliable_lock() {
    locks(Lab::new(10, 3));
}

#[test]
fn one_client_unreliable_lock() {
    locks(Lab::new(1, 3).unreliable());
}

#[test]
fn many_clients_unreliable_lock() {
    locks(Lab::new(10, 3).unreliable());
}

/// Between acquiring and releasing, no other client is inside.
fn locks(lab: Lab) {
    for_seeds(0..1, async |seed| {
        let service = lab.service(seed).await;
        let book = Book::new(&service);
        let inside = Arc::new(AtomicBool::new(false));
        let until = Instant::now() + 2 * SECOND;
        let working: Vec<_> = (1..=lab.client_count)
            .map(|name| {
                let (clerk, inside) = (book.clerk(&service, name), Arc::clone(&inside));
                let mut chance = StdRng::seed_from_u64(seed ^ name);
                tokio::spawn(async move {
                    let mut count = 0;
                    while Instant::now() < until {
                        acquire(&clerk, count, &mut chance).await;
                        assert!(!inside.swap(true, Ordering::Relaxed), "two hold the lock");
                        sleep(Duration::from_millis(chance.random_range(1..10))).await;
                        assert!(inside.swap(false, Ordering::Relaxed), "the lock was taken away");
                        release(&clerk, count).await;
                        count += 1;
                    }
                    count
                })
            })
            .collect();
        let mut holders = 0;
        for working in working {
            let count = working.await.expect("locks are acquired and released");
            holders += u64::from(count > 0);
        }
        // This lock is not fair, but one client must not keep it for itself.
        assert!(2 * holders >= lab.client_count, "only {holders} of {} got it", lab.client_count);
        book.check();
    });
}

/// Acquires the lock. A client that gave up with an unknown outcome reads whether it holds the
/// lock.
async fn acquire(clerk: &Clerk, count: u64, chance: &mut StdRng) {
    let own = format!("held by {}, {count},", clerk.name);
    let hasty = clerk.with_deadline(Duration::from_millis(300));
    loop {
        let record = clerk.get("l").await;
        let (holder, version) = record.map_or_else(Default::default, |record| {
            (String::from_utf8_lossy(&record.value).into_owned(), record.version)
        });
        if holder == own {
            return;
        }
        if holder.is_empty() || holder.starts_with("free") {
            match hasty.try_put("l", &own, version).await {
                Ok(put) if put.changed => return,
                Ok(_) | Err(_) => {}
            }
        }
        sleep(Duration::from_millis(chance.random_range(1..20))).await;
    }
}

async fn release(clerk: &Clerk, count: u64) {
    let version = clerk.get("l").await.expect("it is held").version;
    let free = format!("free after {}, {count},", clerk.name);
    let put = clerk.try_put("l", &free, version).await.expect("it is answered");
    assert!(put.changed, "only the holder touches it");
}

#[test]
fn basic_4b() {
    Lab::new(1, 5).versioned().run();
}

#[test]
fn concurrent_4b() {
    Lab::new(5, 5).versioned().random_keys().run();
}

#[test]
fn persist_partition_unreliable_4b() {
    let lab = Lab::new(5, 5).versioned().random_keys();
    lab.unreliable().crash().partitions().run();
}

#[test]
fn snapshot_unreliable_recover_concurrent_partition_4c() {
    let lab = Lab::new(5, 5).versioned().random_keys().snapshots();
    lab.unreliable().crash().partitions().run();
}

#[test]
fn speed_4b() {
    speed(Lab::new(1, 3).versioned());
}

#[test]
fn speed_4c() {
    speed(Lab::new(1, 3).versioned().snapshots());
}

fn speed(lab: Lab) {
    assert_eq!(lab.write, Write::VersionedPut);
    for_seeds(0..1, async |seed| {
        let service = lab.service(seed).await;
        let book = Book::new(&service);
        let clerk = book.clerk(&service, 1);
        let started = Instant::now();
        for version in 0..1000 {
            let put = clerk.try_put("k", &format!("{version},"), version).await.unwrap();
            assert_eq!((put.changed, put.version), (true, version + 1));
        }
        let took = started.elapsed();
        assert!(took <= 1000 * OPERATION_TIME_MAX, "{:?} for each", took / 1000);
        book.check();
    });
}
