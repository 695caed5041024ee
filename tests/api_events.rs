//! What clients hear of tasks while they run: server-sent events, WebSockets, places in the queue, and what happens
//! when a client goes away. Asked of the real program with the built-in model.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod server;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use reqwest::{Method, Response};
use serde_json::{Value, json};
use server::{PATIENCE, Server, answer, create_key, data, long, refused, shared, small};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

/// A task of 2 pictures and 2 × 10 steps.
fn two() -> Value {
    json!({"prompt": "1girl, blonde hair", "width": 64, "height": 64, "steps": 10, "seed": 1, "count": 2})
}

/// Reads server-sent events one at a time.
struct Events {
    response: Response,
    text: String,
}

impl Events {
    async fn open(server: &Server, path: &str) -> Self {
        let response = server.get(path).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { response, text: String::new() }
    }

    /// Its name and data; `None` at the end.
    async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name));
                let found = field("event: ")
                    .map(|name| (name.to_owned(), serde_json::from_str(field("data: ").unwrap()).unwrap()));
                self.text = rest.to_owned();
                match found {
                    Some(event) => return Some(event),
                    None => continue, // a comment that keeps the connection open
                }
            }
            let chunk = tokio::time::timeout(PATIENCE, self.response.chunk()).await.unwrap().unwrap()?;
            self.text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }

    async fn all(mut self) -> Vec<(String, Value)> {
        let mut all = Vec::new();
        while let Some(event) = self.next().await {
            all.push(event);
        }
        all
    }
}

