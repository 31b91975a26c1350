//! `kv status`: the state of every node, or the reason why it is not known.
//!
//! All nodes are asked at the same time, each by itself, so that a node that hangs delays no other.

use std::path::Path;
use std::time::Duration;

use kv_service::batch::text::json_text;
use kv_service::config::NodeAddress;
use kv_service::members::{ClusterReport, MemberReport};
use kv_service::{Client, ClientConfig, NOT_INITIALISED, NodeStatus, RECOVERING};
use serde::Serialize;
use tokio::task::JoinSet;

use crate::args::StatusArgs;
use crate::exit::Exit;
use crate::member::tolerance;
use crate::{connect, output};

/// One node as seen from here; a field that is not known is null.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct NodeReport {
    pub(crate) id: u64,
    pub(crate) address: String,
    pub(crate) pid: Option<u32>,
    pub(crate) reachable: bool,
    pub(crate) role: Option<String>,
    /// `voter`, `learner`, `joining` or `leaving`, as the leader knows.
    pub(crate) member: Option<&'static str>,
    /// Entries that the node lacks, as the leader knows.
    pub(crate) behind: Option<u64>,
    pub(crate) term: Option<u64>,
    pub(crate) leader_id: Option<u64>,
    pub(crate) commit_index: Option<u64>,
    pub(crate) last_applied: Option<u64>,
    pub(crate) log_bytes: Option<u64>,
    pub(crate) snapshot_index: Option<u64>,
    /// Version of the program.
    pub(crate) version: Option<String>,
    pub(crate) cluster_version: Option<u32>,
    pub(crate) waits_for: Vec<u64>,
    pub(crate) is_majority_lost: bool,
    pub(crate) error: Option<String>,
}

#[derive(Serialize)]
struct StatusReport {
    /// How many voters may fail at the same time; null without a leader.
    failures_tolerated: Option<usize>,
    /// How many further voters may fail now; null without a leader, or if too few run.
    failures_tolerated_now: Option<usize>,
    is_joint: Option<bool>,
    nodes: Vec<NodeReport>,
}

/// How long a leader may take to say who the members are.
const MEMBERS_DEADLINE: Duration = Duration::from_secs(1);

pub(crate) async fn run(config: Option<&Path>, args: StatusArgs) -> anyhow::Result<Exit> {
    let config = connect::client_config(config, Some(args.deadline))?;
    let client = Client::connect(&config)?;
    let members = members(&client).await;
    let mut nodes = gather(&client, &addresses(&config, members.as_ref())).await;
    connect::close(&client, connect::AFTER_QUESTIONS).await;
    if let Some(members) = &members {
        nodes.iter_mut().for_each(|node| node.complete(members));
    }
    let any = nodes.iter().any(|node| node.reachable);
    if args.json {
        let report = StatusReport {
            failures_tolerated: members.as_ref().map(ClusterReport::failures_tolerated),
            failures_tolerated_now: members.as_ref().and_then(|now| now.failures_tolerated_now()),
            is_joint: members.as_ref().map(|members| members.is_joint),
            nodes,
        };
        output::show(json_text(&report).as_bytes())?;
    } else {
        let mut text = for_people(&nodes);
        if let Some(members) = &members {
            text.push_str(&format!("\n{}", tolerance(members)));
        }
        output::show(text.as_bytes())?;
    }
    if !any {
        output::complain(&format!("no node of cluster {} can be reached", config.cluster_id));
        return Ok(Exit::NotExecuted);
    }
    Ok(Exit::Done)
}

/// The members, if a leader says soon who they are.
pub(crate) async fn members(client: &Client) -> Option<ClusterReport> {
    client.with_deadline(MEMBERS_DEADLINE).cluster().members().await.ok()
}

/// The members, or without a leader the nodes of the client's file.
pub(crate) fn addresses(
    config: &ClientConfig,
    members: Option<&ClusterReport>,
) -> Vec<NodeAddress> {
    let Some(members) = members else { return config.nodes.clone() };
    let address =
        |member: &MemberReport| NodeAddress { id: member.id, address: member.info.address.clone() };
    members.members.iter().map(address).collect()
}

