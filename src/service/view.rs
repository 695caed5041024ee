//! Tasks as clients see them: what is stored, joined with what only the running server knows.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::broadcast::error::RecvError;

use super::live::{Subscription, closed};
use super::{Outlooks, QueueView, Readiness, Service, ServiceError, StoredImage, TaskPage, TaskView};
use crate::engine::Outlook;
use crate::metrics::ByPriority;
use crate::store::ImageStoreError;
use crate::task::{Change, ImageId, ImageSpec, Owner, Priority, Task, TaskId, TaskStatus};

/// How long one look at the queue serves all who ask for their place in it.
const OUTLOOK_AGE: Duration = Duration::from_millis(100);

impl Service {
    /// A task of this owner.
    pub async fn task(&self, owner: &Owner, id: &TaskId) -> Result<TaskView, ServiceError> {
        Ok(self.view(self.stored_task(owner, id).await?))
    }

    async fn stored_task(&self, owner: &Owner, id: &TaskId) -> Result<Task, ServiceError> {
        let task = self.0.store.task(id).await.map_err(|e| self.store_error(e))?;
        let missing = || ServiceError::NotFound { what: "task", id: id.to_string() };
        task.filter(|task| task.owner == *owner).ok_or_else(missing)
    }

    /// A task whoever asks, for those who act for its owner (webhooks).
    pub async fn task_for_owner(&self, id: &TaskId) -> Result<Option<TaskView>, ServiceError> {
        let task = self.0.store.task(id).await.map_err(|e| self.store_error(e))?;
        Ok(task.map(|task| self.view(task)))
    }

    /// This owner's tasks, newest first, from behind `after`.
    pub async fn tasks(
        &self,
        owner: &Owner,
        status: Option<TaskStatus>,
        after: Option<&TaskId>,
        limit: usize,
    ) -> Result<TaskPage, ServiceError> {
        let mut tasks =
            (self.0.store.list(owner, status, after, limit + 1).await).map_err(|e| self.store_error(e))?;
        let more = tasks.len() > limit;
        tasks.truncate(limit);
        let next = if more { tasks.last().map(|task| task.id.clone()) } else { None };
        Ok(TaskPage { tasks: tasks.into_iter().map(|task| self.view(task)).collect(), next })
    }

    /// What is stored and what is known, as one.
    pub(super) fn view(&self, mut task: Task) -> TaskView {
        if task.status.is_final() {
            let total: usize = task.images.iter().map(ImageSpec::expected_steps).sum();
            let done = task.drawn.iter().filter_map(|image| task.images.get(image.index));
            let done: usize = done.map(ImageSpec::expected_steps).sum();
            let (steps_done, steps_total) = (done, total);
            return TaskView {
                task,
                steps_done,
                steps_total,
                current_step: None,
                queue_position: None,
                eta_seconds: None,
            };
        }
        let outlook = self.outlook(&task.id);
        let tasks = self.0.live.lock();
        let Some(live) = tasks.get(&task.id) else {
            // Between its last picture and the moment its final state is stored, or not recovered yet.
            let total = task.images.iter().map(ImageSpec::expected_steps).sum();
            return TaskView {
                task,
                steps_done: 0,
                steps_total: total,
                current_step: None,
                queue_position: None,
                eta_seconds: None,
            };
        };
        // The store learns a moment later that a task has started.
        if task.status == TaskStatus::Queued {
            task.status = live.status;
        }
        let (steps_done, steps_total) = live.steps();
        TaskView {
            steps_done,
            steps_total,
            current_step: live.current_step.clone(),
            // What was known of the queue a moment ago may be of before it started.
            queue_position: match task.status {
                TaskStatus::Queued => outlook.and_then(|outlook| outlook.position),
                _ => None,
            },
            eta_seconds: match outlook {
                Some(outlook) => outlook.seconds,
                // Denoised; only decoding and writing are left.
                None => Some(0.0),
            },
            task,
        }
    }

    /// Where a task stands; `None` when no step of it is left.
    fn outlook(&self, id: &TaskId) -> Option<Outlook> {
        let known = self.outlooks().get(id).copied();
        if known.is_some() {
            return known;
        }
        // It may have come after what is remembered was computed.
        let (done, total) = self.0.live.lock().get(id)?.steps();
        if done < total { self.look_anew().get(id).copied() } else { None }
    }

