//! Requests of one client as they come in, in bounded memory.
//!
//! A frame of up to [`FREE_BYTES`] is received in a buffer that each connection has. For a larger
//! frame, room for the whole frame is taken from the budget of all connections before the buffer
//! grows, so that no two frames with only a part of their room wait for each other. A frame that
//! has begun must arrive at [`FRAME_RATE`] at least; otherwise the connection ends, and its room is
//! given back.

use std::time::Duration;

use bytes::BytesMut;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{Instant, timeout};

use super::account::{Account, Held};
use super::pace::Pace;
use super::width::Width;
use crate::protocol::{FrameBuffer, FrameError};

/// Bytes of the receive buffer that each connection has. Larger frames are charged to the budget of
/// all connections.
const FREE_BYTES: usize = 32 << 10;

/// A frame that has begun arrives at 32 KiB a second at least, with 5 s of slack.
const FRAME_RATE: Pace = Pace::new(32 << 10, Duration::from_secs(5));

/// A connection on which this many reads filled half of the free buffer is widened, if a place is
/// free.
const FULL_READS_BEFORE_WIDE: usize = 8;

/// Bytes of a frame's length prefix.
const LENGTH_BYTES: usize = 4;

pub(super) struct Receiving<'a> {
    reader: &'a mut (dyn AsyncRead + Send + Unpin),
    account: &'a Account,
    width: &'a Width,
    frames: FrameBuffer,
    pace: Pace,
    full_reads: usize,
    /// Budget held for the frame that is being received, if it is a large one.
    room: Option<Held>,
}

/// The reason why no further request comes.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Ended {
    #[error("the client has left")]
    Left,
    #[error(transparent)]
    Protocol(#[from] FrameError),
    #[error("half a request did not go on at 32 KiB a second")]
    TooSlow,
}

impl<'a> Receiving<'a> {
    pub(super) fn new(
        reader: &'a mut (dyn AsyncRead + Send + Unpin),
        account: &'a Account,
        width: &'a Width,
        frame_bytes_max: usize,
    ) -> Self {
        let frames = FrameBuffer::with_limit(frame_bytes_max);
        Self { reader, account, width, frames, pace: FRAME_RATE, full_reads: 0, room: None }
    }

    pub(super) fn set_limit(&mut self, frame_bytes_max: usize) {
        self.frames.set_limit(frame_bytes_max);
    }

    pub(super) async fn next<T: DeserializeOwned>(&mut self) -> Result<T, Ended> {
        loop {
            if let Some(message) = self.frames.next_message()? {
                self.pace.reset();
                if self.room.is_some() {
                    self.give_back();
                }
                return Ok(message);
            }
            self.make_room().await;
            self.read().await?;
        }
    }

    /// Makes sure that the buffer has room for the frame that has begun, or for some small ones.
    async fn make_room(&mut self) {
        // `next_message` has compared the length with the limit.
        let frame_bytes = match self.frames.input().first_chunk::<LENGTH_BYTES>() {
            Some(length) => LENGTH_BYTES + u32::from_be_bytes(*length) as usize,
            None => LENGTH_BYTES,
        };
        if frame_bytes > FREE_BYTES && self.room.is_none() {
            self.width.widen();
            self.room = Some(self.account.receive(frame_bytes).await);
        }
        let input = self.frames.input();
        let capacity = frame_bytes.max(FREE_BYTES);
        assert!(input.len() < capacity, "a frame that is there was returned");
        input.reserve(capacity - input.len());
        assert!(input.capacity() >= capacity, "the frame fits into the buffer");
        assert!(
            frame_bytes <= FREE_BYTES || self.room.is_some(),
            "a large frame is received within the budget"
        );
    }

    /// Reads once. Waits without a limit while no frame has begun.
    async fn read(&mut self) -> Result<(), Ended> {
        let has_begun = !self.frames.input().is_empty();
        let reading = self.reader.read_buf(self.frames.input());
        let read = if has_begun {
            let since = Instant::now();
            let read = timeout(self.pace.patience(), reading).await.map_err(|_| Ended::TooSlow)?;
            self.pace.on_step(*read.as_ref().unwrap_or(&0), since.elapsed());
            read
        } else {
            reading.await
        };
        match read {
            // A broken stream means that the client has left.
            Ok(0) | Err(_) => return Err(Ended::Left),
            Ok(bytes) if bytes >= FREE_BYTES / 2 => self.full_reads += 1,
            Ok(_) => {}
        }
        if self.full_reads == FULL_READS_BEFORE_WIDE {
            self.width.widen();
        }
        Ok(())
    }

