//! One peer: where it is, what waits for it, whether it can be reached, and who sees to its
//! connection.
//!
//! Of a pair, the node with the lower id dials, so there is one connection and nobody has to choose
//! between two. The supervisor is the only task that replaces the connection. On the dialling side
//! it tries again, with growing pauses, for as long as the node lives; on the other side it waits for
//! the next connection that [`crate::accept`] hands over.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use quinn::Connection;
use raft_core::types::{Class, Message, NodeId};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{info, warn};

use crate::config::{BACKOFF_MAX, BACKOFF_MIN, DIAL_TIMEOUT_MAX, HELLO_TIMEOUT, QuicConfig};
use crate::endpoint::resolve;
use crate::error::{close, describe};
use crate::link::{Link, RunningLink};
use crate::mailbox::{Mailbox, Put};
use crate::protocol::{Spoken, agreed};
use crate::shared::{FORGOTTEN_AFTER, Refused, Shared};
use crate::tls::{Identity, node_name};

/// Told to a node that dials while another one of its name is connected.
const ANOTHER_DIRECTORY: &str =
    "another directory of the same node is running, and is connected; stop one of them";

/// What all tasks know of one peer.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) id: NodeId,
    pub(crate) address: String,
    control: Mailbox,
    log: Mailbox,
    state: Mutex<State>,
    /// To the supervisor: connections that the peer dialled.
    accepted: mpsc::Sender<Link>,
}

#[derive(Debug)]
struct State {
    connection: Option<Connection>,
    /// Why there is none.
    failure: String,
    /// The failures that were logged, so that each is logged once and not per attempt.
    logged: BTreeSet<String>,
    /// Forgotten from time to time.
    logged_since: Instant,
    /// The connection that stands, or else the last one, stands long enough to be worth a line.
    stood: bool,
    /// From where it connected last; its certificate has proven it.
    last_ip: Option<IpAddr>,
    /// The log says that it stands.
    announced: bool,
}

/// Before it, a connection may be one that the other side is just refusing.
const STANDS_AFTER: Duration = BACKOFF_MAX;

/// Failures that are logged until a connection stands or [`FORGOTTEN_AFTER`] is over; others are not.
const LOGGED_MAX: usize = 8;

impl Peer {
    /// And where accepted connections come out.
    pub(crate) fn new(
        id: NodeId,
        address: String,
        config: &QuicConfig,
    ) -> (Self, mpsc::Receiver<Link>) {
        let (accepted, handed_over) = mpsc::channel(1);
        let failure = if config.node_id < id {
            format!("connecting to node {id} at {address}")
        } else {
            format!("waiting for node {id} to connect from {address}")
        };
        let peer = Self {
            id,
            address,
            control: Mailbox::new(config.control_bytes_max),
            log: Mailbox::new(config.log_bytes_max),
            state: Mutex::new(State {
                connection: None,
                failure,
                logged: BTreeSet::new(),
                logged_since: Instant::now(),
                stood: true,
                announced: false,
                last_ip: None,
            }),
            accepted,
        };
        (peer, handed_over)
    }

    pub(crate) fn mailbox(&self, class: Class) -> &Mailbox {
        match class {
            Class::Control => &self.control,
            Class::Log => &self.log,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds a peer's state")
    }

    /// Takes the message or drops it.
    pub(crate) fn send(&self, message: Message) {
        let class = message.class();
        if self.mailbox(class).put(message) == (Put::Full { first: true }) {
            warn!(peer = self.id, ?class, "more waits for the peer than fits; dropping messages");
        }
    }

    /// The connection that stands, or why none does.
    pub(crate) fn connection(&self) -> Result<Connection, String> {
        let state = self.state();
        state.connection.clone().ok_or_else(|| state.failure.clone())
    }

    /// Hands over a connection that the peer has dialled. Waits for the supervisor.
    pub(crate) async fn hand_over(&self, link: Link) {
        // Without a supervisor the node is closing, and so is the connection.
        let _ = self.accepted.send(link).await;
    }

    /// Whether the peer is known to be at this IP address: it is configured, or it connected from there.
    pub(crate) fn is_at(&self, ip: IpAddr) -> bool {
        let configured = self.address.parse().ok().map(|at: SocketAddr| at.ip().to_canonical());
        configured == Some(ip) || self.state().last_ip == Some(ip)
    }

    /// Notes why a connection did not come about. One that stands is not touched by that.
    pub(crate) fn failed(&self, failure: &str) {
        let mut state = self.state();
        if state.connection.is_some() {
            return;
        }
        failure.clone_into(&mut state.failure);
        if state.logged_since.elapsed() > FORGOTTEN_AFTER {
            state.logged.clear();
            state.logged_since = Instant::now();
        }
        if state.logged.len() < LOGGED_MAX && state.logged.insert(failure.to_owned()) {
            warn!(peer = self.id, address = self.address, "not connected: {failure}");
        }
    }

    fn connected(&self, connection: &Connection) {
        self.control.open();
        self.log.open();
        let mut state = self.state();
        state.connection = Some(connection.clone());
        state.last_ip = Some(connection.remote_address().ip().to_canonical());
        // Where the last one broke at once, this may be one more of that kind.
        if std::mem::take(&mut state.stood) {
            info!(peer = self.id, address = %connection.remote_address(), "connected");
            state.announced = true;
        }
    }

    /// The connection is one that lasts. What went wrong before it is over.
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

/// Keeps the connection to one peer. `running` outlives the future, so that whoever cancels it can
/// still stop the connection in good order.
pub(crate) struct Supervisor<'a> {
    pub(crate) shared: &'a Shared,
    pub(crate) peer: &'a Peer,
    pub(crate) running: Option<RunningLink>,
}

impl Supervisor<'_> {
    /// Dials, for ever.
    pub(crate) async fn dial(&mut self) {
        let mut pause = BACKOFF_MIN;
        let first_patience = self.shared.config.dial_timeout;
        let mut patience = first_patience;
        loop {
            match self.try_dial(patience).await {
                Ok(link) => {
                    patience = first_patience;
                    let since = Instant::now();
                    self.start(link);
                    let reason = self.ended().await;
                    self.stop(close::PROTOCOL, &reason).await;
                    // One that broke at once is no better than an attempt that failed.
                    if since.elapsed() > BACKOFF_MAX {
                        pause = BACKOFF_MIN;
                    }
                }
                Err(failure) => {
                    self.peer.failed(&failure);
                    // It may be up, and far away or busy. Whoever wants more patience has it.
                    patience = (2 * patience).min(DIAL_TIMEOUT_MAX).max(first_patience);
                }
            }
            sleep(jittered(pause)).await;
            pause = (2 * pause).min(BACKOFF_MAX);
        }
    }

