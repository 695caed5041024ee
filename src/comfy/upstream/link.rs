//! Requests and a WebSocket to another ComfyUI.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value as Json, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};
use url::Url;

use crate::comfy::runner::Rejected;
use crate::outbound::innermost;
use crate::workflow::Ordered;

/// Longest that one request may take.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Largest answer that is taken in.
const MOST_BYTES: usize = 256 << 20;

/// Why the other server is of no use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// The address is none.
    #[error("comfy.upstream: '{url}' is no http address: {message}")]
    Address {
        /// What was set.
        url: String,
        /// What is wrong with it.
        message: String,
    },
    /// It does not answer, or not so that it can be understood.
    #[error("{path}: {message}")]
    Request {
        /// What was asked for.
        path: String,
        /// What became of it.
        message: String,
    },
}

/// Where it is.
pub(super) struct Link {
    url: Url,
    http: reqwest::Client,
}

/// It took a prompt.
pub(super) struct Taken {
    pub(super) prompt_id: String,
    /// JSON.
    pub(super) node_errors: String,
}

impl Link {
    pub(super) fn new(url: &str) -> Result<Self, LinkError> {
        let address = |message: String| LinkError::Address { url: url.to_owned(), message };
        let parsed = Url::parse(url).map_err(|error| address(error.to_string()))?;
        if parsed.scheme() != "http" || parsed.host().is_none() {
            return Err(address("it looks like http://127.0.0.1:8189".into()));
        }
        let http = reqwest::Client::builder().no_proxy().timeout(TIMEOUT).build();
        Ok(Self { url: parsed, http: http.map_err(|error| address(error.to_string()))? })
    }

    fn at(&self, path: &str) -> String {
        format!("{}{path}", self.url.as_str().trim_end_matches('/'))
    }

