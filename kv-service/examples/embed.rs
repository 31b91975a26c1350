//! A node in an application: durable, on QUIC, with a client that talks to it directly.
//!
//! Usually each application process runs one node and reads its configuration from a file
//! (`ServerConfig::read("node1.toml")`). So that this example runs by itself, it makes the
//! certificates and starts all three nodes here.

use std::path::Path;

use kv_service::config::{NodeAddress, TlsFiles};
use kv_service::net::tls::DevCa;
use kv_service::{Client, Expect, Server, ServerConfig};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The application's use of the store. A node's own client finds the leader by itself.
async fn application(store: &Client) -> Result<()> {
    store.put("greeting", "hello").await?;
    store.append("greeting", ", world").await?;
    let record = store.get("greeting").await?.ok_or("just put")?;
    println!("{} (version {})", String::from_utf8_lossy(&record.value), record.version);
    let swap = store.compare_and_swap("greeting", Expect::Version(2), "bye").await?;
    println!("swapped: {}", swap.changed);
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let ca = DevCa::create("embedded")?;
    let mut servers = Vec::new();
    for id in 1..=3 {
        let tls = write_certificates(&ca, dir.path(), id)?;
        let config = configuration(dir.path(), id, tls);
        // Once in the life of a cluster: this node is a new member, and has lost nothing. An
        // application does so when an operator asks for it (as `kv init` does), never because a
        // directory is missing.
        Server::init(&config)?;
        servers.push(Server::start(config).await?);
    }

    application(&servers[0].client()).await?;

    for server in servers {
        server.shutdown().await;
    }
    Ok(())
}

fn configuration(dir: &Path, id: u64, tls: TlsFiles) -> ServerConfig {
    let nodes = (1..=3).map(|id| NodeAddress { id, address: format!("127.0.0.1:{}", 17500 + id) });
    ServerConfig::new("embedded", id, dir.join(format!("node{id}")), tls, nodes.collect())
}

fn write_certificates(ca: &DevCa, dir: &Path, id: u64) -> Result<TlsFiles> {
    let issued = ca.issue_node(id)?;
    let path = |name: &str| dir.join(format!("{name}{id}.pem"));
    let files = TlsFiles { ca: path("ca"), cert: path("cert"), key: path("key") };
    std::fs::write(&files.ca, issued.ca_pem)?;
    std::fs::write(&files.cert, issued.cert_pem)?;
    std::fs::write(&files.key, issued.key_pem)?;
    Ok(files)
}
