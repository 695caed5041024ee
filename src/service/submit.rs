//! The way in. A task is accepted when there is room and it is stored; from then on it will be finished, whatever
//! happens to the server.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use jiff::Timestamp;

use super::{Service, ServiceError, Submission, TaskView};
use crate::engine::{Content, Job, JobId, Viewers};
use crate::metrics::{ByCache, ByOutcome, ByReason, ByStatus};
use crate::store::{Inserted, StorageError, StoreError};
use crate::task::{DrawnImage, NewTask, Owner, Task, TaskId, TaskStatus};

/// Tasks finish at the measured rate; with nothing measured, this is when to ask again, seconds.
const RETRY_AFTER: u64 = 5;
/// Longest that a refused client is told to wait, seconds.
const LONGEST_RETRY: f64 = 300.0;

/// An accepted task.
#[derive(Debug, Clone)]
pub struct Submitted {
    /// The task with its place in the queue.
    pub view: TaskView,
    /// False when an idempotency key named an earlier one.
    pub created: bool,
}

impl Service {
    /// Stores a task and queues its pictures. When this returns `Ok`, the task will be finished even if the server
    /// is killed the next moment. With a known idempotency key, the earlier task is returned and `created` is false.
    pub async fn submit(&self, owner: &Owner, submission: Submission) -> Result<Submitted, ServiceError> {
        let mut submitted = self.submit_all(owner, vec![submission]).await?;
        submitted.pop().ok_or_else(|| ServiceError::Internal { message: "nothing was submitted".into() })
    }

    /// The same for several tasks, all or none: one answer, one transaction.
    pub async fn submit_all(
        &self,
        owner: &Owner,
        submissions: Vec<Submission>,
    ) -> Result<Vec<Submitted>, ServiceError> {
        // On a task of its own: a client that goes away must not leave a task that is stored and not queued.
        let (service, owner) = (self.clone(), owner.clone());
        let accepted = self.0.work.spawn(async move { service.accept(&owner, submissions).await }).await;
        accepted.unwrap_or_else(|error| {
            Err(ServiceError::Internal { message: format!("accepting a task ended in a defect: {error}") })
        })
    }

    async fn accept(
        &self,
        owner: &Owner,
        submissions: Vec<Submission>,
    ) -> Result<Vec<Submitted>, ServiceError> {
        if self.0.draining.load(Ordering::Relaxed) {
            return Err(ServiceError::Draining);
        }
        self.0.storage.check_room(&self.0.config.storage)?;
        if let Some(message) = self.0.storage.problem() {
            return Err(ServiceError::StorageUnavailable { message });
        }
        let mut tasks = Vec::with_capacity(submissions.len());
        let mut new = 0;
        for submission in submissions {
            let drawn = if submission.bypass_bank { Vec::new() } else { self.in_bank(&submission).await? };
            // A full queue is no reason to refuse what the bank has, or to forget what was accepted before.
            if drawn.len() < submission.images.len() && !self.is_repeat(owner, &submission).await? {
                new += 1;
            }
            let Submission { kind, priority, images, webhook_url, idempotency, .. } = submission;
            let task = NewTask {
                id: TaskId::new(kind),
                kind,
                owner: owner.clone(),
                priority,
                images,
                drawn,
                webhook_url,
                created_at: Timestamp::now(),
            };
            tasks.push((task, idempotency));
        }
        let room = self.reserve(owner, new)?;
        let inserted = self.0.store.insert(tasks).await.map_err(|e| self.store_error(e))?;
        let mut submitted = Vec::with_capacity(inserted.len());
        for inserted in inserted {
            let (task, created) = match inserted {
                Inserted::New(task) => (task, true),
                Inserted::Existing(task) => (task, false),
            };
            if created && !task.status.is_final() {
                room.keep_one();
                self.begin(&task);
            } else if created {
                self.count_end(&task, task.status);
                self.0.webhooks.notify_one();
            }
            let mut view = self.view(task);
            if created && !view.task.status.is_final() {
                // The answer is about the moment of acceptance, though the device may have begun by now.
                view.task.status = TaskStatus::Queued;
            }
            submitted.push(Submitted { view, created });
        }
        Ok(submitted)
    }

