//! `kv member`: the members of the cluster, and changes of them.

use std::path::Path;

use kv_service::batch::text::json_text;
use kv_service::config::NodeAddress;
use kv_service::members::{
    ClusterReport, MemberInfo, MemberReport, MemberRole, MembersChange, MembersOrder,
};
use kv_service::{Client, Cluster};
use serde::Serialize;

use crate::args::{
    ChangeAction, DrainArgs, MemberAction, MemberArgs, MemberFlags, MemberSet, NewMember,
};
use crate::exit::Exit;
use crate::{connect, invitation, output};

pub(crate) async fn run(config: Option<&Path>, args: MemberArgs) -> anyhow::Result<Exit> {
    let config = connect::client_config(config, Some(args.flags.deadline))?;
    let client = Client::connect(&config)?;
    let cluster = client.cluster();
    let done = match args.action {
        MemberAction::List => list(&cluster, args.flags).await,
        MemberAction::Set(fields) => set(&cluster, &fields, args.flags).await,
        MemberAction::Invite(invited) => {
            invitation::invite(&cluster, &config.cluster_id, &invited, args.flags).await
        }
        MemberAction::Plan { change } => {
            let flags = MemberFlags { dry_run: true, ..args.flags };
            order(&cluster, &config.cluster_id, &change, flags).await
        }
        MemberAction::Change(change) => {
            order(&cluster, &config.cluster_id, &change, args.flags).await
        }
    };
    connect::close(&client, connect::AFTER_QUESTIONS).await;
    done
}

async fn list(cluster: &Cluster, flags: MemberFlags) -> anyhow::Result<Exit> {
    let members = cluster.members().await?;
    show(&members, flags.json, "")?;
    Ok(Exit::Done)
}

/// Changes those fields of the record that are given.
async fn set(cluster: &Cluster, fields: &MemberSet, flags: MemberFlags) -> anyhow::Result<Exit> {
    if flags.dry_run {
        anyhow::bail!("set has no --dry-run: it changes the record of one member and nothing else");
    }
    let MemberSet { id, name, address, zone, priority, spare } = fields.clone();
    let edit = |info: &mut MemberInfo| {
        let old = info.clone();
        *info = MemberInfo {
            name: name.clone().unwrap_or(old.name),
            address: address.clone().unwrap_or(old.address),
            zone: zone.clone().unwrap_or(old.zone),
            draining: old.draining,
            priority: priority.or(old.priority),
            spare: spare.unwrap_or(old.spare),
        };
    };
    let members = cluster.describe(id, edit).await?;
    show(&members, flags.json, "\ndone")?;
    Ok(Exit::Done)
}

/// `kv drain`: prepares a node to be stopped, or ends that.
pub(crate) async fn drain(config: Option<&Path>, args: DrainArgs) -> anyhow::Result<Exit> {
    let DrainArgs { id, off, json, deadline } = args;
    let client = connect::client(config, Some(deadline))?;
    let drained = client.cluster().drain(id, !off).await;
    connect::close(&client, connect::AFTER_QUESTIONS).await;
    let members = drained?;
    let text = match members.leader_id {
        _ if off => format!("\nnode {id} may lead again"),
        Some(leader) if leader == id => {
            format!("\nnode {id} leads on: no other voter can lead now")
        }
        _ => format!("\nnode {id} drains: it leads only if no other voter can"),
    };
    show(&members, json, &text)?;
    Ok(Exit::Done)
}

/// Orders the change, or checks it, and shows the members.
pub(crate) async fn order(
    cluster: &Cluster,
    cluster_id: &str,
    change: &ChangeAction,
    flags: MemberFlags,
) -> anyhow::Result<Exit> {
    let before = cluster.members().await?;
    if let ChangeAction::Add(member) = change
        && !flags.dry_run
    {
        return add(cluster, cluster_id, member, flags).await;
    }
    let order = order_of(change, &before, flags.dry_run);
    let mut members = cluster.order(order).await?;
    if flags.dry_run {
        let text = plan(&before, &members);
        show(&members, flags.json, &text)?;
        return Ok(Exit::Done);
    }
    let is_done = |report: &ClusterReport| is_carried_through(report, change);
    if flags.wait {
        members = cluster.settled(is_done).await?;
    }
    let text = match is_done(&members) {
        true => "\ndone",
        false => "\nbegun: the cluster carries it through; `kv member list` shows how far it is",
    };
    show(&members, flags.json, text)?;
    Ok(Exit::Done)
}

