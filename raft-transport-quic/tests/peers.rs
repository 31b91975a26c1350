//! Peers that know each other exchange messages.

mod common;


use common::{append, cluster, control};
use raft_core::transport::Transport;
use raft_core::types::Class;

#[tokio::test]
async fn two_exchange_messages_in_order_in_both_classes() {
    let nodes = cluster(2).await;
    for id in 0..1000 {
        nodes[0].send(2, control(id));
        nodes[0].send(2, append(id, &[10, 5000, 0]));
        nodes[1].send(1, control(id));
    }
    let seen = nodes[1].inbound.messages(2000).await;
    assert!(seen.iter().all(|(from, _)| *from == 1));
    let of = |class: Class| {
        seen.iter().map(|(_, message)| message).filter(move |message| message.class() == class)
    };
    assert!(of(Class::Control).eq(&(0..1000).map(control).collect::<Vec<_>>()));
    let appends: Vec<_> = (0..1000).map(|id| append(id, &[10, 5000, 0])).collect();
    assert!(of(Class::Log).eq(&appends));
    let back = nodes[0].inbound.messages(1000).await;
    assert!(back.into_iter().eq((0..1000).map(|id| (2, control(id)))));
    for node in &nodes {
        node.transport.close().await;
    }
}
