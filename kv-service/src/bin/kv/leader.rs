//! `kv leader` and `kv ok-to-stop`: who leads, who is to lead, and who may be stopped.

use std::path::Path;

use kv_service::Client;
use kv_service::batch::text::json_text;
use serde::Serialize;
use tokio::time::Instant;

use crate::args::{LeaderAction, LeaderArgs, OkToStopArgs};
use crate::exit::Exit;
use crate::{connect, output};

#[derive(Serialize)]
struct LeaderReport {
    leader_id: u64,
    /// How long the transfer took, until the new leader answered.
    took_ms: Option<u64>,
}

pub(crate) async fn run(config: Option<&Path>, args: LeaderArgs) -> anyhow::Result<Exit> {
    let client = connect::client(config, Some(args.deadline))?;
    let done = match args.action {
        None => show(&client, args.json).await,
        Some(LeaderAction::Transfer { to }) => transfer(&client, to, args.json).await,
    };
    connect::close(&client, connect::AFTER_QUESTIONS).await;
    done
}

async fn show(client: &Client, json: bool) -> anyhow::Result<Exit> {
    let members = client.cluster().members().await?;
    let leader_id = members.node_id;
    tell(json, LeaderReport { leader_id, took_ms: None }, || format!("node {leader_id} leads"));
    Ok(Exit::Done)
}

async fn transfer(client: &Client, to: Option<u64>, json: bool) -> anyhow::Result<Exit> {
    let began = Instant::now();
    let leader_id = client.cluster().transfer_leadership(to).await?;
    let took_ms = began.elapsed().as_millis() as u64;
    tell(json, LeaderReport { leader_id, took_ms: Some(took_ms) }, || {
        format!("node {leader_id} leads, {took_ms} ms after the order")
    });
    Ok(Exit::Done)
}

fn tell(json: bool, report: LeaderReport, text: impl FnOnce() -> String) {
    let text = if json { json_text(&report) } else { text() };
    output::tell(text.as_bytes());
}

pub(crate) async fn ok_to_stop(config: Option<&Path>, args: OkToStopArgs) -> anyhow::Result<Exit> {
    let client = connect::client(config, Some(args.deadline))?;
    let members = client.cluster().members().await;
    connect::close(&client, connect::AFTER_QUESTIONS).await;
    match members?.ok_to_stop(&args.nodes) {
        Ok(()) => {
            output::tell(b"yes: the other nodes can go on");
            Ok(Exit::Done)
        }
        Err(why) => {
            output::tell(format!("no: {why}").as_bytes());
            Ok(Exit::ConditionFailed)
        }
    }
}
