//! A peer: the mailboxes for its messages, and the number of its newest process.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use raft_core::transport::TransportError;
use raft_core::types::{Class, Message};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::lock;

/// Messages in one mailbox, of any size.
const MESSAGE_COUNT_MAX: usize = 4096;

/// Bytes of messages in the mailbox for one peer and class.
pub(crate) fn mailbox_bytes_max(class: Class) -> u64 {
    match class {
        Class::Control => 64 << 10,
        Class::Log => 64 << 20,
    }
}

pub(super) struct Peer {
    pub(super) address: SocketAddr,
    /// The newest process of the peer that has connected to this node.
    process: Mutex<u64>,
    /// The mailbox of each class, or the reason why there is no connection.
    pub(super) mailboxes: BTreeMap<Class, Mutex<Result<Mailbox, TransportError>>>,
}

pub(super) struct Mailbox {
    room: Arc<Semaphore>,
    letters: mpsc::Sender<Letter>,
}

/// A message, and the bytes of the mailbox that it takes up until it is written.
pub(super) type Letter = (Message, OwnedSemaphorePermit);

impl Peer {
    pub(super) fn at(address: SocketAddr) -> Self {
        let none = || Mutex::new(Err(TransportError::new("not connected yet")));
        let mailboxes = Class::ALL.map(|class| (class, none())).into();
        Self { address, process: Mutex::new(0), mailboxes }
    }

    /// Posts a message; returns false if there is no connection or no room.
    pub(super) fn post(&self, message: Message) -> bool {
        let mailbox = lock(&self.mailboxes[&message.class()]);
        let Ok(Mailbox { room, letters }) = mailbox.as_ref() else { return false };
        let size_bytes = u32::try_from(message.size_bytes()).unwrap_or(u32::MAX);
        match Arc::clone(room).try_acquire_many_owned(size_bytes) {
            Ok(permit) => letters.try_send((message, permit)).is_ok(),
            Err(_) => false,
        }
    }

    /// Records the process that connects. It supersedes all earlier ones.
    pub(super) fn greet(&self, process: u64) -> Result<(), TransportError> {
        let mut newest = lock(&self.process);
        *newest = process.max(*newest);
        if *newest == process {
            Ok(())
        } else {
            Err(TransportError::new("from an earlier process"))
        }
    }

    /// Delivers a message or a stream, unless a later process of the peer has connected. The lock
    /// is held meanwhile: nothing from an earlier process arrives after something from a later one.
    pub(super) fn deliver(
        &self,
        process: u64,
        delivery: impl FnOnce(),
    ) -> Result<(), TransportError> {
        let newest = lock(&self.process);
        if *newest != process {
            return Err(TransportError::new("from an earlier process"));
        }
        delivery();
        Ok(())
    }
}

impl Mailbox {
    pub(super) fn new(class: Class) -> (Self, mpsc::Receiver<Letter>) {
        let (letters, posted) = mpsc::channel(MESSAGE_COUNT_MAX);
        let room = Arc::new(Semaphore::new(mailbox_bytes_max(class) as usize));
        (Self { room, letters }, posted)
    }
}
