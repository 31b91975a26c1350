//! The parts of all budgets that the connections of one certificate hold.
//!
//! One certificate may hold half of the budget for received frames and half of the places for wide
//! windows. Of the budget for responses it may hold no more than it leaves free, so that some
//! certificates together leave room for another one as well. Otherwise one client that stalls on
//! many connections would keep the large requests of all others waiting, and have their reads
//! answered `Busy`. Clients without a certificate, which are in this process, have no such bound.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::load::{Load, WIDE_CONNECTIONS_MAX, recharge};

/// One connection may hold this fraction, 1 / `SHARE`, of the free response budget.
const SHARE: u64 = 16;

/// The accounts of all certificates that have connections.
pub(super) struct Accounts {
    load: Arc<Load>,
    open: Mutex<HashMap<Bytes, Weak<Account>>>,
}

pub(super) struct Account {
    accounts: Arc<Accounts>,
    /// Identity of the certificate; empty for clients in this process.
    principal: Bytes,
    /// Bytes of responses with which these connections charge the budget of all.
    charged_bytes: AtomicU64,
    receive_budget: Arc<Semaphore>,
    /// All units of that budget.
    receive_units: usize,
    wide_places: Arc<Semaphore>,
}

/// A part of a budget, taken from that of the certificate and from that of all connections.
pub(super) struct Held {
    _own: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

impl Accounts {
    pub(super) fn new(load: Arc<Load>) -> Arc<Self> {
        Arc::new(Self { load, open: Mutex::default() })
    }