    /// Whether its idempotency key was used before.
    async fn is_repeat(&self, owner: &Owner, submission: &Submission) -> Result<bool, ServiceError> {
        let Some(idempotency) = &submission.idempotency else { return Ok(false) };
        let known = self.0.store.has_idempotency_key(owner, &idempotency.key).await;
        known.map_err(|e| self.store_error(e))
    }

    /// Pictures that the expression bank has.
    async fn in_bank(&self, submission: &Submission) -> Result<Vec<DrawnImage>, ServiceError> {
        let keys: Vec<String> = submission
            .images
            .iter()
            .filter_map(|spec| spec.bank.as_ref())
            .map(|bank| bank.key.clone())
            .collect();
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let known =
            self.0.store.bank_lookup(&keys, Timestamp::now()).await.map_err(|e| self.store_error(e))?;
        let found: Vec<DrawnImage> = submission
            .images
            .iter()
            .enumerate()
            .filter_map(|(index, spec)| {
                let image = known.get(&spec.bank.as_ref()?.key)?;
                Some(DrawnImage { index, cached: true, ..image.clone() })
            })
            .collect();
        let label = ByCache { cache: "bank" };
        self.0.metrics.cache_hits.get_or_create(&label).inc_by(found.len() as u64);
        self.0.metrics.cache_misses.get_or_create(&label).inc_by((keys.len() - found.len()) as u64);
        Ok(found)
    }

    /// Queues what a stored task still lacks.
    pub(super) fn begin(&self, task: &Task) {
        let viewers = self.0.live.add(task);
        self.0.engine.submit(jobs(task, &viewers));
    }

