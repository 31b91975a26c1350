//! Flags of the commands that show and change the members of a cluster, and move leadership.

use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;

use super::values::{DurationOrNever, duration, duration_or_never};

/// Show and change the members of the cluster, while it runs.
///
/// A change is begun by the leader, and the cluster carries it through, whatever becomes of this
/// command. A command that is given again does nothing more.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kv member list
  kv member add --name kv4 --address kv4.example.net:7400   prints the file with which node 4 starts
  kv member invite --name kv5                               node 5 starts from one file, node5.kvjoin
  kv member plan replace 3 --with 4                         what would happen
  kv member replace 3 --with 4 --wait                       node 4 takes the place of node 3, in one step
  kv member remove 4                                        for good; a running node is named with --live")]
pub(crate) struct MemberArgs {
    #[command(subcommand)]
    pub(crate) action: MemberAction,
    #[command(flatten)]
    pub(crate) flags: MemberFlags,
}

/// Flags of all commands about members.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct MemberFlags {
    /// Print JSON for scripts
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Check the change and show it, and change nothing
    #[arg(long, global = true)]
    pub(crate) dry_run: bool,
    /// Wait until the change is carried through; without it, until it is begun
    #[arg(long, global = true)]
    pub(crate) wait: bool,
    /// Give up after this long; a change that is begun goes on
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "60s", global = true)]
    pub(crate) deadline: Duration,
}

#[derive(Debug, Subcommand)]
pub(crate) enum MemberAction {
    /// The members: what each counts for, where it is, how far it is behind
    List,
    /// Show what a change would do, and how many failures the cluster would survive
    Plan {
        #[command(subcommand)]
        change: ChangeAction,
    },
    /// Change the record of a member; the node's own file, if it says something else, wins
    Set(MemberSet),
    /// Add a member, and write all that its node needs to start into one file
    Invite(InviteArgs),
    #[command(flatten)]
    Change(ChangeAction),
}

/// The fields of a record that are to change.
#[derive(Clone, Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("field").required(true).multiple(true)
    .args(["name", "address", "zone", "priority", "spare"]))]
pub(crate) struct MemberSet {
    /// The member's number
    pub(crate) id: u64,
    /// A name for people; no other member may have it
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Where the node is
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) address: Option<String>,
    /// Where it stands, such as a rack or a data centre
    #[arg(long, value_name = "ZONE")]
    pub(crate) zone: Option<String>,
    /// It is to lead rather than members of a smaller priority; with 0, only if no other can
    #[arg(long, value_name = "0-100")]
    pub(crate) priority: Option<u8>,
    /// While it is a learner, it takes the place of a voter that dies
    #[arg(long, value_name = "BOOL")]
    pub(crate) spare: Option<bool>,
}

/// A member that is to be added.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct NewMember {
    /// A name for people; no other member may have it
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Where the node will be; without it, the node announces it when it starts
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) address: Option<String>,
    /// Where it stands, such as a rack or a data centre
    #[arg(long, value_name = "ZONE")]
    pub(crate) zone: Option<String>,
    /// It stays a learner: it has all data and serves reads, and is not counted
    #[arg(long)]
    pub(crate) learner: bool,
    /// It stays a learner until a voter dies, and then takes its place (`kv cluster`)
    #[arg(long, conflicts_with = "learner")]
    pub(crate) spare: bool,
}

impl NewMember {
    pub(crate) fn wants_vote(&self) -> bool {
        !self.learner && !self.spare
    }
}

/// The new member, and where its file comes from and goes to.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct InviteArgs {
    #[command(flatten)]
    pub(crate) member: NewMember,
    /// How long a node can start from the file for the first time
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "1h")]
    pub(crate) expires: Duration,
    /// Directory of the CA
    #[arg(long, value_name = "DIR", default_value = "./kv-ca")]
    pub(crate) dir: PathBuf,
    /// Directory for the file, which is named nodeN.kvjoin
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) out: PathBuf,
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum ChangeAction {
    /// Add a member, which gets all data and becomes a voter once it has kept up
    Add(NewMember),
    /// Remove a member for good; its id is never used again
    Remove {
        /// The member's number
        id: u64,
        /// It is running, and is meant
        #[arg(long)]
        live: bool,
        /// The cluster may tolerate fewer failures than before
        #[arg(long, alias = "less-redundancy")]
        allow_less_redundancy: bool,
    },
    /// Let a learner take the place of a voter, in one step; the voter may be dead
    Replace {
        /// The voter that leaves
        old: u64,
        /// The learner that takes its place
        #[arg(long = "with", value_name = "ID")]
        new: u64,
    },
    /// Make a voter of a learner, once it has kept up
    Promote {
        /// The member's number
        id: u64,
    },
    /// Make a learner of a voter
    Demote {
        /// The member's number
        id: u64,
        /// The cluster may tolerate fewer failures than before
        #[arg(long, alias = "less-redundancy")]
        allow_less_redundancy: bool,
    },
}

