//! Requests and memory that a node holds for all of its clients together.
//!
//! Each connection has a small free part, so that a client with small requests makes progress
//! whatever the others do. Beyond it, received frames and unsent responses are charged to two
//! budgets that all connections share. A connection may hold only a fraction of the *free* response
//! budget, so that a crowd of clients that do not read never uses the budget up. The connections of
//! one certificate together have a bound as well ([`account`](super::account)).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::config::Limits;

/// Connections that have wide windows at one time; the others send and receive 64 KiB for each
/// round trip.
pub(super) const WIDE_CONNECTIONS_MAX: usize = 64;

/// Unit in which the budget of received bytes is counted.
const RECEIVE_UNIT_BYTES: usize = 1 << 10;

pub(super) struct Load {
    /// Requests read whose responses have not left. A response that is dropped, because its
    /// connection is gone, counts as left.
    open_count: AtomicUsize,
    /// Bytes of unsent and expected responses beyond the free part of each connection, summed over
    /// all connections.
    charged_bytes: AtomicU64,
    answer_bytes_max: u64,
    receive_budget: Arc<Semaphore>,
    /// All units of the receive budget.
    receive_units: usize,
    wide_places: Arc<Semaphore>,
    /// Notified when no request is open.
    quiet: Notify,
}

impl Load {
    pub(super) fn new(limits: &Limits) -> Arc<Self> {
        let receive_bytes_max = usize::try_from(limits.receive_bytes_max.0).unwrap_or(usize::MAX);
        let units = (receive_bytes_max / RECEIVE_UNIT_BYTES).min(Semaphore::MAX_PERMITS);
        assert!(units > 0, "the configuration was checked: the largest request fits");
        Arc::new(Self {
            open_count: AtomicUsize::new(0),
            charged_bytes: AtomicU64::new(0),
            answer_bytes_max: limits.answer_bytes_max.0,
            receive_budget: Arc::new(Semaphore::new(units)),
            receive_units: units,
            wide_places: Arc::new(Semaphore::new(WIDE_CONNECTIONS_MAX)),
            quiet: Notify::new(),
        })
    }

    /// Counts a request that was read.
    pub(super) fn open(&self) {
        self.open_count.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts requests whose responses have left.
    pub(super) fn settle(&self, count: usize) {
        let before = self.open_count.fetch_sub(count, Ordering::Relaxed);
        assert!(before >= count, "a request is counted before its response leaves");
        if before == count && count > 0 {
            self.quiet.notify_waiters();
        }
    }

    pub(super) fn receive_units(&self) -> usize {
        self.receive_units
    }

    /// Units of a budget of `units_max` that a frame takes.
    pub(super) fn receive_units_of(frame_bytes: usize, units_max: usize) -> u32 {
        // With a budget of the largest request, its frame header does not fit into the last unit. A
        // permit for more than the budget would never be granted, and keep all others waiting.
        let units = frame_bytes.div_ceil(RECEIVE_UNIT_BYTES).min(units_max);
        u32::try_from(units).expect("a frame is smaller than 4 GiB")
    }

    /// Waits for room to receive so many bytes; callers are served in order. Dropping the permit
    /// gives the room back.
    pub(super) async fn receive(&self, bytes: usize) -> OwnedSemaphorePermit {
        let units = Self::receive_units_of(bytes, self.receive_units);
        let permit = Arc::clone(&self.receive_budget).acquire_many_owned(units).await;
        permit.expect("the semaphore is never closed")
    }

    /// A place among the connections with wide windows, if one is free.
    pub(super) fn wide_place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.wide_places).try_acquire_owned().ok()
    }

    /// Changes a connection's charge: the bytes that it holds beyond its free part.
    pub(super) fn recharge(&self, from: u64, to: u64) {
        recharge(&self.charged_bytes, from, to);
    }

    /// Bytes of the budget of responses that no connection holds.
    pub(super) fn free_bytes(&self) -> u64 {
        self.answer_bytes_max.saturating_sub(self.charged_bytes.load(Ordering::Relaxed))
    }

    /// Returns true if no request is open.
    pub(super) fn is_quiet(&self) -> bool {
        self.open_count.load(Ordering::Relaxed) == 0
    }

    #[cfg(test)]
    pub(super) fn receive_budget_free_bytes(&self) -> usize {
        self.receive_budget.available_permits() * RECEIVE_UNIT_BYTES
    }

    #[cfg(test)]
    pub(super) fn charged_bytes(&self) -> u64 {
        self.charged_bytes.load(Ordering::Relaxed)
    }

    /// Waits for [`Load::is_quiet`].
    pub(super) async fn quiet(&self) {
        loop {
            let quiet = self.quiet.notified();
            tokio::pin!(quiet);
            // Registers before it checks, so that no change in between is missed.
            quiet.as_mut().enable();
            if self.is_quiet() {
                return;
            }
            quiet.await;
        }
    }
}

/// Changes the charge of one connection within a sum of charges.
pub(super) fn recharge(charged_bytes: &AtomicU64, from: u64, to: u64) {
    if to >= from {
        charged_bytes.fetch_add(to - from, Ordering::Relaxed);
    } else {
        let before = charged_bytes.fetch_sub(from - to, Ordering::Relaxed);
        assert!(before >= from - to, "a connection gives back what it holds");
    }
}
