//! `POST /prompt`: queues a prompt. `GET /prompt`: how much there is to do.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use hyper::body::{Frame, SizeHint};

use super::body::Raw;
use super::{json, json_text, rejection};
use crate::comfy::{Answering, Refused, Rejected, Submission};
use crate::http::app::App;
use crate::http::auth::Client;
use crate::http::error::ApiError;
use crate::workflow::ordered::{Members, Ordered};
use crate::workflow::python;

/// Seconds after which a full queue may have room.
const RETRY: u64 = 5;
/// What ComfyUI says when there is no prompt.
const NO_PROMPT: &str =
    r#"{"type":"no_prompt","message":"No prompt provided","details":"No prompt provided","extra_info":{}}"#;

/// Queues a prompt.
///
/// `prompt` is a workflow in ComfyUI's API format. `client_id` is told over its WebSocket what happens; `prompt_id` names
/// the prompt, `number` (lower first) and `front` say where it goes; `extra_data.extra_pnginfo` is written into pictures;
/// `extra_data.preview_method` (`none`, `auto`, `latent2rgb`) asks for previews; `partial_execution_targets` names the
/// output nodes to run.
#[utoipa::path(
    post,
    path = "/prompt",
    tag = super::TAG,
    request_body(content = Object, description = "`{\"prompt\": {…}, \"client_id\"?, \"prompt_id\"?, \"number\"?, \
        \"front\"?, \"extra_data\"?, \"partial_execution_targets\"?}`"),
    responses(
        (status = 200, body = Object, description = "`{\"prompt_id\", \"number\", \"node_errors\"}`"),
        (status = 400, body = super::ComfyErrorBody, description = "What is wrong with it")
    )
)]
pub(super) async fn create(State(app): State<App>, client: Client, body: Raw) -> Result<Response, ApiError> {
    let comfy = app.comfy()?;
    let mut body = body.into_object()?;
    let number = body.take("number").map(|number| place(&number)).transpose()?;
    let front = body.is_true("front");
    let client_id = body.take("client_id");
    let mut extra_data = match body.take("extra_data") {
        None => Members::new(),
        Some(Ordered::Object(members)) => members,
        Some(_) => return Err(ApiError::malformed("extra_data is no object").field("extra_data")),
    };
    if let Some(client_id) = client_id {
        extra_data.insert("client_id".to_owned(), client_id);
    }
    let targets = match body.take("partial_execution_targets") {
        None | Some(Ordered::Null) => None,
        Some(Ordered::Array(items)) => {
            Some(items.iter().filter_map(Ordered::as_str).map(str::to_owned).collect())
        }
        Some(_) => {
            let field = "partial_execution_targets";
            return Err(ApiError::malformed(format!("{field} is no list")).field(field));
        }
    };
    let prompt_id = body.take("prompt_id").map(|id| python::str(&id));
    let Some(prompt) = body.take("prompt") else {
        return Ok(rejection(&Rejected { error: NO_PROMPT.into(), node_errors: "{}".into() }));
    };
    app.service.check_room()?;
    let submission = Submission {
        owner: client.owner,
        prompt,
        prompt_id,
        number,
        front,
        extra_data,
        targets,
        bytes: body.bytes,
    };
    match comfy.server.submit(submission).await {
        Ok((accepted, answering)) => {
            let prompt_id = Ordered::String(accepted.prompt_id.to_string());
            let text = format!(
                r#"{{"prompt_id": {}, "number": {}, "node_errors": {}}}"#,
                python::dumps(&prompt_id),
                accepted.number,
                accepted.node_errors
            );
            Ok(json_text(
                StatusCode::OK,
                Body::new(Answer { text: Some(text.into()), _answering: answering }),
            ))
        }
        Err(Refused::Invalid(rejected)) => Ok(rejection(&rejected)),
        Err(refused) => Err(refusal(&refused)),
    }
}

/// The answer to who sent a prompt. Nobody hears of the prompt before its sender can know its id.
struct Answer {
    text: Option<Bytes>,
    _answering: Answering,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.text.take().map(|text| Ok(Frame::data(text))))
    }

    fn is_end_stream(&self) -> bool {
        self.text.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.text.as_ref().map_or(0, |text| text.len() as u64))
    }
}

/// Tells how many prompts wait or run.
#[utoipa::path(
    get,
    path = "/prompt",
    tag = super::TAG,
    responses((status = 200, body = Object, description = "`{\"exec_info\": {\"queue_remaining\": 0}}`"))
)]
pub(super) async fn show(State(app): State<App>) -> Result<Response, ApiError> {
    Ok(json(&app.comfy()?.server.exec_info()))
}

/// Python's `float`.
fn place(number: &Ordered) -> Result<f64, ApiError> {
    let place = python::float(number).map_err(|error| ApiError::malformed(error).field("number"))?;
    if place.is_finite() {
        Ok(place)
    } else {
        Err(ApiError::malformed("number is not finite").field("number"))
    }
}

fn refusal(refused: &Refused) -> ApiError {
    let message = refused.to_string();
    match refused {
        Refused::Full { .. } => ApiError::too_many("queue_full", message, RETRY),
        Refused::Draining => ApiError::unavailable("draining", message, RETRY),
        Refused::Storage(_) => {
            tracing::warn!(message, "a prompt is refused");
            ApiError::unavailable("storage_unavailable", "prompts cannot be stored now", RETRY)
        }
        Refused::LongId => ApiError::malformed(message).field("prompt_id"),
        Refused::Invalid(_) | Refused::Defect => ApiError::internal(&message),
    }
}
