//! One picture on its way through the engine: what it is, who is behind it, and what it must share with others to
//! be drawn with them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::task::{ImageSpec, Owner, Priority, TaskId};

/// Names a job: one picture of a task.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct JobId {
    /// The task.
    pub task: TaskId,
    /// Which of its pictures.
    pub index: usize,
}

/// One picture to draw.
#[derive(Debug, Clone)]
pub struct Job {
    /// Its name.
    pub id: JobId,
    /// What to draw.
    pub spec: Arc<ImageSpec>,
    /// Who asked.
    pub owner: Owner,
    /// How soon.
    pub priority: Priority,
    /// Who wants to see it while it is drawn.
    pub viewers: Viewers,
}

/// Counts who wants previews of a task; shared by its jobs.
#[derive(Debug, Clone, Default)]
pub struct Viewers(Arc<AtomicUsize>);

impl Viewers {
    /// Whether anyone is there.
    pub fn any(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }

    /// One more, as long as what is returned lives.
    pub fn join(&self) -> Viewing {
        self.0.fetch_add(1, Ordering::Relaxed);
        Viewing(Arc::clone(&self.0))
    }
}

/// A wish for previews; dropping it ends the wish.
#[derive(Debug)]
pub struct Viewing(Arc<AtomicUsize>);

impl Drop for Viewing {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What samples must share to sit in one step batch: the network's weights and the latent's shape. Not the prompt,
/// the seed, the step count, the sampler or the guidance scale.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BatchKey {
    /// The model's id.
    pub model: Arc<str>,
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

impl BatchKey {
    /// The key of a picture.
    pub fn of(spec: &ImageSpec) -> Self {
        Self { model: spec.model.as_str().into(), width: spec.width, height: spec.height }
    }
}

impl Job {
    /// The network work that it takes, in latent cells × rows × steps: what fair shares and forecasts count.
    pub fn work(&self) -> f64 {
        self.work_a_step() * self.spec.expected_steps().max(1) as f64
    }

    /// The share of one step.
    pub fn work_a_step(&self) -> f64 {
        let rows = if self.spec.cfg == 1.0 { 1 } else { 2 };
        (self.spec.width / 8 * (self.spec.height / 8) * rows) as f64
    }
}
