//! `GET /v1/tasks/ws`: one WebSocket that listens to many tasks. A client that reads too slowly gets the newest state
//! instead of every change, and is let go if it does not read at all.

use std::pin::Pin;
use std::time::Duration;

use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::http::{HeaderMap, header};
use axum::response::Response;
use futures_util::{Stream, StreamExt, stream};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_stream::StreamMap;

use super::events::data_url;
use super::follow::{Follower, News, Update};
use crate::config::ServerConfig;
use crate::http::addresses::Addresses;
use crate::http::app::{App, StreamPlace};
use crate::http::auth::{Client, client_by_secret};
use crate::http::error::{ApiError, ErrorDetail};
use crate::http::extract::parse_json;
use crate::http::task_json::TaskErrorBody;
use crate::task::{Owner, TaskId};

/// Largest message of a client, bytes.
const MESSAGE_BYTES: usize = 16 << 10;
/// Time between pings.
const PING: Duration = Duration::from_secs(20);
/// A client that is silent so long, pings and all, is gone.
const SILENCE: Duration = Duration::from_secs(60);
/// A client that listens to nothing so long is let go.
const IDLE: Duration = Duration::from_secs(600);
/// The same, for one that has not shown a key.
const IDLE_UNKNOWN: Duration = Duration::from_secs(30);
/// A client that does not take a message for so long is let go.
const SEND: Duration = Duration::from_secs(15);

type Updates = Pin<Box<dyn Stream<Item = Result<Told, ApiError>> + Send>>;

/// What a client says.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    action: Action,
    task_id: String,
    #[serde(default)]
    auth_token: Option<String>,
    #[serde(default)]
    previews: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Action {
    Subscribe,
    Unsubscribe,
}

/// What a client is told at every change.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Told {
    task_id: String,
    status: &'static str,
    progress: f64,
    current_step: Option<String>,
    eta_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image_url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    preview: Option<String>,
    /// Which of the task's pictures `image_url` or `preview` is.
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<TaskErrorBody>,
}

/// What a client is told of an action that was refused.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Refused {
    #[serde(skip_serializing_if = "Option::is_none")]
    task_id: Option<String>,
    error: ErrorDetail,
}

/// Listens to many tasks over a WebSocket.
///
/// The client sends `{"action": "subscribe", "task_id": "…", "auth_token": "Bearer dk_…", "previews": false}` and
/// `{"action": "unsubscribe", "task_id": "…"}`; `auth_token` is not needed when the handshake carried a key. The server
/// sends `{task_id, status, progress, current_step, eta_seconds, image_url?, preview?, index?, error?}` at every change,
/// and `{error: {type, message, …}, task_id?}` when an action is refused. A task's listening ends with its final
/// status.
#[utoipa::path(
    get,
    path = "/v1/tasks/ws",
    tag = "tasks",
    responses((status = 101, description = "The connection is a WebSocket from now on"))
)]
pub(super) async fn open(
    State(app): State<App>,
    client: Option<Client>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let upgrade = upgrade.map_err(|error| {
        ApiError::malformed(error.body_text()).hint("open it with a WebSocket client: ws://…/v1/tasks/ws")
    })?;
    let anonymous = client.as_ref().is_some_and(|client| client.owner == Owner::Anyone);
    if anonymous && !origin_may_listen(&app.config.server, &headers) {
        return Err(ApiError::forbidden("pages of this origin may not listen")
            .hint("server.cors_origins in the configuration names origins that may"));
    }
    let place = app.stream_place()?;
    let addresses = app.addresses(&headers);
    let upgrade = upgrade.max_message_size(MESSAGE_BYTES).max_frame_size(MESSAGE_BYTES);
    Ok(upgrade.on_upgrade(move |socket| async move {
        let session = Session {
            app,
            client,
            addresses,
            follows: StreamMap::new(),
            used: Instant::now(),
            _place: place,
        };
        session.run(socket).await;
    }))
}

/// CORS does not cover WebSockets, so without keys any page that a browser shows could listen. The page itself,
/// programs (which send no Origin) and listed origins may.
pub(in crate::http) fn origin_may_listen(server: &ServerConfig, headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else { return true };
    let Ok(origin) = origin.to_str() else { return false };
    let same_host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok())
        .is_some_and(|host| origin.split_once("://").is_some_and(|(_, authority)| authority == host));
    let public = server.public_url.as_deref().and_then(|url| url::Url::parse(url).ok());
    same_host
        || public.is_some_and(|url| url.origin().ascii_serialization() == origin)
        || server.cors_origins.iter().any(|known| known == "*" || known.trim_end_matches('/') == origin)
}

