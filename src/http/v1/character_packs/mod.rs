//! `POST /v1/character-packs/…`: variants of a new character, and a character in many expressions, from head to foot,
//! in other clothes, cut out as stickers. One route a file; here is what they share.

mod cast;
mod expressions;
mod full_body;
mod outfit_change;
mod prototypes;
mod recipe;
mod series;
mod stickers;
mod templating;

use axum::Json;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Serialize;
use utoipa::ToSchema;

use super::images::mark_replay;
use crate::config::Config;
use crate::http::app::App;
use crate::http::auth::Client;
use crate::http::error::ApiError;
use crate::http::guides::Guides;
use crate::http::rules::{Choices, Rules, resolution};
use crate::http::submit::{Job, PriorityName};
use crate::http::words::{Style, Words, join};
use crate::service::{Idempotency, ModelDefaults, Submission, Submitted, TaskView};
use crate::task::{ImageSpec, TaskKind};
use crate::templates::Templates;
use templating::{TemplateRequest, Templating};

pub(super) use expressions::{__path_expressions, expressions};
pub(super) use full_body::{__path_full_body, full_body};
pub(super) use outfit_change::{__path_outfit_change, outfit_change};
pub(super) use prototypes::{__path_prototypes, prototypes};
pub(super) use stickers::{__path_stickers, stickers};

/// What every pack is put together with.
pub(super) struct Kit<'a> {
    words: &'a Words,
    rules: &'a Rules,
    templates: &'a Templates,
    config: &'a Config,
}

impl<'a> Kit<'a> {
    fn of(app: &'a App) -> Self {
        Self { words: &app.words, rules: &app.rules, templates: &app.templates, config: &app.config }
    }

    fn templating(
        &self,
        guides: &Guides<'_>,
        request: TemplateRequest<'_>,
    ) -> Result<Option<Templating<'a>>, ApiError> {
        let (set, most) = (&self.config.templates.set, self.config.limits.source_bytes);
        Templating::new(self.templates, set, guides, request, most)
    }
}

/// An accepted pack or scene.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
pub(super) struct AcceptedBody {
    /// The task's id.
    pub(super) task_id: String,
    /// `queued`; `completed` if the expression bank had all pictures.
    pub(super) status: &'static str,
    /// Seconds until it is done, rounded up; null while nothing was measured yet.
    pub(super) estimated_time_seconds: Option<u64>,
    /// Whom the server will tell.
    pub(super) webhook_url: Option<String>,
    /// How many expressions the pack has; of expressions and stickers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) expression_count: Option<usize>,
    /// What was asked for and could not be done, and what was done instead.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) warnings: Vec<String>,
}

impl AcceptedBody {
    pub(super) fn new(view: &TaskView) -> Self {
        let seconds = if view.task.status.is_final() { Some(0.0) } else { view.eta_seconds };
        Self {
            task_id: view.task.id.to_string(),
            status: view.task.status.name(),
            estimated_time_seconds: seconds.map(|seconds| seconds.max(0.0).ceil() as u64),
            webhook_url: view.task.webhook_url.clone(),
            expression_count: matches!(view.task.kind, TaskKind::Expressions | TaskKind::Stickers)
                .then_some(view.task.images.len()),
            warnings: Vec::new(),
        }
    }

    fn answer(submitted: &Submitted, warnings: Vec<String>) -> Response {
        let mut response = Json(Self { warnings, ..Self::new(&submitted.view) }).into_response();
        mark_replay(&mut response, submitted.created);
        response
    }
}

/// What a route has made of a request: a pack or a scene, ready to be submitted.
pub(super) struct Pack {
    pub(super) kind: TaskKind,
    pub(super) priority: Option<PriorityName>,
    pub(super) images: Vec<ImageSpec>,
    /// Files that the pictures need.
    pub(super) uploads: Vec<Bytes>,
    pub(super) webhook_url: Option<String>,
    pub(super) bypass_bank: bool,
    /// What was asked for and could not be done.
    pub(super) warnings: Vec<String>,
}

