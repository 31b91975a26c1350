//! `kv bench`: how fast the cluster is for clients that wait for their responses.
//!
//! A closed loop: each client sends its next request when the last one is answered, so the load
//! adapts to the cluster and latencies are those of this load, not of a queue in front of it. All
//! clients are tasks on one thread and share a connection, because the benchmark takes its CPU time
//! from the servers it measures.
//!
//! Latencies count for requests that began and ended within the measured time.

mod keys;
mod report;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::bail;
use bytes::Bytes;
use hdrhistogram::Histogram;
use kv_service::ClientConfig;
use kv_service::batch::text::json_text;
use kv_service::protocol::operation::Consistency;
use kv_service::{Client, ClientError, Reason};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use self::keys::Keys;
use self::report::Report;
use crate::args::{BenchArgs, BenchOp};
use crate::exit::Exit;
use crate::{connect, output};

/// Pause of a client after an error, so that a cluster that is down is not asked in a tight loop.
const REST_AFTER_ERROR: Duration = Duration::from_millis(10);
/// Latencies are kept with three digits, up to this.
const LATENCY_MAX: Duration = Duration::from_secs(600);

/// State shared by all clients.
struct Run {
    op: BenchOp,
    keys: Keys,
    value: Bytes,
    consistency: Consistency,
    /// Requests that begin earlier are warm-up.
    from: Instant,
    until: Instant,
    tally: Mutex<Tally>,
}

/// The measurements so far.
struct Tally {
    latencies_ns: Histogram<u64>,
    errors: u64,
    first_error: Option<ClientError>,
}

pub(crate) async fn run(config: Option<&Path>, args: BenchArgs) -> anyhow::Result<Exit> {
    let config = connect::client_config(config, args.client.deadline)?;
    let clients = connect_all(&config, args.connections)?;
    let value_bytes = usize::try_from(args.value_size.0)?;
    let keys = Keys::new(args.op, args.keys, value_bytes);
    // Random, so that neither a file system nor a log compresses it away.
    let mut value = vec![0; value_bytes];
    rand::rng().fill(&mut value[..]);
    let value = Bytes::from(value);
    if matches!(args.op, BenchOp::Get | BenchOp::Mixed) {
        keys.load(&clients, &value).await?;
    }

    let from = Instant::now() + args.warm_up;
    let run = Arc::new(Run {
        op: args.op,
        keys,
        value,
        consistency: if args.stale { Consistency::Stale } else { Consistency::Linearizable },
        from,
        until: from + args.duration,
        tally: Mutex::new(Tally {
            latencies_ns: Histogram::new_with_bounds(1, nanos(LATENCY_MAX), 3)
                .expect("the bounds are in order and three digits are possible"),
            errors: 0,
            first_error: None,
        }),
    });
    let outcome = drive(&run, &clients, args.clients).await;
    for client in &clients {
        connect::close(client, connect::AFTER_MUCH).await;
    }
    outcome?;
    conclude(&run, &args)
}

/// Makes `count` clients with a connection each; the clones of a client share its connection.
fn connect_all(config: &ClientConfig, count: u32) -> anyhow::Result<Vec<Client>> {
    let connect = |_| Ok(Client::connect(config)?);
    (0..count).map(connect).collect()
}

/// Lets the clients run until the time is over and the last of them has its response.
async fn drive(run: &Arc<Run>, clients: &[Client], count: u32) -> anyhow::Result<()> {
    let mut tasks = JoinSet::new();
    for number in 0..count {
        let client = clients[number as usize % clients.len()].clone();
        let seed = u64::from(number) ^ 0x6b76_2d62_656e_6368;
        tasks.spawn(one_client(run.clone(), client, StdRng::seed_from_u64(seed)));
    }
    let bar = report::bar(run.until.saturating_duration_since(Instant::now()));
    let mut tick = Instant::now();
    while !tasks.is_empty() {
        tokio::select! {
            Some(done) = tasks.join_next() => done??,
            () = sleep_until(tick), if !bar.is_hidden() => {
                tick += report::BAR_EVERY;
                let tally = run.tally.lock().expect("no client panics with the tally");
                report::advance(&bar, tally.latencies_ns.len(), tally.errors);
            }
        }
    }
    bar.finish_and_clear();
    Ok(())
}

async fn one_client(run: Arc<Run>, client: Client, mut rng: StdRng) -> anyhow::Result<()> {
    loop {
        let start = Instant::now();
        if start >= run.until {
            return Ok(());
        }
        let done = request(&run, &client, &mut rng).await;
        let end = Instant::now();
        if let Err(ClientError { reason: Reason::Invalid(why), .. }) = &done {
            bail!("the cluster refuses what the benchmark asks for: {why}");
        }
        let failed = done.is_err();
        if start >= run.from && end <= run.until {
            let mut tally = run.tally.lock().expect("no client panics with the tally");
            match done {
                Ok(()) => tally.latencies_ns.saturating_record(nanos(end - start)),
                Err(error) => {
                    tally.errors += 1;
                    tally.first_error.get_or_insert(error);
                }
            }
        } else if let Err(error) = done {
            // Not measured, but reported to the user.
            let mut tally = run.tally.lock().expect("no client panics with the tally");
            tally.first_error.get_or_insert(error);
        }
        if failed {
            sleep(REST_AFTER_ERROR).await;
        }
    }
}

async fn request(run: &Run, client: &Client, rng: &mut StdRng) -> Result<(), ClientError> {
    let key = run.keys.random(rng);
    let reading = match run.op {
        BenchOp::Put | BenchOp::Append => false,
        BenchOp::Get => true,
        BenchOp::Mixed => rng.random(),
    };
    if reading {
        client.get_with(key, run.consistency).await?;
    } else if run.op == BenchOp::Append {
        let answer = client.append(key.clone(), run.value.clone()).await?;
        if run.keys.is_full(answer.version) {
            client.delete(key).await?;
        }
    } else {
        client.put(key, run.value.clone()).await?;
    }
    Ok(())
}

fn conclude(run: &Run, args: &BenchArgs) -> anyhow::Result<Exit> {
    let tally = run.tally.lock().expect("no client panics with the tally");
    let report = Report::new(args, &tally.latencies_ns, tally.errors);
    if args.client.json {
        output::tell(json_text(&report).as_bytes());
    } else {
        output::tell(report.for_people().as_bytes());
    }
    if let Some(error) = &tally.first_error {
        output::complain(&format!("the first error was: {error}"));
    }
    Ok(match &tally.first_error {
        Some(error) if tally.latencies_ns.is_empty() => error.outcome.into(),
        _ => Exit::Done,
    })
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