    async fn try_dial(&self, patience: Duration) -> Result<Link, String> {
        let Shared { opened, config, .. } = self.shared;
        let endpoint = &opened.endpoint;
        let to = timeout(HELLO_TIMEOUT, resolve(endpoint, &self.peer.address))
            .await
            .map_err(|_| format!("looking up `{}` takes too long", self.peer.address))??;
        let name = node_name(&config.cluster_id, self.peer.id);
        let connecting = endpoint
            .connect_with(self.shared.peer_client.clone(), to, &name)
            .map_err(|error| format!("cannot dial: {error}"))?;
        let connection = timeout(patience, connecting)
            .await
            .map_err(|_| describe(&quinn::ConnectionError::TimedOut))?
            .map_err(|error| describe(&error))?;
        let (_, alpn) = Identity::of_connection(&connection, &config.cluster_id)?;
        let spoken = agreed(&config.peer_protocols, &alpn)?;
        let Spoken::Peer(protocol) = spoken else {
            return Err("it has chosen the client protocol; run equal versions".to_owned());
        };
        Link::establish(self.shared, connection, self.peer.id, protocol).await
    }

    /// Runs what the peer dialled, always the newest, for ever.
    pub(crate) async fn accept(&mut self, accepted: &mut mpsc::Receiver<Link>) {
        loop {
            let link = tokio::select! {
                link = accepted.recv() => match link {
                    Some(link) => link,
                    None => return,
                },
                reason = self.ended() => {
                    self.stop(close::PROTOCOL, &reason).await;
                    continue;
                }
            };
            if let Some(running) = &self.running {
                // While it lives: if its process is gone, it ends within the idle timeout.
                if link.incarnation != running.incarnation {
                    let Self { shared, peer, .. } = self;
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

    fn start(&mut self, link: Link) {
        self.peer.connected(&link.connection);
        self.running = Some(link.run(self.shared.peer(self.peer.id), self.shared.inbound.clone()));
    }

    /// Waits until the connection is of no more use, and says why. For ever without one.
    async fn ended(&mut self) -> String {
        let Some(running) = &mut self.running else { return std::future::pending().await };
        let stands = running.since + STANDS_AFTER;
        if let Ok(reason) = timeout_at(stands, running.ended()).await {
            return reason;
        }
        self.peer.stands();
        running.ended().await
    }

    /// Ends the connection, if there is one, and tells those who count on it.
    pub(crate) async fn stop(&mut self, code: quinn::VarInt, reason: &str) {
        let Some(running) = &mut self.running else { return };
        // Taken only when nothing runs any more: whoever cancels this future in between calls again.
        running.stop(code, reason).await;
        self.running = None;
        self.peer.disconnected(reason);
        if let Some(inbound) = self.shared.inbound.current() {
            inbound.on_unreachable(self.peer.id);
        }
    }
}

/// Between half of it and all of it, so that two nodes do not keep missing each other in step.
fn jittered(pause: Duration) -> Duration {
    let chance = getrandom::u32().unwrap_or(0);
    pause / 2 + pause.mul_f64(0.5 * f64::from(chance) / f64::from(u32::MAX))
}
