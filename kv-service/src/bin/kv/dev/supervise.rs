//! The supervisor: starts the nodes, reports to the user what happens to them, and stops them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use kv_service::config::NodeAddress;
use kv_service::{Client, ClientConfig};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::control::{Action, Control, Wanted};
use super::keeper::{Keeper, Order, Report, Restart, Stopping};
use super::layout::Layout;
use super::members::{self, Change};
use super::{client_flags, dir_flags, program, quoted};
use crate::exit::Exit;
use crate::output;
use crate::status::{NodeReport, gather_within};

/// How long a node may take to answer one question.
const STATUS_DEADLINE: Duration = Duration::from_millis(500);
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(50);
/// Once there is a leader: how long to wait for the last node, so that the table is complete.
const STRAGGLER_PATIENCE: Duration = Duration::from_secs(3);
/// If there is no leader after this time, the user is told why.
const LEADER_PATIENCE: Duration = Duration::from_secs(10);
/// Lines of a node's log that are repeated when it dies.
const LAST_LINES: usize = 3;
/// Bytes that are read from the end of a log to find those lines.
const LAST_BYTES: u64 = 2048;

/// The keepers of all nodes, and the channels to them.
struct Cluster {
    layout: Arc<Layout>,
    client: Client,
    program: PathBuf,
    keepers: JoinSet<()>,
    /// The channel for orders to each node's keeper.
    orders: BTreeMap<u64, mpsc::Sender<Order>>,
    reports_sender: mpsc::Sender<Report>,
    reports: mpsc::Receiver<Report>,
    /// Nodes that the cluster has removed, from the tasks that waited for it.
    retired_sender: mpsc::Sender<u64>,
    retired: mpsc::Receiver<u64>,
    stopping: watch::Sender<Stopping>,
}

/// The signals that stop the cluster. SIGHUP does not: under nohup the cluster stays.
struct Signals([Signal; 2]);

impl Signals {
    fn listen() -> io::Result<Self> {
        let [interrupt, terminate] = [SignalKind::interrupt(), SignalKind::terminate()].map(signal);
        Ok(Self([interrupt?, terminate?]))
    }

    async fn any(&mut self) {
        let [interrupt, terminate] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    }
}

/// Runs the cluster until a signal ends it.
pub(crate) async fn run(layout: Layout) -> anyhow::Result<Exit> {
    let layout = Arc::new(layout);
    let mut signals = Signals::listen().context("cannot listen to signals")?;
    let control = Control::open(layout.socket())?;
    let client = Client::connect(&ClientConfig::read(layout.client_config())?)?;
    say(&format!(
        "starting {} nodes of cluster {} in {}",
        layout.nodes().len(),
        layout.cluster_id(),
        layout.dir().display()
    ));
    let mut cluster = Cluster::start(&layout, &client)?;
    let (wanted_sender, mut wanted) = mpsc::channel(1);
    let failure = tokio::select! {
        () = signals.any() => None,
        failure = cluster.watch(&mut wanted) => failure.err(),
        () = control.run(&wanted_sender) => None,
    };
    cluster.stop(&mut signals).await?;
    failure.map_or(Ok(Exit::Done), Err)
}

