//! Messages to frames.

use bytes::{BufMut, Bytes, BytesMut};
use serde::Serialize;

use super::{
    CodecError, FRAME_BYTES_MAX, GROUP, LENGTH_BYTES, Version, check_size, kind, outcome, run,
};
use crate::types::{Configuration, Entry, Message, MessageBody, Payload, ReadOutcome};

/// Commands of this size and more are written from their own buffer; smaller ones are cheaper to
/// copy together.
const PASS_ON_BYTES_MIN: usize = 4 << 10;

/// Gathers frames for one write.
///
/// ```
/// use raft_core::codec::{Encoder, Version};
/// use raft_core::types::{Message, MessageBody};
///
/// let mut encoder = Encoder::new(Version::NEWEST);
/// for id in 1..=3 {
///     encoder.push(&Message::new(7, MessageBody::ReadIndex { id }))?;
/// }
/// // Small frames share one chunk, and so one write.
/// assert_eq!(encoder.take().len(), 1);
/// # Ok::<(), raft_core::codec::CodecError>(())
/// ```
#[derive(Debug)]
pub struct Encoder {
    version: Version,
    chunks: Vec<Bytes>,
    tail: BytesMut,
}

impl Encoder {
    /// An encoder with nothing to write.
    pub fn new(version: Version) -> Self {
        Self { version, chunks: Vec::new(), tail: BytesMut::new() }
    }

    /// Appends the message as a frame, its length in front.
    ///
    /// # Errors
    /// [`CodecError::TooLarge`] if it fits no frame; nothing is appended then.
    pub fn push(&mut self, message: &Message) -> Result<(), CodecError> {
        match self.version {
            Version::V2 => self.push_v2(message),
        }
    }

    fn push_v2(&mut self, message: &Message) -> Result<(), CodecError> {
        check_size(message)?;
        let entries = match &message.body {
            MessageBody::AppendEntries { entries, .. } => entries.as_slice(),
            _ => &[],
        };
        let commands = || entries.iter().filter_map(command);
        let payload_bytes: usize = commands().map(Bytes::len).sum();

        let start = self.tail.len();
        self.tail.put_bytes(0, 2 * LENGTH_BYTES);
        put_header(&mut self.tail, message);
        let header_bytes = self.tail.len() - start - 2 * LENGTH_BYTES;
        let frame_bytes = LENGTH_BYTES + header_bytes + payload_bytes;
        if frame_bytes > FRAME_BYTES_MAX {
            self.tail.truncate(start);
            let (size_bytes, max_bytes) = (frame_bytes as u64, FRAME_BYTES_MAX as u64);
            return Err(CodecError::TooLarge { size_bytes, max_bytes });
        }
        let mut lengths = &mut self.tail[start..];
        lengths.put_u32(frame_bytes as u32);
        lengths.put_u32(header_bytes as u32);
        for command in commands() {
            self.put_command(command);
        }
        Ok(())
    }

    fn put_command(&mut self, command: &Bytes) {
        if command.len() < PASS_ON_BYTES_MIN {
            self.tail.put_slice(command);
        } else {
            self.chunks.push(self.tail.split().freeze());
            self.chunks.push(command.clone());
        }
    }

    /// Takes everything pushed since the last call, to be written in this order.
    pub fn take(&mut self) -> Vec<Bytes> {
        let mut chunks = std::mem::take(&mut self.chunks);
        if !self.tail.is_empty() {
            chunks.push(self.tail.split().freeze());
        }
        chunks
    }
}

fn command(entry: &Entry) -> Option<&Bytes> {
    match &entry.payload {
        Payload::Command(command) => Some(command),
        Payload::Noop | Payload::Configuration(_) => None,
    }
}

fn put<T: Serialize>(to: &mut BytesMut, value: T) {
    rmp_serde::encode::write(&mut to.writer(), &value)
        .expect("memory takes everything, and the values are plain");
}

/// Writes kind, group, term, and the number of a recovering sender.
fn put_head(to: &mut BytesMut, kind: u8, message: &Message) {
    let flag = if message.recovering.is_some() { kind::FROM_RECOVERING } else { 0 };
    put(to, kind + flag);
    put(to, GROUP);
    put(to, message.term);
    if let Some(number) = message.recovering {
        put(to, number);
    }
}

