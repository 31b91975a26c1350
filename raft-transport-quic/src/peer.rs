//! One peer: its addresses, its mailboxes, its reachability, and the supervisor of its connection.
//!
//! The node with the lower id of a pair dials, so there is only one connection. The supervisor is
//! the only task that replaces the connection. On the dialling side it tries again, with growing
//! pauses, for as long as the node lives; on the other side it waits for the next connection that
//! [`crate::accept`] passes on.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use quinn::{Connection, Endpoint};
use raft_core::types::{Class, Message, NodeId};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{debug, info, warn};

use crate::config::{BACKOFF_MAX, BACKOFF_MIN, QuicConfig, RESOLVE_INTERVAL, RESOLVE_TIMEOUT};
use crate::dial::{Attempt, jittered, show_address, try_dial};
use crate::error::close;
use crate::link::{PeerLink, RunningLink};
use crate::mailbox::{Mailbox, Put};
use crate::names::Names;
use crate::shared::{FORGOTTEN_AFTER, Refused, TransportShared, canonical};

/// Close reason for a node that dials while another incarnation of it is connected.
const ANOTHER_DIRECTORY: &str =
    "another directory of the same node is running, and is connected; stop one of them";

/// One peer, shared by all tasks.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) id: NodeId,
    control: Mailbox,
    log: Mailbox,
    state: Mutex<PeerState>,
    /// Channel to the supervisor for connections that the peer dialled.
    accepted: mpsc::Sender<PeerLink>,
    /// Set once the peer is no longer a member; its supervisor ends.
    left: watch::Sender<bool>,
    /// Set for a member, as far as this node knows; not for a guest.
    is_member: AtomicBool,
    /// Notified when the address has changed.
    readdressed: Notify,
    /// Notified when the peer has shown its address.
    has_shown: Notify,
}

#[derive(Debug)]
struct PeerState {
    /// `host:port` each.
    addresses: Vec<String>,
    connection: Option<Connection>,
    /// Why there is no connection.
    failure: String,
    /// The failures that were logged, so that each is logged once and not per attempt.
    logged: BTreeSet<String>,
    /// Start of the period after which `logged` is cleared.
    logged_since: Instant,
    /// Start of this node.
    started: Instant,
    /// Set once the current connection, or else the last one, has lasted [`STANDS_AFTER`]. The next
    /// connection is then logged at once.
    stood: bool,
    /// Address of the peer's last connection. The certificate has proven the peer.
    last: Option<SocketAddr>,
    /// Addresses of the peer's names; empty until the first look-up succeeds.
    resolved: Vec<SocketAddr>,
    /// The address from which the peer has shown itself. The certificate has proven the peer.
    shown: Option<SocketAddr>,
    /// How often [`QuicConfig::hello_timeout`] is doubled.
    hello_doublings: u32,
    /// Set once the current connection is logged.
    announced: bool,
}

/// A younger connection may be one that the other side is just refusing.
const STANDS_AFTER: Duration = BACKOFF_MAX;

/// Most doublings of the hello timeout: 8 times the configured one.
const HELLO_DOUBLINGS_MAX: u32 = 3;

/// Failures in the first moments of a node are logged at debug level: the nodes of a cluster start
/// one after the other. The node that dials tries again within [`BACKOFF_MAX`], so a failure that
/// persists is warned about soon after. The end of a connection is warned about at any later time.
const WARNED_AFTER: Duration = Duration::from_secs(2);

/// Most failures that are logged until a connection lasts or [`FORGOTTEN_AFTER`] has passed;
/// further ones are not logged.
const LOGGED_MAX: usize = 8;

impl Peer {
    /// Returns the peer and the receiver of the connections that it dials.
    pub(crate) fn new(
        id: NodeId,
        addresses: Vec<String>,
        config: &QuicConfig,
    ) -> (Self, mpsc::Receiver<PeerLink>) {
        let (accepted, handed_over) = mpsc::channel(1);
        let address = shown_addresses(&addresses);
        let failure = if config.node_id < id {
            format!("connecting to node {id} at {address}")
        } else {
            format!("waiting for node {id} to connect from {address}")
        };
        let peer = Self {
            id,
            control: Mailbox::new(config.control_bytes_max),
            log: Mailbox::new(config.log_bytes_max),
            state: Mutex::new(PeerState {
                resolved: literals(&addresses),
                addresses,
                connection: None,
                failure,
                logged: BTreeSet::new(),
                logged_since: Instant::now(),
                started: Instant::now(),
                stood: true,
                announced: false,
                last: None,
                shown: None,
                hello_doublings: 0,
            }),
            accepted,
            left: watch::Sender::new(false),
            is_member: AtomicBool::new(false),
            readdressed: Notify::new(),
            has_shown: Notify::new(),
        };
        (peer, handed_over)
    }

