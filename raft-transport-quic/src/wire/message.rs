//! Messages as frames: a header in MessagePack, and the commands as they are behind it.
//!
//! The header is a sequence of values: kind, term, and what the kind has. A node that recovers adds
//! [`kind::FROM_RECOVERING`] to the kind, and its number behind the term. Entries are contiguous, so
//! an index is never written, and entries of one term share it. A command is a length in the header
//! and a slice of the rest, which decoding hands out without a copy.
//!
//! Decoding refuses all that a correct sender never sends: unknown kinds, values left over, lengths
//! that do not add up, terms that fall. Memory is taken for what is there, not for what is claimed.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use raft_core::types::{
    Body, Configuration, Entry, Index, Message, Payload, Position, ReadOutcome, TERM_MAX, Term,
};
use rmp_serde::Deserializer;
use serde::{Deserialize, Serialize};

use super::WireError;
use super::frame::{FRAME_BYTES_MAX, LENGTH_BYTES};
use crate::error::printable;

/// From this size on a command is passed on as it is; smaller ones are cheaper to copy together.
const PASS_ON_BYTES_MIN: usize = 4 << 10;

/// A message is charged ([`Message::size_bytes`]) at most this; so are, while decoding, its entries.
const MESSAGE_BYTES_MAX: u64 = FRAME_BYTES_MAX as u64;

/// The first value of a header. The numbers are part of the format.
mod kind {
    pub(super) const PRE_VOTE: u8 = 0;
    pub(super) const PRE_VOTE_ANSWER: u8 = 1;
    pub(super) const VOTE: u8 = 2;
    pub(super) const VOTE_ANSWER: u8 = 3;
    pub(super) const APPEND: u8 = 4;
    pub(super) const APPEND_ACCEPTED: u8 = 5;
    pub(super) const APPEND_REJECTED: u8 = 6;
    pub(super) const HEARTBEAT: u8 = 7;
    pub(super) const HEARTBEAT_ANSWER: u8 = 8;
    pub(super) const READ_INDEX: u8 = 9;
    pub(super) const READ_INDEX_ANSWER: u8 = 10;
    pub(super) const TIMEOUT_NOW: u8 = 11;
    pub(super) const RECOVERED: u8 = 12;
    pub(super) const FOUNDING: u8 = 13;

    /// Added to the others.
    pub(super) const FROM_RECOVERING: u8 = 64;
}

/// The first value of a run of entries.
mod run {
    pub(super) const NOOP: u8 = 0;
    pub(super) const COMMANDS: u8 = 1;
    pub(super) const CONFIGURATION: u8 = 2;
}

/// Gathers frames for one write.
#[derive(Debug, Default)]
pub(crate) struct Encoder {
    chunks: Vec<Bytes>,
    tail: BytesMut,
}

