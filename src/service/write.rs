//! From pixels to a stored picture: encoded, written whole, and then named by its task. While the storage does not
//! answer, it is tried again and again: the task was promised. A server that stops meanwhile draws it anew.

use std::time::{Duration, Instant};

use darkroom_models::Computed;
use darkroom_pipelines::FlowShift;
use jiff::Timestamp;

use super::{Service, ServiceError};
use crate::catalog::AuxiliaryKind;
use crate::engine::Drawn;
use crate::picture::{self, Origin, Recipe, RecipeControl, RecipeFlow, RecipeLora};
use crate::store::{ImageStored, StorageError, StoreError};
use crate::task::{
    Background, ControlSpec, DrawnImage, ImageSpec, LoraSpec, SourceSpec, TaskError, TaskErrorKind,
    TaskStatus,
};

/// First and longest pause between tries, and how each follows from the last.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

impl Service {
    pub(super) async fn write(&self, drawn: Drawn) {
        let Ok(_writing) = self.0.writers.acquire().await else { return };
        let started = Instant::now();
        let Drawn { job, spec, computed, width, height, rgb, alpha, warnings, usage, unwritten } = drawn;
        let format = spec.format;
        let (service, described) = (self.clone(), std::sync::Arc::clone(&spec));
        let encode = move || {
            // Looks at the models folder for the names of files.
            let mut recipe = described.metadata.then(|| service.recipe(&described, computed));
            // A background that could not be taken out has stayed.
            if let (Some(recipe), None) = (&mut recipe, &alpha) {
                recipe.background = Background::Keep;
            }
            picture::encode(width, height, &rgb, alpha.as_deref(), format, recipe.as_ref())
        };
        let encoding = tokio::task::spawn_blocking(encode);
        let bytes = match encoding.await {
            Ok(Ok(bytes)) => bytes::Bytes::from(bytes),
            Ok(Err(error)) => return self.unwritable(&job.id.task, &error.to_string()).await,
            Err(error) => return self.unwritable(&job.id.task, &error.to_string()).await,
        };
        let id = job.id.task.image(job.id.index);
        let image = DrawnImage {
            index: job.id.index,
            id: id.clone(),
            format,
            width,
            height,
            bytes: bytes.len() as u64,
            seed: spec.seed,
            cached: false,
            warnings,
        };
        let put = || self.0.images.put_image(&id, format, bytes.clone());
        // Whatever is wrong with a folder or bucket, someone can mend it.
        if self.until_stored(put, |_| true).await.is_none() {
            return;
        }
        let finish = || self.0.store.finish_image(&job.id.task, &image, &spec, &usage, Timestamp::now());
        let Some(stored) = self.until_stored(finish, StoreError::is_unavailable).await else { return };
        drop(unwritten);
        self.0.metrics.stage("write", started.elapsed());
        match stored {
            // Repeated: an earlier try was stored although its answer was lost.
            ImageStored::New { completed } | ImageStored::Repeated { completed } => {
                self.image_stored(&job.id.task, image, completed);
            }
            ImageStored::TaskIsFinal => {
                // Taken back while it was written: the file belongs to no one.
                if let Err(error) = self.0.images.delete_image(&id, format).await {
                    tracing::debug!(%error, "a picture of a cancelled task is left for the next sweep");
                }
            }
        }
    }

    fn image_stored(&self, id: &crate::task::TaskId, image: DrawnImage, completed: bool) {
        let mut tasks = self.0.live.lock();
        let Some(live) = tasks.get_mut(id) else { return };
        live.take_image(id, image);
        live.completed |= completed;
        // Pictures are told in the order in which their writers get here; the last word comes after all of them.
        let all_told = live.completed && live.drawn.len() == live.images.len();
        drop(tasks);
        if all_told {
            self.ended(id, TaskStatus::Completed, None);
        }
    }

    async fn unwritable(&self, id: &crate::task::TaskId, why: &str) {
        let message = format!("the picture cannot be encoded: {why}");
        self.failed(id, TaskError { kind: TaskErrorKind::Internal, message }).await;
    }

