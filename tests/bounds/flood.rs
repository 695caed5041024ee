//! More tasks than the queue holds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use reqwest::Method;
use serde_json::{Value, json};

use crate::server::{PATIENCE, Server, data};
use crate::{PAUSE, refusal};

const CAPACITY: usize = 1000;
const SUBMISSIONS: usize = 10_000;
const CONNECTIONS: usize = 64;
/// What a thousand accepted tasks and the flood itself may take: 64 KiB a task, which is what listeners' buffers
/// come to at most, and 32 MiB for connections and allocators.
const MOST_GROWTH: u64 = (CAPACITY as u64) * (64 << 10) + (32 << 20);
/// How often refusals are tried before their growth counts as a leak.
const ROUNDS_OF_REFUSED: usize = 3;
/// What a flood that is refused may take: nothing is kept of it; allocators round up.
const MOST_GROWTH_OF_REFUSED: u64 = 16 << 20;

/// A picture that takes minutes, so that none is done meanwhile.
fn endless(seed: usize) -> Value {
    json!({"prompt": "1girl, blonde hair, smile", "width": 1024, "height": 1024, "steps": 150, "seed": seed})
}

/// Sends so many submissions over many kept connections. How often each status came, and ids of accepted tasks.
async fn flood(server: &Server, count: usize) -> (BTreeMap<u16, usize>, Vec<String>) {
    let next = Arc::new(AtomicUsize::new(0));
    let mut senders = Vec::new();
    for _ in 0..CONNECTIONS {
        let (client, url, next) =
            (crate::server::client(), format!("{}/v1/images", server.url), Arc::clone(&next));
        senders.push(tokio::spawn(async move {
            let (mut statuses, mut accepted) = (BTreeMap::<u16, usize>::new(), Vec::new());
            loop {
                let seed = next.fetch_add(1, Relaxed);
                if seed >= count {
                    return (statuses, accepted);
                }
                let response = client.post(&url).json(&endless(seed)).send().await.unwrap();
                let status = response.status().as_u16();
                *statuses.entry(status).or_default() += 1;
                if status == 200 {
                    let task: Value = response.json().await.unwrap();
                    accepted.push(task["task_id"].as_str().unwrap().to_owned());
                } else {
                    let wait = response.headers().get("retry-after").map(|wait| wait.to_str().unwrap());
                    let seconds = wait.and_then(|wait| wait.parse::<u64>().ok());
                    assert!(seconds.is_some_and(|seconds| seconds >= 1), "{status}, Retry-After {wait:?}");
                    let (_, error) = refusal(response).await;
                    assert_eq!(error["type"], "queue_full", "{error}");
                }
            }
        }));
    }
    let (mut statuses, mut accepted) = (BTreeMap::<u16, usize>::new(), Vec::new());
    for sender in senders {
        let (more_statuses, more_accepted) = sender.await.unwrap();
        for (status, count) in more_statuses {
            *statuses.entry(status).or_default() += count;
        }
        accepted.extend(more_accepted);
    }
    (statuses, accepted)
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_submissions_against_a_queue_of_a_thousand_accept_exactly_a_thousand() {
    let data = data();
    let capacity = CAPACITY.to_string();
    let server = Server::start(data.path(), ["--queue-max-tasks", &capacity, "--max-batch", "1"]);
    // The first one is being drawn before anything is measured: its network's memory is not the flood's.
    let first = server.submit("/v1/images", &endless(0)).await;
    let deadline = Instant::now() + PATIENCE;
    while server.json(&format!("/v1/tasks/{first}")).await["progress"] == 0.0 {
        assert!(Instant::now() < deadline, "no step was made");
        tokio::time::sleep(PAUSE).await;
    }

    let before = server.resident_bytes();
    let began = Instant::now();
    let (statuses, accepted) = flood(&server, SUBMISSIONS - 1).await;
    let took = began.elapsed();
    let after = server.resident_bytes();
    let (status, first_now) = {
        let response = server.get(&format!("/v1/tasks/{first}")).await;
        (response.status(), response.json::<Value>().await.unwrap())
    };
    assert!(status == 200 && first_now["finished_at"].is_null(), "a task ended meanwhile: {first_now}");
    assert_eq!(statuses, BTreeMap::from([(200, CAPACITY - 1), (429, SUBMISSIONS - CAPACITY)]));
    assert_eq!(accepted.len(), CAPACITY - 1);

    println!(
        "memory: {} KiB before, {} KiB after {SUBMISSIONS} submissions in {took:?}",
        before >> 10,
        after >> 10
    );
    assert!(after.saturating_sub(before) < MOST_GROWTH, "{before} bytes grew to {after}");
    // What refusals leave behind they leave behind each time; the allocator's own steps come once.
    let mut last = after;
    let mut growths = Vec::new();
    for _ in 0..ROUNDS_OF_REFUSED {
        let (again, _) = flood(&server, SUBMISSIONS / 2).await;
        assert_eq!(again, BTreeMap::from([(429, SUBMISSIONS / 2)]));
        let now = server.resident_bytes();
        growths.push(now.saturating_sub(last));
        last = now;
        if growths.last().is_some_and(|growth| *growth < MOST_GROWTH_OF_REFUSED) {
            break;
        }
    }
    println!("memory: grew by {growths:?} bytes with {} more each", SUBMISSIONS / 2);
    let least = growths.iter().copied().min().unwrap();
    assert!(least < MOST_GROWTH_OF_REFUSED, "refusals grow the server: {growths:?}");

    let began = Instant::now();
    let health = server.json("/health").await;
    println!("/health in {:?}", began.elapsed());
    assert_eq!(health["status"], "ok");
    let queue = server.json("/v1/queue").await;
    assert_eq!(
        queue["queued"]["total"].as_u64().unwrap() + queue["processing"].as_u64().unwrap(),
        CAPACITY as u64
    );

    for task in &accepted[..3] {
        assert_eq!(
            server.request(Method::DELETE, &format!("/v1/tasks/{task}")).send().await.unwrap().status(),
            200
        );
    }
    let (statuses, _) = flood(&server, 100).await;
    assert_eq!(statuses, BTreeMap::from([(200, 3), (429, 97)]), "each cancelled task lets one in");
}
