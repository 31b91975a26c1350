//! Asks nodes until one answers or the deadline passes, and tracks whether the request may have
//! been executed.
//!
//! An attempt is *void* when the request surely had no effect: it was never sent, or a node said
//! so. Any other attempt without a response may have been executed. An operation that gives
//! up is reported as *not executed* only if none of its attempts may have been.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use raft_core::types::NodeId;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::connection::CallError;
use super::error::{ClientError, Reason};
use super::links::{Links, Reached};
use crate::protocol::{Rejection, Reply, RequestKind};

/// How long the first attempt waits for a response before another node is asked as well; later ones
/// wait twice as long each, up to [`PATIENCE_MAX`].
const PATIENCE: Duration = Duration::from_millis(500);
const PATIENCE_MAX: Duration = Duration::from_secs(4);
/// Pause between two attempts, with jitter; doubles up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_millis(4);
const PAUSE_MAX: Duration = Duration::from_millis(100);

const _: () = assert!(PATIENCE.as_millis() <= PATIENCE_MAX.as_millis());
const _: () = assert!(PAUSE.as_millis() <= PAUSE_MAX.as_millis());

/// The node that is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// The leader, as soon as it is known.
    Leader,
    /// The leader, where a read costs least; another node if the leader is busy.
    LeaderFirst,
    /// Any node, beginning with this one.
    Any(NodeId),
}

/// A final response, and whether an earlier attempt may have had an effect.
#[derive(Debug)]
pub(super) struct Completed {
    pub(super) reply: Reply,
    pub(super) maybe_executed: bool,
}

pub(super) struct Attempts<'a> {
    links: &'a Arc<Links>,
    target: Target,
    deadline: Instant,
    patience: Duration,
    pause: Duration,
    /// Set once a leader hint was followed, until the next pause. A hint may be stale, and two
    /// nodes with stale hints may name each other, so only one hint is followed without a pause.
    hinted: bool,
    /// Outcome of the last attempt, for the error of the operation.
    last: Cow<'static, str>,
    maybe_executed: bool,
    closing: bool,
}

/// The step after one attempt.
enum Next {
    Completed(Reply),
    /// Ask this or another node at once.
    Again,
    /// Ask again after a pause.
    Later,
}

impl<'a> Attempts<'a> {
    pub(super) fn new(links: &'a Arc<Links>, target: Target, deadline: Instant) -> Self {
        let last = Cow::Borrowed("none was made");
        let (patience, pause) = (PATIENCE, PAUSE);
        let (hinted, maybe_executed, closing) = (false, false, false);
        Self { links, target, deadline, patience, pause, hinted, last, maybe_executed, closing }
    }

    /// Lets the attempts proceed although the client is closed, to close its session.
    pub(super) fn in_closing(self) -> Self {
        assert!(self.links.is_closed(), "only a closed client closes its session");
        Self { closing: true, ..self }
    }

    /// Asks nodes until one settles the request.
    ///
    /// # Errors
    /// The deadline passed, the client was closed, or no node will ever accept this request.
    pub(super) async fn run(
        mut self,
        request: impl Fn() -> RequestKind,
    ) -> Result<Completed, ClientError> {
        loop {
            if self.links.is_closed() && !self.closing {
                return Err(self.failed(Reason::Closed));
            }
            let now = Instant::now();
            if now >= self.deadline {
                let last = std::mem::take(&mut self.last).into_owned();
                return Err(self.failed(Reason::Deadline { last }));
            }
            let next = match self.attempt(now, &request).await {
                Ok(reply) => self.judge(reply)?,
                Err(next) => next,
            };
            match next {
                Next::Completed(reply) => {
                    assert!(
                        !matches!(reply, Reply::Rejected(_) | Reply::Unknown(_)),
                        "only a response that settles the request completes it"
                    );
                    return Ok(Completed { reply, maybe_executed: self.maybe_executed });
                }
                Next::Again => {}
                Next::Later => self.rest().await,
            }
        }
    }

    fn node(&self) -> NodeId {
        match self.target {
            Target::Leader | Target::LeaderFirst => self.links.target(),
            Target::Any(node) => node,
        }
    }

