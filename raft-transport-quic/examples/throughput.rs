//! Measures how fast messages pass between two nodes on loopback, both in one process.
//!
//! `cargo run --release -p raft-transport-quic --example throughput`
//!
//! First appends of 64 commands of 256 bytes, kept in flight by a window of acknowledgements as the
//! core does it; then one control message back and forth.

use std::collections::BTreeMap;
use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use raft_core::transport::{BulkStream, Inbound, Transport};
use raft_core::types::{Entry, Message, MessageBody, NodeId, Payload, Position};
use raft_transport_quic::{DevCa, QuicConfig, QuicTransport};
use tokio::sync::mpsc;
use tokio::time::Instant;

const APPENDS: u64 = 50_000;
const COMMANDS: u64 = 64;
const COMMAND_BYTES: usize = 256;
const WINDOW: u64 = 512;
const ROUND_TRIPS: u64 = 20_000;

/// Passes every message on to a task.
struct Forward(mpsc::Sender<Message>);

impl Inbound for Forward {
    fn on_message(&self, _from: NodeId, message: Message) {
        self.0.try_send(message).expect("there is room for a window of messages");
    }

    fn on_bulk(&self, _from: NodeId, _stream: Box<dyn BulkStream>) {}

    fn on_unreachable(&self, peer: NodeId) {
        eprintln!("lost node {peer}");
    }
}

type Node = (Arc<QuicTransport>, mpsc::Receiver<Message>);

async fn start(
    ca: &DevCa,
    id: NodeId,
    ports: &BTreeMap<NodeId, u16>,
) -> Result<Node, Box<dyn Error>> {
    let peers = ports.iter().map(|(id, port)| (*id, format!("127.0.0.1:{port}"))).collect();
    let listen = SocketAddr::from(([127, 0, 0, 1], ports[&id]));
    let tls = ca.issue_node(id)?;
    let config = QuicConfig::new("bench", id, 1, listen, peers, tls, [0; 64]);
    let transport = QuicTransport::bind(config).await?;
    let (sender, receiver) = mpsc::channel(4 * WINDOW as usize);
    transport.start(Arc::new(Forward(sender)));
    Ok((transport, receiver))
}

fn append(number: u64, command: &Bytes) -> Message {
    let previous = number * COMMANDS;
    let entries = (previous + 1..=previous + COMMANDS).map(|index| Entry {
        index,
        term: 1,
        payload: Payload::Command(command.clone()),
    });
    let previous = Position::new(1, previous);
    Message::new(
        1,
        MessageBody::AppendEntries { previous, entries: entries.collect(), commit_index: 0 },
    )
}

/// Runs leader and follower to their end in one task.
async fn appends(one: &mut Node, two: &mut Node) {
    let command = Bytes::from(vec![7; COMMAND_BYTES]);
    let leader = async {
        for number in 0..APPENDS + WINDOW {
            if number >= WINDOW {
                one.1.recv().await;
            }
            if number < APPENDS {
                one.0.send(2, append(number, &command));
            }
        }
    };
    let follower = async {
        for match_index in 0..APPENDS {
            two.1.recv().await;
            two.0.send(1, Message::new(1, MessageBody::AppendAccepted { match_index }));
        }
    };
    tokio::join!(leader, follower);
}

async fn round_trips(one: &mut Node, two: &mut Node) -> Vec<Duration> {
    let ask = async {
        let mut times = Vec::new();
        for round in 0..ROUND_TRIPS {
            let since = Instant::now();
            one.0.send(2, Message::new(1, MessageBody::Heartbeat { round, commit_index: 0 }));
            one.1.recv().await;
            times.push(since.elapsed());
        }
        times
    };
    let answer = async {
        for round in 0..ROUND_TRIPS {
            two.1.recv().await;
            two.0
                .send(1, Message::new(1, MessageBody::HeartbeatResponse { round, version_max: 0 }));
        }
    };
    let (mut times, ()) = tokio::join!(ask, answer);
    times.sort();
    times
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let ca = DevCa::create("bench")?;
    let ports = BTreeMap::from([(1, 42_301), (2, 42_302)]);
    let mut one = start(&ca, 1, &ports).await?;
    let mut two = start(&ca, 2, &ports).await?;
    while one.0.reachability(2).is_err() || two.0.reachability(1).is_err() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let since = Instant::now();
    appends(&mut one, &mut two).await;
    let seconds = since.elapsed().as_secs_f64();
    let commands = APPENDS * COMMANDS;
    println!(
        "appends: {:.0} MB/s, {:.0} commands/s, {:.2} us a command",
        (commands as usize * COMMAND_BYTES) as f64 / seconds / 1e6,
        commands as f64 / seconds,
        seconds * 1e6 / commands as f64
    );
    let times = round_trips(&mut one, &mut two).await;
    println!(
        "round trip: p50 {:?}, p99 {:?}",
        times[times.len() / 2],
        times[times.len() * 99 / 100]
    );
    one.0.close().await;
    two.0.close().await;
    Ok(())
}
