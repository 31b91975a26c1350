//! Streams between clients and nodes: order, latency, loss, partitions, power.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use super::*;

const MS: Duration = Duration::from_millis(1);

/// A network with one node, and both ends of a stream from client 7 to it.
async fn connected() -> (LocalNetwork, mpsc::Receiver<Stream>, Stream, Stream) {
    let network = LocalNetwork::new(1);
    let (accept_sender, mut clients) = mpsc::channel(8);
    network.join(&ServerConfig::in_process(1, 1..=1), 0, accept_sender);
    let client = network.connect_as(7, 1).await.unwrap();
    let node = clients.recv().await.unwrap();
    (network, clients, client, node)
}

async fn read(stream: &mut Stream, count: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; count];
    stream.reader.read_exact(&mut bytes).await.map(|_| bytes)
}

#[tokio::test(start_paused = true)]
async fn pieces_arrive_in_order_after_their_delay_and_an_end_is_an_end() {
    let (network, _clients, mut client, mut node) = connected().await;
    client.writer.write_all(b"at once").await.unwrap();
    let since = Instant::now();
    assert_eq!(read(&mut node, 7).await.unwrap(), b"at once");
    assert_eq!(since.elapsed(), Duration::ZERO);
    let faults = StreamFaults { delay_min: MS, delay_max: 50 * MS, ..StreamFaults::default() };
    network.set_stream_faults(faults);
    for number in 0..100 {
        client.writer.write_all(&[number]).await.unwrap();
    }
    drop(client);
    assert_eq!(read(&mut node, 100).await.unwrap(), (0..100).collect::<Vec<u8>>());
    assert!((MS..=51 * MS).contains(&since.elapsed()), "{:?}", since.elapsed());
    assert_eq!(node.reader.read(&mut [0]).await.unwrap(), 0);
    assert!(node.writer.write_all(b"to nobody").await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_lane_is_bounded_and_goes_on_when_it_is_read() {
    let (_network, _clients, mut client, mut node) = connected().await;
    let sent: Vec<u8> = (0..600_000).map(|n| n as u8).collect();
    let writing = client.writer.write_all(&sent);
    assert!(timeout(1000 * MS, writing).await.is_err(), "nobody reads");
    let read = read(&mut node, 256 << 10).await.unwrap();
    assert_eq!(read, sent[..256 << 10]);
    let more = timeout(1000 * MS, client.writer.write_all(b"more")).await;
    more.expect("there is room").unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_lost_piece_breaks_the_connection_for_both() {
    let (network, _clients, mut client, mut node) = connected().await;
    let faults = StreamFaults { loss: 1.0, delay_min: MS, delay_max: MS, ..Default::default() };
    network.set_stream_faults(faults);
    node.writer.write_all(b"never heard").await.unwrap();
    assert!(timeout(MS / 2, read(&mut node, 1)).await.is_err(), "still under way");
    assert!(read(&mut client, 1).await.is_err());
    assert!(read(&mut node, 1).await.is_err());
    assert!(client.writer.write_all(b"no").await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_cut_is_silent_and_what_it_held_is_late() {
    let (network, _clients, mut client, mut node) = connected().await;
    network.set_stream_faults(StreamFaults { refusal_delay_max: 99 * MS, ..Default::default() });
    network.cut_client(7, &[1]);
    client.writer.write_all(b"late").await.unwrap();
    assert!(timeout(1000 * MS, read(&mut node, 4)).await.is_err(), "cut");
    let since = Instant::now();
    assert!(network.connect_as(7, 1).await.is_err());
    assert!(since.elapsed() <= 100 * MS);
    assert!(network.connect_as(8, 1).await.is_ok(), "somebody else");
    network.mend_client(7, &[1]);
    assert_eq!(read(&mut node, 4).await.unwrap(), b"late");
    network.cut_client(7, &[1]);
    drop(node);
    assert!(timeout(1000 * MS, read(&mut client, 1)).await.is_err(), "nobody says so");
    network.heal();
    assert!(read(&mut client, 1).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_node_without_power_is_silent_until_it_is_back() {
    let (network, _clients, mut client, mut node) = connected().await;
    node.writer.write_all(b"last words").await.unwrap();
    network.power_off(1);
    network.heal();
    assert!(timeout(1000 * MS, read(&mut client, 1)).await.is_err(), "not heard");
    assert!(network.connect_as(7, 1).await.is_err());
    let (accept_sender, _next_clients) = mpsc::channel(8);
    network.join(&ServerConfig::in_process(1, 1..=1), 0, accept_sender);
    assert!(read(&mut client, 1).await.is_err(), "told by the next life");
    assert!(network.connect_as(7, 1).await.is_ok());
}

/// A node that restarts numbers its read attempts from another place: a response to an attempt of
/// an earlier run must not confirm a read of this one.
#[test]
fn each_life_of_a_node_has_another_seed() {
    let lives = |network_seed| {
        let network = LocalNetwork::new(network_seed);
        let join = |id| {
            let (accept_sender, _clients) = mpsc::channel(1);
            network.join(&ServerConfig::in_process(id, 1..=2), 0, accept_sender).seed
        };
        [1, 1, 2, 1, 2].map(join)
    };
    let drawn = lives(1);
    let different: BTreeSet<u64> = drawn.into_iter().collect();
    assert_eq!(different.len(), drawn.len(), "{drawn:?}");
    assert_eq!(drawn, lives(1), "the network's seed decides");
    assert_ne!(drawn, lives(2));
}
