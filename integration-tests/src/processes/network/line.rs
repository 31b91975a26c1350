//! One direction of a link: a queue of datagrams, each with the time at which it arrives.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::{Conditions, Traffic};

/// Bytes that may be in flight in one direction, as in a router's buffer; further ones are lost.
const IN_FLIGHT_BYTES_MAX: usize = 512 << 10;
/// Datagrams that were received and not yet processed; further ones wait in the socket.
const RECEIVED_COUNT_MAX: usize = 64;

#[derive(Default)]
pub(super) struct Direction {
    pub(super) conditions: Conditions,
    pub(super) traffic: Traffic,
}

pub(super) type Shared = Arc<Mutex<Direction>>;

pub(super) fn lock(direction: &Shared) -> MutexGuard<'_, Direction> {
    direction.lock().expect("nothing panics while it holds a direction")
}

/// A datagram, the socket that sends it, and its target.
#[derive(Clone)]
pub(super) struct Parcel {
    pub(super) bytes: Vec<u8>,
    pub(super) leaves: Arc<UdpSocket>,
    pub(super) target: SocketAddr,
}

pub(super) type Entrance = mpsc::Sender<Parcel>;

/// Puts datagrams from `source` on the line; those of any other sender are dropped.
pub(super) async fn relay(
    enters: Arc<UdpSocket>,
    source: SocketAddr,
    leaves: Arc<UdpSocket>,
    target: SocketAddr,
    line: Entrance,
) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        // The error belongs to an earlier datagram whose target was not there.
        let Ok((length, from)) = enters.recv_from(&mut buffer).await else { continue };
        if from != source {
            continue;
        }
        let bytes = buffer[..length].to_vec();
        let parcel = Parcel { bytes, leaves: Arc::clone(&leaves), target };
        if line.send(parcel).await.is_err() {
            // The network is gone.
            return;
        }
    }
}

pub(super) struct Line {
    direction: Shared,
    entering: mpsc::Receiver<Parcel>,
    chance: StdRng,
    /// By time of arrival; the number keeps datagrams of the same time apart.
    in_flight: BTreeMap<(Instant, u64), Parcel>,
    in_flight_bytes: usize,
    number: u64,
    /// When a line of limited bandwidth has room for the next datagram.
    free_at: Instant,
}

impl Line {
    pub(super) fn new(direction: Shared, chance: StdRng) -> (Entrance, Self) {
        let (entrance, entering) = mpsc::channel(RECEIVED_COUNT_MAX);
        let line = Self {
            direction,
            entering,
            chance,
            in_flight: BTreeMap::new(),
            in_flight_bytes: 0,
            number: 0,
            free_at: Instant::now(),
        };
        (entrance, line)
    }

    pub(super) async fn run(mut self) {
        loop {
            let next = self.in_flight.first_key_value().map(|((at, _), _)| *at);
            tokio::select! {
                entered = self.entering.recv() => {
                    let Some(parcel) = entered else { return };
                    self.admit(parcel);
                }
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            }
            self.deliver().await;
        }
    }

    /// Loses a datagram, passes it on, or passes it on twice.
    fn admit(&mut self, mut parcel: Parcel) {
        let mut direction = lock(&self.direction);
        let conditions = direction.conditions.clone();
        let chance = &mut self.chance;
        let bytes = &mut parcel.bytes;
        let lost = conditions.cut
            || chance.random_bool(conditions.loss)
            || self.in_flight_bytes + bytes.len() > IN_FLIGHT_BYTES_MAX;
        if lost {
            direction.traffic.lost_count += 1;
            return;
        }
        direction.traffic.passed_count += 1;
        drop(direction);
        if !bytes.is_empty() && chance.random_bool(conditions.damage) {
            let place = chance.random_range(0..bytes.len());
            bytes[place] ^= 1 << chance.random_range(0..8);
        }
        if chance.random_bool(conditions.duplication) {
            self.send_off(parcel.clone(), &conditions);
        }
        self.send_off(parcel, &conditions);
    }

    fn send_off(&mut self, parcel: Parcel, conditions: &Conditions) {
        let mut at = Instant::now();
        if let Some(rate) = conditions.bytes_per_second {
            let transmission = Duration::from_secs_f64(parcel.bytes.len() as f64 / rate as f64);
            self.free_at = at.max(self.free_at) + transmission;
            at = self.free_at;
        }
        at += match conditions.delay.is_empty() {
            true => conditions.delay.start,
            false => self.chance.random_range(conditions.delay.clone()),
        };
        self.number += 1;
        self.in_flight_bytes += parcel.bytes.len();
        self.in_flight.insert((at, self.number), parcel);
    }

    /// Delivers the datagrams that have arrived by now.
    async fn deliver(&mut self) {
        let now = Instant::now();
        while let Some(first) = self.in_flight.first_entry().filter(|first| first.key().0 <= now) {
            let Parcel { bytes, leaves, target } = first.remove();
            self.in_flight_bytes -= bytes.len();
            // Lost if no socket is there, or the machine has no room for it.
            let _ = leaves.send_to(&bytes, target).await;
        }
    }
}
