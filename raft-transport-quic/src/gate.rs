//! The gate before each handshake: it limits how much asymmetric cryptography this node does, and
//! for which addresses.
//!
//! A handshake costs this node a key exchange, a signature and the check of a certificate, on the
//! thread that also sends heartbeats. A datagram that asks for one costs the sender nothing. So the
//! rate of handshakes is bounded before the first of these operations, by token buckets:
//!
//! * **Peers**, recognised by their exact address, have a bucket each. A stranger that forges this
//!   address cannot exhaust it: beyond a few handshakes per second the sender has to prove, by a
//!   Retry, that it receives the packets sent to that address.
//! * **Others** prove their address, except the first few in a quiet time. A proven address takes a
//!   token from the bucket of its source (an IPv4 address or an IPv6 /64) and from the one for all
//!   sources.
//! * A request that exceeds the buckets for Retry packets, or for refusals, is ignored without a
//!   response.
//!
//! A client whose connection this node had to end costs its source more tokens ([`Gate::charge`]):
//! otherwise it would come back at once, and begin anew whatever the node had ended.
//!
//! Memory is fixed: sources share the slots of a table by a keyed hash, so a flood with forged
//! addresses cannot make it grow. An address that shares a slot with a busy one waits longer; the
//! key, and so the collisions, change with each start.

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use raft_core::types::NodeId;
use tokio::time::Instant;

use crate::config::{
    HANDSHAKE_BURST, HANDSHAKES_FOR_PEERS, HANDSHAKES_MAX, HANDSHAKES_PER_SOURCE_MAX,
};

/// A rate of `per_second` on average, with a burst of at most `burst`.
#[derive(Clone, Copy, Debug)]
struct Rate {
    per_second: u32,
    burst: u32,
}

const fn rate(per_second: u32, burst: u32) -> Rate {
    Rate { per_second, burst }
}

/// A peer dials once, and then every half second until it is connected.
const PEER: Rate = rate(10, 16);
/// Retry packets for the addresses of peers. A flood with forged addresses must not prevent the
/// response to a peer's own first packet.
const PEER_RETRIES: Rate = rate(2_000, 256);
/// Handshakes from the IP address of a peer and another port: a peer behind a NAT.
const NEAR_PEER: Rate = rate(20, 16);
/// Handshakes without a proof of the address. They save clients a round trip in quiet times.
const UNPROVEN: Rate = rate(20, 32);
/// Retry packets for all sources, and for one.
const RETRIES: Rate = rate(4_000, 256);
const RETRIES_PER_SOURCE: Rate = rate(400, 64);
/// Refusals. They tell a client to try another node; the rest of a flood is ignored.
const REFUSALS: Rate = rate(200, 64);

/// Handshakes that a source must do without for each of its connections that this node ended. At
/// the default rate, a source whose connections are all ended gets 6 handshakes per second.
const CHARGE: u32 = 16;
/// Longest time that a source waits for its next handshake because of such connections. Other
/// clients may have the same address.
const CHARGED_MAX: Duration = Duration::from_secs(5);

/// Slots of the table of sources.
const SOURCE_SLOTS: usize = 4096;

/// A token bucket, as the time at which it is full again.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    full_at: Duration,
}

impl Bucket {
    /// Takes a token if there is one.
    fn take(&mut self, rate: Rate, now: Duration) -> bool {
        let has = self.has(rate, now);
        if has {
            self.full_at = self.full_at.max(now) + interval(rate);
        }
        has
    }

    /// Takes tokens whether they are there or not. The next token is there after `wait_max` at the
    /// latest.
    fn charge(&mut self, tokens: u32, rate: Rate, wait_max: Duration, now: Duration) {
        let empty_at = now + interval(rate) * rate.burst;
        let full_at = self.full_at.max(now) + interval(rate) * tokens;
        self.full_at = full_at.min(empty_at - interval(rate) + wait_max);
    }

    fn has(&self, rate: Rate, now: Duration) -> bool {
        self.full_at.max(now) + interval(rate) <= now + interval(rate) * rate.burst
    }
}

fn interval(rate: Rate) -> Duration {
    Duration::from_secs(1) / rate.per_second
}

/// The decision about one request for a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Begin the handshake.
    Admit,
    /// Demand a proof that the sender receives at its address (a Retry packet).
    Prove,
    /// Tell the sender that this node accepts no more handshakes now.
    Refuse,
    /// Send nothing.
    Ignore,
}

/// One request for a handshake.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) ip: IpAddr,
    /// The sender has proven, by a Retry, that it receives packets at this address.
    pub(crate) is_proven: bool,
    pub(crate) origin: Origin,
}

/// The relation of an address to the peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// This peer listens at the address.
    Peer(NodeId),
    /// A peer has this IP address, and another port.
    NearPeer,
    Stranger,
}