impl Pack {
    /// Keeps the files, submits the task and answers.
    pub(super) async fn accept(
        self,
        app: &App,
        client: &Client,
        idempotency: Option<Idempotency>,
    ) -> Result<Response, ApiError> {
        let Self { kind, priority, images, uploads, webhook_url, bypass_bank, warnings } = self;
        let priority = priority.unwrap_or_default().into();
        let submission = Submission { kind, priority, images, webhook_url, bypass_bank, idempotency: None };
        let submitted = Job { submission, uploads }.submit(app, client, idempotency).await?;
        Ok(AcceptedBody::answer(&submitted, warnings))
    }
}

/// A picture in an art style at a resolution.
pub(super) fn styled_spec(
    rules: &Rules,
    defaults: ModelDefaults,
    prompt: String,
    style: &Style,
    size: Option<&str>,
) -> Result<ImageSpec, ApiError> {
    let size = size.map(|text| resolution("resolution", text)).transpose()?;
    let negative_prompt = join(&[&defaults.negative_prompt, &style.negative]);
    let choices = Choices {
        prompt,
        negative_prompt: Some(negative_prompt),
        width: size.map(|(width, _)| width),
        height: size.map(|(_, height)| height),
        ..Choices::default()
    };
    rules
        .resolve(defaults, choices)
        .map_err(|error| error.renamed(&[("width", "resolution"), ("height", "resolution")]))
}

#[cfg(test)]
mod testing {
    //! Servers with nothing and with everything beside the model, for tests.

    use super::*;
    use crate::catalog::AuxiliaryKind;
    use crate::http::guides::testing::{TestShelf, control, fit, info, loras};
    use crate::http::rules::testing::{defaults, rules};
    use crate::service::ControlType;

    pub(super) struct Shelves {
        shelf: TestShelf,
        folder: tempfile::TempDir,
    }

    impl Shelves {
        /// Nothing beside the model.
        pub(super) fn bare() -> Self {
            Self { shelf: TestShelf::default(), folder: tempfile::TempDir::new().unwrap() }
        }

        /// Loras, a Canny ControlNet, a detector, a remover, and a template of `sad`.
        pub(super) fn full() -> Self {
            let Self { mut shelf, folder } = Self::bare();
            shelf.0 = loras();
            shelf.0.push(control("xl-canny", ControlType::Canny));
            shelf.0.push(info(AuxiliaryKind::Detector, "face_yolov8m"));
            shelf.0.push(info(AuxiliaryKind::Matting, "rmbg"));
            std::fs::create_dir(folder.path().join("default")).unwrap();
            std::fs::write(folder.path().join("default/sad.png"), b"a picture").unwrap();
            Self { shelf, folder }
        }

        /// The same with a depth network.
        pub(super) fn with_depth(mut self) -> Self {
            self.shelf.0.push(info(AuxiliaryKind::Depth, "depth_anything_v2_vits"));
            self
        }

        /// The same with one more.
        pub(super) fn and(mut self, control_of: ControlType) -> Self {
            self.shelf.0.push(control(control_of.name(), control_of));
            self
        }
    }

    pub(super) fn with<T>(
        shelves: &Shelves,
        work: impl FnOnce(&Kit<'_>, &Guides<'_>, ModelDefaults) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        let (words, rules, config) = (Words::embedded().unwrap(), rules(), Config::default());
        let templates = Templates::open(Some(shelves.folder.path())).unwrap();
        let kit = Kit { words: &words, rules: &rules, templates: &templates, config: &config };
        work(&kit, &Guides::new(&shelves.shelf, &config, fit()), defaults())
    }

    pub(super) fn field<T: std::fmt::Debug>(result: Result<T, ApiError>) -> String {
        result.unwrap_err().detail().field.clone().unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::task_json::testing::view;
    use crate::task::TaskStatus;

    #[test]
    fn the_answer_has_the_gateways_fields() {
        let body = serde_json::to_value(AcceptedBody::new(&view(TaskStatus::Queued, 12, 0))).unwrap();
        assert_eq!(body["status"], "queued");
        assert_eq!(body["estimated_time_seconds"], 2);
        assert_eq!(body["expression_count"], 12);
        assert!(body["webhook_url"].is_null());
        let done = AcceptedBody::new(&view(TaskStatus::Completed, 2, 2));
        assert_eq!((done.status, done.estimated_time_seconds), ("completed", Some(0)));
        let mut unknown = view(TaskStatus::Queued, 1, 0);
        unknown.eta_seconds = None;
        assert_eq!(AcceptedBody::new(&unknown).estimated_time_seconds, None);
    }
}
