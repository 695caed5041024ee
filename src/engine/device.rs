//! A device's thread. Each turn: take in what changed (models and sources that arrived, tasks taken back), ask the
//! queue for the next step batch, start what joins, make one step, hand finished latents to the decoder.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use candle_core::Device;
use darkroom_pipelines::noise::BatchPosition;
use darkroom_pipelines::{
    Conditioning, ImageRequest, LatentPreview, Pipeline, PipelineError, PromptText, Sample, Source,
};

use super::decode::{self, Finished};
use super::job::{BatchKey, Job};
use super::prompt_cache::PromptCache;
use super::queue::{Joins, Places, StepBatch, Ticket};
use super::residency::{Arrival, Want, Weights};
use super::sources::SourceThread;
use super::split::in_halves;
use super::{Control, EngineEvent, ModelError, Reply, Shared, State, Unwritten};
use crate::metrics::{ByCache, ByDevice, ByModel, ByPriority};
use crate::task::{ImageSpec, SourceSpec, TaskError, TaskErrorKind, Usage};

/// How long an idle device sleeps when nobody wakes it.
const IDLE: Duration = Duration::from_millis(500);

/// A picture that has left the queue.
struct Active {
    ticket: Ticket,
    phase: Phase,
    usage: Usage,
    previewed: Option<Instant>,
}

enum Phase {
    /// Its source picture is being opened.
    Opening,
    /// The source is there; it starts at the next step boundary.
    Opened(Source),
    /// On its way from noise to picture.
    Stepping { sample: Box<Sample>, pipeline: Arc<Pipeline> },
}

struct DeviceThread {
    shared: Arc<Shared>,
    index: usize,
    weights: Weights,
    prompts: PromptCache,
    previews: HashMap<Arc<str>, Option<LatentPreview>>,
    sources: SourceThread,
    active: Vec<Active>,
    decoder: Sender<Finished>,
    /// What memory has taught about batch sizes.
    caps: HashMap<BatchKey, usize>,
    loading: Vec<(Arc<str>, Reply)>,
    evictions_counted: u64,
}

/// Starts the thread of device number `index`.
pub(super) fn spawn(shared: &Arc<Shared>, index: usize) -> std::io::Result<JoinHandle<()>> {
    let waker = || {
        let shared = Arc::clone(shared);
        move || shared.wake()
    };
    let options = &shared.options;
    let weights = Weights::new(
        Arc::clone(&shared.catalog),
        Device::Cpu,
        options.precision,
        options.limits.clone(),
        options.memory_budget,
        options.pinned.clone(),
        waker(),
    )?;
    let sources = SourceThread::start(Arc::clone(&shared.sources), waker())?;
    let (decoder, decoding) = decode::spawn(shared)?;
    let mut device = DeviceThread {
        shared: Arc::clone(shared),
        index,
        weights,
        prompts: PromptCache::new(options.prompt_cache_bytes),
        previews: HashMap::new(),
        sources,
        active: Vec::new(),
        decoder,
        caps: HashMap::new(),
        loading: Vec::new(),
        evictions_counted: 0,
    };
    thread::Builder::new().name(format!("darkroom-device-{index}")).spawn(move || {
        while std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| device.run())).is_err() {
            device.give_up_active();
        }
        drop(device);
        let _ = decoding.join();
    })
}

impl DeviceThread {
    fn run(&mut self) {
        while !self.shared.is_stopping() {
            let arrivals = self.weights.arrivals(Instant::now());
            self.take_in_sources();
            let shared = Arc::clone(&self.shared);
            let mut state = shared.lock();
            self.take_in_arrivals(arrivals, &mut state);
            self.take_in_cancelled(&mut state);
            self.take_in_controls(&mut state);
            let batch = self.next_batch(&mut state);
            self.publish(&mut state);
            match batch {
                Some(batch) => {
                    drop(state);
                    self.turn(batch);
                }
                None if self.active.iter().any(|a| matches!(a.phase, Phase::Opened(_))) => {
                    drop(state);
                    self.start_opened();
                }
                None => {
                    state.step_batch = 0;
                    let _ = shared.changed.wait_timeout(state, IDLE);
                }
            }
        }
    }

