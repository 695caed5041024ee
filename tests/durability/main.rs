//! What was acknowledged is finished, once, whatever happens to the server: killed, stopped, out of disk, cut off from
//! its storage. The real server on real files.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what was measured is shown with --nocapture")]

mod chance;
mod disk;
mod kills;
mod receiver;
#[path = "../server/mod.rs"]
mod server;
mod stopping;
mod storage;

use std::time::{Duration, Instant};

use reqwest::Response;
use serde_json::Value;

use server::{PATIENCE, Server, small};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(10);

/// A request that lasts long enough to be disturbed.
fn lasting(seed: u64) -> Value {
    let mut body = small(seed);
    body["steps"] = 150.into();
    body
}

/// Looks again and again until `look` finds something.
async fn soon<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(PAUSE).await;
    }
}

/// Waits until a task has made a step, and not yet all.
async fn under_way(server: &Server, task: &str) {
    let progress = soon("a first step", || async {
        let state = server.json(&format!("/v1/tasks/{task}")).await;
        state["progress"].as_f64().filter(|progress| *progress > 0.0)
    });
    assert!(progress.await < 1.0, "{task} was done before it could be disturbed");
}

/// Tasks that the server has still to finish.
async fn unfinished(server: &Server) -> u64 {
    let queue = server.json("/v1/queue").await;
    queue["queued"]["total"].as_u64().unwrap() + queue["processing"].as_u64().unwrap()
}

/// Asserts a refusal for now, in the API's shape; its kind and message.
async fn refused_for_now(response: Response) -> (String, String) {
    assert_eq!(response.status(), 503);
    let wait = response.headers()["retry-after"].to_str().unwrap().parse::<u64>().unwrap();
    assert!(wait >= 1);
    let error: Value = response.json().await.unwrap();
    let text = |field: &str| error["error"][field].as_str().unwrap().to_owned();
    (text("type"), text("message"))
}
