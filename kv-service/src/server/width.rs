//! The flow-control windows of one connection: small at first, wide for some connections that need
//! it.
//!
//! A window's bytes are memory of the node for as long as the other side does not read, or the node
//! does not. So only as many connections are widened as [`Load`] has places for. A connection keeps
//! its place until it ends, because credit that was given to the other side cannot be taken back.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OwnedSemaphorePermit;

use super::load::Load;

pub(super) struct Width {
    load: Arc<Load>,
    state: Mutex<WidthState>,
}

struct WidthState {
    /// Taken when the connection is widened; `None` from the start if its windows are fixed.
    widen: Option<Box<dyn FnOnce() + Send>>,
    place: Option<OwnedSemaphorePermit>,
}

impl Width {
    pub(super) fn new(load: Arc<Load>, widen: Option<Box<dyn FnOnce() + Send>>) -> Self {
        Self { load, state: Mutex::new(WidthState { widen, place: None }) }
    }

    /// Widens a connection that moves much data, if it is not wide yet and a place is free.
    pub(super) fn widen(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.widen.is_none() {
            return;
        }
        let Some(place) = self.load.wide_place() else { return };
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

    use super::*;
    use crate::config::Limits;

    /// S11. Wide windows are bounded in number, and a place is free again when a connection ends.
    #[test]
    fn only_so_many_connections_are_wide() {
        let load = Load::new(&Limits::default());
        let widened = Arc::new(AtomicUsize::new(0));
        let width = || {
            let widened = Arc::clone(&widened);
            let widen = move || {
                widened.fetch_add(1, Ordering::Relaxed);
            };
            let width = Width::new(Arc::clone(&load), Some(Box::new(widen)));
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
