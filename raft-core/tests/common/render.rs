//! Messages, batches and logs as one short line each.

use std::fmt::Write as _;

use raft_core::consensus::ProgressState;
use raft_core::consensus::Status;
use raft_core::types::{Batch, Entry, Memory, Message, MessageBody, Payload};

use super::disk::Disk;

pub fn message(message: &Message) -> String {
    let body = match &message.body {
        MessageBody::RequestPreVote { last } => format!("pre-vote last={last}"),
        MessageBody::PreVoteResponse { granted } => format!("pre-vote {}", yes_no(*granted)),
        MessageBody::RequestVote { last, transfer: false } => format!("vote last={last}"),
        MessageBody::RequestVote { last, transfer: true } => format!("vote last={last} (transfer)"),
        MessageBody::VoteResponse { granted } => format!("vote {}", yes_no(*granted)),
        MessageBody::AppendEntries { previous, entries: sent, commit_index } => {
            format!("append prev={previous} [{}] commit={commit_index}", entries(sent))
        }
        MessageBody::AppendAccepted { match_index } => format!("accepted {match_index}"),
        MessageBody::AppendRejected { previous_index, hint } => {
            format!("rejected prev={previous_index} hint={hint}")
        }
        MessageBody::Heartbeat { round, commit_index } => {
            format!("heartbeat #{round} commit={commit_index}")
        }
        MessageBody::HeartbeatResponse { round, .. } => format!("heartbeat-answer #{round}"),
        // Attempts are large random numbers; four digits tell them apart here.
        MessageBody::ReadIndex { id } => format!("read-index {:04}", id % 10_000),
        MessageBody::ReadIndexResponse { id, outcome } => {
            let index = outcome.index().map_or("none".to_owned(), |index| index.to_string());
            format!("read-index-answer {:04} {index}", id % 10_000)
        }
        MessageBody::TimeoutNow { .. } => "timeout-now".to_owned(),
        MessageBody::Founding { number, heard, met, .. } => format!(
            "founding {:04} heard {}{}",
            number % 10_000,
            heard.map_or("none".to_owned(), |number| format!("{:04}", number % 10_000)),
            if *met { " met" } else { "" }
        ),
        MessageBody::Recovered { number } => format!("recovered {:04}", number % 10_000),
    };
    match message.recovering {
        None => format!("t{} {body}", message.term),
        Some(number) => format!("t{} {body} (recovering {:04})", message.term, number % 10_000),
    }
}

fn yes_no(granted: bool) -> &'static str {
    if granted { "yes" } else { "no" }
}

pub fn entry(entry: &Entry) -> String {
    let payload = match &entry.payload {
        Payload::Noop => "-".to_owned(),
        Payload::Command(command) => String::from_utf8_lossy(command).into_owned(),
        Payload::Configuration(_) => "configuration".to_owned(),
    };
    format!("{}:{payload}", entry.position())
}

pub fn entries(entries: &[Entry]) -> String {
    entries.iter().map(entry).collect::<Vec<_>>().join(" ")
}

pub fn batch(batch: &Batch) -> String {
    let mut text = String::new();
    if let Some(publish) = &batch.publish {
        let how = if publish.replaces_log { "replacing the log" } else { "own" };
        let _ = write!(text, " snapshot {} ({how})", publish.meta.position);
    }
    if let Some(from) = batch.truncate_from {
        let _ = write!(text, " truncate from {from}");
    }
    if !batch.entries.is_empty() {
        let _ = write!(text, " [{}]", entries(&batch.entries));
    }
    if let Some(hard_state) = batch.hard_state {
        let vote = hard_state.voted_for.map_or("-".to_owned(), |node| node.to_string());
        let _ = write!(
            text,
            " term={} vote={vote} commit={}",
            hard_state.term, hard_state.commit_index
        );
        text.push_str(match hard_state.memory {
            Memory::Intact => "",
            Memory::New => " new",
            Memory::Met => " met",
            Memory::Lost => " recovering",
        });
    }
    text.trim_start().to_owned()
}

/// The log on a disk: the position that it starts after, then its entries.
pub fn log(disk: &Disk) -> String {
    let start = match disk.start().index {
        0 => String::new(),
        _ => format!("({}) ", disk.start()),
    };
    format!("{start}{}", entries(&disk.loaded.entries)).trim_end().to_owned()
}

pub fn status(status: &Status) -> String {
    let leader = status.leader.map_or("-".to_owned(), |leader| leader.to_string());
    let mut text = format!(
        "{}: {} t{} leader={leader} last={} durable={} commit={} applied={}",
        status.id,
        status.role.name(),
        status.term,
        status.last_index,
        status.durable_index,
        status.commit_index,
        status.last_applied,
    );
    text.push_str(if status.is_recovering { " recovering" } else { "" });
    if status.log_start_index > 0 {
        let _ = write!(text, " start={}", status.log_start_index);
    }
    for peer in &status.peers {
        let state = match peer.state {
            ProgressState::Probe { paused: false } => "probe",
            ProgressState::Probe { paused: true } => "probe (paused)",
            ProgressState::Replicate => "replicate",
            ProgressState::Snapshot => "snapshot",
        };
        let _ = write!(
            text,
            "\n     {}: {state} match={} next={} inflight={}",
            peer.id, peer.match_index, peer.next_index, peer.inflight_count
        );
        text.push_str(if peer.is_recovering { " recovering" } else { "" });
    }
    text
}
