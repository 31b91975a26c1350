//! Complaints of the binary when there is no cluster, or the input is wrong.

use std::net::UdpSocket;

use crate::cluster::{eventually, kv, spawn};

/// Checks that the command ends with code 2, "surely not executed", and this complaint.
fn refuses(args: &[&str], dir: &std::path::Path, complaint: &str) {
    let output = kv(args, dir);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
    assert!(stderr.contains(complaint), "{args:?}: {stderr}");
}

const TLS: &str = "[tls]\nca = \"ca.pem\"\ncert = \"n.pem\"\nkey = \"n.key\"\n";

#[test]
fn without_a_cluster_it_says_how_to_get_one() {
    let dir = tempfile::tempdir().unwrap();
    refuses(&["get", "k"], dir.path(), "Start a cluster with `kv dev`");
    refuses(&["--config", "nowhere.toml", "get", "k"], dir.path(), "nowhere.toml");
    refuses(&["batch"], dir.path(), "kv dev");
    refuses(&["dev", "restart", "1"], dir.path(), "there is no node 1");
    refuses(&["dev", "--clean", "restart", "1"], dir.path(), "no flag but --dir");
    refuses(&["dev", "--nodes", "5", "restart", "1"], dir.path(), "no flag but --dir");
    refuses(&["serve"], dir.path(), "--config");
    refuses(&["frobnicate"], dir.path(), "Usage");
    refuses(&["cas", "k", "v"], dir.path(), "--expect");
}

/// One command makes all that a cluster of one node needs, and the node starts from it.
#[test]
fn one_command_founds_a_cluster() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    // Free now, and in the next moments.
    let address = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let found = |flags: &[&str]| {
        let flags = [&["init", "--advertise", &address, "--listen", &address][..], flags].concat();
        kv(&flags, dir)
    };
    let founded = found(&["--data-dir", "one", "--name", "kv1", "--zone", "a"]);
    assert!(founded.status.success(), "{founded:?}");
    assert!(String::from_utf8_lossy(&founded.stdout).contains("kv serve --config one/node.toml"));
    for (flags, complaint) in [
        (&["--data-dir", "one"][..], "is the directory of a node already"),
        (&["--data-dir", "two", "--cluster", "other"], "is of cluster kv, and not of other"),
        (&["--data-dir", "two", "--id", "2"], "beside --advertise give only"),
    ] {
        let refused = found(flags);
        assert_eq!(refused.status.code(), Some(2));
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(said.contains(complaint), "{said}");
    }
    assert!(!dir.join("two").exists(), "a refused command leaves nothing behind");
    let mut node = spawn(&["serve", "--config", "one/node.toml"], dir);
    let client = ["--config", "kv-ca/client.toml"];
    let put = kv(&[&["put", "k", "v"][..], &client].concat(), dir);
    assert!(put.status.success(), "{put:?}");
    let listed = || kv(&[&["member", "list"][..], &client].concat(), dir);
    eventually("the node to be recorded by its name", || {
        let members = String::from_utf8_lossy(&listed().stdout).into_owned();
        members.contains("kv1") && members.contains("leader")
    });
    node.ends_well();
}

#[test]
fn an_unknown_key_in_a_file_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let node = format!(
        "cluster_id = \"c\"\nnode_id = 1\ndata_dir = \"d\"\nmax_raft_sate = \"1MiB\"\n{TLS}\
         [[nodes]]\nid = 1\naddress = \"127.0.0.1:1\"\n"
    );
    std::fs::write(dir.path().join("node.toml"), node).unwrap();
    refuses(&["serve", "--config", "node.toml"], dir.path(), "max_raft_sate");
    refuses(&["serve", "--config", "node.toml", "--id", "2"], dir.path(), "either --config");
    let client = format!(
        "cluster_id = \"c\"\ndedline = \"1s\"\n{TLS}[[nodes]]\nid = 1\naddress = \"127.0.0.1:1\"\n"
    );
    std::fs::write(dir.path().join("client.toml"), client).unwrap();
    refuses(&["get", "k", "--config", "client.toml"], dir.path(), "dedline");
}

#[test]
fn a_taken_port_and_a_strange_directory_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let base_port = (taken.local_addr().unwrap().port() - 1).to_string();
    refuses(&["dev", "--base-port", &base_port], dir.path(), "node 1 cannot have UDP");
    std::fs::create_dir(dir.path().join("mine")).unwrap();
    std::fs::write(dir.path().join("mine/thesis.txt"), "years of work").unwrap();
    refuses(&["dev", "--clean", "--dir", "mine"], dir.path(), "was not made by `kv dev`");
    assert!(dir.path().join("mine/thesis.txt").exists());
}

#[test]
fn help_teaches() {
    let dir = tempfile::tempdir().unwrap();
    for command in [
        "dev", "init", "serve", "get", "put", "append", "delete", "cas", "scan", "status",
        "upgrade", "batch", "bench",
    ] {
        let output = kv(&[command, "--help"], dir.path());
        assert!(output.status.success());
        assert!(String::from_utf8_lossy(&output.stdout).contains("Usage: kv"), "{command}");
    }
    let output = kv(&["--help"], dir.path());
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("kv put greeting hello") && text.contains("Exit codes"), "{text}");
}
