//! The rules that every message of a correct node keeps, whatever the state of the receiver.

use super::CodecError;
use crate::types::{
    Configuration, Entry, INDEX_MAX, Index, Message, MessageBody, Payload, Position, ReadOutcome,
    TERM_MAX, Term,
};

/// Checks the values that a receiver relies on: terms and indexes must leave room to count on,
/// entries must be contiguous, and their terms must neither fall nor exceed the term of the
/// message.
///
/// # Errors
/// [`CodecError::Rule`]. The transport drops the message; [`decode`](super::decode) has checked
/// what it returns.
pub fn check(message: &Message) -> Result<(), CodecError> {
    in_range(message.term <= TERM_MAX, "its term is out of range")?;
    match &message.body {
        MessageBody::RequestPreVote { last }
        | MessageBody::RequestVote { last, .. }
        | MessageBody::TimeoutNow { last } => position(*last),
        MessageBody::AppendEntries { previous, entries, commit_index } => {
            index(*commit_index)?;
            position(*previous)?;
            check_entries(*previous, message.term, entries)
        }
        MessageBody::AppendAccepted { match_index } => index(*match_index),
        MessageBody::AppendRejected { previous_index, hint } => {
            index(*previous_index)?;
            position(*hint)
        }
        MessageBody::Heartbeat { commit_index, .. } => index(*commit_index),
        MessageBody::ReadIndexResponse { outcome: ReadOutcome::Confirmed(read_index), .. } => {
            index(*read_index)
        }
        MessageBody::Founding { .. } => {
            in_range(message.term == 0, "a cluster is founded in term 0")
        }
        MessageBody::PreVoteResponse { .. }
        | MessageBody::VoteResponse { .. }
        | MessageBody::HeartbeatResponse { .. }
        | MessageBody::ReadIndex { .. }
        | MessageBody::ReadIndexResponse { .. }
        | MessageBody::Recovered { .. } => Ok(()),
    }
}

fn in_range(is_in_range: bool, rule: &'static str) -> Result<(), CodecError> {
    if is_in_range { Ok(()) } else { Err(CodecError::Rule(rule)) }
}

fn index(index: Index) -> Result<(), CodecError> {
    in_range(index <= INDEX_MAX, "an index is out of range")
}

fn position(position: Position) -> Result<(), CodecError> {
    in_range(position.term <= TERM_MAX, "the term of a position is out of range")?;
    index(position.index)
}

fn check_entries(previous: Position, term: Term, entries: &[Entry]) -> Result<(), CodecError> {
    in_range(previous.term <= term, "the previous entry is of a later term than the message")?;
    let mut last = previous;
    for entry in entries {
        in_range(last.index < INDEX_MAX, "an index is out of range")?;
        in_range(entry.index == last.index + 1, "the entries are not in a row")?;
        in_range(
            entry.term > 0 && (last.term..=term).contains(&entry.term),
            "the terms of the entries fall, or pass the message's",
        )?;
        if let Payload::Configuration(configuration) = &entry.payload {
            check_configuration(configuration)?;
        }
        last = entry.position();
    }
    Ok(())
}

/// Node ids start at 1, and only members have a record.
fn check_configuration(configuration: &Configuration) -> Result<(), CodecError> {
    in_range(!configuration.is_member(0), "a member has the id 0")?;
    let are_members = configuration.members.keys().all(|id| configuration.is_member(*id));
    in_range(are_members, "a record is not of a member")
}
