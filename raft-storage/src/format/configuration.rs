//! The members of the cluster as bytes: in entries, in the log start and with snapshots.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use raft_core::types::{Configuration, Member, NodeId};

use super::records::flag;
use crate::record::{Damage, Fields};

/// The cluster exists.
const FOUNDED: u8 = 1;

/// The context of the cluster follows the members.
const HAS_CONTEXT: u8 = 2;

pub(super) fn put_configuration(out: &mut Vec<u8>, configuration: &Configuration) {
    // Names every field, so that a new one cannot be forgotten here.
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
    for set in [voters, outgoing, learners] {
        put_count(out, set.len());
        for node in set {
            out.extend_from_slice(&node.to_be_bytes());
        }
    }
    out.extend_from_slice(&next_id.to_be_bytes());
    let has_context = !context.is_empty();
    let flags = if *founded { FOUNDED } else { 0 } | if has_context { HAS_CONTEXT } else { 0 };
    out.push(flags);
    out.extend_from_slice(&generation.to_be_bytes());
    out.extend_from_slice(&cluster_version.to_be_bytes());
    put_count(out, members.len());
    for (node, Member { incarnation, wants_vote, context }) in members {
        out.extend_from_slice(&node.to_be_bytes());
        out.extend_from_slice(&incarnation.to_be_bytes());
        out.push(u8::from(*wants_vote));
        put_bytes(out, context);
    }
    if has_context {
        put_bytes(out, context);
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_count(out, bytes.len());
    out.extend_from_slice(bytes);
}

pub(super) fn put_count(out: &mut Vec<u8>, count: usize) {
    let count = u32::try_from(count).expect("fewer than 2^32 members, and bytes of a context");
    out.extend_from_slice(&count.to_be_bytes());
}

pub(super) fn configuration(fields: &mut Fields<'_>) -> Result<Configuration, Damage> {
    let mut set = || {
        // The count is not trusted: nothing is reserved for it, and reading fails when the bytes
        // end.
        let mut nodes = BTreeSet::new();
        for _ in 0..fields.u32()? {
            let node = next_node(fields.u64()?, nodes.last())?;
            nodes.insert(node);
        }
        Ok(nodes)
    };
    let (voters, outgoing, learners) = (set()?, set()?, set()?);
    let next_id = fields.u64()?;
    let flags = fields.u8()?;
    if flags & !(FOUNDED | HAS_CONTEXT) != 0 {
        return Err(Damage(format!("a configuration has the flags {flags:#b}")));
    }
    let (founded, has_context) = (flags & FOUNDED != 0, flags & HAS_CONTEXT != 0);
    let mut configuration = Configuration {
        voters,
        outgoing,
        learners,
        members: BTreeMap::new(),
        next_id,
        founded,
        generation: fields.u32()?,
        cluster_version: fields.u32()?,
        context: Bytes::new(),
    };
    for _ in 0..fields.u32()? {
        let last = configuration.members.keys().next_back();
        let node = next_node(fields.u64()?, last)?;
        if !configuration.is_member(node) {
            return Err(Damage(format!("a record of node {node}, which is no member")));
        }
        let (incarnation, wants_vote) = (fields.u64()?, flag(fields)?);
        let context = bytes(fields)?;
        configuration.members.insert(node, Member { incarnation, wants_vote, context });
    }
    if has_context {
        configuration.context = bytes(fields)?;
        if configuration.context.is_empty() {
            return Err(Damage("the context of a configuration is empty".to_owned()));
        }
    }
    Ok(configuration)
}

fn bytes(fields: &mut Fields<'_>) -> Result<Bytes, Damage> {
    let len = fields.u32()? as usize;
    Ok(Bytes::copy_from_slice(fields.bytes(len)?))
}

/// Sets and maps have one form: ascending, each node once. No node has the id 0.
fn next_node(node: NodeId, last: Option<&NodeId>) -> Result<NodeId, Damage> {
    if last.copied().unwrap_or(0) < node {
        Ok(node)
    } else {
        Err(Damage("members are out of order, twice there, or 0".to_owned()))
    }
}
