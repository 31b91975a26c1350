//! A two-way stream of frames between two nodes of the process.
//!
//! Each direction has a bounded buffer ([`PipeHalf`]). It ends in good order when its writer has
//! finished, and is broken when its writer vanishes before that, when its reader vanishes, or when
//! the link is partitioned. A frame is in the buffer from being sent until it is read, and can be
//! read once its delay has passed.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::transport::{BULK_FRAME_BYTES_MAX, BulkStream, TransportError};
use crate::types::NodeId;

/// Bytes that one direction of a stream can buffer; beyond, the sender waits.
pub(super) const BULK_BUFFER_BYTES_MAX: usize = 1 << 20;

/// State that both ends of a stream share.
pub(super) struct Stream {
    halves: Mutex<[PipeHalf; 2]>,
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
        Self { halves: Mutex::default(), changed: [Notify::new(), Notify::new()] }
    }

    /// Breaks both directions.
    pub(super) fn break_off(&self, why: &TransportError) {
        for half in &mut *self.lock() {
            half.break_off(why);
        }
        self.changed.iter().for_each(Notify::notify_one);
    }

    fn lock(&self) -> MutexGuard<'_, [PipeHalf; 2]> {
        // Nothing that is done under the lock panics half-way.
        self.halves.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// One side of a stream.
pub(super) struct StreamEnd {
    pub(super) stream: Arc<Stream>,
    pub(super) side: usize,
    pub(super) own: NodeId,
    /// Decides the delay of each frame.
    pub(super) delay: Box<dyn Fn(&Bytes) -> Duration + Send + Sync>,
}

impl StreamEnd {
    fn other_side(&self) -> usize {
        1 - self.side
    }

    fn push(&self, half: &mut PipeHalf, frame: Bytes, due: Instant) {
        let due = half.last_due.map_or(due, |last| last.max(due));
        half.last_due = Some(due);
        half.bytes += frame.len();
        half.frames.push_back((due, frame));
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
        let delay = (self.delay)(&frame);
        loop {
            {
                let half = &mut self.stream.lock()[self.side];
                half.check()?;
                if half.finished {
                    return Err(TransportError::new("this side has finished sending"));
                }
                if half.has_room_for(&frame) {
                    self.push(half, frame, Instant::now() + delay);
                    return Ok(());
                }
            }
            self.changed().await;
        }
    }

    async fn receive(&mut self) -> Result<Option<Bytes>, TransportError> {
        loop {
            let due = {
                let half = &mut self.stream.lock()[self.other_side()];
                half.check()?;
                match half.frames.front() {
                    Some((due, _)) if *due <= Instant::now() => {
                        let (_, frame) = half.frames.pop_front().expect("just seen");
                        half.bytes -= frame.len();
                        self.stream.changed[self.other_side()].notify_one();
                        return Ok(Some(frame));
                    }
                    Some((due, _)) => Some(*due),
                    None if half.finished => return Ok(None),
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
                let half = &mut self.stream.lock()[self.side];
                half.check()?;
                if !half.finished {
                    half.finished = true;
                    self.stream.changed[self.other_side()].notify_one();
                }
                match half.frames.back() {
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
            let mut halves = self.stream.lock();
            let other_side = self.other_side();
            if !halves[self.side].finished {
                halves[self.side].break_off(&why);
            }
            halves[other_side].break_off(&why);
        }
        self.stream.changed[self.other_side()].notify_one();
    }
}
