//! Claims about bulk streams: reliable, in order, bounded, and honest about how they end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

use tokio::time::{Instant, sleep};

use super::recorder::{Heard, Host, REPEAT_INTERVAL, heartbeat, in_time};
use super::{Net, PATIENCE};
use crate::transport::{BULK_FRAME_BYTES_MAX, BulkStream};

/// A frame whose bytes depend on its number and size.
fn frame(number: usize, size_bytes: usize) -> Bytes {
    let pattern = (0..size_bytes).map(|place| (number * 31 + place % 251) as u8);
    pattern.collect::<Vec<u8>>().into()
}

const SIZES_BYTES: [usize; 6] = [1, 2, 1_000, 65_536, 300_001, BULK_FRAME_BYTES_MAX];

async fn send_all(stream: &mut dyn BulkStream) {
    for (number, size) in SIZES_BYTES.into_iter().enumerate() {
        in_time("a frame is taken", stream.send(frame(number, size))).await.expect("it is open");
    }
}

async fn receive_all(stream: &mut dyn BulkStream) {
    for (number, size) in SIZES_BYTES.into_iter().enumerate() {
        let received = in_time("a frame arrives", stream.receive()).await.expect("it is open");
        let received = received.expect("more was sent");
        assert_eq!(received.len(), size, "frames keep their bounds");
        assert!(received == frame(number, size), "frame {number} arrived changed");
    }
}

/// Frames of all sizes arrive unchanged and in order, in both directions. Each direction ends by
/// `finish` on its own, and frames sent before it are not lost when the stream is dropped
/// afterwards.
pub async fn bulk_carries_frames_both_ways(net: &impl Net) {
    let (one, other) = Host::pair(net).await;
    for (from, to) in [(&one, &other), (&other, &one)] {
        let (mut near, mut far) = from.bulk_to(to).await;
        tokio::join!(send_all(&mut *near), receive_all(&mut *far));
        tokio::join!(send_all(&mut *far), receive_all(&mut *near));
        in_time("one side finishes", near.finish()).await.expect("it is open");
        assert!(near.send(frame(0, 1)).await.is_err(), "no frame after the end");
        assert_eq!(in_time("the end arrives", far.receive()).await, Ok(None));
        assert_eq!(in_time("it stays the end", far.receive()).await, Ok(None));
        // The other direction goes on.
        in_time("a frame is taken", far.send(frame(9, 9))).await.expect("it is open");
        in_time("the other side finishes", far.finish()).await.expect("it is open");
        drop(far);
        assert_eq!(in_time("the last frame", near.receive()).await, Ok(Some(frame(9, 9))));
        assert_eq!(in_time("the end arrives", near.receive()).await, Ok(None));
    }
}

/// Empty frames and frames over [`BULK_FRAME_BYTES_MAX`] are refused, and nothing of them arrives.
pub async fn bulk_refuses_frames_of_wrong_size(net: &impl Net) {
    let (one, other) = Host::pair(net).await;
    for wrong in [Bytes::new(), frame(0, BULK_FRAME_BYTES_MAX + 1)] {
        let (mut near, mut far) = one.bulk_to(&other).await;
        let refused = in_time("a frame is refused", near.send(wrong)).await;
        assert!(refused.is_err(), "1 to {BULK_FRAME_BYTES_MAX} bytes are allowed");
        drop(near);
        let received = in_time("the stream ends", far.receive()).await;
        assert!(received.is_err(), "nothing of it arrives: {received:?}");
    }
}

/// A stream that is not read buffers little, and its writer waits. Meanwhile control messages pass
/// in both directions. Once the stream is read, all frames arrive.
pub async fn bulk_waits_for_its_reader(net: &impl Net) {
    const FRAMES: usize = 96;
    const QUIET_ROUNDS: u64 = 20;
    let (one, other) = Host::pair(net).await;
    let (mut near, mut far) = one.bulk_to(&other).await;
    let taken = Arc::new(AtomicUsize::new(0));
    let taken_by_writer = Arc::clone(&taken);
    let writer = tokio::spawn(async move {
        for number in 0..FRAMES {
            near.send(frame(number, BULK_FRAME_BYTES_MAX)).await.expect("it is open");
            taken_by_writer.store(number + 1, Ordering::SeqCst);
        }
        near.finish().await.expect("it is open");
        near
    });
    let since = Instant::now();
    let mut quiet_rounds = 0;
    let mut round = 0;
    while quiet_rounds < QUIET_ROUNDS {
        let before = taken.load(Ordering::SeqCst);
        round += 1;
        for (from, to) in [(&one, &other), (&other, &one)] {
            let send = || from.transport.send(to.id, heartbeat(round));
            let sent = (from.id, heartbeat(round));
            let arrived = |heard: &mut Heard| heard.messages.contains(&sent).then_some(());
            to.until_heard_from("control beside a full bulk stream", send, arrived).await;
        }
        let after = taken.load(Ordering::SeqCst);
        assert!(after < FRAMES, "{FRAMES} MiB were taken, and the reader reads nothing");
        if after == 0 {
            assert!(
                since.elapsed() < PATIENCE,
                "no frame of {BULK_FRAME_BYTES_MAX} bytes was taken before the reader reads: the \
                 buffers of a stream hold at least one"
            );
            // Time passes, also on a paused clock.
            sleep(REPEAT_INTERVAL).await;
        }
        quiet_rounds = if before == after && after > 0 { quiet_rounds + 1 } else { 0 };
        tokio::task::yield_now().await;
    }
    for number in 0..FRAMES {
        let received = in_time("a frame arrives", far.receive()).await.expect("it is open");
        assert!(received == Some(frame(number, BULK_FRAME_BYTES_MAX)), "frame {number}");
    }
    assert_eq!(in_time("the end arrives", far.receive()).await, Ok(None));
    in_time("the writer ends", writer).await.expect("the writer does not panic");
}

/// A stream dropped before `finish` is broken for the other side, and never looks finished. A
/// stream whose reader is gone takes no frames.
pub async fn bulk_dropped_unfinished_is_an_error_at_the_other_side(net: &impl Net) {
    let (one, other) = Host::pair(net).await;
    for opener_drops in [true, false] {
        let (near, far) = one.bulk_to(&other).await;
        let (mut dropped, mut kept) = if opener_drops { (near, far) } else { (far, near) };
        in_time("a frame is taken", dropped.send(frame(1, 100))).await.expect("it is open");
        assert_eq!(in_time("it arrives", kept.receive()).await, Ok(Some(frame(1, 100))));
        drop(dropped);
        let received = in_time("the abort arrives", kept.receive()).await;
        assert!(received.is_err(), "an aborted stream has no end in good order: {received:?}");
        let refused = async { while kept.send(frame(2, 1_000)).await.is_ok() {} };
        in_time("a stream without a reader takes no frames", refused).await;
    }
}

/// Opening a stream to a node that does not run is an error, and soon.
pub async fn bulk_to_nobody_fails(net: &impl Net) {
    let one = Host::of(net, 1).await;
    let opened = in_time("opening gives up", one.transport.open_bulk(2)).await;
    let error = opened.err().expect("nobody is there");
    assert!(!error.to_string().trim().is_empty(), "the text is for an operator");
}