    /// Tries until the storage has done it; `None` when the server stops first, or when trying again cannot help, as
    /// `is_unavailable` says.
    pub(super) async fn until_stored<T, E: StorageError, F: Future<Output = Result<T, E>>>(
        &self,
        store: impl Fn() -> F,
        is_unavailable: impl Fn(&E) -> bool,
    ) -> Option<T> {
        let mut pause = FIRST_PAUSE;
        let mut waiting = None;
        loop {
            match store().await {
                Ok(done) => {
                    if waiting.take().is_some() {
                        self.0.storage.answered();
                    }
                    return Some(done);
                }
                Err(error) if is_unavailable(&error) => {
                    waiting.get_or_insert_with(|| self.0.storage.wait());
                    self.0.storage.failed(&error);
                    tracing::warn!(%error, "the storage does not answer; trying again in {pause:?}");
                }
                Err(error) => {
                    tracing::error!(%error, "the storage refuses; the task waits for the next start");
                    self.0.storage.failed(&error);
                    return None;
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
                () = self.0.stop.cancelled() => return None,
            }
        }
    }

    /// How a picture was made, for its metadata.
    fn recipe(&self, spec: &ImageSpec, computed: Computed) -> Recipe {
        let origin = match &spec.source {
            SourceSpec::Empty => Origin::Empty,
            SourceSpec::Image { image, inpaint } => {
                let image = image.to_string();
                match inpaint {
                    None => Origin::Image { image, scaled: true },
                    Some(inpaint) => Origin::Inpaint {
                        image,
                        mask: inpaint.mask.as_ref().map(ToString::to_string),
                        scaled: true,
                        fill_grow: inpaint.fill_grow,
                    },
                }
            }
        };
        Recipe {
            prompt: spec.prompt.clone(),
            negative_prompt: spec.negative_prompt.clone(),
            width: spec.width,
            height: spec.height,
            steps: spec.steps,
            cfg: spec.cfg,
            sampler: spec.sampler.clone(),
            scheduler: spec.scheduler.clone(),
            seed: spec.seed,
            denoise: spec.denoise,
            clip_skip: spec.clip_skip,
            computed,
            model: self.model_file(&spec.model),
            flow: self.recipe_flow(spec),
            origin,
            loras: spec.loras.iter().map(|lora| self.recipe_lora(lora)).collect(),
            controls: spec.controls.iter().map(|control| self.recipe_control(control)).collect(),
            speed: spec.speed,
            detail: spec.detail.clone(),
            background: spec.background.clone(),
        }
    }

    /// What Qwen-Image's workflow needs beside the model's file.
    fn recipe_flow(&self, spec: &ImageSpec) -> Option<RecipeFlow> {
        let entry = self.0.catalog.find(&spec.model)?;
        let (text_encoder, vae) = entry.split_files()?;
        Some(RecipeFlow { shift: spec.shift.unwrap_or(FlowShift::OWN), text_encoder, vae })
    }

    fn recipe_lora(&self, spec: &LoraSpec) -> RecipeLora {
        RecipeLora {
            file: self.auxiliary_file(AuxiliaryKind::Lora, &spec.lora),
            strength: spec.strength,
            text_strength: spec.text_strength,
        }
    }

    fn recipe_control(&self, spec: &ControlSpec) -> RecipeControl {
        RecipeControl {
            file: self.auxiliary_file(AuxiliaryKind::ControlNet, &spec.control),
            image: spec.image.to_string(),
            preprocess: spec.preprocess,
            strength: spec.strength,
            start: spec.start,
            end: spec.end,
        }
    }

    /// What an image store's refusal means to a client.
    pub(super) fn image_error(&self, error: &crate::store::ImageStoreError) -> ServiceError {
        tracing::warn!(%error, "a request is refused by the image store");
        ServiceError::StorageUnavailable { message: error.for_clients() }
    }
}
