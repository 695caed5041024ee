//! Storage that is full or away: new tasks are refused in words, accepted ones are kept and finish when it is back.

use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::disk::Disk;
use crate::server::{Server, data, program, small};
use crate::{PAUSE, lasting, refused_for_now, soon, under_way};

/// How long a broken storage is watched. Long enough for several of the server's looks at it.
const WATCHED: Duration = Duration::from_secs(4);

/// What a server holds when its storage fails.
struct Before {
    /// Completed before.
    done: Value,
    picture: Vec<u8>,
    /// Accepted before, and being drawn.
    accepted: Vec<String>,
}

async fn prepare(server: &Server) -> Before {
    let done = server.completed(&server.submit("/v1/images", &small(1)).await).await;
    let picture = server.picture(&done, 0).await;
    let mut accepted = Vec::new();
    for seed in 0..2 {
        accepted.push(server.submit("/v1/images", &lasting(seed)).await);
    }
    under_way(server, &accepted[0]).await;
    Before { done, picture, accepted }
}

/// Waits until the server has noticed; what it then says to a new task.
async fn first_refusal(server: &Server) -> String {
    soon("it notices", || async { (server.get("/ready").await.status() == 503).then_some(()) }).await;
    let (kind, message) = refused_for_now(server.post("/v1/images", &small(9)).await).await;
    assert_eq!(kind, "storage_unavailable", "{message}");
    message
}

/// While the storage is broken: no task is taken, none is lost, and what can be read is served.
async fn stays_refused(server: &Server, before: &Before) {
    let deadline = Instant::now() + WATCHED;
    while Instant::now() < deadline {
        for response in [server.get("/ready").await, server.post("/v1/images", &small(9)).await] {
            assert_eq!(refused_for_now(response).await.0, "storage_unavailable");
        }
        server.json("/health").await;
        let done = server.json(&format!("/v1/tasks/{}", before.done["task_id"].as_str().unwrap())).await;
        assert_eq!(done["status"], "completed");
        for task in &before.accepted {
            let state = server.json(&format!("/v1/tasks/{task}")).await;
            assert!(!["failed", "cancelled"].contains(&state["status"].as_str().unwrap()), "{state}");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The storage is back: everything accepted is finished, and new tasks are taken.
async fn recovers(server: &Server, before: &Before) {
    for task in &before.accepted {
        let state = server.completed(task).await;
        assert_eq!(state["images"].as_array().map(Vec::len), Some(1), "{state}");
        image::load_from_memory(&server.picture(&state, 0).await).unwrap();
    }
    soon("it is ready again", || async { (server.get("/ready").await.status() == 200).then_some(()) }).await;
    server.completed(&server.submit("/v1/images", &small(10)).await).await;
    assert_eq!(server.picture(&before.done, 0).await, before.picture);
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_tasks_are_refused_and_accepted_ones_finish_when_there_is_room() {
    let data = data();
    let (server, disk) = Disk::start(data.path(), &["--storage-min-free-bytes", "0"]);
    let before = prepare(&server).await;
    disk.fill();
    let message = first_refusal(&server).await;
    println!("a full disk: {message}");
    let plain = ["full", "No space", "too large"].iter().any(|word| message.contains(word));
    assert!(message.contains("store is not available: ") && plain, "{message}");
    stays_refused(&server, &before).await;
    assert_eq!(server.picture(&before.done, 0).await, before.picture, "reading needs no room");
    disk.make_room();
    recovers(&server, &before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_nearly_full_takes_no_new_tasks_and_the_refusal_says_which_setting_decides() {
    let data = data();
    let server = Server::start(data.path(), ["--storage-min-free-bytes", "1000000TiB"]);
    let (kind, message) = refused_for_now(server.post("/v1/images", &small(1)).await).await;
    assert_eq!(kind, "storage_unavailable");
    assert!(message.contains("storage.min_free_bytes") && message.contains("MiB"), "{message}");
    assert_eq!(refused_for_now(server.get("/ready").await).await.0, "storage_unavailable");
    server.json("/v1/queue").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_store_that_goes_away_costs_no_task() {
    let data = data();
    let server = Server::start(data.path(), [""; 0]);
    let before = prepare(&server).await;
    let (images, away) = (data.path().join("images"), data.path().join("images-away"));
    std::fs::rename(&images, &away).unwrap();
    std::fs::write(&images, b"not a folder").unwrap();
    let message = first_refusal(&server).await;
    println!("an image store that is away: {message}");
    let folder = data.path().display().to_string();
    assert!(message.contains("image store is not available: ") && !message.contains(&folder), "{message}");
    stays_refused(&server, &before).await;
    let picture = server.get(before.done["images"][0]["url"].as_str().unwrap()).await;
    assert_eq!(refused_for_now(picture).await.0, "storage_unavailable");
    std::fs::remove_file(&images).unwrap();
    std::fs::rename(&away, &images).unwrap();
    recovers(&server, &before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_while_its_storage_is_away_loses_nothing_either() {
    let data = data();
    let server = Server::start(data.path(), [""; 0]);
    let before = prepare(&server).await;
    let (images, away) = (data.path().join("images"), data.path().join("images-away"));
    std::fs::rename(&images, &away).unwrap();
    std::fs::write(&images, b"not a folder").unwrap();
    first_refusal(&server).await;
    server.kill();
    std::fs::remove_file(&images).unwrap();
    std::fs::rename(&away, &images).unwrap();
    recovers(&Server::start(data.path(), [""; 0]), &before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_server_on_the_same_folder_does_not_start() {
    let data = data();
    let first = Server::start(data.path(), [""; 0]);
    let mut command = program();
    command.args(["serve", "--port", "0", "--data-dir"]).arg(data.path());
    let mut second =
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let status = soon("the second gives up", || {
        let ended = second.try_wait().unwrap();
        async move { ended }
    });
    let status = status.await;
    let mut said = String::new();
    std::io::Read::read_to_string(&mut second.stderr.take().unwrap(), &mut said).unwrap();
    assert!(!status.success());
    assert!(said.contains("in use by another Darkroom server"), "{said}");
    assert!(said.contains(data.path().to_str().unwrap()), "{said}");
    let task =
        first.submit("/v1/images", &json!({"prompt": "a cat", "width": 64, "height": 64, "steps": 1})).await;
    first.completed(&task).await;
}
