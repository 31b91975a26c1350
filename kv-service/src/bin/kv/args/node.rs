//! Flags of the commands that run nodes: dev, serve, init.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Subcommand, ValueEnum};
use kv_service::config::ByteSize;
use kv_service::config::{NodeAddress, StorageKind};

use super::values::{lifetime, node_address};

/// Run a cluster on this machine: one server process per node, with data on disk.
///
/// Makes a development CA and certificates, starts the nodes, waits until they have a leader,
/// prints how to talk to them, and stays in the foreground; Ctrl-C stops all nodes cleanly. Started
/// again on the same directory, it carries on with the data.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kv dev                                  three nodes on ports 7401 to 7403, data in ./kv-data
  kv dev --nodes 5 --base-port 8000       five nodes on ports 8001 to 8005
  kv dev restart 2                        bring node 2 back (from another terminal)
  kv dev add                              add node 4, then 5 ... while the cluster runs
  kv dev replace 2                        node 2 is gone for good: another one takes its place
  kv dev --clean                          forget the data in ./kv-data and start anew")]
#[command(subcommand_negates_reqs = true, args_conflicts_with_subcommands = false)]
pub(crate) struct DevArgs {
    /// How many nodes, 1 to 9 [default: 3, or as the directory has it]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=9))]
    pub(crate) nodes: Option<u64>,
    /// Where everything is kept [default: ./kv-data]
    #[arg(long, value_name = "DIR", global = true)]
    pub(crate) dir: Option<PathBuf>,
    /// Node i listens on 127.0.0.1, UDP port PORT+i [default: 7400, or as the directory has it]
    #[arg(long, value_name = "PORT")]
    pub(crate) base_port: Option<u16>,
    /// Log size beyond which a node snapshots and compacts; 0 never does [default: 128MiB]
    #[arg(long, value_name = "SIZE")]
    pub(crate) max_raft_state: Option<ByteSize>,
    /// Delete what an earlier `kv dev` left in the directory; touches nothing else
    #[arg(long)]
    pub(crate) clean: bool,
    #[command(subcommand)]
    pub(crate) action: Option<DevAction>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DevAction {
    /// Start a node that is down, or stop a running one cleanly and start it again
    Restart {
        /// The node's number
        node: u64,
    },
    /// Add a node to the running cluster, and wait until it is a voter
    Add,
    /// Remove a node from the cluster for good, and delete its files
    Remove {
        /// The node's number
        node: u64,
    },
    /// Add a node that takes the place of another one, whether or not that one runs
    Replace {
        /// The number of the node that leaves
        node: u64,
    },
}

/// Run one node.
///
/// SIGTERM and Ctrl-C stop it cleanly: it answers the requests under way and hands leadership over.
///
/// On a directory that `kv init` has made, it founds a cluster with the other new nodes. On an
/// empty directory, such as after its disk was lost, it waits for the leader, which gives it all
/// data.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kv serve --config /etc/kv/node1.toml
  kv serve --join node4.kvjoin --data-dir /var/lib/kv --advertise kv4.example.net:7400
  kv serve --cluster shop --id 1 --data-dir /var/lib/kv \\
      --node 1=10.0.0.1:7400 --node 2=10.0.0.2:7400 --node 3=10.0.0.3:7400 \\
      --ca ca.pem --cert node1.pem --key node1.key

The last one as a file:
  cluster_id = \"shop\"
  node_id = 1
  data_dir = \"/var/lib/kv\"
  max_raft_state = \"128MiB\"
  [tls]
  ca = \"ca.pem\"
  cert = \"node1.pem\"
  key = \"node1.key\"
  [[nodes]]
  id = 1
  address = \"10.0.0.1:7400\"
  # ... one [[nodes]] for each node")]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// Join a cluster with the file that `kv member invite` has written. The configuration is then
    /// in the node's directory, and the file is not needed again
    #[arg(long, value_name = "FILE", requires = "data_dir")]
    pub(crate) join: Option<PathBuf>,
    /// Where the others reach a node that joins [default: as the invitation says]
    #[arg(long, value_name = "HOST:PORT", requires = "join")]
    pub(crate) advertise: Option<String>,
    /// Stop cleanly at the end of standard input, so that a node does not outlive its supervisor
    #[arg(long, hide = true)]
    pub(crate) stop_on_stdin_eof: bool,
}

/// Found a cluster: make what its first node needs.
///
/// With --advertise, one node is the whole cluster at first: this makes a CA, the certificates of
/// the node and of an operator, the node's file and its data directory, and others join by
/// invitation (`kv member invite`).
///
/// Without it, several nodes found a cluster together: run this once for each of them, before `kv
/// serve`. It makes the node's data directory, and refuses one that holds a node's data.
///
/// Not for a node whose disk was lost: start that one with `kv serve` on an empty directory, and
/// the leader gives it all data. A node that is initialised a second time is noticed as long as one
/// other node remembers the cluster.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kv init --advertise kv1.example.net:7400 --data-dir /var/lib/kv
  kv init --config /etc/kv/node1.toml
  kv init --cluster shop --id 1 --data-dir /var/lib/kv \\
      --node 1=10.0.0.1:7400 --node 2=10.0.0.2:7400 --node 3=10.0.0.3:7400 \\
      --ca ca.pem --cert node1.pem --key node1.key")]
