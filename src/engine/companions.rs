//! What pictures are drawn with beside a model: LoRAs, ControlNets and the pictures that steer them, on one device.
//! Each is loaded once, on a thread of its own, so that samples go on denoising; the least recently used go when
//! bytes are wanted. Owned by [`super::device`].

mod load;

pub(super) use load::ROUNDING;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use candle_core::Tensor;
use darkroom_models::controlnet::ControlNet;
use darkroom_models::depth::DepthEstimator;
use darkroom_models::face_detector::FaceDetector;
use darkroom_models::lora::Lora;
use darkroom_models::matting::BackgroundRemover;
use darkroom_models::upscaler::Upscaler;
use darkroom_pipelines::{Control, LoraSet, Pipeline, StackedLora};

use super::finish::Finishing;
use super::sources::Sources;
use crate::catalog::{AuxiliaryEntry, AuxiliaryKind, Catalog};
use crate::task::{
    Background, BlobId, ControlSpec, DetailPlaces, DetailSpec, ImageSpec, LoraSpec, Preprocess, TaskError,
    TaskErrorKind,
};

/// How long what could not be loaded is not tried again.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// Most of them, whatever their size: strengths are the clients' choice, and each stack with its own is one.
const MOST: usize = 1024;

/// Names one of them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Key {
    /// A LoRA's file, bound to a model.
    Lora { model: Arc<str>, lora: String, revision: u64 },
    /// A stack of LoRAs: the revision of each one's file, and the bits of its strengths.
    LoraSet { model: Arc<str>, stack: Vec<(String, u64, [u64; 2])> },
    /// A model with a stack in its weights.
    Merged { model: Arc<str>, set: Arc<str> },
    /// A ControlNet's file, shaped for a model.
    ControlNet { model: Arc<str>, control: String, revision: u64 },
    /// A network that finds faces.
    Detector { detector: String },
    /// A network that takes backgrounds out.
    Remover { remover: String },
    /// A network that enlarges pictures.
    Upscaler { upscaler: String },
    /// The network that estimates depth.
    Depth,
    /// A picture as a ControlNet sees it.
    Hint {
        model: Arc<str>,
        control: String,
        revision: u64,
        image: BlobId,
        preprocess: String,
        width: usize,
        height: usize,
    },
}

impl Key {
    /// The model that it is for; `None`: for any.
    fn model(&self) -> Option<&str> {
        match self {
            Self::Detector { .. } | Self::Remover { .. } | Self::Upscaler { .. } | Self::Depth => None,
            Self::Lora { model, .. }
            | Self::LoraSet { model, .. }
            | Self::Merged { model, .. }
            | Self::ControlNet { model, .. }
            | Self::Hint { model, .. } => Some(model),
        }
    }
}

#[derive(Clone)]
pub(super) enum Value {
    Lora(Arc<Lora>),
    LoraSet(Arc<LoraSet>),
    Merged(Arc<Pipeline>),
    ControlNet(Arc<ControlNet>),
    Detector(Arc<FaceDetector>),
    Remover(Arc<BackgroundRemover>),
    Upscaler(Arc<Upscaler>),
    Depth(Arc<DepthEstimator>),
    Hint(Tensor),
}

impl Value {
    /// Whether nothing but the cache holds it. Hints are small and may go at any time.
    fn is_idle(&self) -> bool {
        match self {
            Self::Lora(value) => Arc::strong_count(value) == 1,
            Self::LoraSet(value) => Arc::strong_count(value) == 1,
            Self::Merged(value) => Arc::strong_count(value) == 1,
            Self::ControlNet(value) => Arc::strong_count(value) == 1,
            Self::Detector(value) => Arc::strong_count(value) == 1,
            Self::Remover(value) => Arc::strong_count(value) == 1,
            Self::Upscaler(value) => Arc::strong_count(value) == 1,
            Self::Depth(value) => Arc::strong_count(value) == 1,
            Self::Hint(_) => true,
        }
    }
}

enum Slot {
    Loading,
    Ready { value: Value, bytes: u64, last_used: Instant },
    Failed { error: TaskError, at: Instant },
}

/// What became of one that was asked for.
enum Want {
    Ready(Value),
    Loading,
    Failed(TaskError),
}

/// What a picture needs beside its model.
pub(super) enum Gathered {
    /// All of it.
    Ready { loras: Option<Arc<LoraSet>>, controls: Vec<Control>, finishing: Finishing },
    /// Some of it is on its way.
    Waiting,
    /// Some of it cannot be had.
    Failed(TaskError),
}

type Load = Box<dyn FnOnce() -> Result<(Value, u64), TaskError> + Send>;

struct Loaded {
    key: Key,
    result: Result<(Value, u64), TaskError>,
}

