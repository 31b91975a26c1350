//! Responses on their way to one client.
//!
//! Responses that become ready together leave in one write. A client that does not take its
//! responses harms only itself. The node reads no further from it while too many requests or bytes
//! wait, and a read whose response does not fit into the connection's share of the budget is
//! answered `Busy` instead.
//!
//! A connection may hold [`FREE_BYTES`] whatever the others hold; the part beyond is charged to the
//! budget of all connections ([`Account`]). The responses of requests that were read are charged in
//! advance, since an executed write must be answered.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;
use tokio::sync::Notify;

use super::account::Account;
use super::damage::Damage;
use super::width::Width;
use crate::protocol::operation::Answer;
use crate::protocol::{Rejection, Reply, Response, push_frame};

/// While more bytes of responses wait, the node reads no further requests from the connection.
const UNSENT_BYTES_READ_ON: usize = 4 << 20;

/// Bytes of unsent responses that each connection may hold, whatever the others hold.
const FREE_BYTES: u64 = 16 << 10;

/// Bytes charged for a request that was read and is not answered yet: a response without a value.
const ANSWER_BYTES: u64 = 64;

/// Upper bound of a response's bytes for each record, beside the key and the value.
const RECORD_OVERHEAD_BYTES: usize = 64;

/// Capacity up to which a connection keeps an empty buffer.
const KEPT_BYTES: usize = 64 << 10;

/// A connection whose responses reach this size in one write is widened, if a place is free.
const WIDE_FROM_BYTES: usize = 64 << 10;

pub(super) struct Outbox {
    state: Mutex<OutboxState>,
    /// Notified when there is something to send, or the outbox is closed.
    pub(super) filled: Notify,
    /// Notified when responses have left, or the outbox is closed.
    settled: Notify,
    account: Arc<Account>,
    /// Where a query reports that it could not read the state.
    damage: Arc<Damage>,
    width: Width,
}

#[derive(Default)]
struct OutboxState {
    bytes: BytesMut,
    /// Bytes in `bytes`, and in what the writer has taken and not sent.
    unsent_bytes: usize,
    /// Requests that are answered in `bytes`.
    answered_count: usize,
    /// Requests read whose responses have not left.
    open_count: usize,
    /// Requests read that the node has not answered.
    unanswered_count: usize,
    /// Bytes that this connection has taken from the budget of all connections.
    charged_bytes: u64,
    closed: bool,
}

impl OutboxState {
    fn check(&self) {
        assert!(
            self.unanswered_count + self.answered_count <= self.open_count,
            "a response leaves after its request was answered"
        );
        assert!(
            !self.closed || self.open_count == self.unanswered_count,
            "a closed outbox waits only for the node"
        );
        assert!(
            self.closed || self.bytes.len() <= self.unsent_bytes,
            "bytes that wait are counted as unsent"
        );
    }

    /// Bytes of unsent and expected responses beyond [`FREE_BYTES`].
    fn charge(&self, unsent_bytes: usize, unanswered_count: usize) -> u64 {
        let expected_bytes = ANSWER_BYTES * unanswered_count as u64;
        (unsent_bytes as u64 + expected_bytes).saturating_sub(FREE_BYTES)
    }
}

/// Responses that the writer sends in one go.
pub(super) struct Sending {
    pub(super) bytes: BytesMut,
    answered_count: usize,
}

impl Outbox {
    pub(super) fn new(account: Arc<Account>, damage: Arc<Damage>, width: Width) -> Arc<Self> {
        let (state, filled, settled) = (Mutex::default(), Notify::new(), Notify::new());
        Arc::new(Self { state, filled, settled, account, damage, width })
    }

    pub(super) fn damage(&self) -> &Damage {
        &self.damage
    }

    pub(super) fn width(&self) -> &Width {
        &self.width
    }

    /// Counts a request that was read; its response follows. Returns true if another request may
    /// be read at once.
    pub(super) fn open(&self, open_max: usize) -> bool {
        self.account.load().open();
        let mut state = self.lock();
        state.open_count += 1;
        state.unanswered_count += 1;
        self.recharge(&mut state);
        self.has_room(&state, open_max)
    }

