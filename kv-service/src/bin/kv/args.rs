//! The command line: every command with its flags, and help that teaches.

use std::net::SocketAddr;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Parser, Subcommand, ValueEnum};
use kv_service::config::{ByteSize, NodeAddress, StorageKind};
use kv_service::{VERSION_MAX, VERSION_MIN};

/// The longest duration of a flag or a request. Adding it to the present time cannot overflow.
pub(crate) const DURATION_MAX: Duration = Duration::from_secs(365 * 24 * 3600);
/// The largest value that the benchmark writes.
const VALUE_SIZE_MAX: ByteSize = ByteSize(16 << 20);

const EXAMPLES: &str = "\
Start a cluster of three real server processes, then talk to it from another terminal:
  kv dev
  kv put greeting hello
  kv get greeting
  kv status

Exit codes of all commands:
  0  done
  1  not found, or the condition failed
  2  surely not executed (also: bad usage, bad configuration)
  3  unknown: it may have been executed, once

Client commands find their cluster in --config FILE, else in the file that the environment variable
KV_CONFIG names, else in ./kv-data/client.toml, where `kv dev` puts it.
KV_LOG sets what is logged to standard error: KV_LOG=debug, KV_LOG=kv_service=trace.";

/// A linearizable, exactly-once key-value store, replicated with Raft.
#[derive(Debug, Parser)]
#[command(name = "kv", version = version(), after_help = EXAMPLES, max_term_width = 100)]
pub(crate) struct Args {
    /// The file that describes the cluster to a client; for `init` and `serve`, the node's own
    /// file.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Dev(DevArgs),
    Init(InitArgs),
    Serve(ServeArgs),
    Get(GetArgs),
    Put(PutArgs),
    Append(PutArgs),
    Delete(DeleteArgs),
    Cas(CasArgs),
    Scan(ScanArgs),
    Status(StatusArgs),
    Upgrade(UpgradeArgs),
    Batch(BatchArgs),
    Bench(BenchArgs),
}

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
  kv serve --cluster shop --id 1 --data-dir /var/lib/kv \\
      --node 1=10.0.0.1:7400 --node 2=10.0.0.2:7400 --node 3=10.0.0.3:7400 \\
      --ca ca.pem --cert node1.pem --key node1.key

The same as a file:
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
    /// Stop cleanly at the end of standard input, so that a node does not outlive its supervisor
    #[arg(long, hide = true)]
    pub(crate) stop_on_stdin_eof: bool,
}

/// Make the data directory of a node of a new cluster.
///
/// Run it once for each node of a cluster that has never existed, before `kv serve`. It refuses a
/// directory that holds a node's data.
///
/// Not for a node whose disk was lost: start that one with `kv serve` on an empty directory, and
/// the leader gives it all data. A node that is initialised a second time is noticed as long as one
/// other node remembers the cluster.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kv init --config /etc/kv/node1.toml
  kv init --cluster shop --id 1 --data-dir /var/lib/kv \\
      --node 1=10.0.0.1:7400 --node 2=10.0.0.2:7400 --node 3=10.0.0.3:7400 \\
      --ca ca.pem --cert node1.pem --key node1.key")]
pub(crate) struct InitArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,
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

/// Flags of all client commands.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ClientArgs {
    /// Give up after this long, such as 500ms or 10s [default: the file's, else 10s]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) deadline: Option<Duration>,
    /// Print JSON for scripts
    #[arg(long)]
    pub(crate) json: bool,
}