    pub(crate) fn mailbox(&self, class: Class) -> &Mailbox {
        match class {
            Class::Control => &self.control,
            Class::Log => &self.log,
        }
    }

    fn state(&self) -> MutexGuard<'_, PeerState> {
        self.state.lock().expect("nothing panics while it holds a peer's state")
    }

    /// Queues the message or drops it.
    pub(crate) fn send(&self, message: Message) {
        let class = message.class();
        if self.mailbox(class).put(message) == (Put::Full { first: true }) {
            warn!(peer = self.id, ?class, "more waits for the peer than fits; dropping messages");
        }
    }

    /// The current connection, or the reason why there is none.
    pub(crate) fn connection(&self) -> Result<Connection, String> {
        let state = self.state();
        state.connection.clone().ok_or_else(|| state.failure.clone())
    }

    pub(crate) fn is_member(&self) -> bool {
        self.is_member.load(Ordering::Relaxed)
    }

    /// Notes that the peer is a member: its operator's file or the log names it.
    pub(crate) fn confirm(&self) {
        self.is_member.store(true, Ordering::Relaxed);
    }

    fn configured(&self) -> Vec<String> {
        self.state().addresses.clone()
    }

    /// Uses other addresses from the next attempt to connect on.
    pub(crate) fn set_addresses(&self, addresses: &[String]) {
        let mut state = self.state();
        if state.addresses != addresses {
            addresses.clone_into(&mut state.addresses);
            state.resolved = literals(addresses);
            drop(state);
            self.readdressed.notify_one();
        }
    }

    /// Notes from where the peer came to show its address: it is dialled there at once.
    pub(crate) fn note_address(&self, address: SocketAddr) {
        self.state().shown = Some(address);
        self.has_shown.notify_one();
    }

    /// Ends the peer's supervisor, because the peer is no longer a member.
    pub(crate) fn leave(&self) {
        self.left.send_replace(true);
    }

    /// Waits for [`Peer::leave`].
    pub(crate) async fn has_left(&self) {
        // Cannot fail: the sender lives in `self`.
        let _ = self.left.subscribe().wait_for(|left| *left).await;
    }

    /// Passes a connection that the peer has dialled to the supervisor. Waits while the supervisor
    /// has another one to take.
    pub(crate) async fn hand_over(&self, link: PeerLink) {
        // Fails only without a supervisor: then the node is closing, and so is the connection.
        let _ = self.accepted.send(link).await;
    }

    /// Returns true if the peer is known to listen at this address: its name resolves to it, or the
    /// peer has connected from it. (A node dials from the port at which it listens.)
    pub(crate) fn is_at(&self, address: SocketAddr) -> bool {
        let state = self.state();
        let known = [state.last, state.shown];
        known.contains(&Some(address)) || state.resolved.contains(&address)
    }

    /// Returns true if the peer is known to have this IP address.
    pub(crate) fn is_near(&self, ip: IpAddr) -> bool {
        let state = self.state();
        let mut known = state.resolved.iter().chain(&state.last).chain(&state.shown);
        known.any(|address| address.ip() == ip)
    }

    /// Looks up the peer's name again and again, for as long as the node lives. Without this, only
    /// the dialling side would know the peer's addresses.
    pub(crate) async fn keep_resolved(&self, names: &Names, endpoint: &Endpoint) {
        loop {
            let configured = self.configured();
            if literals(&configured).len() < configured.len() {
                // The dialling side reports failures.
                let _ = self.resolve(names, endpoint).await;
                let _ = timeout(RESOLVE_INTERVAL, self.readdressed.notified()).await;
            } else {
                self.readdressed.notified().await;
            }
        }
    }

    async fn resolve(&self, names: &Names, endpoint: &Endpoint) -> Result<Vec<SocketAddr>, String> {
        let configured = self.configured();
        let (mut found, mut failure) = (Vec::new(), "its address is not known yet".to_owned());
        for address in &configured {
            match timeout(RESOLVE_TIMEOUT, names.resolve(endpoint, address)).await {
                Ok(Ok(resolved)) => found.extend(resolved),
                Ok(Err(error)) => failure = error,
                Err(_) => failure = format!("looking up `{address}` takes too long"),
            }
        }
        if found.is_empty() {
            return Err(failure);
        }
        let mut state = self.state();
        if state.addresses == configured {
            state.resolved = found.iter().copied().map(canonical).collect();
        }
        drop(state);
        Ok(found)
    }

    /// The addresses to dial, at least one: those of the peer's names, and the one that it has
    /// shown.
    pub(crate) async fn addresses(
        &self,
        names: &Names,
        endpoint: &Endpoint,
    ) -> Result<Vec<SocketAddr>, String> {
        let resolved = self.resolve(names, endpoint).await;
        let Some(shown) = self.state().shown else { return resolved };
        let mut found = names.resolve(endpoint, &shown.to_string()).await?;
        found.splice(0..0, resolved.unwrap_or_default());
        found.dedup();
        Ok(found)
    }

    /// Timeout of the exchange of hellos with this peer.
    pub(crate) fn hello_patience(&self, config: &QuicConfig) -> Duration {
        config.hello_timeout * (1 << self.state().hello_doublings)
    }

    /// Doubles that timeout after a failed exchange, and resets it after a successful one.
    pub(crate) fn introduced(&self, has_succeeded: bool) {
        let mut state = self.state();
        state.hello_doublings =
            if has_succeeded { 0 } else { (state.hello_doublings + 1).min(HELLO_DOUBLINGS_MAX) };
    }

    /// Records why a connection was not established. Does nothing if there is another connection.
    pub(crate) fn failed(&self, failure: &str) {
        let mut state = self.state();
        if state.connection.is_some() {
            return;
        }
        failure.clone_into(&mut state.failure);
        if state.started.elapsed() < WARNED_AFTER {
            debug!(
                peer = self.id,
                address = shown_addresses(&state.addresses),
                "not connected: {failure}"
            );
            return;
        }
        if state.logged_since.elapsed() > FORGOTTEN_AFTER {
            state.logged.clear();
            state.logged_since = Instant::now();
        }
        if state.logged.len() < LOGGED_MAX && state.logged.insert(failure.to_owned()) {
            warn!(
                peer = self.id,
                address = shown_addresses(&state.addresses),
                "not connected: {failure}"
            );
        }
    }

    fn connected(&self, connection: &Connection) {
        self.control.open();
        self.log.open();
        let mut state = self.state();
        state.connection = Some(connection.clone());
        state.last = Some(canonical(connection.remote_address()));
        // If the last connection broke at once, this one may as well: it is logged when it has
        // lasted.
        if std::mem::take(&mut state.stood) {
            info!(peer = self.id, address = %connection.remote_address(), "connected");
            state.announced = true;
        }
    }

    /// Called when the connection has lasted [`STANDS_AFTER`]. Earlier failures are forgotten.
    fn stands(&self) {
        let mut state = self.state();
        let Some(connection) = &state.connection else { return };
        if !state.announced {
            info!(peer = self.id, address = %connection.remote_address(), "connected");
        }
        state.announced = true;
        state.stood = true;
        state.logged.clear();
    }

    fn disconnected(&self, failure: &str) {
        self.control.close();
        self.log.close();
        let mut state = self.state();
        state.connection = None;
        state.announced = false;
        drop(state);
        self.failed(failure);
    }
}