impl Cluster {
    fn start(layout: &Arc<Layout>, client: &Client) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("cannot tell which program this is")?;
        let (reports_sender, reports) = mpsc::channel(16);
        let (retired_sender, retired) = mpsc::channel(16);
        let mut cluster = Self {
            layout: Arc::clone(layout),
            client: client.clone(),
            program,
            keepers: JoinSet::new(),
            orders: BTreeMap::new(),
            reports_sender,
            reports,
            retired_sender,
            retired,
            stopping: watch::Sender::new(Stopping::Not),
        };
        for NodeAddress { id, .. } in layout.nodes() {
            cluster.keep(id);
        }
        Ok(cluster)
    }

    /// Starts the node and its keeper.
    fn keep(&mut self, id: u64) {
        // One order at a time comes from the control socket.
        let (order_sender, orders) = mpsc::channel(1);
        self.orders.insert(id, order_sender);
        let keeper = Keeper {
            id,
            layout: Arc::clone(&self.layout),
            program: self.program.clone(),
            client: self.client.clone(),
            orders,
            reports: self.reports_sender.clone(),
            stopping: self.stopping.subscribe(),
        };
        self.keepers.spawn(keeper.run());
    }

    /// Reports events to the user. Ends only if the cluster cannot come up.
    async fn watch(&mut self, wanted: &mut mpsc::Receiver<Wanted>) -> anyhow::Result<()> {
        let (layout, client) = (Arc::clone(&self.layout), self.client.clone());
        let nodes = layout.nodes();
        let mut dead = BTreeSet::new();
        let mut up = false;
        let mut leader = std::pin::pin!(until_led(&client, &nodes));
        let mut patience = std::pin::pin!(sleep(LEADER_PATIENCE));
        let mut patient = true;
        loop {
            tokio::select! {
                seen = &mut leader, if !up => {
                    up = true;
                    say(&welcome(&layout, &seen));
                }
                () = &mut patience, if !up && patient => {
                    patient = false;
                    let seen = gather_within(&client, &nodes, STATUS_DEADLINE).await;
                    say(&no_leader_yet(&layout, &seen));
                }
                Some(report) = self.reports.recv() => match report {
                    Report::Died { id, how } => {
                        dead.insert(id);
                        say(&obituary(&layout, id, &how));
                    }
                    Report::CameBack { id, pid } => {
                        dead.remove(&id);
                        say(&format!("node {id} is back, pid {pid}"));
                    }
                    Report::Retired { id } => {
                        dead.remove(&id);
                        self.forget(id);
                    }
                },
                Some(Wanted { action, answer }) = wanted.recv() => {
                    self.carry_out(action, answer).await;
                }
                Some(id) = self.retired.recv() => {
                    // A keeper whose node has stopped by itself is gone.
                    if let Some(keeper) = self.orders.get(&id) {
                        let _ = keeper.send(Order::Retire).await;
                    }
                }
            }
            if !up && 2 * dead.len() >= nodes.len() {
                bail!("the cluster cannot start: too few nodes are left for a majority");
            }
        }
    }

    /// Carries out what the control socket asks for; the answer may come later.
    async fn carry_out(&mut self, action: Action, answer: oneshot::Sender<Result<String, String>>) {
        let begun = match action {
            Action::Restart(id) => {
                let Some(keeper) = self.orders.get(&id) else {
                    let known: Vec<_> = self.orders.keys().collect();
                    let text = format!("there is no node {id}: this cluster has nodes {known:?}");
                    return drop(answer.send(Err(text)));
                };
                // A keeper that is gone drops the order, and with it the answer.
                return drop(keeper.send(Order::Restart(Restart { answer })).await);
            }
            Action::Add => self.add(true).await,
            Action::Remove(old) => members::remove(&self.client, old)
                .await
                .map(|()| Change { new: None, old: Some(old) }),
            Action::Replace(old) => self.replace(old).await,
        };
        match begun {
            Ok(change) => {
                let (client, retired) = (self.client.clone(), self.retired_sender.clone());
                tokio::spawn(async move {
                    let finished = members::finish(&client, change).await;
                    if let (Ok(_), Some(old)) = (&finished, change.old) {
                        // Fails only while the supervisor stops.
                        let _ = retired.send(old).await;
                    }
                    // The caller may have gone.
                    let _ = answer.send(finished);
                });
            }
            Err(why) => drop(answer.send(Err(why))),
        }
    }

    /// Adds a member and starts its node.
    async fn add(&mut self, wants_vote: bool) -> Result<Change, String> {
        let id = members::add(&self.client, wants_vote).await?;
        self.layout.add_node(id).map_err(|error| format!("{error:#}"))?;
        self.keep(id);
        Ok(Change { new: Some(id), old: None })
    }

    /// Adds a member that takes the place of another one.
    async fn replace(&mut self, old: u64) -> Result<Change, String> {
        members::check_voter(&self.client, old).await?;
        let Change { new, .. } = self.add(false).await?;
        if let Some(new) = new {
            members::replace(&self.client, old, new).await?;
        }
        Ok(Change { new, old: Some(old) })
    }

    /// Deletes what a node that was removed has left.
    fn forget(&mut self, id: u64) {
        self.orders.remove(&id);
        match self.layout.remove_node(id) {
            Ok(()) => {
                say(&format!("node {id} was removed from the cluster; its files are deleted"))
            }
            Err(error) => say(&format!("node {id} was removed from the cluster; {error:#}")),
        }
    }

    /// Stops all nodes; a second signal kills them.
    async fn stop(mut self, signals: &mut Signals) -> anyhow::Result<()> {
        say("stopping");
        self.stopping.send_replace(Stopping::Clean);
        let stopping = &self.stopping;
        let mut impatient = false;
        loop {
            tokio::select! {
                done = self.keepers.join_next() => match done {
                    Some(done) => done.context("a keeper failed by an error of ours")?,
                    None => break,
                },
                () = signals.any(), if !impatient => {
                    impatient = true;
                    stopping.send_replace(Stopping::AtOnce);
                }
                // Drained, so that no keeper blocks on a full channel.
                Some(_) = self.reports.recv() => {}
            }
        }
        say("all nodes have stopped");
        Ok(())
    }
}

