//! The nodes against ComfyUI's own: what they say of themselves, and what they give.

mod golden;
mod interfaces;
mod refusals;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use darkroom_models::device::DeviceName;
use darkroom_pipelines::{Limits, Picture, Source};
use tokio_util::sync::CancellationToken;

use crate::catalog::Catalog;
use crate::engine::{Engine, EngineOptions, Sources};
use crate::metrics::Metrics;
use crate::task::{BlobId, ImageSpec, TaskError};
use crate::workflow::context::{Inputs, NodeError, Outputs};
use crate::workflow::{Context, Event, Folders, Listener, Metadata, Registry, Value};

struct NoSources;

impl Sources for NoSources {
    fn open(&self, spec: &ImageSpec) -> Result<Source, TaskError> {
        Ok(Source::Empty { width: spec.width, height: spec.height })
    }

    fn picture(&self, _: &BlobId, _: &str) -> Result<Picture, TaskError> {
        Ok(Picture::new(1, 1, vec![0.0; 3]).unwrap())
    }
}

#[derive(Default)]
struct Heard(Mutex<Vec<Event>>);

impl Listener for Heard {
    fn tell(&self, event: Event) {
        self.0.lock().unwrap().push(event);
    }
}

/// What nodes run in: an engine with the built-in model, folders that do not exist, and a listener.
struct Place {
    registry: Registry,
    engine: Engine,
    catalog: Arc<Catalog>,
    heard: Heard,
    interrupt: CancellationToken,
}

impl Place {
    fn new() -> Self {
        let options = EngineOptions {
            devices: vec![DeviceName::Cpu],
            compute_type: darkroom_models::ComputeType::Full,
            limits: Limits::default(),
            memory_budget: 1 << 30,
            vram_limit: 0,
            max_batch: 1,
            pinned: Vec::new(),
            prompt_cache_bytes: 1 << 20,
            preview_every: None,
            age_after: Duration::from_secs(30),
            max_unwritten: 1,
        };
        let catalog = Arc::new(Catalog::open(None, None).unwrap());
        let metrics = Arc::new(Metrics::default());
        let (engine, _) = Engine::start(options, Arc::clone(&catalog), metrics, Arc::new(NoSources)).unwrap();
        Self {
            registry: Registry::all(),
            engine,
            catalog,
            heard: Heard::default(),
            interrupt: CancellationToken::new(),
        }
    }

    fn run(&self, class: &str, inputs: Vec<(String, Value)>) -> Result<Outputs, NodeError> {
        let folder = || PathBuf::from("/nonexistent");
        let folders =
            Folders { input: folder(), output: folder(), temp: folder(), user: folder(), models: None };
        let context = Context {
            engine: &self.engine,
            catalog: &self.catalog,
            folders: &folders,
            listener: &self.heard,
            interrupt: &self.interrupt,
            prompt_id: "prompt",
            node: "7",
            metadata: &Metadata::default(),
        };
        let node = self.registry.get(class).unwrap_or_else(|| panic!("there is no node {class}"));
        (node.run)(&Inputs(inputs.into_iter().collect()), &context)
    }
}