async fn until(server: &Server, task: &str, status: &str) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let state = server.json(&format!("/v1/tasks/{task}")).await;
        if state["status"] == status {
            return state;
        }
        assert!(Instant::now() < deadline, "{task} did not become {status}: {state}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Steps done of `total`, from a share; it must be whole steps.
#[track_caller]
fn steps(progress: &Value, total: f64) -> u64 {
    let steps = progress.as_f64().unwrap() * total;
    assert!(
        (steps - steps.round()).abs() < 1e-6 && steps <= total,
        "{progress} is no share of {total} steps"
    );
    steps.round() as u64
}

#[tokio::test]
async fn events_tell_every_step_and_picture_and_end_with_the_final_status() {
    let folder = data();
    // One picture at a time: the task waits until the listener is there.
    let server = Server::start(folder.path(), ["--max-batch", "1"]);
    let ahead = server.submit("/v1/images", &long(1)).await;
    until(&server, &ahead, "processing").await;
    let id = server.submit("/v1/images", &two()).await;
    let mut events = Events::open(&server, &format!("/v1/tasks/{id}/events")).await;
    let (name, first) = events.next().await.unwrap();
    assert_eq!((name.as_str(), &first["task_id"]), ("status", &json!(id)));
    server.delete(&format!("/v1/tasks/{ahead}")).await;
    let events = events.all().await;

    let shares: Vec<u64> = events
        .iter()
        .filter(|(name, _)| name == "progress")
        .map(|(_, data)| steps(&data["progress"], 20.0))
        .collect();
    assert_eq!(shares, (0..=20).collect::<Vec<u64>>(), "every step once");
    let images: Vec<&Value> =
        events.iter().filter(|(name, _)| name == "image").map(|(_, data)| data).collect();
    assert_eq!(images.len(), 2);
    let task = server.json(&format!("/v1/tasks/{id}")).await;
    for image in images {
        assert_eq!(image, &task["images"][image["index"].as_u64().unwrap() as usize]);
    }
    let lines: Vec<&str> = events.iter().filter_map(|(_, data)| data["current_step"].as_str()).collect();
    assert!(lines.contains(&"Generating image 1/2") && lines.contains(&"Generating image 2/2"), "{lines:?}");
    let (name, last) = events.last().unwrap();
    assert_eq!(
        (name.as_str(), last["status"].as_str(), last["progress"].as_f64()),
        ("status", Some("completed"), Some(1.0))
    );
    assert!(!events.iter().any(|(name, _)| name == "preview"), "nobody asked for previews");

    let after: Vec<String> = Events::open(&server, &format!("/v1/tasks/{id}/events"))
        .await
        .all()
        .await
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(after, ["progress", "image", "image", "status"], "a finished task is told whole");
    refused(server.get("/v1/tasks/img_00/events").await, 404, "not_found").await;
}

#[tokio::test]
async fn previews_come_to_those_who_ask_while_the_picture_is_drawn() {
    let folder = data();
    let server = Server::start(folder.path(), ["--engine-previews-per-second", "50"]);
    let id = server.submit("/v1/images", &long(1)).await;
    let mut events = Events::open(&server, &format!("/v1/tasks/{id}/events?previews=true")).await;
    let mut previews = Vec::new();
    while previews.len() < 2 {
        let (name, data) = events.next().await.unwrap();
        if name == "preview" {
            assert_eq!((&data["task_id"], data["index"].as_u64()), (&json!(id), Some(0)));
            previews.push(data["preview"].as_str().unwrap().to_owned());
        }
    }
    server.delete(&format!("/v1/tasks/{id}")).await;
    for preview in &previews {
        let encoded = preview.strip_prefix("data:image/jpeg;base64,").unwrap();
        let bytes = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, encoded).unwrap();
        let picture = image::load_from_memory(&bytes).unwrap();
        assert_eq!((picture.width(), picture.height()), (16, 16), "one pixel a cell of the latent");
    }
    assert_ne!(previews[0], previews[1], "the picture does not change");
    let (name, last) = events.all().await.pop().unwrap();
    assert_eq!((name.as_str(), last["status"].as_str()), ("status", Some("cancelled")));
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

async fn socket(server: &Server, key: Option<&str>) -> Socket {
    let address = format!("{}/v1/tasks/ws", server.url.replacen("http", "ws", 1));
    let mut request = address.into_client_request().unwrap();
    if let Some(key) = key {
        request.headers_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
    }
    connect_async(request).await.unwrap().0
}

async fn say(socket: &mut Socket, message: Value) {
    socket.send(Message::text(message.to_string())).await.unwrap();
}

async fn hear(socket: &mut Socket) -> Value {
    loop {
        match tokio::time::timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap() {
            Message::Text(text) => return serde_json::from_str(&text).unwrap(),
            Message::Ping(_) | Message::Pong(_) => {}
            other => panic!("not a text: {other:?}"),
        }
    }
}

/// The refusal that comes next, past news of tasks.
async fn hear_refusal(socket: &mut Socket) -> Value {
    loop {
        let told = hear(socket).await;
        if told.get("status").is_none() {
            return told;
        }
    }
}

#[tokio::test]
async fn one_socket_listens_to_many_tasks_until_each_is_final() {
    let server = shared(&[]);
    let mut socket = socket(&server, None).await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        let id = server.submit("/v1/images", &two()).await;
        say(&mut socket, json!({"action": "subscribe", "task_id": id})).await;
        ids.push(id);
    }
    let mut heard: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    let mut open = ids.len();
    while open > 0 {
        let told = hear(&mut socket).await;
        open -= usize::from(
            told["status"] == "completed" && told.get("image_url").is_none() && {
                // The last word: a finished task that is told whole says so more than once.
                let known = heard.get(told["task_id"].as_str().unwrap());
                known
                    .is_some_and(|all| all.iter().filter(|told| told.get("image_url").is_some()).count() == 2)
            },
        );
        heard.entry(told["task_id"].as_str().unwrap().to_owned()).or_default().push(told);
    }
    for id in ids {
        let told = &heard[&id];
        let shares: Vec<u64> = told.iter().map(|told| steps(&told["progress"], 20.0)).collect();
        assert!(shares.is_sorted(), "{shares:?}");
        let task = server.json(&format!("/v1/tasks/{id}")).await;
        let urls: BTreeSet<&str> = told.iter().filter_map(|told| told["image_url"].as_str()).collect();
        assert_eq!(urls, BTreeSet::from([0, 1].map(|index| task["images"][index]["url"].as_str().unwrap())));
        let last = told.last().unwrap();
        assert_eq!((last["status"].as_str(), last["progress"].as_f64()), (Some("completed"), Some(1.0)));
    }
}

#[tokio::test]
async fn unsubscribing_ends_the_news_of_one_task_and_previews_come_on_request() {
    let folder = data();
    let server = Server::start(folder.path(), ["--engine-previews-per-second", "50"]);
    let mut socket = socket(&server, None).await;
    let (one, two) =
        (server.submit("/v1/images", &long(1)).await, server.submit("/v1/images", &long(2)).await);
    say(&mut socket, json!({"action": "subscribe", "task_id": one, "previews": true})).await;
    say(&mut socket, json!({"action": "subscribe", "task_id": two})).await;
    let (mut preview, mut other) = (false, false);
    while !(preview && other) {
        let told = hear(&mut socket).await;
        if let Some(shown) = told["preview"].as_str() {
            assert!(shown.starts_with("data:image/jpeg;base64,") && told["task_id"] == json!(one), "{told}");
            preview = true;
        }
        other |= told["task_id"] == json!(two);
    }
    say(&mut socket, json!({"action": "unsubscribe", "task_id": one})).await;
    // An answer to this comes after the server has read the message before.
    say(&mut socket, json!({"action": "unsubscribe", "task_id": one})).await;
    let error = hear_refusal(&mut socket).await;
    assert_eq!((&error["task_id"], &error["error"]["type"]), (&json!(one), &json!("not_found")));
    for _ in 0..5 {
        assert_eq!(hear(&mut socket).await["task_id"], json!(two));
    }
    for id in [&one, &two] {
        server.delete(&format!("/v1/tasks/{id}")).await;
    }
    while hear(&mut socket).await["status"] != "cancelled" {}
}

