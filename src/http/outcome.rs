//! What dialects answer that wait for pictures: the pictures, or why there are none.

use axum::http::StatusCode;

use super::error::ApiError;
use crate::service::TaskView;
use crate::task::{DrawnImage, TaskErrorKind, TaskStatus};

/// The pictures of a completed task, in order.
pub(super) fn finished(view: &TaskView) -> Result<Vec<DrawnImage>, ApiError> {
    let task = &view.task;
    match task.status {
        TaskStatus::Completed => {
            let mut drawn = task.drawn.clone();
            drawn.sort_by_key(|image| image.index);
            Ok(drawn)
        }
        TaskStatus::Failed => Err(match &task.error {
            None => ApiError::internal(&format!("task {} failed without a reason", task.id)),
            Some(error) => match error.kind {
                TaskErrorKind::InvalidRequest => {
                    ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_value", &error.message)
                }
                TaskErrorKind::ModelUnavailable => {
                    ApiError::unavailable("model_unavailable", &error.message, 60)
                }
                TaskErrorKind::OutOfMemory => {
                    ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "out_of_memory", &error.message)
                        .hint("ask for a smaller picture")
                }
                TaskErrorKind::Internal => {
                    ApiError::internal(&format!("task {}: {}", task.id, error.message))
                }
            },
        }),
        TaskStatus::Cancelled => {
            Err(ApiError::new(StatusCode::CONFLICT, "cancelled", "the task was cancelled"))
        }
        TaskStatus::Queued | TaskStatus::Processing => Err(ApiError::unavailable(
            "timeout",
            "the picture was not done in time",
            view.eta_seconds.unwrap_or(10.0).clamp(1.0, 3600.0).ceil() as u64,
        )
        .hint(format!("it is still being made: GET /v1/tasks/{}", task.id))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::task_json::testing::view;
    use crate::task::TaskError;

    #[test]
    fn pictures_come_in_their_order() {
        let drawn = finished(&view(TaskStatus::Completed, 3, 3)).unwrap();
        assert_eq!(drawn.iter().map(|image| image.index).collect::<Vec<_>>(), [0, 1, 2]);
    }

    #[test]
    fn a_task_without_a_result_says_why_with_a_status() {
        let failed = |kind| {
            let mut view = view(TaskStatus::Failed, 1, 0);
            view.task.error = Some(TaskError { kind, message: "why".into() });
            finished(&view).unwrap_err().status().as_u16()
        };
        assert_eq!(failed(TaskErrorKind::InvalidRequest), 422);
        assert_eq!(failed(TaskErrorKind::OutOfMemory), 422);
        assert_eq!(failed(TaskErrorKind::ModelUnavailable), 503);
        assert_eq!(failed(TaskErrorKind::Internal), 500);
        assert_eq!(finished(&view(TaskStatus::Cancelled, 1, 0)).unwrap_err().status().as_u16(), 409);
        assert_eq!(finished(&view(TaskStatus::Processing, 1, 0)).unwrap_err().status().as_u16(), 503);
    }
}