/// Handshakes in progress.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) all: usize,
    pub(crate) of_this_source: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Source {
    retries: Bucket,
    proven: Bucket,
}

/// Decides about every handshake with this node. Time is an argument, measured from any fixed
/// point.
#[derive(Debug)]
pub(crate) struct Gate {
    /// Rates of handshakes from proven addresses: for all sources together, and for one.
    proven_rate: Rate,
    source_rate: Rate,
    peers: BTreeMap<NodeId, Source>,
    peer_retries: Bucket,
    near_peer: Bucket,
    unproven: Bucket,
    retries: Bucket,
    proven: Bucket,
    refusals: Bucket,
    keys: RandomState,
    sources: Box<[Source]>,
}

impl Gate {
    /// `handshakes_per_second` is the limit for addresses that are not peers', at least 2. One
    /// source gets at most half of them.
    pub(crate) fn new(handshakes_per_second: u32) -> Self {
        assert!(handshakes_per_second >= 2, "the configuration was checked");
        Self {
            proven_rate: rate(handshakes_per_second, HANDSHAKE_BURST),
            source_rate: rate(handshakes_per_second / 2, HANDSHAKE_BURST),
            peers: BTreeMap::new(),
            peer_retries: Bucket::default(),
            near_peer: Bucket::default(),
            unproven: Bucket::default(),
            retries: Bucket::default(),
            proven: Bucket::default(),
            refusals: Bucket::default(),
            keys: RandomState::new(),
            sources: vec![Source::default(); SOURCE_SLOTS].into(),
        }
    }

    pub(crate) fn decide(&mut self, request: &Request, load: Load, now: Duration) -> Verdict {
        match request.origin {
            Origin::Peer(id) => self.decide_on_peer(id, request.is_proven, load, now),
            _ if request.is_proven => self.decide_on_proven(request, load, now),
            _ => self.decide_on_unproven(request, load, now),
        }
    }

    fn decide_on_peer(&mut self, id: NodeId, proven: bool, load: Load, now: Duration) -> Verdict {
        let peer = self.peers.entry(id).or_default();
        // Unproven requests have a bucket of their own: a forged address must not exhaust the
        // peer's.
        let bucket = if proven { &mut peer.proven } else { &mut peer.retries };
        let has_place = load.all < HANDSHAKES_MAX;
        if has_place && bucket.take(PEER, now) {
            Verdict::Admit
        } else if !proven && self.peer_retries.take(PEER_RETRIES, now) {
            Verdict::Prove
        } else {
            Verdict::Ignore
        }
    }

    fn decide_on_unproven(&mut self, request: &Request, load: Load, now: Duration) -> Verdict {
        let slot = self.slot(request.ip);
        let is_quiet = load.of_this_source < HANDSHAKES_PER_SOURCE_MAX / 2
            && self.sources[slot].proven.has(self.source_rate, now);
        if has_place(load) && is_quiet && self.unproven.take(UNPROVEN, now) {
            return Verdict::Admit;
        }
        let source = &mut self.sources[slot];
        let both = source.retries.has(RETRIES_PER_SOURCE, now) && self.retries.has(RETRIES, now);
        if !both {
            return Verdict::Ignore;
        }
        source.retries.take(RETRIES_PER_SOURCE, now);
        self.retries.take(RETRIES, now);
        Verdict::Prove
    }

    fn decide_on_proven(&mut self, request: &Request, load: Load, now: Duration) -> Verdict {
        if has_place(load) {
            if request.origin == Origin::NearPeer && self.near_peer.take(NEAR_PEER, now) {
                return Verdict::Admit;
            }
            let slot = self.slot(request.ip);
            let source = &mut self.sources[slot];
            if source.proven.has(self.source_rate, now) && self.proven.has(self.proven_rate, now) {
                source.proven.take(self.source_rate, now);
                self.proven.take(self.proven_rate, now);
                return Verdict::Admit;
            }
        }
        if self.refusals.take(REFUSALS, now) { Verdict::Refuse } else { Verdict::Ignore }
    }

    /// Takes tokens from the source of a client whose connection this node ended for a fault of the
    /// client.
    pub(crate) fn charge(&mut self, ip: IpAddr, now: Duration) {
        let slot = self.slot(ip);
        self.sources[slot].proven.charge(CHARGE, self.source_rate, CHARGED_MAX, now);
    }

    fn slot(&self, ip: IpAddr) -> usize {
        (self.keys.hash_one(source_of(ip)) % SOURCE_SLOTS as u64) as usize
    }
}

/// The gate of one node, for the accept loop and for the connections that were admitted.
#[derive(Debug)]
pub(crate) struct SharedGate {
    gate: Mutex<Gate>,
    start: Instant,
}

