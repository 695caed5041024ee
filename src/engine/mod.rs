//! The engine: one thread a device that owns the weights and advances, step by step, whichever samples should be
//! served next. Sits between [`crate::service`], which hands it jobs and hears what became of them, and
//! `darkroom-pipelines`. Knows no HTTP and no storage.
//!
//! - [`queue`] decides who is served next; [`forecast`] says how long it will take;
//! - `residency` keeps weights under a budget of bytes; `prompt_cache` keeps encoded prompts;
//! - `companions` keeps LoRAs, ControlNets and their pictures;
//! - `borrow` lends weights to whoever works beside the device's thread; `denoise` takes latents that they prepared;
//! - `devices` opens what there is; `device` is the thread's loop; `decode` turns finished latents into pictures beside it;
//! - `detail` draws faces once more, larger;
//! - `finish` takes backgrounds out;
//! - `split` gets through a step batch that does not fit or that one sample spoils.

mod borrow;
mod companions;
mod decode;
pub mod denoise;
mod detail;
mod device;
mod devices;
mod finish;
pub mod forecast;
mod job;
mod prompt_cache;
pub mod queue;
mod residency;
mod sources;
mod split;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use darkroom_models::device::DeviceName;
use darkroom_models::{ComputeType, Computed};
use darkroom_pipelines::{Limits, Pipeline};
use tokio::sync::{mpsc, oneshot};

pub use borrow::BorrowError;
pub use denoise::{DenoiseError, DenoiseEvent, Denoised};
pub use devices::OpenDevice;
pub use forecast::Outlook;
pub use job::{BatchKey, Content, Job, JobId, Viewers, Viewing};
pub use sources::Sources;

use crate::catalog::Catalog;
use crate::metrics::Metrics;
use crate::task::{ImageSpec, TaskError, TaskId, Usage};
use borrow::Lending;
use queue::Queue;

/// How an engine works.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Devices; a thread each.
    pub devices: Vec<DeviceName>,
    /// What the networks compute in.
    pub compute_type: ComputeType,
    /// Bounds on requests.
    pub limits: Limits,
    /// Bytes for weights and activations, per device that is a CPU.
    pub memory_budget: u64,
    /// Most bytes of a card's memory that are used; 0: what is free when it is opened.
    pub vram_limit: u64,
    /// Most pictures in a step batch.
    pub max_batch: usize,
    /// Bytes of encoded prompts, per device.
    pub prompt_cache_bytes: usize,
    /// Models that are never put out.
    pub pinned: Vec<String>,
    /// Shortest time between two previews of a picture; `None`: no previews.
    pub preview_every: Option<Duration>,
    /// After how long a waiting picture is served in turn whatever its priority.
    pub age_after: Duration,
    /// Finished pictures that may wait to be written; when there are more, no new ones start.
    pub max_unwritten: usize,
}

/// What the engine tells.
#[derive(Debug)]
pub enum EngineEvent {
    /// A picture left the queue after waiting so long.
    Started {
        /// Which.
        job: JobId,
        /// From submission to now.
        waited: Duration,
    },
    /// Samples made a step.
    Stepped {
        /// `(which, steps done, steps in all)`.
        samples: Vec<(JobId, usize, usize)>,
    },
    /// What a picture looks like so far.
    Preview {
        /// Which.
        job: JobId,
        /// Pixels in a row.
        width: usize,
        /// Rows.
        height: usize,
        /// 8-bit RGB.
        rgb: Vec<u8>,
    },
    /// A picture is drawn.
    Drawn(Drawn),
    /// A picture cannot be drawn.
    Failed {
        /// Which.
        job: JobId,
        /// Why.
        error: TaskError,
    },
}

/// A picture that is drawn and not yet written.
#[derive(Debug)]
pub struct Drawn {
    /// Which.
    pub job: Job,
    /// What was to be drawn.
    pub spec: Arc<ImageSpec>,
    /// What the network's products were formed in.
    pub computed: Computed,
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// 8-bit RGB, `[height, width, 3]`.
    pub rgb: Vec<u8>,
    /// How opaque each pixel is, `[height, width]`; `None`: all are.
    pub alpha: Option<Vec<u8>>,
    /// What is not as asked for.
    pub warnings: Vec<String>,
    /// The work it took.
    pub usage: Usage,
    /// Counts as unwritten until dropped.
    pub unwritten: Unwritten,
}

/// Counts a finished picture until it is written.
#[derive(Debug)]
pub struct Unwritten(Arc<Shared>);

impl Drop for Unwritten {
    fn drop(&mut self) {
        self.0.unwritten.fetch_sub(1, Ordering::Relaxed);
        self.0.wake();
    }
}

/// Where a model's weights are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Residency {
    /// On its way to a device.
    Loading,
    /// On a device.
    Resident {
        /// Bytes there.
        bytes: u64,
    },
    /// It could not be loaded.
    Failed {
        /// Why.
        message: String,
    },
}

/// Why a model was not loaded or unloaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// It cannot be loaded.
    #[error("{message}")]
    Unavailable {
        /// Why.
        message: String,
    },
    /// Pictures are being drawn with it, or wait for it.
    #[error("pictures are being drawn with '{model}'")]
    InUse {
        /// The model.
        model: String,
    },
    /// The engine has stopped.
    #[error("the engine has stopped")]
    Stopped,
}

type Reply = oneshot::Sender<Result<(), ModelError>>;

enum Control {
    Load { model: Arc<str>, reply: Reply },
    Unload { model: Arc<str>, reply: Reply },
    Lend(Lending),
}