/// Waits for a leader, and a little longer for the other nodes.
async fn until_led(client: &Client, nodes: &[NodeAddress]) -> Vec<NodeReport> {
    let mut led_since = None;
    loop {
        let seen = gather_within(client, nodes, STATUS_DEADLINE).await;
        if seen.iter().any(NodeReport::leads) {
            let since = *led_since.get_or_insert_with(Instant::now);
            if seen.iter().all(|node| node.reachable) || since.elapsed() > STRAGGLER_PATIENCE {
                return seen;
            }
        } else {
            led_since = None;
        }
        sleep(ASK_AGAIN_AFTER).await;
    }
}

/// Prints for the user. The cluster does not stop because standard output has no reader.
fn say(text: &str) {
    let _ = output::line(format!("kv dev: {text}").as_bytes());
}

/// Text that tells the state of each node, and where its log is.
fn no_leader_yet(layout: &Layout, seen: &[NodeReport]) -> String {
    let mut text = format!("no leader after {} s; still waiting", LEADER_PATIENCE.as_secs());
    for node in seen {
        let how = match (&node.role, &node.error) {
            (Some(role), _) => role.as_str(),
            (None, Some(error)) => error.as_str(),
            (None, None) => "unreachable",
        };
        let log = layout.node_log(node.id);
        text.push_str(&format!("\n  node {}: {how}; its log is {}", node.id, log.display()));
    }
    text
}

/// Text that shows the nodes, and how to talk to the cluster.
fn welcome(layout: &Layout, seen: &[NodeReport]) -> String {
    let mut rows =
        vec![["node", "pid", "address", "directory", "role"].map(str::to_owned).to_vec()];
    for node in seen {
        rows.push(vec![
            node.id.to_string(),
            node.pid.map_or("-".to_owned(), |pid| pid.to_string()),
            node.address.clone(),
            layout.node_dir(node.id).display().to_string(),
            node.role.clone().unwrap_or_else(|| "unreachable".to_owned()),
        ]);
    }
    let indented = |text: &str| text.replace('\n', "\n  ");
    let (kv, flags, dir) = (program(), client_flags(layout), dir_flags(layout.dir()));
    let victim = seen.iter().find(|node| node.leads()).or(seen.first());
    let (victim_id, victim_pid) = victim.map_or((1, None), |node| (node.id, node.pid));
    let victim_pid = victim_pid.map_or("PID".to_owned(), |pid| pid.to_string());
    let serve_lines: Vec<String> = seen.iter().map(|node| serve_line(layout, node.id)).collect();
    format!(
        "ready\n\n  {}\n\n\
         Talk to it from another terminal:\n  \
         {kv}{flags} put greeting hello\n  \
         {kv}{flags} get greeting\n  \
         {kv}{flags} status\n\n\
         Kill the leader, lose nothing, and bring it back:\n  \
         kill -9 {victim_pid}\n  \
         {kv} dev{dir} restart {victim_id}\n\n\
         Or run a node that is down yourself:\n  {}\n\n\
         Ctrl-C stops all nodes; the data stays.",
        indented(&output::table(&rows)),
        indented(&serve_lines.join("\n"))
    )
}

fn serve_line(layout: &Layout, id: u64) -> String {
    let config = layout.node_config(id).display().to_string();
    format!("{} serve --config {}", program(), quoted(&config))
}

fn obituary(layout: &Layout, id: u64, how: &str) -> String {
    let log = layout.node_log(id);
    let mut text = format!("node {id} {how}; what it said is in {}", log.display());
    for line in last_lines(&log) {
        text.push_str(&format!("\n  | {line}"));
    }
    let (kv, dir) = (program(), dir_flags(layout.dir()));
    text.push_str(&format!(
        "\n  bring it back with `{kv} dev{dir} restart {id}` or `{}`",
        serve_line(layout, id)
    ));
    text
}

/// The last lines of a log, if it can be read.
fn last_lines(path: &Path) -> Vec<String> {
    use std::io::{Read, Seek, SeekFrom};
    let read = || -> io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LAST_BYTES)))?;
        let mut end = Vec::new();
        file.take(LAST_BYTES).read_to_end(&mut end)?;
        Ok(end)
    };
    let text = String::from_utf8_lossy(&read().unwrap_or_default()).into_owned();
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines[lines.len().saturating_sub(LAST_LINES)..].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_log_is_found() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(last_lines(file.path()).is_empty());
        let text: String = (0..1000).map(|number| format!("line {number}\n")).collect();
        std::fs::write(file.path(), text).unwrap();
        assert_eq!(last_lines(file.path()), ["line 997", "line 998", "line 999"]);
        assert!(last_lines(Path::new("/no/such/log")).is_empty());
    }
}
