//! The `kv` binary as its users meet it: real processes, disks, sockets and signals.

#![allow(clippy::unwrap_used)]

mod alone;
mod cluster;

use std::fs::OpenOptions;
use std::process::Stdio;

use rustix::process::Signal;
use serde_json::{Value, json};

use self::cluster::{Cluster, eventually, is_alive, kill, kv, pid, spawn};

#[test]
fn a_newcomer_reads_and_writes() {
    let cluster = Cluster::start();
    let ok = |args: &[&str]| cluster.kv_ends(0, args);
    assert!(ok(&["put", "greeting", "hello"]).starts_with("ok revision="));
    assert_eq!(ok(&["get", "greeting"]), "hello\n");
    assert!(ok(&["append", "greeting", " world"]).contains("version=2"));
    let record: Value = serde_json::from_str(&ok(&["get", "greeting", "--json"])).unwrap();
    assert_eq!((&record["value"], &record["version"]), (&json!("hello world"), &json!(2)));
    assert!(record["create_revision"].as_u64() < record["modify_revision"].as_u64());

    assert_eq!(cluster.kv_ends(1, &["get", "nothing"]), "");
    assert!(cluster.kv_ends(1, &["delete", "nothing"]).starts_with("not found"));
    let refused = cluster.kv_ends(1, &["cas", "greeting", "--expect", "hi", "bye"]);
    assert!(refused.starts_with("not swapped"), "{refused}");
    assert!(ok(&["cas", "greeting", "--version", "2", "bye"]).contains("version=3"));
    assert!(ok(&["cas", "new", "--version", "0", "born"]).contains("version=1"));
    ok(&["delete", "new"]);

    for key in ["list/a", "list/b", "list/c", "liszt"] {
        ok(&["put", key, key]);
    }
    assert_eq!(
        ok(&["scan", "--prefix", "list/", "--limit", "2"]),
        "list/a\tlist/a\nlist/b\tlist/b\n"
    );
    assert_eq!(ok(&["scan", "--prefix", "list/", "--json"]).lines().count(), 3);
    assert_eq!(ok(&["scan"]).lines().count(), 5);

    // A refused request surely has no effect, and the complaint says why.
    let refused = cluster.kv(&["put", "", "value", "--json"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("key is empty"));
    let told: Value = serde_json::from_slice(&refused.stdout).unwrap();
    assert_eq!(told["outcome"], "not_executed");
}

#[test]
fn the_exit_code_tells_what_was_done_even_if_it_cannot_be_printed() {
    let cluster = Cluster::start();
    let full = || Stdio::from(OpenOptions::new().write(true).open("/dev/full").unwrap());
    let closed = || Stdio::from(std::io::pipe().unwrap().1);
    let outputs: [&dyn Fn() -> Stdio; 2] = [&full, &closed];
    for (round, output) in outputs.into_iter().enumerate() {
        let key = format!("k{round}");
        for (code, args) in [
            (0, &["put", &key, "v"][..]),
            (0, &["append", &key, "w", "--json"]),
            (1, &["cas", &key, "--expect", "v", "x"]),
            (2, &["get", &key]),
            (2, &["put", "", "v", "--json"]),
            (1, &["delete", "nothing"]),
        ] {
            let (ended, stderr) = cluster.kv_into(output(), args);
            assert_eq!(ended, code, "{args:?}: {stderr}");
            assert!(stderr.contains("cannot be written") || stderr.contains("cannot write"));
        }
        assert_eq!(cluster.kv_ends(0, &["get", &key]), "vw\n");
    }
    for args in [&["scan"][..], &["scan", "--json"], &["status"], &["status", "--json"]] {
        assert_eq!(cluster.kv_into(full(), args).0, 2, "{args:?}");
        assert_eq!(cluster.kv_into(closed(), args), (0, String::new()), "{args:?}");
    }
    let brief = ["bench", "put", "--clients", "1", "--duration", "100ms", "--warm-up", "1ms"];
    assert_eq!(cluster.kv_into(full(), &brief).0, 0);
    assert_eq!(cluster.kv_into(closed(), &brief).0, 0);
}

#[test]
fn status_and_benchmark_speak_to_scripts() {
    let cluster = Cluster::start();
    let nodes = cluster.nodes();
    assert_eq!(nodes.len(), 3);
    let (leader, _) = cluster.leader();
    for (place, node) in nodes.iter().enumerate() {
        let fields: Vec<&str> = node.as_object().unwrap().keys().map(String::as_str).collect();
        let mut expected = [
            "id",
            "address",
            "pid",
            "reachable",
            "role",
            "member",
            "behind",
            "term",
            "leader_id",
            "commit_index",
            "last_applied",
            "log_bytes",
            "snapshot_index",
            "version",
            "cluster_version",
            "waits_for",
            "is_majority_lost",
            "error",
        ];
        expected.sort_unstable();
        assert_eq!(fields, expected);
        assert_eq!(node["id"], place + 1);
        assert_eq!((&node["reachable"], &node["error"]), (&json!(true), &Value::Null));
        assert_eq!(node["leader_id"], leader);
        assert!(is_alive(pid(node)));
    }
    for op in ["mixed", "append", "get"] {
        let line = cluster.kv_ends(
            0,
            &[
                "bench",
                op,
                "--clients",
                "4",
                "--duration",
                "500ms",
                "--warm-up",
                "100ms",
                "--keys",
                "50",
                "--value-size",
                "100B",
                "--connections",
                "2",
                "--json",
            ],
        );
        assert_eq!(line.lines().count(), 1, "{line}");
        let figures: Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&figures["op"], &figures["clients"]), (&json!(op), &json!(4)));
        assert_eq!(figures["errors"], 0);
        assert!(figures["ops"].as_u64().unwrap() > 0 && figures["p50_us"].as_f64().unwrap() > 0.0);
    }
    assert_eq!(
        cluster.kv_ends(0, &["scan", "--prefix", "bench/100/0", "--json"]).lines().count(),
        50
    );
}

