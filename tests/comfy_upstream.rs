//! A ComfyUI behind Darkroom: prompts with nodes that Darkroom lacks go there whole. The other server is a small one of
//! this file, with ComfyUI's routes and messages and one node of its own.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod server;

use std::collections::HashMap;
use std::io::Cursor;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Multipart, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::StreamExt;
use serde_json::{Value, json};
use server::{PATIENCE, Server, answer, data};
use tokio::sync::{Notify, mpsc};
use tokio_tungstenite::connect_async;

/// What the other server was asked, and whom it can speak to.
#[derive(Default)]
struct Theirs {
    prompts: Mutex<Vec<Value>>,
    uploads: Mutex<Vec<(String, usize)>>,
    taken_back: Mutex<Vec<String>>,
    sockets: Mutex<HashMap<String, mpsc::UnboundedSender<Message>>>,
    /// A prompt with `wait` goes on when this is told.
    go_on: Notify,
}

fn png(red: u8) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    let picture = image::RgbImage::from_pixel(16, 8, image::Rgb([red, 20, 30]));
    picture.write_to(&mut file, image::ImageFormat::Png).unwrap();
    file.into_inner()
}

fn jpeg() -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    image::RgbImage::from_pixel(8, 8, image::Rgb([1, 200, 3]))
        .write_to(&mut file, image::ImageFormat::Jpeg)
        .unwrap();
    file.into_inner()
}

async fn socket(
    State(theirs): State<Arc<Theirs>>,
    Query(query): Query<HashMap<String, String>>,
    upgrade: WebSocketUpgrade,
) -> Response {
    let client = query["clientId"].clone();
    upgrade.on_upgrade(move |mut socket: WebSocket| async move {
        let (say, mut told) = mpsc::unbounded_channel();
        theirs.sockets.lock().unwrap().insert(client, say);
        while let Some(message) = told.recv().await {
            if socket.send(message).await.is_err() {
                return;
            }
        }
    })
}

async fn submit(State(theirs): State<Arc<Theirs>>, body: Json<Value>) -> Response {
    let prompt = body["prompt"].clone();
    if prompt["2"]["inputs"].get("bad").is_some() {
        let error = json!({"type": "prompt_outputs_failed_validation", "message": "theirs", "details": "", "extra_info": {}});
        let refusal = json!({"error": error, "node_errors": {"2": {"errors": [], "dependent_outputs": ["3"], "class_type": "TheirNode"}}});
        return (StatusCode::BAD_REQUEST, Json(refusal)).into_response();
    }
    theirs.prompts.lock().unwrap().push(prompt.clone());
    let id = format!("theirs-{}", theirs.prompts.lock().unwrap().len());
    let client = body["client_id"].as_str().unwrap().to_owned();
    let socket = theirs.sockets.lock().unwrap()[&client].clone();
    tokio::spawn(run(Arc::clone(&theirs), socket, id.clone(), prompt));
    Json(json!({"prompt_id": id, "number": 1, "node_errors": {}})).into_response()
}

/// The messages of a prompt, as ComfyUI sends them.
async fn run(theirs: Arc<Theirs>, socket: mpsc::UnboundedSender<Message>, id: String, prompt: Value) {
    let say = |kind: &str, mut data: Value| {
        data["prompt_id"] = id.as_str().into();
        let _ = socket.send(Message::text(json!({"type": kind, "data": data}).to_string()));
    };
    say("execution_start", json!({"timestamp": 1}));
    say("execution_cached", json!({"nodes": ["1"], "timestamp": 1}));
    say("executing", json!({"node": "2", "display_node": "2"}));
    say("progress", json!({"value": 1, "max": 2, "node": "2"}));
    let frame = [&1_u32.to_be_bytes()[..], &1_u32.to_be_bytes(), &jpeg()].concat();
    let _ = socket.send(Message::binary(frame));
    if prompt["2"]["inputs"].get("wait").is_some() {
        theirs.go_on.notified().await;
    }
    if prompt["2"]["inputs"].get("fail").is_some() {
        let data = json!({"node_id": "2", "node_type": "TheirNode", "executed": [], "exception_message": "it broke",
            "exception_type": "ValueError", "traceback": [], "current_inputs": {}, "current_outputs": []});
        return say("execution_error", data);
    }
    say("executing", json!({"node": "3", "display_node": "3"}));
    let images = json!({"images": [{"filename": "theirs_00001_.png", "subfolder": "", "type": "output"}]});
    say("executed", json!({"node": "3", "display_node": "3", "output": images}));
    say("execution_success", json!({"timestamp": 2}));
    say("executing", json!({"node": null}));
}

