//! SIGTERM: what runs is finished within the limit, and what is not goes on at the next start.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::server::{Server, data, files, small, terminate};
use crate::{lasting, refused_for_now, soon, under_way, unfinished};

/// Asks a server to stop, and waits until it refuses tasks for that reason. Those that it still took, because the
/// signal was on its way.
async fn begin_to_stop(server: &Server) -> Vec<String> {
    terminate(server.pid());
    let mut taken = Vec::new();
    loop {
        let response = server.post("/v1/images", &small(5)).await;
        if response.status().is_success() {
            let task: Value = response.json().await.unwrap();
            taken.push(task["task_id"].as_str().unwrap().to_owned());
            continue;
        }
        let (kind, message) = refused_for_now(response).await;
        assert_eq!((kind.as_str(), message.contains("stopping")), ("draining", true), "{message}");
        return taken;
    }
}

async fn submit_lasting(server: &Server, count: u64) -> Vec<String> {
    let mut tasks = Vec::new();
    for seed in 0..count {
        tasks.push(server.submit("/v1/images", &lasting(seed)).await);
    }
    under_way(server, &tasks[0]).await;
    tasks
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_asked_to_stop_finishes_what_it_has_and_takes_nothing_new() {
    let data = data();
    let server = Server::start(data.path(), ["--server-drain-timeout", "600"]);
    let mut tasks = submit_lasting(&server, 2).await;
    tasks.extend(begin_to_stop(&server).await);
    let (kind, _) = refused_for_now(server.get("/ready").await).await;
    assert_eq!(kind, "draining");
    for path in ["/health", "/v1/queue", &format!("/v1/tasks/{}", tasks[0])] {
        server.json(path).await;
    }
    assert_eq!(server.exited(), Some(0));

    let stopped = Timestamp::now();
    let server = Server::start(data.path(), [""; 0]);
    for task in &tasks {
        let state = server.json(&format!("/v1/tasks/{task}")).await;
        assert_eq!(state["status"], "completed", "{state}");
        let finished: Timestamp = state["finished_at"].as_str().unwrap().parse().unwrap();
        assert!(finished < stopped, "it was finished by the next server");
        image::load_from_memory(&server.picture(&state, 0).await).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_stop_cannot_wait_for_goes_on_at_the_next_start() {
    let data = data();
    let server = Server::start(data.path(), ["--server-drain-timeout", "0.1"]);
    let tasks = submit_lasting(&server, 4).await;
    assert_eq!(server.stop(), Some(0));
    let server = Server::start(data.path(), [""; 0]);
    assert!(unfinished(&server).await > 0, "they were all done before");
    for task in &tasks {
        let state = server.completed(task).await;
        assert_eq!(state["images"].as_array().map(Vec::len), Some(1));
    }
    assert_eq!(files(&data.path().join("images")).len(), tasks.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_a_server_at_once_and_loses_nothing() {
    let data = data();
    let server = Server::start(data.path(), ["--server-drain-timeout", "3600"]);
    // Hours of work: only an end at once is in time.
    let endless = json!({"prompt": "a cat", "width": 512, "height": 512, "steps": 150, "count": 100});
    let task = server.submit("/v1/images", &endless).await;
    begin_to_stop(&server).await;
    terminate(server.pid());
    assert_eq!(server.exited(), Some(1), "what was asked for was not waited for");
    let server = Server::start(data.path(), [""; 0]);
    let state = server.json(&format!("/v1/tasks/{task}")).await;
    assert!(["queued", "processing"].contains(&state["status"].as_str().unwrap()), "{state}");
    let going_on = soon("it goes on", || async {
        let state = server.json(&format!("/v1/tasks/{task}")).await;
        state["progress"].as_f64().filter(|progress| *progress > 0.0)
    });
    going_on.await;
}