/// Members come and go, by the commands that the book shows.
#[test]
fn a_newcomer_adds_and_removes_nodes() {
    let cluster = Cluster::start();
    let ok = |args: &[&str]| cluster.kv_ends(0, args);
    ok(&["put", "key", "value"]);
    let dir = cluster.dir.to_str().unwrap();
    assert_eq!(ok(&["dev", "--dir", dir, "add"]), "node 4 was added, and is a voter\n");
    let members = |cluster: &Cluster| -> Value {
        serde_json::from_str(&cluster.kv_ends(0, &["member", "list", "--json"])).unwrap()
    };
    let grown = members(&cluster);
    assert_eq!(grown["members"].as_array().unwrap().len(), 4);
    assert_eq!((&grown["failures_tolerated_now"], &grown["next_id"]), (&json!(1), &json!(5)));

    // A change that is not meant is refused, and one that is planned changes nothing.
    let refused = cluster.kv(&["member", "remove", "4"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("node 4 is running"));
    let planned = ok(&["member", "plan", "remove", "4", "--live"]);
    assert!(planned.contains("checked, and nothing was changed"), "{planned}");
    assert_eq!(members(&cluster)["index"], grown["index"]);

    let stopped = ok(&["ok-to-stop", "4"]);
    assert!(stopped.starts_with("yes"), "{stopped}");
    let stopped = cluster.kv(&["ok-to-stop", "3", "4"]);
    assert_eq!(stopped.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&stopped.stdout).starts_with("no: 2 of 4 voters"));
    let (leader, _) = cluster.leader();
    let to = if leader == 1 { "2" } else { "1" };
    assert!(ok(&["leader", "transfer", "--to", to]).starts_with(&format!("node {to} leads")));
    // It leads, so it hands over.
    let drained = ok(&["drain", to]);
    assert!(drained.ends_with(&format!("node {to} drains: it leads only if no other voter can\n")));
    let drained: Vec<_> = members(&cluster)["members"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|member| member["is_draining"] == json!(true))
        .map(|member| (member["id"].clone(), member["is_leader"].clone()))
        .collect();
    assert_eq!(drained, [(json!(to.parse::<u64>().unwrap()), json!(false))]);
    let refused = cluster.kv(&["leader", "transfer", "--to", to]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("is draining"));
    assert!(ok(&["drain", to, "--off"]).ends_with("may lead again\n"));
    assert!(ok(&["member", "set", "3", "--zone", "c"]).ends_with("done\n"));
    assert_eq!(members(&cluster)["members"][2]["zone"], json!("c"));

    assert_eq!(ok(&["dev", "--dir", dir, "remove", "4"]), "node 4 was removed\n");
    cluster.heard("node 4 was removed from the cluster; its files are deleted");
    assert!(!cluster.dir.join("node4").exists());
    assert_eq!(members(&cluster)["members"].as_array().unwrap().len(), 3);
    assert_eq!(ok(&["get", "key"]), "value\n");
}