impl SharedGate {
    pub(crate) fn new(handshakes_per_second: u32) -> Self {
        Self { gate: Mutex::new(Gate::new(handshakes_per_second)), start: Instant::now() }
    }

    pub(crate) fn decide(&self, request: &Request, load: Load) -> Verdict {
        self.lock().decide(request, load, self.start.elapsed())
    }

    pub(crate) fn charge(&self, ip: IpAddr) {
        self.lock().charge(ip, self.start.elapsed());
    }

    fn lock(&self) -> MutexGuard<'_, Gate> {
        // Held for single steps only; none of them panics half-way.
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns true if there is room for a handshake from an address that is not a peer's. The last
/// places are reserved for peers, and under load no source has more than a few.
fn has_place(load: Load) -> bool {
    let is_crowded = load.all >= HANDSHAKES_MAX / 2;
    load.all < HANDSHAKES_MAX - HANDSHAKES_FOR_PEERS
        && !(is_crowded && load.of_this_source >= HANDSHAKES_PER_SOURCE_MAX)
}

/// The unit that is counted as one source: an IPv4 address, or the /64 of an IPv6 address, which is
/// the usual prefix of one host.
pub(crate) fn source_of(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) => IpAddr::V4(ip),
        IpAddr::V6(ip) => {
            let [a, b, c, d, ..] = ip.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: u32 = 200;
    const QUIET: Load = Load { all: 0, of_this_source: 0 };

    /// Sends requests evenly for some seconds and counts the verdicts.
    fn flood(
        gate: &mut Gate,
        from_ms: u64,
        seconds: u64,
        per_second: u64,
        request: impl Fn(u64) -> Request,
    ) -> BTreeMap<&'static str, u64> {
        let mut counts = BTreeMap::new();
        for number in 0..seconds * per_second {
            let now = Duration::from_millis(from_ms)
                + Duration::from_secs(1) * u32::try_from(number).unwrap() / per_second as u32;
            let name = match gate.decide(&request(number), QUIET, now) {
                Verdict::Admit => "admit",
                Verdict::Prove => "prove",
                Verdict::Refuse => "refuse",
                Verdict::Ignore => "ignore",
            };
            *counts.entry(name).or_default() += 1;
        }
        counts
    }

    fn v4(number: u64) -> IpAddr {
        IpAddr::from((0x0a00_0000u32 + number as u32).to_be_bytes())
    }

    fn stranger(ip: IpAddr, is_proven: bool) -> Request {
        Request { ip, is_proven, origin: Origin::Stranger }
    }

    fn count(counts: &BTreeMap<&str, u64>, name: &str) -> u64 {
        counts.get(name).copied().unwrap_or(0)
    }

    /// S12. 10,000 requests per second for ten seconds, for each kind of stranger: proven or
    /// forged, one address or many.
    #[test]
    fn s12_no_flood_costs_more_handshakes_than_the_rate() {
        let limit = 10 * u64::from(RATE) + u64::from(HANDSHAKE_BURST);
        for (what, proven, sources) in [
            ("one address", true, 1),
            ("many addresses", true, 100_000),
            ("one forged address", false, 1),
            ("many forged addresses", false, 100_000),
        ] {
            let mut gate = Gate::new(RATE);
            let counts =
                flood(&mut gate, 0, 10, 10_000, |number| stranger(v4(number % sources), proven));
            let allowed = match (proven, sources) {
                (true, 1) => limit / 2 + u64::from(HANDSHAKE_BURST),
                (true, _) => limit,
                (false, _) => 10 * u64::from(UNPROVEN.per_second) + u64::from(UNPROVEN.burst),
            };
            assert!(count(&counts, "admit") <= allowed, "{what}: {counts:?}");
            assert!(count(&counts, "admit") >= allowed / 3, "the rate is used: {what}: {counts:?}");
            let answered = 10 * u64::from(RETRIES.per_second) + u64::from(RETRIES.burst);
            assert!(count(&counts, "prove") + count(&counts, "refuse") <= answered, "{counts:?}");
            assert!(count(&counts, "ignore") > 50_000, "{what}: {counts:?}");
        }
    }

