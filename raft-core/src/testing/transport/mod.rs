//! The contract of [`Transport`] as a suite, with which any transport can be proven.
//!
//! Write a [`Net`] for the transport and call [`all`] from a test, or each claim from a test of its
//! own. The claims are about a healthy network with nodes that come and go; they hold on a paused
//! clock and on a real one. A claim that does not hold panics and says which.
//!
//! Messages may be lost: the suite sends each one again until it arrives, and checks order,
//! identity and bounds of those that arrive. It waits for conditions, and for none longer than
//! [`PATIENCE`].

mod bulk;
mod messages;
mod peers;
mod recorder;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::transport::Transport;
use crate::types::{Class, NodeId};

pub use bulk::{
    bulk_carries_frames_both_ways, bulk_dropped_unfinished_is_an_error_at_the_other_side,
    bulk_refuses_frames_of_wrong_size, bulk_to_nobody_fails, bulk_waits_for_its_reader,
};
pub use messages::{
    a_flood_to_nobody_neither_waits_nor_grows, control_is_not_held_up_by_log,
    messages_of_a_class_stay_in_order, messages_of_all_kinds_arrive_unchanged,
    the_largest_entry_arrives,
};
pub use peers::{
    a_closed_transport_hears_nothing, a_restarted_peer_is_noticed_and_heard_again,
    reachability_tells_who_is_there, the_sender_is_who_it_is,
};

/// The longest wait for anything that has to happen, by tokio's clock: 60 seconds.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A network of the transport under test: nodes 1, 2 and 3, each knowing where the others are.
#[async_trait]
pub trait Net: Send + Sync {
    /// Returns the transport of a node that has none yet. The suite starts it.
    async fn transport(&self, node: NodeId) -> Arc<dyn Transport>;

    /// Ends the node's transport, as a restart of the process does, and gives it a new one in the
    /// same place.
    async fn restart(&self, node: NodeId) -> Arc<dyn Transport>;

    /// The limit of the mailbox for one peer and class, in bytes as
    /// [`Message::size_bytes`](crate::types::Message::size_bytes) counts them.
    fn mailbox_bytes_max(&self, class: Class) -> u64;
}

/// Checks every claim, each in a network of its own.
///
/// # Panics
/// If a claim does not hold; the text names it.
pub async fn all<N: Net>(new_net: impl AsyncFn() -> N) {
    messages_of_all_kinds_arrive_unchanged(&new_net().await).await;
    messages_of_a_class_stay_in_order(&new_net().await).await;
    control_is_not_held_up_by_log(&new_net().await).await;
    a_flood_to_nobody_neither_waits_nor_grows(&new_net().await).await;
    the_largest_entry_arrives(&new_net().await).await;
    the_sender_is_who_it_is(&new_net().await).await;
    reachability_tells_who_is_there(&new_net().await).await;
    a_restarted_peer_is_noticed_and_heard_again(&new_net().await).await;
    a_closed_transport_hears_nothing(&new_net().await).await;
    bulk_carries_frames_both_ways(&new_net().await).await;
    bulk_refuses_frames_of_wrong_size(&new_net().await).await;
    bulk_waits_for_its_reader(&new_net().await).await;
    bulk_dropped_unfinished_is_an_error_at_the_other_side(&new_net().await).await;
    bulk_to_nobody_fails(&new_net().await).await;
}