/// The addresses that need no look-up.
fn literals(addresses: &[String]) -> Vec<SocketAddr> {
    addresses.iter().filter_map(|address| address.parse().ok()).map(canonical).collect()
}

fn shown_addresses(addresses: &[String]) -> String {
    match addresses {
        [] => "an address that is not known yet".to_owned(),
        known => known.join(" or "),
    }
}

/// Maintains the connection to one peer. `running` outlives the futures of the methods, so that a
/// caller that cancels one can still close the connection in good order.
pub(crate) struct Supervisor<'a> {
    pub(crate) shared: &'a TransportShared,
    pub(crate) peer: &'a Arc<Peer>,
    pub(crate) running: Option<RunningLink>,
}

impl Supervisor<'_> {
    /// Dials the peer and runs the connection, again and again. Never returns.
    pub(crate) async fn dial(&mut self) {
        let mut pause = BACKOFF_MIN;
        let first_patience = self.shared.config.dial_timeout;
        let mut patience = first_patience;
        let peer = self.peer;
        let mut shown = false;
        for attempt in 0.. {
            let attempt =
                if std::mem::take(&mut shown) { Attempt::Shown } else { Attempt::Nth(attempt) };
            let dialled = tokio::select! {
                dialled = try_dial(self.shared, peer, patience, attempt) => dialled,
                () = peer.has_shown.notified() => {
                    shown = true;
                    continue;
                }
            };
            match dialled {
                Ok(link) => {
                    patience = first_patience;
                    let since = Instant::now();
                    self.start(link);
                    let reason = self.ended().await;
                    self.stop(close::PROTOCOL, &reason).await;
                    // A connection that broke at once counts as a failed attempt.
                    if since.elapsed() > BACKOFF_MAX {
                        pause = BACKOFF_MIN;
                    }
                }
                Err(failure) => {
                    self.peer.failed(&failure);
                    // The peer may be up, but distant or busy.
                    let patience_max = self.shared.config.dial_timeout_max;
                    patience = (2 * patience).min(patience_max).max(first_patience);
                }
            }
            shown = timeout(jittered(pause), peer.has_shown.notified()).await.is_ok();
            pause = (2 * pause).min(BACKOFF_MAX);
        }
    }

    /// Runs the connections that the peer dials; a new one replaces the current one. Returns when
    /// the channel is closed.
    pub(crate) async fn accept(&mut self, accepted: &mut mpsc::Receiver<PeerLink>) {
        let (shared, peer) = (self.shared, self.peer);
        let mut shown_count = 0;
        loop {
            let is_idle = self.running.is_none();
            let link = tokio::select! {
                link = accepted.recv() => match link {
                    Some(link) => link,
                    None => return,
                },
                reason = self.ended() => {
                    self.stop(close::PROTOCOL, &reason).await;
                    continue;
                }
                () = show_address(shared, peer, shown_count), if is_idle => {
                    shown_count += 1;
                    continue;
                }
            };
            if let Some(running) = &self.running {
                // The second incarnation is refused only while the first is connected. If the
                // process of the first is gone, its connection ends within the idle timeout.
                if link.incarnation != running.incarnation {
                    let told = format!("node {}: {ANOTHER_DIRECTORY}", peer.id);
                    shared.refusals.note(link.remote_ip(), Refused::Duplicate(peer.id), &told);
                    link.refuse(ANOTHER_DIRECTORY);
                    continue;
                }
                self.stop(close::REPLACED, "replaced by a newer connection").await;
            }
            self.start(link);
        }
    }

    fn start(&mut self, link: PeerLink) {
        self.peer.connected(&link.connection);
        self.running = Some(link.run(self.peer.clone(), self.shared.inbound.clone()));
    }

    /// Waits until the connection ends, and returns the reason. Never returns if there is none.
    async fn ended(&mut self) -> String {
        let Some(running) = &mut self.running else { return std::future::pending().await };
        let stands = running.since + STANDS_AFTER;
        if let Ok(reason) = timeout_at(stands, running.ended()).await {
            return reason;
        }
        self.peer.stands();
        running.ended().await
    }

    /// Closes the connection, if there is one, and reports the peer as unreachable.
    pub(crate) async fn stop(&mut self, code: quinn::VarInt, reason: &str) {
        let Some(running) = &mut self.running else { return };
        // `running` is cleared only after its tasks have ended: a caller that cancels this future
        // before calls again.
        running.stop(code, reason).await;
        self.running = None;
        self.peer.disconnected(reason);
        if let Some(inbound) = self.shared.inbound.current() {
            inbound.on_unreachable(self.peer.id);
        }
    }
}