    /// S12. During a flood from others, a peer is admitted each time that it dials, a client from
    /// another source is admitted, and a peer whose address is forged needs one proof.
    #[test]
    fn s12_a_flood_starves_neither_peers_nor_other_sources() {
        let peer = |is_proven| Request { ip: v4(7), is_proven, origin: Origin::Peer(3) };
        let mut gate = Gate::new(RATE);
        for second in 0..10 {
            let from_ms = second * 1_000;
            flood(&mut gate, from_ms, 1, 10_000, |number| stranger(v4(1_000 + number), false));
            flood(&mut gate, from_ms, 1, 10_000, |_| stranger(v4(1), true));
            let now = Duration::from_millis(from_ms + 1_000);
            assert_eq!(gate.decide(&peer(false), QUIET, now), Verdict::Admit);
            let client = stranger(v4(2), true);
            assert_eq!(gate.decide(&client, QUIET, now), Verdict::Admit, "after {second} s");
        }
        let forged = flood(&mut gate, 20_000, 1, 10_000, |_| peer(false));
        assert!(count(&forged, "admit") <= 27, "{forged:?}");
        assert!(count(&forged, "prove") >= 2_000, "{forged:?}");
        assert_eq!(gate.decide(&peer(true), QUIET, Duration::from_secs(21)), Verdict::Admit);
        // A peer behind a NAT has a bucket of its own.
        let near = Request { ip: v4(1), is_proven: true, origin: Origin::NearPeer };
        flood(&mut gate, 30_000, 1, 10_000, |number| stranger(v4(number), true));
        assert_eq!(gate.decide(&near, QUIET, Duration::from_secs(31)), Verdict::Admit);
    }

    /// S11. A source whose connections are ended comes back slowly, other sources as before; after
    /// a few seconds without such connections it has all its tokens again.
    #[test]
    fn s11_connections_that_were_ended_cost_their_source_handshakes() {
        let mut gate = Gate::new(RATE);
        let mut admitted = 0;
        for ms in 0..20_000 {
            let now = Duration::from_millis(ms);
            if gate.decide(&stranger(v4(1), true), QUIET, now) == Verdict::Admit {
                admitted += 1;
                gate.charge(v4(1), now);
            }
        }
        let slow = 20 * RATE / 2 / (CHARGE + 1) + HANDSHAKE_BURST;
        assert!((slow / 2..=slow).contains(&admitted), "{admitted}");
        let now = Duration::from_secs(20);
        let unproven = gate.decide(&stranger(v4(1), false), QUIET, now);
        assert_eq!(unproven, Verdict::Prove, "nor without a proof of the address");
        assert_eq!(gate.decide(&stranger(v4(2), true), QUIET, now), Verdict::Admit);
        // However many were ended.
        for _ in 0..10_000 {
            gate.charge(v4(1), now);
        }
        let soon = now + CHARGED_MAX - Duration::from_millis(1);
        assert_ne!(gate.decide(&stranger(v4(1), true), QUIET, soon), Verdict::Admit);
        let late = now + CHARGED_MAX;
        assert_eq!(gate.decide(&stranger(v4(1), true), QUIET, late), Verdict::Admit);
    }

    #[test]
    fn a_quiet_client_needs_no_proof() {
        let mut gate = Gate::new(RATE);
        let client = stranger(v4(1), false);
        assert_eq!(gate.decide(&client, QUIET, Duration::from_secs(1)), Verdict::Admit);
        let busy = Load { all: 20, of_this_source: HANDSHAKES_PER_SOURCE_MAX / 2 };
        assert_eq!(gate.decide(&client, busy, Duration::from_secs(1)), Verdict::Prove);
    }

    #[test]
    fn places_under_way_are_bounded_and_the_last_are_for_peers() {
        let mut gate = Gate::new(RATE);
        let now = Duration::from_secs(1);
        let client = stranger(v4(1), true);
        let crowd = |of_this_source| Load { all: HANDSHAKES_MAX / 2, of_this_source };
        assert_eq!(gate.decide(&client, crowd(HANDSHAKES_PER_SOURCE_MAX), now), Verdict::Refuse);
        assert_eq!(gate.decide(&client, crowd(0), now), Verdict::Admit);
        let last = Load { all: HANDSHAKES_MAX - HANDSHAKES_FOR_PEERS, of_this_source: 0 };
        assert_eq!(gate.decide(&client, last, now), Verdict::Refuse);
        let peer = Request { ip: v4(1), is_proven: true, origin: Origin::Peer(1) };
        assert_eq!(gate.decide(&peer, last, now), Verdict::Admit);
        let full = Load { all: HANDSHAKES_MAX, of_this_source: 0 };
        assert_eq!(gate.decide(&peer, full, now), Verdict::Ignore);
    }

    #[test]
    fn one_host_is_one_source() {
        let ip = |text: &str| source_of(text.parse().unwrap());
        assert_eq!(ip("2001:db8:1:2::1"), ip("2001:db8:1:2:ffff::9"));
        assert_ne!(ip("2001:db8:1:2::1"), ip("2001:db8:1:3::1"));
        assert_eq!(ip("::ffff:10.0.0.1"), ip("10.0.0.1"));
        assert_ne!(ip("10.0.0.1"), ip("10.0.0.2"));
    }
}
