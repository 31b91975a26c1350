//! Frames to messages.
//!
//! Rejects everything that a correct sender never sends: unknown kinds, values left over, lengths
//! that do not add up, and what [`check`] rejects.

use std::collections::BTreeSet;

use bytes::{Buf, Bytes};
use rmp_serde::Deserializer;
use serde::Deserialize;

use super::{
    CodecError, EXTENSIONS_BYTES_MAX, FRAME_BYTES_MAX, GROUP, LENGTH_BYTES, MEMBERS_MAX, Version,
    check, check_size, kind, outcome, run,
};
use crate::types::{
    Configuration, Entry, Index, Member, Message, MessageBody, NodeId, Payload, Position,
    ReadOutcome, Term,
};

/// Decodes the message in a frame, without the frame's length prefix. Commands are slices of
/// `frame`, which stays alive for as long as one of them.
///
/// # Errors
/// [`CodecError`]: the sender runs another version or is not a node. The transport should close the
/// connection with this text.
///
/// ```
/// use bytes::Bytes;
/// use raft_core::codec::{Version, decode};
///
/// let noise = Bytes::from_static(b"no message");
/// assert!(decode(Version::NEWEST, noise).is_err());
/// ```
pub fn decode(version: Version, frame: Bytes) -> Result<Message, CodecError> {
    match version {
        Version::V2 => decode_v2(frame),
    }
}

fn decode_v2(mut frame: Bytes) -> Result<Message, CodecError> {
    if frame.len() < LENGTH_BYTES {
        return Err(CodecError::Rule("the frame is too short for a header"));
    }
    let header_bytes = frame.get_u32() as usize;
    if header_bytes > frame.len() {
        return Err(CodecError::Rule("the header is longer than the frame"));
    }
    let header = frame.split_to(header_bytes);
    let mut header = Header(&header);
    let flagged: u8 = header.next()?;
    if header.next::<u64>()? != GROUP {
        return Err(CodecError::Rule("it is for a group that this node does not have"));
    }
    let term: Term = header.next()?;
    let recovers = flagged >= kind::FROM_RECOVERING;
    let kind = if recovers { flagged - kind::FROM_RECOVERING } else { flagged };
    let recovering = if recovers { Some(header.next()?) } else { None };
    let body = header.body(kind, &mut frame)?;
    skip_extensions(header.0)?;
    if !frame.is_empty() {
        return Err(CodecError::Rule("bytes are left over"));
    }
    let message = Message { term, recovering, body };
    check(&message)?;
    check_size(&message)?;
    Ok(message)
}

/// The values of a header that have not been read.
struct Header<'a>(&'a [u8]);

impl Header<'_> {
    fn next<T: for<'de> Deserialize<'de>>(&mut self) -> Result<T, CodecError> {
        T::deserialize(&mut Deserializer::new(&mut self.0))
            .map_err(|error| CodecError::Undecodable(explain(&error)))
    }

    fn body(&mut self, kind: u8, payload: &mut Bytes) -> Result<MessageBody, CodecError> {
        Ok(match kind {
            kind::PRE_VOTE => MessageBody::RequestPreVote { last: self.next()? },
            kind::PRE_VOTE_ANSWER => MessageBody::PreVoteResponse { granted: self.next()? },
            kind::VOTE => {
                let (last, transfer) = self.next()?;
                MessageBody::RequestVote { last, transfer }
            }
            kind::VOTE_ANSWER => MessageBody::VoteResponse { granted: self.next()? },
            kind::APPEND => {
                let (previous, commit_index, run_count): (Position, Index, u64) = self.next()?;
                let entries = self.entries(previous, run_count, payload)?;
                MessageBody::AppendEntries { previous, entries, commit_index }
            }
            kind::APPEND_ACCEPTED => MessageBody::AppendAccepted { match_index: self.next()? },
            kind::APPEND_REJECTED => {
                let (previous_index, hint) = self.next()?;
                MessageBody::AppendRejected { previous_index, hint }
            }
            kind::HEARTBEAT => {
                let (round, commit_index) = self.next()?;
                MessageBody::Heartbeat { round, commit_index }
            }
            kind::HEARTBEAT_ANSWER => {
                let (round, version_max) = self.next()?;
                MessageBody::HeartbeatResponse { round, version_max }
            }
            kind::READ_INDEX => MessageBody::ReadIndex { id: self.next()? },
            kind::READ_INDEX_ANSWER => self.read_index_answer()?,
            kind::TIMEOUT_NOW => MessageBody::TimeoutNow { last: self.next()? },
            kind::RECOVERED => MessageBody::Recovered { number: self.next()? },
            kind::FOUNDING => {
                let (number, heard, met, version_max) = self.next()?;
                MessageBody::Founding { number, heard, met, version_max }
            }
            _ => return Err(CodecError::Rule("its kind is unknown")),
        })
    }

    fn read_index_answer(&mut self) -> Result<MessageBody, CodecError> {
        let (id, outcome, read_index): (u64, u8, Index) = self.next()?;
        let outcome = match (outcome, read_index) {
            (outcome::CONFIRMED, read_index) => ReadOutcome::Confirmed(read_index),
            (outcome::NOT_LEADER, 0) => ReadOutcome::NotLeader,
            (outcome::BUSY, 0) => ReadOutcome::Busy,
            _ => return Err(CodecError::Rule("the outcome of a read index is unknown")),
        };
        Ok(MessageBody::ReadIndexResponse { id, outcome })
    }

    fn entries(
        &mut self,
        previous: Position,
        run_count: u64,
        payload: &mut Bytes,
    ) -> Result<Vec<Entry>, CodecError> {
        let mut entries = Entries { last_index: previous.index, list: Vec::new(), size_bytes: 0 };
        // Each run has bytes in the header, so the header's end bounds the loop.
        for _ in 0..run_count {
            let (kind, term): (u8, Term) = self.next()?;
            match kind {
                run::NOOP => entries.push(term, Payload::Noop)?,
                run::CONFIGURATION => {
                    let configuration = self.configuration()?;
                    entries.push(term, Payload::Configuration(Box::new(configuration)))?;
                }
                run::CONFIGURATION_IN_CONTEXT => {
                    let mut configuration = self.configuration()?;
                    configuration.context = self.next()?;
                    if configuration.context.is_empty() {
                        return Err(CodecError::Rule("the context of a configuration is empty"));
                    }
                    entries.push(term, Payload::Configuration(Box::new(configuration)))?;
                }
                run::COMMANDS => {
                    let lengths: Vec<u32> = self.next()?;
                    if lengths.is_empty() {
                        return Err(CodecError::Rule("a run of commands has none"));
                    }
                    for length in lengths {
                        let length = length as usize;
                        if length > payload.len() {
                            return Err(CodecError::Rule("the commands are longer than the frame"));
                        }
                        entries.push(term, Payload::Command(payload.split_to(length)))?;
                    }
                }
                _ => return Err(CodecError::Rule("the kind of an entry is unknown")),
            }
        }
        Ok(entries.list)
    }

    fn configuration(&mut self) -> Result<Configuration, CodecError> {
        type Record = (NodeId, u64, bool, Bytes);
        type Ids = Vec<NodeId>;
        let (voters, outgoing, learners, records, next_id, founded, generation, cluster_version): (
            Ids,
            Ids,
            Ids,
            Vec<Record>,
            NodeId,
            bool,
            u32,
            u32,
        ) = self.next()?;
        let record_ids: Ids = records.iter().map(|(id, ..)| *id).collect();
        let (voters, outgoing) = (in_order(voters)?, in_order(outgoing)?);
        let (learners, _) = (in_order(learners)?, in_order(record_ids)?);
        let members = records.into_iter().map(|(id, incarnation, wants_vote, context)| {
            (id, Member { incarnation, wants_vote, context })
        });
        let members = members.collect();
        Ok(Configuration {
            voters,
            outgoing,
            learners,
            members,
            next_id,
            founded,
            generation,
            cluster_version,
            context: Bytes::new(),
        })
    }
}

