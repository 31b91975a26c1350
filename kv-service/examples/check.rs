//! Tests a state machine of one's own, a queue of jobs, and gives a verdict: three nodes lose
//! power, are cut off and have slow disks while clients work, and the clients' history is checked
//! for linearizability. One seed decides everything.
//!
//! ```text
//! cargo run -p kv-service --features sim --example check
//! cargo run -p kv-service --features sim --example check -- --bug
//! TRACE=1 cargo run -p kv-service --features sim --example check -- --bug --seed 3
//! ```
//!
//! The first command runs twenty seeds. The second puts a bug in, a read that does not ask whether
//! the node is up to date; it prints the shortest history that shows the violation and the command
//! that replays it, and exits with 1. The third replays one seed and prints every message.

use std::collections::{BTreeMap, VecDeque};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use kv_service::sim::linearizability::model::{History, Model, Recorder, STEPS, Verdict, check};
use kv_service::sim::{Cluster, LinkFaults, Observed, run};
use raft_core::driver::{Node, NodeConfig};
use raft_core::error::{ProposeError, Rejected};
use raft_core::state_machine::{MachineError, MachineResult, SnapshotSource, StateMachine};
use raft_core::types::{Entry, NodeId, Payload, Position, SnapshotMeta};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// A request of a client. The output is the job that was pushed, popped or found in front.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Operation {
    Push(u64),
    Pop,
    Front,
}

/// One operation on one copy of the queue: the specification, and the heart of the machine.
fn execute(jobs: &mut VecDeque<u64>, operation: &Operation) -> Option<u64> {
    match operation {
        Operation::Push(job) => {
            jobs.push_back(*job);
            Some(*job)
        }
        Operation::Pop => jobs.pop_front(),
        Operation::Front => jobs.front().copied(),
    }
}

/// The queue as a state machine. A command is the job to push, or nothing to pop one.
#[derive(Default)]
struct Queue {
    position: Position,
    jobs: VecDeque<u64>,
}

impl StateMachine for Queue {
    type Output = Option<u64>;
    type Query = ();
    type Answer = Option<u64>;

    fn last_applied(&self) -> Position {
        self.position
    }

    fn apply(&mut self, entries: &[Entry], outputs: &mut Vec<Option<u64>>) -> MachineResult<()> {
        for entry in entries {
            self.position = entry.position();
            if let Payload::Command(command) = &entry.payload {
                let operation = match command.is_empty() {
                    true => Operation::Pop,
                    false => Operation::Push(job_in(command)?),
                };
                outputs.push(execute(&mut self.jobs, &operation));
            }
        }
        Ok(())
    }

    fn query(&mut self, (): ()) -> Option<u64> {
        execute(&mut self.jobs, &Operation::Front)
    }

    fn snapshot(&mut self) -> MachineResult<Box<dyn SnapshotSource>> {
        Ok(Box::new(View { position: self.position, jobs: self.jobs.clone() }))
    }

    fn begin_restore(&mut self, meta: &SnapshotMeta) -> MachineResult<()> {
        (self.position, self.jobs) = (meta.position, VecDeque::new());
        Ok(())
    }

    fn restore_chunk(&mut self, chunk: Bytes) -> MachineResult<()> {
        self.jobs.push_back(job_in(&chunk)?);
        Ok(())
    }

    fn finish_restore(&mut self) -> MachineResult<()> {
        Ok(())
    }
}

struct View {
    position: Position,
    jobs: VecDeque<u64>,
}

impl SnapshotSource for View {
    fn position(&self) -> Position {
        self.position
    }

    fn next_chunk(&mut self, _bytes_max: usize) -> MachineResult<Option<Bytes>> {
        Ok(self.jobs.pop_front().map(|job| Bytes::copy_from_slice(&job.to_be_bytes())))
    }
}

fn job_in(bytes: &Bytes) -> MachineResult<u64> {
    let bytes = bytes[..].try_into().map_err(|_| MachineError("8 bytes are a job".into()))?;
    Ok(u64::from_be_bytes(bytes))
}

/// The specification for the checker.
pub(crate) struct OneQueue;

impl Model for OneQueue {
    type State = VecDeque<u64>;
    type Operation = Operation;
    type Output = Option<u64>;

    fn initial(&self) -> VecDeque<u64> {
        VecDeque::new()
    }

    fn step(
        &self,
        jobs: &VecDeque<u64>,
        operation: &Operation,
        output: Option<&Option<u64>>,
    ) -> Option<VecDeque<u64>> {
        let mut jobs = jobs.clone();
        let is = execute(&mut jobs, operation);
        output.is_none_or(|output| *output == is).then_some(jobs)
    }
}

pub(crate) type Calls = History<Operation, Option<u64>>;

/// The nodes as the clients reach them. A node that has lost power answers nothing.
type Nodes = Arc<Mutex<BTreeMap<NodeId, Node<Observed<Queue>>>>>;

const NODE_COUNT: u64 = 3;
const CLIENT_COUNT: u64 = 4;
const CALLS_PER_CLIENT: u64 = 15;
/// Attempts of a call that was rejected, each at the node that is said to lead.
const ATTEMPTS_MAX: usize = 4;
const PATIENCE: Duration = Duration::from_secs(1);

