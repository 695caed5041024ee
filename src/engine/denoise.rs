//! Latents that others prepared, denoised in the device's step batches: a workflow's sampler hands in its samples and
//! waits for them, while they share every step with whatever else is being drawn. Called from threads that may block.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use candle_core::Tensor;
use darkroom_pipelines::{Pipeline, Sample};
use tokio_util::sync::CancellationToken;

use super::Engine;
use super::job::{BatchKey, Content, Job, JobId, Viewers};
use crate::task::{Owner, Priority, TaskError, TaskErrorKind, TaskId, TaskKind};

/// How often a waiting caller looks whether it is to stop.
pub(super) const LOOK: Duration = Duration::from_millis(50);

/// A finished sample.
#[derive(Debug, Clone)]
pub struct Denoised {
    /// `[4, h/8, w/8]`, the network's scale.
    pub latent: Tensor,
    /// What the last step took the finished latent to be, at its first evaluation. `None` where there was no step.
    pub denoised: Option<Tensor>,
}

/// What is told on the way.
#[derive(Debug)]
pub enum DenoiseEvent {
    /// The slowest sample is so far.
    Step {
        /// Steps done.
        done: usize,
        /// Steps in all.
        total: usize,
    },
    /// What a sample looks like.
    Preview {
        /// Which, in the order they were handed in.
        sample: usize,
        /// Pixels in a row.
        width: usize,
        /// Rows.
        height: usize,
        /// 8-bit RGB.
        rgb: Vec<u8>,
    },
}

/// Why there are no latents.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum DenoiseError {
    /// The caller was told to stop.
    #[error("interrupted")]
    Interrupted,
    /// The engine has stopped.
    #[error("the server is stopping")]
    Stopped,
    /// A sample failed.
    #[error("{}", .0.message)]
    Failed(TaskError),
}

/// A sample in the queue, and where its end is told.
#[derive(Debug)]
pub struct LatentJob {
    pub(super) key: BatchKey,
    pub(super) steps: usize,
    /// Rows of the network's batch that a step takes.
    pub(super) rows: usize,
    /// Whether it keeps features of the network between steps.
    pub(super) caches: bool,
    pub(super) previews: bool,
    index: usize,
    start: Mutex<Option<Start>>,
    told: Sender<(usize, Told)>,
}

struct Start(Box<Sample>, Arc<Pipeline>);

impl std::fmt::Debug for Start {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Start").finish_non_exhaustive()
    }
}

enum Told {
    Stepped(usize, usize),
    Previewed(usize, usize, Vec<u8>),
    Done(Denoised),
    Failed(TaskError),
}

impl LatentJob {
    /// The sample and what it is denoised with; once.
    pub(super) fn take(&self) -> Option<(Box<Sample>, Arc<Pipeline>)> {
        let start = self.start.lock().unwrap_or_else(PoisonError::into_inner).take();
        start.map(|Start(sample, pipeline)| (sample, pipeline))
    }

    // Whoever waited may have gone: then nobody is told.

    pub(super) fn stepped(&self, done: usize, total: usize) {
        let _ = self.told.send((self.index, Told::Stepped(done, total)));
    }

    pub(super) fn previewed(&self, width: usize, height: usize, rgb: Vec<u8>) {
        let _ = self.told.send((self.index, Told::Previewed(width, height, rgb)));
    }

    pub(super) fn done(&self, latent: Tensor, denoised: Option<Tensor>) {
        let _ = self.told.send((self.index, Told::Done(Denoised { latent, denoised })));
    }

    pub(super) fn failed(&self, error: TaskError) {
        let _ = self.told.send((self.index, Told::Failed(error)));
    }
}

/// Takes its samples back when the caller leaves, whatever way.
struct Waiting<'e> {
    engine: &'e Engine,
    task: TaskId,
    left: usize,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.left > 0 {
            self.engine.cancel(&self.task);
        }
    }
}

impl Engine {
    /// Denoises `samples` of `model`, which `pipeline` started, and returns them in their order. Waits; `watch` hears
    /// of steps and, where `previews` says so, sees what the samples look like.
    ///
    /// # Errors
    /// When `stop` was cancelled, a sample failed or the engine ends. The samples that are left are taken back.
    pub fn denoise(
        &self,
        model: &str,
        pipeline: &Arc<Pipeline>,
        samples: Vec<Sample>,
        stop: &CancellationToken,
        previews: bool,
        watch: &mut dyn FnMut(DenoiseEvent),
    ) -> Result<Vec<Denoised>, DenoiseError> {
        let (told, hear) = channel();
        let task = TaskId::new(TaskKind::Images);
        let mut done: Vec<Option<Denoised>> = samples.iter().map(|_| None).collect();
        let mut progress: Vec<(usize, usize)> = samples.iter().map(Sample::progress).collect();
        let mut jobs = Vec::with_capacity(samples.len());
        for (index, sample) in samples.into_iter().enumerate() {
            if let Some(latent) = sample.latent() {
                // Nothing to do: its schedule is empty.
                done[index] =
                    Some(Denoised { latent: latent.clone(), denoised: sample.last_denoised().cloned() });
                continue;
            }
            let (_, steps) = sample.progress();
            let (height, width) = match *sample.latent_dims() {
                [.., height, width] => (height, width),
                _ => (0, 0),
            };
            let job = LatentJob {
                key: BatchKey { model: model.into(), width: 8 * width, height: 8 * height },
                steps,
                rows: sample.rows(),
                caches: sample.cache_bytes() > 0,
                previews,
                index,
                start: Mutex::new(Some(Start(Box::new(sample), Arc::clone(pipeline)))),
                told: told.clone(),
            };
            jobs.push(Job {
                id: JobId { task: task.clone(), index },
                content: Content::Latent(Arc::new(job)),
                owner: Owner::Anyone,
                priority: Priority::Standard,
                viewers: Viewers::default(),
            });
        }
        drop(told);
        let mut waiting = Waiting { engine: self, task, left: jobs.len() };
        self.submit(jobs);
        while waiting.left > 0 {
            if stop.is_cancelled() {
                return Err(DenoiseError::Interrupted);
            }
            match hear.recv_timeout(LOOK) {
                Ok((index, Told::Stepped(now, total))) => {
                    let slowest = slowest(&progress);
                    progress[index] = (now, total);
                    let after = self::slowest(&progress);
                    if after != slowest {
                        watch(DenoiseEvent::Step { done: after.0, total: after.1 });
                    }
                }
                Ok((sample, Told::Previewed(width, height, rgb))) => {
                    watch(DenoiseEvent::Preview { sample, width, height, rgb });
                }
                Ok((index, Told::Done(denoised))) => {
                    done[index] = Some(denoised);
                    waiting.left -= 1;
                }
                Ok((_, Told::Failed(error))) => return Err(DenoiseError::Failed(error)),
                Err(RecvTimeoutError::Timeout) if self.shared.is_stopping() => {
                    return Err(DenoiseError::Stopped);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(lost()),
            }
        }
        let all: Option<Vec<Denoised>> = done.into_iter().collect();
        all.ok_or_else(lost)
    }
}

/// The sample that is least far.
fn slowest(progress: &[(usize, usize)]) -> (usize, usize) {
    let left = |(done, total): &(usize, usize)| total.saturating_sub(*done);
    progress.iter().copied().max_by_key(left).unwrap_or((0, 0))
}

fn lost() -> DenoiseError {
    let message = "a sample was lost; the log has more".to_owned();
    DenoiseError::Failed(TaskError { kind: TaskErrorKind::Internal, message })
}
