//! `GET /v1/tasks/{id}/events`: what happens to a task, as server-sent events.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::stream;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::{IntoParams, ToSchema};

use super::follow::{Follower, News, Update};
use crate::http::addresses::Addresses;
use crate::http::app::{App, StreamPlace};
use crate::http::auth::Client;
use crate::http::error::ApiError;
use crate::http::extract::{Id, Params, flag};
use crate::http::task_json::{ImageBody, TaskErrorBody};
use crate::task::{Task, TaskId};

/// Time between comments that keep a quiet connection open.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct EventParams {
    /// Also send what pictures look like so far.
    #[serde(default, deserialize_with = "flag")]
    #[param(value_type = Option<bool>)]
    previews: bool,
}

/// One event of the stream. Only described: what is sent is axum's [`Event`].
#[derive(ToSchema)]
#[expect(dead_code, reason = "its fields are the lines of an event")]
struct EventBody {
    /// `status`, `progress`, `preview`, `image` or `error`.
    event: String,
    /// Counts the task's changes; none on errors.
    id: Option<String>,
    /// A JSON object.
    data: String,
}

/// Streams what happens to a task.
///
/// Events: `status` {task_id, status, progress, error?}, `progress` {task_id, status, progress, current_step,
/// eta_seconds}, `preview` {task_id, index, preview: a data URL} and `image` {url, id, index, seed, …}. The first ones
/// tell the state now; the stream ends with the final status.
#[utoipa::path(
    get,
    path = "/v1/tasks/{id}/events",
    tag = "tasks",
    params(("id" = String, Path, description = "The task's id"), EventParams),
    responses((status = 200, content_type = "text/event-stream", body = EventBody, description = "Events"))
)]
pub(super) async fn stream(
    State(app): State<App>,
    client: Client,
    Id(id): Id<TaskId>,
    Params(params): Params<EventParams>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let place = app.stream_place()?;
    let follower = Follower::start(app.clone(), client.owner, &id, params.previews).await?;
    let teller = Teller { addresses: app.addresses(&headers), app, follower, _place: place };
    let events = stream::unfold(teller, |mut teller| async move {
        let event = teller.next().await?;
        Some((Ok::<_, Infallible>(event), teller))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

struct Teller {
    app: App,
    addresses: Addresses,
    follower: Follower,
    _place: StreamPlace,
}

impl Teller {
    async fn next(&mut self) -> Option<Event> {
        let next = tokio::select! {
            () = self.app.shutdown.cancelled() => return None,
            next = self.follower.next() => next?,
        };
        let (name, id, data) = match next {
            Ok(update) => {
                let (name, data) = told(self.follower.task(), &update, &self.addresses);
                (name, Some(update.sequence), data)
            }
            Err(error) => ("error", None, plain(&error.body())),
        };
        let event = Event::default().event(name).data(data.to_string());
        Some(match id {
            Some(id) => event.id(id.to_string()),
            None => event,
        })
    }
}

/// An update as an event's name and data.
fn told(task: &Task, update: &Update, addresses: &Addresses) -> (&'static str, Value) {
    let state = &update.state;
    match &update.news {
        News::Status(error) => {
            let mut data =
                json!({"task_id": task.id, "status": state.status.name(), "progress": state.progress});
            if let Some(error) = error {
                data["error"] = plain(&TaskErrorBody::from(error));
            }
            ("status", data)
        }
        News::Progress => (
            "progress",
            json!({
                "task_id": task.id, "status": state.status.name(), "progress": state.progress,
                "current_step": state.current_step.as_deref(), "eta_seconds": state.eta_seconds,
            }),
        ),
        News::Preview(preview) => {
            let picture = data_url("image/jpeg", &preview.jpeg);
            ("preview", json!({"task_id": task.id, "index": preview.index, "preview": picture}))
        }
        News::Image(image) => ("image", plain(&ImageBody::new(task, image, addresses))),
    }
}

/// A file as a `data:` URL.
pub(in crate::http) fn data_url(mime: &str, bytes: &[u8]) -> String {
    format!("data:{mime};base64,{}", STANDARD.encode(bytes))
}

/// As JSON. The types that are told have nothing that cannot be.
fn plain<T: Serialize>(value: &T) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::super::follow::State as TaskState;
    use super::*;
    use crate::config::ServerConfig;
    use crate::http::task_json::testing::view;
    use crate::task::{Preview, TaskError, TaskErrorKind, TaskStatus};

    fn tell(news: News) -> (&'static str, Value) {
        let task = view(TaskStatus::Processing, 2, 1).task;
        let state = TaskState {
            status: TaskStatus::Processing,
            progress: 0.5,
            current_step: Some(Arc::from("Generating 1/2")),
            eta_seconds: None,
        };
        let addresses = Addresses::new(&ServerConfig::default(), &HeaderMap::new());
        told(&task, &Update { sequence: 1, news, state }, &addresses)
    }

    #[test]
    fn each_news_has_its_name_and_fields() {
        let (name, data) = tell(News::Progress);
        assert_eq!((name, data["progress"].as_f64()), ("progress", Some(0.5)));
        assert_eq!(data["current_step"], "Generating 1/2");
        let error = TaskError { kind: TaskErrorKind::Internal, message: "x".into() };
        let (name, data) = tell(News::Status(Some(error)));
        assert_eq!((name, data["error"]["type"].as_str()), ("status", Some("internal")));
        assert!(tell(News::Status(None)).1.get("error").is_none());
        let image = view(TaskStatus::Processing, 2, 1).task.drawn[0].clone();
        let (name, data) = tell(News::Image(image));
        assert_eq!((name, data["index"].as_u64()), ("image", Some(0)));
        let (name, data) = tell(News::Preview(Preview { index: 1, jpeg: Bytes::from_static(b"abc") }));
        assert_eq!((name, data["preview"].as_str()), ("preview", Some("data:image/jpeg;base64,YWJj")));
    }
}
