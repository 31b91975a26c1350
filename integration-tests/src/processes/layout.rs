//! Addresses of a cluster's nodes, and the certificate files by which nodes and clients identify
//! each other.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};

use kv_service::config::TlsFiles;
use kv_service::net::tls::TlsConfig;
use raft_core::testing::free_ports;
use raft_core::types::NodeId;

pub(super) fn write_tls(dir: &Path, name: &str, tls: &TlsConfig) -> TlsFiles {
    let file = |ending: &str, content: &[u8]| {
        let path = dir.join(format!("{name}.{ending}"));
        std::fs::write(&path, content).expect("it can be written");
        path
    };
    TlsFiles {
        ca: file("ca.pem", &tls.ca_pem),
        cert: file("pem", &tls.cert_pem),
        key: file("key", &tls.key_pem),
    }
}

/// Addresses on a loopback IP that only this cluster uses, where the system has more than one; so
/// no other program takes the port of a node that is down for a moment.
pub(super) fn addresses(nodes: RangeInclusive<NodeId>) -> BTreeMap<NodeId, SocketAddr> {
    static CLUSTER_COUNT: AtomicU8 = AtomicU8::new(0);
    let number = CLUSTER_COUNT.fetch_add(1, Ordering::Relaxed);
    let [.., high, low] = std::process::id().to_be_bytes();
    let own = Ipv4Addr::new(127, high | 0x80, low, number % 250 + 1);
    let free = |ip: Ipv4Addr, base: u16| {
        nodes.clone().all(|id| UdpSocket::bind((ip, base + id as u16)).is_ok())
    };
    let (ip, base) = if free(own, 7400) {
        (own, 7400)
    } else {
        (Ipv4Addr::LOCALHOST, free_ports(*nodes.end() as u16).start - 1)
    };
    nodes.map(|id| (id, SocketAddr::new(IpAddr::from(ip), base + id as u16))).collect()
}