    /// Where every unfinished task stands, at most a tenth of a second ago.
    pub(super) fn outlooks(&self) -> Outlooks {
        let known = self.0.outlooks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, outlooks)) = &*known
            && at.elapsed() < OUTLOOK_AGE
        {
            return Arc::clone(outlooks);
        }
        drop(known);
        self.look_anew()
    }

    fn look_anew(&self) -> Outlooks {
        let mut known = self.0.outlooks.lock().unwrap_or_else(PoisonError::into_inner);
        let outlooks = Arc::new(self.0.engine.outlooks());
        *known = Some((Instant::now(), Arc::clone(&outlooks)));
        outlooks
    }

    /// Everything that happens to a task from now on, and its state now. While a subscription that asks for previews
    /// lives, the engine makes them.
    pub async fn subscribe(
        &self,
        owner: &Owner,
        id: &TaskId,
        previews: bool,
    ) -> Result<Subscription, ServiceError> {
        // Listen first, look then: nothing falls between.
        let listening = self.0.live.listen(id, previews);
        let view = self.task(owner, id).await?;
        let (events, sequence, viewing) = listening.unwrap_or_else(|| (closed(), 0, None));
        Ok(Subscription { view, sequence, events, viewing })
    }

    /// Waits until the task is final, at most `timeout`; then its state at that moment.
    pub async fn wait(
        &self,
        owner: &Owner,
        id: &TaskId,
        timeout: Duration,
    ) -> Result<TaskView, ServiceError> {
        let mut listening = self.subscribe(owner, id, false).await?;
        if listening.view.task.status.is_final() {
            return Ok(listening.view);
        }
        let ended = async {
            loop {
                match listening.events.recv().await {
                    Ok(event) => {
                        if matches!(&event.change, Change::Status { status, .. } if status.is_final()) {
                            return;
                        }
                    }
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return,
                }
            }
        };
        let stopped = self.0.stop.cancelled();
        tokio::select! {
            () = ended => {}
            () = tokio::time::sleep(timeout) => {}
            () = stopped => {}
        }
        self.task(owner, id).await
    }

    /// A picture of this owner.
    pub async fn image(&self, owner: &Owner, id: &ImageId) -> Result<StoredImage, ServiceError> {
        let found = self.0.store.image(id).await.map_err(|e| self.store_error(e))?;
        let own = found.filter(|(_, whose)| whose == owner).map(|(image, _)| image);
        self.stored_image(id, own).await
    }

    /// A picture whoever asks: for addresses that carry their own signature.
    pub async fn image_by_signature(&self, id: &ImageId) -> Result<StoredImage, ServiceError> {
        let found = self.0.store.image(id).await.map_err(|e| self.store_error(e))?;
        self.stored_image(id, found.map(|(image, _)| image)).await
    }

    async fn stored_image(
        &self,
        id: &ImageId,
        image: Option<crate::task::DrawnImage>,
    ) -> Result<StoredImage, ServiceError> {
        let missing = || ServiceError::NotFound { what: "picture", id: id.to_string() };
        let image = image.ok_or_else(missing)?;
        match self.0.images.get_image(id, image.format).await {
            Ok(bytes) => Ok(StoredImage { image, bytes }),
            Err(ImageStoreError::NotFound { .. }) => Err(missing()),
            Err(error) => Err(self.image_error(&error)),
        }
    }

    /// The queue at this moment.
    pub fn queue(&self) -> QueueView {
        let (queued, processing, step_batch, eta_seconds) = self.0.engine.load_view();
        QueueView { queued, processing, capacity: self.0.config.queue.max_tasks, step_batch, eta_seconds }
    }

    /// Whether it would take a task now.
    pub fn readiness(&self) -> Readiness {
        use std::sync::atomic::Ordering;
        if self.0.draining.load(Ordering::Relaxed) {
            Readiness::Draining
        } else if self.0.loading.load(Ordering::Relaxed) {
            Readiness::Loading
        } else if self.0.storage.problem().is_some()
            || self.0.storage.check_room(&self.0.config.storage).is_err()
        {
            Readiness::StorageUnavailable
        } else {
            Readiness::Ready
        }
    }

    /// What is counted, in OpenMetrics' text format.
    pub fn metrics_text(&self) -> String {
        let (queued, ..) = self.0.engine.load_view();
        for (priority, count) in Priority::ALL.into_iter().zip(queued) {
            let label = ByPriority { priority: priority.name() };
            self.0.metrics.queue_tasks.get_or_create(&label).set(count as i64);
        }
        self.0.metrics.text()
    }

    /// What is counted.
    pub fn metrics(&self) -> &crate::metrics::Metrics {
        &self.0.metrics
    }
}
