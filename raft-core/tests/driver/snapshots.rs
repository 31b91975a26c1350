//! Snapshots on whole nodes: for lagging peers, from senders that are slow or no longer lead, and
//! the removal of snapshots that are no longer needed.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use raft_core::driver::{Node, NodeConfig, Status};
use raft_core::error::Rejected;
use raft_core::transport::channel::{ChannelNetwork, ChannelTransport};
use raft_core::transport::{BulkStream, Transport};
use raft_core::types::{Configuration, NodeId, Position, SnapshotContent, SnapshotMeta, Term};
use serde::Serialize;
use tokio::time::Instant;

use crate::support::cluster::{Cluster, in_time};
use crate::support::machine::{Knobs, Machine};
use crate::support::store::Disk;

const LIMIT_BYTES: u64 = 4_000;
const COMMAND_BYTES: usize = 200;
/// A snapshot of this size takes five chunks.
const PADDING_BYTES: u64 = 1 << 20;

fn command(number: usize) -> Bytes {
    let mut bytes = vec![b'x'; COMMAND_BYTES];
    bytes[..8].copy_from_slice(&(number as u64).to_be_bytes());
    bytes.into()
}

fn small_log(config: &mut NodeConfig) {
    config.max_raft_state_bytes = LIMIT_BYTES;
    config.raft.log_bytes_max = 8 * LIMIT_BYTES;
    config.raft.uncommitted_bytes_max = LIMIT_BYTES;
    config.command_bytes_max = LIMIT_BYTES / 2;
}

/// Three nodes with small logs.
async fn cluster(is_durable: bool) -> Cluster {
    let mut cluster = Cluster::new(1, 3);
    cluster.configure = Box::new(small_log);
    cluster.durable = is_durable;
    for site in cluster.sites.values() {
        site.knobs.padding_bytes.store(PADDING_BYTES, Ordering::SeqCst);
    }
    cluster.start_all().await;
    cluster
}

/// Stops a follower until the others' logs no longer hold its next entry. Returns the leader and
/// that follower.
async fn leave_one_behind(cluster: &mut Cluster) -> (NodeId, NodeId) {
    let leader = cluster.leader().await;
    let behind = if leader == 3 { 2 } else { 3 };
    cluster.crash(behind).await;
    for number in 0..80 {
        cluster.write(command(number)).await;
    }
    cluster.until("the log is compacted", leader, |status| status.snapshot_index > 20).await;
    (leader, behind)
}

async fn catches_up(cluster: &Cluster, node: NodeId, leader: NodeId) {
    let commit_index = cluster.nodes[&leader].status().commit_index;
    cluster.until("it catches up", node, |status| status.last_applied >= commit_index).await;
    assert_eq!(cluster.commands(node).await, cluster.commands(leader).await);
}

