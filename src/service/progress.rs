//! Hears the engine and tells listeners. Only bookkeeping happens here; what may block (encoding, storing) is done
//! by tasks that this starts.

use jiff::Timestamp;
use tokio::sync::mpsc::UnboundedReceiver;

use super::Service;
use crate::engine::{EngineEvent, JobId};
use crate::picture;
use crate::store::StoreError;
use crate::task::{Change, ImageFormat, Preview, TaskError, TaskId, TaskStatus};

/// How previews are written.
const PREVIEW: ImageFormat = ImageFormat::Jpeg { quality: 80 };

impl Service {
    /// Listens until the engine has ended.
    pub(super) async fn hear(&self, mut events: UnboundedReceiver<EngineEvent>) {
        while let Some(event) = events.recv().await {
            match event {
                EngineEvent::Started { job, .. } => self.started(&job.task),
                EngineEvent::Stepped { samples } => self.stepped(samples),
                EngineEvent::Preview { job, width, height, rgb } => self.preview(job, width, height, rgb),
                EngineEvent::Drawn(drawn) => {
                    let service = self.clone();
                    self.0.work.spawn(async move { service.write(drawn).await });
                }
                EngineEvent::Failed { job, error } => {
                    let service = self.clone();
                    self.0.work.spawn(async move { service.failed(&job.task, error).await });
                }
            }
        }
    }

    fn started(&self, id: &TaskId) {
        let mut tasks = self.0.live.lock();
        let Some(live) = tasks.get_mut(id).filter(|live| live.status == TaskStatus::Queued) else { return };
        live.status = TaskStatus::Processing;
        live.name_step();
        live.tell(id, Change::Status { status: TaskStatus::Processing, error: None });
        drop(tasks);
        let (service, id) = (self.clone(), id.clone());
        self.0.work.spawn(async move {
            // Its pictures say the same to the store when they are done.
            if let Err(error) = service.0.store.mark_processing(&id, Timestamp::now()).await {
                tracing::warn!(task = %id, %error, "cannot note that it has started");
            }
        });
    }

    fn stepped(&self, samples: Vec<(JobId, usize, usize)>) {
        let outlooks = self.outlooks();
        let mut tasks = self.0.live.lock();
        let mut changed: Vec<TaskId> = Vec::new();
        for (job, done, total) in samples {
            if let Some(live) = tasks.get_mut(&job.task) {
                live.stepped(job.index, done, total);
                if !changed.contains(&job.task) {
                    changed.push(job.task);
                }
            }
        }
        for id in changed {
            let Some(live) = tasks.get_mut(&id) else { continue };
            let (steps_done, steps_total) = live.steps();
            let change = Change::Progress {
                steps_done,
                steps_total,
                current_step: live.current_step.clone().unwrap_or_default(),
                eta_seconds: outlooks.get(&id).and_then(|outlook| outlook.seconds),
            };
            live.tell(&id, change);
        }
    }

    fn preview(&self, job: JobId, width: usize, height: usize, rgb: Vec<u8>) {
        let service = self.clone();
        self.0.work.spawn_blocking(move || match picture::encode(width, height, &rgb, None, PREVIEW, None) {
            Ok(jpeg) => {
                let preview = Preview { index: job.index, jpeg: jpeg.into() };
                service.0.live.preview(&job.task, preview);
            }
            Err(error) => tracing::warn!(%error, "cannot write a preview"),
        });
    }

    /// A picture cannot be drawn, so its task will not be completed.
    pub(super) async fn failed(&self, id: &TaskId, error: TaskError) {
        self.0.engine.cancel(id);
        let finish = || self.0.store.finish(id, TaskStatus::Failed, Some(&error), Timestamp::now());
        if self.until_stored(finish, StoreError::is_unavailable).await == Some(true) {
            tracing::warn!(task = %id, error = error.message, "a task failed");
            self.ended(id, TaskStatus::Failed, Some(error));
        }
    }
}
