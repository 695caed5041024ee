//! What all dialects do alike around a submission: find the model's settings, check addresses, keep what was
//! uploaded, and wait for a result while the client is there.

use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use utoipa::ToSchema;

use super::app::App;
use super::auth::Client;
use super::error::{ApiError, did_you_mean};
use crate::service::{Idempotency, ModelDefaults, ServiceError, Submission, Submitted, TaskView};
use crate::task::{Owner, Priority, TaskId};

/// How soon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum PriorityName {
    /// In turn.
    #[default]
    Standard,
    /// Before standard ones.
    Priority,
    /// At the next step.
    Urgent,
}

impl From<PriorityName> for Priority {
    fn from(name: PriorityName) -> Self {
        match name {
            PriorityName::Standard => Self::Standard,
            PriorityName::Priority => Self::Priority,
            PriorityName::Urgent => Self::Urgent,
        }
    }
}

/// A submission, and the files that have to be kept before it is made.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) submission: Submission,
    pub(super) uploads: Vec<Bytes>,
}

impl Job {
    /// Keeps the files and submits the task.
    pub(super) async fn submit(
        mut self,
        app: &App,
        client: &Client,
        idempotency: Option<Idempotency>,
    ) -> Result<Submitted, ApiError> {
        self.submission.idempotency = idempotency;
        keep(app, self.uploads).await?;
        Ok(app.service.submit(&client.owner, self.submission).await?)
    }
}

/// Keeps uploaded files; by their content, so twice the same one is kept once.
pub(super) async fn keep(app: &App, uploads: Vec<Bytes>) -> Result<(), ApiError> {
    for bytes in uploads {
        app.service.put_blob(bytes).await?;
    }
    Ok(())
}

/// Settings of the model called `name`, or of the default model.
pub(super) fn defaults(app: &App, name: Option<&str>) -> Result<ModelDefaults, ApiError> {
    app.service.defaults(name).map_err(|error| match error {
        ServiceError::NotFound { what, id } => model_not_found(app, what, &id),
        other => other.into(),
    })
}

/// 404 with the nearest models.
pub(super) fn model_not_found(app: &App, what: &str, id: &str) -> ApiError {
    let models = app.service.models();
    let names = || models.iter().map(|model| model.id.as_str());
    let hint = did_you_mean(id, names()).unwrap_or_else(|| {
        let some: Vec<&str> = names().take(10).collect();
        format!("GET /v1/models lists all; here are {}", some.join(", "))
    });
    ApiError::not_found(what, id).field("model").hint(hint)
}

/// An address that the server will tell about the task.
pub(super) fn webhook(
    app: &App,
    field: &'static str,
    text: Option<String>,
) -> Result<Option<String>, ApiError> {
    let Some(text) = text else { return Ok(None) };
    match app.service.check_url(&text) {
        Ok(url) => Ok(Some(url.into())),
        Err(ServiceError::Invalid { message, .. }) => {
            Err(ApiError::invalid(field, format!("cannot be used: {message}")))
        }
        Err(other) => Err(other.into()),
    }
}

/// Waits until the task is final, at most as long as the server lets clients wait. A client that goes away takes the
/// task back, if it wanted so.
pub(super) async fn wait(
    app: &App,
    client: &Client,
    id: &TaskId,
    cancel_on_disconnect: bool,
) -> Result<TaskView, ApiError> {
    let patience = Duration::from_secs_f64(app.config.server.wait_timeout.clamp(0.0, 86_400.0));
    let mut guard = CancelOnDrop {
        app: app.clone(),
        task: cancel_on_disconnect.then(|| (client.owner.clone(), id.clone())),
    };
    let waited = app.service.wait(&client.owner, id, patience).await;
    guard.task = None;
    Ok(waited?)
}

/// Takes a task back when it is dropped: the server drops a handler whose client has gone.
struct CancelOnDrop {
    app: App,
    task: Option<(Owner, TaskId)>,
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        let Some((owner, id)) = self.task.take() else { return };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let service = self.app.service.clone();
        runtime.spawn(async move {
            match service.cancel(&owner, &id).await {
                Ok(_) => tracing::info!(task = %id, "cancelled: its client went away"),
                Err(ServiceError::Conflict { .. }) => {}
                Err(error) => tracing::warn!(task = %id, %error, "could not cancel a task without a client"),
            }
        });
    }
}
