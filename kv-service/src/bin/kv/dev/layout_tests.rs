use std::os::unix::fs::PermissionsExt;

use raft_core::testing::free_ports;

use super::*;

/// A directory and a range of ports that is free at this moment.
fn setting() -> (tempfile::TempDir, PathBuf, Wish) {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("data");
    let base_port = free_ports(10).start - 1;
    (root, dir, Wish { base_port: Some(base_port), ..Wish::default() })
}

/// [`Layout::open`] for tests that have nothing to wait for.
fn open(dir: &Path, wish: &Wish) -> anyhow::Result<Layout> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(Layout::open(dir, wish))
}

fn refusal(dir: &Path, wish: &Wish) -> String {
    format!("{:#}", open(dir, wish).unwrap_err())
}

#[test]
fn everything_is_made_once_and_used_again() {
    let (_root, dir, wish) = setting();
    let layout = open(&dir, &wish).unwrap();
    let (cluster, ca) = (layout.cluster_id().to_owned(), fs::read(dir.join("ca.pem")).unwrap());
    let node = ServerConfig::read(layout.node_config(2)).unwrap();
    assert_eq!((node.node_id, node.data_dir), (2, dir.join("node2")));
    let client = ClientConfig::read(layout.client_config()).unwrap();
    assert_eq!((client.nodes.len(), client.tls.key), (3, dir.join("client.key")));
    for key in ["ca.key", "node1.key", "client.key"] {
        let mode = fs::metadata(dir.join(key)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{key}");
    }
    for private in [dir.clone(), layout.node_dir(1)] {
        let mode = fs::metadata(&private).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{}", private.display());
    }
    drop(layout);

    fs::remove_file(dir.join("node3.pem")).unwrap();
    let again = open(&dir, &Wish::default()).unwrap();
    assert_eq!(again.cluster_id(), cluster);
    assert_eq!(fs::read(dir.join("ca.pem")).unwrap(), ca);
    assert!(dir.join("node3.pem").exists(), "what was missing is made again");
}

#[test]
fn a_new_ca_leaves_nothing_of_the_old_one_and_a_draft_is_not_taken_over() {
    let (_root, dir, wish) = setting();
    drop(open(&dir, &wish).unwrap());
    let names = ["ca.pem", "node1.pem", "client.pem"];
    let read = |name: &str| fs::read(dir.join(name)).unwrap();
    let old = names.map(read);
    fs::remove_file(dir.join("ca.key")).unwrap();
    // Readable for all users, as an existing file may be.
    fs::write(dir.join("ca.key.tmp"), "left by a start that was stopped").unwrap();
    drop(open(&dir, &wish).unwrap());
    for (name, old) in names.iter().zip(old) {
        assert_ne!(read(name), old, "{name}");
    }
    let mode = fs::metadata(dir.join("ca.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_contradiction_is_an_error_that_says_so() {
    let (_root, dir, wish) = setting();
    drop(open(&dir, &wish).unwrap());
    let more = Wish { nodes: Some(5), ..Wish::default() };
    assert!(refusal(&dir, &more).contains("has 3 nodes"));
    let elsewhere = Wish { base_port: Some(1), ..Wish::default() };
    assert!(refusal(&dir, &elsewhere).contains("--base-port 1"));
    let high = Wish { base_port: Some(65_534), clean: true, ..Wish::default() };
    assert!(refusal(&dir, &high).contains("do not fit"));
}

#[test]
fn max_raft_state_may_change_and_other_settings_stay() {
    let (_root, dir, wish) = setting();
    let layout = open(&dir, &wish).unwrap();
    let path = layout.node_config(1);
    drop(layout);
    let edited = fs::read_to_string(&path).unwrap().replace("300ms", "900ms");
    fs::write(&path, edited).unwrap();
    let small = Wish { max_raft_state: Some(ByteSize(1 << 20)), ..Wish::default() };
    drop(open(&dir, &small).unwrap());
    let config = ServerConfig::read(&path).unwrap();
    assert_eq!(config.max_raft_state, ByteSize(1 << 20));
    assert_eq!(config.timeouts.election.as_millis(), 900);
}

#[test]
fn a_mistake_in_a_node_file_is_told() {
    let (_root, dir, wish) = setting();
    let path = open(&dir, &wish).unwrap().node_config(1);
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("max_raft_sate = \"1MiB\"\n{text}")).unwrap();
    assert!(refusal(&dir, &Wish::default()).contains("max_raft_sate"));
}

#[test]
fn one_supervisor_at_a_time() {
    let (_root, dir, wish) = setting();
    let held = open(&dir, &wish).unwrap();
    assert!(refusal(&dir, &wish).contains("another `kv dev` runs"));
    drop(held);
    open(&dir, &wish).unwrap();
}

#[test]
fn a_taken_port_is_named() {
    let (_root, dir, wish) = setting();
    let _taken = UdpSocket::bind(("127.0.0.1", wish.base_port.unwrap() + 2)).unwrap();
    let text = refusal(&dir, &wish);
    assert!(text.contains("node 2 cannot have UDP"), "{text}");
    assert!(!dir.join(MARKER).exists(), "nothing was made");
    assert!(refusal(&dir, &wish).contains("node 2"), "and the directory is still usable");
}

#[test]
fn clean_starts_anew_and_deletes_only_its_own() {
    let (_root, dir, wish) = setting();
    let cluster = open(&dir, &wish).unwrap().cluster_id().to_owned();
    fs::write(dir.join("node1/log/data"), "old").unwrap();
    fs::write(dir.join("notes.txt"), "mine").unwrap();
    fs::write(dir.join("ca.key.tmp"), "secret").unwrap();
    let clean =
        Wish { clean: true, nodes: Some(5), base_port: wish.base_port, max_raft_state: None };
    let layout = open(&dir, &clean).unwrap();
    assert_ne!(layout.cluster_id(), cluster);
    assert_eq!(layout.nodes().len(), 5);
    assert!(!dir.join("node1/log/data").exists());
    assert!(!dir.join("ca.key.tmp").exists());
    assert!(dir.join("notes.txt").exists());
}

#[test]
fn somebody_elses_directory_is_left_alone() {
    let (_root, dir, wish) = setting();
    fs::create_dir_all(dir.join("node1")).unwrap();
    for clean in [false, true] {
        let wish = Wish { clean, base_port: wish.base_port, ..Wish::default() };
        assert!(refusal(&dir, &wish).contains("was not made by `kv dev`"));
    }
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_still_runs_is_waited_for_and_then_named() {
    let (_root, dir, wish) = setting();
    drop(Layout::open(&dir, &wish).await.unwrap());
    let running = File::create(dir.join("node2/lock")).unwrap();
    flock(&running, FlockOperation::NonBlockingLockExclusive).unwrap();
    let error = Layout::open(&dir, &wish).await.unwrap_err().to_string();
    assert!(error.contains("node 2 runs already"), "{error}");
    drop(running);
    Layout::open(&dir, &wish).await.unwrap();
}

/// C4. The nodes of a new cluster are initialised; a node whose directory is lost is not.
#[test]
fn only_new_nodes_are_initialised() {
    let (_root, dir, wish) = setting();
    drop(open(&dir, &wish).unwrap());
    let identity = |id: u64| dir.join(format!("node{id}/identity"));
    for id in 1..=3 {
        assert!(identity(id).exists(), "node {id}");
    }
    fs::remove_dir_all(dir.join("node2")).unwrap();
    // As if an earlier start had been stopped after it made the directory of node 3.
    fs::remove_file(dir.join("node3.toml")).unwrap();
    drop(open(&dir, &wish).unwrap());
    assert!(!identity(2).exists() && identity(3).exists());
}