pub(crate) struct InitArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    #[command(flatten)]
    pub(crate) founding: Founding,
}

/// A cluster that begins with one node.
#[derive(Debug, clap::Args)]
pub(crate) struct Founding {
    /// Found a cluster of this one node, which others and clients reach here
    #[arg(long, value_name = "HOST:PORT", requires = "data_dir")]
    pub(crate) advertise: Option<String>,
    /// A name of the node for people [default: node1]
    #[arg(long, value_name = "NAME", requires = "advertise")]
    pub(crate) name: Option<String>,
    /// Where it stands, such as a rack or a data centre
    #[arg(long, value_name = "ZONE", requires = "advertise")]
    pub(crate) zone: Option<String>,
    /// Directory of the CA; one is made if there is none
    #[arg(long, value_name = "DIR", default_value = "./kv-ca", requires = "advertise")]
    pub(crate) ca_dir: PathBuf,
}

/// Make, show, renew and replace the certificates of a cluster.
///
/// The CA is a directory of files that stays with the operator. A node gets ca.pem, its own
/// certificate, and its key. Nodes and clients read changed files within ten seconds, without a
/// restart.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kv cert ca --cluster prod
  kv cert node 1 --out node1
  kv cert client alice
  kv cert show
  kv cert renew alice
  kv cert renew node1 --out node1
  kv cert rotate-ca begin")]
pub(crate) struct CertArgs {
    #[command(subcommand)]
    pub(crate) action: CertAction,
    /// Directory of the CA
    #[arg(long, value_name = "DIR", default_value = "./kv-ca", global = true)]
    pub(crate) dir: PathBuf,
    /// Where certificates and their keys are [default: the directory of the CA]
    #[arg(long, value_name = "DIR", global = true)]
    pub(crate) out: Option<PathBuf>,
    /// How long a certificate is valid, such as 30days [default: a node's 1year, a client's 90days]
    #[arg(long, value_name = "DURATION", value_parser = lifetime, global = true)]
    pub(crate) lifetime: Option<Duration>,
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum CertAction {
    /// Make a CA
    Ca {
        /// Name of the cluster
        #[arg(long, value_name = "NAME")]
        cluster: String,
    },
    /// Make a node's certificate and key
    Node {
        /// The node's number
        #[arg(value_parser = clap::value_parser!(u64).range(1..))]
        id: u64,
    },
    /// Make a client's certificate and key
    Client {
        /// A name for the files and for people
        name: String,
    },
    /// Make new certificates and keys for the same owners, in place of the present files
    Renew {
        /// Names of the files, such as node1 for node1.pem and node1.key
        names: Vec<String>,
        /// All certificates in the directory
        #[arg(long, conflicts_with = "names")]
        all: bool,
    },
    /// Show for whom certificates are and how long they are valid; exits with 1 if one is not
    Show {
        /// The files [default: all in the directory of the CA]
        files: Vec<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Replace the CA, in two steps between which both are trusted
    RotateCa {
        #[command(subcommand)]
        step: CaRotation,
    },
}

#[derive(Clone, Copy, Debug, Subcommand)]
pub(crate) enum CaRotation {
    /// Make a new CA. It issues from now on, and ca.pem holds both
    Begin,
    /// Take the old CA out of ca.pem, once every certificate was renewed
    Finish,
}

/// A node's configuration as flags. A file named by `--config FILE` has the same settings.
#[derive(Debug, clap::Args)]
pub(crate) struct NodeArgs {
    /// Name of the cluster; nodes and clients of another one are refused
    #[arg(long, value_name = "NAME")]
    pub(crate) cluster: Option<String>,
    /// This node's number
    #[arg(long, value_name = "N")]
    pub(crate) id: Option<u64>,
    /// UDP address to listen on [default: this node's address]
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) listen: Option<SocketAddr>,
    /// This node's directory; made if it is not there
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// A node of the cluster; once for each, this one included
    #[arg(long, value_name = "ID=HOST:PORT", value_parser = node_address)]
    pub(crate) node: Vec<NodeAddress>,
    /// Certificate of the cluster's CA, PEM
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// This node's certificate, PEM
    #[arg(long, value_name = "FILE")]
    pub(crate) cert: Option<PathBuf>,
    /// Its private key, PEM
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// Log size beyond which the node snapshots and compacts; 0 never does [default: 128MiB]
    #[arg(long, value_name = "SIZE")]
    pub(crate) max_raft_state: Option<ByteSize>,
    /// Where the node keeps its data [default: rocksdb]
    #[arg(long, value_name = "KIND")]
    pub(crate) storage: Option<Storage>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Storage {
    /// On disk
    #[value(name = "rocksdb")]
    RocksDb,
    /// Nowhere: a node that stops loses its data, and waits for a leader when it is started again
    Memory,
}

impl From<Storage> for StorageKind {
    fn from(storage: Storage) -> Self {
        match storage {
            Storage::RocksDb => StorageKind::RocksDb,
            Storage::Memory => StorageKind::Memory,
        }
    }
}
