//! A two-way stream of frames between two nodes of the process.
//!
//! Each direction has a bounded buffer ([`PipeHalf`]). It ends in good order when its writer has
//! finished, and is broken when its writer vanishes before that, when its reader vanishes, or when
//! the link is partitioned. A frame is in the buffer from being sent until it is read, and can be
//! read once its delay has passed.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::network::Network;
use crate::transport::{BULK_FRAME_BYTES_MAX, BulkStream, TransportError};
use crate::types::NodeId;

/// Bytes that one direction of a stream can buffer; beyond, the sender waits.
pub(super) const BULK_BUFFER_BYTES_MAX: usize = 1 << 20;

/// NetworkState that both ends of a stream share.
pub(super) struct Stream {
    lanes: Mutex<[PipeHalf; 2]>,
    /// Wakes the side of that number: 0 opened the stream, 1 was offered it.
    changed: [Notify; 2],
}

/// One direction, numbered as the side that writes to it.
#[derive(Default)]
struct PipeHalf {
    frames: VecDeque<(Instant, Bytes)>,
    bytes: usize,
    last_due: Option<Instant>,
    finished: bool,
    broken: Option<TransportError>,
}

impl PipeHalf {
    fn break_off(&mut self, why: &TransportError) {
        if !(self.finished && self.frames.is_empty()) {
            self.broken.get_or_insert_with(|| why.clone());
        }
    }

    fn has_room_for(&self, frame: &Bytes) -> bool {
        self.bytes == 0 || self.bytes + frame.len() <= BULK_BUFFER_BYTES_MAX
    }

    fn check(&self) -> Result<(), TransportError> {
        self.broken.clone().map_or(Ok(()), Err)
    }
}

impl Stream {
    pub(super) fn new() -> Self {
        Self { lanes: Mutex::default(), changed: [Notify::new(), Notify::new()] }
    }

    /// Breaks both directions.
    pub(super) fn break_off(&self, why: &TransportError) {
        for lane in &mut *self.lock() {
            lane.break_off(why);
        }
        self.changed.iter().for_each(Notify::notify_one);
    }

    fn lock(&self) -> MutexGuard<'_, [PipeHalf; 2]> {
        // Nothing that is done under the lock panics half-way.
        self.lanes.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// One side of a stream.
pub(super) struct StreamEnd {
    pub(super) stream: Arc<Stream>,
    pub(super) side: usize,
    pub(super) own: NodeId,
    pub(super) peer: NodeId,
    /// Decides the delay of each frame.
    pub(super) network: Arc<Network>,
}

impl StreamEnd {
    fn other_side(&self) -> usize {
        1 - self.side
    }

    fn push(&self, lane: &mut PipeHalf, frame: Bytes, due: Instant) {
        let due = lane.last_due.map_or(due, |last| last.max(due));
        lane.last_due = Some(due);
        lane.bytes += frame.len();
        lane.frames.push_back((due, frame));
        self.stream.changed[self.other_side()].notify_one();
    }

    async fn changed(&self) {
        self.stream.changed[self.side].notified().await;
    }
}

#[async_trait]
impl BulkStream for StreamEnd {
    async fn send(&mut self, frame: Bytes) -> Result<(), TransportError> {
        if frame.is_empty() || frame.len() > BULK_FRAME_BYTES_MAX {
            return Err(TransportError::new(format!(
                "a frame of {} bytes; a bulk stream takes 1 to {BULK_FRAME_BYTES_MAX}",
                frame.len()
            )));
        }
        let delay = self.network.delay_of_frame(self.own, self.peer, &frame);
        loop {
            {
                let lane = &mut self.stream.lock()[self.side];
                lane.check()?;
                if lane.finished {
                    return Err(TransportError::new("this side has finished sending"));
                }
                if lane.has_room_for(&frame) {
                    self.push(lane, frame, Instant::now() + delay);
                    return Ok(());
                }
            }
            self.changed().await;
        }
    }

    async fn receive(&mut self) -> Result<Option<Bytes>, TransportError> {
        loop {
            let due = {
                let lane = &mut self.stream.lock()[self.other_side()];
                lane.check()?;
                match lane.frames.front() {
                    Some((due, _)) if *due <= Instant::now() => {
                        let (_, frame) = lane.frames.pop_front().expect("just seen");
                        lane.bytes -= frame.len();
                        self.stream.changed[self.other_side()].notify_one();
                        return Ok(Some(frame));
                    }
                    Some((due, _)) => Some(*due),
                    None if lane.finished => return Ok(None),
                    None => None,
                }
            };
            match due {
                // Woken early or on time, the loop checks again.
                Some(due) => drop(timeout_at(due, self.changed()).await),
                None => self.changed().await,
            }
        }
    }

    /// Frames have left once their delay has passed, when the other side can read them.
    async fn finish(&mut self) -> Result<(), TransportError> {
        loop {
            let due = {
                let lane = &mut self.stream.lock()[self.side];
                lane.check()?;
                if !lane.finished {
                    lane.finished = true;
                    self.stream.changed[self.other_side()].notify_one();
                }
                match lane.frames.back() {
                    Some((due, _)) if *due > Instant::now() => *due,
                    _ => return Ok(()),
                }
            };
            drop(timeout_at(due, self.changed()).await);
        }
    }
}

/// Aborts the frames that this side had not finished sending, and breaks the other direction, which
/// has lost its reader.
impl Drop for StreamEnd {
    fn drop(&mut self) {
        let why = TransportError::new(format!("node {} dropped the stream", self.own));
        {
            let mut lanes = self.stream.lock();
            let other_side = self.other_side();
            if !lanes[self.side].finished {
                lanes[self.side].break_off(&why);
            }
            lanes[other_side].break_off(&why);
        }
        self.stream.changed[self.other_side()].notify_one();
    }
}
