//! Protocol versions: the names that are offered when a connection is made (ALPN), and the codec of
//! each.
//!
//! Each side offers all versions that it speaks, and the connection uses the newest one that both
//! know. So a node with a new version can talk to nodes that do not have it yet, and an upgrade
//! goes node by node. A version stays in the list for as long as nodes may run that know no later
//! one.

use raft_core::codec::Version;

/// The newest protocol between nodes.
pub const ALPN_RAFT: &[u8] = b"raft/2";
/// The newest protocol between clients and nodes.
pub const ALPN_KV: &[u8] = b"kv/2";

/// One version of the protocol between nodes, and the format of its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PeerProtocol {
    pub(crate) alpn: &'static [u8],
    pub(crate) codec: Version,
}

/// All versions of the protocol between nodes, the newest first.
pub(crate) const PEER_PROTOCOLS: &[PeerProtocol] =
    &[PeerProtocol { alpn: ALPN_RAFT, codec: Version::V2 }];

/// All versions of the client protocol, the newest first.
pub(crate) const CLIENT_PROTOCOLS: &[&[u8]] = &[ALPN_KV];

/// Versions that nodes and clients of this project spoke before its first release. A node accepts
/// them in the handshake only to refuse the connection with a reason that the operator of the other
/// side can read.
pub(crate) const REFUSED_PROTOCOLS: &[&[u8]] = &[b"raft/1", b"kv/1"];

/// The protocol of the other side of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spoken {
    Peer(PeerProtocol),
    Client,
}

/// All protocols that a node offers on incoming connections, in order of preference.
pub(crate) fn offered_by_node(peer_protocols: &[PeerProtocol]) -> Vec<Vec<u8>> {
    let peer = peer_protocols.iter().map(|protocol| protocol.alpn);
    let all = peer.chain(CLIENT_PROTOCOLS.iter().copied());
    all.chain(REFUSED_PROTOCOLS.iter().copied()).map(<[u8]>::to_vec).collect()
}

/// The protocol of a connection, from what TLS has agreed on.
///
/// # Errors
/// The reason for the refusal, for the operators of both sides.
pub(crate) fn agreed(peer_protocols: &[PeerProtocol], alpn: &[u8]) -> Result<Spoken, String> {
    if let Some(protocol) = peer_protocols.iter().find(|protocol| protocol.alpn == alpn) {
        return Ok(Spoken::Peer(*protocol));
    }
    if CLIENT_PROTOCOLS.contains(&alpn) {
        return Ok(Spoken::Client);
    }
    Err(format!(
        "the other side speaks no version later than {}, which was never released; this node speaks \
         {}: run equal versions",
        String::from_utf8_lossy(alpn),
        spoken_here()
    ))
}

/// The protocols of this program, for error texts.
pub(crate) fn spoken_here() -> String {
    let peer = PEER_PROTOCOLS.iter().map(|protocol| protocol.alpn);
    let all: Vec<_> =
        peer.chain(CLIENT_PROTOCOLS.iter().copied()).map(String::from_utf8_lossy).collect();
    all.join(", ")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use std::time::Duration;

    use raft_core::testing::free_ports;
    use raft_core::transport::{BulkStream, Inbound, Transport};
    use raft_core::types::{Message, MessageBody, NodeId};
    use tokio::sync::mpsc;
    use tokio::time::timeout;

    use super::*;
    use crate::{DevCa, QuicConfig, QuicTransport};

    struct Passing(mpsc::Sender<Message>);

    impl Inbound for Passing {
        fn on_message(&self, _from: NodeId, message: Message) {
            let _ = self.0.try_send(message);
        }

        fn on_bulk(&self, _from: NodeId, _stream: Box<dyn BulkStream>) {}

        fn on_unreachable(&self, _peer: NodeId) {}
    }

    /// S15. A node of a later release, which speaks a version that does not exist yet, and a node
    /// of this release talk to each other in the newest version that both know, whichever of them
    /// dials.
    #[tokio::test]
    async fn s15_unequal_nodes_speak_the_newest_common_version() {
        const LATER: PeerProtocol = PeerProtocol { alpn: b"raft/9", codec: Version::V2 };
        for newer in [1, 2] {
            let ca = DevCa::create("test").unwrap();
            let ports = free_ports(2);
            let peers: BTreeMap<NodeId, String> =
                (1..).zip(ports.map(|port| format!("127.0.0.1:{port}"))).collect();
            let mut nodes = Vec::new();
            for id in [1, 2] {
                let tls = ca.issue_node(id).unwrap();
                let listen = peers[&id].parse().unwrap();
                let mut config =
                    QuicConfig::new("test", id, 1, listen, peers.clone(), tls, [id as u8; 64]);
                if id == newer {
                    config.peer_protocols.insert(0, LATER);
                }
                let transport = QuicTransport::bind(config).await.unwrap();
                let (sender, receiver) = mpsc::channel(64);
                transport.start(Arc::new(Passing(sender)));
                nodes.push((transport, receiver));
            }
            let message = Message::new(1, MessageBody::ReadIndex { id: 7 });
            for (from, to, id) in [(0, 1, 2), (1, 0, 1)] {
                let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
                loop {
                    nodes[from].0.send(id, message.clone());
                    let arrived = timeout(Duration::from_millis(20), nodes[to].1.recv()).await;
                    if let Ok(arrived) = arrived {
                        assert_eq!(arrived, Some(message.clone()));
                        break;
                    }
                    assert!(tokio::time::Instant::now() < deadline, "no message to node {id}");
                }
                let spoken = nodes[from].0.protocol_with(id).unwrap();
                assert_eq!(spoken, "raft/2");
            }
        }
    }

    #[test]
    fn version_1_is_refused_with_what_is_spoken_here() {
        assert!(matches!(agreed(PEER_PROTOCOLS, b"raft/2"), Ok(Spoken::Peer(_))));
        assert_eq!(agreed(PEER_PROTOCOLS, b"kv/2"), Ok(Spoken::Client));
        for refused in REFUSED_PROTOCOLS {
            let reason = agreed(PEER_PROTOCOLS, refused).unwrap_err();
            assert!(reason.contains("this node speaks raft/2, kv/2"), "{reason}");
        }
    }
}
