//! The socket side of the server: accepts connections, speaks TLS, HTTP/1.1 and HTTP/2 on them, and hands each
//! request to the routes. Everything that a peer can do slowly, or do often, has a limit here. What a request means
//! is the routes' business.

mod body;
mod connection;
mod stream;
mod tls;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::config::ServerConfig;
use connection::Rules;
use stream::Peer;
pub use tls::{TlsError, tls_config};

/// How long accepting rests when the system has no file descriptors or no memory left.
const PAUSE: Duration = Duration::from_millis(500);

/// Serves `router` on `listener` until `shutdown`; then accepts no more, ends idle connections, and returns when
/// those with a request have answered it. The caller sets the time for that: dropping the future cuts what is left.
/// WebSockets are their handlers' to end.
///
/// Handlers find the peer's address as `ConnectInfo<SocketAddr>`. Every connection takes one of
/// `max_connections` places until its socket is closed, also as a WebSocket; when none is left, new ones wait in
/// the system's queue.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Arc<rustls::ServerConfig>>,
    router: Router,
    limits: &ServerConfig,
    shutdown: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(limits.max_connections.clamp(1, Semaphore::MAX_PERMITS)));
    let tls = tls.map(TlsAcceptor::from);
    let rules = Arc::new(Rules::new(limits));
    let mut connections = JoinSet::new();
    loop {
        let accepted = async {
            let place = Arc::clone(&places).acquire_owned().await.map_err(io::Error::other)?;
            let (stream, address) = listener.accept().await?;
            Ok::<_, io::Error>((stream, address, place))
        };
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            accepted = accepted => accepted,
        };
        while connections.try_join_next().is_some() {}
        let (stream, address, place) = match accepted {
            Ok(accepted) => accepted,
            Err(error) if is_of_one_connection(&error) => continue,
            Err(error) => {
                tracing::error!(%error, "cannot accept connections");
                tokio::select! {
                    () = shutdown.cancelled() => break,
                    () = tokio::time::sleep(PAUSE) => continue,
                }
            }
        };
        // Answers are written whole; waiting for more to send would only delay them.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY");
        }
        let stream = Peer::new(stream, place);
        let (rules, router, shutdown) = (Arc::clone(&rules), router.clone(), shutdown.clone());
        match tls.clone() {
            None => connections.spawn(connection::run(stream, address, rules, router, shutdown)),
            Some(tls) => connections.spawn(async move {
                let hello = tls.accept(stream);
                let hello = tokio::select! {
                    () = shutdown.cancelled() => return,
                    hello = tokio::time::timeout(rules.header_timeout, hello) => hello,
                };
                match hello {
                    Ok(Ok(stream)) => connection::run(stream, address, rules, router, shutdown).await,
                    Ok(Err(error)) => tracing::debug!(%address, %error, "TLS handshake"),
                    Err(_) => tracing::debug!(%address, "TLS handshake took too long"),
                }
            }),
        };
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// A peer that went away before it was accepted says nothing about the next.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

#[cfg(test)]
mod tests;
