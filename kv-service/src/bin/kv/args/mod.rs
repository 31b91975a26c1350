//! The command line: every command with its flags, and help that teaches.

mod client;
mod members;
mod node;
mod values;

use std::path::PathBuf;
use std::sync::OnceLock;

use clap::{Parser, Subcommand};
use kv_service::protocol::version::{VERSION_MAX, VERSION_MIN};

pub(crate) use self::client::{
    BatchArgs, BenchArgs, BenchOp, CasArgs, ClientArgs, DeleteArgs, GetArgs, PutArgs, ScanArgs,
    StatusArgs, UpgradeAction, UpgradeArgs,
};
pub(crate) use self::members::{
    ChangeAction, ClusterAction, ClusterArgs, ClusterSet, DrainArgs, InviteArgs, LeaderAction,
    LeaderArgs, MemberAction, MemberArgs, MemberFlags, MemberSet, NewMember, OkToStopArgs,
};
pub(crate) use self::node::{
    CaRotation, CertAction, CertArgs, DevAction, DevArgs, Founding, InitArgs, NodeArgs, ServeArgs,
};
pub(crate) use self::values::DurationOrNever;

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
  5  `serve` only: the node was removed from the cluster, and must not be started again

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
    Member(MemberArgs),
    Cluster(ClusterArgs),
    Leader(LeaderArgs),
    Drain(DrainArgs),
    OkToStop(OkToStopArgs),
    Cert(CertArgs),
    Upgrade(UpgradeArgs),
    Batch(BatchArgs),
    Bench(BenchArgs),
}

/// The program's version, and the cluster versions that it supports.
fn version() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| {
        let program = env!("CARGO_PKG_VERSION");
        format!("{program} (cluster versions {VERSION_MIN} to {VERSION_MAX})")
    })
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
