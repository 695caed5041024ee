//! ComfyUI's server under use and abuse: prompts of many clients at once, restarts, a death, listeners that do not read
//! and listeners that do nothing. Asked of the real program.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]
#![allow(clippy::print_stdout, reason = "what was measured is shown with --nocapture")]

mod server;

use std::process::Command;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::join_all;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use server::{PATIENCE, Server, answer, create_key, data};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::{Error as SocketError, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, client_async, connect_async};

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(10);
/// What a thousand idle listeners may cost together: 64 KiB each.
const IDLE_GROWTH: u64 = 64 << 20;
/// What a listener that does not read may cost, with the history of what it is told.
const DEAF_GROWTH: u64 = 256 << 20;

/// A prompt that is done at once.
fn quick(color: u32) -> Value {
    json!({
        "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": color}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    })
}

/// A prompt that runs until it is interrupted.
fn endless(seed: u32) -> Value {
    json!({
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "tiny-sdxl.safetensors"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "1girl"}},
        "3": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "4": {"class_type": "KSampler", "inputs": {
            "model": ["1", 0], "seed": seed, "steps": 10_000, "cfg": 1.0, "sampler_name": "euler",
            "scheduler": "normal", "positive": ["2", 0], "negative": ["2", 0], "latent_image": ["3", 0],
            "denoise": 1.0}},
        "5": {"class_type": "VAEDecode", "inputs": {"samples": ["4", 0], "vae": ["1", 2]}},
        "6": {"class_type": "PreviewImage", "inputs": {"images": ["5", 0]}},
    })
}

async fn queue(server: &Server, id: &str, client: Option<&str>, prompt: &Value) {
    let mut body = json!({"prompt": prompt, "prompt_id": id});
    if let Some(client) = client {
        body["client_id"] = client.into();
    }
    let (status, answer) = answer(server.post("/prompt", &body).await).await;
    assert_eq!((status, answer["prompt_id"].as_str()), (200, Some(id)), "{answer}");
}

/// Waits for what a question is to answer.
async fn until<T>(what: &str, ask: impl AsyncFn() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = ask().await {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} does not come");
        tokio::time::sleep(PAUSE).await;
    }
}

async fn ended(server: &Server, id: &str) -> Value {
    until(id, async || server.json(&format!("/history/{id}")).await.get(id).cloned()).await
}

async fn running(server: &Server) -> Vec<String> {
    let queue = server.json("/queue").await;
    let ids = queue["queue_running"].as_array().unwrap().iter();
    ids.map(|item| item[1].as_str().unwrap().to_owned()).collect()
}

async fn interrupt(server: &Server, id: &str) {
    let response = server.post("/interrupt", &json!({"prompt_id": id})).await;
    assert_eq!(response.status(), StatusCode::OK);
}

fn address(server: &Server, client: &str) -> String {
    format!("{}/ws?clientId={client}", server.url.replace("http://", "ws://"))
}

async fn listen(server: &Server, client: &str) -> Socket {
    connect_async(address(server, client)).await.unwrap().0
}

/// The next text that the server says.
async fn hear(socket: &mut Socket) -> Value {
    loop {
        let message = tokio::time::timeout(PATIENCE, socket.next()).await.expect("nothing is said");
        if let Message::Text(text) = message.expect("it was closed").unwrap() {
            return serde_json::from_str(&text).unwrap();
        }
    }
}

/// All until a prompt's last message.
async fn hear_out(socket: &mut Socket, id: &str) -> Vec<Value> {
    let mut heard = Vec::new();
    loop {
        let message = hear(socket).await;
        let data = &message["data"];
        let last = message["type"] == "executing" && data["node"].is_null() && data["prompt_id"] == id;
        heard.push(message);
        if last {
            return heard;
        }
    }
}