    /// Waits until another request may be read.
    pub(super) async fn room(&self, open_max: usize) {
        self.settle(|state| self.has_room(state, open_max)).await;
    }

    fn has_room(&self, state: &OutboxState, open_max: usize) -> bool {
        state.open_count < open_max
            && state.unsent_bytes <= UNSENT_BYTES_READ_ON
            // A charged connection has responses that are still to leave, and sending them wakes
            // the reader.
            && (state.charged_bytes == 0
                || self.account.is_within_share(state.charged_bytes, state.charged_bytes))
    }

    /// Waits until every response has left.
    pub(super) async fn emptied(&self) {
        self.settle(|state| state.open_count == 0).await;
    }

    /// Only the connection's reader waits here, so one permit is enough.
    async fn settle(&self, settled: impl Fn(&OutboxState) -> bool) {
        while !settled(&self.lock()) {
            self.settled.notified().await;
        }
    }

    /// Queues the response to a request that was opened.
    pub(super) fn push(&self, id: u64, reply: Reply) {
        {
            let mut state = self.lock();
            assert!(state.unanswered_count > 0, "a request is answered once");
            state.unanswered_count -= 1;
            if state.closed {
                state.open_count -= 1;
                self.account.load().settle(1);
            } else {
                state.answered_count += 1;
                // Decided before the response is encoded, so that a response that does not fit
                // takes no buffer either.
                let reply = if self.fits(&state, &reply) {
                    reply
                } else {
                    let busy = "too many responses wait to be sent".to_owned();
                    Reply::Rejected(Rejection::Busy(busy))
                };
                self.append(&mut state, &Response { id, reply });
            }
        }
        self.filled.notify_one();
    }

    /// Returns true if a response may be queued. A response that carries stored values, or a
    /// status, must fit into the connection's share; the others are small, and were charged when
    /// the request was read.
    fn fits(&self, state: &OutboxState, reply: &Reply) -> bool {
        let Some(bytes) = size_if_large(reply) else { return true };
        let charge = state.charge(state.unsent_bytes + bytes, state.unanswered_count);
        charge == 0
            || self.account.is_within_share(state.charged_bytes, charge)
            || state.unsent_bytes == 0 && self.account.is_room_for_one(state.charged_bytes, charge)
    }

    /// Queues a message that no request asked for.
    pub(super) fn push_unasked(&self, message: &impl serde::Serialize) {
        self.append(&mut self.lock(), message);
        self.filled.notify_one();
    }

    fn append(&self, state: &mut OutboxState, message: &impl serde::Serialize) {
        let before = state.bytes.len();
        push_frame(&mut state.bytes, message);
        state.unsent_bytes += state.bytes.len() - before;
        self.recharge(state);
    }

    fn recharge(&self, state: &mut OutboxState) {
        let charge =
            if state.closed { 0 } else { state.charge(state.unsent_bytes, state.unanswered_count) };
        if charge != state.charged_bytes {
            self.account.recharge(state.charged_bytes, charge);
            state.charged_bytes = charge;
        }
        state.check();
        assert!(!state.closed || state.charged_bytes == 0, "a closed outbox holds no budget");
    }

    /// Swaps the queued responses for an emptied buffer. Returns false once closed.
    pub(super) fn take(&self, sending: &mut Sending) -> bool {
        assert!(
            sending.bytes.is_empty() && sending.answered_count == 0,
            "responses that were taken were sent"
        );
        let mut state = self.lock();
        std::mem::swap(&mut state.bytes, &mut sending.bytes);
        sending.answered_count = std::mem::take(&mut state.answered_count);
        let is_open = !state.closed;
        drop(state);
        if sending.bytes.len() >= WIDE_FROM_BYTES {
            self.width.widen();
        }
        is_open
    }

    /// Counts the responses that were taken as sent.
    pub(super) fn sent(&self, sending: &mut Sending) {
        let bytes = sending.bytes.len();
        sending.bytes.clear();
        // Otherwise the connection would keep the buffer of one huge response until it ends.
        if sending.bytes.capacity() > KEPT_BYTES {
            sending.bytes = BytesMut::new();
        }
        let answered_count = std::mem::take(&mut sending.answered_count);
        let mut state = self.lock();
        if !state.closed {
            assert!(state.open_count >= answered_count, "responses belong to open requests");
            assert!(state.unsent_bytes >= bytes, "bytes that were taken are counted as unsent");
            state.open_count -= answered_count;
            state.unsent_bytes -= bytes;
            self.account.load().settle(answered_count);
            self.recharge(&mut state);
        }
        drop(state);
        self.settled.notify_one();
    }