/// Asks each of the nodes, within the client's deadline. The reports are in the order of `nodes`.
pub(crate) async fn gather(client: &Client, nodes: &[NodeAddress]) -> Vec<NodeReport> {
    let mut asked = JoinSet::new();
    for NodeAddress { id, address } in nodes.iter().cloned() {
        let client = client.clone();
        asked.spawn(async move {
            match client.status(id).await {
                Ok(status) => NodeReport::reachable(address, status),
                Err(error) => NodeReport::unreachable(id, address, error.reason.to_string()),
            }
        });
    }
    let mut reports = asked.join_all().await;
    let place = |id| nodes.iter().position(|node| node.id == id);
    reports.sort_by_key(|report| place(report.id));
    reports
}

/// Asks the nodes like [`gather`], with a deadline of its own.
pub(crate) async fn gather_within(
    client: &Client,
    nodes: &[NodeAddress],
    deadline: Duration,
) -> Vec<NodeReport> {
    gather(&client.with_deadline(deadline), nodes).await
}

impl NodeReport {
    fn reachable(address: String, status: NodeStatus) -> Self {
        Self {
            id: status.id,
            address,
            pid: Some(status.pid),
            reachable: true,
            role: Some(status.role),
            member: None,
            behind: None,
            term: Some(status.term),
            leader_id: status.leader_id,
            commit_index: Some(status.commit_index),
            last_applied: Some(status.last_applied),
            log_bytes: Some(status.log_bytes),
            snapshot_index: Some(status.snapshot_index),
            version: Some(status.versions.program),
            cluster_version: Some(status.versions.in_force),
            waits_for: status.waits_for,
            is_majority_lost: status.is_majority_lost,
            error: None,
        }
    }

    fn unreachable(id: u64, address: String, error: String) -> Self {
        Self {
            id,
            address,
            pid: None,
            reachable: false,
            role: None,
            member: None,
            behind: None,
            term: None,
            leader_id: None,
            commit_index: None,
            last_applied: None,
            log_bytes: None,
            snapshot_index: None,
            version: None,
            cluster_version: None,
            waits_for: Vec::new(),
            is_majority_lost: false,
            error: Some(error),
        }
    }

    /// Adds what the leader knows.
    fn complete(&mut self, members: &ClusterReport) {
        if let Some(member) = members.member(self.id) {
            self.member = Some(member.role.name());
            self.behind = member.progress.map(|progress| progress.behind);
        }
    }

    pub(crate) fn leads(&self) -> bool {
        self.role.as_deref() == Some("leader")
    }
}

