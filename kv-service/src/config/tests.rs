use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;

use raft_core::types::NodeId;

use super::file::parse;
use super::timing::{ELECTION_CEILING, IDLE_CEILING};
use super::units::ByteSize;
use super::*;

const SERVER: &str = r#"
    cluster_id = "test"
    node_id = 2
    data_dir = "node2"
    max_raft_state = "1MiB"
    [timeouts]
    election = "400ms"
    [tls]
    ca = "ca.pem"
    cert = "node2.pem"
    key = "/keys/node2.key"
    [[nodes]]
    id = 1
    address = "127.0.0.1:7401"
    [[nodes]]
    id = 2
    address = "127.0.0.1:7402"
"#;

fn write(text: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.toml");
    std::fs::write(&path, text).unwrap();
    (dir, path)
}

#[test]
fn a_file_is_read_with_defaults_and_paths_of_its_own_directory() {
    let (dir, path) = write(SERVER);
    let config = ServerConfig::read(&path).unwrap();
    assert_eq!(config.data_dir, dir.path().join("node2"));
    assert_eq!(config.tls.ca, dir.path().join("ca.pem"));
    assert_eq!(config.tls.key, Path::new("/keys/node2.key"));
    assert_eq!(config.max_raft_state, ByteSize(1 << 20));
    assert_eq!(config.timeouts.heartbeat, Timeouts::default().heartbeat);
    assert_eq!(config.listen_address().unwrap().port(), 7402);
    let (_dir, again) = write(&config.to_toml());
    assert_eq!(ServerConfig::read(again).unwrap(), config);
}

proptest! {
    #[test]
    fn a_written_file_is_read_as_it_was(
        sizes in any::<[u64; 3]>(),
        counts in prop::array::uniform3(1usize..),
        node_id in 1u64..,
        session_count_max in 1u64..,
        times in prop::array::uniform3(1u64..86_400_000_000_000),
        listen in proptest::option::of(any::<(std::net::IpAddr, u16)>()),
        name in "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?",
        path in "\\PC{1,20}",
        in_memory in any::<bool>(),
    ) {
        let nodes = vec![NodeAddress { id: node_id, address: format!("{name}.example:7401") }];
        let tls = TlsFiles { ca: path.clone().into(), cert: "c".into(), key: "k".into() };
        let mut config = ServerConfig::new(name, node_id, path, tls.clone(), nodes.clone());
        let [heartbeat, election, ttl] = times.map(Duration::from_nanos);
        config.listen = listen.map(SocketAddr::from);
        config.storage = if in_memory { StorageKind::Memory } else { StorageKind::RocksDb };
        config.max_raft_state = ByteSize(sizes[0]);
        (config.join, config.fixed_addresses) = (in_memory, !in_memory);
        (config.name, config.zone) = (in_memory.then(|| "n".to_owned()), None);
        config.limits.value_bytes_max = ByteSize(sizes[1]);
        config.limits.answer_bytes_max = ByteSize(sizes[2]);
        config.limits.client_connections_max = counts[0];
        config.limits.connection_requests_max = counts[1];
        config.limits.requests_max = counts[2];
        config.timeouts = Timeouts { heartbeat, election, ..Timeouts::default() };
        config.sessions = SessionLimits { ttl, count_max: session_count_max };
        prop_assert_eq!(parse::<ServerConfig>(&config.to_toml()), Ok(config.clone()));
        let cluster_id = config.cluster_id;
        let mut client = ClientConfig::new(cluster_id, tls, nodes);
        (client.deadline, client.fixed_nodes) = (ttl, in_memory);
        prop_assert_eq!(parse::<ClientConfig>(&client.to_toml()), Ok(client));
    }
}

#[test]
fn what_makes_no_sense_is_refused_with_its_place() {
    for (from, to, complaint) in [
        ("node_id = 2", "node_id = 3", "not among"),
        ("node_id = 2", "node_id = 2\nnodeid = 2", "nodeid"),
        ("\"test\"", "\"Test!\"", "cluster_id"),
        ("\"test\"", "\"-test\"", "cluster_id"),
        ("\"test\"", "\"test-\"", "cluster_id"),
        ("id = 1", "id = 2", "listed twice"),
        ("id = 1", "id = 0", "ids are 1 to"),
        ("id = 1", "id = 9223372036854775808", "ids are 1 to"),
        ("127.0.0.1:7401", "127.0.0.1:7402", "same address"),
        ("127.0.0.1:7401", "localhost", "host:port"),
        ("1MiB", "1 apple", "is not a size"),
        ("400ms", "100ms", "three times"),
        ("400ms", "soon", "is not a duration"),
    ] {
        let (_dir, path) = write(&SERVER.replacen(from, to, 1));
        let error = ServerConfig::read(path).unwrap_err().to_string();
        assert!(error.contains(complaint), "{to}: {error}");
    }
}

