//! Connections for messages, on the side that makes them and on the side that accepts them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use raft_core::codec::{Encoder, FRAME_BYTES_MAX, Version, decode};
use raft_core::transport::{Inbound, TransportError};
use raft_core::types::{Class, NodeId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::yield_now;
use tokio::time::{sleep, timeout};

use super::peer::{Letter, Mailbox};
use super::wire::{HELLO_BYTES_MAX, Hello, Purpose, WELCOME, Wire, broken};
use super::{RETRY_INTERVAL, Shared, lock};

/// Time limit for making a connection, and for its introduction.
const INTRODUCTION_DEADLINE: Duration = Duration::from_secs(1);

/// Most messages that are written together.
const WRITTEN_COUNT_MAX: usize = 64;

/// The wire format of this module: a new one for each [`Version`] of the codec.
const WIRE_VERSION: u8 = 1;

/// Sends the messages of one class to one peer, over one connection after the other.
pub(super) async fn keep_connected(
    shared: Arc<Shared>,
    peer: NodeId,
    class: Class,
    inbound: Arc<dyn Inbound>,
) {
    let mailbox = &shared.peers[&peer].mailboxes[&class];
    loop {
        let connected = shared.connect(peer, Purpose::Messages(class)).await;
        let is_connected = connected.is_ok();
        let ended = match connected {
            Ok(wire) => {
                let (new, letters) = Mailbox::new(class);
                *lock(mailbox) = Ok(new);
                carry(&shared, wire.stream, letters).await
            }
            Err(error) => error,
        };
        *lock(mailbox) = Err(ended);
        if is_connected {
            inbound.on_unreachable(peer);
        }
        sleep(RETRY_INTERVAL).await;
    }
}

/// Writes posted messages until the connection ends. The peer sends nothing here, so a read returns
/// when the peer is gone.
async fn carry(
    shared: &Shared,
    mut stream: TcpStream,
    mut letters: mpsc::Receiver<Letter>,
) -> TransportError {
    let (mut reader, mut writer) = stream.split();
    let write = async {
        let (mut encoder, mut batch) = (Encoder::new(Version::NEWEST), Vec::new());
        while letters.recv_many(&mut batch, WRITTEN_COUNT_MAX).await > 0 {
            let refused = batch.iter().filter(|(message, _)| encoder.push(message).is_err());
            shared.dropped_count.fetch_add(refused.count() as u64, Ordering::Relaxed);
            for chunk in encoder.take() {
                writer.write_all(&chunk).await?;
            }
            batch.clear();
        }
        Ok(())
    };
    let ended = tokio::select! {
        ended = write => ended,
        ended = reader.read_u8() => ended.map(drop),
    };
    ended.err().map_or_else(|| TransportError::new("the connection was closed"), broken)
}

/// Serves a connection that a peer has made.
pub(super) async fn accept(
    shared: Arc<Shared>,
    stream: TcpStream,
    inbound: Arc<dyn Inbound>,
) -> Result<(), TransportError> {
    let mut wire = Wire::new(stream)?;
    let frame = in_time(wire.receive(HELLO_BYTES_MAX)).await?;
    let refused = |_| TransportError::new("this is not the transport of a node");
    let hello: Hello = rmp_serde::from_slice(&frame).map_err(refused)?;
    let peer = shared.peers.get(&hello.from).filter(|_| hello.to == shared.id);
    let peer = peer.filter(|_| hello.version == WIRE_VERSION);
    let peer = peer.ok_or_else(|| TransportError::new("another node or version"))?;
    peer.greet(hello.process)?;
    in_time(wire.send(WELCOME)).await?;
    let class = match hello.purpose {
        Purpose::Messages(class) => class,
        Purpose::Bulk => {
            let bulk = shared.bulk(wire)?;
            return peer.deliver(hello.process, || inbound.on_bulk(hello.from, Box::new(bulk)));
        }
    };
    loop {
        let frame = wire.receive(FRAME_BYTES_MAX).await?;
        let decoded = decode(Version::NEWEST, frame);
        let message = decoded.map_err(|error| TransportError::new(error.to_string()))?;
        if message.class() != class {
            return Err(TransportError::new("a message of the other class"));
        }
        peer.deliver(hello.process, || inbound.on_message(hello.from, message))?;
        // Yield: the other class gets its turn during a flood.
        yield_now().await;
    }
}

impl Shared {
    /// Connects and introduces this node.
    pub(super) async fn connect(
        &self,
        to: NodeId,
        purpose: Purpose,
    ) -> Result<Wire, TransportError> {
        let hello =
            Hello { version: WIRE_VERSION, from: self.id, to, process: self.process, purpose };
        let hello = rmp_serde::to_vec(&hello).expect("memory takes a hello");
        in_time(async {
            let stream = TcpStream::connect(self.peers[&to].address).await.map_err(broken)?;
            let mut wire = Wire::new(stream)?;
            wire.send(&hello).await?;
            let answer = wire.receive(HELLO_BYTES_MAX).await?;
            if answer == WELCOME { Ok(wire) } else { Err(TransportError::new("no node is there")) }
        })
        .await
    }
}

async fn in_time<T>(
    step: impl Future<Output = Result<T, TransportError>>,
) -> Result<T, TransportError> {
    let late = |_| TransportError::new("no introduction in time");
    timeout(INTRODUCTION_DEADLINE, step).await.map_err(late)?
}
