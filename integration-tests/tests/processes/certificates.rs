//! Certificates and CAs that are exchanged while nodes and clients run, and invitations.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use integration_tests::processes::binary::Program;
use integration_tests::processes::cluster::{Cluster, NODES, Plan, eventually};
use integration_tests::processes::workload::Workload;
use kv_service::config::TlsFiles;
use kv_service::members::MemberRole;
use kv_service::{Client, ClientConfig};
use raft_core::types::NodeId;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::members::Pace;

const PROBE_DEADLINE: Duration = Duration::from_secs(1);

/// The CA of a cluster in a directory of the operator.
struct Operator<'a> {
    cluster: &'a Cluster,
    ca: PathBuf,
}

impl<'a> Operator<'a> {
    fn of(cluster: &'a Cluster) -> Self {
        let ca = cluster.dir().join("ca");
        fs::create_dir(&ca).unwrap();
        let [cert, key] = cluster.ca_pem();
        for (file, content) in [("cluster_id", "faults"), ("ca.pem", &cert), ("ca.key", &key)] {
            fs::write(ca.join(file), content).unwrap();
        }
        Self { cluster, ca }
    }

    async fn cert(&self, arguments: &[&str]) {
        let dir = ["cert", "--dir", self.ca.to_str().unwrap()];
        self.cluster.kv(&[&dir, arguments].concat()).await.unwrap();
    }

    /// Copies the trusted CAs to all nodes and clients.
    fn distribute(&self) {
        let owners = NODES.map(|id| format!("node{id}")).into_iter().chain(["client".to_owned()]);
        for owner in owners {
            // Nodes and clients must never read half a file.
            let (file, new) = (format!("{owner}.ca.pem"), format!("{owner}.ca.new"));
            let [file, new] = [file, new].map(|name| self.cluster.dir().join(name));
            fs::copy(self.ca.join("ca.pem"), &new).unwrap();
            fs::rename(new, file).unwrap();
        }
    }

    /// Makes a client's certificate in a directory of its own.
    async fn client(&self, name: &str) -> TlsFiles {
        let dir = self.cluster.dir().join(name);
        self.cert(&["--out", dir.to_str().unwrap(), "client", name]).await;
        files(&dir, name)
    }

    /// Returns true if a new client with this certificate is served by the node.
    async fn is_served(&self, tls: &TlsFiles, id: NodeId) -> bool {
        let mut nodes = self.cluster.direct_config().nodes.clone();
        nodes.retain(|node| node.id == id);
        let mut config = ClientConfig::new("faults", tls.clone(), nodes);
        config.deadline = PROBE_DEADLINE;
        config.fixed_nodes = true;
        let client = Client::connect(&config).unwrap();
        client.status(id).await.is_ok()
    }

    async fn is_served_by_all(&self, what: &str, tls: &TlsFiles) {
        for id in NODES {
            eventually(&format!("{what} at node {id}"), async || self.is_served(tls, id).await)
                .await;
        }
    }
}

fn files(dir: &Path, name: &str) -> TlsFiles {
    TlsFiles {
        ca: dir.join("ca.pem"),
        cert: dir.join(format!("{name}.pem")),
        key: dir.join(format!("{name}.key")),
    }
}

