//! Behaviour as scripts: inputs to a small cluster, and everything that it does in response.
//!
//! `UPDATE_GOLDENFILES=1 cargo test -p raft-core --test golden` rewrites the outputs; read them
//! before you commit them. The script language follows; a node is one digit:
//!
//! ```text
//! cluster nodes=3 [slow=12] [term=4] [OPTION=VALUE..]   a new cluster; disks 1, 2 write when told
//! cluster 1=1.1.2 2=1 3=1 term=2       the same, of nodes whose logs hold no-ops of these terms
//! timeout N          its next deadline passes: an election timeout, or a leader's next heartbeat
//! rush N             the same, but no time passes for the others
//! elect N            a timeout, and everything is delivered; N must win
//! deliver [from=N] [to=N] [kind=WORD] [count=N]   in order, including messages sent meanwhile
//! drop, repeat       like deliver, but lose the messages in flight, or append a copy of them
//! write N [count=1]  its disk writes batches (by default all)
//! propose N WORD..   read N   transfer N TO   unreachable N PEER
//! snapshot N         publishes its state; compact N INDEX drops the log through there
//! crash N [written=1]   so many of the batches that wait for the disk survive;   restart N
//! partition 1 23     cuts the links between the groups; heal
//! advance MS         time passes, deadlines fire, nothing is delivered;   run MS: it is
//! status [N]   log   show
//! ```
//!
//! A line of output is `1 -> 2  t3 ...` for a message of term 3 that 2 received from 1, `-x` for a
//! lost one, `=>` for a snapshot; `1 writes #2` when a batch is handed to the disk, `1 wrote #2`
//! when it is durable. A position is `index@term`.

mod common;

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::time::Duration;

use common::{Cluster, Disk, Parcel, render};
use goldenscript::{ArgumentConsumer, Command, Context};
use raft_core::consensus::Config;
use raft_core::types::NodeId;

type Outcome<T> = Result<T, Box<dyn Error>>;

#[derive(Default)]
struct Script {
    cluster: Option<Cluster>,
}

impl goldenscript::Runner for Script {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &Context) -> Outcome<String> {
        let mut args = command.consume_args();
        if command.name == "cluster" {
            self.cluster = Some(new_cluster(&mut args)?);
            return Ok(String::new());
        }
        let cluster = self.cluster.as_mut().ok_or("no cluster yet")?;
        run(cluster, &command.name, &mut args)?;
        args.reject_next()?;
        Ok(cluster.take_events().join("\n"))
    }
}

fn new_cluster(args: &mut ArgumentConsumer<'_>) -> Outcome<Cluster> {
    let term = number(args, "term")?.unwrap_or(0);
    let slow = nodes(args.take_key("slow").unwrap_or(""))?;
    let mut disks: BTreeMap<NodeId, Disk> = BTreeMap::new();
    if let Some(count) = number(args, "nodes")? {
        disks.extend((1..=count).map(|id| (id, Disk::of_terms(&[], term))));
    }
    let mut options = BTreeMap::new();
    while let Some((key, value)) = args.next_key() {
        if let Ok(id) = key.parse() {
            let terms = value.split('.').filter(|term| !term.is_empty()).map(str::parse);
            disks.insert(id, Disk::of_terms(&terms.collect::<Result<Vec<_>, _>>()?, term));
        } else {
            options.insert(key.to_owned(), value.parse::<u64>()?);
        }
    }
    let known = |name: &String| set_option(&mut Config::new(1, 1), name, 1);
    if let Some(unknown) = options.keys().find(|name| !known(name)) {
        return Err(format!("no option {unknown}").into());
    }
    let mut cluster = Cluster::with_disks(disks, move |config| {
        for (name, value) in &options {
            set_option(config, name, *value);
        }
    });
    cluster.slow_disks = slow.into_iter().collect();
    Ok(cluster)
}

fn set_option(config: &mut Config, name: &str, value: u64) -> bool {
    match name {
        "pre_vote" => config.pre_vote = value != 0,
        "check_quorum" => config.check_quorum = value != 0,
        "append_bytes_max" => config.append_bytes_max = value,
        "inflight_bytes_max" => config.inflight_bytes_max = value,
        "inflight_count_max" => config.inflight_count_max = value as usize,
        "uncommitted_bytes_max" => config.uncommitted_bytes_max = value,
        "persists_in_flight_max" => config.persists_in_flight_max = value as usize,
        _ => return false,
    }
    true
}

