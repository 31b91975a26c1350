//! Members that come and go, as an operator orders it.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use kv_service::members::{ClusterReport, MemberInfo, MembersChange, MembersOrder};
use kv_service::{Client, Cluster as Members, ServerConfig};
use raft_core::types::NodeId;

use super::cluster::{CLUSTER_ID, Cluster, eventually, members};
use super::layout::write_tls;
use super::node::{Node, PATIENCE};

/// Exit code of a node that was removed from its cluster.
const REMOVED: i32 = 5;

impl Cluster {
    /// A client that follows the members, past all relays.
    pub fn operator(&self) -> Client {
        self.operator.clone()
    }

    /// The members, for orders to change them.
    pub fn members(&self) -> Members {
        self.operator.with_deadline(PATIENCE).cluster()
    }

    /// Adds a member, and starts its node on an empty directory.
    ///
    /// # Panics
    /// If the leader refuses, or the node cannot be started.
    pub async fn add_node(&mut self, wants_vote: bool) -> NodeId {
        let id = self.members().add(MemberInfo::default(), wants_vote).await.expect("it is added");
        self.join(id);
        id
    }

    /// Lays out the files of a member that was added, and starts its node.
    fn join(&mut self, id: NodeId) {
        let name = format!("node{id}");
        let issued = self.ca.issue_node(id).expect("a certificate");
        let tls = write_tls(self.dir.path(), &name, &issued);
        let data = self.dir.path().join(&name);
        // Members that it can ask; it learns of the others.
        let mut config = ServerConfig::new(CLUSTER_ID, id, &data, tls, self.direct.nodes.clone());
        config.join = true;
        config.listen = Some(self.place(id));
        config.max_raft_state = self.plan.max_raft_state;
        let path = self.dir.path().join(format!("{name}.toml"));
        std::fs::write(&path, config.to_toml()).expect("it can be written");
        let mut node = Node::new(id, path, data, self.dir.path().join(format!("{name}.log")));
        node.run_as(self.plan.program);
        node.start();
        self.nodes.insert(id, node);
        self.direct.nodes = members(&self.places(), |id| self.place(id));
    }

    fn places(&self) -> BTreeMap<NodeId, SocketAddr> {
        self.nodes.keys().map(|id| (*id, self.place(*id))).collect()
    }

    /// Where a node listens: one IP address for all, and a port by id.
    fn place(&self, id: NodeId) -> SocketAddr {
        let known = self.direct.nodes.first().expect("a cluster has nodes");
        let address: SocketAddr = known.address.parse().expect("a numeric address");
        let base = u64::from(address.port()) - known.id;
        SocketAddr::new(address.ip(), u16::try_from(base + id).expect("few nodes"))
    }

    /// Orders a change that is meant, also of a node that runs. Like an operator, orders again
    /// while a node that has just started is not counted yet.
    ///
    /// # Panics
    /// If the leader goes on refusing, or the outcome is not known.
    pub async fn change(&self, change: MembersChange) {
        let mut order = MembersOrder::new(change);
        (order.live, order.less_redundancy) = (true, true);
        let is_begun = async || match self.members().order(order.clone()).await {
            Ok(_) => true,
            Err(error) if error.to_string().contains("running and counted") => false,
            Err(error) => panic!("it is not begun: {error}"),
        };
        eventually("the change to begin", is_begun).await;
    }

    /// Waits until no change is under way.
    ///
    /// # Panics
    /// If that takes too long.
    pub async fn settles(&self) -> ClusterReport {
        let settled = self.members().settled(ClusterReport::is_settled).await;
        match settled {
            Ok(report) => report,
            Err(error) => panic!("{error}\n{}", self.describe().await),
        }
    }

    /// Waits for the end of a node that was removed, which must know it.
    ///
    /// # Panics
    /// If it goes on, or ends for another reason.
    pub async fn is_gone(&mut self, id: NodeId) {
        let mut node = self.nodes.remove(&id).expect("a node of the cluster");
        if node.is_started() {
            let status = node.ended().await;
            assert_eq!(status.code(), Some(REMOVED), "node {id}: {status}\n{}", node.said());
        }
        let remaining = self.places();
        self.direct.nodes.retain(|node| remaining.contains_key(&node.id));
    }

    /// A client that knows the nodes at the addresses to which they moved.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn moved_client(&self, by: u16) -> Client {
        let mut config = self.direct.clone();
        for node in &mut config.nodes {
            let place = self.place(node.id);
            node.address = SocketAddr::new(place.ip(), place.port() + by).to_string();
        }
        Client::connect(&config).expect("a client")
    }

    /// Gives a node that does not run another address.
    ///
    /// # Panics
    /// If the node runs, or its file cannot be written.
    pub fn move_node(&mut self, id: NodeId, by: u16, seeds: &[NodeId]) {
        assert!(!self.nodes[&id].is_started(), "a node that runs cannot be moved");
        let moved = |place: SocketAddr| SocketAddr::new(place.ip(), place.port() + by);
        let known: BTreeMap<NodeId, SocketAddr> =
            seeds.iter().chain([&id]).map(|id| (*id, moved(self.place(*id)))).collect();
        let own = known[&id];
        self.nodes[&id].edit_config(|config| {
            config.listen = Some(own);
            config.nodes = members(&known, |id| known[&id]);
        });
    }

    /// Gives a node that does not run another address. The other nodes are in its file as before.
    ///
    /// # Panics
    /// If the node runs, or its file cannot be written.
    pub fn move_alone(&mut self, id: NodeId, by: u16) {
        assert!(!self.nodes[&id].is_started(), "a node that runs cannot be moved");
        let place = self.place(id);
        let moved = SocketAddr::new(place.ip(), place.port() + by);
        self.nodes[&id].edit_config(|config| {
            config.listen = Some(moved);
            let own = config.nodes.iter_mut().filter(|node| node.id == id);
            own.for_each(|node| node.address = moved.to_string());
        });
    }
}
