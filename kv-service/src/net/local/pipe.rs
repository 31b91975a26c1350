//! One connection between a client and a node of the process: a queue of bytes in each direction.
//!
//! The bytes of one write are a chunk. A chunk's loss and latency are decided when it is written.
//! It can be read once its latency has passed, in order. Each direction is bounded
//! ([`LANE_BYTES_MAX`]); beyond that the writer waits.
//!
//! A connection that is *held* passes nothing on, not even that a side has gone. It is held while
//! its link is partitioned, or while its node has no power. Bytes written meanwhile are late when
//! the hold ends.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::net::stream::Stream;

/// Bytes under way in one direction; beyond that the writer waits.
const LANE_BYTES_MAX: usize = 256 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Node,
}

impl Side {
    fn other(self) -> Self {
        match self {
            Side::Client => Side::Node,
            Side::Node => Side::Client,
        }
    }
}

/// The delivery of one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Delivery {
    pub(super) lost: bool,
    pub(super) delay: Duration,
}

/// Decides the delivery of a chunk that one side wrote. Called without any lock of the pipe.
type Deliver = dyn Fn(Side, &[u8]) -> Delivery + Send + Sync;

pub(super) struct Pipe {
    deliver: Box<Deliver>,
    state: Mutex<PipeState>,
}

#[derive(Default)]
struct PipeState {
    /// One for each direction, indexed by the side that writes.
    lanes: [PipeHalf; 2],
    /// Set while the link is partitioned.
    cut: bool,
    /// Set once the node has lost power.
    dead: bool,
    broken: bool,
}

#[derive(Default)]
struct PipeHalf {
    chunks: VecDeque<(Instant, Arrival)>,
    bytes: usize,
    writer_gone: bool,
    reader_gone: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

enum Arrival {
    Bytes(Bytes),
    /// A chunk was lost: the connection breaks when it should have arrived.
    Break,
}

impl PipeHalf {
    fn wake(&mut self) {
        let wakers = [self.reader.take(), self.writer.take()];
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    fn push(&mut self, delivery: Delivery, bytes: &[u8]) {
        let last_due = self.chunks.back().map(|(due, _)| *due);
        let due = Instant::now() + delivery.delay;
        let due = last_due.map_or(due, |last| last.max(due));
        let arrival = if delivery.lost {
            Arrival::Break
        } else {
            Arrival::Bytes(Bytes::copy_from_slice(bytes))
        };
        self.bytes += bytes.len();
        self.chunks.push_back((due, arrival));
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

impl Pipe {
    /// Creates a connection on which `deliver` decides the loss and the latency of each chunk.
    pub(super) fn new(deliver: impl Fn(Side, &[u8]) -> Delivery + Send + Sync + 'static) -> Self {
        Self { deliver: Box::new(deliver), state: Mutex::default() }
    }

    /// Returns one side's end of the connection.
    pub(super) fn end(self: &Arc<Self>, side: Side) -> Stream {
        let reader = ReadEnd { pipe: Arc::clone(self), side, timer: None };
        let writer = WriteEnd { pipe: Arc::clone(self), side };
        Stream::new(reader, writer, ())
    }

    pub(super) fn set_cut(&self, cut: bool) {
        let mut state = self.lock();
        state.cut = cut;
        state.lanes.iter_mut().for_each(PipeHalf::wake);
    }

    /// Holds everything from now on, until the connection breaks.
    pub(super) fn kill(&self) {
        self.lock().dead = true;
    }

    /// Breaks the connection: both sides get an error, and bytes under way are lost.
    pub(super) fn break_off(&self) {
        self.lock().break_off();
    }

    fn lock(&self) -> MutexGuard<'_, PipeState> {
        // Nothing that is done under the lock panics half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PipeState {
    fn is_held(&self) -> bool {
        self.cut || self.dead
    }

    fn end_of_writing(&mut self, side: Side) {
        let lane = &mut self.lanes[side as usize];
        lane.writer_gone = true;
        lane.wake();
    }

    fn break_off(&mut self) {
        self.broken = true;
        for lane in &mut self.lanes {
            lane.chunks.clear();
            lane.wake();
        }
    }

    fn check(&self) -> io::Result<()> {
        if self.broken {
            return Err(io::Error::new(io::ErrorKind::ConnectionReset, "the connection broke"));
        }
        Ok(())
    }
}

struct ReadEnd {
    pipe: Arc<Pipe>,
    side: Side,
    /// Set while the next chunk is still under way.
    timer: Option<Pin<Box<Sleep>>>,
}

/// State of a direction, as its reader finds it.
enum Found {
    Read,
    End,
    Nothing,
    Due(Instant),
}

impl ReadEnd {
    fn look(&self, buffer: &mut ReadBuf<'_>, context: &Context<'_>) -> io::Result<Found> {
        let mut state = self.pipe.lock();
        state.check()?;
        let held = state.is_held();
        let lane = &mut state.lanes[self.side.other() as usize];
        lane.reader = Some(context.waker().clone());
        match lane.chunks.front_mut() {
            _ if held => Ok(Found::Nothing),
            None if lane.writer_gone => Ok(Found::End),
            None => Ok(Found::Nothing),
            Some((due, _)) if *due > Instant::now() => Ok(Found::Due(*due)),
            Some((_, Arrival::Bytes(bytes))) => {
                let length = bytes.len().min(buffer.remaining());
                buffer.put_slice(&bytes[..length]);
                bytes.advance(length);
                if bytes.is_empty() {
                    lane.chunks.pop_front();
                }
                lane.bytes -= length;
                if let Some(writer) = lane.writer.take() {
                    writer.wake();
                }
                Ok(Found::Read)
            }
            Some((_, Arrival::Break)) => {
                state.break_off();
                state.check().map(|()| Found::End)
            }
        }
    }
}

impl AsyncRead for ReadEnd {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            match self.look(buffer, context)? {
                Found::Read | Found::End => return Poll::Ready(Ok(())),
                Found::Nothing => return Poll::Pending,
                Found::Due(due) => {
                    let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
                    if timer.deadline() != due {
                        timer.as_mut().reset(due);
                    }
                    std::task::ready!(timer.as_mut().poll(context));
                }
            }
        }
    }
}

impl Drop for ReadEnd {
    fn drop(&mut self) {
        let mut state = self.pipe.lock();
        let lane = &mut state.lanes[self.side.other() as usize];
        lane.reader_gone = true;
        lane.wake();
    }
}

struct WriteEnd {
    pipe: Arc<Pipe>,
    side: Side,
}

impl AsyncWrite for WriteEnd {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let room = {
            let mut state = self.pipe.lock();
            state.check()?;
            let held = state.is_held();
            let lane = &mut state.lanes[self.side as usize];
            if lane.reader_gone && !held {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            let room = LANE_BYTES_MAX.saturating_sub(lane.bytes);
            if room == 0 {
                lane.writer = Some(context.waker().clone());
                return Poll::Pending;
            }
            room
        };
        let chunk = &bytes[..bytes.len().min(room)];
        // The delivery is decided without the pipe's lock. Only this end writes in this direction,
        // so the room is still there.
        let delivery = (self.pipe.deliver)(self.side, chunk);
        self.pipe.lock().lanes[self.side as usize].push(delivery, chunk);
        Poll::Ready(Ok(chunk.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.pipe.lock().end_of_writing(self.side);
        Poll::Ready(Ok(()))
    }
}

impl Drop for WriteEnd {
    fn drop(&mut self) {
        self.pipe.lock().end_of_writing(self.side);
    }
}
