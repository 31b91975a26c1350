//! Claims about peers: identity, restart, reachability, close.

use super::Net;
use super::recorder::{Heard, Host, heartbeat, in_time};

/// A message is delivered with the id of the node that sent it.
pub async fn the_sender_is_who_it_is(net: &impl Net) {
    let (one, two) = Host::pair(net).await;
    let three = Host::of(net, 3).await;
    three.meet(&one, 0).await;
    three.meet(&two, 0).await;
    let send = || {
        one.transport.send(3, heartbeat(1));
        two.transport.send(3, heartbeat(2));
    };
    let both = |heard: &mut Heard| {
        let is = |from, round| heard.messages.contains(&(from, heartbeat(round)));
        (is(1, 1) && is(2, 2)).then_some(())
    };
    three.until_heard_from("messages of two peers", send, both).await;
    for (from, message) in &three.heard().messages {
        assert_eq!(*message, heartbeat(*from), "the sender is taken for another");
    }
}

/// `reachability` is an error with a text for a node that does not run, and `Ok` once its messages
/// arrive.
pub async fn reachability_tells_who_is_there(net: &impl Net) {
    let one = Host::of(net, 1).await;
    let error = one.transport.reachability(2).expect_err("nobody is there yet");
    assert!(!error.to_string().trim().is_empty(), "the text is for an operator");
    let other = Host::of(net, 2).await;
    one.meet(&other, 0).await;
    for (host, peer) in [(&one, 2), (&other, 1)] {
        let send = || host.transport.send(peer, heartbeat(0));
        let reachable = |_: &mut Heard| host.transport.reachability(peer).ok();
        host.until_heard_from("a node that was heard is reachable", send, reachable).await;
    }
    other.transport.close().await;
    let send = || one.transport.send(2, heartbeat(0));
    let unreachable = |_: &mut Heard| one.transport.reachability(2).err();
    let error =
        one.until_heard_from("a node that closed is not reachable", send, unreachable).await;
    assert!(!error.to_string().trim().is_empty(), "the text is for an operator");
}

/// When a peer restarts, the other nodes are told that it was unreachable, and streams to it break.
/// Then messages flow again in both directions by themselves.
pub async fn a_restarted_peer_is_noticed_and_heard_again(net: &impl Net) {
    let (one, other) = Host::pair(net).await;
    for round in 1..=3 {
        let newest = if round == 1 { None } else { Some(Host::started(2, net.restart(2).await)) };
        let peer = newest.as_ref().unwrap_or(&other);
        one.meet(peer, 2 * round).await;
        one.heard().unreachable.clear();
        let (mut near, _far) = one.bulk_to(peer).await;

        let again = Host::started(2, net.restart(2).await);
        let send = || one.transport.send(2, heartbeat(round));
        let noticed = |heard: &mut Heard| heard.unreachable.contains(&2).then_some(());
        one.until_heard_from("a restart is noticed", send, noticed).await;
        let broken = in_time("a stream to a node that restarted breaks", near.receive()).await;
        assert!(broken.is_err(), "not in good order: {broken:?}");
        one.meet(&again, 2 * round + 1).await;
    }
}

/// Once `close` has returned, nothing more is delivered, and no peer can be reached from the closed
/// transport.
pub async fn a_closed_transport_hears_nothing(net: &impl Net) {
    let (one, other) = Host::pair(net).await;
    let three = Host::of(net, 3).await;
    three.meet(&other, 0).await;
    for round in 0..1_000 {
        other.transport.send(1, heartbeat(round));
    }
    in_time("close returns", one.transport.close()).await;
    let heard_count = one.heard().messages.len();
    for round in 0..1_000 {
        other.transport.send(1, heartbeat(round));
        one.transport.send(2, heartbeat(round));
    }
    let opened = in_time("no stream is opened", one.transport.open_bulk(2)).await;
    assert!(opened.is_err(), "a closed transport opens no stream");
    assert!(one.transport.reachability(2).is_err());
    let send = || other.transport.send(1, heartbeat(0));
    let noticed = |heard: &mut Heard| heard.unreachable.contains(&1).then_some(());
    other.until_heard_from("the peer notices", send, noticed).await;
    // Other nodes are not affected. Their meeting also leaves time for a message to the closed node
    // to arrive, if there were one.
    other.meet(&three, 1).await;
    assert_eq!(one.heard().messages.len(), heard_count, "delivered after close");
    let from_closed = other.heard().messages.iter().filter(|(from, _)| *from == 1).count();
    assert_eq!(from_closed, 0, "sent after close");
    in_time("close may be repeated", one.transport.close()).await;
}
