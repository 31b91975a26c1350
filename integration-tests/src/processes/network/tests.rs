use std::net::Ipv4Addr;

use tokio::time::Instant;

use super::*;

struct Pair {
    network: Network,
    one: UdpSocket,
    two: UdpSocket,
}

async fn pair() -> Pair {
    let localhost = IpAddr::from(Ipv4Addr::LOCALHOST);
    let one = UdpSocket::bind((localhost, 0)).await.unwrap();
    let two = UdpSocket::bind((localhost, 0)).await.unwrap();
    let nodes = [(1, one.local_addr().unwrap()), (2, two.local_addr().unwrap())];
    let network = Network::between(&nodes.into(), 7).await;
    Pair { network, one, two }
}

impl Pair {
    /// Sends this many numbered datagrams; returns those that arrived until all were sent and the
    /// link was quiet.
    async fn send(&self, count: u32) -> Vec<u32> {
        let to = self.network.address(1, 2);
        let sending = async {
            for number in 0..count {
                self.one.send_to(&number.to_be_bytes(), to).await.unwrap();
                // Slow enough for the relay: this is no test of the system's buffers.
                tokio::time::sleep(Duration::from_micros(50)).await;
            }
        };
        // Receive while sending, for the same reason.
        let receiving = async {
            let mut seen = Vec::new();
            let mut buffer = [0; 64];
            let quiet = Duration::from_millis(300);
            while let Ok(received) =
                tokio::time::timeout(quiet, self.two.recv_from(&mut buffer)).await
            {
                let (length, from) = received.unwrap();
                assert_eq!(from, self.network.address(2, 1), "the peer looks the same always");
                seen.push(u32::from_be_bytes(buffer[..length].try_into().unwrap()));
            }
            seen
        };
        tokio::join!(sending, receiving).1
    }
}

#[tokio::test]
async fn a_healthy_link_hands_on_and_a_cut_one_does_not() {
    let pair = pair().await;
    assert_eq!(pair.send(20).await, Vec::from_iter(0..20));
    pair.network.set(1, 2, Conditions::partition());
    assert!(pair.send(20).await.is_empty());
    assert_eq!(pair.network.traffic(1, 2).lost_count, 20);
    // The other direction is not affected.
    pair.two.send_to(b"back", pair.network.address(2, 1)).await.unwrap();
    let mut buffer = [0; 64];
    assert_eq!(pair.one.recv_from(&mut buffer).await.unwrap().0, 4);
    pair.network.heal();
    assert_eq!(pair.send(20).await, Vec::from_iter(0..20));
}

#[tokio::test]
async fn a_bad_link_loses_repeats_delays_and_reorders() {
    let pair = pair().await;
    let bad = Conditions {
        loss: 0.2,
        duplication: 0.3,
        delay: Duration::from_millis(1)..Duration::from_millis(30),
        ..Conditions::default()
    };
    pair.network.set(1, 2, bad);
    let seen = pair.send(500).await;
    let mut distinct = seen.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert!((350..450).contains(&distinct.len()), "{} of 500 came through", distinct.len());
    assert!(seen.len() > distinct.len() + 50, "few came twice");
    assert!(!seen.is_sorted(), "none was overtaken");
}

#[tokio::test]
async fn a_narrow_link_takes_its_time() {
    let pair = pair().await;
    let narrow = Conditions { bytes_per_second: Some(200), ..Conditions::default() };
    pair.network.set(1, 2, narrow);
    let before = Instant::now();
    assert_eq!(pair.send(25).await, Vec::from_iter(0..25));
    // 100 bytes, and the pause that marks the end.
    assert!(before.elapsed() >= Duration::from_millis(500 + 300));
}
