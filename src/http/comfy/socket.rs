//! `GET /ws`: a client hears of its prompts. It may say once what it can take; all else that it says is ignored, as
//! ComfyUI ignores it.

use std::time::Duration;

use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade, close_code};
use axum::response::Response;
use serde::Deserialize;

use super::information::Features as ServerFeatures;
use crate::comfy::{Features, Frame, Socket};
use crate::http::app::App;
use crate::http::auth::{Client, client_by_secret};
use crate::http::error::ApiError;
use crate::http::extract::Params;

/// Largest message of a client, bytes.
const MESSAGE_BYTES: usize = 256 << 10;
/// Buffers of a socket, bytes; there may be a thousand idle ones.
const BUFFER_BYTES: usize = 8 << 10;
/// Time between pings.
const PING: Duration = Duration::from_secs(30);
/// A client that is silent so long, pings and all, is gone. Long, since some do not read while they have nothing to wait
/// for; what is sent to them meanwhile is bounded.
const SILENCE: Duration = Duration::from_secs(600);
/// A client that does not take a message for so long is let go.
const SEND: Duration = Duration::from_secs(30);

/// How a client comes.
#[derive(Debug, Deserialize)]
pub(super) struct Coming {
    #[serde(rename = "clientId")]
    client_id: Option<String>,
    token: Option<String>,
}

/// What a client says first.
#[derive(Debug, Deserialize)]
struct Said {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    data: serde_json::Value,
}

/// Listens to prompts over a WebSocket.
///
/// Messages are ComfyUI's: texts `{"type", "data"}` (`status`, `execution_start`, `executing`, `progress_state`, …) and
/// binary previews. A client with a `clientId` hears of the prompts that were sent with it as `client_id`, one after the
/// other. Where keys are needed, `token` may carry one, since browsers cannot send headers here.
#[utoipa::path(
    get,
    path = "/ws",
    tag = super::TAG,
    params(
        ("clientId" = Option<String>, Query, description = "The client's name; a new one without it"),
        ("token" = Option<String>, Query, description = "An API key")
    ),
    responses((status = 101, description = "The connection is a WebSocket from now on"))
)]
pub(super) async fn open(
    State(app): State<App>,
    client: Option<Client>,
    Params(coming): Params<Coming>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let client = match (client, &coming.token) {
        (Some(client), _) => client,
        (None, Some(token)) => client_by_secret(&app, token).await?,
        (None, None) => return Err(ApiError::unauthorized("this needs an API key")),
    };
    let upgrade = upgrade.map_err(|error| {
        ApiError::malformed(error.body_text()).hint("open it with a WebSocket client: ws://…/ws")
    })?;
    let server = &app.comfy()?.server;
    let socket = server.connect(client.owner, coming.client_id.as_deref()).ok_or_else(|| {
        let most = app.config.comfy.max_sockets;
        ApiError::too_many("too_many_sockets", format!("{most} WebSockets are open already"), 5)
    })?;
    let upgrade = upgrade
        .max_message_size(MESSAGE_BYTES)
        .max_frame_size(MESSAGE_BYTES)
        .read_buffer_size(BUFFER_BYTES)
        .write_buffer_size(BUFFER_BYTES);
    Ok(upgrade.on_upgrade(move |stream| serve(app, socket, stream)))
}

async fn serve(app: App, socket: Socket, mut stream: WebSocket) {
    let mut beat = tokio::time::interval(PING);
    let mut first = true;
    loop {
        let message = tokio::select! {
            () = app.shutdown.cancelled() => {
                Message::Close(Some(CloseFrame { code: close_code::AWAY, reason: "the server is stopping".into() }))
            }
            frame = socket.outbox().next() => match frame {
                Some(Frame::Text(text)) => match Utf8Bytes::try_from(text) {
                    Ok(text) => Message::Text(text),
                    // Only JSON is put there.
                    Err(_) => continue,
                },
                Some(Frame::Binary(bytes)) => Message::Binary(bytes),
                None => {
                    tracing::info!("a client does not read what it is told, and is let go");
                    return;
                }
            },
            incoming = stream.recv() => {
                socket.outbox().heard();
                match incoming {
                    Some(Ok(Message::Text(text))) => {
                        if std::mem::take(&mut first) {
                            meet(&app, &socket, &text);
                        }
                        continue;
                    }
                    Some(Ok(Message::Binary(_) | Message::Ping(_) | Message::Pong(_))) => continue,
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                }
            }
            _ = beat.tick() => {
                if socket.outbox().last_heard().elapsed() > SILENCE {
                    return;
                }
                Message::Ping(bytes::Bytes::new())
            }
        };
        let last = matches!(message, Message::Close(_));
        if !matches!(tokio::time::timeout(SEND, stream.send(message)).await, Ok(Ok(()))) || last {
            return;
        }
    }
}

/// The first thing that a client says may be what it can take.
fn meet(app: &App, socket: &Socket, text: &str) {
    let Ok(said) = serde_json::from_str::<Said>(text) else { return };
    if said.kind == "feature_flags" {
        let features = Features { preview_metadata: said.data["supports_preview_metadata"] == true };
        socket.set_features(features, &ServerFeatures::new(&app.config.comfy));
    }
}