    /// A turn ended in a defect. How far its samples got is not known, so they fail; the device goes on.
    fn give_up_active(&mut self) {
        tracing::error!(samples = self.active.len(), "a turn of the device ended in a defect");
        for active in std::mem::take(&mut self.active) {
            let message = "the device met a defect; the log has more".to_owned();
            self.fail(&active.ticket.job, TaskError { kind: TaskErrorKind::Internal, message });
        }
    }

    fn take_in_sources(&mut self) {
        let opened: Vec<_> = self.sources.opened().collect();
        for opened in opened {
            let Some(position) = self.active.iter().position(|a| a.ticket.job.id == opened.job) else {
                continue; // taken back meanwhile
            };
            match opened.source {
                Ok(source) => self.active[position].phase = Phase::Opened(source),
                Err(error) => {
                    let active = self.active.swap_remove(position);
                    self.fail(&active.ticket.job, error);
                }
            }
        }
    }

    fn take_in_arrivals(&mut self, arrivals: Vec<Arrival>, state: &mut State) {
        for arrival in arrivals {
            let (model, answer) = match arrival {
                Arrival::Resident(model) => {
                    let label = ByModel { model: model.to_string() };
                    self.shared.metrics.model_loads.get_or_create(&label).inc();
                    (model, Ok(()))
                }
                Arrival::Failed(model, message) => {
                    self.refuse_model(&model, &message, state);
                    (model, Err(ModelError::Unavailable { message }))
                }
            };
            self.prompts.forget(&model);
            self.previews.remove(&model);
            let (done, waiting) =
                std::mem::take(&mut self.loading).into_iter().partition(|(wanted, _)| *wanted == model);
            self.loading = waiting;
            let done: Vec<(Arc<str>, Reply)> = done;
            for (_, reply) in done {
                let _ = reply.send(answer.clone());
            }
        }
    }

    fn take_in_cancelled(&mut self, state: &mut State) {
        for task in std::mem::take(&mut state.cancelled[self.index]) {
            self.active.retain(|active| {
                let keep = active.ticket.job.id.task != task;
                if !keep {
                    state.queue.ended(&active.ticket.job);
                }
                keep
            });
        }
    }

    fn take_in_controls(&mut self, state: &mut State) {
        for control in std::mem::take(&mut state.controls[self.index]) {
            match control {
                Control::Load { model, reply } => {
                    let active = &self.active;
                    let in_use = |id: &str| active.iter().any(|a| &*a.ticket.key.model == id);
                    match self.weights.want(&model, &in_use, Instant::now()) {
                        Want::Resident => drop(reply.send(Ok(()))),
                        Want::Loading => self.loading.push((model, reply)),
                        Want::NeedsRoom => {
                            let message =
                                "there is no room until the pictures that are being drawn with other \
                                           models are done, or a pinned model is unpinned"
                                    .to_owned();
                            let _ = reply.send(Err(ModelError::Unavailable { message }));
                        }
                        Want::Never(message) => {
                            let _ = reply.send(Err(ModelError::Unavailable { message }));
                        }
                    }
                }
                Control::Unload { model, reply } => {
                    let used = self.active.iter().any(|a| a.ticket.key.model == model)
                        || state.queue.wanted_models().contains(&model)
                        || self.loading.iter().any(|(loading, _)| *loading == model);
                    let answer = if used {
                        Err(ModelError::InUse { model: model.to_string() })
                    } else {
                        self.weights.remove(&model);
                        self.prompts.forget(&model);
                        Ok(())
                    };
                    let _ = reply.send(answer);
                }
            }
        }
    }

