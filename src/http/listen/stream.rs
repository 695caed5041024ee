//! An accepted socket with its place among all connections. It gives the place back when it is closed, whoever
//! owns it then, and it gives up on a peer that stops reading.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Sleep;

/// How long a peer may take nothing of what is sent to it.
const STALL: Duration = Duration::from_secs(60);

/// A socket.
pub(super) struct Peer {
    stream: TcpStream,
    /// Runs while a write waits for the peer.
    stall: Option<Pin<Box<Sleep>>>,
    _place: OwnedSemaphorePermit,
}

impl Peer {
    /// A socket that holds `place` as long as it lives.
    pub(super) fn new(stream: TcpStream, place: OwnedSemaphorePermit) -> Self {
        Self { stream, stall: None, _place: place }
    }

    /// The outcome of a write, or an error when writes have waited too long.
    fn watched<T>(&mut self, cx: &mut Context<'_>, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.stall = None;
            return outcome;
        }
        let stall = self.stall.get_or_insert_with(|| Box::pin(tokio::time::sleep(STALL)));
        match stall.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for Peer {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, into)
    }
}

impl AsyncWrite for Peer {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let peer = self.get_mut();
        let outcome = Pin::new(&mut peer.stream).poll_write(cx, bytes);
        peer.watched(cx, outcome)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let peer = self.get_mut();
        let outcome = Pin::new(&mut peer.stream).poll_write_vectored(cx, parts);
        peer.watched(cx, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
