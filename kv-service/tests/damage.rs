//! A node whose state on disk is damaged.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kv_service::config::ByteSize;
use kv_service::{Client, LocalNetwork, Network, Server, ServerConfig, Store};

const KEY_COUNT: usize = 4000;

async fn start(data_dir: &Path) -> Server {
    let mut config = ServerConfig::in_process(1, 1..=1);
    config.data_dir = data_dir.to_owned();
    // The state is written into tables, but so few that none are merged before they are read.
    config.max_raft_state = ByteSize(1 << 20);
    if !data_dir.exists() {
        Server::init(&config).unwrap();
    }
    let network = Network::Channel(LocalNetwork::new(1));
    Server::start_with(config, Store::RocksDb, network).await.unwrap()
}

fn tables_below(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| match path.is_dir() {
            true => tables_below(&path),
            false => vec![path],
        })
        .filter(|path| path.extension().is_some_and(|extension| extension == "sst"))
        .collect()
}

/// A value that does not compress, so that most bytes of a table are values.
fn value_of(number: usize) -> Vec<u8> {
    let mut state = number as u64;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..500).map(|_| next()).collect()
}

async fn read_all(client: &Client) -> bool {
    for number in 0..KEY_COUNT {
        if client.get(format!("key {number}")).await.is_err() {
            return false;
        }
    }
    true
}

/// S28. A query that finds a damaged block stops the node with the reason. Otherwise the node would
/// go on leading, and fail each read.
#[tokio::test]
async fn a_query_that_finds_damage_stops_the_node() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("node");
    let server = start(&data_dir).await;
    for number in 0..KEY_COUNT {
        server.client().put(format!("key {number}"), value_of(number)).await.unwrap();
    }
    server.shutdown().await;
    let tables = tables_below(&data_dir.join("state"));
    let largest = tables.iter().max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    let mut bytes = fs::read(largest).unwrap();
    println!("damages {} of {} tables, {} bytes", largest.display(), tables.len(), bytes.len());
    // Values come first; the part that is needed to open the table stays as it is.
    let place = bytes.len() / 4;
    bytes[place..place + 64].fill(0xA5);
    fs::write(largest, bytes).unwrap();

    let server = start(&data_dir).await;
    let client = server.client().with_deadline(Duration::from_secs(2));
    assert!(!read_all(&client).await, "the damage is met");
    let stopped = tokio::time::timeout(Duration::from_secs(10), server.stopped()).await;
    let error = stopped.expect("it stops").unwrap_err().to_string();
    assert!(error.contains("a query found damage"), "{error}");
}
