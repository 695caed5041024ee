//! `GET /v1/queue`: how much waits.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use crate::http::app::App;
use crate::http::auth::Client;
use crate::service::QueueView;

/// The queue at this moment.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
pub(super) struct QueueBody {
    /// Tasks that have not started.
    queued: QueuedBody,
    /// Tasks that have started and are not done.
    processing: usize,
    /// Most unfinished tasks.
    capacity: usize,
    /// Pictures in the last step batch.
    step_batch: usize,
    /// Seconds until everything that waits now is done; null before any step was measured.
    eta_seconds: Option<f64>,
}

/// Tasks that have not started, by priority.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
pub(super) struct QueuedBody {
    /// In turn.
    standard: usize,
    /// Before standard ones.
    priority: usize,
    /// At the next step.
    urgent: usize,
    /// All of them.
    total: usize,
}

impl From<QueueView> for QueueBody {
    fn from(view: QueueView) -> Self {
        let [standard, priority, urgent] = view.queued;
        Self {
            queued: QueuedBody { standard, priority, urgent, total: standard + priority + urgent },
            processing: view.processing,
            capacity: view.capacity,
            step_batch: view.step_batch,
            eta_seconds: view.eta_seconds,
        }
    }
}

/// Shows the queue.
#[utoipa::path(
    get,
    path = "/v1/queue",
    tag = "queue",
    responses((status = 200, body = QueueBody, description = "The queue at this moment"))
)]
pub(super) async fn show(State(app): State<App>, _client: Client) -> Json<QueueBody> {
    Json(app.service.queue().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_tasks_are_counted_by_priority() {
        let body = QueueBody::from(QueueView { queued: [3, 2, 1], ..QueueView::default() });
        assert_eq!(body.queued, QueuedBody { standard: 3, priority: 2, urgent: 1, total: 6 });
    }
}
