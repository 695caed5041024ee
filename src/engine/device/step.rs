//! One step of a batch, and what becomes of its samples.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use darkroom_models::device;
use darkroom_pipelines::{LatentPreview, LoraSet, Pipeline, Sample, StepWork};

use super::{Active, DeviceThread, Finished, Phase};
use crate::engine::companions::{Companions, ROUNDING};
use crate::engine::job::{BatchKey, Content};
use crate::engine::queue::Ticket;
use crate::engine::split::in_halves;
use crate::engine::{EngineEvent, Unwritten};
use crate::metrics::{ByModel, ByPass, ByWay, Metrics};
use crate::task::{TaskError, TaskErrorKind};

/// Steps of samples that must be left for merging to be worth its cost.
const WORTH_MERGING: usize = 16;

impl DeviceThread {
    /// One network call for the samples of `key` that `chosen` names.
    pub(super) fn step(&mut self, key: &BatchKey, chosen: impl Fn(&Ticket) -> bool) {
        let mut pipeline = None;
        let mut indices = Vec::new();
        let mut batch: Vec<&mut Sample> = Vec::new();
        for (index, active) in self.active.iter_mut().enumerate() {
            if active.ticket.key == *key
                && chosen(&active.ticket)
                && let Phase::Stepping { sample, pipeline: own } = &mut active.phase
            {
                pipeline.get_or_insert_with(|| Arc::clone(own));
                indices.push(index);
                batch.push(sample.as_mut());
            }
        }
        let Some(pipeline) = pipeline else { return };
        let merged = merged(&mut self.companions, key, &batch);
        let with_loras = batch.iter().filter(|sample| sample.loras().is_some()).count() as u64;
        let way = ByWay { way: if merged.is_some() { "merged" } else { "adapters" } };
        self.shared.metrics.lora_steps.get_or_create(&way).inc_by(with_loras);
        let pipeline = merged.unwrap_or(pipeline);
        let started = Instant::now();
        let mut panicked = false;
        let outcome = in_halves(&mut batch, &mut |part| {
            if panicked {
                return Err("a step ended in a defect".to_owned());
            }
            let step = std::panic::AssertUnwindSafe(|| pipeline.step(part));
            match std::panic::catch_unwind(step) {
                Ok(Ok(work)) => {
                    count(&self.shared.metrics, work);
                    Ok(())
                }
                Ok(Err(error)) => {
                    // What is left over from other shapes makes room for a smaller batch.
                    if error.is_out_of_memory() {
                        device::trim(pipeline.device());
                    }
                    Err(error.to_string())
                }
                Err(_) => {
                    // How far each sample got is not known, so none is tried again.
                    panicked = true;
                    Err("a step ended in a defect".to_owned())
                }
            }
        });
        self.pace.keep();
        let elapsed = started.elapsed();
        let now = Instant::now();
        if outcome.largest > 0 && outcome.largest < indices.len() && outcome.failed.is_empty() {
            tracing::warn!(
                batch = indices.len(),
                fits = outcome.largest,
                "a step batch did not fit; smaller ones from now on"
            );
            self.caps.insert(key.clone(), outcome.largest);
        }
        self.weights.used(&key.model, now);
        let metrics = &self.shared.metrics;
        metrics.stage("step", elapsed);
        metrics.step_batch_size.observe(indices.len() as f64);
        metrics.step_batches.fetch_add(1, Ordering::Relaxed);
        metrics.stepped_samples.fetch_add(indices.len() as u64, Ordering::Relaxed);
        let model = ByModel { model: key.model.to_string() };
        metrics.step_time.get_or_create(&model).observe(elapsed.as_secs_f64());

        let seconds = elapsed.as_secs_f64() / indices.len() as f64;
        let mut stepped = Vec::with_capacity(indices.len());
        {
            let mut state = self.shared.lock();
            let mut work = 0.0;
            for index in &indices {
                let active = &mut self.active[*index];
                active.usage.steps += 1;
                active.usage.device_seconds += seconds;
                let job = &active.ticket.job;
                state.queue.account(&job.owner, job.work_a_step());
                state.queue.forecast.worked(&job.id.task, job.work_a_step());
                work += job.work_a_step();
                // Faces have no place in the progress: how many there are shows only when the whole is decoded.
                if let (Phase::Stepping { sample, .. }, None) = (&active.phase, &active.part) {
                    let (done, total) = sample.progress();
                    match &job.content {
                        Content::Picture(_) => stepped.push((job.id.clone(), done, total)),
                        Content::Latent(latent) => latent.stepped(done, total),
                    }
                }
            }
            state.queue.forecast.measured(&key.model, work, elapsed);
            state.step_batch = indices.len();
        }
        if !stepped.is_empty() {
            self.shared.tell(EngineEvent::Stepped { samples: stepped });
        }

        let mut failed: Vec<(usize, String)> =
            outcome.failed.into_iter().map(|(i, error)| (indices[i], error)).collect();
        failed.sort_unstable_by_key(|(index, _)| std::cmp::Reverse(*index));
        for (index, message) in failed {
            let active = self.active.remove(index);
            tracing::error!(task = %active.ticket.job.id.task, message, "a step failed");
            self.fail(active, TaskError { kind: TaskErrorKind::Internal, message });
        }
        self.preview(now);
        self.finish_done();
        self.consider_merging(key, &pipeline);
    }