/// Adds a member. Its id is printed before anything else can fail.
async fn add(
    cluster: &Cluster,
    cluster_id: &str,
    member: &NewMember,
    flags: MemberFlags,
) -> anyhow::Result<Exit> {
    let wants_vote = member.wants_vote();
    let id = cluster.add(info(member), wants_vote).await?;
    if !flags.json {
        let members = cluster.members().await.unwrap_or_default();
        output::tell(joining(cluster_id, id, &members).as_bytes());
    }
    if flags.wait {
        let members = cluster.settled(|report| is_added(report, id, wants_vote)).await?;
        show(&members, flags.json, "\ndone")?;
    } else if flags.json {
        let members = cluster.settled(|_| true).await?;
        show(&members, true, "")?;
    }
    Ok(Exit::Done)
}

/// Returns true once a member that was added is what it was added to be.
pub(crate) fn is_added(report: &ClusterReport, id: u64, wants_vote: bool) -> bool {
    let is_done = |member: &MemberReport| !wants_vote || member.role == MemberRole::Voter;
    report.member(id).is_some_and(is_done) && report.is_committed && !report.is_joint
}

/// Returns true once this change is done, whatever else is under way.
fn is_carried_through(report: &ClusterReport, change: &ChangeAction) -> bool {
    let role = |id| report.member(id).map(|member| member.role);
    let has_role = match *change {
        ChangeAction::Add(_) => true,
        ChangeAction::Remove { id, .. } => role(id).is_none(),
        ChangeAction::Replace { old, new } => {
            role(old).is_none() && role(new) == Some(MemberRole::Voter)
        }
        ChangeAction::Promote { id } => role(id) == Some(MemberRole::Voter),
        ChangeAction::Demote { id, .. } => role(id) == Some(MemberRole::Learner),
    };
    has_role && report.is_committed && !report.is_joint
}

pub(crate) fn info(member: &NewMember) -> MemberInfo {
    let NewMember { name, address, zone, learner: _, spare } = member.clone();
    let [name, address, zone] = [name, address, zone].map(Option::unwrap_or_default);
    MemberInfo { name, address, zone, spare, ..MemberInfo::default() }
}

fn order_of(change: &ChangeAction, before: &ClusterReport, dry_run: bool) -> MembersOrder {
    let (mut live, mut less_redundancy) = (false, false);
    let change = match *change {
        ChangeAction::Add(ref member) => MembersChange::Add {
            id: before.next_id,
            info: info(member),
            wants_vote: member.wants_vote(),
        },
        ChangeAction::Remove { id, live: meant, allow_less_redundancy } => {
            (live, less_redundancy) = (meant, allow_less_redundancy);
            MembersChange::Remove { id }
        }
        ChangeAction::Replace { old, new } => MembersChange::Replace { old, new },
        ChangeAction::Promote { id } => MembersChange::Promote { id },
        ChangeAction::Demote { id, allow_less_redundancy } => {
            less_redundancy = allow_less_redundancy;
            MembersChange::Demote { id }
        }
    };
    let mut order = MembersOrder::new(change);
    (order.live, order.less_redundancy, order.dry_run) = (live, less_redundancy, dry_run);
    order
}

/// The voters that a node that joins can ask.
pub(crate) fn seeds(members: &ClusterReport) -> Vec<NodeAddress> {
    members
        .members
        .iter()
        .filter(|member| member.role != MemberRole::Learner && !member.info.address.is_empty())
        .map(|member| NodeAddress { id: member.id, address: member.info.address.clone() })
        .collect()
}

/// The operator's next steps with a new member.
fn joining(cluster_id: &str, id: u64, members: &ClusterReport) -> String {
    let seeds: Vec<String> = seeds(members)
        .iter()
        .map(|seed| format!("  {{ id = {}, address = \"{}\" }},", seed.id, seed.address))
        .collect();
    let own = members.member(id).map(|member| member.info.address.clone());
    let own = own.filter(|address| !address.is_empty()).unwrap_or_else(|| "HOST:PORT".to_owned());
    let uid = members.uid.map_or_else(String::new, |uid| format!("cluster_uid = \"{uid}\"\n"));
    let port = own.rsplit_once(':').map_or("PORT", |(_, port)| port);
    format!(
        "added node {id}. Give it a certificate (`kv cert node {id}`) and this file, then start it with \
         `kv serve --config FILE`:\n\n\
         cluster_id = \"{cluster_id}\"\n\
         {uid}node_id = {id}\n\
         join = true\n\
         listen = \"0.0.0.0:{port}\"\n\
         advertise = \"{own}\"\n\
         data_dir = \"/var/lib/kv\"\n\
         tls = {{ ca = \"ca.pem\", cert = \"node{id}.pem\", key = \"node{id}.key\" }}\n\
         nodes = [\n{}\n]",
        seeds.join("\n")
    )
}

