//! Waits for a leader, as the nodes themselves see the leadership.

use std::future::poll_fn;
use std::task::Poll;

use raft_core::driver::Leadership;
use raft_core::types::NodeId;
use tokio::sync::watch;

/// Waits until one of `nodes` leads and is followed by so many of them that they are a majority of
/// the `size` nodes of the cluster. Returns its id.
pub(super) async fn leader_of(
    mut nodes: Vec<(NodeId, watch::Receiver<Leadership>)>,
    size: usize,
) -> NodeId {
    loop {
        let seen: Vec<_> =
            nodes.iter_mut().map(|(id, watch)| (*id, *watch.borrow_and_update())).collect();
        for (id, leadership) in seen.iter().filter(|(_, seen)| seen.is_leader) {
            let follows = |(_, other): &&(NodeId, Leadership)| {
                (other.leader, other.term) == (Some(*id), leadership.term)
            };
            if seen.iter().filter(follows).count() * 2 > size {
                return *id;
            }
        }
        any_changed(nodes.iter_mut().map(|(_, watch)| watch)).await;
    }
}

/// Waits until one of these changes. The watch of a node that has stopped does not change again.
pub(super) async fn any_changed<'a, T: 'a>(
    watches: impl Iterator<Item = &'a mut watch::Receiver<T>>,
) {
    let mut changes: Vec<_> = watches.map(|watch| Box::pin(watch.changed())).collect();
    poll_fn(|context| {
        let mut place = 0;
        while let Some(change) = changes.get_mut(place) {
            match change.as_mut().poll(context) {
                Poll::Ready(Ok(())) => return Poll::Ready(()),
                Poll::Ready(Err(_)) => drop(changes.swap_remove(place)),
                Poll::Pending => place += 1,
            }
        }
        Poll::Pending
    })
    .await;
}