fn put_header(to: &mut BytesMut, message: &Message) {
    let mut head = |kind| put_head(to, kind, message);
    match &message.body {
        MessageBody::RequestPreVote { last } => {
            head(kind::PRE_VOTE);
            put(to, last);
        }
        MessageBody::PreVoteResponse { granted } => {
            head(kind::PRE_VOTE_ANSWER);
            put(to, granted);
        }
        MessageBody::RequestVote { last, transfer } => {
            head(kind::VOTE);
            put(to, (last, transfer));
        }
        MessageBody::VoteResponse { granted } => {
            head(kind::VOTE_ANSWER);
            put(to, granted);
        }
        MessageBody::AppendEntries { previous, entries, commit_index } => {
            head(kind::APPEND);
            put(to, (previous, commit_index, runs(entries).count() as u64));
            put_runs(to, entries);
        }
        MessageBody::AppendAccepted { match_index } => {
            head(kind::APPEND_ACCEPTED);
            put(to, match_index);
        }
        MessageBody::AppendRejected { previous_index, hint } => {
            head(kind::APPEND_REJECTED);
            put(to, (previous_index, hint));
        }
        MessageBody::Heartbeat { round, commit_index } => {
            head(kind::HEARTBEAT);
            put(to, (round, commit_index));
        }
        MessageBody::HeartbeatResponse { round, version_max } => {
            head(kind::HEARTBEAT_ANSWER);
            put(to, (round, version_max));
        }
        MessageBody::ReadIndex { id } => {
            head(kind::READ_INDEX);
            put(to, id);
        }
        MessageBody::ReadIndexResponse { id, outcome } => {
            head(kind::READ_INDEX_ANSWER);
            let (outcome, read_index) = match outcome {
                ReadOutcome::Confirmed(read_index) => (outcome::CONFIRMED, *read_index),
                ReadOutcome::NotLeader => (outcome::NOT_LEADER, 0),
                ReadOutcome::Busy => (outcome::BUSY, 0),
            };
            put(to, (id, outcome, read_index));
        }
        MessageBody::TimeoutNow { last } => {
            head(kind::TIMEOUT_NOW);
            put(to, last);
        }
        MessageBody::Recovered { number } => {
            head(kind::RECOVERED);
            put(to, number);
        }
        MessageBody::Founding { number, heard, met, version_max } => {
            head(kind::FOUNDING);
            put(to, (number, heard, met, version_max));
        }
    }
}

/// Splits entries into runs that share a head. Commands of one term are numerous and share a run; a
/// no-op or a configuration is rare and is a run of its own.
fn runs(entries: &[Entry]) -> impl Iterator<Item = &[Entry]> {
    entries.chunk_by(|one, next| {
        command(one).is_some() && command(next).is_some() && one.term == next.term
    })
}

fn put_runs(to: &mut BytesMut, entries: &[Entry]) {
    for entries in runs(entries) {
        let first = &entries[0];
        match &first.payload {
            Payload::Noop => put(to, (run::NOOP, first.term)),
            Payload::Configuration(configuration) => {
                let has_context = !configuration.context.is_empty();
                let kind =
                    if has_context { run::CONFIGURATION_IN_CONTEXT } else { run::CONFIGURATION };
                put(to, (kind, first.term));
                put_configuration(to, configuration);
            }
            Payload::Command(_) => {
                put(to, (run::COMMANDS, first.term));
                let lengths: Vec<u32> = entries
                    .iter()
                    .filter_map(command)
                    .map(|command| command.len() as u32)
                    .collect();
                put(to, lengths);
            }
        }
    }
}

fn put_configuration(to: &mut BytesMut, configuration: &Configuration) {
    let Configuration {
        voters,
        outgoing,
        learners,
        members,
        next_id,
        founded,
        generation,
        cluster_version,
        context,
    } = configuration;
    let records: Vec<_> = members
        .iter()
        .map(|(id, member)| (id, member.incarnation, member.wants_vote, &member.context))
        .collect();
    let fields =
        (voters, outgoing, learners, records, next_id, founded, generation, cluster_version);
    put(to, fields);
    if !context.is_empty() {
        put(to, context);
    }
}