/// Print the value of a key; exit code 1 if there is none.
///
/// On a terminal, bytes that do not print are escaped; a file or a pipe gets the value as it is.
#[derive(Debug, clap::Args)]
pub(crate) struct GetArgs {
    #[arg(value_parser = bytes_parser())]
    pub(crate) key: Bytes,
    /// Read from any node; the result may be arbitrarily old
    #[arg(long)]
    pub(crate) stale: bool,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

/// Change a key: `put` replaces the value, `append` adds to its end.
///
/// Executed at most once, however often it has to be sent.
#[derive(Debug, clap::Args)]
pub(crate) struct PutArgs {
    #[arg(value_parser = bytes_parser())]
    pub(crate) key: Bytes,
    /// The value; if it starts with a hyphen, put `--` before it: kv put KEY -- --value
    #[arg(value_parser = bytes_parser(), allow_negative_numbers = true)]
    pub(crate) value: Bytes,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

/// Delete a key; exit code 1 if there was none.
#[derive(Debug, clap::Args)]
pub(crate) struct DeleteArgs {
    #[arg(value_parser = bytes_parser())]
    pub(crate) key: Bytes,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

/// Compare and swap: put a new value if the key is as expected; exit code 1 if it is not.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kv cas light --expect red green         if the value is `red`
  kv cas light --version 4 green          if the key has been changed 4 times since it was created
  kv cas light --version 0 green          if there is no such key
  kv cas light --revision 81 green        if the last change of the key was at revision 81, as `get --json` says")]
#[command(group = clap::ArgGroup::new("expected").required(true).args(["expect", "version", "revision"]))]
pub(crate) struct CasArgs {
    #[arg(value_parser = bytes_parser())]
    pub(crate) key: Bytes,
    /// The new value
    #[arg(value_parser = bytes_parser(), allow_negative_numbers = true)]
    pub(crate) new: Bytes,
    /// Swap if the key holds exactly this value
    #[arg(long, value_name = "VALUE", value_parser = bytes_parser(), allow_hyphen_values = true)]
    pub(crate) expect: Option<Bytes>,
    /// Swap if the key has this version; 0: if it does not exist
    #[arg(long, value_name = "N")]
    pub(crate) version: Option<u64>,
    /// Swap if the key's last change was at this revision; no other change ever has it, not even
    /// after a delete
    #[arg(long, value_name = "N")]
    pub(crate) revision: Option<u64>,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

/// Print keys and values in the order of keys: `KEY<TAB>VALUE`, or with --json one object a line.
///
/// A scan of many keys is read in pages: each page is consistent, two pages may be from different
/// moments. On a terminal, tabs, line ends and bytes that do not print are escaped; a file or a
/// pipe gets keys and values as they are, so where they may hold tabs or line ends, use --json.
#[derive(Debug, clap::Args)]
pub(crate) struct ScanArgs {
    /// Only keys that begin with this
    #[arg(long, value_name = "PREFIX", value_parser = bytes_parser())]
    pub(crate) prefix: Option<Bytes>,
    /// At most so many keys [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) limit: Option<u64>,
    /// Read from any node; the result may be arbitrarily old
    #[arg(long)]
    pub(crate) stale: bool,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

/// Show the state of every node: role, term, commit, applied, log bytes, snapshot, leader.
///
/// Exit code 0 if any node answers, else 2.
#[derive(Debug, clap::Args)]
pub(crate) struct StatusArgs {
    /// How long a node may take to answer
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "2s")]
    pub(crate) deadline: Duration,
    /// Print JSON for scripts
    #[arg(long)]
    pub(crate) json: bool,
}

/// Show or decide the cluster version: the formats that all nodes may use.
///
/// Programs are replaced node by node. While at least one is old, all use the old formats, and each
/// node can go back. When all support a newer version, it comes into force after `upgrade_delay` (a
/// day) if the leader's file says `upgrade = "auto"`, the default; with `upgrade = "manual"` when
/// an operator runs `kv upgrade finalize`. From then on older programs refuse to start.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kv upgrade status
  kv upgrade hold         keep the version as it is, until `release` or until a node restarts
  kv upgrade finalize     put the newest version that all nodes support into force now")]
pub(crate) struct UpgradeArgs {
    #[command(subcommand)]
    pub(crate) action: UpgradeAction,
    /// How long a node may take to answer
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "2s", global = true)]
    pub(crate) deadline: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Subcommand)]
pub(crate) enum UpgradeAction {
    /// Each node's program, the version in force and those that it supports
    Status,
    /// Put the newest version that all nodes support into force
    Finalize,
    /// Keep the version from rising by itself, until `release` or a restart; for good:
    /// `upgrade = "manual"` in each node's file
    Hold,
    /// Undo `hold`; the delay begins anew
    Release,
}

/// One client session, driven by lines of JSON on standard input.
///
/// Each line gets one answer line, in the order of the requests, without waiting for later lines. A
/// line that is not a request is answered `not_executed` with the reason. The exit code is 0 when
/// all lines were answered, whatever the answers.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Requests:
  {\"op\":\"put\",\"key\":\"k\",\"value\":\"v\"}
  {\"op\":\"append\",\"key\":\"k\",\"value\":\"w\",\"deadline_ms\":2000}
  {\"op\":\"get\",\"key\":\"k\"}
  {\"op\":\"cas\",\"key\":\"k\",\"expect\":\"vw\",\"value\":\"x\"}     \"expect\":null: if there is no such key
  {\"op\":\"cas\",\"key\":\"k\",\"version\":3,\"value\":\"y\"}
  {\"op\":\"cas\",\"key\":\"k\",\"revision\":81,\"value\":\"z\"}
  {\"op\":\"delete\",\"key\":\"k\"}

Answers:
  {\"op\":\"get\",\"key\":\"k\",\"outcome\":\"ok\",\"value\":\"vw\",\"swapped\":null,\"revision\":7,
   \"start_ns\":81203455,\"end_ns\":81899120,\"error\":null}
  outcome is ok, not_executed or unknown; times are of the system's monotonic clock.

Example:
  echo '{\"op\":\"append\",\"key\":\"k\",\"value\":\"v\"}' | kv batch")]
pub(crate) struct BatchArgs {
    /// Requests under way at once; requests that are under way together have no order
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub(crate) pipeline: u16,
    /// Give up on a request after this long, unless it sets `deadline_ms` [default: the file's,
    /// else 10s]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) deadline: Option<Duration>,
}

/// Measure the cluster with clients that each send their next request when the last one is
/// answered.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kv bench put --clients 64 --value-size 256
  kv bench mixed --clients 256 --duration 30s --keys 1000000
  kv bench get --stale --json

Writes keys under `bench/`. For `get` and `mixed` the keys are written first, unless an earlier run has
done so. `append` has keys of its own, and deletes one when it has grown to 64KiB.")]
pub(crate) struct BenchArgs {
    /// The operation to measure; mixed is half get, half put
    pub(crate) op: BenchOp,
    /// Requests under way at once
    #[arg(long, value_name = "C", default_value_t = 64,
          value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub(crate) clients: u32,
    /// Connections and sessions over which the clients are spread
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) connections: u32,
    /// How long to measure
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "10s")]
    pub(crate) duration: Duration,
    /// How long to run before measuring
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "1s")]
    pub(crate) warm_up: Duration,
    /// Bytes written by an operation, such as 256 or 4KiB
    #[arg(long, value_name = "SIZE", value_parser = value_size, default_value = "256B")]
    pub(crate) value_size: ByteSize,
    /// Keys among which each operation picks one at random
    #[arg(long, value_name = "N", default_value_t = 100_000,
          value_parser = clap::value_parser!(u64).range(1..=99_999_999))]
    pub(crate) keys: u64,
    /// Let any node answer reads; the results may be arbitrarily old
    #[arg(long)]
    pub(crate) stale: bool,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum BenchOp {
    Put,
    Get,
    Append,
    Mixed,
}

/// The program's version, and the cluster versions that it supports.
fn version() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| {
        let program = env!("CARGO_PKG_VERSION");
        format!("{program} (cluster versions {VERSION_MIN} to {VERSION_MAX})")
    })
}