    /// Frees the buffer of a large frame that was taken, and gives its room back.
    fn give_back(&mut self) {
        let input = self.frames.input();
        let rest = input.split();
        *input = BytesMut::with_capacity(rest.len());
        input.extend_from_slice(&rest);
        self.room = None;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::config::Limits;
    use crate::config::units::ByteSize;
    use crate::protocol::push_frame;
    use crate::server::account::Accounts;
    use crate::server::load::Load;

    fn load_of(receive_bytes_max: u64) -> Arc<Load> {
        let receive_bytes_max = ByteSize(receive_bytes_max);
        Load::new(&Limits { receive_bytes_max, ..Limits::default() })
    }

    /// The account of clients that may use the whole budget.
    fn account_of(load: &Arc<Load>) -> Arc<Account> {
        Accounts::new(Arc::clone(load)).of(&Bytes::new())
    }

    fn frame(bytes: usize) -> BytesMut {
        let mut frame = BytesMut::new();
        push_frame(&mut frame, &"x".repeat(bytes));
        frame
    }

    /// S11. Half of a large frame holds room of the budget of all connections. It must go on, or
    /// the room is given back and frames that wait for room are received. Small frames never wait.
    #[tokio::test(start_paused = true)]
    async fn half_a_frame_gives_its_room_back() {
        let load = load_of(1 << 20);
        let (mut stalled_in, stalled_out) = tokio::io::duplex(1 << 20);
        let (mut large_in, large_out) = tokio::io::duplex(1 << 21);
        let (mut small_in, small_out) = tokio::io::duplex(1 << 20);
        let receive = |pipe: tokio::io::DuplexStream| {
            let load = Arc::clone(&load);
            tokio::spawn(async move {
                let (mut pipe, account) = (pipe, account_of(&load));
                let width = Width::new(Arc::clone(&account), None);
                Receiving::new(&mut pipe, &account, &width, 1 << 20).next::<String>().await
            })
        };
        stalled_in.write_all(&frame(900_000)[..10]).await.unwrap();
        let stalled = receive(stalled_out);
        tokio::time::sleep(Duration::from_millis(1)).await;
        large_in.write_all(&frame(800_000)).await.unwrap();
        let large = receive(large_out);
        small_in.write_all(&frame(20_000)).await.unwrap();
        let since = Instant::now();
        assert_eq!(receive(small_out).await.unwrap().unwrap().len(), 20_000);
        assert_eq!(since.elapsed(), Duration::ZERO, "a small frame does not wait");
        let minute = Duration::from_secs(60);
        let stalled = timeout(minute, stalled).await.expect("it is given up");
        assert_eq!(stalled.unwrap(), Err(Ended::TooSlow));
        assert_eq!(large.await.unwrap().unwrap().len(), 800_000);
        assert!(since.elapsed() < Duration::from_secs(6));
        assert_eq!(load.receive_budget_free_bytes(), 1 << 20);
    }

    /// S11. One byte every four seconds is no progress.
    #[tokio::test(start_paused = true)]
    async fn a_frame_that_trickles_in_is_given_up() {
        let load = load_of(1 << 20);
        let (mut client, mut pipe) = tokio::io::duplex(1 << 20);
        tokio::spawn(async move {
            for byte in frame(100_000) {
                tokio::time::sleep(Duration::from_secs(4)).await;
                if client.write_all(&[byte]).await.is_err() {
                    return;
                }
            }
        });
        let account = account_of(&load);
        let width = Width::new(Arc::clone(&account), None);
        let since = Instant::now();
        let mut receiving = Receiving::new(&mut pipe, &account, &width, 1 << 20);
        let minute = Duration::from_secs(60);
        let received = timeout(minute, receiving.next::<String>()).await.expect("it is given up");
        assert_eq!(received, Err(Ended::TooSlow));
        assert!(since.elapsed() < Duration::from_secs(12), "{:?}", since.elapsed());
    }

    /// S11. A connection that once sent a large frame holds no more than any other afterwards.
    #[tokio::test(start_paused = true)]
    async fn a_large_frame_leaves_no_large_buffer() {
        let load = load_of(1 << 20);
        let (mut client, mut pipe) = tokio::io::duplex(1 << 20);
        let account = account_of(&load);
        let width = Width::new(Arc::clone(&account), None);
        let mut receiving = Receiving::new(&mut pipe, &account, &width, 1 << 20);
        client.write_all(&frame(700_000)).await.unwrap();
        client.write_all(&frame(10)).await.unwrap();
        assert_eq!(receiving.next::<String>().await.unwrap().len(), 700_000);
        assert_eq!(receiving.next::<String>().await.unwrap().len(), 10);
        assert!(receiving.frames.input().capacity() <= 2 * FREE_BYTES);
        assert_eq!(load.receive_budget_free_bytes(), 1 << 20);
    }

    /// The budget is as small as the configuration allows: the largest request still gets its room.
    #[tokio::test(start_paused = true)]
    async fn the_largest_request_fits_into_the_smallest_budget() {
        let limits = Limits::default();
        let request_bytes_max = limits.request_bytes_max();
        let load = Load::new(&Limits { receive_bytes_max: ByteSize(request_bytes_max), ..limits });
        let frame_bytes = usize::try_from(request_bytes_max).unwrap() + LENGTH_BYTES;
        let minute = Duration::from_secs(60);
        let room =
            timeout(minute, account_of(&load).receive(frame_bytes)).await.expect("there is room");
        drop(room);
    }
}