    /// Counts tasks in, if there is room for all of them.
    fn reserve(&self, owner: &Owner, count: usize) -> Result<Reservation<'_>, ServiceError> {
        let queue = &self.0.config.queue;
        let full = |limit: usize, whose: &str| {
            self.0.metrics.refusals.get_or_create(&ByReason { reason: "queue_full" }).inc();
            let (.., wait) = self.0.engine.load_view();
            // As long as one task takes on average.
            let each = wait.map(|seconds| (seconds / limit.max(1) as f64).clamp(1.0, LONGEST_RETRY).ceil());
            ServiceError::QueueFull {
                message: format!("{whose} has {limit} unfinished tasks, as many as it may"),
                retry_after: each.map_or(RETRY_AFTER, |seconds| seconds as u64),
            }
        };
        let own_limit = self.task_limit(owner);
        let mut unfinished = self.0.keys.unfinished();
        if count > 0 && unfinished.total + count > queue.max_tasks {
            drop(unfinished);
            return Err(full(queue.max_tasks, "the server"));
        }
        let own = unfinished.by_owner.get(owner).copied().unwrap_or(0);
        if let Some(limit) = own_limit
            && count > 0
            && own + count > limit
        {
            drop(unfinished);
            return Err(full(limit, "this key"));
        }
        unfinished.add(owner, count);
        drop(unfinished);
        Ok(Reservation { service: self, owner: owner.clone(), left: count.into() })
    }

    /// A task that was counted in is final.
    pub(super) fn release(&self, owner: &Owner, count: usize) {
        let mut unfinished = self.0.keys.unfinished();
        unfinished.total = unfinished.total.saturating_sub(count);
        if let Some(own) = unfinished.by_owner.get_mut(owner) {
            *own = own.saturating_sub(count);
            if *own == 0 {
                unfinished.by_owner.remove(owner);
            }
        }
    }

    /// Takes a task back: it stops within one step.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` when it is final already.
    pub async fn cancel(&self, owner: &Owner, id: &TaskId) -> Result<TaskView, ServiceError> {
        self.task(owner, id).await?;
        // On a task of its own, as for submitting: half a cancellation helps nobody.
        let (service, task) = (self.clone(), id.clone());
        let cancelled = self.0.work.spawn(async move { service.take_back(&task).await }).await;
        let was_first = cancelled.unwrap_or_else(|error| {
            Err(ServiceError::Internal { message: format!("cancelling: {error}") })
        })?;
        let view = self.task(owner, id).await?;
        if was_first {
            Ok(view)
        } else {
            Err(ServiceError::Conflict {
                message: format!("task {id} is {} already", view.task.status.name()),
            })
        }
    }

    async fn take_back(&self, id: &TaskId) -> Result<bool, ServiceError> {
        let finished = self.0.store.finish(id, TaskStatus::Cancelled, None, Timestamp::now()).await;
        if !finished.map_err(|e| self.store_error(e))? {
            return Ok(false);
        }
        self.0.engine.cancel(id);
        self.ended(id, TaskStatus::Cancelled, None);
        Ok(true)
    }

    /// A task is final in the store: everyone else learns it.
    pub(super) fn ended(&self, id: &TaskId, status: TaskStatus, error: Option<crate::task::TaskError>) {
        let Some(live) = self.0.live.finish(id, status, error) else { return };
        self.release(&live.owner, 1);
        self.count(live.kind.name(), &live.images, live.drawn.as_slice(), status);
        self.0.webhooks.notify_one();
    }

    fn count_end(&self, task: &Task, status: TaskStatus) {
        self.count(task.kind.name(), &task.images, &task.drawn, status);
    }

    fn count(
        &self,
        kind: &'static str,
        images: &[crate::task::ImageSpec],
        drawn: &[DrawnImage],
        status: TaskStatus,
    ) {
        self.0.metrics.tasks.get_or_create(&ByStatus { kind, status: status.name() }).inc();
        for (index, spec) in images.iter().enumerate() {
            let outcome = match drawn.iter().find(|image| image.index == index) {
                Some(image) if image.cached => "cached",
                Some(_) => "completed",
                None if status == TaskStatus::Cancelled => "cancelled",
                None => "failed",
            };
            self.0.metrics.images.get_or_create(&ByOutcome { model: spec.model.clone(), outcome }).inc();
        }
    }

    /// What a store's refusal means to a client.
    pub(super) fn store_error(&self, error: StoreError) -> ServiceError {
        match error {
            StoreError::IdempotencyConflict { key } => ServiceError::IdempotencyConflict { key },
            StoreError::UploadGone { .. } => ServiceError::Conflict { message: error.to_string() },
            error if error.is_unavailable() => {
                tracing::warn!(%error, "a request is refused by the task store");
                self.0.storage.failed(&error);
                ServiceError::StorageUnavailable { message: error.for_clients() }
            }
            error => ServiceError::Internal { message: error.to_string() },
        }
    }
}

/// The pictures that a task still lacks.
fn jobs(task: &Task, viewers: &Viewers) -> Vec<Job> {
    let missing = |index: &usize| !task.drawn.iter().any(|image| image.index == *index);
    (0..task.images.len())
        .filter(missing)
        .map(|index| Job {
            id: JobId { task: task.id.clone(), index },
            content: Content::Picture(Arc::new(task.images[index].clone())),
            owner: task.owner.clone(),
            priority: task.priority,
            viewers: viewers.clone(),
        })
        .collect()
}

/// Room that was counted; what is not kept is given back.
struct Reservation<'s> {
    service: &'s Service,
    owner: Owner,
    left: std::cell::Cell<usize>,
}

impl Reservation<'_> {
    fn keep_one(&self) {
        match self.left.get().checked_sub(1) {
            Some(left) => self.left.set(left),
            // The bank lost a picture between the look and the insertion, so this task is to be drawn after all.
            None => self.service.0.keys.unfinished().add(&self.owner, 1),
        }
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.service.release(&self.owner, self.left.get());
    }
}
