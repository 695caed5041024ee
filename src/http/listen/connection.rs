//! One connection from its first byte to its last: which protocol it speaks, how slow it may be, how it ends.

use std::convert::Infallible;
use std::future::pending;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{HeaderValue, Request, Response, StatusCode, header};
use axum::{Json, Router};
use hyper::body::{Body as _, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::body::{Busy, Sent, Timed};
use crate::config::ServerConfig;

/// Most bytes of a request's head.
const HEAD_BYTES: u32 = 64 << 10;
/// Most headers of a request; hyper's own default, said here because it is a limit.
const HEADERS: usize = 100;
/// Requests at once on one HTTP/2 connection.
const STREAMS: u32 = 100;
/// Bytes that one HTTP/2 response may have in memory ahead of its peer.
const SEND_BUFFER: usize = 128 << 10;
/// How often an HTTP/2 peer is asked whether it is there, and how long it may take to say so.
const PING: Duration = Duration::from_secs(20);

/// How connections are served.
pub(super) struct Rules {
    builder: Builder<TokioExecutor>,
    /// For TLS, for each request's head, and between requests.
    pub(super) header_timeout: Duration,
    body_timeout: Duration,
}

impl Rules {
    pub(super) fn new(limits: &ServerConfig) -> Self {
        let header_timeout = duration(limits.header_timeout);
        let mut builder = Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(header_timeout)
            .max_headers(HEADERS)
            .max_buf_size(HEAD_BYTES as usize);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_header_list_size(HEAD_BYTES)
            .max_concurrent_streams(STREAMS)
            .max_send_buf_size(SEND_BUFFER)
            .keep_alive_interval(PING)
            .keep_alive_timeout(PING);
        Self { builder, header_timeout, body_timeout: duration(limits.body_timeout) }
    }
}

/// Seconds as a duration; what is no duration is none at all.
fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

/// Serves one connection to its end.
pub(super) async fn run<S>(
    stream: S,
    address: SocketAddr,
    rules: Arc<Rules>,
    router: Router,
    shutdown: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (requests, mut seen) = watch::channel(0);
    let requests = Arc::new(requests);
    let body_timeout = rules.body_timeout;
    let service = service_fn(move |request| {
        answer(router.clone(), request, address, body_timeout, Busy::new(&requests))
    });
    let mut connection = pin!(rules.builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
    let mut closing = false;
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%address, %error, "connection");
                }
                return;
            }
            () = shutdown.cancelled(), if !closing => {
                closing = true;
                connection.as_mut().graceful_shutdown();
            }
            // Hyper's own limit begins with HTTP/1's first line; this one holds for peers that never send one,
            // and for HTTP/2, which has none. At first the connection is told to end, then it is cut.
            () = idle(&mut seen, rules.header_timeout) => {
                if closing {
                    return;
                }
                closing = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// Returns when there was no request for so long.
async fn idle(requests: &mut watch::Receiver<usize>, limit: Duration) {
    loop {
        let busy = *requests.borrow_and_update() > 0;
        let limit = if busy { Duration::MAX } else { limit };
        match tokio::time::timeout(limit, requests.changed()).await {
            Err(_) => return,
            Ok(Ok(())) => {}
            // No more requests can come: the connection ends by itself.
            Ok(Err(_)) => pending().await,
        }
    }
}

/// Hands a request to the routes.
async fn answer(
    router: Router,
    request: Request<Incoming>,
    address: SocketAddr,
    body_timeout: Duration,
    busy: Busy,
) -> Result<Response<Sent>, Infallible> {
    let late = Arc::new(AtomicBool::new(false));
    let waits = request.headers().contains_key(header::EXPECT);
    let mut request = request.map(|body| {
        if body.is_end_stream() {
            return Body::empty();
        }
        Body::new(Timed::new(body, body_timeout, Arc::clone(&late), waits))
    });
    request.extensions_mut().insert(ConnectInfo(address));
    let mut response = match router.oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    // The handler only knows that the body broke off; a success did without the rest of it.
    if late.load(Ordering::Relaxed) && !response.status().is_success() {
        response = too_late(body_timeout);
    }
    Ok(response.map(|body| Sent::new(body, busy)))
}

/// 408, in the shape of all refusals.
fn too_late(limit: Duration) -> Response<Body> {
    use axum::response::IntoResponse;
    let message = format!("the request's body did not arrive within {} seconds", limit.as_secs_f64());
    let body = Json(serde_json::json!({ "error": { "type": "request_timeout", "message": message } }));
    let mut response = (StatusCode::REQUEST_TIMEOUT, body).into_response();
    // The rest of the body may still come; it must not be read as the next request.
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}