    /// Asks for the models that pictures wait for, and then the queue for a step batch.
    fn next_batch(&mut self, state: &mut State) -> Option<StepBatch> {
        let now = Instant::now();
        let mut later: HashMap<Arc<str>, Places> = HashMap::new();
        let wanted = state.queue.wanted_models();
        let mut needed: HashSet<Arc<str>> =
            self.active.iter().map(|active| Arc::clone(&active.ticket.key.model)).collect();
        for model in wanted {
            let want = self.weights.want(&model, &|id| needed.contains(id), now);
            // What others in front of it wait for is not put out for it.
            needed.insert(Arc::clone(&model));
            match want {
                Want::Resident => {}
                Want::Loading => drop(later.insert(model, Places::Later { needs_room: false })),
                Want::NeedsRoom => drop(later.insert(model, Places::Later { needs_room: true })),
                Want::Never(message) => self.refuse_model(&model, &message, state),
            }
        }
        let stepping: Vec<usize> = self.stepping().collect();
        let running: Vec<&Ticket> = stepping.iter().map(|i| &self.active[*i].ticket).collect();
        let unwritten = self.shared.unwritten.load(Ordering::Relaxed);
        let options = &self.shared.options;
        // While pictures cannot be written, not even urgent ones may pile up.
        let urgent = options.max_unwritten.saturating_sub(unwritten + self.active.len());
        let any = (2 * options.max_batch).saturating_sub(self.active.len()).min(urgent);
        let joins = Joins { any, urgent };
        let places = |key: &BatchKey| later.get(&key.model).copied().unwrap_or_else(|| self.places(key));
        let mut batch = state.queue.next_batch(&running, &places, joins, now)?;
        for position in &mut batch.advance {
            *position = stepping[*position];
        }
        Some(batch)
    }

