//! `/v1/tasks`: look at tasks, and take them back.

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::http::app::App;
use crate::http::auth::Client;
use crate::http::error::{ApiError, did_you_mean, shown};
use crate::http::extract::{Id, Params};
use crate::http::task_json::TaskBody;
use crate::task::{TaskId, TaskStatus};

/// Tasks of a page where none are asked for.
const PAGE: u32 = 50;
/// Most tasks of a page.
const MAX_PAGE: u32 = 200;

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ListParams {
    /// Only tasks of this status: `queued`, `processing`, `completed`, `failed`, `cancelled`.
    status: Option<String>,
    /// Tasks on a page, 1 to 200; 50 if it is left out.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// A page of tasks.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TaskListBody {
    /// Newest first.
    tasks: Vec<TaskBody>,
    /// Where the next page starts; null on the last.
    next_cursor: Option<String>,
}

/// Shows a task.
#[utoipa::path(
    get,
    path = "/v1/tasks/{id}",
    tag = "tasks",
    params(("id" = String, Path, description = "The task's id")),
    responses((status = 200, body = TaskBody, description = "The task as it is now"))
)]
pub(super) async fn show(
    State(app): State<App>,
    client: Client,
    Id(id): Id<TaskId>,
    headers: HeaderMap,
) -> Result<Json<TaskBody>, ApiError> {
    let view = app.service.task(&client.owner, &id).await?;
    Ok(Json(TaskBody::new(&view, &app.addresses(&headers))))
}

/// Lists tasks, newest first.
#[utoipa::path(
    get,
    path = "/v1/tasks",
    tag = "tasks",
    params(ListParams),
    responses((status = 200, body = TaskListBody, description = "A page of tasks"))
)]
pub(super) async fn list(
    State(app): State<App>,
    client: Client,
    Params(params): Params<ListParams>,
    headers: HeaderMap,
) -> Result<Json<TaskListBody>, ApiError> {
    let limit = limit(params.limit)?;
    let status = params.status.as_deref().map(status).transpose()?;
    let after: Option<TaskId> = match params.cursor.as_deref() {
        None | Some("") => None,
        Some(cursor) => {
            Some(cursor.parse().map_err(|_| ApiError::invalid("cursor", "is none of this server's"))?)
        }
    };
    let page = app.service.tasks(&client.owner, status, after.as_ref(), limit).await?;
    let addresses = app.addresses(&headers);
    let tasks = page.tasks.iter().map(|view| TaskBody::new(view, &addresses)).collect();
    Ok(Json(TaskListBody { tasks, next_cursor: page.next.map(String::from) }))
}

/// Takes a task back: it stops within one step.
#[utoipa::path(
    delete,
    path = "/v1/tasks/{id}",
    tag = "tasks",
    params(("id" = String, Path, description = "The task's id")),
    responses(
        (status = 200, body = TaskBody, description = "The cancelled task; pictures that were done stay"),
        (status = 409, body = crate::http::error::ErrorBody, description = "It is final already")
    )
)]
pub(super) async fn cancel(
    State(app): State<App>,
    client: Client,
    Id(id): Id<TaskId>,
    headers: HeaderMap,
) -> Result<Json<TaskBody>, ApiError> {
    let view = app.service.cancel(&client.owner, &id).await?;
    Ok(Json(TaskBody::new(&view, &app.addresses(&headers))))
}

fn limit(given: Option<u32>) -> Result<usize, ApiError> {
    let limit = given.unwrap_or(PAGE);
    if (1..=MAX_PAGE).contains(&limit) {
        return Ok(limit as usize);
    }
    Err(ApiError::invalid("limit", format!("is {limit}, must be 1 to {MAX_PAGE}")))
}

fn status(name: &str) -> Result<TaskStatus, ApiError> {
    TaskStatus::ALL.into_iter().find(|status| status.name() == name).ok_or_else(|| {
        let names = TaskStatus::ALL.map(TaskStatus::name);
        ApiError::invalid("status", format!("cannot be '{}'", shown(name)))
            .hint(did_you_mean(name, names).unwrap_or_else(|| format!("known: {}", names.join(", "))))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_one_to_two_hundred_tasks() {
        assert_eq!(limit(None), Ok(50));
        assert_eq!(limit(Some(200)), Ok(200));
        for wrong in [0, 201] {
            assert_eq!(limit(Some(wrong)).unwrap_err().status().as_u16(), 422);
        }
    }

    #[test]
    fn a_status_is_known_by_name() {
        assert_eq!(status("processing"), Ok(TaskStatus::Processing));
        let error = status("complete").unwrap_err();
        assert_eq!(error.detail().hint.as_deref(), Some("did you mean completed?"));
    }
}
