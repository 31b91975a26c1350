//! This node's own membership: the identity of its disk, and the end that comes with its removal,
//! or with another disk.

use std::io;
use std::sync::{Arc, OnceLock};

use tokio::sync::Notify;

use crate::config::ServerConfig;
use crate::error::ServerError;
use crate::members::ClusterUid;
use crate::net::peers::PeerBook;

/// The node's directory, as far as it tells of the node's membership. All notes are durable.
pub(crate) trait MemberDirectory: Send + Sync {
    /// Notes that the node was removed.
    fn mark_removed(&self) -> io::Result<()>;

    /// Notes the uid of the cluster.
    fn set_cluster_uid(&self, uid: ClusterUid) -> io::Result<()>;
}

/// Why a node stops for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The node was removed from the cluster.
    Removed,
    /// The members have recorded another data directory of this node.
    Replaced,
}

/// The parts of a node that follow the members.
pub(super) struct Membership {
    pub(super) book: Option<Arc<dyn PeerBook>>,
    directory: Option<Arc<dyn MemberDirectory>>,
    /// Identity of the node's disk; 0 if it has none.
    pub(super) incarnation: u64,
    /// The uid of the cluster, as the node's directory or its file has it.
    uid_at_start: Option<ClusterUid>,
    /// The same, as the committed members have it.
    uid: OnceLock<ClusterUid>,
    end: OnceLock<End>,
    has_ended: Notify,
}

impl Membership {
    pub(super) fn new(
        book: Option<Arc<dyn PeerBook>>,
        directory: Option<Arc<dyn MemberDirectory>>,
        incarnation: u64,
        uid_at_start: Option<ClusterUid>,
    ) -> Self {
        let (uid, end, has_ended) = (OnceLock::new(), OnceLock::new(), Notify::new());
        Self { book, directory, incarnation, uid_at_start, uid, end, has_ended }
    }

    /// Why the node stops for good, if it does.
    pub(super) fn end(&self) -> Option<End> {
        self.end.get().copied()
    }

    /// Waits until this node must stop for good.
    pub(super) async fn ended(&self) -> End {
        loop {
            if let Some(end) = self.end() {
                return end;
            }
            self.has_ended.notified().await;
        }
    }

    /// The uid of the cluster, once the node knows it.
    pub(super) fn uid(&self) -> Option<ClusterUid> {
        self.uid.get().copied().or(self.uid_at_start)
    }

    /// Notes the uid of the cluster: the peers must have the same one from now on.
    pub(super) fn note_uid(&self, uid: ClusterUid) {
        if self.uid.set(uid).is_err() {
            return;
        }
        if let Some(other) = self.uid_at_start.filter(|other| *other != uid) {
            tracing::error!(
                "the members have the cluster uid {uid}, and this node's file or directory {other}: \
                 correct cluster_uid in the file; the other nodes refuse this one until then"
            );
            return;
        }
        if let Some(book) = &self.book {
            book.set_cluster_uid(uid.number());
        }
        if let Some(directory) = self.directory.clone() {
            // If that fails, the replicated log still has it when the node starts again.
            tokio::task::spawn_blocking(move || {
                if let Err(error) = directory.set_cluster_uid(uid) {
                    tracing::warn!("the uid of the cluster cannot be written down: {error}");
                }
            });
        }
    }

    /// Notes that the node was removed, on its disk first.
    pub(super) async fn note_removal(&self) {
        if let Some(directory) = self.directory.clone() {
            // A slow disk must not stop the node's other tasks: a leader is handing over.
            let marked = tokio::task::spawn_blocking(move || directory.mark_removed()).await;
            if let Err(error) = marked.map_err(io::Error::other).and_then(|marked| marked) {
                tracing::error!("that this node was removed cannot be written down: {error}");
            }
        }
        self.note(End::Removed);
    }

    /// Notes that the members have recorded another disk. This disk need not be marked: it holds
    /// that record, or the node asks the others again.
    pub(super) fn note_replacement(&self) {
        self.note(End::Replaced);
    }

    fn note(&self, end: End) {
        let _ = self.end.set(end);
        self.has_ended.notify_one();
    }
}

impl End {
    /// The error with which such a node ends. It tells the operator what to do.
    pub(super) fn error(self, config: &ServerConfig) -> ServerError {
        let (id, cluster, dir) = (config.node_id, &config.cluster_id, config.data_dir.display());
        match self {
            End::Removed => ServerError::Removed(format!(
                "node {id} was removed from cluster {cluster}, and its id is never used again. To \
                 use this machine again, delete {dir} and add a new member (`kv member add`)"
            )),
            End::Replaced => ServerError::Replaced(format!(
                "{dir} is an old data directory of node {id}: cluster {cluster} has recorded \
                 another one, on which the node has run since, and this one lacks what the node \
                 has acknowledged there. Start the node with the newer directory; if that is lost, \
                 delete this one and start the node again: it recovers from the others"
            )),
        }
    }
}
