//! Bodies with what a connection must know about them: a request's has a time to arrive in, a response's keeps its
//! connection busy until it is sent.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::BoxError;
use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Frame, Incoming, SizeHint};
use tokio::sync::watch;
use tokio::time::Sleep;

/// A request's body that must have arrived by a deadline.
pub(super) struct Timed {
    body: Incoming,
    deadline: Pin<Box<Sleep>>,
    late: Arc<AtomicBool>,
}

/// Why a body ended early.
#[derive(Debug, thiserror::Error)]
#[error("the request's body did not arrive in time")]
struct Late;

impl Timed {
    /// A body that fails `after` from now and says so in `late`.
    pub(super) fn new(body: Incoming, after: Duration, late: Arc<AtomicBool>) -> Self {
        Self { body, deadline: Box::pin(tokio::time::sleep(after)), late }
    }
}

impl hyper::body::Body for Timed {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let timed = self.get_mut();
        // First, so that a byte now and then buys no time.
        if timed.deadline.as_mut().poll(cx).is_ready() {
            timed.late.store(true, Ordering::Relaxed);
            return Poll::Ready(Some(Err(Late.into())));
        }
        Pin::new(&mut timed.body).poll_frame(cx).map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Counts a connection's unanswered requests; a request is one until its response's body is sent or dropped.
pub(super) struct Busy(Arc<watch::Sender<usize>>);

impl Busy {
    /// One more.
    pub(super) fn new(requests: &Arc<watch::Sender<usize>>) -> Self {
        requests.send_modify(|requests| *requests += 1);
        Self(Arc::clone(requests))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.send_modify(|requests| *requests = requests.saturating_sub(1));
    }
}

/// A response's body that keeps its connection busy.
pub(super) struct Sent {
    body: Body,
    _busy: Busy,
}

impl Sent {
    /// `body`, with what it counts as.
    pub(super) fn new(body: Body, busy: Busy) -> Self {
        Self { body, _busy: busy }
    }
}

impl hyper::body::Body for Sent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