/// The steps of a change, and how many failures the cluster survives in each.
fn plan(before: &ClusterReport, planned: &ClusterReport) -> String {
    let tolerance = |report: &ClusterReport| {
        let survives = format!("survives the failure of {}", voters(report.failures_tolerated()));
        format!("{survives}{}", zones(report))
    };
    let mut steps = vec![format!("now: {}", tolerance(before))];
    if before.members == planned.members && before.is_joint == planned.is_joint {
        steps.push("the change: nothing is left to do".to_owned());
    } else if planned.is_joint {
        steps.push(format!(
            "first: majorities of the old and of the new voters decide; {}",
            tolerance(planned)
        ));
        steps.push(format!("then: {}", tolerance(&after(planned))));
    } else {
        steps.push(format!("first: {}", tolerance(planned)));
        for member in planned.members.iter().filter(|member| member.is_on_its_way()) {
            steps.push(match member.role {
                MemberRole::Learner => {
                    format!("once it has kept up: node {} becomes a voter", member.id)
                }
                _ => format!("in the same step: node {} leaves", member.id),
            });
        }
    }
    format!("\nchecked, and nothing was changed:\n  {}", steps.join("\n  "))
}

/// The members after a joint configuration.
fn after(joint: &ClusterReport) -> ClusterReport {
    let mut report = ClusterReport { is_joint: false, ..joint.clone() };
    report.members.retain(|member| member.role != MemberRole::Leaving);
    for member in &mut report.members {
        if member.role == MemberRole::Joining {
            member.role = MemberRole::Voter;
        }
    }
    report
}

#[derive(Serialize)]
struct ListReport<'a> {
    leader_id: Option<u64>,
    index: u64,
    next_id: u64,
    is_committed: bool,
    is_joint: bool,
    is_settled: bool,
    failures_tolerated: usize,
    failures_tolerated_now: Option<usize>,
    members: Vec<MemberLine<'a>>,
}

/// A member as scripts see it; a field that is not known is null.
#[derive(Serialize)]
struct MemberLine<'a> {
    id: u64,
    name: &'a str,
    address: &'a str,
    zone: &'a str,
    role: &'static str,
    wants_vote: bool,
    is_leader: bool,
    is_draining: bool,
    is_spare: bool,
    priority: u8,
    behind: Option<u64>,
    is_recovering: Option<bool>,
    error: Option<&'a str>,
}

fn show(report: &ClusterReport, json: bool, text: &str) -> anyhow::Result<()> {
    if json {
        output::show(json_text(&for_scripts(report)).as_bytes())?;
    } else {
        output::show(format!("{}{text}", for_people(report)).as_bytes())?;
    }
    Ok(())
}

fn for_scripts(report: &ClusterReport) -> ListReport<'_> {
    let members = report.members.iter().map(|member| MemberLine {
        id: member.id,
        name: &member.info.name,
        address: &member.info.address,
        zone: &member.info.zone,
        role: member.role.name(),
        wants_vote: member.wants_vote,
        is_leader: report.leader_id == Some(member.id),
        is_draining: member.info.draining,
        is_spare: member.info.spare,
        priority: member.info.leader_priority(),
        behind: member.progress.map(|progress| progress.behind),
        is_recovering: member.progress.map(|progress| progress.is_recovering),
        error: member.error.as_deref(),
    });
    ListReport {
        leader_id: report.leader_id,
        index: report.index,
        next_id: report.next_id,
        is_committed: report.is_committed,
        is_joint: report.is_joint,
        is_settled: report.is_settled(),
        failures_tolerated: report.failures_tolerated(),
        failures_tolerated_now: report.failures_tolerated_now(),
        members: members.collect(),
    }
}