/// Keys and values are bytes, taken from the shell as they are.
fn bytes_parser() -> impl TypedValueParser<Value = Bytes> {
    OsStringValueParser::new().map(|text| Bytes::from(text.into_vec()))
}

fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if duration.is_zero() => Err("must be more than 0".to_owned()),
        Ok(duration) if duration > DURATION_MAX => Err("must be at most 365 days".to_owned()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(format!("{error}: write 250ms, 10s or 2min")),
    }
}

fn value_size(text: &str) -> Result<ByteSize, String> {
    match text.parse::<ByteSize>() {
        Ok(size) if size > VALUE_SIZE_MAX => Err(format!("must be at most {VALUE_SIZE_MAX}")),
        Ok(size) => Ok(size),
        Err(error) => Err(error.to_string()),
    }
}

fn node_address(text: &str) -> Result<NodeAddress, String> {
    let parsed = text.split_once('=').and_then(|(id, address)| Some((id.parse().ok()?, address)));
    let (id, address) = parsed.ok_or("write ID=HOST:PORT, such as 1=127.0.0.1:7401")?;
    Ok(NodeAddress { id, address: address.to_owned() })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Args::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_tree_of_commands_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn config_may_stand_before_or_after_the_command() {
        for line in
            ["kv --config c.toml get k", "kv get --config c.toml k", "kv get k --config c.toml"]
        {
            assert_eq!(parse(line).unwrap().config, Some(PathBuf::from("c.toml")), "{line}");
        }
    }

    #[test]
    fn dev_restart_takes_its_directory_on_either_side() {
        for line in ["kv dev --dir d restart 2", "kv dev restart 2 --dir d"] {
            let Command::Dev(dev) = parse(line).unwrap().command else { panic!("{line}") };
            assert_eq!(dev.dir, Some(PathBuf::from("d")), "{line}");
            assert!(matches!(dev.action, Some(DevAction::Restart { node: 2 })), "{line}");
        }
    }

    #[test]
    fn cas_wants_exactly_one_expectation() {
        assert!(parse("kv cas k --expect a b").is_ok());
        assert!(parse("kv cas k --version 0 b").is_ok());
        assert!(parse("kv cas k --revision 7 b").is_ok());
        assert!(parse("kv cas k --revision 7 --version 1 b").is_err());
        assert!(parse("kv cas k b").is_err());
        assert!(parse("kv cas k --expect a --version 1 b").is_err());
    }

    #[test]
    fn sizes_and_durations_want_units_that_make_sense() {
        assert!(parse("kv bench put --duration 10s --value-size 4KiB --keys 5").is_ok());
        for line in [
            "kv bench put --duration 10",
            "kv bench put --duration 0s",
            "kv bench put --value-size soon",
            "kv bench put --value-size 1TiB",
            "kv bench put --duration 18446744073709551615s",
            "kv bench put --warm-up 366days",
            "kv get k --deadline 18446744073709551615s",
            "kv status --deadline 1000years",
            "kv batch --deadline 366days",
            "kv bench put --keys 0",
            "kv bench put --clients 0",
            "kv bench sleep",
            "kv dev --nodes 0",
            "kv batch --pipeline 0",
            "kv serve --node one=localhost:1",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn values_may_be_negative_numbers_and_flags_may_follow() {
        let Command::Put(put) = parse("kv put k -5 --json").unwrap().command else { panic!() };
        assert_eq!((&put.value[..], put.client.json), (&b"-5"[..], true));
        let Command::Put(put) = parse("kv put k -- --json").unwrap().command else { panic!() };
        assert_eq!(&put.value[..], b"--json");
    }
}