async fn upload(State(theirs): State<Arc<Theirs>>, mut form: Multipart) -> Json<Value> {
    while let Some(field) = form.next_field().await.unwrap() {
        if field.name() == Some("image") {
            let name = field.file_name().unwrap().to_owned();
            let bytes = field.bytes().await.unwrap().len();
            theirs.uploads.lock().unwrap().push((name, bytes));
        }
    }
    Json(json!({"name": "in.png", "subfolder": "", "type": "input"}))
}

async fn take_back(State(theirs): State<Arc<Theirs>>, body: Json<Value>) {
    if let Some(id) = body["prompt_id"].as_str() {
        theirs.taken_back.lock().unwrap().push(id.to_owned());
    }
}

/// The other server; its address.
async fn other() -> (String, Arc<Theirs>) {
    let theirs = Arc::new(Theirs::default());
    let router = Router::new()
        .route("/ws", get(socket))
        .route("/prompt", post(submit))
        .route("/upload/image", post(upload))
        .route("/view", get(|| async { png(77) }))
        .route("/queue", post(|| async {}))
        .route("/interrupt", post(take_back))
        .route(
            "/object_info",
            get(|| async {
                Json(json!({"TheirNode": {"name": "TheirNode"}, "SaveImage": {"name": "other"}}))
            }),
        )
        .with_state(Arc::clone(&theirs));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (url, theirs)
}

fn prompt(more: &Value) -> Value {
    let mut inputs = json!({"image": ["1", 0], "strength": 0.5});
    for (name, value) in more.as_object().unwrap() {
        inputs[name] = value.clone();
    }
    json!({
        "1": {"class_type": "LoadImage", "inputs": {"image": "in.png"}},
        "2": {"class_type": "TheirNode", "inputs": inputs},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "theirs"}},
    })
}

async fn post_prompt(server: &Server, client: &str, prompt: &Value) -> (u16, Value) {
    answer(server.post("/prompt", &json!({"prompt": prompt, "client_id": client})).await).await
}

async fn ended(server: &Server, id: &str) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let history = server.json(&format!("/history/{id}")).await;
        if let Some(entry) = history.get(id) {
            return entry.clone();
        }
        assert!(Instant::now() < deadline, "{id} did not end");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_prompt_with_a_node_that_darkroom_lacks_goes_whole_to_the_comfyui_behind_it() {
    let (url, theirs) = other().await;
    let folder = data();
    let server = Server::start(folder.path(), ["--comfy-upstream", &url]);
    let input = folder.path().join("comfy/input");
    std::fs::write(input.join("in.png"), png(1)).unwrap();
    // A picture of its own has the name already; it must stay as it is.
    let output = folder.path().join("comfy/output");
    std::fs::write(output.join("theirs_00001_.png"), b"own").unwrap();

    let address = format!("{}/ws?clientId=me", server.url.replacen("http", "ws", 1));
    let (mut socket, _) = connect_async(address).await.unwrap();
    let (status, accepted) = post_prompt(&server, "me", &prompt(&json!({}))).await;
    assert_eq!(status, 200, "{accepted}");
    let id = accepted["prompt_id"].as_str().unwrap();
    let mut kinds = Vec::new();
    loop {
        let next = tokio::time::timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap();
        let tokio_tungstenite::tungstenite::Message::Text(text) = next else { continue };
        let message: Value = serde_json::from_str(&text).unwrap();
        let kind = message["type"].as_str().unwrap().to_owned();
        let last = kind == "executing" && message["data"]["node"].is_null();
        if message["data"]["prompt_id"] == id && kind != "progress_state" {
            kinds.push(kind);
        }
        if last {
            break;
        }
    }
    let expected = [
        "execution_start",
        "execution_cached",
        "executing",
        "progress",
        "executing",
        "executed",
        "execution_success",
        "executing",
    ];
    assert_eq!(kinds, expected);

    let entry = ended(&server, id).await;
    assert_eq!(entry["status"]["status_str"], "success", "{entry}");
    let file = &entry["outputs"]["3"]["images"][0];
    assert_eq!((&file["filename"], &file["type"]), (&json!("theirs_00001_ (1).png"), &json!("output")));
    let view = server.get("/view?filename=theirs_00001_%20(1).png&type=output").await;
    assert_eq!(view.bytes().await.unwrap(), png(77));
    assert_eq!(std::fs::read(output.join("theirs_00001_.png")).unwrap(), b"own");
    assert_eq!(*theirs.uploads.lock().unwrap(), [("in.png".to_owned(), png(1).len())]);
    assert_eq!(theirs.prompts.lock().unwrap()[0], prompt(&json!({})));

    let nodes = server.json("/object_info").await;
    assert_eq!(nodes["TheirNode"]["name"], "TheirNode");
    assert_eq!(nodes["SaveImage"]["name"], "SaveImage", "Darkroom's own node says what it is");
    let metrics = server.get("/metrics").await.text().await.unwrap();
    assert!(metrics.contains("darkroom_comfy_upstream_prompts_total 1"), "{metrics}");
    assert!(metrics.contains("darkroom_comfy_missing_nodes_total{class=\"TheirNode\"} 1"), "{metrics}");
}

