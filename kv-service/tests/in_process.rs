//! The whole service within one process, on a paused clock: sessions, retries, limits, shutdown.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::BytesMut;
use kv_service::config::ByteSize;
use kv_service::protocol::{
    FRAME_BYTES_MAX, FrameBuffer, Greeting, Hello, Reply, Request, RequestKind, Response, Welcome,
    no_greeting, push_frame,
};
use kv_service::{
    Client, Consistency, Expect, LocalNetwork, NOT_INITIALISED, Network, Outcome, Query,
    RECOVERING, Reason, Server, ServerConfig, Store, Stream,
};
use raft_storage::memory::MemoryDisk;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

struct Cluster {
    network: LocalNetwork,
    disks: BTreeMap<u64, MemoryDisk>,
    servers: BTreeMap<u64, Server>,
    client: Client,
    adjust: fn(&mut ServerConfig),
}

impl Cluster {
    async fn new(adjust: fn(&mut ServerConfig)) -> Self {
        let network = LocalNetwork::new(7);
        let client = network.client(1..=3);
        let disks = (1..=3).map(|id| (id, MemoryDisk::of_new_member())).collect();
        let mut cluster = Self { network, disks, servers: BTreeMap::new(), client, adjust };
        for id in 1..=3 {
            cluster.start(id).await;
        }
        cluster
    }

    async fn start(&mut self, id: u64) {
        let mut config = ServerConfig::in_process(id, 1..=3);
        (self.adjust)(&mut config);
        let store = Store::Memory(self.disks[&id].clone());
        let network = Network::Channel(self.network.clone());
        let server = Server::start_with(config, store, network).await.expect("the node starts");
        self.servers.insert(id, server);
    }

    async fn lose_disk(&mut self, id: u64) {
        self.lose_disks(&[id]).await;
    }

    /// These nodes lose power and their disks at the same time, and start again.
    async fn lose_disks(&mut self, ids: &[u64]) {
        for id in ids {
            self.network.power_off(*id);
            self.disks[id].crash();
            self.servers.remove(id).expect("it runs").node().abort().await;
            self.disks.insert(*id, MemoryDisk::new());
        }
        for id in ids {
            self.start(*id).await;
        }
    }

    async fn leader(&self) -> u64 {
        let mut watch = self.servers.values().next().expect("a node runs").node().watch();
        let known = watch.wait_for(|leadership| leadership.leader.is_some()).await;
        known.expect("the node runs").leader.expect("just seen")
    }
}