    /// Closes the outbox, because the connection is gone. Responses are dropped from now on, also
    /// those that the writer had taken.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.bytes = BytesMut::new();
        (state.unsent_bytes, state.answered_count) = (0, 0);
        self.account.load().settle(state.open_count - state.unanswered_count);
        state.open_count = state.unanswered_count;
        self.recharge(&mut state);
        drop(state);
        self.filled.notify_one();
        self.settled.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, OutboxState> {
        // Held for single steps only; none of them panics half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Upper bound of the bytes of a response that carries stored values or a status; `None` for the
/// small ones, whose size the node alone decides.
fn size_if_large(reply: &Reply) -> Option<usize> {
    match reply {
        Reply::Answered(Answer::Get(None)) => Some(RECORD_OVERHEAD_BYTES),
        Reply::Answered(Answer::Get(Some(record))) => {
            Some(record.value.len() + RECORD_OVERHEAD_BYTES)
        }
        Reply::Answered(Answer::Scan(page)) => {
            let sizes = page
                .records
                .iter()
                .map(|(key, record)| key.len() + record.value.len() + RECORD_OVERHEAD_BYTES);
            let rest = page.continue_at.as_ref().map_or(0, |key| key.len());
            Some(sizes.sum::<usize>() + rest + RECORD_OVERHEAD_BYTES)
        }
        Reply::Status(status) => {
            let errors = status.peers.iter().filter_map(|peer| peer.error.as_ref());
            Some((1 + status.peers.len()) * 256 + errors.map(String::len).sum::<usize>())
        }
        Reply::Cluster(report) => {
            let errors = report.members.iter().filter_map(|member| member.error.as_ref());
            let described = report.members.len() * MEMBER_BYTES_MAX;
            Some(256 + described + errors.map(String::len).sum::<usize>())
        }
        Reply::SessionOpened { .. }
        | Reply::SessionClosed
        | Reply::Written(_)
        | Reply::Refused(_)
        | Reply::Done(_)
        | Reply::Members(_)
        | Reply::Rejected(_)
        | Reply::Unknown(_) => None,
    }
}

/// Upper bound of what the report of one member takes beside an error.
const MEMBER_BYTES_MAX: usize = 1024;

impl Sending {
    pub(super) fn new() -> Self {
        Self { bytes: BytesMut::new(), answered_count: 0 }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::config::Limits;
    use crate::config::units::ByteSize;
    use crate::protocol::FrameBuffer;
    use crate::protocol::operation::Record;
    use crate::server::account::Accounts;
    use crate::server::load::Load;

    fn outbox_of(answer_bytes_max: u64) -> (Arc<Load>, Arc<Outbox>) {
        let answer_bytes_max = ByteSize(answer_bytes_max);
        let load = Load::new(&Limits { answer_bytes_max, ..Limits::default() });
        let outbox = outbox_on(&load);
        (load, outbox)
    }

    fn outbox_on(load: &Arc<Load>) -> Arc<Outbox> {
        let account = Accounts::new(Arc::clone(load)).of(&Bytes::new());
        let width = Width::new(Arc::clone(&account), None);
        Outbox::new(account, Arc::default(), width)
    }

    fn answer_of(bytes: usize) -> Reply {
        let value = vec![7; bytes].into();
        let record = Record { value, version: 1, create_revision: 1, modify_revision: 1 };
        Reply::Answered(Answer::Get(Some(record)))
    }

    fn two_responses(sending: &Sending) -> [Response; 2] {
        let mut frames = FrameBuffer::with_limit(1 << 20);
        frames.input().extend_from_slice(&sending.bytes);
        [(); 2].map(|()| frames.next_message().unwrap().unwrap())
    }

    #[test]
    fn reads_beyond_the_budget_are_answered_busy_and_what_left_is_given_back() {
        let (load, outbox) = outbox_of(320_000);
        for (id, size) in [(1, 20_000), (2, 40_000)] {
            outbox.open(usize::MAX);
            outbox.push(id, answer_of(size));
        }
        let mut sending = Sending::new();
        assert!(outbox.take(&mut sending));
        let [first, second] = two_responses(&sending);
        assert_eq!(first, Response { id: 1, reply: answer_of(20_000) });
        assert!(matches!(second.reply, Reply::Rejected(Rejection::Busy(_))), "{second:?}");
        assert_eq!(outbox.lock().open_count, 2);
        outbox.sent(&mut sending);
        assert_eq!(outbox.lock().open_count, 0);
        assert!(load.is_quiet());
    }

    #[test]
    fn a_closed_connection_gives_everything_back() {
        let (load, outbox) = outbox_of(1 << 20);
        outbox.open(usize::MAX);
        outbox.push(1, answer_of(20_000));
        // The writer had begun when the connection broke.
        let mut sending = Sending::new();
        assert!(outbox.take(&mut sending));
        outbox.open(usize::MAX);
        outbox.push(3, answer_of(20_000));
        outbox.close();
        outbox.open(usize::MAX);
        outbox.push(2, answer_of(20_000));
        assert!(load.is_quiet());
        assert_eq!(load.charged_bytes(), 0);
        assert!(!outbox.take(&mut Sending::new()));
    }

    /// S11. Responses of writes are charged too, before the writes are executed: the node stops
    /// reading from a client that reads none of them, while small requests of another client go on.
    #[tokio::test]
    async fn unanswered_and_unsent_writes_are_charged() {
        let (load, outbox) = outbox_of(160_000);
        let is_within = || outbox.has_room(&outbox.lock(), usize::MAX);
        let mut opened = 0;
        while is_within() {
            outbox.open(usize::MAX);
            opened += 1;
        }
        assert!(opened < 1000, "{opened} requests were read");
        for id in 0..opened {
            outbox.push(id, Reply::SessionClosed);
        }
        let unsent_bytes = outbox.lock().unsent_bytes as u64;
        assert!(unsent_bytes <= opened * ANSWER_BYTES, "the charge in advance covers a response");
        outbox.close();
        assert_eq!(load.charged_bytes(), 0);
    }

    /// S11. A crowd that reads nothing leaves room for the responses of another client.
    #[test]
    fn a_crowd_does_not_use_the_budget_up() {
        let load = Load::new(&Limits { answer_bytes_max: ByteSize(32 << 20), ..Limits::default() });
        let crowd: Vec<_> = (0..1000).map(|_| outbox_on(&load)).collect();
        for id in 0..50 {
            for outbox in &crowd {
                outbox.open(usize::MAX);
                outbox.push(id, answer_of(100_000));
            }
        }
        // Rejections are charged on top: in a node the reader would have stopped long before.
        assert!(load.charged_bytes() <= (32 << 20) + 1000 * 50 * ANSWER_BYTES);
        let other = outbox_on(&load);
        for id in 0..10 {
            other.open(usize::MAX);
            other.push(id, answer_of(1000));
        }
        let mut sending = Sending::new();
        other.take(&mut sending);
        assert!(sending.bytes.len() > 10_000, "all ten are responses with values");
        // A response that was rejected has left no buffer behind.
        let kept: usize = crowd.iter().map(|outbox| outbox.lock().bytes.capacity()).sum();
        assert!(kept < 2 * (32 << 20) + 1000 * 2 * (64 << 10), "{kept} bytes are kept");
    }

    /// S11. While the budget is used up, a connection has its free part: small responses fit.
    #[test]
    fn small_responses_need_no_budget() {
        let (load, outbox) = outbox_of(1 << 20);
        load.recharge(0, 1 << 20);
        for (id, size) in [(1, 100), (2, 20_000)] {
            outbox.open(usize::MAX);
            outbox.push(id, answer_of(size));
        }
        let mut sending = Sending::new();
        outbox.take(&mut sending);
        let [first, second] = two_responses(&sending);
        assert_eq!(first, Response { id: 1, reply: answer_of(100) });
        assert!(matches!(second.reply, Reply::Rejected(Rejection::Busy(_))), "{second:?}");
    }
}
