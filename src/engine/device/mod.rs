//! A device's thread. Each turn: take in what changed (models and sources that arrived, tasks taken back), ask the
//! queue for the next step batch, start what joins (`start`), make one step, hand finished latents to the decoder
//! (`step`).

mod lend;
mod pace;
mod start;
mod step;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use darkroom_pipelines::{LatentPreview, LoadOptions, Pipeline, Sample, Source};
use pace::Pace;

use super::borrow::Lending;
use super::companions::Companions;
use super::decode::{self, Finished};
use super::detail::Part;
use super::finish::Finishing;
use super::job::{BatchKey, Content};
use super::prompt_cache::PromptCache;
use super::queue::{Joins, Places, StepBatch, Ticket};
use super::residency::{Arrival, Want, Weights};
use super::sources::SourceThread;
use super::{Control, ModelError, Reply, Shared, State};
use crate::metrics::{ByDevice, ByModel};
use crate::task::{TaskError, TaskErrorKind, Usage};

/// How long an idle device sleeps when nobody wakes it.
const IDLE: Duration = Duration::from_millis(500);

/// A picture that has left the queue.
struct Active {
    ticket: Ticket,
    phase: Phase,
    usage: Usage,
    previewed: Option<Instant>,
    /// What it needs once it is decoded.
    finishing: Finishing,
    /// The face of another picture that it is, if it is one.
    part: Option<Part>,
}

enum Phase {
    /// Its source picture is being opened.
    Opening,
    /// The source is there; it starts at the next step boundary.
    Opened(Source),
    /// The source is there, and a LoRA or a ControlNet on its way.
    Gathering(Source),
    /// On its way from noise to picture.
    Stepping { sample: Box<Sample>, pipeline: Arc<Pipeline> },
}

struct DeviceThread {
    shared: Arc<Shared>,
    index: usize,
    weights: Weights,
    companions: Companions,
    prompts: PromptCache,
    previews: HashMap<Arc<str>, Option<LatentPreview>>,
    sources: SourceThread,
    active: Vec<Active>,
    decoder: Sender<Finished>,
    /// Faces to draw.
    inbox: Receiver<Vec<Part>>,
    /// What memory has taught about batch sizes.
    caps: HashMap<BatchKey, usize>,
    loading: Vec<(Arc<str>, Reply)>,
    /// Who waits for weights.
    lending: Vec<Lending>,
    evictions_counted: u64,
    pace: Pace,
}

