//! What every handler has at hand: the service, the configuration, and what `http` itself keeps (limits of streams
//! and memory, rate limits, the words that packs and scenes are described with).

use std::collections::HashSet;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::http::HeaderMap;
use bytes::Bytes;
use darkroom_models::tokenizer::{ClipTokenizer, TokenizerError};
use darkroom_pipelines::preprocess::openpose::PoseError;
use jiff::Timestamp;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::addresses::Addresses;
use super::auth::RateLimits;
use super::comfy::ComfyParts;
use super::comfy::frontend::FrontendError;
use super::error::ApiError;
use super::extract::kib;
use super::guides::Guides;
use super::pose::Poses;
use super::rules::Rules;
use super::source;
use super::submit::model_not_found;
use super::words::{Words, WordsError};
use crate::config::Config;
use crate::service::Service;
use crate::task::BlobId;
use crate::templates::{TemplateError, Templates};

/// Large bodies that may be in memory at once, as multiples of the largest one.
const LARGE_BODIES: usize = 8;
/// Templates that are remembered as good.
const GOOD_TEMPLATES: usize = 10_000;
/// Pictures that are decoded at once, for checks and thumbnails.
const DECODERS: usize = 2;

/// Why the routes could not be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    /// A word list that is compiled in cannot be read.
    #[error(transparent)]
    Words(#[from] WordsError),
    /// The tokenizer that is compiled in cannot be read.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The template folder is none.
    #[error(transparent)]
    Templates(#[from] TemplateError),
    /// The poses that are compiled in cannot be read.
    #[error(transparent)]
    Poses(#[from] PoseError),
    /// An origin of `server.cors_origins` is none.
    #[error("server.cors_origins: '{origin}' is no origin; write it as browsers do: https://example.com")]
    Origin {
        /// What the configuration says.
        origin: String,
    },
    /// The folder of ComfyUI's front end is none.
    #[error(transparent)]
    Frontend(#[from] FrontendError),
    /// The API's description cannot be written.
    #[error("the API's description cannot be written: {0}")]
    Description(#[from] serde_json::Error),
}

/// What every handler has at hand; cheap to clone.
#[derive(Clone)]
pub(super) struct App(Arc<Parts>);

/// See [`App`].
pub(super) struct Parts {
    pub(super) service: Service,
    pub(super) config: Arc<Config>,
    /// Ends event streams and sockets.
    pub(super) shutdown: CancellationToken,
    pub(super) words: Words,
    pub(super) rules: Rules,
    pub(super) templates: Templates,
    pub(super) poses: Poses,
    /// Templates that were decoded once.
    good_templates: Mutex<HashSet<BlobId>>,
    pub(super) rate_limits: RateLimits,
    pub(super) started: Timestamp,
    /// Held while settings or users of ComfyUI's front end are read, changed and written.
    pub(super) user_changes: tokio::sync::Mutex<()>,
    /// ComfyUI's server, if it is served.
    pub(super) comfy: Option<ComfyParts>,
    streams: Arc<Semaphore>,
    decoders: Semaphore,
    body_memory: Arc<Semaphore>,
    body_memory_kib: u32,
}

/// A place among the event streams and sockets, counted while it is taken.
pub(super) struct StreamPlace {
    open: Gauge,
    _permit: OwnedSemaphorePermit,
}

impl Drop for StreamPlace {
    fn drop(&mut self) {
        self.open.dec();
    }
}

impl Deref for App {
    type Target = Parts;
    fn deref(&self) -> &Parts {
        &self.0
    }
}

impl App {
    pub(super) fn new(
        service: Service,
        config: Arc<Config>,
        shutdown: CancellationToken,
        comfy: Option<ComfyParts>,
    ) -> Result<Self, SetupError> {
        let body_memory_kib = kib(config.limits.body_bytes.saturating_mul(LARGE_BODIES)).min(1 << 28);
        Ok(Self(Arc::new(Parts {
            service,
            shutdown,
            words: Words::embedded()?,
            rules: Rules::new(&config.limits, &config.speed, ClipTokenizer::standard()?),
            templates: Templates::open(config.templates.folder.as_deref())?,
            poses: Poses::embedded()?,
            good_templates: Mutex::default(),
            rate_limits: RateLimits::new(config.auth.requests_per_minute),
            started: Timestamp::now(),
            user_changes: tokio::sync::Mutex::new(()),
            comfy,
            streams: Arc::new(Semaphore::new(config.server.max_streams.min(Semaphore::MAX_PERMITS))),
            decoders: Semaphore::new(DECODERS),
            body_memory: Arc::new(Semaphore::new(body_memory_kib as usize)),
            body_memory_kib,
            config,
        })))
    }

    /// What pictures of this model can be guided by.
    pub(super) fn guides(&self, model: &str) -> Result<Guides<'_>, ApiError> {
        let fit = self.service.model_fit(model).ok_or_else(|| model_not_found(self, "model", model))?;
        Ok(Guides::new(&self.service, &self.config, fit))
    }

    /// Refuses template files that are no pictures, so that the device never meets one.
    pub(super) async fn check_templates(&self, files: &[Bytes]) -> Result<(), ApiError> {
        for file in files {
            let id = BlobId::of(file);
            let known = || self.good_templates.lock().unwrap_or_else(PoisonError::into_inner);
            if known().contains(&id) {
                continue;
            }
            source::check(self, "template_set", file.clone()).await?;
            let mut known = known();
            if known.len() >= GOOD_TEMPLATES {
                known.clear();
            }
            known.insert(id);
        }
        Ok(())
    }

    /// Where clients find pictures, as the client of this request reaches the server.
    pub(super) fn addresses(&self, headers: &HeaderMap) -> Addresses {
        Addresses::new(&self.config.server, headers)
    }

    /// A place among the event streams and sockets.
    pub(super) fn stream_place(&self) -> Result<StreamPlace, ApiError> {
        let permit = Arc::clone(&self.streams).try_acquire_owned().map_err(|_| {
            let limit = self.config.server.max_streams;
            ApiError::too_many("too_many_streams", format!("{limit} event streams are open already"), 5)
                .hint("listen to many tasks over one WebSocket: /v1/tasks/ws")
        })?;
        let open = self.service.metrics().streams.clone();
        open.inc();
        Ok(StreamPlace { open, _permit: permit })
    }

    /// Waits until a body of so many bytes fits into memory beside the others, at most so long.
    pub(super) async fn body_share(
        &self,
        bytes: usize,
        patience: Duration,
    ) -> Result<OwnedSemaphorePermit, ApiError> {
        let share = kib(bytes).min(self.body_memory_kib);
        let waiting = Arc::clone(&self.body_memory).acquire_many_owned(share);
        match tokio::time::timeout(patience, waiting).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) => Err(ApiError::internal("the memory for bodies was closed")),
            Err(_) => Err(ApiError::unavailable("busy", "too many large requests arrive at once", 5)),
        }
    }

    /// Runs work on a picture (decoding, scaling) beside the server's own threads, a few at once.
    pub(super) async fn picture_work<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let _place = self
            .decoders
            .acquire()
            .await
            .map_err(|_| ApiError::internal("the places for picture work were closed"))?;
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|error| ApiError::internal(&format!("work on a picture failed: {error}")))
    }
}