/// Those on one device.
pub(super) struct Companions {
    slots: HashMap<Key, Slot>,
    /// Where the files of LoRAs and ControlNets are, so that a changed one is noticed without a search.
    files: HashMap<(AuxiliaryKind, String), AuxiliaryEntry>,
    catalog: Arc<Catalog>,
    sources: Arc<dyn Sources>,
    requests: Sender<(Key, Load)>,
    loaded: Receiver<Loaded>,
}

impl Companions {
    /// None yet. `wake` is called when one has been loaded.
    pub(super) fn new(
        catalog: Arc<Catalog>,
        sources: Arc<dyn Sources>,
        wake: impl Fn() + Send + 'static,
    ) -> std::io::Result<Self> {
        let (requests, wanted) = channel::<(Key, Load)>();
        let (done, loaded) = channel();
        thread::Builder::new().name("darkroom-companions".into()).spawn(move || {
            while let Ok((key, load)) = wanted.recv() {
                let started = Instant::now();
                let result =
                    std::panic::catch_unwind(std::panic::AssertUnwindSafe(load)).unwrap_or_else(|_| {
                        let message = "loading it ended in a defect; the log has more".to_owned();
                        Err(TaskError { kind: TaskErrorKind::Internal, message })
                    });
                tracing::debug!(
                    ?key,
                    seconds = started.elapsed().as_secs_f64(),
                    error = result.as_ref().err().map(|error| &*error.message),
                    "loaded beside a model"
                );
                if done.send(Loaded { key, result }).is_err() {
                    return;
                }
                wake();
            }
        })?;
        Ok(Self { slots: HashMap::new(), files: HashMap::new(), catalog, sources, requests, loaded })
    }

    /// Takes in what has been loaded; whether there was any.
    pub(super) fn arrivals(&mut self, now: Instant) -> bool {
        let mut any = false;
        let loaded: Vec<Loaded> = self.loaded.try_iter().collect();
        for Loaded { key, result } in loaded {
            any = true;
            let slot = match result {
                Ok((value, bytes)) => Slot::Ready { value, bytes, last_used: now },
                Err(error) => Slot::Failed { error, at: now },
            };
            // One whose model has gone meanwhile has no slot any more.
            if let Some(place) = self.slots.get_mut(&key) {
                *place = slot;
            }
        }
        any
    }

    /// Bytes of all of them.
    pub(super) fn bytes(&self) -> u64 {
        let bytes = |slot: &Slot| if let Slot::Ready { bytes, .. } = slot { *bytes } else { 0 };
        self.slots.values().map(bytes).sum()
    }

    /// Puts out what nothing uses, least recently used first, until at most `budget` bytes are left.
    pub(super) fn shrink(&mut self, budget: u64) {
        while self.bytes() > budget || self.slots.len() > MOST {
            let idle = self.slots.iter().filter_map(|(key, slot)| match slot {
                Slot::Ready { value, last_used, .. } if value.is_idle() => Some((*last_used, key)),
                Slot::Failed { at, .. } => Some((*at, key)),
                _ => None,
            });
            let Some(oldest) = idle.min_by_key(|(used, _)| *used).map(|(_, key)| key.clone()) else { return };
            tracing::debug!(key = ?oldest, "put out");
            self.slots.remove(&oldest);
        }
    }

    /// Forgets what belongs to models that are not there any more.
    pub(super) fn keep_models(&mut self, is_there: impl Fn(&str) -> bool) {
        self.slots.retain(|key, _| key.model().is_none_or(&is_there));
    }

    /// What `spec` needs beside `pipeline`, which is `model`. Starts loading what is not there.
    pub(super) fn gather(
        &mut self,
        model: &Arc<str>,
        pipeline: &Arc<Pipeline>,
        spec: &ImageSpec,
        now: Instant,
    ) -> Gathered {
        let mut waiting = false;
        let mut loras = None;
        if !spec.loras.is_empty() {
            match self.lora_set(model, pipeline, &spec.loras, now) {
                Ok(Some(set)) => loras = Some(set),
                Ok(None) => waiting = true,
                Err(error) => return Gathered::Failed(error),
            }
        }
        let mut controls = Vec::with_capacity(spec.controls.len());
        for control in &spec.controls {
            match self.control(model, pipeline, control, (spec.width, spec.height), now) {
                Ok(Some(control)) => controls.push(control),
                Ok(None) => waiting = true,
                Err(error) => return Gathered::Failed(error),
            }
        }
        let unmatched = loras.as_deref().map(|set| unmatched(set, &spec.loras)).unwrap_or_default();
        let mut finishing = Finishing { unmatched, computed: pipeline.computed(), ..Finishing::default() };
        match self.finishing(spec, &mut finishing, now) {
            Ok(all_there) => waiting |= !all_there,
            Err(error) => return Gathered::Failed(error),
        }
        if waiting { Gathered::Waiting } else { Gathered::Ready { loras, controls, finishing } }
    }

