//! The links between the clients and the nodes of a process: the delivery of each chunk that is
//! written on a stream, the partitioned links, and the open streams.
//!
//! One lock over plain data. Nothing waits under it, and no stream is touched under it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use raft_core::types::NodeId;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::pipe::{Delivery, Pipe, Side};

/// Names a client and its place in the network. 0 stands for all clients that were given no name.
pub type ClientId = u64;

/// Faults of the streams between clients and nodes. The default is none: each chunk arrives at
/// once.
///
/// A *chunk* is the bytes of one write: one request or response, or several that had gathered.
/// Chunks arrive in order, so a lost one takes the connection with it, as any hole in a stream
/// does.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StreamFaults {
    /// The probability that a chunk is lost. When it should have arrived, both sides learn that the
    /// connection broke; everything else under way is lost too.
    pub loss: f64,
    /// The shortest latency of a chunk.
    pub delay_min: Duration,
    /// The longest latency of a chunk. Latencies are drawn evenly from `delay_min` to `delay_max`.
    pub delay_max: Duration,
    /// The longest time until an attempt to connect fails, if the node does not run or the link is
    /// partitioned. The time is drawn evenly from zero to this.
    pub refusal_delay_max: Duration,
}

impl StreamFaults {
    /// # Panics
    /// If `loss` is not a probability, or if the bounds of the latency are the wrong way round: a
    /// defect of the test.
    fn check(&self) {
        assert!((0.0..=1.0).contains(&self.loss), "{} is not a probability", self.loss);
        assert!(self.delay_min <= self.delay_max, "the shortest delay is the longest at most");
    }
}

/// One chunk that was written on a stream, as it is shown to a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk<'a> {
    /// The client at one end of the stream.
    pub client: ClientId,
    /// The node at the other end.
    pub node: NodeId,
    /// True if the client wrote the chunk, false if the node did.
    pub to_node: bool,
    /// The bytes of the chunk.
    pub bytes: &'a [u8],
    /// True if the chunk breaks the connection instead of arriving.
    pub lost: bool,
}

