//! News that every connection of a node passes on: who the members are, and that the server closes.
//!
//! Tasks are woken in the order in which they began to wait. A `watch` channel wakes them in an
//! order that differs from run to run, and runs of the simulated network with equal seeds would not
//! be equal.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::members::MemberList;

/// The latest news.
#[derive(Clone, Default)]
pub(super) struct Notices {
    /// The server is closed.
    pub(super) is_closed: bool,
    /// The members for clients.
    pub(super) members: Arc<MemberList>,
}

/// Where the node posts its news.
#[derive(Default)]
pub(super) struct NoticeBoard(Arc<Board>);

#[derive(Default)]
struct Board {
    posted: Mutex<Posted>,
    changed: Notify,
}

#[derive(Default)]
struct Posted {
    /// Counts the changes.
    number: u64,
    notices: Notices,
}

impl NoticeBoard {
    /// Returns a reader that has read nothing.
    pub(super) fn subscribe(&self) -> NoticeReader {
        NoticeReader { board: Arc::clone(&self.0), read: None }
    }

    /// Changes the news. Readers are woken if `modify` returns true.
    pub(super) fn post(&self, modify: impl FnOnce(&mut Notices) -> bool) {
        let mut posted = self.0.lock();
        if modify(&mut posted.notices) {
            posted.number += 1;
            drop(posted);
            self.0.changed.notify_waiters();
        }
    }
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, Posted> {
        self.posted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads the news of one node.
pub(super) struct NoticeReader {
    board: Arc<Board>,
    /// Number of the news that were read last.
    read: Option<u64>,
}

impl NoticeReader {
    /// Waits until there is something that was not read.
    pub(super) async fn changed(&self) {
        loop {
            // Made before the look: news that are posted after it are not missed.
            let changed = self.board.changed.notified();
            if Some(self.board.lock().number) != self.read {
                return;
            }
            changed.await;
        }
    }

    /// Reads the news.
    pub(super) fn read(&mut self) -> Notices {
        let posted = self.board.lock();
        self.read = Some(posted.number);
        posted.notices.clone()
    }

    /// Waits until the server is closed. Other news stay unread.
    pub(super) async fn closed(&self) {
        loop {
            let changed = self.board.changed.notified();
            if self.board.lock().notices.is_closed {
                return;
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[tokio::test]
    async fn readers_are_woken_in_the_order_in_which_they_wait() {
        let board = NoticeBoard::default();
        let woken: Arc<Mutex<Vec<u32>>> = Arc::default();
        let mut tasks = Vec::new();
        for number in 0..40 {
            let (mut reader, woken) = (board.subscribe(), Arc::clone(&woken));
            reader.read();
            tasks.push(tokio::spawn(async move {
                reader.changed().await;
                woken.lock().unwrap().push(number);
            }));
        }
        tokio::task::yield_now().await;
        board.post(|_| true);
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*woken.lock().unwrap(), (0..40).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn news_are_read_once_and_not_missed() {
        let board = NoticeBoard::default();
        let mut reader = board.subscribe();
        reader.changed().await;
        assert!(!reader.read().is_closed);
        board.post(|_| false);
        assert!(is_pending(reader.changed()));
        board.post(|notices| !std::mem::replace(&mut notices.is_closed, true));
        reader.changed().await;
        reader.closed().await;
        assert!(reader.read().is_closed);
        assert!(is_pending(reader.changed()), "it is read");
        reader.closed().await;
    }

    /// Returns true if the future is not ready at once.
    fn is_pending(future: impl Future<Output = ()>) -> bool {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        std::pin::pin!(future).poll(&mut context).is_pending()
    }
}
