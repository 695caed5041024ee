//! Clients that send slowly, or not at all, and too many of them.

use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;

use crate::PAUSE;
use crate::raw::{Raw, post_head};
use crate::server::{PATIENCE, Server, data};

/// Clients of each bad kind.
const SLOW: usize = 20;
/// Between two bytes of a slow client: it always sends something before any limit on silence.
const BYTE_PAUSE: Duration = Duration::from_millis(50);

fn start(data: &std::path::Path, max_connections: &str) -> Server {
    let limits = ["--server-header-timeout", "1", "--server-body-timeout", "1"];
    Server::start(data, limits.into_iter().chain(["--server-max-connections", max_connections]))
}

/// Asks for health again and again until all of `others` have ended; how often it was answered.
async fn served_while(server: &Server, mut others: JoinSet<String>) -> (usize, Vec<String>) {
    let (mut served, mut said) = (0, Vec::new());
    let deadline = Instant::now() + PATIENCE;
    while !others.is_empty() {
        server.json("/health").await;
        served += 1;
        while let Some(one) = others.try_join_next() {
            said.push(one.unwrap());
        }
        assert!(Instant::now() < deadline, "{} are still connected", others.len());
        tokio::time::sleep(PAUSE).await;
    }
    (served, said)
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_heads_are_cut_off_while_others_are_served() {
    let data = data();
    let server = start(data.path(), "100");
    let mut slow = JoinSet::new();
    for n in 0..SLOW {
        let beginning: &[u8] =
            [&b"GET /health HTTP/1.1\r\nhost: a\r\nx: "[..], b"G", b"", b"PRI * HT"][n % 4];
        let raw = Raw::sending(&server, beginning).await;
        // One kind says nothing at all.
        slow.spawn(
            async move { if n % 4 == 2 { raw.rest().await } else { raw.trickle(b"x", BYTE_PAUSE).await } },
        );
    }
    let began = Instant::now();
    let (served, said) = served_while(&server, slow).await;
    println!(
        "{SLOW} slow heads were gone after {:?}; {served} requests were served meanwhile",
        began.elapsed()
    );
    assert!(said.iter().all(|said| !said.contains(" 200 ")), "{said:?}");
    assert!(served > 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_bodies_are_cut_off_while_others_are_served() {
    let data = data();
    let server = start(data.path(), "100");
    let mut slow = JoinSet::new();
    for n in 0..SLOW {
        // Small ones are read at once, large ones wait for their share of memory.
        let raw = Raw::sending(&server, post_head(if n % 2 == 0 { 1000 } else { 20 << 20 }).as_bytes()).await;
        slow.spawn(raw.trickle(b" ", BYTE_PAUSE));
    }
    let began = Instant::now();
    let (served, said) = served_while(&server, slow).await;
    println!(
        "{SLOW} slow bodies were gone after {:?}; {served} requests were served meanwhile",
        began.elapsed()
    );
    for said in said {
        assert!(said.is_empty() || said.starts_with("HTTP/1.1 408 "), "{said}");
    }
    assert!(served > 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_the_limit_do_not_stop_those_that_are_served() {
    let data = data();
    let server = start(data.path(), "4");
    let mut served = Raw::open(&server).await;
    let ask = b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n";
    served.0.write_all(ask).await.unwrap();
    assert!(served.some().await.starts_with("HTTP/1.1 200 "));
    let mut idle = JoinSet::new();
    for _ in 0..40 {
        idle.spawn(Raw::open(&server).await.rest());
    }
    // It stays served for as long as the crowd, of which few are let in at a time, takes to be cut off.
    let deadline = Instant::now() + PATIENCE;
    let mut answers = 0;
    while !idle.is_empty() {
        served.0.write_all(ask).await.unwrap();
        assert!(served.some().await.starts_with("HTTP/1.1 200 "));
        answers += 1;
        while idle.try_join_next().is_some() {}
        assert!(Instant::now() < deadline, "{} are still connected", idle.len());
        tokio::time::sleep(PAUSE).await;
    }
    assert!(answers > 1);
    server.json("/health").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_nobody_reads_holds_up_no_request() {
    let data = data();
    // The pipe's other end is kept and never read; a pipe holds 64 KiB, and these requests log more.
    let (unread, log) = std::io::pipe().unwrap();
    let server = Server::start_logging_to(data.path(), ["-vv"], log.into());
    for _ in 0..1000 {
        assert_eq!(server.json("/health").await["status"], "ok");
    }
    drop(unread);
    assert_eq!(server.json("/health").await["status"], "ok");
}
