//! Members that come and go while `kv dev` runs.

use std::time::Duration;

use kv_service::Client;
use kv_service::members::{ClusterReport, MemberInfo, MemberRole, MembersChange, MembersOrder};

/// How long the leader may take to begin a change.
const BEGIN_DEADLINE: Duration = Duration::from_secs(5);
/// How long a change may take until the user is told that it is still under way.
const FINISH_DEADLINE: Duration = Duration::from_secs(60);

/// A change that was begun: the node that comes, and the one that goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change {
    pub(super) new: Option<u64>,
    pub(super) old: Option<u64>,
}

/// Adds a member, and returns its number.
pub(super) async fn add(client: &Client, wants_vote: bool) -> Result<u64, String> {
    let cluster = client.with_deadline(BEGIN_DEADLINE).cluster();
    // The node announces its name and address itself.
    cluster.add(MemberInfo::default(), wants_vote).await.map_err(|error| error.to_string())
}

/// Removes a member, whether or not it runs: a user of `kv dev` means it.
pub(super) async fn remove(client: &Client, id: u64) -> Result<(), String> {
    let mut order = MembersOrder::new(MembersChange::Remove { id });
    (order.live, order.less_redundancy) = (true, true);
    begin(client, order).await
}

pub(super) async fn replace(client: &Client, old: u64, new: u64) -> Result<(), String> {
    begin(client, MembersOrder::new(MembersChange::Replace { old, new })).await
}

async fn begin(client: &Client, order: MembersOrder) -> Result<(), String> {
    let cluster = client.with_deadline(BEGIN_DEADLINE).cluster();
    cluster.order(order).await.map(drop).map_err(|error| error.to_string())
}

/// Refuses a node that cannot be replaced, before another one is added for it.
pub(super) async fn check_voter(client: &Client, id: u64) -> Result<(), String> {
    let members = client.with_deadline(BEGIN_DEADLINE).cluster().members().await;
    let members = members.map_err(|error| error.to_string())?;
    match members.member(id).map(|member| member.role) {
        Some(MemberRole::Voter) => Ok(()),
        Some(role) => Err(format!("node {id} is {}, and only a voter is replaced", role.name())),
        None => Err(format!("there is no member {id}; `kv member list` shows them")),
    }
}

/// Waits until the cluster has carried the change through, and says what came of it.
pub(super) async fn finish(client: &Client, change: Change) -> Result<String, String> {
    let cluster = client.with_deadline(FINISH_DEADLINE).cluster();
    let is_done = |report: &ClusterReport| {
        let is_voter =
            |id| report.member(id).is_some_and(|member| member.role == MemberRole::Voter);
        report.is_committed
            && !report.is_joint
            && change.new.is_none_or(is_voter)
            && change.old.is_none_or(|id| report.member(id).is_none())
    };
    let done = cluster.settled(is_done).await.map_err(|error| error.to_string());
    done.map(|_| match (change.new, change.old) {
        (Some(new), Some(old)) => format!("node {new} has taken the place of node {old}"),
        (Some(new), None) => format!("node {new} was added, and is a voter"),
        (None, Some(old)) => format!("node {old} was removed"),
        (None, None) => "done".to_owned(),
    })
}
