//! A UDP socket that can be closed while quinn still holds it.
//!
//! quinn keeps its socket open for as long as a stream or a connection is held, even a dead one. A
//! node that is started again in the same process would find its port taken because a client still
//! holds a stream. So quinn gets this wrapper, which can release the socket. Afterwards it discards
//! the datagrams that are sent, and receives nothing.

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Runtime, UdpPoller};

#[derive(Debug)]
pub(crate) struct ReleasableSocket {
    socket: RwLock<Option<Arc<dyn AsyncUdpSocket>>>,
    local_addr: SocketAddr,
    may_fragment: bool,
    max_transmit_segments: usize,
    max_receive_segments: usize,
}

impl ReleasableSocket {
    pub(crate) fn new(socket: std::net::UdpSocket, runtime: &dyn Runtime) -> io::Result<Self> {
        let socket = runtime.wrap_udp_socket(socket)?;
        Ok(Self {
            local_addr: socket.local_addr()?,
            may_fragment: socket.may_fragment(),
            max_transmit_segments: socket.max_transmit_segments(),
            max_receive_segments: socket.max_receive_segments(),
            socket: RwLock::new(Some(socket)),
        })
    }

    /// Closes the socket, even if streams that depend on it are still held.
    pub(crate) fn release(&self) {
        *self.socket.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn socket(&self) -> RwLockReadGuard<'_, Option<Arc<dyn AsyncUdpSocket>>> {
        self.socket.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsyncUdpSocket for ReleasableSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Poller { socket: self, waiting: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        match &*self.socket() {
            Some(socket) => socket.try_send(transmit),
            None => Ok(()),
        }
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        match &*self.socket() {
            Some(socket) => socket.poll_recv(context, buffers, meta),
            None => Poll::Pending,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local_addr)
    }

    fn may_fragment(&self) -> bool {
        self.may_fragment
    }

    fn max_transmit_segments(&self) -> usize {
        self.max_transmit_segments
    }

    fn max_receive_segments(&self) -> usize {
        self.max_receive_segments
    }
}

/// Waits until the socket is writable. The socket's own poller keeps the socket open, so there is
/// one only while a task waits.
#[derive(Debug)]
struct Poller {
    socket: Arc<ReleasableSocket>,
    waiting: Option<Pin<Box<dyn UdpPoller>>>,
}

impl UdpPoller for Poller {
    fn poll_writable(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let Some(socket) = this.socket.socket().clone() else {
            this.waiting = None;
            return Poll::Ready(Ok(()));
        };
        let waiting = this.waiting.get_or_insert_with(|| socket.create_io_poller());
        let result = waiting.as_mut().poll_writable(context);
        if result.is_ready() {
            this.waiting = None;
        }
        result
    }
}
