//! Our side: whole nodes on the network within a process and on disks in memory.

use std::sync::Arc;

use anyhow::Context;
use bytes::Bytes;
use raft_core::driver::{Node, NodeConfig};
use raft_core::state_machine::{MachineResult, SnapshotSource, StateMachine};
use raft_core::transport::channel::ChannelNetwork;
use raft_core::types::{Entry, NodeId, Payload, Position, SnapshotMeta};
use raft_storage::memory::MemoryDisk;

use super::Group;

const NODES: [NodeId; 3] = [1, 2, 3];

pub(super) struct Cluster {
    nodes: Vec<Node<Nothing>>,
    leader: usize,
}

impl Cluster {
    pub(super) async fn start() -> anyhow::Result<Self> {
        let network = ChannelNetwork::new(1);
        let mut nodes = Vec::new();
        for id in NODES {
            let storage = Arc::new(MemoryDisk::new().storage());
            let config = NodeConfig::new(id, NODES, id);
            let transport = network.transport(id);
            nodes.push(Node::start(config, storage, transport, Nothing::default()).await?);
        }
        let mut watch = nodes[0].watch();
        let seen = watch.wait_for(|seen| seen.leader.is_some()).await?;
        let leader = seen.leader.context("just waited for it")?;
        drop(seen);
        let leader = NODES.iter().position(|id| *id == leader).context("one of the nodes leads")?;
        let mut watch = nodes[leader].watch();
        watch.wait_for(|seen| seen.is_leader).await?;
        Ok(Self { nodes, leader })
    }

    pub(super) fn leader(&self) -> Leader {
        Leader(self.nodes[self.leader].clone())
    }

    pub(super) async fn stop(self) {
        for node in self.nodes {
            node.shutdown().await;
        }
    }
}

#[derive(Clone)]
pub(super) struct Leader(Node<Nothing>);

impl Group for Leader {
    async fn commit(&self) -> anyhow::Result<()> {
        Ok(self.0.propose_and_wait(Bytes::new()).await?)
    }
}

/// A machine that only knows how far it is.
#[derive(Debug, Default)]
pub(super) struct Nothing {
    position: Position,
}

impl StateMachine for Nothing {
    type Output = ();
    type Query = ();
    type Answer = ();

    fn last_applied(&self) -> Position {
        self.position
    }

    fn apply(&mut self, entries: &[Entry], outputs: &mut Vec<()>) -> MachineResult<()> {
        for entry in entries {
            if let Payload::Command(_) = &entry.payload {
                outputs.push(());
            }
            self.position = entry.position();
        }
        Ok(())
    }

    fn query(&mut self, (): ()) {}

    fn snapshot(&mut self) -> MachineResult<Box<dyn SnapshotSource>> {
        Ok(Box::new(Empty { position: self.position }))
    }

    fn begin_restore(&mut self, meta: &SnapshotMeta) -> MachineResult<()> {
        self.position = meta.position;
        Ok(())
    }

    fn restore_chunk(&mut self, _chunk: Bytes) -> MachineResult<()> {
        Ok(())
    }

    fn finish_restore(&mut self) -> MachineResult<()> {
        Ok(())
    }

    fn can_apply_inline(&self, _entries: &[Entry]) -> bool {
        true
    }
}

struct Empty {
    position: Position,
}

impl SnapshotSource for Empty {
    fn position(&self) -> Position {
        self.position
    }

    fn next_chunk(&mut self, _bytes_max: usize) -> MachineResult<Option<Bytes>> {
        Ok(None)
    }
}