#[tokio::test]
async fn what_the_other_server_refuses_or_fails_at_is_told_and_an_interrupt_reaches_it() {
    let (url, theirs) = other().await;
    let folder = data();
    let server = Server::start(folder.path(), ["--comfy-upstream", &url]);
    let (status, refused) = post_prompt(&server, "me", &prompt(&json!({"bad": 1}))).await;
    assert_eq!((status, &refused["error"]["message"]), (400, &json!("theirs")), "{refused}");
    assert_eq!(refused["node_errors"]["2"]["class_type"], "TheirNode");

    let (_, accepted) = post_prompt(&server, "me", &prompt(&json!({"fail": 1}))).await;
    let entry = ended(&server, accepted["prompt_id"].as_str().unwrap()).await;
    assert_eq!(entry["status"]["status_str"], "error", "{entry}");
    let messages = entry["status"]["messages"].as_array().unwrap();
    let error = messages.iter().find(|message| message[0] == "execution_error").unwrap();
    assert_eq!(
        (&error[1]["exception_message"], &error[1]["node_type"]),
        (&json!("it broke\n"), &json!("TheirNode"))
    );

    let (_, accepted) = post_prompt(&server, "me", &prompt(&json!({"wait": 1}))).await;
    let id = accepted["prompt_id"].as_str().unwrap();
    let response = server.post("/interrupt", &json!({"prompt_id": id})).await;
    assert_eq!(response.status(), 200);
    let entry = ended(&server, id).await;
    assert_eq!(entry["status"]["status_str"], "error", "{entry}");
    let deadline = Instant::now() + PATIENCE;
    while theirs.taken_back.lock().unwrap().is_empty() {
        assert!(Instant::now() < deadline, "the other server did not hear of it");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    theirs.go_on.notify_waiters();
}

#[tokio::test]
async fn without_another_server_or_when_it_is_gone_the_answer_names_what_is_missing() {
    let folder = data();
    let server = Server::start(folder.path(), Vec::<&str>::new());
    let (status, refused) = post_prompt(&server, "me", &prompt(&json!({}))).await;
    assert_eq!((status, &refused["error"]["type"]), (400, &json!("invalid_prompt")), "{refused}");
    assert!(refused.to_string().contains("TheirNode"), "{refused}");

    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let folder = data();
    let server = Server::start(folder.path(), ["--comfy-upstream", &format!("http://{free}")]);
    let (status, refused) = post_prompt(&server, "me", &prompt(&json!({}))).await;
    assert_eq!((status, &refused["error"]["type"]), (400, &json!("upstream_unreachable")), "{refused}");
    // What Darkroom has nodes for is drawn all the same.
    let own = json!({
        "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 7}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    });
    let (status, accepted) = post_prompt(&server, "me", &own).await;
    assert_eq!(status, 200, "{accepted}");
    assert_eq!(
        ended(&server, accepted["prompt_id"].as_str().unwrap()).await["status"]["status_str"],
        "success"
    );
}
