//! Which weights are on a device: at most a budget of bytes, the least recently used models going first, pinned ones
//! never. Loading happens on a thread of its own, so that samples of other models go on; a model is loaded once
//! however many ask. Owned by [`super::device`].

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use candle_core::Device;
use darkroom_pipelines::{Limits, LoadOptions, Pipeline};

use crate::catalog::{Catalog, Entry, Opened};

/// How long a model that could not be loaded is not tried again.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// A model on the device.
pub(super) struct Resident {
    pub(super) pipeline: Arc<Pipeline>,
    pub(super) entry: Entry,
    last_used: Instant,
}

impl Resident {
    /// Whether somebody beside the device's own bookkeeping holds it.
    fn is_borrowed(&self) -> bool {
        Arc::strong_count(&self.pipeline) > 1
    }
}

enum Slot {
    Loading { bytes: u64 },
    Resident(Box<Resident>),
    Failed { message: String, at: Instant },
}

/// What became of a model that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Want {
    /// It is there.
    Resident,
    /// It is on its way.
    Loading,
    /// Models in use must be finished with first.
    NeedsRoom,
    /// It cannot be had.
    Never(String),
}

/// A load that ended.
struct Loaded {
    model: Arc<str>,
    entry: Entry,
    result: Result<Pipeline, String>,
}

/// Something a listener may want to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Arrival {
    Resident(Arc<str>),
    Failed(Arc<str>, String),
}

/// The weights on one device.
pub(super) struct Weights {
    slots: HashMap<Arc<str>, Slot>,
    /// Bytes that models held when they were loaded last.
    held: HashMap<Arc<str>, u64>,
    budget: u64,
    pinned: Vec<String>,
    catalog: Arc<Catalog>,
    requests: Sender<(Arc<str>, Entry)>,
    loaded: Receiver<Loaded>,
    /// Bytes of what stands beside the models on the device.
    pub(super) beside: u64,
    /// Models put out so far.
    pub(super) evictions: u64,
}