/// The prompts that messages are about, each as long as it lasts.
fn prompts(heard: &[Value]) -> Vec<&str> {
    let mut ids: Vec<&str> =
        heard.iter().filter_map(|message| message["data"]["prompt_id"].as_str()).collect();
    ids.dedup();
    ids
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_hears_its_prompts_one_after_the_other_though_they_run_at_once() {
    let folder = data();
    let server = Server::start(folder.path(), [""; 0]);
    let mut mine = listen(&server, "me").await;
    let mut other = listen(&server, "other").await;
    queue(&server, "first", Some("me"), &endless(1)).await;
    queue(&server, "second", Some("me"), &quick(1)).await;
    queue(&server, "foreign", Some("other"), &quick(2)).await;
    // The second is done while the first runs, and whoever asks can see it.
    assert_eq!(ended(&server, "second").await["status"]["completed"], true);
    let heard = hear_out(&mut other, "foreign").await;
    assert_eq!(prompts(&heard), ["foreign"]);
    assert_eq!(running(&server).await, ["first"]);
    interrupt(&server, "first").await;
    let heard = hear_out(&mut mine, "second").await;
    assert_eq!(prompts(&heard), ["first", "second"]);
    let kinds: Vec<&str> = heard
        .iter()
        .filter(|message| message["data"]["prompt_id"] == "second")
        .map(|message| message["type"].as_str().unwrap())
        .collect();
    assert_eq!(
        (kinds.first(), kinds[kinds.len() - 2..].to_vec()),
        (Some(&"execution_start"), vec!["execution_success", "executing"])
    );
    let entry = ended(&server, "first").await;
    let last = entry["status"]["messages"].as_array().unwrap().last().unwrap();
    assert_eq!(last[0], "execution_interrupted", "{last}");
}

#[tokio::test(flavor = "multi_thread")]
async fn interrupting_one_prompt_leaves_the_others_alone() {
    let folder = data();
    let server = Server::start(folder.path(), ["--comfy-max-running", "2"]);
    for (id, seed) in [("one", 1), ("two", 2), ("three", 3)] {
        queue(&server, id, None, &endless(seed)).await;
    }
    until("two run", async || (running(&server).await.len() == 2).then_some(())).await;
    interrupt(&server, "three").await;
    interrupt(&server, "one").await;
    assert_eq!(ended(&server, "one").await["status"]["status_str"], "error");
    until("three runs", async || (running(&server).await == ["two", "three"]).then_some(())).await;
    // Without an id it is the one that began first.
    let empty = server.request(Method::POST, "/api/interrupt").send().await.unwrap();
    assert_eq!(empty.status(), StatusCode::OK);
    ended(&server, "two").await;
    assert_eq!(running(&server).await, ["three"]);
    let null = server.request(Method::POST, "/interrupt").body("null").send().await.unwrap();
    assert_eq!(null.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(running(&server).await, ["three"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_history_outlives_a_restart_and_what_was_accepted_outlives_a_death() {
    let folder = data();
    let flags = ["--comfy-max-running", "1", "--server-drain-timeout", "0"];
    let server = Server::start(folder.path(), flags);
    queue(&server, "done", None, &quick(1)).await;
    let before = ended(&server, "done").await;
    queue(&server, "runs", None, &endless(1)).await;
    queue(&server, "waits", None, &quick(2)).await;
    until("it runs", async || (running(&server).await == ["runs"]).then_some(())).await;
    server.kill();

    let server = Server::start(folder.path(), flags);
    assert_eq!(ended(&server, "done").await, before);
    until("it runs again", async || (running(&server).await == ["runs"]).then_some(())).await;
    assert_eq!(server.stop(), Some(0));

    let server = Server::start(folder.path(), flags);
    until("it runs once more", async || (running(&server).await == ["runs"]).then_some(())).await;
    interrupt(&server, "runs").await;
    assert_eq!(ended(&server, "waits").await["status"]["completed"], true);
    let history = server.json("/history").await;
    assert_eq!(history.as_object().unwrap().len(), 3, "each is there once");
    queue(&server, "new", None, &quick(3)).await;
    assert_eq!(ended(&server, "new").await["prompt"][0], 3, "numbers go on");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_see_their_own_prompts_and_a_socket_takes_one_in_its_address() {
    let folder = data();
    let (one, other) =
        (create_key(folder.path(), "one", &[]), create_key(folder.path(), "other", &["--admin"]));
    let server = Server::start(folder.path(), [""; 0]);
    let Err(SocketError::Http(refused)) = connect_async(address(&server, "me")).await else {
        panic!("it let a stranger in")
    };
    assert_eq!(refused.status(), 401);
    let mut socket = connect_async(format!("{}&token={one}", address(&server, "me"))).await.unwrap().0;
    let mut namesake = connect_async(format!("{}&token={other}", address(&server, "me"))).await.unwrap().0;
    assert_eq!(server.get("/history").await.status(), 401);
    let server = server.with_key(&one);
    queue(&server, "mine", Some("me"), &quick(1)).await;
    hear_out(&mut socket, "mine").await;
    assert_eq!(server.json("/history").await.as_object().unwrap().len(), 1);
    let free = server.post("/free", &json!({"unload_models": true})).await;
    let (status, body) = answer(free).await;
    assert_eq!((status, body["error"]["type"].as_str()), (403, Some("forbidden")));
    assert!(body["node_errors"].is_object(), "{body}");
    let server = server.with_key(&other);
    assert_eq!(server.json("/history").await, json!({}));
    assert_eq!(server.post("/free", &json!({"free_memory": true})).await.status(), 200);
    queue(&server, "theirs", Some("me"), &quick(1)).await;
    assert_eq!(prompts(&hear_out(&mut namesake, "theirs").await), ["theirs"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_and_pages_of_other_origins_are_refused_in_comfyuis_shape() {
    let folder = data();
    let server = Server::start(folder.path(), ["--comfy-max-running", "1", "--comfy-max-queued", "1"]);
    queue(&server, "runs", None, &endless(1)).await;
    until("it runs", async || (running(&server).await.len() == 1).then_some(())).await;
    queue(&server, "waits", None, &quick(1)).await;
    let response = server.post("/prompt", &json!({"prompt": quick(2)})).await;
    assert!(response.headers().contains_key("retry-after"));
    let (status, body) = answer(response).await;
    assert_eq!((status, body["error"]["type"].as_str()), (429, Some("queue_full")));
    for name in ["message", "details"] {
        assert!(body["error"][name].is_string(), "{body}");
    }
    let foreign = server.request(Method::POST, "/prompt").header("Origin", "http://elsewhere.example");
    let (status, body) =
        answer(foreign.body(json!({"prompt": quick(3)}).to_string()).send().await.unwrap()).await;
    assert_eq!((status, body["error"]["type"].as_str()), (403, Some("forbidden")));
    assert_eq!(server.post("/queue", &json!({"clear": true})).await.status(), 200);
    let left = server.json("/prompt").await;
    assert_eq!(left["exec_info"]["queue_remaining"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_comfy_its_routes_are_not_there() {
    let folder = data();
    let server = Server::start(folder.path(), ["--comfy=false"]);
    for path in ["/prompt", "/api/history", "/ws", "/object_info"] {
        assert_eq!(server.get(path).await.status(), 404, "{path}");
    }
    assert!(server.json("/openapi.json").await["paths"].get("/prompt").is_none());
}

/// A listener that never reads.
async fn deaf(server: &Server, client: &str) -> WebSocketStream<TcpStream> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let stream = socket.connect(server.url.strip_prefix("http://").unwrap().parse().unwrap()).await.unwrap();
    client_async(address(server, client), stream).await.unwrap().0
}

async fn sockets(server: &Server) -> Option<u64> {
    let text = server.get("/metrics").await.text().await.unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("darkroom_comfy_sockets "))?;
    line.parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_that_does_not_read_costs_little_and_is_cut() {
    let folder = data();
    let server = Server::start(folder.path(), [""; 0]);
    let mut reader = listen(&server, "reader").await;
    queue(&server, "warm", Some("reader"), &quick(0)).await;
    hear_out(&mut reader, "warm").await;
    let before = server.resident_bytes();
    let deaf = deaf(&server, "deaf").await;
    // Messages name nodes, so long names make long messages: about 20 MB of them for each prompt.
    let (one, two) = ("1".repeat(500_000), "2".repeat(500_000));
    for color in 1..=10 {
        let prompt = quick(color);
        let mut show = prompt["2"].clone();
        show["inputs"]["images"][0] = one.clone().into();
        let mut long = serde_json::Map::new();
        long.insert(one.clone(), prompt["1"].clone());
        long.insert(two.clone(), show);
        let id = format!("long-{color}");
        queue(&server, &id, Some("deaf"), &long.into()).await;
        ended(&server, &id).await;
    }
    let after = server.resident_bytes();
    println!("a deaf listener: {} MiB before, {} MiB after", before >> 20, after >> 20);
    assert!(after.saturating_sub(before) < DEAF_GROWTH, "{before} bytes grew to {after}");
    until("its end", async || (sockets(&server).await == Some(1)).then_some(())).await;
    queue(&server, "after", Some("reader"), &quick(99)).await;
    hear_out(&mut reader, "after").await;
    drop(deaf);
}

/// A process may have so many files open.
fn allow_files(pid: u32) {
    let arguments = ["--pid", &pid.to_string(), "--nofile=4096:"];
    assert!(Command::new("prlimit").args(arguments).status().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_idle_listeners_cost_little_and_one_more_is_refused() {
    const LISTENERS: usize = 1000;
    let folder = data();
    let server = Server::start(folder.path(), ["--server-max-connections", "1100"]);
    allow_files(server.pid());
    allow_files(std::process::id());
    queue(&server, "warm", None, &quick(0)).await;
    ended(&server, "warm").await;
    let before = server.resident_bytes();
    let mut idle = Vec::new();
    for start in (0..LISTENERS).step_by(50) {
        let some = (start..start + 50).map(|number| {
            let server = &server;
            async move { listen(server, &format!("idle-{number}")).await }
        });
        idle.extend(join_all(some.collect::<Vec<_>>()).await);
    }
    let Err(SocketError::Http(refused)) = connect_async(address(&server, "late")).await else {
        panic!("there was room")
    };
    assert_eq!(refused.status(), 429);
    let started = Instant::now();
    for color in 1..=20 {
        let id = format!("quick-{color}");
        queue(&server, &id, Some("idle-7"), &quick(color)).await;
        ended(&server, &id).await;
    }
    let growth = server.resident_bytes().saturating_sub(before);
    println!(
        "{LISTENERS} idle listeners: {} KiB each, 20 prompts in {:?}",
        (growth >> 10) / 1000,
        started.elapsed()
    );
    assert!(growth < IDLE_GROWTH, "they take {growth} bytes");
    hear_out(&mut idle[7], "quick-20").await;
    drop(idle);
    until("their places", async || (sockets(&server).await == Some(0)).then_some(())).await;
    listen(&server, "late").await;
}