fn run(cluster: &mut Cluster, name: &str, args: &mut ArgumentConsumer<'_>) -> Outcome<()> {
    match name {
        "timeout" => cluster.fire(node(args)?),
        "elect" => cluster.elect(node(args)?),
        "rush" => cluster.rush(node(args)?),
        "deliver" | "drop" | "repeat" => network(cluster, name, args)?,
        "write" => {
            let (id, count) = (node(args)?, number(args, "count")?.unwrap_or(u64::MAX));
            for _ in 0..count {
                if !cluster.write(id) {
                    break;
                }
            }
        }
        "propose" => {
            let id = node(args)?;
            let words = std::iter::from_fn(|| args.next_pos());
            let commands = words.map(|word| word.as_bytes().to_vec().into()).collect();
            cluster.with(id, |raft, _| raft.propose(commands))?;
        }
        "read" => {
            let id = node(args)?;
            cluster.read(id)?;
        }
        "transfer" => {
            let (id, to) = (node(args)?, node(args)?);
            cluster.with(id, |raft, now| raft.transfer_leadership(now, Some(to)))?;
        }
        "unreachable" => {
            let (id, peer) = (node(args)?, node(args)?);
            cluster.with(id, |raft, now| raft.on_unreachable(now, peer));
        }
        "snapshot" => cluster.snapshot(node(args)?),
        "compact" => {
            let (id, index) = (node(args)?, args.next_pos().ok_or("an index")?.parse()?);
            cluster.compact(id, index);
        }
        "crash" => {
            let (id, written) = (node(args)?, number(args, "written")?.unwrap_or(0));
            cluster.crash(id, written as usize);
        }
        "restart" => cluster.start(node(args)?),
        "partition" => {
            let groups = std::iter::from_fn(|| args.next_pos()).map(nodes);
            let groups: Vec<Vec<NodeId>> = groups.collect::<Outcome<_>>()?;
            cluster.partition(&groups.iter().map(Vec::as_slice).collect::<Vec<_>>());
        }
        "heal" => cluster.heal(),
        "advance" => cluster.advance(millis(args)?, false),
        "run" => cluster.advance(millis(args)?, true),
        _ => look(cluster, name, args)?,
    }
    Ok(())
}

fn look(cluster: &mut Cluster, name: &str, args: &mut ArgumentConsumer<'_>) -> Outcome<()> {
    let lines: Vec<String> = match name {
        "status" => {
            let ids = match args.next_pos() {
                Some(id) => vec![id.parse()?],
                None => cluster.up(),
            };
            ids.into_iter().map(|id| render::status(&cluster.status(id))).collect()
        }
        "log" => {
            let log = |id| format!("{id}: {}", render::log(&cluster.node(id).disk));
            cluster.ids().into_iter().map(log).collect()
        }
        "show" => cluster.flying.iter().map(show).collect(),
        _ => return Err(format!("no command {name}").into()),
    };
    for line in lines {
        cluster.tell(|| line);
    }
    Ok(())
}

fn show(envelope: &common::Envelope) -> String {
    let what = match &envelope.parcel {
        Parcel::Message(message) => render::message(message),
        Parcel::Snapshot { term, meta, .. } => format!("t{term} snapshot {}", meta.position),
    };
    format!("{} .. {}  {what}", envelope.from, envelope.to)
}

/// Delivers, drops or repeats the parcels in flight that match the arguments.
fn network(cluster: &mut Cluster, what: &str, args: &mut ArgumentConsumer<'_>) -> Outcome<()> {
    let (from, to) = (number(args, "from")?, number(args, "to")?);
    let kind = args.take_key("kind").map(str::to_owned);
    let mut left = number(args, "count")?.unwrap_or(10_000);
    let fits = |envelope: &common::Envelope| {
        from.is_none_or(|from| from == envelope.from)
            && to.is_none_or(|to| to == envelope.to)
            && kind.as_ref().is_none_or(|kind| {
                // "t3 append prev=.." is an append.
                show(envelope).split_whitespace().nth(4) == Some(kind.as_str())
            })
    };
    let mut found = 0;
    if what == "repeat" {
        let again: Vec<_> = cluster.flying.iter().filter(|one| fits(one)).cloned().collect();
        found = again.len();
        cluster.flying.extend(again);
    } else {
        while left > 0
            && let Some(position) = cluster.flying.iter().position(fits)
        {
            match what {
                "deliver" => cluster.deliver(position),
                _ => cluster.drop_parcel(position),
            }
            left -= 1;
            found += 1;
        }
    }
    if found == 0 {
        return Err("nothing under way fits".into());
    }
    Ok(())
}

fn node(args: &mut ArgumentConsumer<'_>) -> Outcome<NodeId> {
    Ok(args.next_pos().ok_or("a node is missing")?.parse()?)
}

fn nodes(digits: &str) -> Outcome<Vec<NodeId>> {
    let digit = |digit: char| Ok(digit.to_digit(10).ok_or("a node is one digit")?.into());
    digits.chars().map(digit).collect()
}

fn number(args: &mut ArgumentConsumer<'_>, key: &str) -> Outcome<Option<u64>> {
    Ok(args.take_key(key).map(str::parse).transpose()?)
}

fn millis(args: &mut ArgumentConsumer<'_>) -> Outcome<Duration> {
    Ok(Duration::from_millis(args.next_pos().ok_or("milliseconds are missing")?.parse()?))
}

fn run_folder(name: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let entries = std::fs::read_dir(&folder).expect("a folder of scripts");
    let mut scripts: Vec<_> = entries.map(|entry| entry.expect("a script").path()).collect();
    scripts.sort();
    assert!(!scripts.is_empty(), "no scripts in {}", folder.display());
    for script in scripts {
        eprintln!("{}", script.display());
        goldenscript::run(&mut Script::default(), &script).expect("the script runs");
    }
}

macro_rules! folders {
    ($($name:ident),*) => {
        $(#[test]
        fn $name() {
            run_folder(stringify!($name));
        })*
    };
}

folders!(election, replication, conflict, commit, snapshot, restart, reads);