impl Weights {
    /// None yet. `wake` is called when a load has ended.
    pub(super) fn new(
        catalog: Arc<Catalog>,
        device: Device,
        options: LoadOptions,
        limits: Limits,
        budget: u64,
        pinned: Vec<String>,
        wake: impl Fn() + Send + 'static,
    ) -> std::io::Result<Self> {
        let (requests, wanted) = channel::<(Arc<str>, Entry)>();
        let (done, loaded) = channel();
        let loader = Arc::clone(&catalog);
        thread::Builder::new().name("darkroom-load".into()).spawn(move || {
            while let Ok((model, entry)) = wanted.recv() {
                let started = Instant::now();
                let load = || {
                    let pipeline = match loader.open_model(&entry, &device).map_err(|e| e.to_string())? {
                        Opened::Whole(checkpoint) => Pipeline::load_at(&checkpoint, &device, options),
                        Opened::Part(parts) => Pipeline::load_partial(&parts, &device, options),
                        Opened::QwenImage(parts) => Pipeline::load_qwen_image(&parts, &device, options),
                    };
                    let pipeline = pipeline.map_err(|e| e.to_string())?.with_limits(limits.clone());
                    Ok(match loader.embeddings() {
                        Some(embeddings) => pipeline.with_embeddings(embeddings),
                        None => pipeline,
                    })
                };
                let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(load))
                    .unwrap_or_else(|_| Err("loading it ended in a defect; the log has more".to_owned()));
                tracing::info!(
                    model = &*model,
                    seconds = started.elapsed().as_secs_f64(),
                    error = result.as_ref().err(),
                    "loaded"
                );
                let result = result.map_err(|error| entry.for_clients(&error));
                if done.send(Loaded { model, entry, result }).is_err() {
                    return;
                }
                wake();
            }
        })?;
        Ok(Self {
            slots: HashMap::new(),
            held: HashMap::new(),
            budget,
            pinned,
            catalog,
            requests,
            loaded,
            beside: 0,
            evictions: 0,
        })
    }

    /// Takes in loads that have ended.
    pub(super) fn arrivals(&mut self, now: Instant) -> Vec<Arrival> {
        let mut arrivals = Vec::new();
        loop {
            match self.loaded.try_recv() {
                Ok(Loaded { model, entry, result }) => {
                    let (slot, arrival) = match result {
                        Ok(pipeline) => {
                            self.held.insert(Arc::clone(&model), pipeline.weight_bytes());
                            (
                                Slot::Resident(Box::new(Resident {
                                    pipeline: Arc::new(pipeline),
                                    entry,
                                    last_used: now,
                                })),
                                Arrival::Resident(Arc::clone(&model)),
                            )
                        }
                        Err(message) => (
                            Slot::Failed { message: message.clone(), at: now },
                            Arrival::Failed(Arc::clone(&model), message),
                        ),
                    };
                    self.slots.insert(model, slot);
                    arrivals.push(arrival);
                }
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return arrivals,
            }
        }
    }

    /// The model, if it is there.
    pub(super) fn get(&self, model: &str) -> Option<&Resident> {
        match self.slots.get(model) {
            Some(Slot::Resident(resident)) => Some(resident),
            _ => None,
        }
    }

    /// A step was made with it.
    pub(super) fn used(&mut self, model: &str, now: Instant) {
        if let Some(Slot::Resident(resident)) = self.slots.get_mut(model) {
            resident.last_used = now;
        }
    }

    /// Bytes of weights on the device, those on their way included.
    pub(super) fn bytes(&self) -> u64 {
        self.slots
            .values()
            .map(|slot| match slot {
                Slot::Loading { bytes } => *bytes,
                Slot::Resident(resident) => resident.pipeline.weight_bytes(),
                Slot::Failed { .. } => 0,
            })
            .sum()
    }

    /// Asks for a model. Models that are not `in_use` and not pinned may be put out for it.
    pub(super) fn want(&mut self, model: &Arc<str>, in_use: &dyn Fn(&str) -> bool, now: Instant) -> Want {
        match self.slots.get(model) {
            Some(Slot::Resident(_)) => return Want::Resident,
            Some(Slot::Loading { .. }) => return Want::Loading,
            Some(Slot::Failed { message, at }) if now.saturating_duration_since(*at) < RETRY_AFTER => {
                return Want::Never(message.clone());
            }
            Some(Slot::Failed { .. }) | None => {}
        }
        let Some(entry) = self.catalog.find(model) else {
            return Want::Never(format!("the model '{model}' is no longer there"));
        };
        if let Some(problem) = &entry.problem {
            return Want::Never(format!("the model '{model}' cannot be drawn with: {problem}"));
        }
        // What it holds may be less than its file, or more; that is known once it was loaded.
        let bytes = self.held.get(model).copied().unwrap_or(entry.bytes).min(self.budget);
        while self.bytes() + self.beside + bytes > self.budget {
            let idle = self.slots.iter().filter_map(|(id, slot)| match slot {
                Slot::Resident(resident) if !in_use(id) && !resident.is_borrowed() && !self.is_pinned(id) => {
                    Some((resident.last_used, Arc::clone(id)))
                }
                _ => None,
            });
            let Some((_, oldest)) = idle.min_by_key(|(used, _)| *used) else { return Want::NeedsRoom };
            self.remove(&oldest);
            self.evictions += 1;
        }
        self.slots.insert(Arc::clone(model), Slot::Loading { bytes });
        if self.requests.send((Arc::clone(model), entry)).is_err() {
            self.slots.remove(model);
            return Want::Never("the thread that loads models has ended".to_owned());
        }
        Want::Loading
    }

    /// Puts a model out.
    pub(super) fn remove(&mut self, model: &str) {
        if let Some(Slot::Resident(_)) = self.slots.get(model) {
            tracing::info!(model, "put out");
            self.slots.remove(model);
        }
    }

    /// Whether it is never put out for others.
    pub(super) fn is_pinned(&self, model: &str) -> bool {
        self.pinned.iter().any(|pinned| self.catalog.find(pinned).is_some_and(|entry| entry.id == model))
    }

    /// Whether somebody works with it beside the device's thread.
    pub(super) fn is_borrowed(&self, model: &str) -> bool {
        self.get(model).is_some_and(Resident::is_borrowed)
    }

    /// Models that are there.
    pub(super) fn resident(&self) -> HashMap<Arc<str>, Weak<Pipeline>> {
        let resident = self.slots.iter().filter_map(|(id, slot)| match slot {
            Slot::Resident(resident) => Some((Arc::clone(id), Arc::downgrade(&resident.pipeline))),
            _ => None,
        });
        resident.collect()
    }

    /// Each model's state, for people.
    pub(super) fn states(&self) -> HashMap<String, super::Residency> {
        self.slots
            .iter()
            .map(|(id, slot)| {
                let state = match slot {
                    Slot::Loading { .. } => super::Residency::Loading,
                    Slot::Resident(resident) => {
                        super::Residency::Resident { bytes: resident.pipeline.weight_bytes() }
                    }
                    Slot::Failed { message, .. } => super::Residency::Failed { message: message.clone() },
                };
                (id.to_string(), state)
            })
            .collect()
    }
}
