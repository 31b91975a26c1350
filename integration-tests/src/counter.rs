//! A small replicated state machine for tests of the node itself: it keeps the commands it was
//! given and numbers them.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kv_service::sim::Cluster;
use raft_core::driver::NodeConfig;
use raft_core::state_machine::{MachineError, MachineResult, SnapshotSource, StateMachine};
use raft_core::types::{Entry, Payload, Position, SnapshotMeta};

/// A cluster whose state machines are counters.
pub type Counters = Cluster<Counter>;

/// Nodes 1 to `size`, all running.
pub async fn counters(seed: u64, size: u64, max_raft_state_bytes: u64) -> Counters {
    let configure = move |config: &mut NodeConfig| {
        config.max_raft_state_bytes = max_raft_state_bytes;
    };
    Cluster::with_config(seed, size, configure, |_| Counter::default()).await
}

/// The commands that every running node holds, read from each node; they must be the same on all.
pub async fn commands(cluster: &Counters) -> Vec<Bytes> {
    let mut all = Vec::new();
    for node in cluster.nodes.values() {
        all.push(node.query_and_wait((), false).await.expect("a running node answers"));
    }
    assert!(all.windows(2).all(|pair| pair[0] == pair[1]), "nodes differ: {all:?}");
    all.swap_remove(0)
}

pub fn command(number: usize) -> Bytes {
    Bytes::from(format!("command {number}"))
}

/// Keeps every command; the output of a command is the number of commands so far.
#[derive(Debug, Default)]
pub struct Counter {
    position: Position,
    commands: Vec<Bytes>,
    restoring: Option<(Position, BytesMut)>,
}

impl StateMachine for Counter {
    type Output = u64;
    type Query = ();
    type Answer = Vec<Bytes>;

    fn last_applied(&self) -> Position {
        self.position
    }

    fn apply(&mut self, entries: &[Entry], outputs: &mut Vec<u64>) -> MachineResult<()> {
        for entry in entries {
            assert_eq!(entry.index, self.position.index + 1, "in order, each once");
            self.position = entry.position();
            if let Payload::Command(command) = &entry.payload {
                self.commands.push(command.clone());
                outputs.push(self.commands.len() as u64);
            }
        }
        Ok(())
    }

    fn query(&mut self, (): ()) -> Vec<Bytes> {
        self.commands.clone()
    }

    fn snapshot(&mut self) -> MachineResult<Box<dyn SnapshotSource>> {
        let mut bytes = BytesMut::new();
        for command in &self.commands {
            bytes.put_u32(u32::try_from(command.len()).expect("commands of tests are short"));
            bytes.put_slice(command);
        }
        Ok(Box::new(View { position: self.position, bytes: bytes.freeze() }))
    }

    fn begin_restore(&mut self, meta: &SnapshotMeta) -> MachineResult<()> {
        self.restoring = Some((meta.position, BytesMut::new()));
        Ok(())
    }

    fn restore_chunk(&mut self, chunk: Bytes) -> MachineResult<()> {
        let (_, bytes) = self.restoring.as_mut().ok_or_else(|| misuse("not begun"))?;
        bytes.extend_from_slice(&chunk);
        Ok(())
    }

    fn finish_restore(&mut self) -> MachineResult<()> {
        let (position, bytes) = self.restoring.take().ok_or_else(|| misuse("not begun"))?;
        let mut bytes = bytes.freeze();
        self.commands.clear();
        while bytes.has_remaining() {
            let length = bytes.try_get_u32().map_err(|error| misuse(&error.to_string()))?;
            self.commands.push(bytes.split_to(length as usize));
        }
        self.position = position;
        Ok(())
    }
}

fn misuse(what: &str) -> MachineError {
    MachineError(what.to_owned())
}

struct View {
    position: Position,
    bytes: Bytes,
}

impl SnapshotSource for View {
    fn position(&self) -> Position {
        self.position
    }

    fn next_chunk(&mut self, bytes_max: usize) -> MachineResult<Option<Bytes>> {
        let length = self.bytes.len().min(bytes_max);
        Ok((length > 0).then(|| self.bytes.split_to(length)))
    }
}
