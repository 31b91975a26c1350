//! `kv cluster`: the settings of the cluster, and what it does about its members by itself.

use std::path::Path;
use std::time::Duration;

use kv_service::batch::text::json_text;
use kv_service::members::{ClusterReport, ClusterSettings, ClusterUid};
use serde::Serialize;

use crate::args::{ClusterAction, ClusterArgs, ClusterSet, DurationOrNever};
use crate::exit::Exit;
use crate::{connect, member, output};

#[derive(Serialize)]
struct ClusterLine<'a> {
    uid: Option<ClusterUid>,
    leader_id: Option<u64>,
    /// As many as there are if it is null.
    voters: Option<u32>,
    /// Never if it is null, as the next one.
    replace_dead_after_ms: Option<u64>,
    remove_dead_after_ms: Option<u64>,
    leader_zone: &'a str,
    failures_tolerated: usize,
    failures_tolerated_now: Option<usize>,
    /// The cluster stops without any one of these.
    zones_needed: Vec<&'a str>,
    plans: &'a [String],
}

pub(crate) async fn run(config: Option<&Path>, args: ClusterArgs) -> anyhow::Result<Exit> {
    let client = connect::client(config, Some(args.deadline))?;
    let cluster = client.cluster();
    let report = match args.action {
        None => cluster.members().await,
        Some(ClusterAction::Set(set)) => cluster.configure(|settings| change(settings, &set)).await,
    };
    connect::close(&client, connect::AFTER_QUESTIONS).await;
    let report = report?;
    let text = if args.json { json_text(&for_scripts(&report)) } else { for_people(&report) };
    output::show(text.as_bytes())?;
    Ok(Exit::Done)
}

/// Changes those settings that are given.
fn change(settings: &mut ClusterSettings, set: &ClusterSet) {
    let ClusterSet { voters, replace_dead_after, remove_dead_after, leader_zone } = set;
    if let Some(voters) = *voters {
        settings.voters = voters;
    }
    if let Some(DurationOrNever(after)) = *replace_dead_after {
        settings.replace_dead_after = after;
    }
    if let Some(DurationOrNever(after)) = *remove_dead_after {
        settings.remove_dead_after = after;
    }
    if let Some(zone) = leader_zone {
        settings.leader_zone.clone_from(zone);
    }
}

fn for_scripts(report: &ClusterReport) -> ClusterLine<'_> {
    let ClusterSettings { voters, replace_dead_after, remove_dead_after, leader_zone } =
        &report.settings;
    let ms = |after: &Option<Duration>| after.map(|after| after.as_millis() as u64);
    ClusterLine {
        uid: report.uid,
        leader_id: report.leader_id,
        voters: Some(*voters).filter(|voters| *voters > 0),
        replace_dead_after_ms: ms(replace_dead_after),
        remove_dead_after_ms: ms(remove_dead_after),
        leader_zone,
        failures_tolerated: report.failures_tolerated(),
        failures_tolerated_now: report.failures_tolerated_now(),
        zones_needed: report.zones_needed().into_iter().collect(),
        plans: &report.plans,
    }
}

fn for_people(report: &ClusterReport) -> String {
    let ClusterSettings { voters, replace_dead_after, remove_dead_after, leader_zone } =
        &report.settings;
    let voters = if *voters == 0 { "as many as there are".to_owned() } else { voters.to_string() };
    let or_never = |after: &Option<Duration>| match after {
        Some(after) => humantime::format_duration(*after).to_string(),
        None => "never".to_owned(),
    };
    let zone = if leader_zone.is_empty() { "-" } else { leader_zone };
    let uid = report.uid.map_or("-".to_owned(), |uid| uid.to_string());
    let rows = [
        ["setting", "value"].map(str::to_owned).to_vec(),
        vec!["uid".to_owned(), uid],
        vec!["voters".to_owned(), voters],
        vec!["replace-dead-after".to_owned(), or_never(replace_dead_after)],
        vec!["remove-dead-after".to_owned(), or_never(remove_dead_after)],
        vec!["leader-zone".to_owned(), zone.to_owned()],
    ];
    let plans: String = report.plans.iter().map(|plan| format!("\n{plan}")).collect();
    format!("{}\n{}{plans}", output::table(&rows), member::tolerance(report))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_are_not_given_stay() {
        let mut settings = ClusterSettings::default();
        let nothing = ClusterSet {
            voters: None,
            replace_dead_after: None,
            remove_dead_after: None,
            leader_zone: None,
        };
        change(&mut settings, &nothing);
        assert_eq!(settings, ClusterSettings::default());
        let set = ClusterSet {
            voters: Some(3),
            replace_dead_after: Some(DurationOrNever(None)),
            leader_zone: Some("a".to_owned()),
            ..nothing
        };
        change(&mut settings, &set);
        let report = ClusterReport {
            uid: Some("0123456789abcdef0123456789abcdef".parse().unwrap()),
            settings,
            plans: vec!["spare 4 becomes a voter".to_owned()],
            ..ClusterReport::default()
        };
        let text = for_people(&report);
        for part in [
            "uid                 0123456789abcdef0123456789abcdef",
            "voters              3",
            "replace-dead-after  never",
            "leader-zone         a",
        ] {
            assert!(text.contains(part), "{text}");
        }
        assert!(text.ends_with("\nspare 4 becomes a voter"), "{text}");
        let json = json_text(&for_scripts(&report));
        assert!(json.contains(r#""voters":3,"replace_dead_after_ms":null"#), "{json}");
    }
}
