//! Whatever clients do, often, slowly, largely or cunningly, the server stays within its bounds and goes on serving
//! others. The real server, with clients as bad as they get.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what was measured is shown with --nocapture")]

mod flood;
mod models;
mod outbound;
mod oversized;
mod raw;
#[path = "../server/mod.rs"]
mod server;
mod slow;
mod sockets;

use std::time::Duration;

use reqwest::Response;
use serde_json::Value;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(10);

/// The status and error of a refusal, which must be in the API's shape.
async fn refusal(response: Response) -> (u16, Value) {
    let status = response.status().as_u16();
    let text = response.text().await.unwrap();
    let body: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{status}: {text:?}"));
    let error = body["error"].clone();
    assert!(status >= 400 && error["type"].is_string() && error["message"].is_string(), "{status}: {text}");
    (status, error)
}
