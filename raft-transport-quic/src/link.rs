//! One connection to a peer, from the hello to its end.
//!
//! Each side opens one stream per class and sends a hello on it. A connection is established when
//! both hellos of the other side have arrived and fit. (In TLS 1.3 the dialling side completes its
//! handshake first. Without the hellos it would take a connection for established that the other
//! side is just refusing.) Then one task per direction and class moves messages, and one task
//! accepts bulk streams. The first task that ends, ends the connection.

use std::net::IpAddr;
use std::sync::Arc;

use quinn::{Connection, RecvStream, SendStream, VarInt};
use raft_core::codec::{Encoder, FRAME_BYTES_MAX, Version, decode};
use raft_core::types::{Class, NodeId};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tracing::warn;

use crate::bulk::{QuicBulk, bulk_priority};
use crate::credentials::Verified;
use crate::error::{close, describe, printable};
use crate::peer::Peer;
use crate::protocol::PeerProtocol;
use crate::shared::{InboundSlot, TransportShared};
use crate::wire::frame::{FrameReader, ReadFailure};
use crate::wire::hello::{HELLO_BYTES_MAX, Hello, Members};

/// Bytes written at one time: enough for full batches of datagrams, and few enough that they do not
/// grow old in the stream.
const WRITE_BYTES: u64 = 256 << 10;

/// Control messages go first.
fn priority(class: Class) -> i32 {
    match class {
        Class::Control => 1,
        Class::Log => 0,
    }
}

/// A connection on which both sides have exchanged hellos, with a stream per class in each
/// direction.
#[derive(Debug)]
pub(crate) struct PeerLink {
    pub(crate) connection: Arc<Connection>,
    /// Incarnation of the peer's data directory.
    pub(crate) incarnation: u64,
    codec: Version,
    outgoing: Vec<(Class, SendStream)>,
    incoming: Vec<(Class, FrameReader)>,
}

impl PeerLink {
    /// Exchanges hellos. On failure the connection is closed, and the other side receives the
    /// reason.
    pub(crate) async fn establish(
        shared: &TransportShared,
        connection: Connection,
        peer: &Peer,
        protocol: PeerProtocol,
        verified: Verified,
    ) -> Result<Self, String> {
        let connection = Arc::new(connection);
        shared.credentials.watch(&connection, verified.side, verified.exchange_count)?;
        let greeting = Self::greet(shared, &connection, peer.id, protocol.codec);
        let result = timeout(peer.hello_patience(&shared.config), greeting)
            .await
            .unwrap_or_else(|_| Err("connected, but it does not introduce itself".to_owned()));
        peer.introduced(result.is_ok());
        result.map_err(|reason| match connection.close_reason() {
            Some(closed) => describe(&closed),
            None => {
                connection.close(close::REFUSED, reason.as_bytes());
                reason
            }
        })
    }

    async fn greet(
        shared: &TransportShared,
        connection: &Arc<Connection>,
        peer: NodeId,
        codec: Version,
    ) -> Result<Self, String> {
        let broken = |error: quinn::ConnectionError| describe(&error);
        let mut outgoing = Vec::new();
        for class in Class::ALL {
            let mut stream = connection.open_uni().await.map_err(broken)?;
            stream.set_priority(priority(class)).map_err(|error| error.to_string())?;
            let hello = own_hello(shared, class);
            stream.write_chunk(hello.encode()).await.map_err(|error| error.to_string())?;
            outgoing.push((class, stream));
        }
        let mut incoming: Vec<(Class, FrameReader)> = Vec::new();
        let mut incarnation = None;
        for _ in Class::ALL {
            let stream = connection.accept_uni().await.map_err(broken)?;
            let (hello, reader) = read_hello(stream).await?;
            check_hello(&own_hello(shared, hello.class), &hello, peer)?;
            if incoming.iter().any(|(class, _)| *class == hello.class) {
                return Err("two streams of one class; run equal versions".to_owned());
            }
            if *incarnation.get_or_insert(hello.incarnation) != hello.incarnation {
                return Err("two streams of different incarnations; run equal versions".to_owned());
            }
            incoming.push((hello.class, reader));
        }
        let incarnation = incarnation.expect("there is more than no class");
        Ok(Self { connection: connection.clone(), incarnation, codec, outgoing, incoming })
    }