/// Under the one lock.
struct State {
    queue: Queue,
    /// Per device.
    controls: Vec<Vec<Control>>,
    /// Tasks that were taken back; devices drop their samples at the next step boundary.
    cancelled: Vec<Vec<TaskId>>,
    residency: Vec<HashMap<String, Residency>>,
    /// Models that are there, for those who borrow them: without waiting for a step to end.
    resident: HashMap<Arc<str>, Weak<Pipeline>>,
    step_batch: usize,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    stopping: AtomicBool,
    unwritten: AtomicUsize,
    events: mpsc::UnboundedSender<EngineEvent>,
    catalog: Arc<Catalog>,
    metrics: Arc<Metrics>,
    options: EngineOptions,
    devices: Vec<OpenDevice>,
    sources: Arc<dyn Sources>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Shared {
    /// A panic while the lock was held leaves plain bookkeeping behind: going on is better than stopping.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // Under the lock, so that it cannot fall between a device's last look and its wait.
        let _state = self.lock();
        self.changed.notify_all();
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    fn tell(&self, event: EngineEvent) {
        // Whoever listened may have gone first when the server stops.
        let _ = self.events.send(event);
    }

    /// A sample will not come to its end.
    fn failed(&self, job: Job, error: TaskError) {
        match job.content {
            Content::Picture(_) => self.tell(EngineEvent::Failed { job: job.id, error }),
            Content::Latent(latent) => latent.failed(error),
        }
    }
}

/// The devices and their queue.
pub struct Engine {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Engine {
    /// Starts a thread for each device. Events come through the receiver; it must be read.
    pub fn start(
        options: EngineOptions,
        catalog: Arc<Catalog>,
        metrics: Arc<Metrics>,
        sources: Arc<dyn Sources>,
    ) -> std::io::Result<(Self, mpsc::UnboundedReceiver<EngineEvent>)> {
        let (events, heard) = mpsc::unbounded_channel();
        let opened = devices::open(&options).map_err(std::io::Error::other)?;
        let devices = opened.len();
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                queue: Queue::new(options.age_after),
                controls: (0..devices).map(|_| Vec::new()).collect(),
                cancelled: vec![Vec::new(); devices],
                residency: vec![HashMap::new(); devices],
                resident: HashMap::new(),
                step_batch: 0,
            }),
            changed: Condvar::new(),
            stopping: AtomicBool::new(false),
            unwritten: AtomicUsize::new(0),
            events,
            catalog,
            metrics,
            options,
            devices: opened,
            sources,
        });
        let mut threads = Vec::with_capacity(devices);
        for index in 0..devices {
            threads.push(device::spawn(&shared, index)?);
        }
        Ok((Self { shared, threads: Mutex::new(threads) }, heard))
    }

    /// What it computes on.
    pub fn devices(&self) -> &[OpenDevice] {
        &self.shared.devices
    }

    /// Queues pictures.
    pub fn submit(&self, jobs: impl IntoIterator<Item = Job>) {
        let mut state = self.shared.lock();
        let now = Instant::now();
        for job in jobs {
            state.queue.push(job, now);
        }
        self.shared.changed.notify_all();
    }

    /// Takes a task back: what waits is dropped now, what runs at the next step boundary. Nothing more is told about
    /// it, but for pictures that are denoised already.
    pub fn cancel(&self, task: &TaskId) {
        let mut state = self.shared.lock();
        state.queue.remove_task(task);
        for cancelled in &mut state.cancelled {
            cancelled.push(task.clone());
        }
        self.shared.changed.notify_all();
    }

    /// Brings a model onto every device.
    pub async fn load(&self, model: &str) -> Result<(), ModelError> {
        self.control(model, |model, reply| Control::Load { model, reply }).await
    }

    /// Takes a model off every device.
    pub async fn unload(&self, model: &str) -> Result<(), ModelError> {
        self.control(model, |model, reply| Control::Unload { model, reply }).await
    }

    async fn control(
        &self,
        model: &str,
        make: impl Fn(Arc<str>, Reply) -> Control,
    ) -> Result<(), ModelError> {
        let mut replies = Vec::new();
        {
            let mut state = self.shared.lock();
            if self.shared.is_stopping() {
                return Err(ModelError::Stopped);
            }
            for controls in &mut state.controls {
                let (reply, answer) = oneshot::channel();
                controls.push(make(model.into(), reply));
                replies.push(answer);
            }
            self.shared.changed.notify_all();
        }
        for answer in replies {
            answer.await.map_err(|_| ModelError::Stopped)??;
        }
        Ok(())
    }

    /// Where each model that is not just on disk is; on several devices, the furthest along.
    pub fn residency(&self) -> HashMap<String, Residency> {
        let state = self.shared.lock();
        let mut all = HashMap::new();
        for (model, residency) in state.residency.iter().flatten() {
            if !matches!(all.get(model), Some(Residency::Resident { .. })) {
                all.insert(model.clone(), residency.clone());
            }
        }
        all
    }

    /// Where every unfinished task stands.
    pub fn outlooks(&self) -> HashMap<TaskId, Outlook> {
        let state = self.shared.lock();
        state.queue.forecast.outlooks(state.queue.served())
    }

    /// Tasks not started by priority (least first), tasks started, size of the last step batch, and seconds until
    /// all of it is done.
    pub fn load_view(&self) -> ([usize; 3], usize, usize, Option<f64>) {
        let state = self.shared.lock();
        let (queued, processing) = state.queue.forecast.counts();
        (queued, processing, state.step_batch, state.queue.forecast.total_seconds())
    }

    /// Stops at the next step boundary; what is unfinished stays so. Blocks until the threads have ended.
    pub fn stop(&self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        self.shared.wake();
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a device's thread ended in a panic");
            }
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop();
    }
}