struct Session {
    app: App,
    client: Option<Client>,
    addresses: Addresses,
    follows: StreamMap<TaskId, Updates>,
    /// When it last listened or spoke.
    used: Instant,
    _place: StreamPlace,
}

impl Session {
    async fn run(mut self, mut socket: WebSocket) {
        let mut beat = tokio::time::interval(PING);
        let mut heard = Instant::now();
        let shutdown = self.app.shutdown.clone();
        loop {
            let message = tokio::select! {
                () = shutdown.cancelled() => close(close_code::AWAY, "the server is stopping"),
                incoming = socket.recv() => {
                    heard = Instant::now();
                    match incoming {
                        Some(Ok(Message::Text(text))) => match self.act(text.as_bytes()).await {
                            Ok(()) => continue,
                            Err(refused) => json(&refused),
                        },
                        Some(Ok(Message::Binary(_))) => {
                            let error = ApiError::malformed("messages are JSON texts, not binary");
                            json(&Refused { task_id: None, error: error.detail().clone() })
                        }
                        Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                        Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                    }
                }
                Some((id, update)) = self.follows.next(), if !self.follows.is_empty() => {
                    self.used = Instant::now();
                    match update {
                        Ok(told) => json(&told),
                        Err(error) => json(&Refused { task_id: Some(id.into()), error: error.detail().clone() }),
                    }
                }
                _ = beat.tick() => {
                    if heard.elapsed() > SILENCE {
                        return;
                    }
                    if self.is_idle() {
                        close(close_code::POLICY, "listening to nothing")
                    } else {
                        Message::Ping(bytes::Bytes::new())
                    }
                }
            };
            let last = matches!(message, Message::Close(_));
            if !matches!(tokio::time::timeout(SEND, socket.send(message)).await, Ok(Ok(()))) || last {
                return;
            }
        }
    }

    fn is_idle(&self) -> bool {
        let patience = if self.client.is_some() { IDLE } else { IDLE_UNKNOWN };
        self.follows.is_empty() && self.used.elapsed() > patience
    }

    async fn act(&mut self, message: &[u8]) -> Result<(), Refused> {
        let request: Request = parse_json(message).map_err(|error| refused(None, &error))?;
        let result = self.obey(&request).await;
        result.map_err(|error| refused(Some(request.task_id.chars().take(80).collect()), &error))
    }

    async fn obey(&mut self, request: &Request) -> Result<(), ApiError> {
        let id: TaskId =
            request.task_id.parse().map_err(|_| ApiError::not_found("task", &request.task_id))?;
        match request.action {
            Action::Subscribe => self.subscribe(id, request).await,
            Action::Unsubscribe => match self.follows.remove(&id) {
                Some(_) => Ok(()),
                None => Err(ApiError::not_found("subscription to task", id.as_str())),
            },
        }
    }

    async fn subscribe(&mut self, id: TaskId, request: &Request) -> Result<(), ApiError> {
        let limit = self.app.config.server.max_subscriptions;
        if self.follows.len() >= limit && !self.follows.contains_key(&id) {
            let message = format!("this connection listens to {limit} tasks already");
            return Err(
                ApiError::too_many("too_many_subscriptions", message, 1).hint("unsubscribe from some first")
            );
        }
        let client = match (&request.auth_token, &self.client) {
            (Some(token), _) => client_by_secret(&self.app, token).await?,
            (None, Some(client)) => client.clone(),
            (None, None) => return Err(ApiError::unauthorized("this needs an auth_token")),
        };
        let follower = Follower::start(self.app.clone(), client.owner.clone(), &id, request.previews).await?;
        self.client.get_or_insert(client);
        self.used = Instant::now();
        let addresses = self.addresses.clone();
        let updates =
            stream::unfold((follower, addresses, None), |(mut follower, addresses, last)| async move {
                loop {
                    let update = follower.next().await?;
                    let told = update.map(|update| Told::new(&follower.task().id, &update, &addresses));
                    let latest = told.as_ref().ok().cloned();
                    // The state now is several news of one and the same message.
                    if latest.is_none() || latest != last {
                        return Some((told, (follower, addresses, latest)));
                    }
                }
            });
        self.follows.insert(id, Box::pin(updates));
        Ok(())
    }
}