    /// Merges a set of LoRAs into the weights when all samples of the model have it and are at it for a while yet: a
    /// step with merged weights costs no more than one without LoRAs. Never puts anything out for it.
    fn consider_merging(&mut self, key: &BatchKey, pipeline: &Arc<Pipeline>) {
        if !pipeline.can_merge() {
            return;
        }
        let mut set: Option<&Arc<LoraSet>> = None;
        let mut steps_left = 0;
        for active in self.active.iter().filter(|active| active.ticket.key.model == key.model) {
            let Phase::Stepping { sample, .. } = &active.phase else { return };
            let Some(own) = sample.loras() else { return };
            if set.is_some_and(|set| set.name() != own.name()) {
                return;
            }
            set = Some(own);
            let (done, total) = sample.progress();
            steps_left += total.saturating_sub(done);
        }
        let Some(set) = set.cloned().filter(|set| !self.companions.has_merged(&key.model, set)) else {
            return;
        };
        let taken = self.weights.bytes() + self.companions.bytes();
        let room = self.budget().saturating_sub(taken);
        if steps_left < WORTH_MERGING || pipeline.merged_bytes(&set, ROUNDING) > room / 2 {
            return;
        }
        let Some(base) = self.weights.get(&key.model).map(|resident| Arc::clone(&resident.pipeline)) else {
            return;
        };
        self.companions.want_merged(&key.model, &base, &set);
    }

    /// Sends finished samples to the decoder.
    pub(super) fn finish_done(&mut self) {
        let mut i = 0;
        while i < self.active.len() {
            let Phase::Stepping { sample, .. } = &self.active[i].phase else {
                i += 1;
                continue;
            };
            if sample.latent().is_none() {
                i += 1;
                continue;
            }
            let mut active = self.active.remove(i);
            let Phase::Stepping { sample, pipeline } = std::mem::replace(&mut active.phase, Phase::Opening)
            else {
                continue;
            };
            let latent = match (sample.is_broken(), sample.latent()) {
                (Ok(false), Some(latent)) => pipeline.to_decoder(latent),
                (Err(error), _) => Err(error),
                _ => {
                    let message = no_numbers(&active.ticket.job.content);
                    self.fail(active, TaskError { kind: TaskErrorKind::InvalidRequest, message });
                    continue;
                }
            };
            let latent = match latent {
                Ok(latent) => latent,
                Err(error) => {
                    let message = format!("finishing the latent: {error}");
                    self.fail(active, TaskError { kind: TaskErrorKind::Internal, message });
                    continue;
                }
            };
            let Active { ticket, usage, finishing, part, .. } = active;
            self.shared.lock().queue.ended(&ticket.job);
            let spec = match &ticket.job.content {
                Content::Picture(spec) => Arc::clone(spec),
                Content::Latent(job) => {
                    job.done(latent, sample.last_denoised().cloned());
                    continue;
                }
            };
            self.shared.unwritten.fetch_add(1, Ordering::Relaxed);
            let unwritten = Unwritten(Arc::clone(&self.shared));
            let side = self
                .weights
                .get(&ticket.key.model)
                .map_or(0, |resident| resident.entry.defaults.width.max(resident.entry.defaults.height));
            let job = ticket.job;
            let finished = Finished { job, spec, pipeline, latent, usage, unwritten, finishing, part, side };
            // The decoder ends before this thread only by a panic, which has been logged.
            let _ = self.decoder.send(finished);
        }
    }

