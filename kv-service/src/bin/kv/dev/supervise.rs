//! The supervisor: starts the nodes, reports to the user what happens to them, and stops them.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use kv_service::config::NodeAddress;
use kv_service::{Client, ClientConfig};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::control::{Control, Orders};
use super::keeper::{Keeper, Report, Stopping};
use super::layout::Layout;
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
    keepers: JoinSet<()>,
    orders: Orders,
    reports: mpsc::Receiver<Report>,
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
    let orders = cluster.orders.clone();
    let failure = tokio::select! {
        () = signals.any() => None,
        failure = cluster.watch(&layout, &client) => failure.err(),
        () = control.run(&orders) => None,
    };
    cluster.stop(&mut signals).await?;
    failure.map_or(Ok(Exit::Done), Err)
}

impl Cluster {
    fn start(layout: &Arc<Layout>, client: &Client) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("cannot tell which program this is")?;
        let (stopping, _) = watch::channel(Stopping::Not);
        let (reports_in, reports) = mpsc::channel(16);
        let mut keepers = JoinSet::new();
        let mut orders = Orders::new();
        for NodeAddress { id, .. } in layout.nodes() {
            // One order at a time comes from the control socket.
            let (order_in, order_out) = mpsc::channel(1);
            orders.insert(id, order_in);
            let keeper = Keeper {
                id,
                layout: layout.clone(),
                program: program.clone(),
                client: client.clone(),
                orders: order_out,
                reports: reports_in.clone(),
                stopping: stopping.subscribe(),
            };
            keepers.spawn(keeper.run());
        }
        Ok(Self { keepers, orders, reports, stopping })
    }

    /// Reports events to the user. Ends only if the cluster cannot come up.
    async fn watch(&mut self, layout: &Layout, client: &Client) -> anyhow::Result<()> {
        let nodes = layout.nodes();
        let mut dead = BTreeSet::new();
        let mut up = false;
        let mut leader = std::pin::pin!(until_led(client, &nodes));
        let mut patience = std::pin::pin!(sleep(LEADER_PATIENCE));
        let mut patient = true;
        loop {
            tokio::select! {
                seen = &mut leader, if !up => {
                    up = true;
                    say(&welcome(layout, &seen));
                }
                () = &mut patience, if !up && patient => {
                    patient = false;
                    let seen = gather_within(client, &nodes, STATUS_DEADLINE).await;
                    say(&no_leader_yet(layout, &seen));
                }
                Some(report) = self.reports.recv() => match report {
                    Report::Died { id, how } => {
                        dead.insert(id);
                        say(&obituary(layout, id, &how));
                    }
                    Report::CameBack { id, pid } => {
                        dead.remove(&id);
                        say(&format!("node {id} is back, pid {pid}"));
                    }
                },
            }
            if !up && 2 * dead.len() >= nodes.len() {
                bail!("the cluster cannot start: too few nodes are left for a majority");
            }
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
