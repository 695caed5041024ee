//! Bodies with what a connection must know about them: a request's has a time to arrive in and is taken to its end
//! though nobody wants it; a response's keeps its connection busy until it is sent.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::BoxError;
use axum::body::Body;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Frame, Incoming, SizeHint};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};

/// How long the rest of a body is still taken after its request was answered. A connection that closes on bytes that
/// nobody read is reset, and a client that still sends loses the answer with it.
const LINGER: Duration = Duration::from_secs(5);

/// A request's body that must have arrived by a deadline.
pub(super) struct Timed {
    /// There until it is dropped.
    body: Option<Incoming>,
    deadline: Pin<Box<Sleep>>,
    late: Arc<AtomicBool>,
    /// Whether the client sends the body only when asked for it, and was not.
    waits: bool,
}

/// Why a body ended early.
#[derive(Debug, thiserror::Error)]
#[error("the request's body did not arrive in time")]
struct Late;

impl Timed {
    /// A body that fails `after` from now and says so in `late`; `waits`: the client expects 100 before it sends.
    pub(super) fn new(body: Incoming, after: Duration, late: Arc<AtomicBool>, waits: bool) -> Self {
        Self { body: Some(body), deadline: Box::pin(tokio::time::sleep(after)), late, waits }
    }
}

impl Drop for Timed {
    fn drop(&mut self) {
        let waits = self.waits;
        let unread = |body: &Incoming| !waits && !hyper::body::Body::is_end_stream(body);
        let Some(mut body) = self.body.take().filter(unread) else { return };
        let end = self.deadline.deadline().min(Instant::now() + LINGER);
        if let Ok(runtime) = Handle::try_current()
            && end > Instant::now()
        {
            runtime.spawn(tokio::time::timeout_at(end, async move {
                while let Some(Ok(_)) = body.frame().await {}
            }));
        }
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
        timed.waits = false;
        // First, so that a byte now and then buys no time.
        if timed.deadline.as_mut().poll(cx).is_ready() {
            timed.late.store(true, Ordering::Relaxed);
            return Poll::Ready(Some(Err(Late.into())));
        }
        let Some(body) = timed.body.as_mut() else { return Poll::Ready(None) };
        Pin::new(body).poll_frame(cx).map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(hyper::body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(hyper::body::Body::size_hint).unwrap_or_default()
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
