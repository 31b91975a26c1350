//! The connections of one client: at most one to each node, made when it is needed, and who is
//! believed to lead.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use raft_core::types::NodeId;
use tokio::time::{Instant, timeout};

use super::connection::Connection;
use crate::stream::Connector;

/// How long one attempt to connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(700);
/// Calls that come within this time of a failed attempt share its result.
const FAILURE_SHARED_FOR: Duration = Duration::from_millis(30);

pub(super) struct Links {
    connector: Arc<dyn Connector>,
    client_name: String,
    nodes: Vec<NodeId>,
    links: BTreeMap<NodeId, Link>,
    /// The node that is asked first.
    target: AtomicU64,
    closed: AtomicBool,
}

#[derive(Default)]
struct Link {
    live: Mutex<Option<Arc<Connection>>>,
    /// Held while connecting; when and why the last attempt failed.
    connecting: tokio::sync::Mutex<Option<(Instant, String)>>,
}

impl Links {
    pub(super) fn new(connector: Arc<dyn Connector>, client_name: String) -> Self {
        let nodes = connector.nodes();
        assert!(!nodes.is_empty(), "a checked configuration names nodes");
        let links = nodes.iter().map(|node| (*node, Link::default())).collect();
        let target = AtomicU64::new(nodes[rand::random_range(0..nodes.len())]);
        Self { connector, client_name, nodes, links, target, closed: AtomicBool::new(false) }
    }

    pub(super) fn nodes(&self) -> &[NodeId] {
        &self.nodes
    }

    pub(super) fn target(&self) -> NodeId {
        self.target.load(Ordering::Relaxed)
    }

    /// A node said who leads.
    pub(super) fn aim_at(&self, leader: NodeId) {
        if self.links.contains_key(&leader) {
            self.target.store(leader, Ordering::Relaxed);
        }
    }

    /// The node is of no use now: the next one is asked, unless somebody has moved on already.
    pub(super) fn turn_away_from(&self, node: NodeId) {
        let next = self.after(node);
        // A failure means that another call has turned away.
        let _ = self.target.compare_exchange(node, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    pub(super) fn after(&self, node: NodeId) -> NodeId {
        let place = self.nodes.iter().position(|known| *known == node).unwrap_or(0);
        self.nodes[(place + 1) % self.nodes.len()]
    }

    /// A live connection to the node.
    pub(super) async fn connection(&self, node: NodeId) -> Result<Arc<Connection>, String> {
        let link = self.links.get(&node).ok_or_else(|| format!("there is no node {node}"))?;
        if let Some(live) = link.live() {
            return Ok(live);
        }
        let mut failure = link.connecting.lock().await;
        if let Some(live) = link.live() {
            return Ok(live);
        }
        if self.closed.load(Ordering::Relaxed) {
            return Err("the client is closed".to_owned());
        }
        if let Some((at, why)) = &*failure
            && at.elapsed() < FAILURE_SHARED_FOR
        {
            return Err(why.clone());
        }
        let attempt = async {
            let stream = self.connector.connect(node).await?;
            Connection::open(stream, &self.client_name).await
        };
        let opened = match timeout(CONNECT_TIMEOUT, attempt).await {
            Ok(result) => result,
            Err(_) => Err(format!("no connection within {CONNECT_TIMEOUT:?}")),
        };
        match opened {
            Ok(connection) => {
                let connection = Arc::new(connection);
                if let Some(leader) = connection.hello().leader_id
                    && self.target() == node
                {
                    self.aim_at(leader);
                }
                *failure = None;
                link.keep(Some(Arc::clone(&connection)));
                Ok(connection)
            }
            Err(why) => {
                *failure = Some((Instant::now(), why.clone()));
                Err(why)
            }
        }
    }

    /// Breaks all connections, and makes no more.
    pub(super) async fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        for link in self.links.values() {
            if let Some(live) = link.live() {
                live.close();
            }
            link.keep(None);
        }
        self.connector.close().await;
    }
}

impl Link {
    fn live(&self) -> Option<Arc<Connection>> {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.as_ref().filter(|connection| !connection.is_broken()).cloned()
    }

    fn keep(&self, connection: Option<Arc<Connection>>) {
        *self.live.lock().unwrap_or_else(PoisonError::into_inner) = connection;
    }
}