fn for_people(nodes: &[NodeReport]) -> String {
    let head = [
        "node",
        "address",
        "pid",
        "role",
        "member",
        "term",
        "leader",
        "commit",
        "applied",
        "behind",
        "log bytes",
        "snapshot",
        "version",
        "cluster version",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let number = |number: Option<u64>| number.map_or("-".to_owned(), |number| number.to_string());
    for node in nodes {
        rows.push(vec![
            node.id.to_string(),
            node.address.clone(),
            number(node.pid.map(u64::from)),
            node.role.clone().unwrap_or_else(|| "unreachable".to_owned()),
            node.member.unwrap_or("-").to_owned(),
            number(node.term),
            number(node.leader_id),
            number(node.commit_index),
            number(node.last_applied),
            number(node.behind),
            number(node.log_bytes),
            number(node.snapshot_index),
            node.version.clone().unwrap_or_else(|| "-".to_owned()),
            number(node.cluster_version.map(u64::from)),
        ]);
    }
    let mut text = output::table(&rows);
    for node in nodes {
        if let Some(error) = &node.error {
            text.push_str(&format!("\nnode {}: {error}", node.id));
        }
    }
    for node in nodes.iter().filter(|node| !node.waits_for.is_empty()) {
        text.push_str(&format!(
            "\nnode {} founds a new cluster and waits for nodes {:?}",
            node.id, node.waits_for
        ));
    }
    if let Some(standstill) = standstill(nodes) {
        text.push_str(&format!("\n{standstill}"));
    }
    text
}

/// Tells why the cluster stands still, if too many nodes are on disks that do not remember it.
fn standstill(nodes: &[NodeReport]) -> Option<String> {
    if nodes.iter().any(NodeReport::leads) {
        return None;
    }
    let has_role = |node: &&NodeReport, roles: &[&str]| {
        node.role.as_deref().is_some_and(|role| roles.contains(&role))
    };
    let ids_of = |roles: &[&str]| -> Vec<String> {
        nodes.iter().filter(|node| has_role(node, roles)).map(|node| node.id.to_string()).collect()
    };
    let forgetful = ids_of(&[NOT_INITIALISED, RECOVERING]);
    if ids_of(&[NOT_INITIALISED]).len() == nodes.len() {
        return Some(
            "no node is initialised: for a new cluster, stop the nodes and run `kv init --config FILE` on \
             each; if there was a cluster, its disks are lost"
                .to_owned(),
        );
    }
    let is_told = nodes.iter().any(|node| node.is_majority_lost);
    if !is_told && 2 * (nodes.len() - forgetful.len()) > nodes.len() {
        return None;
    }
    let which = if forgetful.is_empty() {
        "too many nodes".to_owned()
    } else {
        format!("nodes {}", forgetful.join(", "))
    };
    Some(format!(
        "the cluster stands still: {which} are on new or lost disks, so no majority remembers what was \
         acknowledged. Start as many of them as a majority needs on their old data directories; no node \
         takes over without, because acknowledged writes could be missing"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn without_leader(nodes: Vec<NodeReport>) -> StatusReport {
        let (failures_tolerated, failures_tolerated_now) = (None, None);
        StatusReport { failures_tolerated, failures_tolerated_now, is_joint: None, nodes }
    }

    #[test]
    fn what_is_not_known_is_null_and_nothing_is_left_out() {
        let down = NodeReport::unreachable(2, "127.0.0.1:7402".into(), "timed out".into());
        let expected = concat!(
            r#"{"failures_tolerated":null,"failures_tolerated_now":null,"is_joint":null,"#,
            r#""nodes":[{"id":2,"address":"127.0.0.1:7402","pid":null,"reachable":false,"#,
            r#""role":null,"member":null,"behind":null,"term":null,"leader_id":null,"commit_index":null,"last_applied":null,"#,
            r#""log_bytes":null,"snapshot_index":null,"version":null,"cluster_version":null,"#,
            r#""waits_for":[],"is_majority_lost":false,"error":"timed out"}]}"#
        );
        assert_eq!(json_text(&without_leader(vec![down])), expected);
    }

    fn with_role(id: u64, role: &str) -> NodeReport {
        let silent = NodeReport::unreachable(id, "127.0.0.1:7401".into(), String::new());
        NodeReport { reachable: true, role: Some(role.to_owned()), error: None, ..silent }
    }

    /// C4. The status of a cluster without a majority of its disks says so, and that of a cluster
    /// with a leader or a majority does not.
    #[test]
    fn people_read_why_the_cluster_stands_still() {
        let told = |roles: [&str; 3]| {
            let nodes = [1, 2, 3].map(|id| with_role(id, roles[id as usize - 1]));
            for_people(&nodes)
        };
        let lost = told([RECOVERING, "follower", NOT_INITIALISED]);
        assert!(lost.contains("stands still: nodes 1, 3 are on new or lost disks"), "{lost}");
        let empty = told([NOT_INITIALISED; 3]);
        assert!(empty.contains("run `kv init --config FILE` on each"), "{empty}");
        for healthy in [
            [RECOVERING, "leader", NOT_INITIALISED],
            [RECOVERING, "follower", "follower"],
            ["candidate", "follower", "follower"],
        ] {
            assert!(!told(healthy).contains("stands still"), "{healthy:?}");
        }
    }

    #[test]
    fn people_read_why_a_node_is_silent() {
        let text =
            for_people(&[NodeReport::unreachable(2, "127.0.0.1:7402".into(), "timed out".into())]);
        assert!(text.contains("unreachable") && text.ends_with("node 2: timed out"), "{text}");
    }
}
