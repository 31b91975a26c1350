//! `kv upgrade`: shows the cluster version, and lets an operator decide when it rises.

use std::path::Path;

use anyhow::bail;
use kv_service::{Client, ClientConfig, NodeStatus, UpgradeOrder};

use crate::args::{UpgradeAction, UpgradeArgs};
use crate::exit::Exit;
use crate::status::{addresses, members};
use crate::{connect, output};

pub(crate) async fn run(config: Option<&Path>, args: UpgradeArgs) -> anyhow::Result<Exit> {
    let config = connect::client_config(config, Some(args.deadline))?;
    let client = Client::connect(&config)?;
    let done = match args.action {
        UpgradeAction::Status => status(&client, &config).await,
        UpgradeAction::Finalize => finalize(&client, &config).await,
        UpgradeAction::Hold => order_all(&client, &config, UpgradeOrder::Hold).await,
        UpgradeAction::Release => order_all(&client, &config, UpgradeOrder::Release).await,
    };
    connect::close(&client, connect::AFTER_QUESTIONS).await;
    done
}

/// Each node's status, or the reason why there is none.
async fn statuses(
    client: &Client,
    config: &ClientConfig,
) -> Vec<(u64, Result<NodeStatus, String>)> {
    let mut statuses = Vec::new();
    for node in addresses(config, members(client).await.as_ref()) {
        let status = client.status(node.id).await.map_err(|error| error.reason.to_string());
        statuses.push((node.id, status));
    }
    statuses
}

async fn status(client: &Client, config: &ClientConfig) -> anyhow::Result<Exit> {
    let statuses = statuses(client, config).await;
    let known: Vec<&NodeStatus> =
        statuses.iter().filter_map(|(_, status)| status.as_ref().ok()).collect();
    output::show(report(&statuses).as_bytes())?;
    Ok(if known.is_empty() { Exit::NotExecuted } else { Exit::Done })
}

fn report(statuses: &[(u64, Result<NodeStatus, String>)]) -> String {
    let head = ["node", "program", "in force", "supports", "upgrade"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let mut complaints = String::new();
    for (id, status) in statuses {
        match status {
            Ok(status) => rows.push(vec![
                id.to_string(),
                status.versions.program.clone(),
                status.versions.in_force.to_string(),
                format!("{} to {}", status.versions.oldest, status.versions.newest),
                status.versions.upgrade.clone(),
            ]),
            Err(why) => {
                rows.push(vec![id.to_string(), "unreachable".to_owned()]);
                complaints.push_str(&format!("\nnode {id}: {why}"));
            }
        }
    }
    format!("{}{complaints}\n{}", output::table(&rows), advice(statuses))
}

/// Text that tells an operator what to do next.
fn advice(statuses: &[(u64, Result<NodeStatus, String>)]) -> String {
    let known = || statuses.iter().filter_map(|(_, status)| status.as_ref().ok());
    let Some(in_force) = known().map(|status| status.versions.in_force).max() else {
        return "no node can be reached".to_owned();
    };
    let newest = known().map(|status| status.versions.newest).max().unwrap_or(in_force);
    let older: Vec<String> = known()
        .filter(|status| status.versions.newest < newest)
        .map(|status| status.id.to_string())
        .collect();
    if newest <= in_force {
        format!("cluster version {in_force} is the newest that these programs support")
    } else if !older.is_empty() {
        format!(
            "version {newest} needs a newer program on nodes {}; until then each node can go back",
            older.join(", ")
        )
    } else if known().count() < statuses.len() {
        format!("version {newest} needs all nodes to be seen running a program that supports it")
    } else {
        format!(
            "all nodes support version {newest}: `kv upgrade finalize` puts it into force, and from then on \
             older programs refuse to start; `kv upgrade hold` keeps it from rising by itself"
        )
    }
}

async fn finalize(client: &Client, config: &ClientConfig) -> anyhow::Result<Exit> {
    let statuses = statuses(client, config).await;
    let leader = statuses.iter().find(|(_, status)| status.as_ref().is_ok_and(leads));
    let Some((leader, Ok(status))) = leader else {
        bail!("no node that can be reached leads; `kv status` says how each is");
    };
    let told =
        client.upgrade(*leader, UpgradeOrder::Finalize { above: status.versions.in_force }).await?;
    output::tell(told.as_bytes());
    Ok(Exit::Done)
}

fn leads(status: &NodeStatus) -> bool {
    status.leader_id == Some(status.id) && status.role == "leader"
}

/// Gives the order to each node, because any of them may lead next.
async fn order_all(
    client: &Client,
    config: &ClientConfig,
    order: UpgradeOrder,
) -> anyhow::Result<Exit> {
    let mut missed = Vec::new();
    for node in addresses(config, members(client).await.as_ref()) {
        match client.upgrade(node.id, order).await {
            Ok(told) => output::tell(format!("node {}: {told}", node.id).as_bytes()),
            Err(error) => {
                output::complain(&format!("node {}: {}", node.id, error.reason));
                missed.push(node.id);
            }
        }
    }
    if !missed.is_empty() {
        bail!(
            "nodes {missed:?} did not receive it, and one of them may lead next: repeat the command"
        );
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use kv_service::Versions;

    use super::*;

    fn node(id: u64, in_force: u32, newest: u32) -> (u64, Result<NodeStatus, String>) {
        let versions = Versions { in_force, newest, ..Versions::default() };
        let status = NodeStatus { id, versions, ..NodeStatus::default() };
        (id, Ok(status))
    }

    #[test]
    fn an_operator_reads_what_is_missing() {
        let told = |statuses: &[_]| advice(statuses);
        assert!(told(&[node(1, 2, 2), node(2, 2, 2)]).contains("2 is the newest"));
        let mixed = told(&[node(1, 1, 2), node(2, 1, 1), node(3, 1, 1)]);
        assert!(mixed.contains("nodes 2, 3"), "{mixed}");
        assert!(
            told(&[node(1, 1, 2), (2, Err("down".to_owned()))]).contains("all nodes to be seen")
        );
        assert!(told(&[node(1, 1, 2), node(2, 1, 2)]).contains("kv upgrade finalize"));
        assert!(told(&[(1, Err("down".to_owned()))]).contains("no node can be reached"));
        let table = report(&[node(1, 1, 2), (2, Err("down".to_owned()))]);
        assert!(table.contains("0 to 2") && table.contains("node 2: down"), "{table}");
    }
}
