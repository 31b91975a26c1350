//! Honest clients at work, and how long they waited. Half of the requests are puts, half
//! linearizable gets; each client sends its next request once the last one is answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kv_service::{Client, ClientConfig};
use tokio::task::JoinSet;
use tokio::time::Instant;

const CLIENT_COUNT: usize = 8;
const VALUE_BYTES: usize = 100;
const KEY_COUNT: usize = 100;

/// Clients that run until they are told to stop.
pub struct Bystanders {
    clients: JoinSet<Vec<Duration>>,
    stop: Arc<AtomicBool>,
    began: Instant,
}

/// Rate and latencies that the clients observed.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub answers_per_second: f64,
    pub p50: Duration,
    pub p99: Duration,
    pub slowest: Duration,
}

impl Bystanders {
    /// # Panics
    /// If no client can be made; and, in a client's task, if a request fails.
    pub fn start(config: &ClientConfig) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut clients = JoinSet::new();
        for number in 0..CLIENT_COUNT {
            let client = Client::connect(config).expect("a client");
            clients.spawn(work(client, number, Arc::clone(&stop)));
        }
        Self { clients, stop, began: Instant::now() }
    }

    /// Stops the clients and returns their measurements.
    ///
    /// # Panics
    /// If a request has failed.
    pub async fn stop(mut self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        let lasted = self.began.elapsed();
        let mut latencies = Vec::new();
        while let Some(done) = self.clients.join_next().await {
            latencies.extend(done.expect("no request of an honest client fails"));
        }
        latencies.sort();
        let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize];
        Seen {
            answers_per_second: latencies.len() as f64 / lasted.as_secs_f64(),
            p50: at(0.5),
            p99: at(0.99),
            slowest: at(1.0),
        }
    }
}

async fn work(client: Client, number: usize, stop: Arc<AtomicBool>) -> Vec<Duration> {
    let mut latencies = Vec::new();
    // Open the connection and the session before anything is measured.
    client.put(format!("bystander/{number}/0"), "").await.expect("an honest client is served");
    for turn in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let key = format!("bystander/{number}/{}", turn % KEY_COUNT);
        let began = Instant::now();
        let answered = match turn % 2 {
            0 => client.put(key, vec![turn as u8; VALUE_BYTES]).await.map(drop),
            _ => client.get(key).await.map(drop),
        };
        latencies.push(began.elapsed());
        answered.expect("an honest client is served");
    }
    client.close().await;
    latencies
}