    fn stepping(&self) -> impl Iterator<Item = usize> + '_ {
        let stepping = |active: &Active| matches!(active.phase, Phase::Stepping { .. });
        self.active.iter().enumerate().filter(move |(_, active)| stepping(active)).map(|(i, _)| i)
    }

    /// How many pictures of a shape fit into memory beside the weights.
    fn places(&self, key: &BatchKey) -> Places {
        let Some(resident) = self.weights.get(&key.model) else {
            return Places::Later { needs_room: false };
        };
        let each = sample_bytes(&resident.pipeline, key).max(1);
        let room = self.shared.options.memory_budget.saturating_sub(self.weights.bytes());
        let cap = self.caps.get(key).copied().unwrap_or(usize::MAX);
        Places::Ready(((room / each) as usize).min(self.shared.options.max_batch).min(cap).max(1))
    }

    fn publish(&mut self, state: &mut State) {
        state.residency[self.index] = self.weights.states();
        let metrics = &self.shared.metrics;
        let device = ByDevice { device: self.shared.options.devices[self.index].clone() };
        metrics.resident_bytes.get_or_create(&device).set(self.weights.bytes() as i64);
        metrics.evictions.inc_by(self.weights.evictions - self.evictions_counted);
        self.evictions_counted = self.weights.evictions;
    }

    /// One step boundary: what joins is started, then everything in the batch makes a step.
    fn turn(&mut self, batch: StepBatch) {
        let first_new = self.active.len();
        for ticket in batch.join {
            let waited = ticket.since.elapsed();
            let priority = ByPriority { priority: ticket.job.priority.name() };
            self.shared.metrics.queue_wait.get_or_create(&priority).observe(waited.as_secs_f64());
            self.shared.tell(EngineEvent::Started { job: ticket.job.id.clone(), waited });
            let phase = match ticket.job.spec.source {
                SourceSpec::Empty => Phase::Opened(Source::Empty {
                    width: ticket.job.spec.width,
                    height: ticket.job.spec.height,
                }),
                SourceSpec::Image { .. } => {
                    self.sources.request(ticket.job.id.clone(), Arc::clone(&ticket.job.spec));
                    Phase::Opening
                }
            };
            self.active.push(Active { ticket, phase, usage: Usage::default(), previewed: None });
        }
        let before: Vec<_> = batch.advance.iter().map(|i| self.active[*i].ticket.sequence).collect();
        let new: Vec<_> = self.active[first_new..].iter().map(|a| a.ticket.sequence).collect();
        self.start_opened();
        self.step(&batch.key, |active| before.contains(&active.sequence) || new.contains(&active.sequence));
    }

    /// Starts every sample whose source is there: prompts of one model are encoded together, once each.
    fn start_opened(&mut self) {
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
        for active in starting {
            let key = &active.ticket.key;
            let needs = self.weights.get(model).map_or(0, |r| r.entry.bytes) + sample_bytes(pipeline, key);
            if needs > self.shared.options.memory_budget {
                let message = format!(
                    "{} x {} pixels with '{model}' take {} MiB; the memory budget is {} MiB",
                    key.width,
                    key.height,
                    needs >> 20,
                    self.shared.options.memory_budget >> 20
                );
                self.fail(&active.ticket.job, TaskError { kind: TaskErrorKind::OutOfMemory, message });
                continue;
            }
            let Phase::Opened(source) = &active.phase else { continue };
            match image_request(&active.ticket.job.spec, source) {
                Ok(request) => requests.push((active, request)),
                Err(message) => {
                    let error = TaskError { kind: TaskErrorKind::InvalidRequest, message };
                    self.fail(&active.ticket.job, error);
                }
            }
        }
        let started = Instant::now();
        let encoded = self.encode(model, pipeline, requests.iter().map(|(_, request)| request));
        self.shared.metrics.stage("encode", started.elapsed());
        let started = Instant::now();
        let mut sources: Vec<(Source, darkroom_pipelines::SourceLatent)> = Vec::new();
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
                Err(error) => self.fail(&active.ticket.job, error),
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
        let mut missing: Vec<(&'static str, PromptText)> = Vec::new();
        let label = ByCache { cache: "prompt" };
        for prompts in requests.map(|request| pipeline.prompts(request)) {
            for (field, prompt) in prompts.fields() {
                if encoded.contains_key(prompt) || missing.iter().any(|(_, known)| known == prompt) {
                    self.shared.metrics.cache_hits.get_or_create(&label).inc();
                } else if let Some(conditioning) = self.prompts.get(model, prompt) {
                    self.shared.metrics.cache_hits.get_or_create(&label).inc();
                    encoded.insert(prompt.clone(), Ok(conditioning));
                } else {
                    self.shared.metrics.cache_misses.get_or_create(&label).inc();
                    missing.push((field, prompt.clone()));
                }
            }
        }
        let mut items: Vec<_> = missing.into_iter().map(|(field, prompt)| (field, prompt, None)).collect();
        let outcome = in_halves(&mut items, &mut |part| {
            let prompts: Vec<_> = part.iter().map(|(field, prompt, _)| (*field, prompt)).collect();
            let conditionings = pipeline.encode_prompts(&prompts)?;
            for ((.., slot), conditioning) in part.iter_mut().zip(conditionings) {
                *slot = Some(conditioning);
            }
            Ok::<_, PipelineError>(())
        });
        for (index, error) in outcome.failed {
            encoded.insert(items[index].1.clone(), Err(error.to_string()));
        }
        for (_, prompt, conditioning) in items {
            if let Some(conditioning) = conditioning {
                self.prompts.put(model, &prompt, &conditioning);
                encoded.insert(prompt, Ok(conditioning));
            }
        }
        encoded
    }

    /// One network call for the samples of `key` that `chosen` names.
    fn step(&mut self, key: &BatchKey, chosen: impl Fn(&Ticket) -> bool) {
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
        let started = Instant::now();
        let mut panicked = false;
        let outcome = in_halves(&mut batch, &mut |part| {
            if panicked {
                return Err("a step ended in a defect".to_owned());
            }
            let step = std::panic::AssertUnwindSafe(|| pipeline.step(part));
            match std::panic::catch_unwind(step) {
                Ok(result) => result.map_err(|error| error.to_string()),
                Err(_) => {
                    // How far each sample got is not known, so none is tried again.
                    panicked = true;
                    Err("a step ended in a defect".to_owned())
                }
            }
        });
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
                if let Phase::Stepping { sample, .. } = &active.phase {
                    let (done, total) = sample.progress();
                    stepped.push((job.id.clone(), done, total));
                }
            }
            state.queue.forecast.measured(&key.model, work, elapsed);
            state.step_batch = indices.len();
        }
        self.shared.tell(EngineEvent::Stepped { samples: stepped });

        let mut failed: Vec<(usize, String)> =
            outcome.failed.into_iter().map(|(i, error)| (indices[i], error)).collect();
        failed.sort_unstable_by_key(|(index, _)| std::cmp::Reverse(*index));
        for (index, message) in failed {
            let active = self.active.remove(index);
            tracing::error!(task = %active.ticket.job.id.task, message, "a step failed");
            self.fail(&active.ticket.job, TaskError { kind: TaskErrorKind::Internal, message });
        }
        self.preview(now);
        self.finish_done();
    }

    /// Sends finished samples to the decoder.
    fn finish_done(&mut self) {
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
            let active = self.active.remove(i);
            let Phase::Stepping { sample, pipeline } = active.phase else { continue };
            let job = active.ticket.job;
            match (sample.is_broken(), sample.latent()) {
                (Ok(false), Some(latent)) => {
                    let latent = latent.clone();
                    self.shared.unwritten.fetch_add(1, Ordering::Relaxed);
                    let unwritten = Unwritten(Arc::clone(&self.shared));
                    self.shared.lock().queue.ended(&job);
                    let finished = Finished { job, pipeline, latent, usage: active.usage, unwritten };
                    // The decoder ends before this thread only by a panic, which has been logged.
                    let _ = self.decoder.send(finished);
                }
                _ => {
                    let message =
                        "the picture turned into values that are no numbers: lower cfg and the weights \
                                   in the prompt; if it stays, the model's file is damaged"
                            .to_owned();
                    self.fail(&job, TaskError { kind: TaskErrorKind::InvalidRequest, message });
                }
            }
        }
    }

    /// Shows samples that someone watches, each at most so often.
    fn preview(&mut self, now: Instant) {
        let Some(every) = self.shared.options.preview_every else { return };
        for active in &mut self.active {
            let due = active.previewed.is_none_or(|last| now.saturating_duration_since(last) >= every);
            if !due || !active.ticket.job.viewers.any() {
                continue;
            }
            let Phase::Stepping { sample, pipeline } = &active.phase else { continue };
            let preview = self.previews.entry(Arc::clone(&active.ticket.key.model)).or_insert_with(|| {
                LatentPreview::fit(pipeline).map_err(|e| tracing::warn!("no previews: {e}")).ok()
            });
            let Some(preview) = preview else { continue };
            let Ok(picture) = preview.render(sample.preview_latent()) else { continue };
            active.previewed = Some(now);
            self.shared.tell(EngineEvent::Preview {
                job: active.ticket.job.id.clone(),
                width: picture.width(),
                height: picture.height(),
                rgb: picture.to_rgb8(),
            });
        }
    }

    /// A picture that left the queue cannot be drawn.
    fn fail(&self, job: &Job, error: TaskError) {
        self.shared.lock().queue.ended(job);
        self.shared.tell(EngineEvent::Failed { job: job.id.clone(), error });
    }

    /// A model cannot be had: what waits for it fails.
    fn refuse_model(&self, model: &str, message: &str, state: &mut State) {
        for job in state.queue.remove_model(model) {
            let error = TaskError { kind: TaskErrorKind::ModelUnavailable, message: message.to_owned() };
            self.shared.tell(EngineEvent::Failed { job: job.id, error });
        }
    }
}

/// Bytes that one more picture of this shape takes in a step: both rows of guidance.
fn sample_bytes(pipeline: &Pipeline, key: &BatchKey) -> u64 {
    pipeline.step_bytes(2, key.height / 8, key.width / 8) as u64
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
    })
}

fn task_error(error: &PipelineError) -> TaskError {
    let kind = match error {
        PipelineError::Request { .. } | PipelineError::Prompt { .. } | PipelineError::Schedule(_) => {
            TaskErrorKind::InvalidRequest
        }
        _ => TaskErrorKind::Internal,
    };
    TaskError { kind, message: error.to_string() }
}
