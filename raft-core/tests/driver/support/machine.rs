//! A state machine that keeps its commands: in memory, or durably up to the last flush.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use raft_core::state_machine::{
    Flusher, MachineError, MachineResult, SnapshotSource, StateMachine,
};
use raft_core::types::{Entry, Index, Payload, Position, SnapshotMeta};

/// Switches with which a test hinders a machine, and counts of its calls.
#[derive(Default)]
pub(crate) struct Knobs {
    /// `apply` and `query` do not return while this is set. For machines with a thread of their
    /// own.
    pub(crate) is_stuck: AtomicBool,
    /// `apply` panics.
    pub(crate) panics: AtomicBool,
    pub(crate) views_count: AtomicU64,
    /// Each view repeats the first one's position.
    pub(crate) views_stand_still: AtomicBool,
    pub(crate) flushes_count: AtomicU64,
    /// Bytes of a snapshot beyond those of the commands.
    pub(crate) padding_bytes: AtomicU64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) position: Position,
    pub(crate) commands: Vec<Bytes>,
}

/// The disk of a durable machine.
pub(crate) type StateDisk = Arc<Mutex<State>>;

pub(crate) struct Machine {
    pub(crate) state: State,
    pub(crate) knobs: Arc<Knobs>,
    pub(crate) blocks: bool,
    /// The disk; `None` for a volatile machine.
    disk: Option<StateDisk>,
    /// Shared with the flusher.
    current: Arc<Mutex<State>>,
    restoring: Option<(Position, BytesMut)>,
}

impl Machine {
    pub(crate) fn volatile(knobs: &Arc<Knobs>) -> Self {
        Self {
            state: State::default(),
            knobs: Arc::clone(knobs),
            blocks: false,
            disk: None,
            current: Arc::default(),
            restoring: None,
        }
    }

    /// Starts with the state on the disk.
    pub(crate) fn durable(knobs: &Arc<Knobs>, disk: &StateDisk) -> Self {
        let state = disk.lock().expect("no panic under the lock").clone();
        let current = Arc::new(Mutex::new(state.clone()));
        Self { state, current, disk: Some(Arc::clone(disk)), ..Self::volatile(knobs) }
    }

    fn wait_while_stuck(&self) {
        while self.knobs.is_stuck.load(Ordering::SeqCst) {
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }

    fn keep(&self) {
        if self.disk.is_some() {
            *self.current.lock().expect("no panic under the lock") = self.state.clone();
        }
    }
}

impl StateMachine for Machine {
    type Output = u64;
    type Query = ();
    type Answer = Vec<Bytes>;

    fn last_applied(&self) -> Position {
        self.state.position
    }

    fn apply(&mut self, entries: &[Entry], outputs: &mut Vec<u64>) -> MachineResult<()> {
        self.wait_while_stuck();
        assert!(!self.knobs.panics.load(Ordering::SeqCst), "as the test wants it");
        for entry in entries {
            assert_eq!(entry.index, self.state.position.index + 1, "in order, each once");
            self.state.position = entry.position();
            if let Payload::Command(command) = &entry.payload {
                self.state.commands.push(command.clone());
                outputs.push(self.state.commands.len() as u64);
            }
        }
        self.keep();
        Ok(())
    }

    fn query(&mut self, (): ()) -> Vec<Bytes> {
        self.wait_while_stuck();
        self.state.commands.clone()
    }

    fn snapshot(&mut self) -> MachineResult<Box<dyn SnapshotSource>> {
        self.knobs.views_count.fetch_add(1, Ordering::SeqCst);
        let mut bytes = BytesMut::new();
        for command in &self.state.commands {
            bytes.put_u32(u32::try_from(command.len()).expect("commands of tests are short"));
            bytes.put_slice(command);
        }
        let padding = self.knobs.padding_bytes.load(Ordering::SeqCst) as usize;
        bytes.put_u32(u32::MAX);
        bytes.put_bytes(7, padding);
        let mut position = self.state.position;
        if self.knobs.views_stand_still.load(Ordering::SeqCst) {
            position = Position::new(1, 1);
        }
        Ok(Box::new(View { position, bytes: bytes.freeze() }))
    }

    fn begin_restore(&mut self, meta: &SnapshotMeta) -> MachineResult<()> {
        self.restoring = Some((meta.position, BytesMut::new()));
        Ok(())
    }

    fn restore_chunk(&mut self, chunk: Bytes) -> MachineResult<()> {
        let (_, bytes) = self.restoring.as_mut().expect("begun");
        bytes.extend_from_slice(&chunk);
        Ok(())
    }

    fn finish_restore(&mut self) -> MachineResult<()> {
        let (position, bytes) = self.restoring.take().expect("begun");
        let mut bytes = bytes.freeze();
        let mut commands = Vec::new();
        loop {
            let length = bytes.try_get_u32().map_err(|error| MachineError(error.to_string()))?;
            if length == u32::MAX {
                break;
            }
            commands.push(bytes.split_to(length as usize));
        }
        self.state = State { position, commands };
        self.keep();
        if let Some(disk) = &self.disk {
            *disk.lock().expect("no panic under the lock") = self.state.clone();
        }
        Ok(())
    }

    fn flusher(&self) -> Option<Box<dyn Flusher>> {
        let disk = Arc::clone(self.disk.as_ref()?);
        let (current, knobs) = (Arc::clone(&self.current), Arc::clone(&self.knobs));
        Some(Box::new(StateFlusher { current, disk, knobs }))
    }

    fn blocks(&self) -> bool {
        self.blocks
    }
}

struct StateFlusher {
    current: Arc<Mutex<State>>,
    disk: StateDisk,
    knobs: Arc<Knobs>,
}

impl Flusher for StateFlusher {
    fn flush(&mut self) -> MachineResult<Index> {
        self.knobs.flushes_count.fetch_add(1, Ordering::SeqCst);
        let state = self.current.lock().expect("no panic under the lock").clone();
        let index = state.position.index;
        *self.disk.lock().expect("no panic under the lock") = state;
        Ok(index)
    }
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
