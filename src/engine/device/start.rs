//! How pictures that leave the queue become samples: sources, prompts, LoRAs and ControlNets.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use darkroom_pipelines::noise::BatchPosition;
use darkroom_pipelines::{
    Conditioning, ImageRequest, LoraSet, Pipeline, PipelineError, PromptText, Sample, Source, SourceLatent,
    WantedPrompt,
};

use super::{Active, DeviceThread, Phase, kept_bytes, sample_bytes};
use crate::engine::EngineEvent;
use crate::engine::companions::Gathered;
use crate::engine::finish::Finishing;
use crate::engine::job::Content;
use crate::engine::queue::StepBatch;
use crate::engine::split::in_halves;
use crate::metrics::{ByCache, ByPriority};
use crate::task::{ImageSpec, SourceSpec, TaskError, TaskErrorKind, Usage};

impl DeviceThread {
    /// One step boundary: what joins is started, then everything in the batch makes a step.
    pub(super) fn turn(&mut self, batch: StepBatch) {
        let first_new = self.active.len();
        for ticket in batch.join {
            let waited = ticket.since.elapsed();
            let priority = ByPriority { priority: ticket.job.priority.name() };
            self.shared.metrics.queue_wait.get_or_create(&priority).observe(waited.as_secs_f64());
            let phase = match &ticket.job.content {
                Content::Picture(spec) => {
                    self.shared.tell(EngineEvent::Started { job: ticket.job.id.clone(), waited });
                    match spec.source {
                        SourceSpec::Empty => {
                            Phase::Opened(Source::Empty { width: spec.width, height: spec.height })
                        }
                        SourceSpec::Image { .. } => {
                            self.sources.request(ticket.job.id.clone(), Arc::clone(spec));
                            Phase::Opening
                        }
                    }
                }
                Content::Latent(latent) => match latent.take() {
                    Some((sample, pipeline)) => Phase::Stepping { sample, pipeline },
                    // A sample is started once; who waits for it has heard of its end.
                    None => {
                        self.shared.lock().queue.ended(&ticket.job);
                        continue;
                    }
                },
            };
            let usage = Usage::default();
            let finishing = Finishing::default();
            self.active.push(Active { ticket, phase, usage, previewed: None, finishing, part: None });
        }
        let before: Vec<_> = batch.advance.iter().map(|i| self.active[*i].ticket.sequence).collect();
        let new: Vec<_> = self.active[first_new..].iter().map(|a| a.ticket.sequence).collect();
        self.start_opened();
        self.step(&batch.key, |active| before.contains(&active.sequence) || new.contains(&active.sequence));
    }

    /// Starts every sample whose source is there: prompts of one model are encoded together, once each.
    pub(super) fn start_opened(&mut self) {
        let mut models: Vec<Arc<str>> = Vec::new();
        for active in self.active.iter().filter(|active| matches!(active.phase, Phase::Opened(_))) {
            if !models.contains(&active.ticket.key.model) {
                models.push(Arc::clone(&active.ticket.key.model));
            }
        }
        for model in models {
            // Samples keep their model in use, so it is still there.
            let Some(pipeline) = self.weights.get(&model).map(|resident| Arc::clone(&resident.pipeline))
            else {
                continue;
            };
            let mut starting = Vec::new();
            let mut i = 0;
            while i < self.active.len() {
                let active = &self.active[i];
                if matches!(active.phase, Phase::Opened(_)) && active.ticket.key.model == model {
                    starting.push(self.active.swap_remove(i));
                } else {
                    i += 1;
                }
            }
            self.start_samples(&model, &pipeline, starting);
        }
    }

    fn start_samples(&mut self, model: &Arc<str>, pipeline: &Arc<Pipeline>, starting: Vec<Active>) {
        let mut requests = Vec::with_capacity(starting.len());
        let now = Instant::now();
        for mut active in starting {
            let key = &active.ticket.key;
            let needs = self.weights.get(model).map_or(0, |r| r.pipeline.weight_bytes())
                + sample_bytes(pipeline, key)
                + kept_bytes(pipeline, &active.ticket);
            if needs > self.budget() {
                let message = format!(
                    "{} x {} pixels with '{model}' take {} MiB; the memory budget is {} MiB",
                    key.width,
                    key.height,
                    needs >> 20,
                    self.budget() >> 20
                );
                self.fail(active, TaskError { kind: TaskErrorKind::OutOfMemory, message });
                continue;
            }
            let Phase::Opened(source) = &active.phase else { continue };
            let Content::Picture(spec) = &active.ticket.job.content else { continue };
            let (loras, controls) = match self.companions.gather(model, pipeline, spec, now) {
                Gathered::Ready { loras, controls, finishing } => {
                    active.finishing = finishing;
                    (loras, controls)
                }
                Gathered::Waiting => {
                    active.phase = Phase::Gathering(source.clone());
                    self.active.push(active);
                    continue;
                }
                Gathered::Failed(error) => {
                    self.fail(active, error);
                    continue;
                }
            };
            match image_request(spec, source) {
                Ok(request) => requests.push((active, ImageRequest { loras, controls, ..request })),
                Err(message) => {
                    let error = TaskError { kind: TaskErrorKind::InvalidRequest, message };
                    self.fail(active, error);
                }
            }
        }
        self.finish_starting(model, pipeline, requests);
    }