impl Told {
    fn new(id: &TaskId, update: &Update, addresses: &Addresses) -> Self {
        let state = &update.state;
        let mut told = Self {
            task_id: id.to_string(),
            status: state.status.name(),
            progress: state.progress,
            current_step: state.current_step.as_deref().map(str::to_owned),
            eta_seconds: state.eta_seconds,
            image_url: None,
            preview: None,
            index: None,
            error: None,
        };
        match &update.news {
            News::Status(error) => told.error = error.as_ref().map(TaskErrorBody::from),
            News::Progress => {}
            News::Preview(preview) => {
                told.preview = Some(data_url("image/jpeg", &preview.jpeg));
                told.index = Some(preview.index);
            }
            News::Image(image) => {
                told.image_url = Some(addresses.image(&image.id));
                told.index = Some(image.index);
            }
        }
        told
    }
}

fn refused(task_id: Option<String>, error: &ApiError) -> Refused {
    Refused { task_id, error: error.detail().clone() }
}

fn json<T: Serialize>(value: &T) -> Message {
    // The types that are sent have nothing that JSON cannot say.
    Message::text(serde_json::to_string(value).unwrap_or_default())
}

fn close(code: u16, reason: &'static str) -> Message {
    Message::Close(Some(CloseFrame { code, reason: reason.into() }))
}

#[cfg(test)]
mod tests {
    use super::super::follow::State as TaskState;
    use super::*;
    use crate::http::task_json::testing::view;
    use crate::task::TaskStatus;

    #[test]
    fn a_message_has_the_gateways_fields_and_a_pictures_address_when_there_is_one() {
        let task = view(TaskStatus::Processing, 2, 1).task;
        let state = TaskState {
            status: TaskStatus::Processing,
            progress: 0.5,
            current_step: None,
            eta_seconds: None,
        };
        let addresses = Addresses::new(&ServerConfig::default(), &HeaderMap::new());
        let tell = |news| {
            let update = Update { sequence: 1, news, state: state.clone() };
            serde_json::to_value(Told::new(&task.id, &update, &addresses)).unwrap()
        };
        let told = tell(News::Progress);
        assert_eq!(told["task_id"], task.id.as_str());
        assert_eq!((told["status"].as_str(), told["progress"].as_f64()), (Some("processing"), Some(0.5)));
        assert!(told.get("current_step").is_some() && told.get("image_url").is_none());
        let told = tell(News::Image(task.drawn[0].clone()));
        assert_eq!(told["image_url"], format!("/v1/images/{}", task.drawn[0].id));
    }

    #[test]
    fn a_bad_action_is_refused_in_words() {
        let refuse = |text: &str| {
            let error = parse_json::<Request>(text.as_bytes()).unwrap_err();
            serde_json::to_value(refused(None, &error)).unwrap()["error"].clone()
        };
        assert_eq!(refuse("hello")["type"], "malformed_request");
        assert_eq!(refuse(r#"{"action": "subscribe"}"#)["field"], "task_id");
        let error = refuse(r#"{"action": "subscrib", "task_id": "x"}"#);
        assert_eq!(error["field"], "action");
        assert!(error["hint"].as_str().unwrap().contains("did you mean subscribe"), "{error}");
    }

    #[test]
    fn without_keys_only_the_servers_own_page_and_listed_origins_may_listen() {
        let may = |origin: Option<&'static str>, listed: &[&str]| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, "127.0.0.1:8188".parse().unwrap());
            if let Some(origin) = origin {
                headers.insert(header::ORIGIN, origin.parse().unwrap());
            }
            let server = ServerConfig {
                cors_origins: listed.iter().map(|origin| (*origin).to_owned()).collect(),
                public_url: Some("https://draw.example/app".into()),
                ..ServerConfig::default()
            };
            origin_may_listen(&server, &headers)
        };
        assert!(may(None, &[]) && may(Some("http://127.0.0.1:8188"), &[]));
        assert!(may(Some("https://draw.example"), &[]));
        assert!(!may(Some("https://evil.example"), &[]) && !may(Some("null"), &[]));
        assert!(may(Some("https://a.example"), &["https://a.example/"]) && may(Some("null"), &["*"]));
    }
}