/// One change of a configuration, and the text that refuses it; `None` if it is allowed.
type Change = (fn(&mut ServerConfig), Option<&'static str>);

/// S24. Each limit at zero, at its largest value, and one beyond.
#[test]
fn each_limit_is_bounded_at_both_ends() {
    let changes: [Change; 42] = [
        (|c| c.max_raft_state = ByteSize(0), None),
        (|c| c.max_raft_state = SIZE_CEILING, None),
        (|c| c.max_raft_state = ByteSize(SIZE_CEILING.0 + 1), Some("max_raft_state")),
        (|c| c.max_raft_state = ByteSize(u64::MAX), Some("max_raft_state")),
        (|c| c.limits.key_bytes_max = ByteSize(0), Some("key_bytes_max")),
        (|c| c.limits.key_bytes_max = KEY_BYTES_CEILING, None),
        (|c| c.limits.key_bytes_max.0 = KEY_BYTES_CEILING.0 + 1, Some("key_bytes_max")),
        (|c| c.limits.value_bytes_max = ByteSize(0), Some("value_bytes_max")),
        (|c| c.limits.value_bytes_max.0 = VALUE_BYTES_CEILING, None),
        (|c| c.limits.value_bytes_max.0 = VALUE_BYTES_CEILING + 1, Some("value_bytes_max")),
        (|c| c.limits.answer_bytes_max = ByteSize(0), Some("answer_bytes_max")),
        (|c| c.limits.answer_bytes_max = SIZE_CEILING, None),
        (|c| c.limits.answer_bytes_max = ByteSize(u64::MAX), Some("answer_bytes_max")),
        (|c| c.limits.receive_bytes_max = ByteSize(0), Some("receive_bytes_max")),
        (|c| c.limits.receive_bytes_max = ByteSize(1 << 20), Some("receive_bytes_max")),
        (|c| c.limits.receive_bytes_max = SIZE_CEILING, None),
        (|c| c.limits.receive_bytes_max = ByteSize(u64::MAX), Some("receive_bytes_max")),
        (|c| c.limits.client_connections_max = 0, Some("client_connections_max")),
        (|c| c.limits.client_connections_max = usize::MAX, Some("client_connections_max")),
        (|c| c.limits.certificate_connections_max = 0, Some("certificate_connections_max")),
        (|c| c.limits.address_connections_max = 0, Some("address_connections_max")),
        (|c| c.limits.connection_requests_max = 0, Some("connection_requests_max")),
        (|c| c.limits.connection_requests_max = usize::MAX, Some("connection_requests_max")),
        (|c| c.limits.requests_max = 0, Some("limits.requests_max")),
        (|c| c.limits.requests_max = REQUESTS_CEILING, None),
        (|c| c.limits.requests_max = usize::MAX, Some("limits.requests_max")),
        (|c| c.timeouts.heartbeat = Duration::ZERO, Some("timeouts.heartbeat")),
        (|c| c.timeouts.election = Duration::ZERO, Some("timeouts.election")),
        (|c| c.timeouts.election = ELECTION_CEILING, None),
        (|c| c.timeouts.election = Duration::MAX, Some("timeouts.election")),
        (|c| c.timeouts.peer_idle = Duration::from_millis(299), Some("timeouts.peer_idle")),
        (|c| c.timeouts.peer_idle = IDLE_CEILING, None),
        (|c| c.timeouts.peer_idle = Duration::MAX, Some("timeouts.peer_idle")),
        (|c| c.timeouts.peer_hello = Duration::ZERO, Some("timeouts.peer_hello")),
        (|c| c.timeouts.client_idle = Duration::from_secs(2), Some("timeouts.client_idle")),
        (|c| c.timeouts.client_idle = Duration::from_secs(3), None),
        (|c| c.sessions.ttl = Duration::ZERO, Some("sessions.ttl")),
        (|c| c.sessions.ttl = Duration::MAX, Some("sessions.ttl")),
        (|c| c.sessions.count_max = 0, Some("sessions.count_max")),
        (|c| c.sessions.count_max = u64::MAX, Some("sessions.count_max")),
        (|c| c.upgrade_delay = Duration::ZERO, None),
        (|c| c.upgrade_delay = Duration::MAX, Some("upgrade_delay")),
    ];
    for (place, (change, complaint)) in changes.into_iter().enumerate() {
        let mut config = ServerConfig::in_process(1, 1..=3);
        change(&mut config);
        match (config.check(), complaint) {
            (Ok(()), None) => {}
            (Err(error), Some(name)) if error.to_string().contains(name) => {}
            (result, complaint) => panic!("change {place}: {result:?}, not {complaint:?}"),
        }
    }
    let mut config = ServerConfig::in_process(1, 1..=NODES_CEILING as NodeId);
    config.check().unwrap();
    config.nodes = ServerConfig::in_process(1, 1..=NODES_CEILING as NodeId + 1).nodes;
    assert!(config.check().unwrap_err().to_string().contains("at most 64"));
}

const JOINER: &str = r#"
    cluster_id = "test"
    node_id = 4
    join = true
    data_dir = "node4"
    listen = "0.0.0.0:7404"
    advertise = "kv4.example.net:7404"
    zone = "b"
    tls = { ca = "ca.pem", cert = "node4.pem", key = "node4.key" }
    nodes = [{ id = 1, address = "127.0.0.1:7401" }]
"#;

/// 1.6. A node that joins knows other members, and says where it is itself.
#[test]
fn a_node_that_joins_need_not_be_listed() {
    let (_dir, path) = write(JOINER);
    let config = ServerConfig::read(&path).unwrap();
    assert_eq!(config.advertised_address().as_deref(), Some("kv4.example.net:7404"));
    assert_eq!(config.listen_address().unwrap().port(), 7404);
    for (from, to, complaint) in [
        ("join = true", "", "`join = true`"),
        ("advertise = \"kv4.example.net:7404\"", "", "set `advertise`"),
        ("kv4.example.net:7404", "kv4.example.net", "host:port"),
        ("node_id = 4", "node_id = 0", "ids are 1 to"),
        ("node_id = 4", "node_id = 1", "at least one other member"),
        ("\"b\"", "\"b c\"", "the zone"),
    ] {
        let (_dir, path) = write(&JOINER.replacen(from, to, 1));
        let error = ServerConfig::read(path).unwrap_err().to_string();
        assert!(error.contains(complaint), "{to}: {error}");
    }
}