    /// Shows samples that someone watches, each at most so often.
    fn preview(&mut self, now: Instant) {
        let Some(every) = self.shared.options.preview_every else { return };
        for active in &mut self.active {
            let due = active.previewed.is_none_or(|last| now.saturating_duration_since(last) >= every);
            if !due || active.part.is_some() || !active.ticket.job.wants_previews() {
                continue;
            }
            let Phase::Stepping { sample, pipeline } = &active.phase else { continue };
            let preview = self.previews.entry(Arc::clone(&active.ticket.key.model)).or_insert_with(|| {
                LatentPreview::fit(pipeline).map_err(|e| tracing::warn!("no previews: {e}")).ok()
            });
            let Some(preview) = preview else { continue };
            let Ok(picture) = preview.render(sample.preview_latent()) else { continue };
            active.previewed = Some(now);
            let (width, height, rgb) = (picture.width(), picture.height(), picture.to_rgb8());
            match &active.ticket.job.content {
                Content::Picture(_) => {
                    let job = active.ticket.job.id.clone();
                    self.shared.tell(EngineEvent::Preview { job, width, height, rgb });
                }
                Content::Latent(latent) => latent.previewed(width, height, rgb),
            }
        }
    }
}

/// Counts what a step put through networks.
fn count(metrics: &Metrics, StepWork { whole_rows, shallow_rows, control_rows, .. }: StepWork) {
    for (pass, rows) in [("whole", whole_rows), ("shallow", shallow_rows), ("controlnet", control_rows)] {
        metrics.step_rows.get_or_create(&ByPass { pass }).inc_by(rows as u64);
    }
}

/// What to do about a picture that turned into values that are no numbers.
fn no_numbers(content: &Content) -> String {
    let Content::Picture(spec) = content else {
        return "the latent turned into values that are no numbers: lower cfg, the strengths and the weights in the \
                prompt; if it stays, the model's file or that of a LoRA or ControlNet is damaged"
            .into();
    };
    let guides = spec
        .loras
        .iter()
        .map(|lora| format!(", the LoRA '{}'", lora.lora))
        .chain(spec.controls.iter().map(|control| format!(", the ControlNet '{}'", control.control)));
    format!(
        "the picture turned into values that are no numbers: lower cfg, the strengths and the weights in the prompt; if \
         it stays, a file that it was drawn with is damaged: the model '{}'{}",
        spec.model,
        guides.collect::<String>()
    )
}

/// The model with the LoRAs of `batch` in its weights, where all of it has the same and they are merged already.
fn merged(companions: &mut Companions, key: &BatchKey, batch: &[&mut Sample]) -> Option<Arc<Pipeline>> {
    let (first, rest) = batch.split_first()?;
    let set = first.loras()?;
    let alike = rest.iter().all(|sample| sample.loras().is_some_and(|other| other.name() == set.name()));
    alike.then(|| companions.merged(&key.model, set, Instant::now()))?
}