#[tokio::test]
async fn a_bad_action_is_answered_and_the_socket_goes_on() {
    let server = shared(&["--server-max-subscriptions", "3"]);
    let mut socket = socket(&server, None).await;
    for (message, kind, field) in [
        ("hello", "malformed_request", Value::Null),
        (r#"{"action": "subscribe"}"#, "invalid_value", json!("task_id")),
        (r#"{"action": "subscrib", "task_id": "x"}"#, "invalid_value", json!("action")),
        (r#"{"action": "subscribe", "task_id": "x", "preview": true}"#, "invalid_value", json!("preview")),
        (r#"{"action": "subscribe", "task_id": "x"}"#, "not_found", Value::Null),
        (
            r#"{"action": "subscribe", "task_id": "img_00000000000000000000000000000000"}"#,
            "not_found",
            Value::Null,
        ),
    ] {
        socket.send(Message::text(message)).await.unwrap();
        let told = hear(&mut socket).await;
        assert_eq!(
            (&told["error"]["type"], &told["error"]["field"]),
            (&json!(kind), &field),
            "{message}: {told}"
        );
        assert!(told["error"]["message"].is_string());
    }
    socket.send(Message::binary(b"{}".to_vec())).await.unwrap();
    assert_eq!(hear(&mut socket).await["error"]["type"], "malformed_request");
    let id = server.submit("/v1/images", &small(1)).await;
    say(&mut socket, json!({"action": "subscribe", "task_id": id})).await;
    while hear(&mut socket).await["status"] != "completed" {}
    refused(server.get("/v1/tasks/ws").await, 400, "malformed_request").await;
}

#[tokio::test]
async fn a_socket_listens_to_so_many_tasks_and_a_server_to_so_many_listeners() {
    let folder = data();
    let flags = ["--server-max-subscriptions", "1", "--server-max-streams", "1"];
    let server = Server::start(folder.path(), flags);
    let (one, two) =
        (server.submit("/v1/images", &long(1)).await, server.submit("/v1/images", &long(2)).await);
    let mut socket = socket(&server, None).await;
    say(&mut socket, json!({"action": "subscribe", "task_id": one})).await;
    say(&mut socket, json!({"action": "subscribe", "task_id": two})).await;
    assert_eq!(hear_refusal(&mut socket).await["error"]["type"], "too_many_subscriptions");
    say(&mut socket, json!({"action": "unsubscribe", "task_id": one})).await;
    say(&mut socket, json!({"action": "subscribe", "task_id": two})).await;
    while hear(&mut socket).await["task_id"] != json!(two) {}

    let events = format!("/v1/tasks/{one}/events");
    let full = server.get(&events).await;
    assert!(full.headers()["retry-after"].to_str().unwrap().parse::<u64>().unwrap() >= 1);
    refused(full, 429, "too_many_streams").await;
    let metrics = || async { server.get("/metrics").await.text().await.unwrap() };
    assert!(metrics().await.contains("\ndarkroom_streams 1\n"));
    assert!(metrics().await.contains("\ndarkroom_refusals_total{reason=\"too_many_streams\"} 1\n"));
    socket.close(None).await.unwrap();
    drop(socket);
    let deadline = Instant::now() + PATIENCE;
    while server.get(&events).await.status() != 200 {
        assert!(Instant::now() < deadline, "the place was not given back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for id in [one, two] {
        server.delete(&format!("/v1/tasks/{id}")).await;
    }
}

#[tokio::test]
async fn a_socket_hears_of_the_tasks_of_its_key_alone() {
    let folder = data();
    let (one, two) = (create_key(folder.path(), "one", &[]), create_key(folder.path(), "two", &[]));
    let server = Server::start(folder.path(), [""; 0]).with_key(&one);
    let id = server.submit("/v1/images", &small(1)).await;
    server.completed(&id).await;
    let subscribe = |token: Option<&str>| json!({"action": "subscribe", "task_id": id, "auth_token": token});

    let mut open = socket(&server, None).await;
    for (token, kind) in [
        (None, "unauthorized"),
        (Some("Bearer dk_wrong".to_owned()), "unauthorized"),
        (Some(format!("Bearer {two}")), "not_found"),
    ] {
        say(&mut open, subscribe(token.as_deref())).await;
        let told = hear(&mut open).await;
        assert_eq!((&told["error"]["type"], &told["task_id"]), (&json!(kind), &json!(id)), "{told}");
    }
    for token in [format!("Bearer {one}"), one.clone()] {
        let mut open = socket(&server, None).await;
        say(&mut open, subscribe(Some(&token))).await;
        assert_eq!(hear(&mut open).await["status"], "completed");
    }
    let mut by_header = socket(&server, Some(&one)).await;
    say(&mut by_header, json!({"action": "subscribe", "task_id": id})).await;
    assert_eq!(hear(&mut by_header).await["status"], "completed");
    let mut other = socket(&server, Some(&two)).await;
    say(&mut other, json!({"action": "subscribe", "task_id": id})).await;
    assert_eq!(hear(&mut other).await["error"]["type"], "not_found");
}

#[tokio::test]
async fn a_client_that_goes_away_frees_its_place_if_it_said_so() {
    let folder = data();
    let server = Server::start(folder.path(), ["--queue-max-tasks", "1"]);
    let body = |cancel: bool| {
        let mut body = long(1);
        body["cancel_on_disconnect"] = cancel.into();
        body
    };
    let openai = json!({"prompt": "1girl", "size": "128x128", "steps": 150});
    for (path, body, cancelled) in [
        ("/v1/images?wait=true", body(true), true),
        ("/v1/images/generations", openai, true),
        ("/v1/images?wait=true", body(false), false),
    ] {
        let waiting = server.request(Method::POST, path).json(&body).send();
        let mut waiting = tokio::spawn(waiting);
        let deadline = Instant::now() + PATIENCE;
        let id = loop {
            let page = server.json("/v1/tasks?status=processing").await;
            if let Some(id) = page["tasks"][0]["task_id"].as_str() {
                break id.to_owned();
            }
            assert!(Instant::now() < deadline && !waiting.is_finished(), "{:?}", (&mut waiting).await);
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        refused(server.post("/v1/images", &small(1)).await, 429, "queue_full").await;
        waiting.abort();
        if cancelled {
            assert_eq!(server.finished(&id).await["status"], "cancelled", "{path}");
            let next = server.submit("/v1/images", &small(1)).await;
            server.completed(&next).await;
        } else {
            // Long enough for a connection's end to be noticed; it goes on all the same.
            tokio::time::sleep(Duration::from_millis(300)).await;
            assert_eq!(server.json(&format!("/v1/tasks/{id}")).await["status"], "processing");
            assert_eq!(answer(server.delete(&format!("/v1/tasks/{id}")).await).await.0, 200);
        }
    }
}

#[tokio::test]
async fn places_in_the_queue_are_real_and_times_come_from_measurement() {
    let folder = data();
    let server = Server::start(folder.path(), ["--max-batch", "1"]);
    let first = server.submit("/v1/images", &small(1)).await;
    server.completed(&first).await;
    let ahead = server.submit("/v1/images", &long(1)).await;
    let running = until(&server, &ahead, "processing").await;
    assert_eq!(running["queue_position"], Value::Null);
    assert!(running["eta_seconds"].as_f64().unwrap() > 0.0, "{running}");

    let mut waiting = Vec::new();
    for seed in 0..20 {
        waiting.push(server.submit("/v1/images", &long(seed)).await);
    }
    // The server may say what it knew a moment ago.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut places = Vec::new();
    for id in &waiting {
        let task = server.json(&format!("/v1/tasks/{id}")).await;
        if task["status"] == "queued" {
            places.push((task["queue_position"].as_u64().unwrap(), task["eta_seconds"].as_f64().unwrap()));
        }
    }
    assert!(places.len() > 2, "{places:?}");
    for pair in places.windows(2) {
        assert_eq!(pair[1].0, pair[0].0 + 1, "{places:?}");
    }
    // The measured rate changes between answers, but not many times over.
    let (soonest, latest) = (places[0].1, places.last().unwrap().1);
    assert!(latest > 1.5 * soonest, "who is served later is done later: {places:?}");
    let queue = server.json("/v1/queue").await;
    assert_eq!(queue["queued"]["standard"], places.len(), "{queue}");
    assert!(
        queue["processing"].as_u64().unwrap() >= 1 && queue["eta_seconds"].as_f64().unwrap() > 0.0,
        "{queue}"
    );

    let mut priority = long(99);
    priority["priority"] = "priority".into();
    let priority = server.submit("/v1/images", &priority).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let task = server.json(&format!("/v1/tasks/{priority}")).await;
    let last = server.json(&format!("/v1/tasks/{}", waiting.last().unwrap())).await;
    assert!(task["status"] == "processing" || task["queue_position"] == 0, "{task}");
    assert!(last["queue_position"].as_u64().unwrap() >= places.last().unwrap().0, "{last}");
    for id in waiting.iter().chain([&ahead, &priority]) {
        server.delete(&format!("/v1/tasks/{id}")).await;
    }
    let queue = server.json("/v1/queue").await;
    assert_eq!(queue["queued"]["total"], 0, "{queue}");
}
