//! Short constructors for messages. Entries are no-ops, because only their positions matter here.

use std::collections::BTreeSet;

use raft_core::types::{Entry, Index, Message, MessageBody, Payload, Position, ReadOutcome, Term};

pub fn pre_vote(term: Term, last: (Index, Term)) -> Message {
    Message::new(term, MessageBody::RequestPreVote { last: at(last) })
}

pub fn vote(term: Term, last: (Index, Term)) -> Message {
    Message::new(term, MessageBody::RequestVote { last: at(last), transfer: false })
}

pub fn vote_answer(term: Term, granted: bool) -> Message {
    Message::new(term, MessageBody::VoteResponse { granted })
}

pub fn pre_vote_answer(term: Term, granted: bool) -> Message {
    Message::new(term, MessageBody::PreVoteResponse { granted })
}

/// The entries follow `previous` and have these terms.
pub fn append(term: Term, previous: (Index, Term), terms: &[Term], commit_index: Index) -> Message {
    let entry = |(term, index): (&Term, Index)| entry(index, *term);
    let entries = terms.iter().zip(previous.0 + 1..).map(entry).collect();
    Message::new(term, MessageBody::AppendEntries { previous: at(previous), entries, commit_index })
}

pub fn accepted(term: Term, match_index: Index) -> Message {
    Message::new(term, MessageBody::AppendAccepted { match_index })
}

pub fn rejected(term: Term, previous_index: Index, hint: (Index, Term)) -> Message {
    Message::new(term, MessageBody::AppendRejected { previous_index, hint: at(hint) })
}

pub fn heartbeat(term: Term, round: u64, commit_index: Index) -> Message {
    Message::new(term, MessageBody::Heartbeat { round, commit_index })
}

pub fn heartbeat_answer(term: Term, round: u64) -> Message {
    Message::new(term, MessageBody::HeartbeatResponse { round, version_max: 1 })
}

pub fn timeout_now(term: Term) -> Message {
    Message::new(term, MessageBody::TimeoutNow { last: Position::ZERO })
}

/// Messages of one term, one of every kind.
pub fn everything(term: Term) -> Vec<Message> {
    let all = vec![
        pre_vote(term, (9, term)),
        vote(term, (9, term)),
        vote_answer(term, true),
        append(term, (0, 0), &[], 0),
        accepted(term, 0),
        rejected(term, 1, (0, 0)),
        heartbeat(term, 1, 0),
        heartbeat_answer(term, 1),
        pre_vote_answer(term, true),
        Message::new(term, MessageBody::ReadIndex { id: 7 }),
        Message::new(
            term,
            MessageBody::ReadIndexResponse { id: 7, outcome: ReadOutcome::Confirmed(1) },
        ),
        timeout_now(term),
        Message::new(term, MessageBody::Recovered { number: 7 }),
        Message::new(
            term,
            MessageBody::Founding { number: 7, heard: None, met: true, version_max: 1 },
        ),
    ];
    let kinds: BTreeSet<u8> = all.iter().map(|message| kind(&message.body)).collect();
    assert_eq!(kinds, (0..KIND_COUNT).collect(), "one of every kind");
    all
}

/// One more than the last number of [`kind`].
const KIND_COUNT: u8 = 14;

/// Numbers the kinds. A new kind does not compile here, and must be counted in [`KIND_COUNT`] and
/// appended to [`everything`].
fn kind(body: &MessageBody) -> u8 {
    match body {
        MessageBody::RequestPreVote { .. } => 0,
        MessageBody::PreVoteResponse { .. } => 1,
        MessageBody::RequestVote { .. } => 2,
        MessageBody::VoteResponse { .. } => 3,
        MessageBody::AppendEntries { .. } => 4,
        MessageBody::AppendAccepted { .. } => 5,
        MessageBody::AppendRejected { .. } => 6,
        MessageBody::Heartbeat { .. } => 7,
        MessageBody::HeartbeatResponse { .. } => 8,
        MessageBody::ReadIndex { .. } => 9,
        MessageBody::ReadIndexResponse { .. } => 10,
        MessageBody::TimeoutNow { .. } => 11,
        MessageBody::Recovered { .. } => 12,
        MessageBody::Founding { .. } => 13,
    }
}

pub fn entry(index: Index, term: Term) -> Entry {
    Entry { index, term, payload: Payload::Noop }
}

fn at((index, term): (Index, Term)) -> Position {
    Position::new(term, index)
}
