//! A receiver of webhooks on the loopback: notes what comes, and whether its signature is genuine.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::Value;
use sha2::Sha256;

/// One delivery that arrived.
#[derive(Debug, Clone)]
pub(crate) struct Arrival {
    pub(crate) delivery: String,
    pub(crate) event: String,
    pub(crate) body: Value,
    signature: String,
    raw: Bytes,
}

impl Arrival {
    /// Whether its signature is of this secret, over its time and body.
    pub(crate) fn is_genuine(&self, secret: &str) -> bool {
        let parts = self.signature.strip_prefix("t=").and_then(|rest| rest.split_once(",v1="));
        let Some((seconds, code)) = parts else { return false };
        let mut expected = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
        expected.update(format!("{seconds}.").as_bytes());
        expected.update(&self.raw);
        hex::decode(code).is_ok_and(|code| expected.verify_slice(&code).is_ok())
    }

    pub(crate) fn task(&self) -> &str {
        self.body["task_id"].as_str().unwrap_or_default()
    }
}

type Arrivals = Arc<Mutex<Vec<Arrival>>>;

/// Listens until the test ends.
pub(crate) struct Receiver {
    pub(crate) url: String,
    arrivals: Arrivals,
}

impl Receiver {
    /// Answers 204 after a short while, as receivers do.
    pub(crate) async fn start() -> Self {
        let arrivals = Arrivals::default();
        let router = Router::new().route("/hook", post(take)).with_state(Arc::clone(&arrivals));
        let listener = tokio::net::TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, arrivals }
    }

    pub(crate) fn arrivals(&self) -> Vec<Arrival> {
        self.arrivals.lock().unwrap().clone()
    }

    /// Tasks that were told of.
    pub(crate) fn tasks(&self) -> BTreeSet<String> {
        self.arrivals().iter().map(|arrival| arrival.task().to_owned()).collect()
    }
}

async fn take(State(arrivals): State<Arrivals>, headers: HeaderMap, raw: Bytes) -> StatusCode {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    arrivals.lock().unwrap().push(Arrival {
        delivery: header("darkroom-delivery").to_owned(),
        event: header("darkroom-event").to_owned(),
        body: serde_json::from_slice(&raw).unwrap_or_default(),
        signature: header("darkroom-signature").to_owned(),
        raw,
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    StatusCode::NO_CONTENT
}
