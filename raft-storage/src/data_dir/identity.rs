//! The identity of a node's directory, as a record.

use std::path::Path;

use raft_core::storage::{StorageError, StorageResult};
use raft_core::types::NodeId;

use super::{FORMAT_VERSION, check_version};
use crate::format::records::flag;
use crate::record::{Damage, seal, unseal};

pub(super) const TAG_IDENTITY: u8 = b'I';

/// The owner of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DirectoryIdentity {
    pub(super) cluster_id: String,
    pub(super) node_id: NodeId,
    /// Random number of this directory.
    pub(super) incarnation: u64,
    /// True for a new member of a new cluster; false for a node that may have given promises on an
    /// earlier disk.
    pub(super) was_initialised: bool,
    /// Random id of the cluster; zeros until the cluster has one.
    pub(super) cluster_uid: [u8; 16],
    /// Fingerprint of the key that belongs to this directory's log.
    pub(super) log_key_fingerprint: u64,
}

impl DirectoryIdentity {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let cluster_id_bytes = u8::try_from(self.cluster_id.len()).expect("checked at the door");
        seal(TAG_IDENTITY, |out| {
            out.extend_from_slice(&FORMAT_VERSION.to_be_bytes());
            out.extend_from_slice(&self.node_id.to_be_bytes());
            out.extend_from_slice(&self.incarnation.to_be_bytes());
            out.push(u8::from(self.was_initialised));
            out.extend_from_slice(&self.cluster_uid);
            out.extend_from_slice(&self.log_key_fingerprint.to_be_bytes());
            out.push(cluster_id_bytes);
            out.extend_from_slice(self.cluster_id.as_bytes());
        })
    }

    pub(crate) fn decode(bytes: &[u8], path: &Path) -> StorageResult<Self> {
        let corrupt = |damage: Damage| {
            StorageError::Corrupt(format!(
                "the identity {} is damaged ({damage}): restore this one file from a backup of the \
                 same node, or move the directory away and let the node be re-admitted as a new one",
                path.display()
            ))
        };
        let mut fields = unseal(TAG_IDENTITY, bytes).map_err(corrupt)?;
        let version = fields.u16().map_err(corrupt)?;
        check_version(version, path)?;
        let mut read = || {
            let node_id = fields.u64()?;
            let incarnation = fields.u64()?;
            let was_initialised = flag(&mut fields)?;
            let cluster_uid = fields.bytes(16)?.try_into().expect("16 were asked for");
            let log_key_fingerprint = fields.u64()?;
            let len = fields.u8()?;
            let cluster_id = std::str::from_utf8(fields.bytes(usize::from(len))?)
                .map_err(|_| Damage("the cluster id is not UTF-8".to_owned()))?
                .to_owned();
            Ok(DirectoryIdentity {
                cluster_id,
                node_id,
                incarnation,
                was_initialised,
                cluster_uid,
                log_key_fingerprint,
            })
        };
        let identity = read().map_err(corrupt)?;
        fields.done().map_err(corrupt)?;
        Ok(identity)
    }

    pub(super) fn expect(
        &self,
        cluster_id: &str,
        node_id: NodeId,
        path: &Path,
    ) -> StorageResult<()> {
        if self.cluster_id == cluster_id && self.node_id == node_id {
            return Ok(());
        }
        Err(StorageError::Refused(format!(
            "{} belongs to node {} of cluster {:?}, and this is node {node_id} of cluster \
             {cluster_id:?}: start the node that it belongs to, or name another directory",
            path.display(),
            self.node_id,
            self.cluster_id,
        )))
    }
}