    /// The last part of starting: what everything is there for.
    fn finish_starting(
        &mut self,
        model: &Arc<str>,
        pipeline: &Arc<Pipeline>,
        requests: Vec<(Active, ImageRequest)>,
    ) {
        let started = Instant::now();
        let encoded = self.encode(model, pipeline, requests.iter().map(|(_, request)| request));
        self.shared.metrics.stage("encode", started.elapsed());
        let started = Instant::now();
        let mut sources: Vec<(Source, SourceLatent)> = Vec::new();
        for (mut active, request) in requests {
            let prompts = pipeline.prompts(&request);
            let find = |prompt: &PromptText| match encoded.get(prompt) {
                Some(Ok(conditioning)) => Ok(conditioning.clone()),
                Some(Err(message)) => Err(message.clone()),
                None => Err("the prompt was not encoded".to_owned()),
            };
            let start = || -> Result<Sample, TaskError> {
                let invalid = |message| TaskError { kind: TaskErrorKind::InvalidRequest, message };
                let positive = find(&prompts.positive).map_err(invalid)?;
                let negative = prompts.negative.as_ref().map(find).transpose().map_err(invalid)?;
                let known = sources.iter().find(|(known, _)| known.same_as(&request.source));
                let latent = match known {
                    Some((_, latent)) => latent.clone(),
                    None => {
                        let latent = pipeline.encode_source(&request.source).map_err(|e| task_error(&e))?;
                        sources.push((request.source.clone(), latent.clone()));
                        latent
                    }
                };
                pipeline.start(&request, positive, negative, &latent).map_err(|e| task_error(&e))
            };
            let sample = std::panic::catch_unwind(std::panic::AssertUnwindSafe(start)).unwrap_or_else(|_| {
                Err(TaskError {
                    kind: TaskErrorKind::Internal,
                    message: "starting it ended in a defect".into(),
                })
            });
            match sample {
                Ok(sample) => {
                    active.phase =
                        Phase::Stepping { sample: Box::new(sample), pipeline: Arc::clone(pipeline) };
                    self.active.push(active);
                }
                Err(error) => self.fail(active, error),
            }
        }
        self.shared.metrics.stage("prepare", started.elapsed());
        self.finish_done();
    }

    /// Conditioning of each prompt of `requests`, from the cache where it is there. A prompt that cannot be encoded
    /// does not stop the others.
    fn encode<'r>(
        &mut self,
        model: &Arc<str>,
        pipeline: &Pipeline,
        requests: impl Iterator<Item = &'r ImageRequest>,
    ) -> HashMap<PromptText, Result<Conditioning, String>> {
        let mut encoded = HashMap::new();
        let mut missing: Vec<(&'static str, PromptText, Option<Arc<LoraSet>>)> = Vec::new();
        let label = ByCache { cache: "prompt" };
        for (request, prompts) in requests.map(|request| (request, pipeline.prompts(request))) {
            for (field, prompt) in prompts.fields() {
                if encoded.contains_key(prompt) || missing.iter().any(|(_, known, _)| known == prompt) {
                    self.shared.metrics.cache_hits.get_or_create(&label).inc();
                } else if let Some(conditioning) = self.prompts.get(model, prompt) {
                    self.shared.metrics.cache_hits.get_or_create(&label).inc();
                    encoded.insert(prompt.clone(), Ok(conditioning));
                } else {
                    self.shared.metrics.cache_misses.get_or_create(&label).inc();
                    missing.push((field, prompt.clone(), request.loras.clone()));
                }
            }
        }
        let mut items: Vec<_> =
            missing.into_iter().map(|(field, prompt, loras)| (field, prompt, loras, None)).collect();
        let outcome = in_halves(&mut items, &mut |part| {
            let prompts: Vec<WantedPrompt<'_>> = part
                .iter()
                .map(|(field, prompt, loras, _)| WantedPrompt { field, prompt, loras: loras.as_ref() })
                .collect();
            let conditionings = pipeline.encode_prompts(&prompts)?;
            for ((.., slot), conditioning) in part.iter_mut().zip(conditionings) {
                *slot = Some(conditioning);
            }
            Ok::<_, PipelineError>(())
        });
        for (index, error) in outcome.failed {
            encoded.insert(items[index].1.clone(), Err(error.to_string()));
        }
        for (_, prompt, _, conditioning) in items {
            if let Some(conditioning) = conditioning {
                self.prompts.put(model, &prompt, &conditioning);
                encoded.insert(prompt, Ok(conditioning));
            }
        }
        encoded
    }
}

fn image_request(spec: &ImageSpec, source: &Source) -> Result<ImageRequest, String> {
    Ok(ImageRequest {
        prompt: spec.prompt.clone(),
        negative_prompt: spec.negative_prompt.clone(),
        steps: spec.steps,
        cfg: spec.cfg,
        sampler: spec.sampler.parse().map_err(|e| format!("sampler: {e}"))?,
        scheduler: spec.scheduler.parse().map_err(|e| format!("scheduler: {e}"))?,
        seed: spec.seed,
        position: BatchPosition::ALONE,
        denoise: spec.denoise,
        clip_skip: spec.clip_skip,
        source: source.clone(),
        loras: None,
        controls: Vec::new(),
        speed: spec.speed,
        shift: spec.shift,
    })
}

fn task_error(error: &PipelineError) -> TaskError {
    let kind = match error {
        PipelineError::Request { .. }
        | PipelineError::Prompt { .. }
        | PipelineError::Schedule(_)
        | PipelineError::Unsupported { .. } => TaskErrorKind::InvalidRequest,
        _ => TaskErrorKind::Internal,
    };
    TaskError { kind, message: error.to_string() }
}
