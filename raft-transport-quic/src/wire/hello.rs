//! The first frame of each message stream: the identity of the sending node, its members, and the
//! class of the messages that follow.
//!
//! The certificate has already proven the node. The hello adds facts that no certificate has: the
//! node's incarnation, the members in its configuration, and the versions of the replicated formats
//! that it supports. Mistakes in the set-up are refused here with a message for the operator.

use std::collections::BTreeSet;
use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use raft_core::codec::{LENGTH_BYTES, skip_extensions};
use raft_core::types::{Class, NodeId};
use ring::digest::{SHA256, digest};
use rmp_serde::Deserializer;
use serde::Deserialize;

use super::WireError;
use crate::error::printable;

/// Largest hello, in bytes.
pub(crate) const HELLO_BYTES_MAX: usize = 2048;

/// Most ids in the list of members. The digest covers all members.
pub(crate) const MEMBERS_LISTED_MAX: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) cluster_id: String,
    /// Drawn when the cluster is founded; 0 while it has none.
    pub(crate) cluster_uid: u128,
    pub(crate) node_id: NodeId,
    pub(crate) incarnation: u64,
    pub(crate) class: Class,
    /// The oldest and the newest cluster version that the node supports.
    pub(crate) versions: (u32, u32),
    pub(crate) members: Members,
    /// Reserved: how often the cluster was restored, and whether it is founded, as the node knows
    /// it.
    pub(crate) generation: u32,
    pub(crate) founded: bool,
}

/// The ids of all members in the configuration of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Members {
    digest: u64,
    /// In ascending order, [`MEMBERS_LISTED_MAX`] at most. For the error text only.
    listed: Vec<NodeId>,
}

impl Members {
    pub(crate) fn new(ids: &BTreeSet<NodeId>) -> Self {
        let listed = ids.iter().copied().take(MEMBERS_LISTED_MAX).collect();
        Self { digest: Self::digest_of(ids.iter().copied()), listed }
    }

    /// Stands for the members in the replicated log, which need not be the same on two nodes at the
    /// same time: no list at all.
    pub(crate) fn of_the_log() -> Self {
        Self::new(&BTreeSet::new())
    }

    /// The first 8 bytes of the SHA-256 over the ids in ascending order, 8 bytes each, big endian.
    fn digest_of(ids: impl Iterator<Item = NodeId>) -> u64 {
        let bytes: Vec<u8> = ids.flat_map(NodeId::to_be_bytes).collect();
        let digest = digest(&SHA256, &bytes);
        let first = digest.as_ref().first_chunk().expect("a SHA-256 has 32 bytes");
        u64::from_be_bytes(*first)
    }

    /// Returns true unless two nodes name other members in their configurations.
    pub(crate) fn are_those_of(&self, other: &Self) -> bool {
        let of_the_log = Self::of_the_log();
        self.digest == other.digest || [self, other].contains(&&of_the_log)
    }

    fn check(&self) -> Result<(), WireError> {
        let what = "hello";
        if self.listed.len() > MEMBERS_LISTED_MAX {
            return Err(WireError::Rule { what, rule: "it lists too many members" });
        }
        if !self.listed.is_sorted_by(|one, next| one < next) {
            return Err(WireError::Rule { what, rule: "the members are not in ascending order" });
        }
        let is_whole = self.listed.len() < MEMBERS_LISTED_MAX;
        if is_whole && self.digest != Self::digest_of(self.listed.iter().copied()) {
            return Err(WireError::Rule { what, rule: "the digest is not that of the members" });
        }
        Ok(())
    }
}

impl fmt::Display for Members {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, id) in self.listed.iter().enumerate() {
            if place > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{id}")?;
        }
        if self.listed.len() == MEMBERS_LISTED_MAX {
            write!(f, ", ... (digest {:016x})", self.digest)?;
        }
        Ok(())
    }
}

/// The number of a class in a hello; it is used nowhere else.
fn class_number(class: Class) -> u8 {
    match class {
        Class::Control => 0,
        Class::Log => 1,
    }
}

/// The fields in the order of the wire; the cluster uid in two halves.
type Fields = (String, u64, u64, NodeId, u64, u8, u32, u32, u64, Vec<NodeId>, u32, bool);

impl Hello {
    /// Encodes the hello, with its length in front.
    pub(crate) fn encode(&self) -> Bytes {
        let body = self.encode_body();
        assert!(body.len() <= HELLO_BYTES_MAX, "a cluster id is at most 63 bytes");
        let mut frame = BytesMut::with_capacity(LENGTH_BYTES + body.len());
        frame.put_u32(body.len() as u32);
        frame.put_slice(&body);
        frame.freeze()
    }

    fn encode_body(&self) -> Vec<u8> {
        let fields: Fields = (
            self.cluster_id.clone(),
            (self.cluster_uid >> 64) as u64,
            self.cluster_uid as u64,
            self.node_id,
            self.incarnation,
            class_number(self.class),
            self.versions.0,
            self.versions.1,
            self.members.digest,
            self.members.listed.clone(),
            self.generation,
            self.founded,
        );
        rmp_serde::to_vec(&fields).expect("numbers and a short text can be encoded")
    }

    /// Decodes a frame without its length. Fields that later versions add are skipped.
    pub(crate) fn decode(frame: &[u8]) -> Result<Self, WireError> {
        let what = "hello";
        let mut rest = frame;
        let (
            cluster_id,
            uid_high,
            uid_low,
            node_id,
            incarnation,
            class,
            version_min,
            version_max,
            digest,
            listed,
            generation,
            founded,
        ) = Fields::deserialize(&mut Deserializer::new(&mut rest)).map_err(|error| {
            WireError::Undecodable { what, reason: printable(&error.to_string()) }
        })?;
        let class = Class::ALL
            .into_iter()
            .find(|known| class_number(*known) == class)
            .ok_or(WireError::Rule { what, rule: "the class is unknown" })?;
        let hello = Self {
            cluster_id,
            cluster_uid: u128::from(uid_high) << 64 | u128::from(uid_low),
            node_id,
            incarnation,
            class,
            versions: (version_min, version_max),
            members: Members { digest, listed },
            generation,
            founded,
        };
        hello.members.check()?;
        let fields_bytes = frame.len() - rest.len();
        if hello.encode_body() != frame[..fields_bytes] {
            return Err(WireError::Rule { what, rule: "it is not in the shortest form" });
        }
        skip_extensions(rest)?;
        Ok(hello)
    }
}
