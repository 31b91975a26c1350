//! Moments in the life of a snapshot.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use raft_core::storage::Storage;
use raft_core::types::NodeId;
use raft_storage::DataDir;
use raft_storage::rocksdb::{RocksOptions, RocksStorage};
use tokio::time::sleep;

use super::cluster::{CLUSTER_ID, Cluster, eventually};
use super::node::files_below;

impl Cluster {
    /// Waits until part of a snapshot from a peer has arrived at this node, and not yet all of it.
    pub async fn receives_snapshot(&self, id: NodeId) {
        let snapshots = self.nodes[&id].data.join("snapshots");
        let is_long = |file: &PathBuf| file.metadata().is_ok_and(|file| file.len() > 64 << 10);
        eventually("a snapshot to be under way", async || {
            files_below(&snapshots, ".part").iter().any(is_long)
        })
        .await;
    }

    /// Waits until an emptied node has installed a snapshot. The file of the snapshot is removed
    /// soon after.
    pub async fn is_filled(&self, id: NodeId) {
        eventually("a snapshot to have arrived", async || {
            self.status(id).await.is_some_and(|status| status.snapshot_index > 0)
        })
        .await;
    }

    /// Empties the node, lets it receive a snapshot, and kills it while the snapshot that has
    /// replaced its log is on its disk. Returns that file.
    ///
    /// # Panics
    /// If the moment is missed in every attempt.
    pub async fn kill_with_snapshot(&mut self, id: NodeId) -> PathBuf {
        const ATTEMPTS: u64 = 50;
        for attempt in 0..ATTEMPTS {
            self.empty(id).await;
            self.node(id).start();
            let snapshots = self.nodes[&id].data.join("snapshots");
            let is_there = || !files_below(&snapshots, ".snap").is_empty();
            let is_over =
                async || self.status(id).await.is_some_and(|status| status.snapshot_index > 0);
            let watched = async {
                while !is_there() {
                    sleep(Duration::from_millis(1)).await;
                }
            };
            tokio::select! {
                () = watched => {}
                () = eventually("a snapshot to have arrived", is_over) => {}
            }
            // Vary the moment: it has to fall between the batch that publishes the snapshot and the
            // flush that makes it superfluous.
            sleep(Duration::from_millis(attempt % 10 * 2)).await;
            self.node(id).kill().await;
            if let Some(file) = files_below(&snapshots, ".snap").pop()
                && self.has_published(id).await
            {
                return file;
            }
        }
        panic!("{ATTEMPTS} times the snapshot was gone or not yet published");
    }

    /// Returns true if the disk of a node that does not run has a published snapshot.
    async fn has_published(&self, id: NodeId) -> bool {
        let dir = DataDir::open(&self.nodes[&id].data, CLUSTER_ID, id).expect("no process uses it");
        let storage = RocksStorage::open(Arc::new(dir), RocksOptions::default());
        let loaded = storage.expect("the log is whole").load().await.expect("the log is whole");
        loaded.snapshot.is_some()
    }
}
