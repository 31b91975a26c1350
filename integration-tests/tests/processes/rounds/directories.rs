//! Damage by operators and by decay to the directory of a stopped node.

use std::fs;
use std::path::PathBuf;

use integration_tests::processes::cluster::{Cluster, eventually};
use integration_tests::processes::workload::Workload;
use raft_core::types::NodeId;
use rand::Rng;

use super::{Run, WRITES_MIN};
use crate::directories::{copy, copy_identity, flip, middle_of_log};
use crate::disks::says_what_to_do;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    Wiped,
    /// Restored from a copy that is older than the node's acknowledgements since.
    OlderCopy,
    OfAnotherNode,
    LogByteFlipped,
    SnapshotByteFlipped,
}

impl Fault {
    pub(super) const ALL: [Fault; 5] = [
        Fault::Wiped,
        Fault::OlderCopy,
        Fault::OfAnotherNode,
        Fault::LogByteFlipped,
        Fault::SnapshotByteFlipped,
    ];
}

impl Run {
    pub(super) async fn inflict_on_directory(
        &mut self,
        fault: Fault,
        leader: NodeId,
        load: &Workload,
    ) {
        let victim = self.follower(leader);
        match fault {
            Fault::Wiped => self.wipe(victim).await,
            Fault::OlderCopy => put_back_an_older_copy(&mut self.cluster, victim, load).await,
            Fault::OfAnotherNode => give_that_of_another(&mut self.cluster, victim).await,
            Fault::LogByteFlipped => self.flip_byte_of_log(victim, load).await,
            Fault::SnapshotByteFlipped => self.flip_byte_of_snapshot(victim).await,
        }
        // A node whose disk was lost is readmitted once all other voters have answered the leader.
        // If the next fault took one of them before that, two of three would be gone.
        eventually("the node to count again", async || {
            let status = self.cluster.status(victim).await;
            status.is_some_and(|status| matches!(&status.role[..], "follower" | "leader"))
        })
        .await;
    }

    async fn wipe(&mut self, victim: NodeId) {
        self.cluster.empty(victim).await;
        self.last(0..500).await;
        self.cluster.node(victim).start();
        self.cluster.is_filled(victim).await;
        self.cluster.converges().await;
    }

    async fn flip_byte_of_log(&mut self, victim: NodeId, load: &Workload) {
        let (file, place) = self.stop_with_a_long_log(victim, load).await;
        flip(&file, place);
        self.cluster.node(victim).start();
        says_what_to_do(&self.cluster.node(victim).gives_up().await, "damage");
        // A refused directory is not altered: with the byte restored, the node starts.
        flip(&file, place);
        self.cluster.node(victim).start();
    }

    /// Kills a node that has several batches in the file that its log is written to; returns a
    /// place in one that is not the last. In another file the damage would have no effect: tables
    /// are read instead.
    async fn stop_with_a_long_log(&mut self, victim: NodeId, load: &Workload) -> (PathBuf, usize) {
        const ATTEMPTS: usize = 10;
        for _ in 0..ATTEMPTS {
            // Before that, the node may go on to another file at any time.
            let node = &self.cluster.nodes[&victim];
            eventually("the log's files", async || node.said().contains("ready for reuse")).await;
            load.advances_by(WRITES_MIN).await;
            self.cluster.converges().await;
            self.cluster.node(victim).kill().await;
            if let Some(found) = middle_of_log(&self.cluster.nodes[&victim].log_files(".log")) {
                return found;
            }
            // The node has just gone on to another file.
            self.cluster.node(victim).start();
        }
        panic!("{ATTEMPTS} times the log had just begun another file");
    }

    /// Flips a byte anywhere in the file. The damage is noticed at the start, or when the snapshot
    /// is needed, or never.
    async fn flip_byte_of_snapshot(&mut self, victim: NodeId) {
        let file = &self.cluster.kill_with_snapshot(victim).await;
        // The header is hit more often than its size would give.
        let length = file.metadata().unwrap().len() as usize;
        let length = if self.chance.random_bool(0.3) { 64 } else { length };
        let place = self.chance.random_range(0..length);
        flip(file, place);
        self.cluster.node(victim).start();
        let mut has_ended = false;
        eventually("the node to serve or to give up", async || {
            has_ended = self.cluster.node(victim).has_ended().is_some();
            has_ended || self.cluster.status(victim).await.is_some()
        })
        .await;
        if has_ended {
            says_what_to_do(&self.cluster.node(victim).gives_up().await, "damage");
            flip(file, place);
            self.cluster.node(victim).start();
        }
    }
}

async fn put_back_an_older_copy(cluster: &mut Cluster, victim: NodeId, load: &Workload) {
    assert!(cluster.node(victim).stop().await.success());
    let data = cluster.nodes[&victim].data.clone();
    let (backup, aside) = (cluster.dir().join("backup"), data.with_extension("aside"));
    copy(&data, &backup);
    cluster.node(victim).start();
    load.advances_by(WRITES_MIN).await;
    cluster.converges().await;
    cluster.node(victim).kill().await;
    fs::rename(&data, &aside).unwrap();
    copy(&backup, &data);
    cluster.node(victim).start();
    says_what_to_do(&cluster.node(victim).gives_up().await, "copy");
    fs::remove_dir_all(&data).unwrap();
    fs::rename(&aside, &data).unwrap();
    fs::remove_dir_all(&backup).unwrap();
    cluster.node(victim).start();
}

async fn give_that_of_another(cluster: &mut Cluster, victim: NodeId) {
    let [other, _] = cluster.peers_of(victim);
    cluster.node(victim).kill().await;
    let data = cluster.nodes[&victim].data.clone();
    let aside = data.with_extension("aside");
    fs::rename(&data, &aside).unwrap();
    copy_identity(&cluster.nodes[&other].data, &data);
    cluster.node(victim).start();
    let said = cluster.node(victim).gives_up().await;
    assert!(said.contains(&format!("belongs to node {other}")), "{said}");
    fs::remove_dir_all(&data).unwrap();
    fs::rename(&aside, &data).unwrap();
    cluster.node(victim).start();
}