/// Sends the operation until it is not rejected. A read that is not linearizable is the bug.
async fn send(
    nodes: &Nodes,
    mut node_id: NodeId,
    operation: &Operation,
    bug: bool,
) -> Result<Option<u64>, ProposeError> {
    let mut result = Err(ProposeError::Rejected(Rejected::Busy("no node was asked")));
    for _ in 0..ATTEMPTS_MAX {
        let node = nodes.lock().expect("no holder panics").get(&node_id).cloned();
        let Some(node) = node else { return result };
        result = match operation {
            Operation::Push(job) => {
                node.propose_and_wait(Bytes::copy_from_slice(&job.to_be_bytes())).await
            }
            Operation::Pop => node.propose_and_wait(Bytes::new()).await,
            Operation::Front => node.query_and_wait((), !bug).await.map_err(ProposeError::from),
        };
        match &result {
            Err(ProposeError::Rejected(Rejected::NotLeader { leader: Some(leader) })) => {
                node_id = *leader;
            }
            _ => return result,
        }
    }
    result
}

async fn client(
    name: u64,
    seed: u64,
    nodes: Nodes,
    calls: Recorder<Operation, Option<u64>>,
    bug: bool,
) {
    let mut rng = StdRng::seed_from_u64(seed * 1_000 + name);
    for number in 0..CALLS_PER_CLIENT {
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..400))).await;
        let operation = match rng.random_range(0..10) {
            0..4 => Operation::Push(100 * name + number),
            4..6 => Operation::Pop,
            _ => Operation::Front,
        };
        let node_id = rng.random_range(1..=NODE_COUNT);
        let call = calls.call(name, operation.clone());
        // A call that is out of patience is dropped, and so its outcome counts as unknown.
        let sent = send(&nodes, node_id, &operation, bug);
        if let Ok(result) = tokio::time::timeout(PATIENCE, sent).await {
            call.finish(result);
        }
    }
}

/// Runs clients and faults from the seed, and returns what the clients noted.
pub(crate) async fn scenario(seed: u64, bug: bool) -> Calls {
    let ms = Duration::from_millis(1);
    // So small that snapshots are taken, and sent to nodes that were away.
    let configure = |config: &mut NodeConfig| config.max_raft_state_bytes = 500;
    let machine = |_| Queue::default();
    let mut cluster = Cluster::with_config(seed, NODE_COUNT, configure, machine).await;
    cluster.network.set_default_faults(LinkFaults::none().losing(0.02).delaying(ms, 10 * ms));
    cluster.leader().await;
    let nodes = Nodes::new(Mutex::new(cluster.nodes.clone()));
    let recorder = Recorder::new();
    let clients: Vec<_> = (1..=CLIENT_COUNT)
        .map(|name| tokio::spawn(client(name, seed, nodes.clone(), recorder.clone(), bug)))
        .collect();

    let mut rng = StdRng::seed_from_u64(seed);
    while !clients.iter().all(|client| client.is_finished()) {
        let victim = rng.random_range(1..=NODE_COUNT);
        let fault = rng.random_range(0..3);
        match fault {
            0 => cluster.crash(victim),
            1 => cluster.isolate(victim),
            _ => cluster.slow_disks(rng.random_range(1..30) * ms),
        }
        tokio::time::sleep(rng.random_range(100..1_500) * ms).await;
        match fault {
            0 => cluster.start(victim).await,
            1 => cluster.reconnect(victim),
            _ => cluster.slow_disks(ms),
        }
        *nodes.lock().expect("no holder panics") = cluster.nodes.clone();
        tokio::time::sleep(rng.random_range(100..1_000) * ms).await;
    }
    recorder.history()
}

/// Runs the seed. Returns the report of a violation, or `None` if there is none.
pub(crate) fn report(seed: u64, bug: bool) -> Option<String> {
    let history = run(seed, async |seed| scenario(seed, bug).await);
    match check(&OneQueue, &history, STEPS) {
        Verdict::Linearizable => None,
        Verdict::Violation(violation) => {
            let command = "cargo run -p kv-service --features sim --example check --";
            let bug = if bug { " --bug" } else { "" };
            let replay = format!("{command}{bug} --seed {seed}");
            Some(violation.report(seed, &replay).to_string())
        }
        Verdict::Unknown => Some(format!("seed {seed}: {STEPS} steps did not suffice")),
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let bug = arguments.iter().any(|argument| argument == "--bug");
    let seeds = match arguments.iter().position(|argument| argument == "--seed") {
        Some(at) => {
            let seed = arguments.get(at + 1).and_then(|seed| seed.parse().ok());
            let Some(seed) = seed else {
                eprintln!("usage: check [--bug] [--seed NUMBER]");
                return ExitCode::from(2);
            };
            seed..seed + 1
        }
        None => 0..20,
    };
    for seed in seeds {
        if let Some(report) = report(seed, bug) {
            println!("{report}");
            return ExitCode::FAILURE;
        }
        println!("seed {seed}: linearizable");
    }
    ExitCode::SUCCESS
}
