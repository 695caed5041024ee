//! `POST /v1/images/batch`: many requests, one answer; all are accepted or none.

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::image_request::ImagesRequest;
use super::images::{Drawing, all_created, mark_replay};
use crate::http::app::App;
use crate::http::auth::Client;
use crate::http::error::ApiError;
use crate::http::extract::Body;
use crate::http::submit;
use crate::http::task_json::TaskBody;
use crate::service::Idempotency;

/// Requests as for POST /v1/images.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct BatchRequest {
    /// One task each.
    #[schema(min_items = 1, max_items = 100)]
    requests: Vec<ImagesRequest>,
}

/// The accepted tasks.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BatchBody {
    /// In the order of the requests.
    tasks: Vec<TaskBody>,
    /// How many.
    total_count: usize,
}

/// Draws the pictures of up to 100 requests.
///
/// Each request becomes a task of its own. If one cannot be accepted, none is; the error names it
/// (`requests[3].width`).
#[utoipa::path(
    post,
    path = "/v1/images/batch",
    tag = "images",
    params(("Idempotency-Key" = Option<String>, Header, description = "Makes a repeated request the same tasks")),
    request_body = BatchRequest,
    responses((status = 200, body = BatchBody, description = "The tasks, which are stored and will be finished"))
)]
pub(super) async fn create(
    State(app): State<App>,
    client: Client,
    headers: HeaderMap,
    body: Body<BatchRequest>,
) -> Result<Response, ApiError> {
    let Body { value: BatchRequest { requests }, idempotency, .. } = body;
    check_length(requests.len(), app.config.limits.max_batch_requests)?;
    let mut submissions = Vec::with_capacity(requests.len());
    let mut uploads = Vec::new();
    for (index, request) in requests.into_iter().enumerate() {
        let place = format!("requests[{index}]");
        if request.cancel_on_disconnect == Some(true) {
            return Err(ApiError::invalid("cancel_on_disconnect", "means nothing in a batch").within(&place));
        }
        let drawing = Drawing::read(&app, request).await.map_err(|error| error.within(&place))?;
        let mut job = drawing.job(&app).map_err(|error| error.within(&place))?;
        job.submission.idempotency = idempotency.as_ref().map(|key| of_place(key, index));
        submissions.push(job.submission);
        uploads.extend(job.uploads);
    }
    submit::keep(&app, uploads).await?;
    let submitted = app.service.submit_all(&client.owner, submissions).await?;
    let addresses = app.addresses(&headers);
    let tasks: Vec<TaskBody> = submitted.iter().map(|one| TaskBody::new(&one.view, &addresses)).collect();
    let mut response = Json(BatchBody { total_count: tasks.len(), tasks }).into_response();
    mark_replay(&mut response, all_created(&submitted));
    Ok(response)
}

fn check_length(length: usize, limit: usize) -> Result<(), ApiError> {
    if (1..=limit).contains(&length) {
        return Ok(());
    }
    Err(ApiError::invalid("requests", format!("has {length} entries, must have 1 to {limit}")))
}

/// Each task of a batch needs a key of its own. Nobody can send this one: no header holds a line break.
fn of_place(batch: &Idempotency, index: usize) -> Idempotency {
    Idempotency { key: format!("{}\n{index}", batch.key), fingerprint: batch.fingerprint.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_has_one_to_the_limits_requests() {
        assert!(check_length(1, 100).is_ok() && check_length(100, 100).is_ok());
        for wrong in [0, 101] {
            let error = check_length(wrong, 100).unwrap_err();
            assert_eq!((error.status().as_u16(), error.detail().field.as_deref()), (422, Some("requests")));
        }
    }

    #[test]
    fn tasks_of_a_batch_have_keys_of_their_own_that_stay() {
        let batch = Idempotency { key: "k".into(), fingerprint: "f".into() };
        assert_eq!(of_place(&batch, 3), of_place(&batch, 3));
        assert_ne!(of_place(&batch, 3).key, of_place(&batch, 4).key);
        assert_eq!(of_place(&batch, 3).fingerprint, "f");
    }
}