/// Checks an extension section: the fields that later versions add after the fields of a header or
/// a hello, through its end. Each is a key and a length in MessagePack, `[key, length]`, and that
/// number of bytes; keys ascend. A reader skips the keys that it does not know. No key is known
/// today.
///
/// # Errors
/// [`CodecError`] if the bytes are not such a section, or more than 1 KiB.
pub fn skip_extensions(section: &[u8]) -> Result<(), CodecError> {
    if section.len() > EXTENSIONS_BYTES_MAX {
        return Err(CodecError::Rule("too much is left over in the header"));
    }
    let mut rest = Header(section);
    let mut last_key = None;
    while !rest.0.is_empty() {
        let (key, length): (u32, u32) = rest.next()?;
        if last_key.is_some_and(|last| key <= last) {
            return Err(CodecError::Rule("the extensions are not in the order of their keys"));
        }
        last_key = Some(key);
        let behind = rest.0.get(length as usize..);
        rest.0 = behind.ok_or(CodecError::Rule("an extension is longer than the header"))?;
    }
    Ok(())
}

/// Decodes a set of node ids from its one valid form: each id once, in ascending order.
fn in_order(ids: Vec<NodeId>) -> Result<BTreeSet<NodeId>, CodecError> {
    if ids.len() > MEMBERS_MAX {
        return Err(CodecError::Rule("a configuration has too many members"));
    }
    if !ids.is_sorted_by(|one, next| one < next) {
        return Err(CodecError::Rule("members are not in ascending order"));
    }
    Ok(ids.into_iter().collect())
}

/// Describes the error without bytes of the sender, which would end up in the log of this node.
fn explain(error: &rmp_serde::decode::Error) -> &'static str {
    use rmp_serde::decode::Error;
    match error {
        Error::InvalidMarkerRead(_) | Error::InvalidDataRead(_) => "it ends within a value",
        Error::TypeMismatch(_) => "a value is of another type",
        Error::OutOfRange => "a number is out of range",
        Error::LengthMismatch(_) => "a value has another number of fields",
        Error::DepthLimitExceeded => "a value is too deep",
        _ => "a value is malformed",
    }
}

/// The entries decoded so far, with their indexes, bounded in bytes.
struct Entries {
    last_index: Index,
    list: Vec<Entry>,
    size_bytes: u64,
}

impl Entries {
    fn push(&mut self, term: Term, payload: Payload) -> Result<(), CodecError> {
        let next = self.last_index.checked_add(1);
        let index = next.ok_or(CodecError::Rule("an index is out of range"))?;
        let entry = Entry { index, term, payload };
        self.size_bytes += entry.size_bytes();
        if self.size_bytes > FRAME_BYTES_MAX as u64 {
            return Err(CodecError::Rule("too many entries"));
        }
        self.last_index = index;
        self.list.push(entry);
        Ok(())
    }
}
