//! The tasks beside the loop, none of which outlives the node.
//!
//! When [`Tasks`] is dropped, each task ends at its next wait. Work on a blocking thread cannot be
//! stopped, and is waited for: it holds a [`Token`], and the node has stopped only when the last
//! token is gone. So a caller that opens the same files again does not find them in use.

use tokio::sync::{mpsc, watch};

/// Held by each task that still runs. Dropped after everything else that the task holds.
#[derive(Clone)]
pub(super) struct Token {
    _running: mpsc::Sender<()>,
}

/// Waits for the tasks.
pub(super) struct Ended(mpsc::Receiver<()>);

impl Ended {
    /// Waits until all tasks have ended.
    pub(super) async fn wait(mut self) {
        let sent = self.0.recv().await;
        assert!(sent.is_none(), "the channel only counts its senders");
    }
}

pub(super) struct Tasks {
    token: Token,
    stop: watch::Sender<()>,
}

impl Tasks {
    pub(super) fn new() -> (Self, Ended) {
        let (running, ended) = mpsc::channel(1);
        let tasks = Self { token: Token { _running: running }, stop: watch::Sender::new(()) };
        (tasks, Ended(ended))
    }

    pub(super) fn token(&self) -> Token {
        self.token.clone()
    }

    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let token = self.token();
        let mut stop = self.stop.subscribe();
        tokio::spawn(async move {
            run_until_stopped(work, &mut stop).await;
            drop(token);
        });
    }
}

/// The work is dropped when this returns.
async fn run_until_stopped(work: impl Future<Output = ()>, stop: &mut watch::Receiver<()>) {
    tokio::select! {
        biased;
        () = work => {}
        // Nothing is ever sent: the channel only closes.
        _ = stop.changed() => {}
    }
}