/// M-K1. All certificates are renewed and the CA is replaced with `kv cert`, under load. No request
/// fails, and what the old CA issued is refused at the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn m_k1_a_ca_is_replaced_under_load() {
    let cluster = Cluster::start(Plan { relayed: false, ..Plan::default() }).await;
    let operator = Operator::of(&cluster);
    let load = Workload::start(&cluster, "certificates", 1);
    let pace = Pace::start(cluster.direct_config());
    let of_old_ca = operator.client("old").await;
    operator.is_served_by_all("a client of the old CA", &of_old_ca).await;

    operator.cert(&["rotate-ca", "begin"]).await;
    operator.distribute();
    let of_new_ca = operator.client("new").await;
    operator.is_served_by_all("a client of the new CA", &of_new_ca).await;
    operator.is_served_by_all("a client of the old CA, still,", &of_old_ca).await;

    let dir = cluster.dir().to_str().unwrap();
    operator.cert(&["--out", dir, "renew", "node1", "node2", "node3", "client"]).await;
    operator.cert(&["rotate-ca", "finish"]).await;
    // A client that trusts the new CA alone: the nodes show their renewed certificates.
    let trusting = TlsFiles { ca: operator.ca.join("ca.pem"), ..of_new_ca };
    operator.is_served_by_all("a client that trusts the new CA alone", &trusting).await;

    operator.distribute();
    for id in NODES {
        let is_refused = async || !operator.is_served(&of_old_ca, id).await;
        eventually(&format!("node {id} to refuse what the old CA issued"), is_refused).await;
    }
    operator.is_served_by_all("a client of the new CA", &trusting).await;
    let before = load.acknowledged_count();
    load.advances_by(100).await;
    assert!(load.acknowledged_count() > before);
    pace.stop().await;
    load.stop().await.check(&cluster.client()).await.unwrap();
    cluster.converges().await;
    cluster.finish().await;
}

/// Starts a node from an invitation.
fn join(cluster: &Cluster, file: &str, data_dir: &str, advertise: &str) -> Child {
    let [file, dir] = [file, data_dir].map(|name| cluster.dir().join(name));
    let said = fs::File::create(dir.with_extension("log")).unwrap();
    let mut command = Command::new(Program::Current.path());
    command.args(["serve", "--advertise", advertise, "--join"]).arg(file);
    command.arg("--data-dir").arg(dir);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(said).kill_on_drop(true);
    command.spawn().unwrap()
}

/// An address beside that of node 1.
fn address(cluster: &Cluster, offset: u16) -> String {
    let nodes = &cluster.direct_config().nodes;
    let (ip, port) = nodes[0].address.rsplit_once(':').unwrap();
    format!("{ip}:{}", port.parse::<u16>().unwrap() + offset)
}

/// M-K3. A node joins with one file, and starts again without it. A second machine with the same
/// file gets nothing while the first one runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn m_k3_an_invitation_brings_one_node_in() {
    let invited = Invited::start().await;
    let cluster = &invited.cluster;
    let members = cluster.operator().cluster();
    assert_eq!(members.members().await.unwrap().member(4).unwrap().info.name, "kv4");
    let Invited { mut node, own, other, .. } = invited;

    fs::rename(cluster.dir().join("node4.kvjoin"), cluster.dir().join("copy")).unwrap();
    stop(&mut node).await;
    let _node = join(cluster, "node4.kvjoin", "four", &own);
    let client = cluster.operator();
    eventually("node 4 to serve again", async || client.status(4).await.is_ok()).await;

    let mut second = join(cluster, "copy", "five", &other);
    let load = Workload::start(cluster, "invited", 1);
    let said = cluster.dir().join("five.log");
    let is_told = async || fs::read_to_string(&said).unwrap().contains("a node 4 runs already");
    eventually("the second machine to be told", is_told).await;
    load.advances_by(2_000).await;
    let report = members.members().await.unwrap();
    assert_eq!(report.member(4).unwrap().info.address, own, "the first one is the member");
    let status = client.status(4).await.unwrap();
    assert!(status.commit_index > 0, "and serves");
    second.kill().await.unwrap();
    load.stop().await.check(&client).await.unwrap();
    invited.cluster.finish().await;
}