#[tokio::test(start_paused = true)]
async fn every_operation_answers() {
    let cluster = Cluster::new(|_| {}).await;
    let client = &cluster.client;
    let put = client.put("a", "1").await.unwrap();
    assert!(put.changed && put.version == 1);
    assert_eq!(client.append("a", "2").await.unwrap().version, 2);
    let record = client.get("a").await.unwrap().unwrap();
    assert_eq!((&record.value[..], record.version), (&b"12"[..], 2));
    assert_eq!(record.create_revision, put.revision);
    let swap = client.compare_and_swap("a", Expect::Value("x".into()), "y").await.unwrap();
    assert!(!swap.changed);
    let swap = client.compare_and_swap("a", Expect::Version(2), "y").await.unwrap();
    assert!(swap.changed && swap.version == 3);
    assert!(client.compare_and_swap("b", Expect::Version(0), "z").await.unwrap().changed);
    let page = client.scan("", "", 10).await.unwrap();
    let keys: Vec<_> = page.records.iter().map(|(key, _)| key.clone()).collect();
    assert_eq!((keys, page.continue_at), (vec!["a".into(), "b".into()], None));
    assert!(client.delete("a").await.unwrap().changed);
    assert!(!client.delete("a").await.unwrap().changed);
    assert_eq!(client.get("a").await.unwrap(), None);
    for id in 1..=3 {
        let status = client.status(id).await.unwrap();
        assert_eq!(status.leader_id, Some(cluster.leader().await));
        assert!(status.peers.iter().all(|peer| peer.error.is_none()), "{status:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_stops_costs_no_answer_and_no_order() {
    let mut cluster = Cluster::new(|config| config.max_raft_state = ByteSize(20_000)).await;
    for round in 0..4 {
        let leader = cluster.leader().await;
        let mut status = cluster.servers[&leader].node().watch_status();
        let from = status.borrow().last_applied;
        let client = cluster.client.clone();
        let writing = tokio::spawn(async move {
            for number in 0..250 {
                client.append("log", format!("{},", round * 250 + number)).await.unwrap();
            }
        });
        // In the middle of the writes.
        status.wait_for(|status| status.last_applied > from + 100).await.unwrap();
        let server = cluster.servers.remove(&leader).unwrap();
        if round % 2 == 0 {
            server.shutdown().await;
            writing.await.unwrap();
        } else {
            // As if killed: no message of it arrives.
            cluster.disks[&leader].crash();
            cluster.network.peers().isolate(leader);
            writing.await.unwrap();
            cluster.network.peers().heal();
            // Its last write may have been durable already. Then it notices the loss of its disk
            // when it learns of another leader.
            assert!(server.stopped().await.is_err());
        }
        cluster.start(leader).await;
    }
    let expected: String = (0..1000).map(|number| format!("{number},")).collect();
    assert_eq!(cluster.client.get("log").await.unwrap().unwrap().value, expected);
}

#[tokio::test(start_paused = true)]
async fn limits_are_told_and_nothing_of_them_reaches_the_log() {
    let cluster = Cluster::new(|config| {
        config.limits.key_bytes_max = ByteSize(8);
        config.limits.value_bytes_max = ByteSize(16);
    })
    .await;
    let client = &cluster.client;
    client.put("k", vec![1; 10]).await.unwrap();
    let before = client.status(cluster.leader().await).await.unwrap().last_index;
    for error in [
        client.put("k", vec![1; 17]).await.unwrap_err(),
        client.put(vec![1; 9], "v").await.unwrap_err(),
        client.put("", "v").await.unwrap_err(),
        client.get(vec![1; 9]).await.unwrap_err(),
        client.scan("", "", 0).await.unwrap_err(),
        client.put("k", vec![1; 50 << 20]).await.unwrap_err(),
    ] {
        assert_eq!(error.outcome, Outcome::NotExecuted, "{error}");
    }
    assert_eq!(client.status(cluster.leader().await).await.unwrap().last_index, before);
    // An append exceeds the limit only where it is executed, so the state machine refuses it.
    let error = client.append("k", vec![2; 10]).await.unwrap_err();
    assert_eq!(error.outcome, Outcome::NotExecuted, "{error}");
    assert_eq!(client.get("k").await.unwrap().unwrap().version, 1);
}

#[tokio::test(start_paused = true)]
async fn without_a_quorum_a_write_is_unknown_or_not_executed_and_a_read_is_not_executed() {
    let mut cluster = Cluster::new(|_| {}).await;
    cluster.client.put("k", "before").await.unwrap();
    let leader = cluster.leader().await;
    for id in (1..=3).filter(|id| *id != leader) {
        cluster.servers.remove(&id).unwrap().shutdown().await;
    }
    let client = cluster.client.with_deadline(Duration::from_secs(2));
    let write = client.put("k", "doubtful").await.unwrap_err();
    assert_eq!(write.outcome, Outcome::Unknown, "{write}");
    let read = client.get("k").await.unwrap_err();
    assert_eq!(read.outcome, Outcome::NotExecuted, "{read}");
    let stale = client.get_with("k", Consistency::Stale).await;
    assert_eq!(stale.unwrap().unwrap().value, "before");
    cluster.servers.remove(&leader).unwrap().shutdown().await;
    let write = client.put("k", "never").await.unwrap_err();
    assert_eq!(write.outcome, Outcome::NotExecuted, "{write}");
}

#[tokio::test(start_paused = true)]
async fn an_expired_session_is_renewed_when_nothing_is_in_doubt() {
    let cluster = Cluster::new(|config| {
        config.sessions.ttl = Duration::from_secs(5);
    })
    .await;
    cluster.client.append("k", "1").await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    // Another client's write carries the time at which the first client's session expires.
    cluster.network.client(1..=3).append("k", "2").await.unwrap();
    cluster.client.append("k", "3").await.unwrap();
    assert_eq!(cluster.client.get("k").await.unwrap().unwrap().value, "123");
}

#[tokio::test(start_paused = true)]
async fn thousands_of_writes_at_once_each_take_effect_once() {
    let cluster = Cluster::new(|config| config.limits.connection_requests_max = 64).await;
    let writes: Vec<_> = (0..5000)
        .map(|_| {
            let client = cluster.client.clone();
            tokio::spawn(async move { client.append("k", "x").await.map(|answer| answer.version) })
        })
        .collect();
    let mut versions = Vec::new();
    for write in writes {
        versions.push(write.await.unwrap().unwrap());
    }
    versions.sort_unstable();
    assert_eq!(versions, (1..=5000).collect::<Vec<u64>>());
}

#[tokio::test(start_paused = true)]
async fn a_closed_client_says_so_at_once() {
    let cluster = Cluster::new(|_| {}).await;
    let clone = cluster.client.clone();
    clone.put("k", "v").await.unwrap();
    cluster.client.close().await;
    let since = tokio::time::Instant::now();
    for error in [clone.put("k", "w").await.unwrap_err(), clone.get("k").await.unwrap_err()] {
        assert_eq!((error.outcome, error.reason), (Outcome::NotExecuted, Reason::Closed));
    }
    assert_eq!(since.elapsed(), Duration::ZERO);
    let other = cluster.network.client(1..=3).with_deadline(Duration::MAX);
    assert_eq!(other.get("k").await.unwrap().unwrap().value, "v");
}

/// A client that speaks the protocol by hand.
struct Speaker {
    stream: Stream,
    frames: FrameBuffer,
}

impl Speaker {
    async fn new(cluster: &Cluster, node: u64) -> Self {
        let stream = cluster.network.connect(node).await.expect("the node runs");
        Self { stream, frames: FrameBuffer::with_limit(FRAME_BYTES_MAX) }
    }

    async fn say(&mut self, message: &impl serde::Serialize) {
        let mut bytes = BytesMut::new();
        push_frame(&mut bytes, message);
        self.stream.writer.write_all(&bytes).await.expect("the node listens");
    }

    /// Receives a message; `None` when the node has closed the connection.
    async fn hear<T: serde::de::DeserializeOwned>(&mut self) -> Option<T> {
        loop {
            if let Some(message) = self.frames.next_message().expect("the node makes sense") {
                return Some(message);
            }
            self.frames.reserve();
            if self.stream.reader.read_buf(self.frames.input()).await.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    async fn greet(&mut self) -> Hello {
        // In version 2 the node says nothing unasked.
        self.say(&Greeting { versions: vec![2], client: "by hand".to_owned() }).await;
        match self.hear().await.expect("the node answers") {
            Welcome::Hello(hello) => hello,
            Welcome::Refused(why) => panic!("refused: {why}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn nonsense_ends_its_own_connection_only() {
    let cluster = Cluster::new(|_| {}).await;
    cluster.client.put("k", "v").await.unwrap();
    let too_long = (u32::MAX).to_be_bytes().to_vec();
    let not_a_message = [&5u32.to_be_bytes()[..], b"hello"].concat();
    let mut left_over = BytesMut::new();
    push_frame(&mut left_over, &Request::new(1, RequestKind::Status));
    left_over[3] += 1;
    left_over.extend_from_slice(&[0]);
    for nonsense in [too_long, not_a_message, left_over.to_vec()] {
        let mut after_greeting = Speaker::new(&cluster, 1).await;
        after_greeting.greet().await;
        after_greeting.stream.writer.write_all(&nonsense).await.unwrap();
        assert!(after_greeting.hear::<Response>().await.is_none());
        let mut instead_of_greeting = Speaker::new(&cluster, 1).await;
        instead_of_greeting.stream.writer.write_all(&nonsense).await.unwrap();
        let told = instead_of_greeting.hear::<Welcome>().await;
        assert_eq!(told, Some(Welcome::Refused(no_greeting())), "a sentence, and the end");
        assert!(instead_of_greeting.hear::<Welcome>().await.is_none());
    }
    // A greeting of version 1, which no release has spoken, and one of a future version.
    let of_version_1 = b"\0\0\0\x08\x91\xa6client".to_vec();
    let of_version_9 = Greeting { versions: vec![9], client: "client".to_owned() };
    let mut newer = BytesMut::new();
    push_frame(&mut newer, &of_version_9);
    for (greeting, why) in [
        (of_version_1, no_greeting()),
        (newer.to_vec(), of_version_9.common_version().unwrap_err()),
    ] {
        let mut foreign = Speaker::new(&cluster, 1).await;
        foreign.stream.writer.write_all(&greeting).await.unwrap();
        assert_eq!(foreign.hear::<Welcome>().await, Some(Welcome::Refused(why)));
        assert!(foreign.hear::<Welcome>().await.is_none());
    }
    let mut silent = Speaker::new(&cluster, 1).await;
    assert!(silent.hear::<Welcome>().await.is_none(), "given up after a while");
    assert_eq!(cluster.client.get("k").await.unwrap().unwrap().value, "v");
}

/// The client asks for far more than fits into the node's budget, and reads none of it.
#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_listen_takes_nothing_from_others() {
    let cluster = Cluster::new(|config| config.limits.answer_bytes_max = ByteSize(48 << 20)).await;
    for number in 0..4 {
        cluster.client.put(format!("large {number}"), vec![7; 1 << 20]).await.unwrap();
    }
    let mut deaf = Vec::new();
    for _ in 0..8 {
        let mut speaker = Speaker::new(&cluster, 1).await;
        speaker.greet().await;
        for id in 0..100 {
            let query = Query::Get { key: "large 1".into() };
            let kind = RequestKind::Read { query, consistency: Consistency::Stale };
            speaker.say(&Request::new(id, kind)).await;
        }
        deaf.push(speaker);
    }
    for _ in 0..20 {
        let client = cluster.servers[&1].client();
        assert_eq!(client.get("large 2").await.unwrap().unwrap().value.len(), 1 << 20);
    }
    // The node closes the connections in the end, and everything they held is free again.
    tokio::time::sleep(Duration::from_secs(60)).await;
    let mut speaker = Speaker::new(&cluster, 1).await;
    speaker.greet().await;
    for id in 0..3 {
        let query = Query::Get { key: "large 3".into() };
        let kind = RequestKind::Read { query, consistency: Consistency::Stale };
        speaker.say(&Request::new(id, kind)).await;
        let response: Response = speaker.hear().await.unwrap();
        assert!(matches!(response.reply, Reply::Answered(_)), "{:?}", response.id);
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_has_a_client_of_its_own_cluster() {
    let cluster = Cluster::new(|_| {}).await;
    for (id, server) in &cluster.servers {
        server.client().put(format!("from {id}"), "hello").await.unwrap();
    }
    assert_eq!(cluster.client.scan("from", "", 10).await.unwrap().records.len(), 3);
}

/// S11. A crowd of connections that stall in each possible way: half a large request, half a small
/// one, responses that are not read, silence after the greeting. The other client goes on as
/// before, and all stalled connections are closed, by the minimum rate.
#[tokio::test(start_paused = true)]
async fn a_crowd_that_stalls_takes_nothing_from_others_and_is_given_up() {
    const CROWD: u64 = 200;
    let cluster = Cluster::new(|config| {
        config.limits.answer_bytes_max = ByteSize(32 << 20);
        config.limits.receive_bytes_max = ByteSize(4 << 20);
    })
    .await;
    cluster.client.put("large", vec![7; 1 << 20]).await.unwrap();
    cluster.client.put("small", "s").await.unwrap();
    let (mut half_sent, mut deaf) = (Vec::new(), Vec::new());
    for number in 0..CROWD {
        let mut speaker = Speaker::new(&cluster, 1 + number % 3).await;
        speaker.greet().await;
        if number % 2 == 0 {
            let announced = if number % 4 == 0 { 1u32 << 20 } else { 100 };
            speaker.stream.writer.write_all(&announced.to_be_bytes()).await.unwrap();
            speaker.stream.writer.write_all(b"half").await.unwrap();
            half_sent.push(speaker);
        } else {
            for id in 0..50 {
                let query = Query::Get { key: "large".into() };
                speaker.say(&read_of(id, query)).await;
            }
            deaf.push(speaker);
        }
    }
    let client = cluster.client.with_deadline(Duration::from_secs(1));
    let since = tokio::time::Instant::now();
    for number in 0..100 {
        client.append("small", number.to_string()).await.unwrap();
        client.get("small").await.unwrap().unwrap();
    }
    assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
    // Long enough for each connection of the crowd to get its turn in the budget of received bytes.
    tokio::time::sleep(Duration::from_secs(200)).await;
    for mut speaker in half_sent {
        assert!(speaker.hear::<Response>().await.is_none(), "it is closed");
    }
    // Connections that received no more than `Busy` hold nothing, and may stay.
    let mut closed_count = 0;
    for speaker in &mut deaf {
        let second = Duration::from_secs(1);
        while let Ok(heard) = tokio::time::timeout(second, speaker.hear::<Response>()).await {
            if heard.is_none() {
                closed_count += 1;
                break;
            }
        }
    }
    assert!(closed_count > 10, "{closed_count} deaf connections were closed");
    let large = cluster.client.put("large", vec![8; 1 << 20]).await.unwrap();
    assert_eq!(large.version, 2);
    assert_eq!(cluster.client.get("large").await.unwrap().unwrap().value.len(), 1 << 20);
}

/// S11. A client that reads one byte now and then makes no progress.
#[tokio::test(start_paused = true)]
async fn a_client_that_sips_its_responses_is_given_up() {
    let cluster = Cluster::new(|_| {}).await;
    cluster.client.put("large", vec![7; 1 << 20]).await.unwrap();
    let mut sipping = Speaker::new(&cluster, 1).await;
    sipping.greet().await;
    sipping.say(&read_of(1, Query::Get { key: "large".into() })).await;
    let since = tokio::time::Instant::now();
    let mut request = BytesMut::new();
    push_frame(&mut request, &read_of(2, Query::Get { key: "absent".into() }));
    // Until the node has closed its side.
    while sipping.stream.writer.write_all(&request).await.is_ok() {
        let mut byte = [0];
        assert_eq!(sipping.stream.reader.read(&mut byte).await.unwrap(), 1);
        tokio::time::sleep(Duration::from_secs(4)).await;
        assert!(since.elapsed() < Duration::from_secs(30), "it is still connected");
    }
}

fn read_of(id: u64, query: Query) -> Request {
    Request::new(id, RequestKind::Read { query, consistency: Consistency::Stale })
}

/// S2. A node whose file names other members than its log does not start, and its error names both
/// lists.
#[tokio::test(start_paused = true)]
async fn another_list_of_members_is_refused() {
    let mut cluster = Cluster::new(|_| {}).await;
    cluster.client.put("k", "v").await.unwrap();
    for wrong in [vec![1, 2, 3, 4], vec![1, 2], vec![1, 2, 4]] {
        cluster.servers.remove(&1).unwrap().shutdown().await;
        let config = ServerConfig::in_process(1, wrong.clone());
        let store = Store::Memory(cluster.disks[&1].clone());
        let network = Network::Channel(cluster.network.clone());
        let error = Server::start_with(config, store, network).await.err().unwrap().to_string();
        assert!(error.contains("founded with"), "{error}");
        for id in [1, 2, 3].iter().chain(&wrong) {
            assert!(error.contains(&id.to_string()), "{error}");
        }
        cluster.start(1).await;
    }
    assert_eq!(cluster.client.get("k").await.unwrap().unwrap().value, "v");
}

/// C4. Founded disks that are lost do not come back as an empty cluster: not one of three, not two,
/// and not all.
#[tokio::test(start_paused = true)]
async fn lost_disks_found_no_cluster() {
    let mut cluster = Cluster::new(|_| {}).await;
    cluster.client.put("k", "v").await.unwrap();
    // One disk: the node is readmitted.
    cluster.lose_disk(1).await;
    assert_eq!(cluster.servers[&1].status().role, NOT_INITIALISED);
    let mut status = cluster.servers[&1].node().watch_status();
    let filled = status.wait_for(|status| !status.is_recovering);
    tokio::time::timeout(Duration::from_secs(60), filled).await.expect("it is filled").unwrap();
    assert_ne!(cluster.servers[&1].status().role, RECOVERING);
    assert_eq!(cluster.client.get("k").await.unwrap().unwrap().value, "v");
    // Two disks at once: the cluster stands still, and reports it.
    cluster.lose_disks(&[2, 3]).await;
    let client = cluster.client.with_deadline(Duration::from_secs(30));
    client.put("k", "w").await.unwrap_err();
    assert!(cluster.servers[&1].node().status().is_majority_lost);
    for id in [2, 3] {
        assert_eq!(client.status(id).await.unwrap().role, NOT_INITIALISED);
    }
    // All disks: no empty cluster appears.
    cluster.lose_disk(1).await;
    assert!(client.put("k", "w").await.is_err());
}