    async fn attempt(
        &mut self,
        since: Instant,
        request: &impl Fn() -> RequestKind,
    ) -> Result<(NodeId, Reply), Next> {
        let node = self.node();
        // Nearly every request finds a live connection, and needs no timeout for connecting.
        let (connected_at, reached) = match self.links.reached(node) {
            Some(reached) => (since, reached),
            None => self.connect(node, since).await?,
        };
        // A response of a distant node takes at least a round trip.
        let patience = self.patience.max(reached.round_trip_patience());
        let until = self.deadline.min(connected_at + patience);
        let (why, void) = match timeout_at(until, reached.connection.call(request())).await {
            Ok(Ok(reply)) => {
                reached.note_answer();
                return Ok((node, reply));
            }
            Ok(Err(CallError::NotSent(why))) => (why, true),
            Ok(Err(CallError::Lost(why))) => (why, false),
            Err(_) => {
                self.patience = (2 * self.patience).min(PATIENCE_MAX);
                self.links.pass_over(node, since);
                ("it did not answer in time".to_owned(), false)
            }
        };
        self.maybe_executed |= !void;
        self.last = format!("node {node}: {why}").into();
        Err(self.turn_away(node))
    }

    /// Returns a connection to the node, and the time at which it was there.
    async fn connect(&mut self, node: NodeId, since: Instant) -> Result<(Instant, Reached), Next> {
        match timeout_at(self.deadline, self.links.reach(node)).await {
            Ok(Ok(reached)) => Ok((Instant::now(), reached)),
            Ok(Err(why)) => {
                self.last = format!("node {node} cannot be reached: {why}").into();
                self.links.pass_over(node, since);
                Err(self.turn_away(node))
            }
            Err(_) => {
                self.last = format!("node {node} could not be reached in time").into();
                Err(Next::Again)
            }
        }
    }

    /// Directs the next attempt to another node.
    fn turn_away(&mut self, node: NodeId) -> Next {
        match &mut self.target {
            Target::Leader | Target::LeaderFirst => self.links.turn_away_from(node),
            Target::Any(next) => *next = self.links.after(node),
        }
        Next::Later
    }

    fn judge(&mut self, (node, reply): (NodeId, Reply)) -> Result<Next, ClientError> {
        match reply {
            Reply::Rejected(Rejection::NotLeader { leader_id }) => {
                self.last = match leader_id {
                    Some(leader) => {
                        format!("node {node} does not lead, it says that node {leader} does").into()
                    }
                    None => format!("node {node} does not lead").into(),
                };
                match leader_id.filter(|leader| *leader != node) {
                    Some(leader) if self.links.aim_at(leader) => {
                        let first = !std::mem::replace(&mut self.hinted, true);
                        Ok(if first { Next::Again } else { Next::Later })
                    }
                    _ => Ok(self.turn_away(node)),
                }
            }
            Reply::Rejected(Rejection::Invalid(what)) => Err(self.failed(Reason::Invalid(what))),
            Reply::Rejected(Rejection::Busy(what)) => {
                self.last = format!("node {node} is busy: {what}").into();
                self.target = match self.target {
                    Target::Leader => Target::Leader,
                    Target::LeaderFirst | Target::Any(_) => Target::Any(self.links.after(node)),
                };
                Ok(Next::Later)
            }
            Reply::Rejected(Rejection::ShuttingDown) => {
                self.last = format!("node {node} is shutting down").into();
                Ok(self.turn_away(node))
            }
            Reply::Unknown(why) => {
                self.maybe_executed = true;
                self.last = format!("node {node}: {why}").into();
                Ok(self.turn_away(node))
            }
            Reply::SessionOpened { .. }
            | Reply::SessionClosed
            | Reply::Written(_)
            | Reply::Refused(_)
            | Reply::Answered(_)
            | Reply::Status(_)
            | Reply::Done(_)
            | Reply::Cluster(_)
            | Reply::Members(_) => Ok(Next::Completed(reply)),
        }
    }

    async fn rest(&mut self) {
        assert!(self.pause <= PAUSE_MAX && self.patience <= PATIENCE_MAX, "both are bounded");
        self.hinted = false;
        let pause = self.pause.mul_f32(self.links.rng.factor(0.5..1.5));
        self.pause = (2 * self.pause).min(PAUSE_MAX);
        sleep_until((Instant::now() + pause).min(self.deadline)).await;
    }

    fn failed(&self, reason: Reason) -> ClientError {
        if self.maybe_executed {
            ClientError::unknown(reason)
        } else {
            ClientError::not_executed(reason)
        }
    }
}