    /// The networks that `spec` needs after it is decoded; whether all are there.
    fn finishing(
        &mut self,
        spec: &ImageSpec,
        finishing: &mut Finishing,
        now: Instant,
    ) -> Result<bool, TaskError> {
        if let Some(DetailSpec { places: DetailPlaces::Detected { detector, .. }, .. }) = &spec.detail {
            finishing.detector = self.detector(detector, now)?;
            if finishing.detector.is_none() {
                return Ok(false);
            }
        }
        if let Background::Remove { remover } = &spec.background {
            finishing.remover = self.remover(remover, now)?;
            if finishing.remover.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A network that finds faces.
    pub(super) fn detector(
        &mut self,
        id: &str,
        now: Instant,
    ) -> Result<Option<Arc<FaceDetector>>, TaskError> {
        let key = Key::Detector { detector: id.to_owned() };
        let value = self.get(key, |catalog| load::detector(catalog, id), now)?;
        Ok(if let Some(Value::Detector(known)) = value { Some(known) } else { None })
    }

    /// A network that takes backgrounds out.
    pub(super) fn remover(
        &mut self,
        id: &str,
        now: Instant,
    ) -> Result<Option<Arc<BackgroundRemover>>, TaskError> {
        let key = Key::Remover { remover: id.to_owned() };
        let value = self.get(key, |catalog| load::remover(catalog, id), now)?;
        Ok(if let Some(Value::Remover(known)) = value { Some(known) } else { None })
    }

    /// A network that enlarges pictures.
    pub(super) fn upscaler(&mut self, id: &str, now: Instant) -> Result<Option<Arc<Upscaler>>, TaskError> {
        let key = Key::Upscaler { upscaler: id.to_owned() };
        let value = self.get(key, |catalog| load::upscaler(catalog, id), now)?;
        Ok(if let Some(Value::Upscaler(known)) = value { Some(known) } else { None })
    }

    /// One that is there; else it is asked for.
    fn get(
        &mut self,
        key: Key,
        load: impl FnOnce(&Arc<Catalog>) -> Load,
        now: Instant,
    ) -> Result<Option<Value>, TaskError> {
        match self.known(&key, now) {
            Some(Want::Ready(value)) => Ok(Some(value)),
            Some(Want::Failed(error)) => Err(error),
            Some(Want::Loading) => Ok(None),
            None => {
                let load = load(&self.catalog);
                self.request(key, load);
                Ok(None)
            }
        }
    }

    /// The revision of a file; 0 if there is none.
    fn revision(&mut self, kind: AuxiliaryKind, id: &str) -> u64 {
        let name = (kind, id.to_owned());
        if let Some(revision) = self.files.get(&name).and_then(AuxiliaryEntry::revision_now) {
            return revision;
        }
        self.files.remove(&name);
        let Some(entry) = self.catalog.find_auxiliary(kind, id) else { return 0 };
        let revision = entry.revision();
        self.files.insert(name, entry);
        revision
    }

    /// A stack of LoRAs, bound to a model.
    pub(super) fn lora_set(
        &mut self,
        model: &Arc<str>,
        pipeline: &Arc<Pipeline>,
        specs: &[LoraSpec],
        now: Instant,
    ) -> Result<Option<Arc<LoraSet>>, TaskError> {
        let stack: Vec<(String, u64, [u64; 2])> = specs
            .iter()
            .map(|spec| {
                let strengths = [spec.strength, spec.text_strength].map(f64::to_bits);
                (spec.lora.clone(), self.revision(AuxiliaryKind::Lora, &spec.lora), strengths)
            })
            .collect();
        let revisions: Vec<u64> = stack.iter().map(|(_, revision, _)| *revision).collect();
        let key = Key::LoraSet { model: Arc::clone(model), stack };
        match self.known(&key, now) {
            Some(Want::Ready(Value::LoraSet(set))) => return Ok(Some(set)),
            Some(Want::Failed(error)) => return Err(error),
            Some(_) => return Ok(None),
            None => {}
        }
        let mut loras = Vec::with_capacity(specs.len());
        for (spec, revision) in specs.iter().zip(&revisions) {
            let key = Key::Lora { model: Arc::clone(model), lora: spec.lora.clone(), revision: *revision };
            if let Some(Value::Lora(lora)) =
                self.get(key, |catalog| load::lora(catalog, pipeline, &spec.lora), now)?
            {
                loras.push(lora);
            }
        }
        if loras.len() == specs.len() {
            self.request(key, load::lora_set(pipeline, specs, &revisions, loras));
        }
        Ok(None)
    }

    /// A ControlNet, shaped for a model, and the revision of its file.
    pub(super) fn control_net(
        &mut self,
        model: &Arc<str>,
        pipeline: &Arc<Pipeline>,
        id: &str,
        now: Instant,
    ) -> Result<Option<(Arc<ControlNet>, u64)>, TaskError> {
        let revision = self.revision(AuxiliaryKind::ControlNet, id);
        let key = Key::ControlNet { model: Arc::clone(model), control: id.to_owned(), revision };
        match self.get(key, |catalog| load::control_net(catalog, pipeline, id), now)? {
            Some(Value::ControlNet(network)) => Ok(Some((network, revision))),
            _ => Ok(None),
        }
    }

    fn control(
        &mut self,
        model: &Arc<str>,
        pipeline: &Arc<Pipeline>,
        spec: &ControlSpec,
        (width, height): (usize, usize),
        now: Instant,
    ) -> Result<Option<Control>, TaskError> {
        let Some((network, revision)) = self.control_net(model, pipeline, &spec.control, now)? else {
            return Ok(None);
        };
        let mut depth = None;
        if spec.preprocess == Preprocess::Depth {
            match self.get(Key::Depth, load::depth, now)? {
                Some(Value::Depth(estimator)) => depth = Some(estimator),
                _ => return Ok(None),
            }
        }
        let key = Key::Hint {
            model: Arc::clone(model),
            control: spec.control.clone(),
            revision,
            image: spec.image.clone(),
            preprocess: format!("{:?}", spec.preprocess),
            width,
            height,
        };
        let sources = Arc::clone(&self.sources);
        let own = Arc::clone(&network);
        let load = |_: &Arc<Catalog>| load::hint(sources, pipeline, own, depth, spec, (width, height));
        let Some(Value::Hint(hint)) = self.get(key, load, now)? else { return Ok(None) };
        Ok(Some(Control { network, hint, strength: spec.strength, start: spec.start, end: spec.end }))
    }

    /// `pipeline` with `set` in its weights, if it is there; else it may be asked for.
    pub(super) fn merged(&mut self, model: &Arc<str>, set: &LoraSet, now: Instant) -> Option<Arc<Pipeline>> {
        let key = Key::Merged { model: Arc::clone(model), set: Arc::clone(set.name()) };
        match self.known(&key, now) {
            Some(Want::Ready(Value::Merged(pipeline))) => Some(pipeline),
            _ => None,
        }
    }

    /// Whether a set is merged, or that was tried.
    pub(super) fn has_merged(&self, model: &Arc<str>, set: &LoraSet) -> bool {
        let key = Key::Merged { model: Arc::clone(model), set: Arc::clone(set.name()) };
        self.slots.contains_key(&key)
    }

    /// Begins to merge a set.
    pub(super) fn want_merged(&mut self, model: &Arc<str>, pipeline: &Arc<Pipeline>, set: &Arc<LoraSet>) {
        let key = Key::Merged { model: Arc::clone(model), set: Arc::clone(set.name()) };
        self.request(key, load::merged(pipeline, set));
    }

    /// What is known of one; `None`: it is to be asked for.
    fn known(&mut self, key: &Key, now: Instant) -> Option<Want> {
        match self.slots.get_mut(key)? {
            Slot::Loading => Some(Want::Loading),
            Slot::Ready { value, last_used, .. } => {
                *last_used = now;
                Some(Want::Ready(value.clone()))
            }
            Slot::Failed { error, at } if now.saturating_duration_since(*at) < RETRY_AFTER => {
                Some(Want::Failed(error.clone()))
            }
            Slot::Failed { .. } => None,
        }
    }

    fn request(&mut self, key: Key, load: Load) {
        let slot = match self.requests.send((key.clone(), load)) {
            Ok(()) => Slot::Loading,
            Err(_) => Slot::Failed {
                error: TaskError {
                    kind: TaskErrorKind::Internal,
                    message: "the thread that loads LoRAs and ControlNets has ended".into(),
                },
                at: Instant::now(),
            },
        };
        self.slots.insert(key, slot);
    }
}

/// What LoRAs have that fits nothing in the model, in words: such keys change nothing, which must show.
fn unmatched(set: &LoraSet, specs: &[LoraSpec]) -> Vec<String> {
    let told = |(stacked, spec): (&StackedLora, &LoraSpec)| {
        let (keys, name) = (&stacked.lora.unmatched, &spec.lora);
        let (count, first) = (keys.len(), keys.first()?);
        Some(format!(
            "{count} keys of the LoRA '{name}' fit nothing in the model and were left out, first '{first}'"
        ))
    };
    set.stack().iter().zip(specs).filter_map(told).collect()
}