    async fn send(&self, path: &str, request: reqwest::RequestBuilder) -> Result<(u16, Bytes), LinkError> {
        let failed = |error: &dyn std::error::Error| LinkError::Request {
            path: path.to_owned(),
            message: innermost(error),
        };
        let mut response = request.send().await.map_err(|error| failed(&error))?;
        let status = response.status().as_u16();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| failed(&error))? {
            if body.len() + chunk.len() > MOST_BYTES {
                let message = format!("the answer has more than {} MiB", MOST_BYTES >> 20);
                return Err(LinkError::Request { path: path.to_owned(), message });
            }
            body.extend_from_slice(&chunk);
        }
        Ok((status, body.into()))
    }

    /// What a GET answers, which must be 200.
    pub(super) async fn bytes(&self, path: &str) -> Result<Bytes, LinkError> {
        match self.send(path, self.http.get(self.at(path))).await? {
            (200, body) => Ok(body),
            (status, _) => {
                Err(LinkError::Request { path: path.to_owned(), message: format!("status {status}") })
            }
        }
    }

    /// The same as JSON.
    pub(super) async fn json(&self, path: &str) -> Result<Json, LinkError> {
        let body = self.bytes(path).await?;
        serde_json::from_slice(&body)
            .map_err(|error| LinkError::Request { path: path.to_owned(), message: error.to_string() })
    }

    async fn post(&self, path: &str, body: &Json) -> Result<(u16, Bytes), LinkError> {
        let request = self.http.post(self.at(path)).header("content-type", "application/json");
        self.send(path, request.body(body.to_string())).await
    }

    /// Queues a prompt (JSON) there; what it says where it refuses.
    pub(super) async fn submit(
        &self,
        prompt: &str,
        targets: Option<&[String]>,
        extra_pnginfo: Option<&Ordered>,
        client: &str,
    ) -> Result<Result<Taken, Rejected>, LinkError> {
        const PATH: &str = "/prompt";
        let targets = targets.map(|targets| format!(",\"partial_execution_targets\":{}", json!(targets)));
        let extra = extra_pnginfo.and_then(|extra| serde_json::to_string(extra).ok());
        let extra = extra.map(|extra| format!(",\"extra_data\":{{\"extra_pnginfo\":{extra}}}"));
        let body = format!(
            "{{\"prompt\":{prompt},\"client_id\":{}{}{}}}",
            json!(client),
            targets.unwrap_or_default(),
            extra.unwrap_or_default()
        );
        let request = self.http.post(self.at(PATH)).header("content-type", "application/json").body(body);
        let (status, answer) = self.send(PATH, request).await?;
        let answer: Json = serde_json::from_slice(&answer).map_err(|error| LinkError::Request {
            path: PATH.into(),
            message: format!("status {status}: {error}"),
        })?;
        match answer["prompt_id"].as_str() {
            Some(id) if status == 200 => Ok(Ok(Taken {
                prompt_id: id.to_owned(),
                node_errors: answer.get("node_errors").map_or("{}".into(), Json::to_string),
            })),
            _ => Ok(Err(Rejected {
                error: answer.get("error").unwrap_or(&answer).to_string(),
                node_errors: answer.get("node_errors").map_or("{}".into(), Json::to_string),
            })),
        }
    }

    /// Takes a prompt back there, whether it waits or runs.
    pub(super) async fn take_back(&self, prompt_id: &str) -> Result<(), LinkError> {
        self.post("/queue", &json!({"delete": [prompt_id]})).await?;
        self.post("/interrupt", &json!({"prompt_id": prompt_id})).await?;
        Ok(())
    }

    /// Frees memory there.
    pub(super) async fn free(&self, models: bool, cache: bool) -> Result<(), LinkError> {
        self.post("/free", &json!({"unload_models": models, "free_memory": cache})).await.map(drop)
    }

    /// Puts a file into its input folder.
    pub(super) async fn upload(&self, name: &str, subfolder: &str, bytes: Vec<u8>) -> Result<(), LinkError> {
        const PATH: &str = "/upload/image";
        let file = reqwest::multipart::Part::bytes(bytes).file_name(name.to_owned());
        let form = reqwest::multipart::Form::new()
            .text("subfolder", subfolder.to_owned())
            .text("overwrite", "true")
            .text("type", "input")
            .part("image", file);
        let (status, _) = self.send(PATH, self.http.post(self.at(PATH)).multipart(form)).await?;
        if status == 200 {
            return Ok(());
        }
        Err(LinkError::Request { path: PATH.into(), message: format!("'{name}': status {status}") })
    }
}

/// A WebSocket there, of a client of its own.
pub(super) struct Socket {
    id: String,
    stream: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

/// What came through it.
pub(super) enum Told {
    /// `{"type", "data"}`.
    Message(Json),
    /// A binary frame.
    Frame(Vec<u8>),
}

impl Socket {
    pub(super) async fn open(link: &Link) -> Result<Self, LinkError> {
        const PATH: &str = "/ws";
        let id = uuid::Uuid::new_v4().simple().to_string();
        let url = link.at(&format!("{PATH}?clientId={id}")).replacen("http", "ws", 1);
        let failed = |message: String| LinkError::Request { path: PATH.into(), message };
        let config =
            WebSocketConfig::default().max_message_size(Some(MOST_BYTES)).max_frame_size(Some(MOST_BYTES));
        let connect = tokio_tungstenite::connect_async_with_config(&url, Some(config), false);
        let connected = tokio::time::timeout(TIMEOUT, connect).await;
        let (stream, _) = connected
            .map_err(|_| failed("it does not answer".into()))?
            .map_err(|error| failed(error.to_string()))?;
        Ok(Self { id, stream })
    }

    /// The client's id.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// What comes next; `None` when the other side is gone.
    pub(super) async fn next(&mut self) -> Option<Told> {
        loop {
            match self.stream.next().await?.ok()? {
                Message::Text(text) => match serde_json::from_str(&text) {
                    Ok(message) => return Some(Told::Message(message)),
                    Err(_) => continue,
                },
                Message::Binary(frame) => return Some(Told::Frame(frame.to_vec())),
                Message::Ping(bytes) => self.stream.send(Message::Pong(bytes)).await.ok()?,
                Message::Close(_) => return None,
                _ => {}
            }
        }
    }
}
