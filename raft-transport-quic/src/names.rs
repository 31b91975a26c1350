//! Resolution of the nodes' names to addresses.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use quinn::Endpoint;

/// How names are looked up.
#[derive(Clone, Debug, Default)]
pub(crate) enum Names {
    /// By the system's name service.
    #[default]
    System,
    /// From a table, for tests.
    #[cfg_attr(not(test), expect(dead_code, reason = "tests have no name service of their own"))]
    Fixed(BTreeMap<String, Vec<SocketAddr>>),
}

/// Advice at the end of an error text.
const HINT: &str = "expected `host:port`; check the spelling and the name service";

impl Names {
    /// Looks up `host:port`: all addresses that the endpoint's socket can reach, at least one, IPv4
    /// first.
    ///
    /// # Errors
    /// The reason, as text for an operator.
    pub(crate) async fn resolve(
        &self,
        endpoint: &Endpoint,
        address: &str,
    ) -> Result<Vec<SocketAddr>, String> {
        let local =
            endpoint.local_addr().map_err(|error| format!("the socket is gone: {error}"))?;
        let dual = local.is_ipv6() && local.ip().is_unspecified();
        let mut found = self.look_up(address).await?;
        found.retain(|to| dual || to.is_ipv6() == local.is_ipv6());
        found.sort_by_key(SocketAddr::is_ipv6);
        found.dedup();
        if found.is_empty() {
            return Err(format!("`{address}` has no address that this socket can reach ({HINT})"));
        }
        // A socket for both families needs IPv4 addresses in their mapped form.
        let mapped = found.into_iter().map(|to| match to {
            SocketAddr::V4(to) if dual => SocketAddr::from((to.ip().to_ipv6_mapped(), to.port())),
            to => to,
        });
        Ok(mapped.collect())
    }

    async fn look_up(&self, address: &str) -> Result<Vec<SocketAddr>, String> {
        match self {
            Names::System => tokio::net::lookup_host(address)
                .await
                .map(Iterator::collect)
                .map_err(|error| format!("`{address}` cannot be looked up: {error} ({HINT})")),
            Names::Fixed(table) => Ok(table.get(address).cloned().unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use raft_core::testing::free_ports;
    use raft_core::transport::Transport;
    use raft_core::types::NodeId;
    use tokio::time::Instant;

    use super::*;
    use crate::gate::Origin;
    use crate::{DevCa, QuicConfig, QuicTransport};

    fn node(ca: &DevCa, id: NodeId, listen: SocketAddr, names: &Names) -> QuicConfig {
        let peers = [(1, "one.test:1".to_owned()), (2, "two.test:2".to_owned())].into();
        let tls = ca.issue_node(id).unwrap();
        let mut config = QuicConfig::new("test", id, 1, listen, peers, tls, [id as u8; 64]);
        config.names = names.clone();
        config
    }

    async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !condition() {
            assert!(Instant::now() < deadline, "waited in vain for {what}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// S25. The first address of a name never answers, and the node is reached at the second one.
    /// The gate recognises a peer by the addresses of its name before the peer has ever connected.
    #[tokio::test]
    async fn s25_all_addresses_of_a_name_are_tried_and_known() {
        let mut ports = free_ports(3);
        let mut address = || SocketAddr::from(([127, 0, 0, 1], ports.next().unwrap()));
        let (one, two, dead) = (address(), address(), address());
        let names = Names::Fixed(
            [("one.test:1".to_owned(), vec![one]), ("two.test:2".to_owned(), vec![dead, two])]
                .into(),
        );
        let ca = DevCa::create("test").unwrap();
        let accepting = QuicTransport::bind(node(&ca, 2, two, &names)).await.unwrap();
        let shared = Arc::clone(&accepting.shared);
        eventually("the address of node 1", || shared.origin(one) == Origin::Peer(1)).await;
        assert_eq!(shared.origin(SocketAddr::new(one.ip(), 9)), Origin::NearPeer);
        assert_eq!(shared.origin(SocketAddr::from(([10, 0, 0, 1], one.port()))), Origin::Stranger);

        let dialling = QuicTransport::bind(node(&ca, 1, one, &names)).await.unwrap();
        eventually("a connection", || dialling.reachability(2).is_ok()).await;
        eventually("the connection", || accepting.reachability(1).is_ok()).await;
        dialling.close().await;
        accepting.close().await;
    }
}
