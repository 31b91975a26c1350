use std::net::SocketAddr;
use std::sync::Arc;
use raft_core::transport::{Inbound, Transport, TransportError, BulkStream};
use raft_core::types::{NodeId, Message};
use crate::*;
pub struct QuicTransport { endpoint: quinn::Endpoint }
impl QuicTransport {
    pub async fn bind(config: QuicConfig) -> Result<Arc<Self>, QuicError> {
        config.check()?;
        let endpoint = endpoint::node_endpoint(&config, config.tls.server()?)?;
        Ok(Arc::new(Self { endpoint }))
    }
    pub fn local_addr(&self) -> SocketAddr { self.endpoint.local_addr().expect("bound") }
    pub async fn accept_client(&self) -> Option<ClientConnection> { None }
}
#[async_trait::async_trait]
impl Transport for QuicTransport {
    fn start(&self, _inbound: Arc<dyn Inbound>) {}
    fn send(&self, _to: NodeId, _message: Message) {}
    async fn open_bulk(&self, _to: NodeId) -> Result<Box<dyn BulkStream>, TransportError> { Err(TransportError::new("not yet")) }
    fn reachability(&self, _peer: NodeId) -> Result<(), TransportError> { Err(TransportError::new("not yet")) }
    async fn close(&self) {}
}
