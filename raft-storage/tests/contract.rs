//! Both backends keep the contract of the port.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Memory, RocksDisk};
use raft_core::testing::storage::{all, random_operations};

#[tokio::test]
async fn memory_keeps_the_contract() {
    all(Memory::default).await;
}

#[tokio::test]
async fn rocksdb_keeps_the_contract() {
    all(RocksDisk::empty).await;
}

/// The disk in memory is cheap, so its random walks are longer.
#[tokio::test]
async fn memory_keeps_the_contract_on_long_walks() {
    for seed in 100..116 {
        random_operations(&Memory::default(), seed, 300).await;
    }
}
