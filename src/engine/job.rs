//! One picture on its way through the engine: what it is, who is behind it, and what it must share with others to
//! be drawn with them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::denoise::LatentJob;
use crate::task::{ImageSpec, Owner, Priority, TaskId};

/// Names a job: one picture of a task.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct JobId {
    /// The task.
    pub task: TaskId,
    /// Which of its pictures.
    pub index: usize,
}

/// One sample to denoise.
#[derive(Debug, Clone)]
pub struct Job {
    /// Its name.
    pub id: JobId,
    /// What it is.
    pub content: Content,
    /// Who asked.
    pub owner: Owner,
    /// How soon.
    pub priority: Priority,
    /// Who wants to see it while it is drawn.
    pub viewers: Viewers,
}

/// What a job is about.
#[derive(Debug, Clone)]
pub enum Content {
    /// A picture, from its prompt to its pixels.
    Picture(Arc<ImageSpec>),
    /// A latent that somebody else prepared and waits for.
    Latent(Arc<LatentJob>),
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

    /// Cells of the latent.
    fn cells(&self) -> usize {
        self.width / 8 * (self.height / 8)
    }
}

impl Job {
    /// What it must share with others to be denoised with them.
    pub fn key(&self) -> BatchKey {
        match &self.content {
            Content::Picture(spec) => BatchKey::of(spec),
            Content::Latent(latent) => latent.key.clone(),
        }
    }

    /// Whether somebody wants to see it while it is drawn.
    pub fn wants_previews(&self) -> bool {
        match &self.content {
            Content::Picture(_) => self.viewers.any(),
            Content::Latent(latent) => latent.previews,
        }
    }

    /// The network work that it takes, in latent cells × rows × steps: what fair shares and forecasts count.
    pub fn work(&self) -> f64 {
        let steps = match &self.content {
            Content::Picture(spec) => spec.expected_steps(),
            Content::Latent(latent) => latent.steps,
        };
        self.work_a_step() * steps.max(1) as f64
    }

    /// The share of one step; the mean, where steps differ.
    pub fn work_a_step(&self) -> f64 {
        let rows = match &self.content {
            Content::Picture(spec) if spec.cfg == 1.0 => spec.speed.expected_work(false),
            Content::Picture(spec) => 2.0 * spec.speed.expected_work(true),
            Content::Latent(latent) => latent.rows as f64,
        };
        self.key().cells() as f64 * rows
    }

    /// Whether it keeps features of the network between steps.
    pub fn caches(&self) -> bool {
        match &self.content {
            Content::Picture(spec) => spec.speed.step_cache.is_some_and(|cache| cache.cache_interval > 1),
            Content::Latent(latent) => latent.caches,
        }
    }
}
