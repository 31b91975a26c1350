//! Load from clients. In a closed loop, each client sends its next request when the last one is
//! answered. By a timetable, it sends when the next one is due, and is late if the last one is not
//! answered by then.
//!
//! Both sides of a comparison are driven by the same code, on one thread of this process, because
//! the machine's other cores belong to the servers that are measured. Throughput and latencies
//! count the requests that were answered within the measured time.

use std::future::Future;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use clap::ValueEnum;
use hdrhistogram::Histogram;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::figures::{Figures, latencies};
use crate::process;

/// One connection to the store that is measured; clones share it.
pub(crate) trait Store: Clone + Send + 'static {
    fn put(&mut self, key: Bytes, value: Bytes) -> impl Future<Output = anyhow::Result<()>> + Send;

    /// A linearizable read. Returns true if the key exists.
    fn get(&mut self, key: Bytes) -> impl Future<Output = anyhow::Result<bool>> + Send;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Op {
    Put,
    Get,
    /// Half get, half put
    Mixed,
}

impl Op {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Op::Put => "put",
            Op::Get => "get",
            Op::Mixed => "50/50",
        }
    }
}

/// The requests of a turn, and how long it lasts.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) op: Op,
    pub(crate) clients: usize,
    pub(crate) keys: u64,
    pub(crate) value_bytes: usize,
    /// Requests a second, of all clients together; `None` is a closed loop.
    pub(crate) rate: Option<f64>,
    /// Directory below which the servers keep their data.
    pub(crate) data_dir: PathBuf,
    pub(crate) warm_up: Duration,
    pub(crate) duration: Duration,
}

/// After an error a client rests, so that a cluster that is down is not asked in a tight loop.
const REST_AFTER_ERROR: Duration = Duration::from_millis(10);
/// Writes under way at once while loading.
const LOADERS: usize = 256;

/// State that all clients share.
struct Run {
    shape: Shape,
    value: Bytes,
    start: Instant,
    from: Instant,
    until: Instant,
    tally: Mutex<Tally>,
}

struct Tally {
    latencies_ns: Histogram<u64>,
    errors: u64,
    first_error: Option<anyhow::Error>,
}

/// Lets the clients, spread over the connections, run for warm-up and duration; `pids` are the
/// processes that serve.
///
/// # Errors
/// A server ended, or not one request was answered.
pub(crate) async fn run<S: Store>(
    connections: &[S],
    shape: &Shape,
    pids: &[u32],
) -> anyhow::Result<Figures> {
    let start = Instant::now();
    let from = start + shape.warm_up;
    let run = Arc::new(Run {
        shape: shape.clone(),
        value: random_value(shape.value_bytes),
        start,
        from,
        until: from + shape.duration,
        tally: Mutex::new(Tally { latencies_ns: latencies(), errors: 0, first_error: None }),
    });
    let mut clients = JoinSet::new();
    for number in 0..shape.clients {
        let connection = connections[number % connections.len()].clone();
        clients.spawn(one_client(Arc::clone(&run), connection, number as u64));
    }
    sleep_until(run.from).await;
    process::forget_peaks(pids)?;
    let (cpu_before, own_before) = (process::cpu(pids)?, process::own_cpu());
    let written_before = process::device_written_bytes(&shape.data_dir);
    sleep_until(run.until).await;
    let cpu = process::cpu(pids)?.saturating_sub(cpu_before);
    let written = process::device_written_bytes(&shape.data_dir);
    let own = process::own_cpu() - own_before;
    let peak_bytes = process::peak_bytes(pids)?;
    while let Some(done) = clients.join_next().await {
        done.context("a client panicked")?;
    }

    let mut tally = run.tally.lock().unwrap_or_else(PoisonError::into_inner);
    let mut figures = Figures::of(&tally.latencies_ns, tally.errors, shape.duration);
    if let Some(error) = tally.first_error.take() {
        eprintln!("  {} operations failed, the first: {error:#}", tally.errors);
        if figures.ops == 0 {
            return Err(error.context("not one request was answered"));
        }
    }
    figures.cpu_us_per_op = figures.per_op(cpu);
    figures.client_cpu_us_per_op = figures.per_op(own);
    figures.memory_mib = Some(peak_bytes as f64 / f64::from(1 << 20));
    if shape.op == Op::Put && figures.ops > 0 {
        let put_bytes = figures.ops * (key(0).len() + shape.value_bytes) as u64;
        figures.written_per_put_byte = written
            .zip(written_before)
            .map(|(after, before)| (after - before) as f64 / put_bytes as f64);
    }
    Ok(figures)
}

async fn one_client<S: Store>(run: Arc<Run>, mut connection: S, number: u64) {
    let mut rng = StdRng::seed_from_u64(number ^ 0x6b76_2d62_656e_6368);
    for sent in 0.. {
        let start = run.wait_for_turn(number, sent).await;
        if start >= run.until {
            return;
        }
        let done = request(&run, &mut connection, &mut rng).await;
        let end = Instant::now();
        let failed = done.is_err();
        if end >= run.from && end < run.until {
            let mut tally = run.tally.lock().unwrap_or_else(PoisonError::into_inner);
            match done {
                Ok(()) => {
                    let nanos = u64::try_from((end - start).as_nanos()).unwrap_or(u64::MAX);
                    tally.latencies_ns.saturating_record(nanos);
                }
                Err(error) => {
                    tally.errors += 1;
                    tally.first_error.get_or_insert(error);
                }
            }
        }
        if failed {
            sleep(REST_AFTER_ERROR).await;
        }
    }
}

