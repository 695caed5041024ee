//! Listeners: too many, with too many subscriptions, and ones that never read.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Error as SocketError;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, client_async, connect_async};

use crate::PAUSE;
use crate::server::{PATIENCE, Server, data, long, small};

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// What clients that never read may cost together.
const MOST_GROWTH: u64 = 64 << 20;
/// How long a message to a server that does not take it is tried.
const STUCK: Duration = Duration::from_secs(2);

fn address(server: &Server) -> String {
    format!("{}/v1/tasks/ws", server.url.replace("http://", "ws://"))
}

async fn listen(server: &Server) -> Result<Socket, SocketError> {
    connect_async(address(server)).await.map(|(socket, _)| socket)
}

async fn say(socket: &mut Socket, message: &Value) {
    socket.send(Message::text(message.to_string())).await.unwrap();
}

/// The next JSON that the server says.
async fn hear(socket: &mut Socket) -> Value {
    loop {
        let message =
            timeout(PATIENCE, socket.next()).await.expect("nothing is said").expect("it was closed");
        if let Message::Text(text) = message.unwrap() {
            return serde_json::from_str(&text).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn listeners_beyond_the_limit_are_refused_until_one_goes() {
    let data = data();
    let server = Server::start(data.path(), ["--server-max-streams", "4"]);
    let mut open = Vec::new();
    for _ in 0..4 {
        open.push(listen(&server).await.unwrap());
    }
    let SocketError::Http(refused) = listen(&server).await.unwrap_err() else { panic!("no HTTP answer") };
    assert_eq!(refused.status(), 429);
    assert!(refused.headers().contains_key("retry-after"));
    let task = server.submit("/v1/images", &small(1)).await;
    let events = server.get(&format!("/v1/tasks/{task}/events")).await;
    assert_eq!(events.status(), 429, "event streams count as well");

    open.pop().unwrap().close(None).await.unwrap();
    let mut let_in = None;
    for _ in 0..500 {
        let_in = listen(&server).await.ok();
        if let_in.is_some() {
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    let mut let_in = let_in.expect("the place of a listener that left is not given to another");
    say(&mut let_in, &json!({"action": "subscribe", "task_id": task})).await;
    assert_eq!(hear(&mut let_in).await["task_id"], task.as_str());
}

#[tokio::test(flavor = "multi_thread")]
async fn subscriptions_beyond_the_limit_are_refused_and_the_others_go_on() {
    let data = data();
    let server = Server::start(data.path(), ["--server-max-subscriptions", "3"]);
    let mut tasks = Vec::new();
    for seed in 0..4 {
        tasks.push(server.submit("/v1/images", &long(seed)).await);
    }
    let mut socket = listen(&server).await.unwrap();
    for task in &tasks {
        say(&mut socket, &json!({"action": "subscribe", "task_id": task})).await;
    }
    let mut heard = std::collections::BTreeSet::new();
    let refused = loop {
        let told = hear(&mut socket).await;
        match told["error"]["type"].as_str() {
            Some(kind) => break (kind.to_owned(), told["task_id"].clone()),
            None => heard.insert(told["task_id"].as_str().unwrap().to_owned()),
        };
    };
    assert_eq!(refused, ("too_many_subscriptions".to_owned(), json!(tasks[3])));
    say(&mut socket, &json!({"action": "unsubscribe", "task_id": tasks[0]})).await;
    say(&mut socket, &json!({"action": "subscribe", "task_id": tasks[3]})).await;
    loop {
        let told = hear(&mut socket).await;
        assert!(told["error"].is_null(), "{told}");
        if told["task_id"] == tasks[3].as_str() {
            break;
        }
    }
}

/// Asks and asks over a connection with small buffers, and never reads an answer. Returns the socket, once it takes no
/// more.
async fn ask_and_never_read(server: &Server, task: &str) -> (WebSocketStream<TcpStream>, usize) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.set_send_buffer_size(4096).unwrap();
    let stream = socket.connect(server.url.strip_prefix("http://").unwrap().parse().unwrap()).await.unwrap();
    let (mut socket, _) = client_async(address(server), stream).await.unwrap();
    let subscribe = json!({"action": "subscribe", "task_id": task, "previews": true}).to_string();
    let unknown = json!({"action": "subscribe", "task_id": "x".repeat(4000)}).to_string();
    socket.send(Message::text(subscribe)).await.unwrap();
    let mut asked = 0;
    // Far more than any buffer between the two holds.
    while asked < 200_000 {
        match timeout(STUCK, socket.send(Message::text(unknown.clone()))).await {
            Ok(Ok(())) => asked += 1,
            Ok(Err(_)) | Err(_) => break,
        }
    }
    (socket, asked)
}

#[tokio::test(flavor = "multi_thread")]
async fn listeners_that_never_read_cost_little_hold_up_no_one_and_are_let_go() {
    let data = data();
    let server = Server::start(data.path(), ["--server-max-streams", "20"]);
    let task = server.submit("/v1/images", &long(1)).await;
    let mut reader = listen(&server).await.unwrap();
    say(&mut reader, &json!({"action": "subscribe", "task_id": task, "previews": true})).await;
    while hear(&mut reader).await["progress"] == 0.0 {}

    let before = server.resident_bytes();
    let deaf = futures_util::future::join_all((0..10).map(|_| ask_and_never_read(&server, &task))).await;
    let asked: usize = deaf.iter().map(|(_, asked)| asked).sum();
    let after = server.resident_bytes();
    println!("10 deaf listeners, {asked} questions: {} KiB before, {} KiB after", before >> 10, after >> 10);
    assert!(
        deaf.iter().all(|(_, asked)| *asked < 200_000),
        "the server reads on although no answer is taken"
    );
    assert!(after.saturating_sub(before) < MOST_GROWTH, "{before} bytes grew to {after}");

    loop {
        let told = hear(&mut reader).await;
        if told["status"] == "completed" {
            break;
        }
    }
    // Their places become free although they never say goodbye.
    let mut others = Vec::new();
    let deadline = std::time::Instant::now() + PATIENCE;
    while others.len() < 19 {
        match listen(&server).await {
            Ok(socket) => others.push(socket),
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
        assert!(std::time::Instant::now() < deadline, "deaf listeners keep their places");
    }
    drop(deaf);
}