    pub(crate) fn remote_ip(&self) -> IpAddr {
        self.connection.remote_address().ip().to_canonical()
    }

    pub(crate) fn refuse(self, reason: &str) {
        self.connection.close(close::REFUSED, reason.as_bytes());
    }

    /// Starts the tasks that move messages.
    pub(crate) fn run(self, peer: Arc<Peer>, inbound: Arc<InboundSlot>) -> RunningLink {
        let mut tasks = JoinSet::new();
        for (class, stream) in self.outgoing {
            tasks.spawn(write(peer.clone(), class, self.codec, stream));
        }
        for (class, reader) in self.incoming {
            let receiver = Receiver {
                peer: peer.id,
                incarnation: self.incarnation,
                class,
                codec: self.codec,
                inbound: inbound.clone(),
                is_announced: false,
            };
            tasks.spawn(receiver.run(reader));
        }
        tasks.spawn(accept_bulk(peer.id, Arc::clone(&self.connection), inbound));
        RunningLink {
            connection: self.connection,
            incarnation: self.incarnation,
            since: Instant::now(),
            tasks,
        }
    }
}

async fn read_hello(stream: RecvStream) -> Result<(Hello, FrameReader), String> {
    let mut reader = FrameReader::new(stream, HELLO_BYTES_MAX);
    let frame = reader.next().await.map_err(explain)?;
    let hello = Hello::decode(&frame).map_err(|error| error.to_string())?;
    Ok((hello, reader.with_limit(FRAME_BYTES_MAX)))
}

fn own_hello(shared: &TransportShared, class: Class) -> Hello {
    let config = &shared.config;
    let members = match shared.peers.follows_log() {
        true => Members::of_the_log(),
        false => Members::new(&config.member_ids()),
    };
    Hello {
        cluster_id: config.cluster_id.clone(),
        cluster_uid: shared.cluster_uid(),
        node_id: config.node_id,
        incarnation: config.incarnation,
        class,
        versions: config.cluster_versions,
        members,
        generation: 0,
        founded: false,
    }
}

/// Checks that the peer is the expected node, of the same cluster, with the same members and a
/// common cluster version.
fn check_hello(own: &Hello, hello: &Hello, peer: NodeId) -> Result<(), String> {
    if hello.cluster_id != own.cluster_id {
        return Err(format!(
            "it says it is of cluster `{}`, but this is `{}`",
            printable(&hello.cluster_id),
            own.cluster_id
        ));
    }
    if hello.node_id != peer {
        return Err(format!(
            "it says it is node {}, but its certificate is for node {peer}",
            hello.node_id
        ));
    }
    if hello.cluster_uid != own.cluster_uid && hello.cluster_uid != 0 && own.cluster_uid != 0 {
        return Err(format!(
            "node {peer} is of another cluster with the name `{}` (uid {:032x}, and node {} has \
             {:032x}); use one name for each cluster",
            own.cluster_id, hello.cluster_uid, own.node_id, own.cluster_uid
        ));
    }
    if !hello.members.are_those_of(&own.members) {
        return Err(format!(
            "the members are {} by the configuration of node {peer}, and {} by that of node {}: give \
             all nodes the list with which the cluster was founded (addresses may change)",
            hello.members, own.members, own.node_id
        ));
    }
    let ((their_min, their_max), (own_min, own_max)) = (hello.versions, own.versions);
    if their_min > own_max || own_min > their_max {
        return Err(format!(
            "node {peer} supports cluster versions {their_min} to {their_max}, and node {} {own_min} \
             to {own_max}; install a release in between first",
            own.node_id
        ));
    }
    Ok(())
}

