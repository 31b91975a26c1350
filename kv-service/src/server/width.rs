//! The flow-control windows of one connection: small at first, wide for some connections that need
//! it.
//!
//! A window's bytes are memory of the node for as long as the other side does not read, or the node
//! does not. So only as many connections are widened as there are places ([`Account`]). Each keeps
//! its place until it ends, because credit that was given to the other side cannot be taken back.

use std::sync::{Arc, Mutex, PoisonError};

use super::account::{Account, Held};

pub(super) struct Width {
    account: Arc<Account>,
    state: Mutex<WidthState>,
}

struct WidthState {
    /// Taken when the connection is widened; `None` from the start if its windows are fixed.
    widen: Option<Box<dyn FnOnce() + Send>>,
    place: Option<Held>,
}

impl Width {
    pub(super) fn new(account: Arc<Account>, widen: Option<Box<dyn FnOnce() + Send>>) -> Self {
        Self { account, state: Mutex::new(WidthState { widen, place: None }) }
    }

    /// Widens a connection that moves much data, if it is not wide yet and a place is free.
    pub(super) fn widen(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.widen.is_none() {
            return;
        }
        let Some(place) = self.account.wide_place() else { return };
        assert!(state.place.is_none(), "a connection is widened once");
        state.place = Some(place);
        if let Some(widen) = state.widen.take() {
            widen();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use bytes::Bytes;

    use super::*;
    use crate::config::Limits;
    use crate::server::account::Accounts;
    use crate::server::load::Load;

    /// S11. Wide windows are bounded in number, and a place is free again when a connection ends.
    #[test]
    fn only_so_many_connections_are_wide() {
        let accounts = Accounts::new(Load::new(&Limits::default()));
        let widened = Arc::new(AtomicUsize::new(0));
        let width = || {
            let widened = Arc::clone(&widened);
            let widen = move || {
                widened.fetch_add(1, Ordering::Relaxed);
            };
            let width = Width::new(accounts.of(&Bytes::new()), Some(Box::new(widen)));
            width.widen();
            width.widen();
            width
        };
        let mut widths: Vec<Width> = (0..100).map(|_| width()).collect();
        assert_eq!(widened.load(Ordering::Relaxed), 64);
        widths.remove(0);
        widths[98].widen();
        assert_eq!(widened.load(Ordering::Relaxed), 65);
    }
}