fn for_people(report: &ClusterReport) -> String {
    let head = ["node", "name", "zone", "address", "member", "behind", "state"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    for member in &report.members {
        rows.push(vec![
            member.id.to_string(),
            or_dash(&member.info.name),
            or_dash(&member.info.zone),
            or_dash(&member.info.address),
            role(member),
            member.progress.map_or("-".to_owned(), |progress| progress.behind.to_string()),
            state(report, member),
        ]);
    }
    format!("{}\n{}", output::table(&rows), tolerance(report))
}

/// A change that is under way, and how many failures the cluster survives.
pub(crate) fn tolerance(report: &ClusterReport) -> String {
    let change = match (report.is_joint, report.is_committed) {
        (true, _) => "voters are being exchanged: majorities of the old and the new ones decide\n",
        (false, false) => "the last change is not committed yet\n",
        (false, true) => "",
    };
    let survives = match (report.failures_tolerated(), report.failures_tolerated_now()) {
        (_, None) => "too few voters run: no further one may fail".to_owned(),
        (all, Some(now)) if all == now => format!("survives the failure of {}", voters(now)),
        (all, Some(now)) => {
            format!("survives the failure of {now} more now, and of {all} when all voters run")
        }
    };
    format!("{change}{survives}{}", zones(report))
}

fn zones(report: &ClusterReport) -> String {
    let needed: Vec<_> = report.zones_needed().into_iter().collect();
    match needed[..] {
        [] => String::new(),
        [zone] => format!(", and not the loss of zone {zone}"),
        _ => format!(", and not the loss of any of the zones {}", needed.join(", ")),
    }
}

fn voters(count: usize) -> String {
    if count == 1 { "1 voter".to_owned() } else { format!("{count} voters") }
}

fn role(member: &MemberReport) -> String {
    match (member.role, member.wants_vote) {
        (MemberRole::Learner, true) => "learner, to be a voter".to_owned(),
        (MemberRole::Voter, false) => "voter, to be replaced".to_owned(),
        (MemberRole::Learner, false) if member.info.spare => "spare".to_owned(),
        (role, _) => role.name().to_owned(),
    }
}

fn state(report: &ClusterReport, member: &MemberReport) -> String {
    let state = match (&member.error, member.progress) {
        _ if report.leader_id == Some(member.id) => "leader".to_owned(),
        (Some(error), _) => error.clone(),
        (None, Some(progress)) if progress.is_recovering => {
            "recovering: not counted until it has all data".to_owned()
        }
        (None, _) => "connected".to_owned(),
    };
    let state = if member.info.draining { format!("{state}, draining") } else { state };
    match member.info.priority {
        Some(priority) => format!("{state}, priority {priority}"),
        None => state,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u64, role: MemberRole) -> MemberReport {
        let wants_vote = role != MemberRole::Learner;
        let info = MemberInfo { address: format!("h{id}:1"), ..MemberInfo::default() };
        MemberReport { id, info, incarnation: 0, role, wants_vote, progress: None, error: None }
    }

    fn report(roles: &[MemberRole]) -> ClusterReport {
        let members = (1..).zip(roles).map(|(id, role)| member(id, *role)).collect();
        ClusterReport {
            node_id: 1,
            leader_id: Some(1),
            is_committed: true,
            is_joint: roles.contains(&MemberRole::Leaving) || roles.contains(&MemberRole::Joining),
            next_id: roles.len() as u64 + 1,
            members,
            ..ClusterReport::default()
        }
    }

    #[test]
    fn a_plan_shows_each_step_and_what_it_survives() {
        use MemberRole::{Joining, Learner, Leaving, Voter};
        let three = report(&[Voter, Voter, Voter, Learner]);
        let swap = report(&[Voter, Voter, Leaving, Joining]);
        let text = plan(&three, &swap);
        assert!(text.contains("now: survives the failure of 1 voter\n"), "{text}");
        assert!(text.contains("first: majorities of the old and of the new"), "{text}");
        assert!(text.contains("then: survives the failure of 1 voter"), "{text}");
        assert!(plan(&three, &three).contains("nothing is left to do"));
        let mut promoted = three.clone();
        promoted.members[3].wants_vote = true;
        assert!(plan(&three, &promoted).contains("node 4 becomes a voter"));
        let mut zoned = three;
        zoned.members[0].info.zone = "a".to_owned();
        zoned.members[1].info.zone = "a".to_owned();
        assert!(plan(&zoned, &zoned).contains("of 1 voter, and not the loss of zone a\n"));
    }

    #[test]
    fn an_operator_sees_what_is_wrong() {
        use MemberRole::Voter;
        let mut report = report(&[Voter, Voter, Voter]);
        assert!(for_people(&report).ends_with("survives the failure of 1 voter"));
        report.members[1].error = Some("timed out".to_owned());
        let text = for_people(&report);
        assert!(text.contains("timed out"), "{text}");
        assert!(text.contains("of 0 more now, and of 1 when all voters run"), "{text}");
        report.members[2].error = Some("timed out".to_owned());
        assert!(for_people(&report).contains("too few voters run"));
        let json = json_text(&for_scripts(&report));
        assert!(json.contains(r#""failures_tolerated_now":null"#), "{json}");
        assert!(json.contains(r#""address":"h3:1""#), "{json}");
    }

    #[test]
    fn a_new_member_gets_a_file_that_can_be_read() {
        use MemberRole::{Learner, Voter};
        let told = joining("prod", 2, &report(&[Voter, Learner]));
        let (_, file) = told.split_once("\n\n").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node2.toml");
        std::fs::write(&path, file).unwrap();
        let config = kv_service::ServerConfig::read(&path).unwrap();
        assert!(config.join && config.node_id == 2);
        assert_eq!(config.addresses()[&1], "h1:1");
    }
}