fn explain(failure: ReadFailure) -> String {
    match failure {
        ReadFailure::Ended => "the other side has ended its stream of messages".to_owned(),
        ReadFailure::Broken(reason) => reason,
        ReadFailure::Wire(error) => error.to_string(),
    }
}

/// An established connection and its tasks.
#[derive(Debug)]
pub(crate) struct RunningLink {
    connection: Arc<Connection>,
    pub(crate) incarnation: u64,
    pub(crate) since: Instant,
    /// Each task runs until it can no longer use the connection, and returns the reason.
    tasks: JoinSet<String>,
}

impl RunningLink {
    /// Waits for the first task to end, and returns its reason. May be cancelled.
    pub(crate) async fn ended(&mut self) -> String {
        let reason = match self.tasks.join_next().await {
            Some(Ok(reason)) => reason,
            Some(Err(error)) => format!("a task of the connection failed: {error}"),
            None => "nothing runs on the connection".to_owned(),
        };
        // If the connection was closed, that is the cause of any error in a task.
        self.connection.close_reason().map_or(reason, |closed| describe(&closed))
    }

    /// Closes the connection and waits until its tasks have ended. May be cancelled and called
    /// again.
    pub(crate) async fn stop(&mut self, code: VarInt, reason: &str) {
        self.connection.close(code, reason.as_bytes());
        self.tasks.shutdown().await;
    }
}

/// Writes the queued messages of the mailbox to the stream, [`WRITE_BYTES`] at a time.
async fn write(peer: Arc<Peer>, class: Class, codec: Version, mut stream: SendStream) -> String {
    let mailbox = peer.mailbox(class);
    let mut encoder = Encoder::new(codec);
    let mut messages = Vec::new();
    loop {
        let charge = mailbox.take(WRITE_BYTES, &mut messages).await;
        for message in messages.drain(..) {
            if let Err(error) = encoder.push(&message)
                && mailbox.count_dropped()
            {
                warn!(peer = peer.id, ?class, "dropping a message: {error}");
            }
        }
        if let Err(error) = stream.write_all_chunks(&mut encoder.take()).await {
            return printable(&error.to_string());
        }
        mailbox.release(charge);
    }
}

/// Reads the messages of one class from a connection.
struct Receiver {
    peer: NodeId,
    /// The incarnation of the peer's data directory.
    incarnation: u64,
    class: Class,
    codec: Version,
    inbound: Arc<InboundSlot>,
    /// The receiver of the messages knows the incarnation.
    is_announced: bool,
}

impl Receiver {
    async fn run(mut self, mut reader: FrameReader) -> String {
        loop {
            // Deliver before waiting: messages may have arrived together with the hello.
            if let Err(error) = self.deliver(&mut reader) {
                return error;
            }
            if let Err(failure) = reader.fill().await {
                return explain(failure);
            }
        }
    }

    /// Passes on all messages that are complete in the buffer.
    fn deliver(&mut self, reader: &mut FrameReader) -> Result<(), String> {
        let inbound = self.inbound.current();
        while let Some(frame) = reader.pop().map_err(|error| error.to_string())? {
            let message = decode(self.codec, frame).map_err(|error| error.to_string())?;
            if message.class() != self.class {
                let problem = "a message on the stream of another class; run equal versions";
                return Err(problem.to_owned());
            }
            let Some(inbound) = &inbound else { continue };
            if !std::mem::replace(&mut self.is_announced, true) {
                inbound.on_connected(self.peer, self.incarnation);
            }
            inbound.on_message(self.peer, message);
        }
        Ok(())
    }
}

/// Accepts bulk streams. QUIC's own limit on streams bounds their number.
async fn accept_bulk(
    peer: NodeId,
    connection: Arc<Connection>,
    inbound: Arc<InboundSlot>,
) -> String {
    loop {
        match connection.accept_bi().await {
            Ok((send, receive)) => {
                bulk_priority(&send);
                let stream = QuicBulk::new(send, receive);
                if let Some(inbound) = inbound.current() {
                    inbound.on_bulk(peer, Box::new(stream));
                }
            }
            Err(error) => return describe(&error),
        }
    }
}
