//! Passes requests to the node, and its results back as responses.

use std::sync::Arc;

use bytes::Bytes;
use raft_core::error::{ProposeError, Rejected};
use raft_core::state_machine::MachineResult;

use super::outbox::Outbox;
use super::room;
use super::shared::ServerShared;
use super::story::Stage;
use crate::protocol::operation::{Consistency, Expect, Nonce, Operation, Query};
use crate::protocol::{
    NodeStatus, PeerReachability, Rejection, Reply, RequestKind, UpgradeOrder, Versions, Write,
};
use crate::state::{
    Action, Command, MachineQuery, Opening, Output, QueryOutput, SESSION_ANSWER_BYTES_MAX,
    SESSION_WINDOW, WriteLimits,
};

impl ServerShared {
    /// Handles the request `id`: puts exactly one response to it into `outbox`, now or later.
    pub(super) fn handle(
        self: &Arc<Self>,
        kind: RequestKind,
        id: u64,
        principal: &Bytes,
        outbox: &Arc<Outbox>,
    ) {
        match kind {
            RequestKind::OpenSession => {
                let opening = self.opening(principal);
                self.propose(Action::OpenSession(opening), id, outbox);
            }
            RequestKind::CloseSession { session } => {
                self.propose(Action::CloseSession { session }, id, outbox);
            }
            RequestKind::Write(write) => {
                let Write { session, sequence, lowest_unanswered, operation } = *write;
                if let Err(rejection) = self.check_operation(&operation) {
                    return outbox.push(id, Reply::Rejected(rejection));
                }
                if self.room.is_low() && !matches!(operation, Operation::Delete { .. }) {
                    let low = Rejection::Busy(room::LOW.to_owned());
                    return outbox.push(id, Reply::Rejected(low));
                }
                let limits = WriteLimits {
                    key_bytes_max: self.config.limits.key_bytes_max.0,
                    value_bytes_max: self.config.limits.value_bytes_max.0,
                    answer_bytes_max: SESSION_ANSWER_BYTES_MAX,
                };
                let write =
                    Action::Write { session, sequence, lowest_unanswered, limits, operation };
                self.propose(write, id, outbox);
            }
            RequestKind::Read { query, consistency } => self.read(query, consistency, id, outbox),
            RequestKind::Status => outbox.push(id, Reply::Status(Box::new(self.status()))),
            RequestKind::Upgrade(order) => self.upgrade(order, id, outbox),
            RequestKind::Cluster => self.answer_members(id, outbox),
            RequestKind::ChangeMembers(order) => self.change_members(*order, id, outbox),
            RequestKind::TransferLeadership { to } => self.hand_over(to, id, outbox),
        }
    }

    /// The terms of a new session. The holders of one certificate may have half of all sessions, so
    /// that they cannot evict the sessions of all others (S9).
    fn opening(&self, principal: &Bytes) -> Opening {
        let sessions = &self.config.sessions;
        let quota =
            if principal.is_empty() { sessions.count_max } else { sessions.count_max.div_ceil(2) };
        assert!((1..=sessions.count_max).contains(&quota), "a checked configuration has sessions");
        assert!(!sessions.ttl.is_zero(), "a checked configuration lets sessions live");
        Opening {
            nonce: Nonce(self.rng.nonce()),
            ttl_ms: sessions.ttl.as_millis() as u64,
            window: SESSION_WINDOW,
            session_count_max: sessions.count_max,
            principal_session_count_max: quota,
            principal: principal.clone(),
        }
    }

    /// The cluster version in force, as far as this node knows. May lag behind the true version,
    /// and is never ahead of it.
    pub(super) fn cluster_version(&self) -> u32 {
        let (oldest, newest) = self.versions;
        self.node.cluster_version().clamp(oldest, newest)
    }

    fn upgrade(&self, order: UpgradeOrder, id: u64, outbox: &Arc<Outbox>) {
        let told = match order {
            UpgradeOrder::Hold => {
                self.upgrade.hold(true);
                "holds the cluster version until it restarts"
            }
            UpgradeOrder::Release => {
                self.upgrade.hold(false);
                "does not hold the cluster version; the delay begins anew"
            }
            UpgradeOrder::Finalize { above } => return self.finalize(above, id, outbox),
        };
        outbox.push(id, Reply::Done(told.to_owned()));
    }

    fn finalize(&self, above: u32, id: u64, outbox: &Arc<Outbox>) {
        let version = match self.upgrade.to_finalize(&self.node.status(), above) {
            Ok(version) => version,
            Err(rejection) => return outbox.push(id, Reply::Rejected(rejection)),
        };
        let (outbox, node) = (Arc::clone(outbox), self.node.clone());
        tokio::spawn(async move {
            let reply = match node.raise_cluster_version(version).await {
                Ok(_) => Reply::Done(format!("cluster version {version} comes into force")),
                Err(rejected) => Reply::Rejected(rejection(rejected)),
            };
            outbox.push(id, reply);
        });
    }

    fn propose(&self, action: Action, id: u64, outbox: &Arc<Outbox>) {
        let rules = self.cluster_version();
        let command = Command { rules, time_ms: self.clock.now_ms(), action };
        let needed = command.rules_min();
        if needed > rules {
            let text = format!(
                "needs cluster version {needed}, in force is {rules}: see `kv upgrade status`"
            );
            return outbox.push(id, Reply::Rejected(Rejection::Invalid(text)));
        }
        let outbox = Arc::clone(outbox);
        self.node.propose(command.encode(), move |result| {
            outbox.push(id, reply_to_proposal(result));
        });
    }

