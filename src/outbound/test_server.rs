//! Servers on loopback for the tests of this module: they live until dropped.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use axum::Router;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::lookup::{Lookup, LookupFuture};

/// A server on a free port.
pub(super) struct TestServer {
    pub(super) address: SocketAddr,
    task: JoinHandle<()>,
}

impl TestServer {
    /// Serves `router` on 127.0.0.1.
    pub(super) async fn start(router: Router) -> Self {
        Self::start_on(Ipv4Addr::LOCALHOST, router).await
    }

    /// Serves `router` on another address of loopback.
    pub(super) async fn start_on(ip: Ipv4Addr, router: Router) -> Self {
        let listener = TcpListener::bind((ip, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, task }
    }

    /// `http://127.0.0.1:port` and `path`.
    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// The same under a name, for which [`Names`] has addresses.
    pub(super) fn url_as(&self, name: &str, path: &str) -> String {
        format!("http://{name}:{}{path}", self.address.port())
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A lookup made of a function.
pub(super) struct Names<F>(pub(super) F);

impl<F: Fn(&str) -> IpAddr + Send + Sync + 'static> Lookup for Names<F> {
    fn lookup(&self, host: &str) -> LookupFuture {
        let address = (self.0)(host);
        Box::pin(async move { Ok(vec![address]) })
    }
}