impl Encoder {
    /// Appends the message, or nothing if it is too large for a frame.
    pub(crate) fn push(&mut self, message: &Message) -> Result<(), WireError> {
        let size_bytes = message.size_bytes();
        if size_bytes > MESSAGE_BYTES_MAX {
            return Err(too_large(size_bytes as usize));
        }
        let entries = match &message.body {
            Body::Append { entries, .. } => entries.as_slice(),
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
            return Err(too_large(frame_bytes));
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

    /// All that was pushed, in order.
    pub(crate) fn take(&mut self) -> Vec<Bytes> {
        let mut chunks = std::mem::take(&mut self.chunks);
        if !self.tail.is_empty() {
            chunks.push(self.tail.split().freeze());
        }
        chunks
    }
}

fn too_large(claimed: usize) -> WireError {
    WireError::FrameLength { claimed, max: FRAME_BYTES_MAX }
}

fn command(entry: &Entry) -> Option<&Bytes> {
    match &entry.payload {
        Payload::Command(command) => Some(command),
        Payload::Noop | Payload::Configuration(_) => None,
    }
}

fn put<T: Serialize>(to: &mut BytesMut, value: T) {
    rmp_serde::encode::write(&mut to.writer(), &value)
        .expect("memory takes everything, and our values are plain");
}

fn put_all(to: &mut BytesMut, numbers: &[u64]) {
    numbers.iter().for_each(|number| put(to, number));
}

fn put_header(to: &mut BytesMut, message: &Message) {
    let mut begin = |kind: u8| match message.recovering {
        None => put_all(to, &[kind.into(), message.term]),
        Some(number) => {
            put_all(to, &[(kind + kind::FROM_RECOVERING).into(), message.term, number]);
        }
    };
    match &message.body {
        Body::PreVote { last } => {
            begin(kind::PRE_VOTE);
            put(to, last);
        }
        Body::PreVoteAnswer { granted } => {
            begin(kind::PRE_VOTE_ANSWER);
            put(to, granted);
        }
        Body::Vote { last, transfer } => {
            begin(kind::VOTE);
            put(to, (last, transfer));
        }
        Body::VoteAnswer { granted } => {
            begin(kind::VOTE_ANSWER);
            put(to, granted);
        }
        Body::Append { previous, entries, commit_index } => {
            begin(kind::APPEND);
            put(to, (previous, commit_index));
            put_runs(to, entries);
        }
        Body::AppendAccepted { match_index } => {
            begin(kind::APPEND_ACCEPTED);
            put(to, match_index);
        }
        Body::AppendRejected { previous_index, hint } => {
            begin(kind::APPEND_REJECTED);
            put(to, (previous_index, hint));
        }
        Body::Heartbeat { round, commit_index } => {
            begin(kind::HEARTBEAT);
            put(to, (round, commit_index));
        }
        Body::HeartbeatAnswer { round, version_max } => {
            begin(kind::HEARTBEAT_ANSWER);
            put(to, (round, version_max));
        }
        Body::ReadIndex { id } => {
            begin(kind::READ_INDEX);
            put(to, id);
        }
        Body::ReadIndexAnswer { id, outcome } => {
            begin(kind::READ_INDEX_ANSWER);
            put(to, (id, outcome.index(), *outcome == ReadOutcome::Busy));
        }
        Body::TimeoutNow { last } => {
            begin(kind::TIMEOUT_NOW);
            put(to, last);
        }
        Body::Founding { number, heard, met, version_max } => {
            begin(kind::FOUNDING);
            put(to, (number, heard, met, version_max));
        }
        Body::Recovered { number } => {
            begin(kind::RECOVERED);
            put(to, number);
        }
    }
}

/// Runs of entries of one term, to the end of the header. Commands are numerous and share a run; the
/// others are rare and have one each.
fn put_runs(to: &mut BytesMut, entries: &[Entry]) {
    let both_commands = |one: &Entry, next: &Entry| {
        command(one).is_some() && command(next).is_some() && one.term == next.term
    };
    for entries in entries.chunk_by(both_commands) {
        let first = &entries[0];
        match &first.payload {
            Payload::Noop => put(to, (run::NOOP, first.term)),
            Payload::Configuration(configuration) => {
                put(to, (run::CONFIGURATION, first.term));
                put(to, configuration);
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

/// The message in a frame (without the frame's length).
pub(crate) fn decode(mut frame: Bytes) -> Result<Message, WireError> {
    if frame.len() < LENGTH_BYTES {
        return Err(refused("the frame is too short for a header"));
    }
    let header_bytes = frame.get_u32() as usize;
    if header_bytes > frame.len() {
        return Err(refused("the header is longer than the frame"));
    }
    let header = frame.split_to(header_bytes);
    let mut header = Header(&header);
    let flagged: u8 = header.next()?;
    let term: Term = header.next()?;
    let recovers = flagged >= kind::FROM_RECOVERING;
    let kind = if recovers { flagged - kind::FROM_RECOVERING } else { flagged };
    let recovering = if recovers { Some(header.next()?) } else { None };
    if term > TERM_MAX {
        return Err(refused("its term is out of range"));
    }
    let body = header.body(kind, term, &mut frame)?;
    if !header.0.is_empty() || !frame.is_empty() {
        return Err(refused("bytes are left over"));
    }
    Ok(Message { term, recovering, body })
}

fn refused(rule: &'static str) -> WireError {
    WireError::Rule { what: "message", rule }
}

fn in_range(position: Position) -> Result<Position, WireError> {
    if position.term > TERM_MAX {
        return Err(refused("the term of a position is out of range"));
    }
    Ok(position)
}

/// The values of a header that have not been read.
struct Header<'a>(&'a [u8]);

impl Header<'_> {
    fn next<T: for<'de> Deserialize<'de>>(&mut self) -> Result<T, WireError> {
        T::deserialize(&mut Deserializer::new(&mut self.0)).map_err(|error| {
            WireError::Undecodable { what: "message", reason: printable(&error.to_string()) }
        })
    }

    fn body(&mut self, kind: u8, term: Term, payload: &mut Bytes) -> Result<Body, WireError> {
        Ok(match kind {
            kind::PRE_VOTE => Body::PreVote { last: in_range(self.next()?)? },
            kind::PRE_VOTE_ANSWER => Body::PreVoteAnswer { granted: self.next()? },
            kind::VOTE => {
                let (last, transfer) = self.next()?;
                Body::Vote { last: in_range(last)?, transfer }
            }
            kind::VOTE_ANSWER => Body::VoteAnswer { granted: self.next()? },
            kind::APPEND => {
                let (previous, commit_index): (Position, Index) = self.next()?;
                let entries = self.entries(previous, term, payload)?;
                Body::Append { previous, entries, commit_index }
            }
            kind::APPEND_ACCEPTED => Body::AppendAccepted { match_index: self.next()? },
            kind::APPEND_REJECTED => {
                let (previous_index, hint) = self.next()?;
                Body::AppendRejected { previous_index, hint: in_range(hint)? }
            }
            kind::HEARTBEAT => {
                let (round, commit_index) = self.next()?;
                Body::Heartbeat { round, commit_index }
            }
            kind::HEARTBEAT_ANSWER => {
                let (round, version_max) = self.next()?;
                Body::HeartbeatAnswer { round, version_max }
            }
            kind::READ_INDEX => Body::ReadIndex { id: self.next()? },
            kind::READ_INDEX_ANSWER => {
                let outcome = match self.next()? {
                    (id, Some(index), false) => (id, ReadOutcome::Confirmed(index)),
                    (id, None, false) => (id, ReadOutcome::NotLeader),
                    (id, None, true) => (id, ReadOutcome::Busy),
                    (_, Some(_), true) => return Err(refused("a read is confirmed and busy")),
                };
                Body::ReadIndexAnswer { id: outcome.0, outcome: outcome.1 }
            }
            kind::TIMEOUT_NOW => Body::TimeoutNow { last: in_range(self.next()?)? },
            kind::FOUNDING => {
                let (number, heard, met, version_max) = self.next()?;
                Body::Founding { number, heard, met, version_max }
            }
            kind::RECOVERED => Body::Recovered { number: self.next()? },
            _ => return Err(refused("its kind is unknown")),
        })
    }

    fn entries(
        &mut self,
        previous: Position,
        message_term: Term,
        payload: &mut Bytes,
    ) -> Result<Vec<Entry>, WireError> {
        let mut entries = Entries { last: previous, message_term, list: Vec::new(), size_bytes: 0 };
        if previous.term > message_term {
            return Err(refused("the previous entry is of a later term than the message"));
        }
        while !self.0.is_empty() {
            let (kind, term): (u8, Term) = self.next()?;
            match kind {
                run::NOOP => entries.push(term, Payload::Noop)?,
                run::CONFIGURATION => {
                    let configuration: Configuration = self.next()?;
                    entries.push(term, Payload::Configuration(configuration))?;
                }
                run::COMMANDS => {
                    let lengths: Vec<u32> = self.next()?;
                    if lengths.is_empty() {
                        return Err(refused("a run of commands has none"));
                    }
                    for length in lengths {
                        let length = length as usize;
                        if length > payload.len() {
                            return Err(refused("the commands are longer than the frame"));
                        }
                        entries.push(term, Payload::Command(payload.split_to(length)))?;
                    }
                }
                _ => return Err(refused("the kind of an entry is unknown")),
            }
        }
        Ok(entries.list)
    }
}

/// Entries as they come out, held to the rules of a log.
struct Entries {
    last: Position,
    message_term: Term,
    list: Vec<Entry>,
    size_bytes: u64,
}

impl Entries {
    fn push(&mut self, term: Term, payload: Payload) -> Result<(), WireError> {
        if term == 0 || term < self.last.term || term > self.message_term {
            return Err(refused("the terms of the entries fall, or pass the message's"));
        }
        let index = self.last.index.checked_add(1).ok_or(refused("an index is out of range"))?;
        let entry = Entry { index, term, payload };
        self.size_bytes += entry.size_bytes();
        if self.size_bytes > MESSAGE_BYTES_MAX {
            return Err(refused("too many entries"));
        }
        self.last = entry.position();
        self.list.push(entry);
        Ok(())
    }
}