    fn read(&self, query: Query, consistency: Consistency, id: u64, outbox: &Arc<Outbox>) {
        if let Err(rejection) = self.check_query(&query) {
            return outbox.push(id, Reply::Rejected(rejection));
        }
        let linearizable = consistency == Consistency::Linearizable;
        let outbox = Arc::clone(outbox);
        self.node.query(MachineQuery::Read(query), linearizable, move |result| {
            if let Ok(Err(error)) = &result {
                outbox.damage().report(error);
            }
            outbox.push(id, reply_to_query(result));
        });
    }

    fn check_operation(&self, operation: &Operation) -> Result<(), Rejection> {
        match operation {
            Operation::Put { key, value } | Operation::Append { key, value } => {
                self.check_key(key.len())?;
                self.check_value(value.len())
            }
            Operation::Delete { key } => self.check_key(key.len()),
            Operation::CompareAndSwap { key, expect, value } => {
                self.check_key(key.len())?;
                if let Expect::Value(expected) = expect {
                    self.check_value(expected.len())?;
                }
                self.check_value(value.len())
            }
        }
    }

    fn check_query(&self, query: &Query) -> Result<(), Rejection> {
        match query {
            Query::Get { key } => self.check_key(key.len()),
            Query::Scan { start, end, limit } => {
                let longest = start.len().max(end.len());
                if *limit == 0 {
                    return Err(Rejection::Invalid(
                        "a page of a scan has at least 1 key".to_owned(),
                    ));
                }
                // A bound of a scan is often a key and one byte more.
                self.check_key(longest.saturating_sub(1).max(1))
            }
        }
    }

    fn check_key(&self, length: usize) -> Result<(), Rejection> {
        let limit = self.config.limits.key_bytes_max;
        if length == 0 {
            return Err(Rejection::Invalid("the key is empty".to_owned()));
        }
        if length as u64 > limit.0 {
            let text = format!("the key has {length} bytes, this cluster takes {limit}");
            return Err(Rejection::Invalid(text));
        }
        Ok(())
    }

    fn check_value(&self, length: usize) -> Result<(), Rejection> {
        let limit = self.config.limits.value_bytes_max;
        if length as u64 > limit.0 {
            let text = format!("the value has {length} bytes, this cluster takes {limit}");
            return Err(Rejection::Invalid(text));
        }
        Ok(())
    }

    pub(super) fn status(&self) -> NodeStatus {
        let status = self.node.status();
        let members = self.node.watch_members().borrow().configuration.members();
        let peers = members.into_iter().filter(|id| *id != status.id);
        let role = Stage::of(&status).role().unwrap_or(status.role.name());
        NodeStatus {
            id: status.id,
            pid: std::process::id(),
            role: role.to_owned(),
            term: status.term,
            leader_id: status.leader_id,
            commit_index: status.commit_index,
            last_applied: status.last_applied,
            last_index: status.last_index,
            log_bytes: status.log_bytes,
            snapshot_index: status.snapshot_index,
            peers: peers
                .map(|id| PeerReachability {
                    id,
                    error: self.transport.reachability(id).err().map(|error| error.to_string()),
                })
                .collect(),
            versions: Versions {
                program: env!("CARGO_PKG_VERSION").to_owned(),
                in_force: status.cluster_version,
                oldest: self.versions.0,
                newest: self.versions.1,
                upgrade: self.upgrade.policy_text().to_owned(),
            },
            waits_for: status.waits_for,
            is_majority_lost: status.is_majority_lost,
        }
    }
}

fn reply_to_proposal(result: Result<Output, ProposeError>) -> Reply {
    match result {
        Ok(Output::SessionOpened { session, window }) => Reply::SessionOpened { session, window },
        Ok(Output::SessionClosed) => Reply::SessionClosed,
        Ok(Output::Written(answer)) => Reply::Written(answer),
        Ok(Output::Refused(refusal)) => Reply::Refused(refusal),
        Err(ProposeError::Rejected(rejected)) => Reply::Rejected(rejection(rejected)),
        Err(ProposeError::Unknown(why)) => Reply::Unknown(why.to_owned()),
    }
}

fn reply_to_query(result: Result<MachineResult<QueryOutput>, Rejected>) -> Reply {
    match result {
        Ok(Ok(QueryOutput::Read(answer))) => Reply::Answered(answer),
        Ok(Ok(QueryOutput::ClockMs(_))) => {
            Reply::Unknown("the state machine answered out of place".to_owned())
        }
        Ok(Err(error)) => Reply::Unknown(format!("the state cannot be read: {error}")),
        Err(rejected) => Reply::Rejected(rejection(rejected)),
    }
}

pub(super) fn rejection(rejected: Rejected) -> Rejection {
    match rejected {
        Rejected::NotLeader { leader } => Rejection::NotLeader { leader_id: leader },
        Rejected::Busy(what) => Rejection::Busy(what.to_owned()),
        // The client says itself that it was not executed.
        Rejected::TooLarge { .. } | Rejected::Refused(_) => {
            let text = rejected.to_string();
            Rejection::Invalid(text.strip_prefix("not executed: ").unwrap_or(&text).to_owned())
        }
        // Another leader took over; this node knows it by now, or learns it soon.
        Rejected::Replaced => Rejection::NotLeader { leader_id: None },
        Rejected::ShuttingDown => Rejection::ShuttingDown,
    }
}