/// Starts the thread of device number `index`.
pub(super) fn spawn(shared: &Arc<Shared>, index: usize) -> std::io::Result<JoinHandle<()>> {
    let waker = || {
        let shared = Arc::clone(shared);
        move || shared.wake()
    };
    let (options, opened) = (&shared.options, shared.devices[index].clone());
    let weights = Weights::new(
        Arc::clone(&shared.catalog),
        opened.device.clone(),
        LoadOptions { compute_type: options.compute_type, budget: Some(opened.budget) },
        options.limits.clone(),
        opened.budget,
        options.pinned.clone(),
        waker(),
    )?;
    let companions = Companions::new(Arc::clone(&shared.catalog), Arc::clone(&shared.sources), waker())?;
    let sources = SourceThread::start(Arc::clone(&shared.sources), waker())?;
    let (faces, inbox) = channel();
    let (decoder, decoding) = decode::spawn(shared, faces)?;
    let mut device = DeviceThread {
        shared: Arc::clone(shared),
        index,
        weights,
        companions,
        prompts: PromptCache::new(options.prompt_cache_bytes),
        previews: HashMap::new(),
        sources,
        active: Vec::new(),
        decoder,
        inbox,
        caps: HashMap::new(),
        loading: Vec::new(),
        lending: Vec::new(),
        evictions_counted: 0,
        pace: Pace::new(opened.device),
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
            self.take_in_companions();
            let shared = Arc::clone(&self.shared);
            let mut state = shared.lock();
            self.take_in_faces(&mut state);
            self.take_in_arrivals(arrivals, &mut state);
            self.take_in_cancelled(&mut state);
            self.take_in_controls(&mut state);
            self.lend();
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
            self.fail(active, TaskError { kind: TaskErrorKind::Internal, message });
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
                    self.fail(active, error);
                }
            }
        }
    }

    /// What waited for LoRAs and ControlNets looks once more whether all of its own are there.
    fn take_in_companions(&mut self) {
        let arrived = self.companions.arrivals(Instant::now());
        let weights = &self.weights;
        self.companions.keep_models(|model| weights.get(model).is_some());
        let budget = self.budget().saturating_sub(self.weights.bytes());
        self.companions.shrink(budget);
        self.weights.beside = self.companions.bytes();
        if !arrived {
            return;
        }
        for active in &mut self.active {
            active.phase = match std::mem::replace(&mut active.phase, Phase::Opening) {
                Phase::Gathering(source) => Phase::Opened(source),
                other => other,
            };
        }
    }

    /// Faces of decoded pictures become samples of their own.
    fn take_in_faces(&mut self, state: &mut State) {
        let parts: Vec<Part> = self.inbox.try_iter().flatten().collect();
        for part in parts {
            let ticket = state.queue.adopt(part.job(), Instant::now());
            let phase = match part.source() {
                Ok(source) => Phase::Opened(source),
                Err(error) => {
                    state.queue.ended(&ticket.job);
                    self.give_up_face(part, error);
                    continue;
                }
            };
            let usage = Usage::default();
            self.active.push(Active {
                ticket,
                phase,
                usage,
                previewed: None,
                finishing: Finishing::default(),
                part: Some(part),
            });
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
                        || self.weights.is_borrowed(&model)
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
                Control::Lend(lending) => self.lending.push(lending),
            }
        }
    }

    /// Asks for the models that pictures wait for, and then the queue for a step batch.
    fn next_batch(&mut self, state: &mut State) -> Option<StepBatch> {
        let now = Instant::now();
        let mut later: HashMap<Arc<str>, Places> = HashMap::new();
        let wanted = state.queue.wanted_models();
        let mut needed = self.needed_models();
        for model in wanted {
            let want = self.want(&model, &needed, now);
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
        // Those that wait for a LoRA or a ControlNet leave room for others; without end there is none.
        let gathering = self.active.iter().filter(|a| matches!(a.phase, Phase::Gathering(_))).count();
        let busy = self.active.len() - gathering;
        let any = (2 * options.max_batch).saturating_sub(busy);
        let any = any.min((4 * options.max_batch).saturating_sub(self.active.len())).min(urgent);
        let caching = state.queue.caching_keys();
        // Who has waited long for weights that find no room gets it when what runs has ended.
        let shut = self.lends_late(now) || self.lacks_room_to_keep(&caching);
        let joins = if shut { Joins { any: 0, urgent: 0 } } else { Joins { any, urgent } };
        let places = |key: &BatchKey| {
            later.get(&key.model).copied().unwrap_or_else(|| self.places(key, caching.contains(key)))
        };
        let mut batch = state.queue.next_batch(&running, &places, joins, now)?;
        for position in &mut batch.advance {
            *position = stepping[*position];
        }
        Some(batch)
    }

    /// Asks for a model; `needed` ones are not put out for it.
    fn want(&mut self, model: &Arc<str>, needed: &HashSet<Arc<str>>, now: Instant) -> Want {
        let in_use = |id: &str| needed.contains(id);
        let want = self.weights.want(model, &in_use, now);
        if want != Want::NeedsRoom {
            return want;
        }
        // What stands beside models is loaded again sooner than a model.
        self.companions.shrink(0);
        self.weights.beside = self.companions.bytes();
        self.weights.want(model, &in_use, now)
    }

    /// Models that must stay: of samples under way, and those that somebody waits to borrow.
    fn needed_models(&self) -> HashSet<Arc<str>> {
        let active = self.active.iter().map(|active| &active.ticket.key.model);
        active.chain(self.lending.iter().filter_map(Lending::model)).cloned().collect()
    }

    fn stepping(&self) -> impl Iterator<Item = usize> + '_ {
        let stepping = |active: &Active| matches!(active.phase, Phase::Stepping { .. });
        self.active.iter().enumerate().filter(move |(_, active)| stepping(active)).map(|(i, _)| i)
    }

    /// Bytes for weights and activations.
    fn budget(&self) -> u64 {
        self.shared.devices[self.index].budget
    }

    /// How many pictures of a shape fit into memory beside the weights, where `caching`: if each that joins keeps
    /// features between its steps.
    fn places(&self, key: &BatchKey, caching: bool) -> Places {
        let Some(resident) = self.weights.get(&key.model) else {
            return Places::Later { needs_room: false };
        };
        let kept = if caching { most_kept_bytes(&resident.pipeline, key) } else { 0 };
        let each = sample_bytes(&resident.pipeline, key).saturating_add(self.control_bytes(key));
        let (each, room) = (each.saturating_add(kept).max(1), self.room());
        let cap = self.caps.get(key).copied().unwrap_or(usize::MAX);
        Places::Ready(((room / each) as usize).min(self.shared.options.max_batch).min(cap).max(1))
    }

    /// Bytes that are left for steps.
    fn room(&self) -> u64 {
        let kept = self.active.iter().map(|active| match &active.phase {
            Phase::Stepping { sample, .. } => sample.cache_bytes() as u64,
            _ => {
                let resident = self.weights.get(&active.ticket.key.model);
                resident.map_or(0, |resident| kept_bytes(&resident.pipeline, &active.ticket))
            }
        });
        let taken = self.weights.bytes() + self.companions.bytes();
        self.budget().saturating_sub(taken).saturating_sub(kept.sum())
    }

    /// Whether pictures of the keys in `caching` would keep more than there is room for beside one step, were another
    /// to start before those under way have ended.
    fn lacks_room_to_keep(&self, caching: &HashSet<BatchKey>) -> bool {
        if self.active.is_empty() || caching.is_empty() {
            return false;
        }
        let room = self.room();
        caching.iter().any(|key| {
            self.weights.get(&key.model).is_some_and(|resident| {
                let pipeline = &resident.pipeline;
                sample_bytes(pipeline, key) + self.control_bytes(key) + most_kept_bytes(pipeline, key) > room
            })
        })
    }

    /// Bytes that ControlNets take a picture, as far as samples under way show.
    fn control_bytes(&self, key: &BatchKey) -> u64 {
        let samples = self.active.iter().filter(|active| active.ticket.key == *key);
        let bytes = samples.filter_map(|active| match &active.phase {
            Phase::Stepping { sample, .. } => Some(sample.control_bytes(2, key.height / 8, key.width / 8)),
            _ => None,
        });
        bytes.max().unwrap_or(0) as u64
    }

    fn publish(&mut self, state: &mut State) {
        state.residency[self.index] = self.weights.states();
        if self.index == 0 {
            state.resident = self.weights.resident();
        }
        let metrics = &self.shared.metrics;
        let device = ByDevice { device: self.shared.devices[self.index].name.to_string() };
        metrics
            .resident_bytes
            .get_or_create(&device)
            .set((self.weights.bytes() + self.companions.bytes()) as i64);
        metrics.evictions.inc_by(self.weights.evictions - self.evictions_counted);
        self.evictions_counted = self.weights.evictions;
    }

    /// A picture that left the queue cannot be drawn.
    fn fail(&self, active: Active, error: TaskError) {
        let job = active.ticket.job;
        self.shared.lock().queue.ended(&job);
        match active.part {
            Some(part) => self.give_up_face(part, error.message),
            None => self.shared.failed(job, error),
        }
    }

    /// A face cannot be drawn: it stays as it was.
    fn give_up_face(&self, part: Part, message: String) {
        tracing::warn!(message, "a face stays as it was");
        if let Some(whole) = part.done(Err(message), &Usage::default()) {
            decode::finish(&self.shared, whole);
        }
    }

    /// A model cannot be had: what waits for it fails.
    fn refuse_model(&self, model: &str, message: &str, state: &mut State) {
        for job in state.queue.remove_model(model) {
            let error = TaskError { kind: TaskErrorKind::ModelUnavailable, message: message.to_owned() };
            self.shared.failed(job, error);
        }
    }
}

/// Bytes that one more picture of this shape takes in a step: both rows of guidance.
fn sample_bytes(pipeline: &Pipeline, key: &BatchKey) -> u64 {
    pipeline.step_bytes(2, key.height / 8, key.width / 8) as u64
}

/// Bytes that a picture keeps between its steps.
fn kept_bytes(pipeline: &Pipeline, ticket: &Ticket) -> u64 {
    let (height, width) = (ticket.key.height / 8, ticket.key.width / 8);
    match &ticket.job.content {
        Content::Picture(spec) => pipeline.cache_bytes(&spec.speed, height, width) as u64,
        Content::Latent(_) => 0, // it starts with its sample, which knows
    }
}

/// Most bytes that a picture of this shape can keep between its steps.
fn most_kept_bytes(pipeline: &Pipeline, key: &BatchKey) -> u64 {
    pipeline.most_cache_bytes(key.height / 8, key.width / 8) as u64
}