/// A second machine with the same file takes the place of the first one while that one is stopped.
/// The first one stops again when it comes back, although no node dials it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_whose_place_was_taken_is_told() {
    let invited = Invited::start().await;
    let cluster = &invited.cluster;
    let Invited { mut node, own, other, .. } = invited;
    stop(&mut node).await;
    let _second = join(cluster, "node4.kvjoin", "five", &other);
    let members = cluster.operator().cluster();
    let is_member = async || {
        let report = members.members().await.unwrap();
        report.member(4).is_some_and(|member| {
            member.info.address == other
                && member.progress.is_some_and(|progress| !progress.is_recovering)
        })
    };
    eventually("the second machine to be counted", is_member).await;

    let mut first = join(cluster, "node4.kvjoin", "four", &own);
    let ended = timeout(Duration::from_secs(30), first.wait()).await;
    let code = ended.expect("the first machine is told").unwrap().code();
    assert_eq!(code, Some(6), "another directory of node 4 is recorded");
    let said = fs::read_to_string(cluster.dir().join("four.log")).unwrap();
    assert!(said.contains("is an old data directory of node 4"), "{said}");
    eventually("the second one to stay", is_member).await;
    invited.cluster.finish().await;
}

/// M-K3. An invitation of another cluster that has the same name, CA and addresses, as after a
/// cluster was founded anew: the machine is told, and nothing is recorded of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn m_k3_an_invitation_of_another_cluster_is_refused() {
    let cluster = Cluster::start(Plan { relayed: false, ..Plan::default() }).await;
    let operator = Operator::of(&cluster);
    let members = cluster.operator().cluster();
    let has_uid = async || members.members().await.unwrap().uid.is_some();
    eventually("the cluster to have a uid", has_uid).await;
    let uid = members.members().await.unwrap().uid.unwrap().to_string();
    assert!(cluster.kv(&["cluster"]).await.unwrap().contains(&uid), "the operator can see it");

    let (ca, out) = (operator.ca.to_str().unwrap(), cluster.dir().to_str().unwrap());
    cluster.kv(&["member", "invite", "--dir", ca, "--out", out]).await.unwrap();
    let file = cluster.dir().join("node4.kvjoin");
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains(&uid), "{text}");
    let other = uid.replace(['0', '1', '2', '3', '4', '5', '6', '7'], "8");
    fs::write(&file, text.replace(&uid, &other)).unwrap();
    let own = address(&cluster, 3);
    let _node = join(&cluster, "node4.kvjoin", "four", &own);
    let said = cluster.dir().join("four.log");
    let is_told = async || fs::read_to_string(&said).unwrap().contains("of another cluster");
    eventually("the machine to be told", is_told).await;
    let report = members.members().await.unwrap();
    assert_eq!(report.member(4).unwrap().info.address, "", "nothing of it is recorded");

    // Once the nodes know the address all the same, they refuse the machine as a peer.
    cluster.kv(&["member", "set", "4", "--address", &own]).await.unwrap();
    let refused = async || {
        let report = members.members().await.unwrap();
        let error = report.member(4).unwrap().error.clone();
        error.is_some_and(|error| error.contains("is of another cluster with the name"))
    };
    eventually("the nodes to refuse it", refused).await;
    cluster.finish().await;
}

/// Three nodes, and a fourth that an invitation brought in.
struct Invited {
    cluster: Cluster,
    node: Child,
    own: String,
    /// The address of a second machine.
    other: String,
}

impl Invited {
    async fn start() -> Self {
        let cluster = Cluster::start(Plan { relayed: false, ..Plan::default() }).await;
        let operator = Operator::of(&cluster);
        let (ca, out) = (operator.ca.to_str().unwrap(), cluster.dir().to_str().unwrap());
        let invited = ["member", "invite", "--name", "kv4", "--dir", ca, "--out", out];
        let said = cluster.kv(&invited).await.unwrap();
        assert!(said.contains("node4.kvjoin"), "{said}");
        let [own, other] = [3, 4].map(|offset| address(&cluster, offset));
        let node = join(&cluster, "node4.kvjoin", "four", &own);
        let members = cluster.operator().cluster();
        let is_voter = async || {
            let report = members.members().await.unwrap();
            report.member(4).is_some_and(|member| member.role == MemberRole::Voter)
        };
        eventually("node 4 to become a voter", is_voter).await;
        Self { cluster, node, own, other }
    }
}

async fn stop(node: &mut Child) {
    let pid = Pid::from_raw(node.id().unwrap().try_into().unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    assert!(node.wait().await.unwrap().success());
}
