//! What each side says first on each of its message streams: who it is and what the stream carries.
//!
//! The certificate has already proven the node; this tells which data it has, catches mistakes in
//! the set-up with a clear text, and says which class follows.

use bytes::{BufMut, Bytes, BytesMut};
use raft_core::types::{Class, NodeId};

use super::WireError;
use super::frame::LENGTH_BYTES;
use crate::error::printable;

/// The largest hello.
pub(crate) const HELLO_BYTES_MAX: usize = 1024;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) cluster_id: String,
    pub(crate) node_id: NodeId,
    pub(crate) incarnation: u64,
    pub(crate) class: Class,
}

/// How a class is written, here and nowhere else.
fn class_number(class: Class) -> u8 {
    match class {
        Class::Control => 0,
        Class::Log => 1,
    }
}

impl Hello {
    /// With its length in front.
    pub(crate) fn encode(&self) -> Bytes {
        let fields = (&self.cluster_id, self.node_id, self.incarnation, class_number(self.class));
        let body = rmp_serde::to_vec(&fields).expect("numbers and a short text can be encoded");
        assert!(body.len() <= HELLO_BYTES_MAX, "a cluster id is at most 63 bytes");
        let mut frame = BytesMut::with_capacity(LENGTH_BYTES + body.len());
        frame.put_u32(body.len() as u32);
        frame.put_slice(&body);
        frame.freeze()
    }

    /// From a frame.
    pub(crate) fn decode(frame: &[u8]) -> Result<Self, WireError> {
        let what = "hello";
        let (cluster_id, node_id, incarnation, class): (String, NodeId, u64, u8) =
            rmp_serde::from_slice(frame).map_err(|error| WireError::Undecodable {
                what,
                reason: printable(&error.to_string()),
            })?;
        let class = Class::ALL
            .into_iter()
            .find(|known| class_number(*known) == class)
            .ok_or(WireError::Rule { what, rule: "the class is unknown" })?;
        let hello = Self { cluster_id, node_id, incarnation, class };
        match hello.encode()[LENGTH_BYTES..] == *frame {
            true => Ok(hello),
            false => Err(WireError::Rule { what, rule: "it is not in the form of ours" }),
        }
    }
}
