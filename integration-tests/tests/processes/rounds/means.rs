//! The tools that some faults need; a fault whose tool is missing is not run.

use std::collections::BTreeMap;
use std::path::PathBuf;

use integration_tests::processes::cluster::NODES;
use integration_tests::processes::disk::Disk;
use integration_tests::processes::inject::Injection;
use integration_tests::processes::means::not_run;
use integration_tests::processes::node::Node;
use integration_tests::processes::preload::Preload;
use raft_core::types::NodeId;

use super::Fault;

const DISK_MEBIBYTES: u64 = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Means {
    /// A file system of its own for each node.
    Disks,
    /// `strace`, which tampers with system calls.
    Strace,
    /// A library that makes single writes and syncs fail.
    FileFaults,
}

pub(super) fn disks() -> Result<BTreeMap<NodeId, Disk>, String> {
    NODES.into_iter().map(|id| Ok((id, Disk::new(DISK_MEBIBYTES)?))).collect()
}

pub(super) fn strace(node: &Node) -> Result<(), String> {
    Injection::into_node(node, &["fdatasync:delay_exit=1"]).map(drop)
}

pub(super) fn file_faults() -> Result<(), String> {
    Preload::new(PathBuf::new()).map(drop)
}

/// `missing` holds for each of these tools why it is missing, or `None`.
pub(super) fn of_which_there_are_means(
    mut faults: Vec<Fault>,
    missing: &BTreeMap<Means, Option<String>>,
) -> Vec<Fault> {
    faults.retain(|fault| {
        let why = fault.needs().and_then(|means| missing[&means].as_ref());
        if let Some(why) = why {
            not_run(&format!("rounds of {fault:?}"), why);
        }
        why.is_none()
    });
    faults
}
