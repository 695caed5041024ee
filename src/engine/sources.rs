//! Pictures that others start from, fetched and decoded on a thread beside the device: a slow store never holds up
//! a step.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use darkroom_pipelines::{Picture, Source};

use super::job::JobId;
use crate::task::{BlobId, ImageSpec, TaskError, TaskErrorKind};

/// Where pictures to start from come from. May block.
pub trait Sources: Send + Sync {
    /// The source of `spec`, scaled to its size.
    ///
    /// # Errors
    /// When it is gone or no picture.
    fn open(&self, spec: &ImageSpec) -> Result<Source, TaskError>;

    /// The kept picture `image` as it is; `what` is what people call it.
    ///
    /// # Errors
    /// When it is gone or no picture.
    fn picture(&self, image: &BlobId, what: &str) -> Result<Picture, TaskError>;
}

/// A source that was asked for.
pub(super) struct Opened {
    pub(super) job: JobId,
    pub(super) source: Result<Source, TaskError>,
}

/// The thread that opens sources for one device.
pub(super) struct SourceThread {
    requests: Sender<(JobId, std::sync::Arc<ImageSpec>)>,
    opened: Receiver<Opened>,
}

impl SourceThread {
    /// Starts it. `wake` is called when a source is there.
    pub(super) fn start(
        sources: std::sync::Arc<dyn Sources>,
        wake: impl Fn() + Send + 'static,
    ) -> std::io::Result<Self> {
        let (requests, wanted) = channel::<(JobId, std::sync::Arc<ImageSpec>)>();
        let (done, opened) = channel();
        thread::Builder::new().name("darkroom-sources".into()).spawn(move || {
            while let Ok((job, spec)) = wanted.recv() {
                let open = std::panic::AssertUnwindSafe(|| sources.open(&spec));
                let source = std::panic::catch_unwind(open).unwrap_or_else(|_| {
                    Err(TaskError {
                        kind: TaskErrorKind::Internal,
                        message: "opening the source picture ended in a defect; the log has more".into(),
                    })
                });
                if done.send(Opened { job, source }).is_err() {
                    return;
                }
                wake();
            }
        })?;
        Ok(Self { requests, opened })
    }

    /// Asks for a job's source.
    pub(super) fn request(&self, job: JobId, spec: std::sync::Arc<ImageSpec>) {
        // The thread ends only with the device that asks.
        let _ = self.requests.send((job, spec));
    }

    /// Those that have come.
    pub(super) fn opened(&self) -> impl Iterator<Item = Opened> + '_ {
        self.opened.try_iter()
    }
}