/// C12. The leader's copy of its state for one peer takes hours. Clients continue to write, the log
/// is compacted beyond the copy, and the leader abandons the copy for a newer one.
#[tokio::test(start_paused = true)]
async fn c12_writes_go_on_while_the_state_is_copied_for_a_peer() {
    let mut cluster = cluster(true).await;
    let (leader, behind) = leave_one_behind(&mut cluster).await;
    let slow = Duration::from_secs(120);
    cluster.sites[&leader].disk.hinder(|disk| disk.write_chunk = slow);
    cluster.start(behind).await;
    let knobs = &cluster.sites[&leader].knobs;
    in_time("the machine gives a view", async {
        while knobs.views_count.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let flushes = knobs.flushes_count.load(Ordering::SeqCst);
    let since = Instant::now();
    let mut number = 0;
    // Flushes run on threads of the machine, which may be busy with other things.
    while number < 400 || knobs.flushes_count.load(Ordering::SeqCst) <= flushes + 5 {
        assert!(since.elapsed() < slow, "the writes waited for the copy, or nothing was flushed");
        cluster.write(command(number)).await;
        number += 1;
    }
    assert!(cluster.nodes[&leader].status().log_bytes < 8 * LIMIT_BYTES);
    cluster.sites[&leader].disk.hinder(|disk| disk.write_chunk = Duration::ZERO);
    catches_up(&cluster, behind, leader).await;
    assert!(knobs.views_count.load(Ordering::SeqCst) >= 2, "the outrun copy was used");
}

/// A peer that sends snapshot offers and nothing else.
struct Sender {
    transport: Arc<ChannelTransport>,
}

/// The offer as encoded on the wire: `[term, meta, content]`.
#[derive(Serialize)]
struct Offer {
    term: Term,
    meta: SnapshotMeta,
    content: SnapshotContent,
}

impl Sender {
    /// Offers a snapshot of 1 MiB at this index. Returns the stream and the name of the response.
    async fn offer(&self, to: NodeId, term: Term, index: u64) -> (Box<dyn BulkStream>, String) {
        let configuration = Configuration { founded: true, ..Configuration::of_voters([1, 2, 3]) };
        let meta = SnapshotMeta::new(Position::new(1, index), configuration);
        let content = SnapshotContent { size_bytes: 1 << 20, checksum: 0 };
        let offer = rmp_serde::to_vec(&Offer { term, meta, content }).expect("plain data");
        let mut stream = self.transport.open_bulk(to).await.expect("the peer listens");
        stream.send(offer.into()).await.expect("the peer listens");
        let answer = in_time("an answer", stream.receive()).await.expect("an answer");
        (stream, answer_name(&answer.expect("an answer")))
    }
}

/// `Accept` and `Stale` are encoded as maps with one key, the others as bare names.
fn answer_name(frame: &[u8]) -> String {
    let text = String::from_utf8_lossy(frame);
    let known = ["Accept", "Busy", "NotNeeded", "Stale", "Done"];
    let name = known.into_iter().find(|name| text.contains(name));
    name.unwrap_or_else(|| panic!("an answer of another kind: {text}")).to_owned()
}

fn piece(offset: u64, length: usize) -> Bytes {
    let mut frame = offset.to_be_bytes().to_vec();
    frame.extend(std::iter::repeat_n(7, length));
    frame.into()
}

/// Starts node 3 of three; the other two only offer snapshots.
async fn receiver() -> (Node<Machine>, Sender, Sender) {
    let network = ChannelNetwork::new(1);
    let sender = |id| Sender { transport: network.transport(id) };
    let (first, second) = (sender(1), sender(2));
    let machine = Machine::volatile(&Arc::new(Knobs::default()));
    let disk = Disk::of_member();
    let config = NodeConfig::new(3, [1, 2, 3], 1);
    let node = Node::start(config, disk.open(), network.transport(3), machine).await;
    (node.expect("a node of a healthy disk starts"), first, second)
}

/// C13. An older leader, slow or deposed, occupies the only place for a transfer.
#[tokio::test(start_paused = true)]
async fn c13_a_newer_leader_takes_the_place_of_an_older_one() {
    let (node, older, newer) = receiver().await;
    let (mut slow, answer) = older.offer(3, 5, 100).await;
    assert_eq!(answer, "Accept");
    slow.send(piece(0, 10)).await.expect("it is received");
    let (_, answer) = newer.offer(3, 5, 101).await;
    assert_eq!(answer, "Stale", "a term has one leader");
    let (_, answer) = newer.offer(3, 6, 101).await;
    assert_eq!(answer, "Busy", "the older transfer has to end first");
    let since = Instant::now();
    let ended = in_time("the older transfer ends", slow.receive()).await;
    assert!(!matches!(ended, Ok(Some(_))), "the older transfer goes on");
    assert!(since.elapsed() < Duration::from_secs(1), "it ended for want of patience only");
    let (mut stream, answer) = newer.offer(3, 6, 101).await;
    assert_eq!(answer, "Accept");

    // The sender's connection broke and the sender tries again, but this node has not noticed.
    let (_, answer) = newer.offer(3, 6, 101).await;
    assert_eq!(answer, "Busy");
    let ended = in_time("the earlier attempt ends", stream.receive()).await;
    assert!(!matches!(ended, Ok(Some(_))), "the earlier attempt goes on");
    let (_, answer) = newer.offer(3, 6, 101).await;
    assert_eq!(answer, "Accept");
    let (_, answer) = older.offer(3, 5, 100).await;
    assert_eq!(answer, "Stale");
    node.abort().await;
}

/// C13. One chunk within each `snapshot_patience` is not enough.
#[tokio::test(start_paused = true)]
async fn c13_a_sender_must_keep_a_minimum_rate() {
    let (node, sender, _) = receiver().await;
    let patience = NodeConfig::new(3, [3], 1).snapshot_patience;
    let (mut stream, answer) = sender.offer(3, 5, 100).await;
    assert_eq!(answer, "Accept");
    let mut pieces_count = 0;
    let since = Instant::now();
    while stream.send(piece(10 * pieces_count, 10)).await.is_ok() {
        pieces_count += 1;
        assert!(pieces_count < 10, "a sender of ten bytes in nine seconds keeps the place");
        tokio::time::sleep(patience * 9 / 10).await;
    }
    assert!(since.elapsed() >= patience, "it was not given the time that it has");
    let (_, answer) = sender.offer(3, 5, 100).await;
    assert_eq!(answer, "Accept", "the place is free again");
    node.abort().await;
}

/// C13. A leader needs no snapshot from another node.
#[tokio::test(start_paused = true)]
async fn c13_a_leader_ends_what_it_receives() {
    let network = ChannelNetwork::new(1);
    let sender = Sender { transport: network.transport(2) };
    let machine = Machine::volatile(&Arc::new(Knobs::default()));
    let config = NodeConfig::new(1, [1], 1);
    let disk = Disk::of_member();
    let node = Node::start(config, disk.open(), network.transport(1), machine).await;
    let node = node.expect("a node of a healthy disk starts");
    let mut seen = node.watch();
    in_time("it leads", seen.wait_for(|seen| seen.is_leader)).await.expect("it runs");
    let configuration = Configuration { founded: true, ..Configuration::of_voters([1]) };
    let meta = SnapshotMeta::new(Position::new(1, 100), configuration);
    let content = SnapshotContent { size_bytes: 1 << 20, checksum: 0 };
    let offer = rmp_serde::to_vec(&Offer { term: 9, meta, content }).expect("plain data");
    let mut stream = sender.transport.open_bulk(1).await.expect("it listens");
    stream.send(offer.into()).await.expect("it listens");
    let answer = in_time("an answer", stream.receive()).await.expect("an answer");
    assert_eq!(answer_name(&answer.expect("an answer")), "Accept");
    let led = in_time("it leads again", seen.wait_for(|seen| seen.is_leader && seen.term > 9));
    led.await.expect("it runs");
    let since = Instant::now();
    let ended = in_time("the transfer ends", stream.receive()).await;
    assert!(!matches!(ended, Ok(Some(_))), "the transfer goes on");
    assert!(since.elapsed() < Duration::from_secs(1), "it ended for want of patience only");
    node.shutdown().await;
}

/// C28. Streams without an offer do not pile up: a peer may have two open at a time.
#[tokio::test(start_paused = true)]
async fn c28_a_peer_has_two_open_streams() {
    let (node, sender, other) = receiver().await;
    let mut streams = Vec::new();
    for _ in 0..5 {
        streams.push(sender.transport.open_bulk(3).await.expect("it listens"));
    }
    let mut refused_count = 0;
    for stream in &mut streams[2..] {
        let ended = tokio::time::timeout(Duration::from_millis(100), stream.receive()).await;
        refused_count += u32::from(matches!(ended, Ok(Err(_) | Ok(None))));
    }
    assert_eq!(refused_count, 3, "more than two are kept open");
    for stream in &mut streams[..2] {
        let ended = tokio::time::timeout(Duration::from_millis(100), stream.receive()).await;
        assert!(ended.is_err(), "the first two are not given time");
    }
    let (_, answer) = other.offer(3, 5, 100).await;
    assert_eq!(answer, "Accept", "another peer has its own");
    drop(streams);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let (_, answer) = sender.offer(3, 6, 100).await;
    assert_eq!(answer, "Accept", "it may offer again");
    node.abort().await;
}

/// C14. A busy peer is not offered a snapshot at each heartbeat.
#[tokio::test(start_paused = true)]
async fn c14_a_refused_snapshot_is_offered_less_and_less_often() {
    let cluster = cluster(false).await;
    let leader = cluster.leader().await;
    let behind = if leader == 3 { 2 } else { 3 };
    // The follower writes a snapshot of its own for hours, and so it cannot receive one.
    let disk = &cluster.sites[&behind].disk;
    disk.hinder(|disk| disk.write_chunk = Duration::from_secs(36_000));
    for number in 0..40 {
        cluster.write(command(number)).await;
    }
    let views = &cluster.sites[&behind].knobs.views_count;
    in_time("it begins a snapshot", async {
        while views.load(Ordering::SeqCst) == 0 {
            cluster.write(command(0)).await;
        }
    })
    .await;
    cluster.network.isolate(behind);
    for number in 0..80 {
        cluster.write(command(number)).await;
    }
    cluster.network.heal();
    let failing = |count| {
        move |status: &Status| {
            status.transfers.iter().any(|transfer| transfer.failures_in_a_row >= count)
        }
    };
    let leader = cluster.leader().await;
    cluster.until("it refuses", leader, failing(1)).await;
    let before = cluster.sites[&leader].disk.readers_count();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let attempts_count = cluster.sites[&leader].disk.readers_count() - before;
    assert!((20..=40).contains(&attempts_count), "{attempts_count} attempts in a minute");
    cluster.until("the status tells", leader, failing(20)).await;
}

/// C15. The log is kept while a peer receives a snapshot, and a little longer, so that one snapshot
/// is enough.
#[tokio::test(start_paused = true)]
async fn c15_a_peer_that_is_filled_finds_its_entries_afterwards() {
    let mut cluster = cluster(true).await;
    let (leader, behind) = leave_one_behind(&mut cluster).await;
    cluster.sites[&leader].disk.hinder(|disk| disk.read_chunk = Duration::from_secs(5));
    cluster.start(behind).await;
    let is_sending = |status: &Status| status.transfers.iter().any(|transfer| transfer.is_sending);
    cluster.until("a snapshot is sent", leader, is_sending).await;
    let before = cluster.nodes[&leader].status().snapshot_index;
    let views_count = || cluster.sites[&leader].knobs.views_count.load(Ordering::SeqCst);
    assert_eq!(views_count(), 1);
    // More than twice `max_raft_state_bytes`, and less than four times.
    for number in 0..40 {
        cluster.write(command(number)).await;
    }
    cluster
        .until("the log is to be compacted", leader, |status| status.snapshot_index > before)
        .await;
    let filled = |status: &Status| {
        assert!(status.transfers.iter().all(|transfer| transfer.rounds <= 1), "{status:?}");
        status.transfers.is_empty()
    };
    cluster.until("it is filled", leader, filled).await;
    catches_up(&cluster, behind, leader).await;
    assert_eq!(views_count(), 1, "one snapshot was not enough");
}

/// C15. If a peer lags beyond the log that is kept, the status shows how many snapshots were not
/// enough.
#[tokio::test(start_paused = true)]
async fn c15_the_status_tells_of_a_peer_that_never_catches_up() {
    let mut cluster = cluster(true).await;
    let (leader, behind) = leave_one_behind(&mut cluster).await;
    cluster.sites[&leader].disk.hinder(|disk| disk.read_chunk = Duration::from_secs(5));
    cluster.start(behind).await;
    let mut rounds = 0;
    let mut number = 0;
    while rounds < 3 {
        number += 1;
        assert!(number < 20_000, "one snapshot was enough");
        cluster.write(command(number)).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        let status = cluster.nodes[&leader].status();
        rounds = status.transfers.iter().map(|transfer| transfer.rounds).max().unwrap_or(0);
    }
    cluster.sites[&leader].disk.hinder(|disk| disk.read_chunk = Duration::ZERO);
    catches_up(&cluster, behind, leader).await;
}

/// S14. The copy of a durable machine's state is removed on both nodes once the peer has it.
#[tokio::test(start_paused = true)]
async fn s14_a_copy_goes_once_no_peer_needs_it() {
    let mut cluster = cluster(true).await;
    let (leader, behind) = leave_one_behind(&mut cluster).await;
    cluster.start(behind).await;
    catches_up(&cluster, behind, leader).await;
    for id in [leader, behind] {
        let disk = &cluster.sites[&id].disk;
        in_time("the copy goes", async {
            while disk.published().is_some() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        })
        .await;
        assert_eq!(disk.publications(), (1, 1), "node {id}");
    }
    // The machine's own state is all that is left, and it is enough to start.
    cluster.crash(behind).await;
    cluster.start(behind).await;
    catches_up(&cluster, behind, leader).await;
}

/// S6. A node with a durable machine starts although its published copy is damaged, and removes it.
#[tokio::test(start_paused = true)]
async fn s6_a_damaged_copy_does_not_keep_a_durable_node_down() {
    let mut cluster = cluster(true).await;
    let (leader, behind) = leave_one_behind(&mut cluster).await;
    cluster.sites[&leader].disk.hinder(|disk| disk.read_chunk = Duration::from_secs(60));
    cluster.start(behind).await;
    let disk = cluster.sites[&leader].disk.clone();
    in_time("the copy is published", async {
        while disk.published().is_none() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    cluster.crash(leader).await;
    disk.hinder(|disk| (disk.bad_snapshot, disk.read_chunk) = (true, Duration::ZERO));
    cluster.start(leader).await;
    in_time("the copy goes", async {
        while disk.published().is_some() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    disk.hinder(|disk| disk.bad_snapshot = false);
    let leader = cluster.leader().await;
    catches_up(&cluster, behind, leader).await;
}

/// S14. A volatile machine depends on its snapshot.
#[tokio::test(start_paused = true)]
async fn s14_the_snapshot_of_a_volatile_machine_stays() {
    let mut cluster = cluster(false).await;
    let (leader, behind) = leave_one_behind(&mut cluster).await;
    cluster.start(behind).await;
    catches_up(&cluster, behind, leader).await;
    // On a start the node finds a snapshot that covers the log's start.
    cluster.crash(behind).await;
    cluster.start(behind).await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    for id in [leader, behind] {
        assert!(cluster.sites[&id].disk.published().is_some(), "node {id}");
        assert_eq!(cluster.sites[&id].disk.publications().1, 0, "node {id}");
    }
}

/// C29. A follower whose disk hangs gets a confirmed read index, but never applies the entries that
/// the read needs.
#[tokio::test(start_paused = true)]
async fn c29_a_confirmed_read_at_a_node_that_does_not_catch_up_ends() {
    let cluster = cluster(false).await;
    let leader = cluster.leader().await;
    let behind = if leader == 3 { 2 } else { 3 };
    cluster.write(command(0)).await;
    catches_up(&cluster, behind, leader).await;
    cluster.sites[&behind].disk.hinder(|disk| disk.hangs = true);
    cluster.write(command(1)).await;
    let since = Instant::now();
    let read = in_time("the read ends", cluster.nodes[&behind].query_and_wait((), true)).await;
    assert!(matches!(read, Err(Rejected::Busy(_))), "{read:?}");
    let patience = NodeConfig::new(1, [1], 1).read_patience;
    assert!(since.elapsed() < patience + Duration::from_secs(2), "{:?}", since.elapsed());
}

/// API finding 3. If a view is not newer than the published snapshot, the node asks for the next
/// one a second later and not at once.
#[tokio::test(start_paused = true)]
async fn a_view_of_no_use_does_not_make_the_loop_spin() {
    let mut cluster = Cluster::new(1, 1);
    cluster.configure = Box::new(small_log);
    cluster.sites[&1].knobs.views_stand_still.store(true, Ordering::SeqCst);
    cluster.start_all().await;
    for number in 0..40 {
        cluster.write(command(number)).await;
    }
    let views = &cluster.sites[&1].knobs.views_count;
    let before = views.load(Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(60)).await;
    let views_count = views.load(Ordering::SeqCst) - before;
    assert!((30..=61).contains(&views_count), "{views_count} views in a minute");
}

/// Found by the simulator: the node crashed between a snapshot and the compaction that it allows,
/// and the log was full. The log accepted no entry, so nothing was applied, and no snapshot
/// followed.
#[tokio::test(start_paused = true)]
async fn a_full_log_that_a_snapshot_covers_is_compacted_after_a_start() {
    for is_durable in [false, true] {
        let mut cluster = Cluster::new(1, 3);
        cluster.durable = is_durable;
        // The log is never compacted.
        cluster.configure = Box::new(|config| config.max_raft_state_bytes = 0);
        cluster.start_all().await;
        for number in 0..200 {
            cluster.write(command(number)).await;
        }
        let leader = cluster.leader().await;
        let follower = if leader == 3 { 2 } else { 3 };
        catches_up(&cluster, follower, leader).await;
        cluster.nodes[&follower].take_snapshot();
        let is_taken = |status: &Status| status.snapshot_index == status.last_applied;
        cluster.until("it is taken", follower, is_taken).await;
        cluster.crash(follower).await;
        cluster.configure = Box::new(small_log);
        cluster.start(follower).await;
        cluster.write("one more").await;
        catches_up(&cluster, follower, leader).await;
        let is_compacted = |status: &Status| status.log_bytes < 8 * LIMIT_BYTES;
        cluster.until("the log is compacted", follower, is_compacted).await;
    }
}

/// API finding 2. A service can request a snapshot.
#[tokio::test(start_paused = true)]
async fn a_service_can_ask_for_a_snapshot() {
    for is_durable in [false, true] {
        let mut cluster = Cluster::new(1, 1);
        cluster.durable = is_durable;
        cluster.start_all().await;
        cluster.write("x").await;
        let before = cluster.nodes[&1].status();
        assert_eq!(before.snapshot_index, 0);
        cluster.nodes[&1].take_snapshot();
        let is_taken = |status: &Status| status.snapshot_index == before.last_applied;
        cluster.until("it is taken", 1, is_taken).await;
    }
}
