//! Bulk streams beside messages, and their bounds. Their contract is in `contract.rs`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::pin::pin;
use std::task::{Context, Waker};

use bytes::Bytes;
use common::{cluster, control};
use raft_core::transport::{BULK_FRAME_BYTES_MAX, BulkStream, Transport};

/// Asserts that the stream breaks: frames sent before may still arrive, and then every call fails.
async fn breaks(far: &mut dyn BulkStream) {
    let end = loop {
        match far.receive().await {
            Ok(Some(_)) => {}
            end => break end,
        }
    };
    assert!(end.is_err(), "{end:?}");
    assert!(far.receive().await.is_err(), "it was broken already");
}

#[tokio::test]
async fn streams_that_nobody_reads_hold_up_no_message() {
    let nodes = cluster(2).await;
    let mut writers = Vec::new();
    for _ in 0..8 {
        let mut stream = nodes[0].transport.open_bulk(2).await.unwrap();
        let frame = Bytes::from(vec![1; BULK_FRAME_BYTES_MAX]);
        writers
            .push(tokio::spawn(async move { while stream.send(frame.clone()).await.is_ok() {} }));
    }
    let mut unread = Vec::new();
    for _ in 0..8 {
        unread.push(nodes[1].inbound.bulk().await);
    }
    for id in 0..100 {
        nodes[0].send(2, control(id));
        nodes[0].send(2, common::append(id, &[100_000]));
        nodes[1].send(1, control(id));
        nodes[1].inbound.messages(2).await;
        nodes[0].inbound.messages(1).await;
    }
    let refused = nodes[0].transport.open_bulk(2).await.err().unwrap();
    assert!(refused.0.contains("too many"), "{refused}");

    // When the reader drops the streams, their writers end and make room for other streams.
    unread.clear();
    for writer in writers {
        writer.await.unwrap();
    }
    let mut stream = nodes[0].transport.open_bulk(2).await.unwrap();
    stream.send(Bytes::from_static(b"again")).await.unwrap();
    let (from, mut far) = nodes[1].inbound.bulk().await;
    assert_eq!((from, far.receive().await), (1, Ok(Some(Bytes::from_static(b"again")))));
}

#[tokio::test]
async fn a_stream_dropped_while_it_finishes_has_no_end() {
    let nodes = cluster(2).await;
    let mut near = nodes[0].transport.open_bulk(2).await.unwrap();
    let frame = Bytes::from(vec![1; BULK_FRAME_BYTES_MAX]);
    near.send(Bytes::from_static(b"first")).await.unwrap();
    let (_, mut far) = nodes[1].inbound.bulk().await;
    assert_eq!(far.receive().await, Ok(Some(Bytes::from_static(b"first"))));
    near.send(frame).await.unwrap();
    // Begun and given up, twice. Polled by hand, because even a timer of zero length would let the
    // tasks run that send and acknowledge.
    for _ in 0..2 {
        let finishing = pin!(near.finish());
        assert!(finishing.poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
    drop(near);
    breaks(&mut *far).await;
}

#[tokio::test]
async fn a_cancelled_receive_loses_nothing_and_a_cancelled_send_breaks_the_stream() {
    let nodes = cluster(2).await;
    let mut near = nodes[0].transport.open_bulk(2).await.unwrap();
    near.send(Bytes::from_static(b"one")).await.unwrap();
    let (_, mut far) = nodes[1].inbound.bulk().await;
    assert_eq!(far.receive().await, Ok(Some(Bytes::from_static(b"one"))));
    let moment = std::time::Duration::from_millis(5);
    assert!(tokio::time::timeout(moment, far.receive()).await.is_err());
    near.send(Bytes::from_static(b"two")).await.unwrap();
    assert_eq!(far.receive().await, Ok(Some(Bytes::from_static(b"two"))));

    let frame = Bytes::from(vec![1; BULK_FRAME_BYTES_MAX]);
    while tokio::time::timeout(moment, near.send(frame.clone())).await.is_ok() {}
    assert!(near.send(frame).await.is_err());
    assert!(near.finish().await.is_err());
    drop(near);
    breaks(&mut *far).await;
}