type Listener = dyn FnMut(Chunk<'_>) + Send;

pub(super) struct LocalLinks(Mutex<LinksState>);

struct LinksState {
    seed: u64,
    faults: StreamFaults,
    cut: BTreeSet<(ClientId, NodeId)>,
    /// Each link has a random number generator of its own, so that its faults do not depend on the
    /// traffic of another.
    chances: BTreeMap<(ClientId, NodeId), StdRng>,
    streams: Vec<(ClientId, NodeId, Weak<Pipe>)>,
    listeners: Vec<Box<Listener>>,
    /// Number of seeds given out, so that each client and each start of a node draws differently.
    seeds_given: u64,
    numbers_given: u64,
}

impl LocalLinks {
    pub(super) fn new(seed: u64) -> Self {
        Self(Mutex::new(LinksState {
            seed,
            faults: StreamFaults::default(),
            cut: BTreeSet::new(),
            chances: BTreeMap::new(),
            streams: Vec::new(),
            listeners: Vec::new(),
            seeds_given: 0,
            numbers_given: 0,
        }))
    }

    /// Returns a seed for a client or a node, another one each time.
    pub(super) fn next_seed(&self) -> u64 {
        let mut state = self.lock();
        state.seeds_given += 1;
        derived(state.seed, &[state.seeds_given])
    }

    /// Returns a number for a disk, another one each time, and never 0. It takes no seed away from
    /// others, so their runs do not depend on how many disks there are.
    pub(super) fn next_number(&self) -> u64 {
        let mut state = self.lock();
        state.numbers_given += 1;
        derived(!state.seed, &[state.numbers_given]).max(1)
    }

    pub(super) fn set_faults(&self, faults: StreamFaults) {
        faults.check();
        self.lock().faults = faults;
    }

    pub(super) fn listen(&self, listener: Box<Listener>) {
        self.lock().listeners.push(listener);
    }

    /// Opens a stream. If the link is partitioned, returns the time that it takes to find out.
    pub(super) fn open(
        self: &Arc<Self>,
        client: ClientId,
        node: NodeId,
    ) -> Result<Arc<Pipe>, Duration> {
        let mut state = self.lock();
        if state.cut.contains(&(client, node)) {
            return Err(state.refusal_delay(client, node));
        }
        let links = Arc::clone(self);
        let deliver = move |from: Side, bytes: &[u8]| links.post(client, node, from, bytes);
        let pipe = Arc::new(Pipe::new(deliver));
        state.streams.retain(|(_, _, stream)| stream.strong_count() > 0);
        state.streams.push((client, node, Arc::downgrade(&pipe)));
        Ok(pipe)
    }

    pub(super) fn refusal_delay(&self, client: ClientId, node: NodeId) -> Duration {
        self.lock().refusal_delay(client, node)
    }

    /// Decides the delivery of a chunk, and shows the chunk to all listeners.
    fn post(&self, client: ClientId, node: NodeId, from: Side, bytes: &[u8]) -> Delivery {
        let mut state = self.lock();
        let StreamFaults { loss, delay_min, delay_max, .. } = state.faults;
        let rng = state.rng(client, node);
        // A fault that cannot happen draws nothing from the rng.
        let lost = loss > 0.0 && rng.random_bool(loss);
        let delay = between(rng, delay_min, delay_max);
        let to_node = from == Side::Client;
        for listener in &mut state.listeners {
            listener(Chunk { client, node, to_node, bytes, lost });
        }
        Delivery { lost, delay }
    }

    /// Partitions or heals the given links.
    pub(super) fn set_cut(&self, links: &[(ClientId, NodeId)], cut: bool) {
        let mut state = self.lock();
        for way in links {
            if cut {
                state.cut.insert(*way);
            } else {
                state.cut.remove(way);
            }
        }
        let streams = state.streams(|client, node| links.contains(&(client, node)));
        drop(state);
        streams.iter().for_each(|stream| stream.set_cut(cut));
    }

    /// Heals all links.
    pub(super) fn heal(&self) {
        let mut state = self.lock();
        let cut = std::mem::take(&mut state.cut);
        let streams = state.streams(|client, node| cut.contains(&(client, node)));
        drop(state);
        streams.iter().for_each(|stream| stream.set_cut(false));
    }

    /// Holds all streams of the node that are open: nothing from it or to it arrives.
    pub(super) fn silence(&self, node: NodeId) {
        let streams = self.lock().streams(|_, to| to == node);
        streams.iter().for_each(|stream| stream.kill());
    }

    /// Breaks all streams of the node that are open.
    pub(super) fn reset(&self, node: NodeId) {
        let streams = self.lock().streams(|_, to| to == node);
        streams.iter().for_each(|stream| stream.break_off());
    }

    fn lock(&self) -> MutexGuard<'_, LinksState> {
        // Nothing that is done under the lock stops half-way, except by a defect of a listener.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LinksState {
    fn rng(&mut self, client: ClientId, node: NodeId) -> &mut StdRng {
        let seed = self.seed;
        let of_way = || StdRng::seed_from_u64(derived(seed, &[client, node]));
        self.chances.entry((client, node)).or_insert_with(of_way)
    }

    fn refusal_delay(&mut self, client: ClientId, node: NodeId) -> Duration {
        let max = self.faults.refusal_delay_max;
        between(self.rng(client, node), Duration::ZERO, max)
    }

    fn streams(&self, chosen: impl Fn(ClientId, NodeId) -> bool) -> Vec<Arc<Pipe>> {
        let chosen = self.streams.iter().filter(|(client, node, _)| chosen(*client, *node));
        chosen.filter_map(|(_, _, stream)| stream.upgrade()).collect()
    }
}

/// Draws evenly, both bounds included.
fn between(rng: &mut StdRng, min: Duration, max: Duration) -> Duration {
    if min == max { min } else { rng.random_range(min..=max) }
}

/// Derives a seed of its own for the thing that `parts` names.
fn derived(seed: u64, parts: &[u64]) -> u64 {
    parts.iter().fold(seed, |seed, part| StdRng::seed_from_u64(seed ^ part).random())
}
