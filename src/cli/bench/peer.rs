//! A server that speaks ComfyUI's API, as its clients see it: POST /prompt, the WebSocket until the prompt has ended,
//! then /history and /view.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};
use url::Url;

use crate::outbound::innermost;

/// Why a server could not be measured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(super) enum PeerError {
    /// No answer, or none that can be read.
    #[error("{url}: {message}")]
    Request {
        /// What was asked for.
        url: String,
        /// What became of it.
        message: String,
    },
    /// The prompt was refused or failed.
    #[error("{url} did not run the workflow: {message}")]
    Prompt {
        /// The server.
        url: String,
        /// What it said.
        message: String,
    },
    /// It took too long.
    #[error("{url} did not end the workflow within {seconds} s")]
    Timeout {
        /// The server.
        url: String,
        /// How long was waited.
        seconds: u64,
    },
    /// A worker ended in a defect.
    #[error("a client of the benchmark ended in a defect")]
    Lost,
}

/// A picture in a server's folders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Picture {
    filename: String,
    subfolder: String,
    kind: String,
}

/// A server.
pub(super) struct Peer {
    url: Url,
    http: reqwest::Client,
    key: Option<String>,
    timeout: Duration,
}

impl Peer {
    pub(super) fn new(url: Url, key: Option<&str>, timeout: Duration) -> Result<Self, PeerError> {
        let http = reqwest::Client::builder().no_proxy().timeout(timeout).build();
        let http =
            http.map_err(|error| PeerError::Request { url: url.to_string(), message: error.to_string() })?;
        Ok(Self { url, http, key: key.map(str::to_owned), timeout })
    }

    pub(super) fn url(&self) -> &Url {
        &self.url
    }

    fn at(&self, path: &str) -> String {
        format!("{}{path}", self.url.as_str().trim_end_matches('/'))
    }

    fn failed(&self, path: &str, error: &dyn std::error::Error) -> PeerError {
        PeerError::Request { url: self.at(path), message: innermost(error) }
    }

    async fn send(&self, path: &str, request: reqwest::RequestBuilder) -> Result<(u16, Vec<u8>), PeerError> {
        let request = match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        };
        let response = request.send().await.map_err(|error| self.failed(path, &error))?;
        let status = response.status().as_u16();
        let body = response.bytes().await.map_err(|error| self.failed(path, &error))?;
        Ok((status, body.to_vec()))
    }

    async fn json(&self, path: &str) -> Result<Value, PeerError> {
        let (status, body) = self.send(path, self.http.get(self.at(path))).await?;
        let unreadable = |message: String| PeerError::Request { url: self.at(path), message };
        if status != 200 {
            return Err(unreadable(format!("status {status}")));
        }
        serde_json::from_slice(&body).map_err(|error| unreadable(error.to_string()))
    }

    /// What the server says of itself; `null` if nothing.
    pub(super) async fn system(&self) -> Value {
        self.json("/system_stats").await.unwrap_or(Value::Null)
    }

    /// The bytes of a picture.
    pub(super) async fn view(&self, picture: &Picture) -> Result<Vec<u8>, PeerError> {
        let query =
            [("filename", &*picture.filename), ("subfolder", &*picture.subfolder), ("type", &*picture.kind)];
        let query: String = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(query).finish();
        let path = format!("/view?{query}");
        let (status, body) = self.send(&path, self.http.get(self.at(&path))).await?;
        if status == 200 {
            return Ok(body);
        }
        Err(PeerError::Request { url: self.at(&path), message: format!("status {status}") })
    }

    /// A client with a WebSocket of its own.
    pub(super) async fn connect(self: &std::sync::Arc<Self>) -> Result<Client, PeerError> {
        let id = uuid::Uuid::new_v4().simple().to_string();
        let mut url = self.url.clone();
        url.set_path("/ws");
        let token = self.key.as_ref().map(|key| format!("&token={key}")).unwrap_or_default();
        url.set_query(Some(&format!("clientId={id}{token}")));
        // The scheme of a WebSocket; `set_scheme` refuses to change between kinds.
        let address = url.as_str().replacen("http", "ws", 1);
        let connected = tokio::time::timeout(self.timeout, tokio_tungstenite::connect_async(&address)).await;
        let socket = match connected {
            Ok(Ok((socket, _))) => socket,
            Ok(Err(error)) => return Err(self.failed("/ws", &error)),
            Err(_) => return Err(self.late()),
        };
        Ok(Client { peer: std::sync::Arc::clone(self), id, socket })
    }

    fn late(&self) -> PeerError {
        PeerError::Timeout { url: self.url.to_string(), seconds: self.timeout.as_secs() }
    }
}

/// A client of a server.
pub(super) struct Client {
    peer: std::sync::Arc<Peer>,
    id: String,
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

impl Client {
    /// Runs a workflow to its end; its pictures. Ends when the history has it.
    pub(super) async fn run(&mut self, graph: Value) -> Result<Vec<Picture>, PeerError> {
        let peer = std::sync::Arc::clone(&self.peer);
        let body = json!({"prompt": graph, "client_id": self.id}).to_string();
        let request =
            peer.http.post(peer.at("/prompt")).header("content-type", "application/json").body(body);
        let (status, answer) = peer.send("/prompt", request).await?;
        let refused = |message: String| PeerError::Prompt { url: peer.url.to_string(), message };
        let text = || String::from_utf8_lossy(&answer).chars().take(2000).collect::<String>();
        if status != 200 {
            return Err(refused(text()));
        }
        let answer: Value = serde_json::from_slice(&answer).map_err(|_| refused(text()))?;
        let Some(prompt) = answer["prompt_id"].as_str() else { return Err(refused(answer.to_string())) };
        match tokio::time::timeout(peer.timeout, self.ended(prompt)).await {
            Ok(ended) => ended?,
            Err(_) => return Err(peer.late()),
        }
        let history = peer.json(&format!("/history/{prompt}")).await?;
        let entry = &history[prompt];
        if entry["status"]["status_str"] != "success" {
            return Err(refused(entry["status"].to_string().chars().take(2000).collect()));
        }
        let outputs = entry["outputs"].as_object().into_iter().flatten();
        let pictures = outputs.flat_map(|(_, output)| output["images"].as_array().into_iter().flatten());
        let field = |picture: &Value, name: &str| picture[name].as_str().unwrap_or_default().to_owned();
        Ok(pictures
            .map(|picture| Picture {
                filename: field(picture, "filename"),
                subfolder: field(picture, "subfolder"),
                kind: field(picture, "type"),
            })
            .collect())
    }

    /// Waits for the last message of a prompt.
    async fn ended(&mut self, prompt: &str) -> Result<(), PeerError> {
        loop {
            let message = match self.socket.next().await {
                Some(Ok(message)) => message,
                Some(Err(error)) => return Err(self.peer.failed("/ws", &error)),
                None => {
                    let message = "the server closed the connection".to_owned();
                    return Err(PeerError::Request { url: self.peer.at("/ws"), message });
                }
            };
            match message {
                Message::Text(text) => {
                    let Ok(message) = serde_json::from_str::<Value>(&text) else { continue };
                    let data = &message["data"];
                    let over = match message["type"].as_str() {
                        Some("executing") => data["node"].is_null(),
                        Some("execution_error" | "execution_interrupted") => true,
                        _ => false,
                    };
                    if over && data["prompt_id"] == prompt {
                        return Ok(());
                    }
                }
                Message::Ping(bytes) => {
                    let pong = self.socket.send(Message::Pong(bytes)).await;
                    pong.map_err(|error| self.peer.failed("/ws", &error))?;
                }
                _ => {}
            }
        }
    }
}