#[test]
fn appends_survive_the_leader_once_each_and_in_order() {
    let mut cluster = Cluster::start();
    let (leader, leader_pid) = cluster.leader();
    let mut batch = cluster.batch(&[]);
    let mut revisions = Vec::new();
    for number in 0..200 {
        if number == 100 {
            kill(leader_pid, Signal::KILL);
        }
        let request = json!({"op": "append", "key": "log", "value": format!("{number},")});
        let answer = batch.ask(&request.to_string());
        assert_eq!(answer["outcome"], "ok", "{answer}");
        assert!(answer["start_ns"].as_u64() < answer["end_ns"].as_u64());
        revisions.push(answer["revision"].as_u64().unwrap());
    }
    assert!(revisions.is_sorted_by(|a, b| a < b));
    let expected: String = (0..200).map(|number| format!("{number},")).collect();
    assert_eq!(batch.ask(r#"{"op":"get","key":"log"}"#)["value"], expected);
    assert_eq!(batch.finish(), Some(0));

    let told = cluster.heard(&format!("node {leader} ended"));
    assert!(told.contains("SIGKILL") && told.contains(&format!("node{leader}.log")), "{told}");
    let down = cluster.nodes().remove(usize::try_from(leader).unwrap() - 1);
    assert_eq!((&down["reachable"], &down["pid"]), (&json!(false), &Value::Null));
    assert!(down["error"].is_string());

    let dir = cluster.dir.display().to_string();
    let back = cluster.kv(&["dev", "--dir", &dir, "restart", &leader.to_string()]);
    assert!(back.status.success(), "{}", String::from_utf8_lossy(&back.stderr));
    cluster.heard("is back");
    assert!(cluster.nodes().iter().all(|node| node["reachable"] == true));

    // All nodes stop, all come back, and nothing is lost.
    let pids: Vec<u32> = cluster.nodes().iter().map(pid).collect();
    assert!(cluster.down(Signal::INT).success());
    assert!(!pids.into_iter().any(is_alive));
    let silent = cluster.kv(&["status", "--json", "--deadline", "300ms"]);
    assert_eq!(silent.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&silent.stdout).contains("\"reachable\":false"));
    cluster.up(&[]);
    assert_eq!(cluster.kv_ends(0, &["get", "log"]), expected + "\n");
}

#[test]
fn a_batch_answers_every_line_in_order() {
    let cluster = Cluster::start();
    let mut batch = cluster.batch(&["--pipeline", "16"]);
    for number in 0..100 {
        batch.send(&json!({"op": "put", "key": format!("k{number}"), "value": "v"}).to_string());
        batch.send("{nonsense");
    }
    batch.send(r#"{"op":"put","key":"","value":"v"}"#);
    batch.close();
    for number in 0..100 {
        let answer = batch.receive();
        assert_eq!(
            (&answer["key"], &answer["outcome"]),
            (&json!(format!("k{number}")), &json!("ok"))
        );
        let answer = batch.receive();
        assert_eq!(answer["outcome"], "not_executed");
        assert!(answer["error"].as_str().unwrap().contains("not a request"));
    }
    assert!(batch.receive()["error"].as_str().unwrap().contains("key is empty"));
    assert_eq!(batch.finish(), Some(0));

    let mut batch = cluster.batch(&[]);
    assert_eq!(batch.ask(r#"{"op":"get","key":"none"}"#)["value"], Value::Null);
    let created = batch.ask(r#"{"op":"cas","key":"c","expect":null,"value":"1"}"#);
    assert_eq!(created["swapped"], true);
    let refused = batch.ask(r#"{"op":"cas","key":"c","expect":"2","value":"3"}"#);
    assert_eq!((&refused["swapped"], &refused["outcome"]), (&json!(false), &json!("ok")));
    assert_eq!(batch.ask(r#"{"op":"cas","key":"c","expect":"1","value":"2"}"#)["swapped"], true);
    assert_eq!(batch.ask(r#"{"op":"get","key":"c"}"#)["value"], "2");
    assert_eq!(batch.ask(r#"{"op":"delete","key":"c"}"#)["swapped"], Value::Null);
    assert_eq!(batch.finish(), Some(0));
}

#[test]
fn what_cannot_be_told_is_unknown() {
    let cluster = Cluster::start();
    let mut batch = cluster.batch(&[]);
    assert_eq!(batch.ask(r#"{"op":"put","key":"k","value":"before"}"#)["outcome"], "ok");
    let (leader, _) = cluster.leader();
    let followers: Vec<u32> =
        cluster.nodes().iter().filter(|node| node["id"] != leader).map(pid).collect();
    for follower in &followers {
        kill(*follower, Signal::STOP);
    }
    let lost = batch.ask(r#"{"op":"put","key":"k","value":"during","deadline_ms":1500}"#);
    assert_eq!(lost["outcome"], "unknown", "{lost}");
    assert!(lost["error"].as_str().unwrap().contains("deadline"), "{lost}");
    // A read has no effect that could be unknown.
    let question = batch.ask(r#"{"op":"get","key":"k","deadline_ms":300}"#);
    assert_eq!(question["outcome"], "not_executed", "{question}");
    for follower in followers {
        kill(follower, Signal::CONT);
    }
    assert_eq!(batch.ask(r#"{"op":"put","key":"k","value":"after"}"#)["outcome"], "ok");
    assert_eq!(batch.ask(r#"{"op":"get","key":"k"}"#)["value"], "after");
    assert_eq!(batch.finish(), Some(0));
}

#[test]
fn a_node_is_run_by_hand_from_a_file_and_from_flags() {
    let cluster = Cluster::start();
    let nodes = cluster.nodes();
    let follower = nodes.iter().find(|node| node["role"] == "follower").unwrap();
    let id = follower["id"].as_u64().unwrap();
    let place = usize::try_from(id).unwrap() - 1;
    kill(pid(follower), Signal::KILL);
    cluster.heard(&format!("node {id} ended"));

    let file = format!("node{id}.toml");
    let address = |id: u64| format!("{id}=127.0.0.1:{}", u64::from(cluster.base_port) + id);
    let (one, two, three) = (address(1), address(2), address(3));
    let marker = std::fs::read_to_string(cluster.dir.join("dev.toml")).unwrap();
    let marker: toml::Table = toml::from_str(&marker).unwrap();
    let number = id.to_string();
    let (data, cert, key) = (format!("node{id}"), format!("node{id}.pem"), format!("node{id}.key"));
    let flags = [
        "serve",
        "--cluster",
        marker["cluster_id"].as_str().unwrap(),
        "--id",
        &number,
        "--data-dir",
        &data,
        "--node",
        &one,
        "--node",
        &two,
        "--node",
        &three,
        "--ca",
        "ca.pem",
        "--cert",
        &cert,
        "--key",
        &key,
    ];
    for args in [&["serve", "--config", file.as_str()][..], &flags[..]] {
        let mut by_hand = spawn(args, &cluster.dir);
        eventually("the node to answer", || cluster.nodes()[place]["pid"] == by_hand.pid());
        // Its directory is in use now, so a second process does not get it.
        let second = kv(&["serve", "--config", &file], &cluster.dir);
        assert_eq!(second.status.code(), Some(2));
        by_hand.ends_well();
    }
}

#[test]
fn nodes_do_not_outlive_a_killed_supervisor() {
    let mut cluster = Cluster::start();
    cluster.kv_ends(0, &["put", "k", "v"]);
    let dir = cluster.dir.display().to_string();

    let second = kv(&["dev", "--dir", &dir], &cluster.dir);
    assert_eq!(second.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&second.stderr).contains("another `kv dev` runs"));

    let pids: Vec<u32> = cluster.nodes().iter().map(pid).collect();
    cluster.down(Signal::KILL);
    eventually("the nodes to stop", || !pids.iter().copied().any(is_alive));
    let alone = kv(&["dev", "--dir", &dir, "restart", "1"], &cluster.dir);
    assert_eq!(alone.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&alone.stderr).contains("no `kv dev` runs"));

    let contradiction = kv(&["dev", "--dir", &dir, "--nodes", "5"], &cluster.dir);
    assert_eq!(contradiction.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&contradiction.stderr).contains("has 3 nodes"));

    // Killed and started at once: the new supervisor waits for the nodes of the old one to end.
    cluster.up(&["--max-raft-state", "1MiB"]);
    cluster.down(Signal::KILL);
    cluster.up(&[]);
    assert_eq!(cluster.kv_ends(0, &["get", "k"]), "v\n");

    // A node that does not react is killed, at once if the supervisor is asked twice.
    let pids: Vec<u32> = cluster.nodes().iter().map(pid).collect();
    kill(pids[0], Signal::STOP);
    assert!(cluster.down_at_once().success());
    assert!(!pids.into_iter().any(is_alive));
    let port = cluster.base_port.to_string();
    cluster.up(&["--clean", "--nodes", "1", "--base-port", &port]);
    assert_eq!(cluster.nodes().len(), 1);
    cluster.kv_ends(1, &["get", "k"]);
}
