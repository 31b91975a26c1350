//! Flags of the commands of clients and operators.

use std::time::Duration;

use bytes::Bytes;
use clap::{Subcommand, ValueEnum};
use kv_service::config::ByteSize;

use super::values::{bytes_parser, duration, value_size};

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
