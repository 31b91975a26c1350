//! A whole cluster in one process and in memory, for tests of an application: no files, no sockets.

use kv_service::{LocalNetwork, Network, Server, ServerConfig, Store};
use raft_storage::memory::MemoryDisk;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let network = LocalNetwork::new(1);
    let mut servers = Vec::new();
    for id in 1..=3 {
        let config = ServerConfig::in_process(id, 1..=3);
        let store = Store::Memory(MemoryDisk::of_new_member());
        servers.push(Server::start_with(config, store, Network::Channel(network.clone())).await?);
    }

    let store = network.client(1..=3);
    for number in 0..10 {
        store.append("numbers", format!("{number} ")).await?;
    }
    // No request is lost when the leader leaves.
    let leader = servers[0].status().leader_id.ok_or("a cluster that answers has a leader")?;
    servers.remove(leader as usize - 1).shutdown().await;
    store.append("numbers", "and done").await?;
    let record = store.get("numbers").await?.ok_or("just appended")?;
    println!("{}", String::from_utf8_lossy(&record.value));
    assert_eq!(record.value, "0 1 2 3 4 5 6 7 8 9 and done");
    Ok(())
}