/// Show and change what the cluster does about its members by itself.
///
/// The settings are the same on all nodes, because they are replicated with the members. The leader
/// acts by them.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kv cluster                                settings, plans, and how many failures it survives
  kv member add --spare --name kv4          a node that takes the place of a voter that dies
  kv cluster set --replace-dead-after 5min  when it does
  kv cluster set --voters 3                 spares become voters while there are fewer
  kv cluster set --leader-zone a            voters in zone a are to lead")]
pub(crate) struct ClusterArgs {
    #[command(subcommand)]
    pub(crate) action: Option<ClusterAction>,
    /// Print JSON for scripts
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Give up after this long
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "10s", global = true)]
    pub(crate) deadline: Duration,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ClusterAction {
    /// Change settings; those that are not named stay
    Set(ClusterSet),
}

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("setting").required(true).multiple(true)
    .args(["voters", "replace_dead_after", "remove_dead_after", "leader_zone"]))]
pub(crate) struct ClusterSet {
    /// How many voters there should be, an odd number; 0: as many as there are
    #[arg(long, value_name = "N")]
    pub(crate) voters: Option<u32>,
    /// A spare takes the place of a voter that was not reached for this long; or never
    #[arg(long, value_name = "DURATION", value_parser = duration_or_never)]
    pub(crate) replace_dead_after: Option<DurationOrNever>,
    /// A learner that was reached, and then not for this long, is removed; or never
    #[arg(long, value_name = "DURATION", value_parser = duration_or_never)]
    pub(crate) remove_dead_after: Option<DurationOrNever>,
    /// Voters in this zone are to lead; empty for no preference
    #[arg(long, value_name = "ZONE")]
    pub(crate) leader_zone: Option<String>,
}

/// Show the leader, or hand leadership over.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kv leader
  kv leader transfer              to the voter whose log is furthest
  kv leader transfer --to 2")]
pub(crate) struct LeaderArgs {
    #[command(subcommand)]
    pub(crate) action: Option<LeaderAction>,
    /// Print JSON for scripts
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Give up after this long
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "10s", global = true)]
    pub(crate) deadline: Duration,
}

#[derive(Clone, Copy, Debug, Subcommand)]
pub(crate) enum LeaderAction {
    /// Hand leadership over, and wait until the other node leads
    Transfer {
        /// The voter that is to lead
        #[arg(long, value_name = "ID")]
        to: Option<u64>,
    },
}

/// Prepare a node to be stopped: it hands leadership over, and leads only if no other voter can.
///
/// The node goes on serving. That it drains is recorded in the cluster, also across restarts, until
/// --off ends it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example, to replace the machine or the program of node 2:
  kv drain 2 && kv ok-to-stop 2 && systemctl stop kv
  kv drain 2 --off                afterwards")]
pub(crate) struct DrainArgs {
    /// The member's number
    pub(crate) id: u64,
    /// The node may lead again
    #[arg(long)]
    pub(crate) off: bool,
    /// Print JSON for scripts
    #[arg(long)]
    pub(crate) json: bool,
    /// Give up after this long
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "10s")]
    pub(crate) deadline: Duration,
}

/// Tell whether these nodes may be stopped: exit code 0 if the others can go on, 1 if not.
///
/// The others can go on if those of them that run, are counted, and have kept up are a majority.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example, before a machine is restarted:
  kv ok-to-stop 2 && systemctl restart kv")]
pub(crate) struct OkToStopArgs {
    /// The nodes' numbers
    #[arg(required = true)]
    pub(crate) nodes: Vec<u64>,
    /// Give up after this long
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "10s")]
    pub(crate) deadline: Duration,
}