impl Run {
    /// Waits until the client's next request is due. Returns the time from which it counts: the due
    /// time if the client is late, so that a request that was held up also counts against those
    /// behind it (no coordinated omission), and otherwise the present.
    async fn wait_for_turn(&self, client: u64, sent: u64) -> Instant {
        let now = Instant::now();
        let Some(rate) = self.shape.rate else { return now };
        let before = client + sent * self.shape.clients as u64;
        let due = self.start + Duration::from_secs_f64(before as f64 / rate);
        if due <= now {
            return due;
        }
        sleep_until(due).await;
        // A timer may be a millisecond late, which is not the server's fault.
        Instant::now()
    }
}

async fn request<S: Store>(run: &Run, connection: &mut S, rng: &mut StdRng) -> anyhow::Result<()> {
    let key = key(rng.random_range(0..run.shape.keys));
    let reading = match run.shape.op {
        Op::Put => false,
        Op::Get => true,
        Op::Mixed => rng.random(),
    };
    if reading {
        let found = connection.get(key).await?;
        anyhow::ensure!(found, "a key that was loaded is not there");
        return Ok(());
    }
    connection.put(key, run.value.clone()).await
}

/// Writes all keys once.
///
/// # Errors
/// The first write that fails.
pub(crate) async fn load_keys<S: Store>(
    connections: &[S],
    keys: u64,
    value_bytes: usize,
) -> anyhow::Result<()> {
    load_range(connections, 0..keys, value_bytes).await
}

/// Writes the keys of these numbers once.
///
/// # Errors
/// The first write that fails.
pub(crate) async fn load_range<S: Store>(
    connections: &[S],
    keys: std::ops::Range<u64>,
    value_bytes: usize,
) -> anyhow::Result<()> {
    let value = random_value(value_bytes);
    let next = Arc::new(AtomicU64::new(keys.start));
    let mut loaders = JoinSet::new();
    for number in 0..LOADERS {
        let mut connection = connections[number % connections.len()].clone();
        let (next, value, end) = (Arc::clone(&next), value.clone(), keys.end);
        loaders.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= end {
                    return anyhow::Ok(());
                }
                connection.put(key(number), value.clone()).await?;
            }
        });
    }
    while let Some(done) = loaders.join_next().await {
        done?.context("cannot write the keys")?;
    }
    Ok(())
}

/// Returns a key of 20 bytes.
pub(crate) fn key(number: u64) -> Bytes {
    format!("bench/key/{number:010}").into()
}

/// Returns random bytes, so that neither a file system nor a store compresses them away.
pub(crate) fn random_value(bytes: usize) -> Bytes {
    let mut value = vec![0; bytes];
    rand::rng().fill(&mut value[..]);
    value.into()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// Answers after a millisecond; gets of odd keys find nothing.
    #[derive(Clone, Default)]
    struct Slow {
        puts: Arc<Mutex<HashMap<Bytes, usize>>>,
    }

    impl Store for Slow {
        async fn put(&mut self, key: Bytes, _value: Bytes) -> anyhow::Result<()> {
            sleep(Duration::from_millis(1)).await;
            *self.puts.lock().unwrap().entry(key).or_default() += 1;
            Ok(())
        }

        async fn get(&mut self, _key: Bytes) -> anyhow::Result<bool> {
            sleep(Duration::from_millis(1)).await;
            Ok(false)
        }
    }

    fn shape(op: Op) -> Shape {
        let (warm_up, duration) = (Duration::from_millis(50), Duration::from_millis(300));
        Shape {
            op,
            clients: 4,
            keys: 10,
            value_bytes: 8,
            rate: None,
            data_dir: std::env::temp_dir(),
            warm_up,
            duration,
        }
    }

    fn me() -> [u32; 1] {
        [std::process::id()]
    }

    #[tokio::test]
    async fn only_what_is_answered_within_the_time_counts() {
        let figures = run(&[Slow::default()], &shape(Op::Put), &me()).await.unwrap();
        // Each of four clients waits for at least a millisecond each time; how much longer is up to
        // the machine.
        assert!((1..=1_204).contains(&figures.ops), "{figures:?}");
        assert_eq!(figures.errors, 0);
        assert!(figures.p50_us.unwrap() >= 990.0, "{figures:?}");
        assert!(figures.memory_mib.unwrap() > 0.1, "{figures:?}");
    }

    #[tokio::test]
    async fn a_get_that_finds_nothing_is_an_error() {
        let error = run(&[Slow::default()], &shape(Op::Get), &me()).await.unwrap_err();
        assert!(format!("{error:#}").contains("not there"), "{error:#}");
    }

    #[tokio::test]
    async fn each_key_is_loaded_once() {
        let store = Slow::default();
        load_keys(&[store.clone(), store.clone()], 1_000, 8).await.unwrap();
        let puts = store.puts.lock().unwrap();
        assert_eq!((puts.len(), puts.values().max()), (1_000, Some(&1)));
    }
}