    /// The account of a certificate: one for all of its connections.
    pub(super) fn of(self: &Arc<Self>, principal: &Bytes) -> Arc<Account> {
        let mut open = self.lock();
        if let Some(account) = open.get(principal).and_then(Weak::upgrade) {
            return account;
        }
        let share = if principal.is_empty() { 1 } else { 2 };
        // The largest frame does not fit into half of the smallest budget; it is received alone.
        let receive_units = (self.load.receive_units() / share).max(1);
        let account = Arc::new(Account {
            accounts: Arc::clone(self),
            principal: principal.clone(),
            charged_bytes: AtomicU64::new(0),
            receive_budget: Arc::new(Semaphore::new(receive_units)),
            receive_units,
            wide_places: Arc::new(Semaphore::new(WIDE_CONNECTIONS_MAX / share)),
        });
        open.insert(principal.clone(), Arc::downgrade(&account));
        account
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Bytes, Weak<Account>>> {
        // Held for single steps only; none of them panics half-way.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Account {
    pub(super) fn load(&self) -> &Load {
        &self.accounts.load
    }

    /// Waits for room to receive so many bytes; callers are served in order. Dropping the result
    /// gives the room back.
    pub(super) async fn receive(&self, bytes: usize) -> Held {
        let units = Load::receive_units_of(bytes, self.receive_units);
        let own = Arc::clone(&self.receive_budget).acquire_many_owned(units).await;
        let own = own.expect("the semaphore is never closed");
        Held { _own: own, _of_all: self.load().receive(bytes).await }
    }

    /// A place among the connections with wide windows, if one is free.
    pub(super) fn wide_place(&self) -> Option<Held> {
        let own = Arc::clone(&self.wide_places).try_acquire_owned().ok()?;
        Some(Held { _own: own, _of_all: self.load().wide_place()? })
    }

    /// Changes a connection's charge: the bytes that it holds beyond its free part.
    pub(super) fn recharge(&self, from: u64, to: u64) {
        recharge(&self.charged_bytes, from, to);
        self.load().recharge(from, to);
    }

    /// Returns true if a connection that holds `held` bytes beyond its free part may hold `charge`.
    pub(super) fn is_within_share(&self, held: u64, charge: u64) -> bool {
        charge <= self.load().free_bytes() / SHARE && self.leaves_room(held, charge)
    }

    /// Returns true if a connection that holds `held` bytes beyond its free part may hold `charge`
    /// for its only response, so that a large one can be sent at all.
    pub(super) fn is_room_for_one(&self, held: u64, charge: u64) -> bool {
        charge <= self.load().free_bytes() / 2 && self.leaves_room(held, charge)
    }

    /// Returns true if the certificate would hold no more than it leaves free.
    fn leaves_room(&self, held: u64, charge: u64) -> bool {
        let more = charge.saturating_sub(held);
        let own = self.charged_bytes.load(Ordering::Relaxed);
        self.principal.is_empty() || own + more <= self.load().free_bytes().saturating_sub(more)
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let mut open = self.accounts.lock();
        // Another connection may have made a new account meanwhile.
        if open.get(&self.principal).is_some_and(|account| account.strong_count() == 0) {
            open.remove(&self.principal);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;
    use crate::config::Limits;
    use crate::config::units::ByteSize;

    const MINUTE: Duration = Duration::from_secs(60);

    fn principal(number: u8) -> Bytes {
        Bytes::copy_from_slice(&[number; 16])
    }

    fn accounts_with(limits: Limits) -> Arc<Accounts> {
        Accounts::new(Load::new(&limits))
    }

    /// S11. Frames that a client has begun on many connections keep no other client waiting.
    #[tokio::test(start_paused = true)]
    async fn half_of_the_receive_budget_is_left_to_others() {
        let receive_bytes_max = ByteSize(4 << 20);
        let accounts = accounts_with(Limits { receive_bytes_max, ..Limits::default() });
        let hostile = accounts.of(&principal(1));
        let mut held = Vec::new();
        while let Ok(room) = timeout(MINUTE, hostile.receive(1 << 20)).await {
            held.push(room);
        }
        assert_eq!(held.len(), 2);
        let again = accounts.of(&principal(1));
        assert!(timeout(MINUTE, again.receive(1 << 20)).await.is_err(), "the same certificate");
        let honest = accounts.of(&principal(2));
        let _first = timeout(MINUTE, honest.receive(1 << 20)).await.expect("there is room");
        let local = accounts.of(&Bytes::new());
        let _second = timeout(MINUTE, local.receive(1 << 20)).await.expect("there is room");
        drop(held);
        let _third = timeout(MINUTE, again.receive(1 << 20)).await.expect("room was given back");
    }

    /// A frame larger than half of the budget is received, too.
    #[tokio::test(start_paused = true)]
    async fn the_largest_frame_fits_into_a_share_of_the_smallest_budget() {
        let receive_bytes_max = ByteSize(1 << 20);
        let accounts = accounts_with(Limits { receive_bytes_max, ..Limits::default() });
        let account = accounts.of(&principal(1));
        drop(timeout(MINUTE, account.receive((1 << 20) + 4)).await.expect("there is room"));
        assert_eq!(accounts.load.receive_budget_free_bytes(), 1 << 20);
    }

    /// S11. Each of some hostile certificates takes what it may, and another one can still hold as
    /// much as it leaves free.
    #[test]
    fn certificates_that_take_all_they_may_leave_room_for_another() {
        let answer_bytes_max = ByteSize(64 << 20);
        let accounts = accounts_with(Limits { answer_bytes_max, ..Limits::default() });
        let hostile: Vec<_> = (1..=3).map(|id| accounts.of(&principal(id))).collect();
        for account in &hostile {
            while account.is_within_share(0, 10_000) {
                account.recharge(0, 10_000);
            }
        }
        assert!(
            accounts.load.free_bytes() >= 8 << 20,
            "{} bytes are free",
            accounts.load.free_bytes()
        );
        let honest = accounts.of(&principal(4));
        assert!(honest.is_within_share(0, 500_000));
        assert!(honest.is_room_for_one(0, 4 << 20));
        assert!(!hostile[0].is_room_for_one(0, 1));
        let local = accounts.of(&Bytes::new());
        assert!(local.is_room_for_one(0, 4 << 20));
    }

    /// S11. A client that moves much data on many connections leaves wide windows to others.
    #[test]
    fn half_of_the_wide_windows_are_left_to_others() {
        let accounts = accounts_with(Limits::default());
        let places = |number| -> Vec<Held> {
            let account = accounts.of(&principal(number));
            std::iter::from_fn(|| account.wide_place()).collect()
        };
        let (hostile, honest) = (places(1), places(2));
        assert_eq!(hostile.len(), WIDE_CONNECTIONS_MAX / 2);
        assert_eq!(honest.len(), WIDE_CONNECTIONS_MAX / 2);
        drop(hostile);
        assert_eq!(places(1).len(), WIDE_CONNECTIONS_MAX / 2);
    }

    #[test]
    fn an_account_lasts_as_long_as_its_connections() {
        let accounts = accounts_with(Limits::default());
        let first = accounts.of(&principal(1));
        let second = accounts.of(&principal(1));
        assert!(Arc::ptr_eq(&first, &second));
        drop(first);
        assert_eq!(accounts.lock().len(), 1);
        drop(second);
        assert!(accounts.lock().is_empty());
    }
}
