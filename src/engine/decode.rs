//! Finished latents to pictures, on a thread beside the device's: decoding and the next denoising steps overlap.
//! Latents of one model and shape that wait together are decoded together, by tiles where memory asks for it.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use candle_core::Tensor;
use darkroom_pipelines::{Picture, Pipeline, PipelineError};

use super::detail::{self, Detailed, Looked, Part};
use super::finish::{self, Finishing, Pixels};
use super::job::Job;
use super::split::in_halves;
use super::{Drawn, EngineEvent, Shared, Unwritten};
use crate::task::{ImageSpec, TaskError, TaskErrorKind, Usage};

/// Most latents in one call.
const MOST: usize = 16;

/// A denoised sample.
pub(super) struct Finished {
    pub(super) job: Job,
    /// What is drawn.
    pub(super) spec: Arc<ImageSpec>,
    pub(super) pipeline: Arc<Pipeline>,
    /// `[4, h/8, w/8]`, network scale.
    pub(super) latent: Tensor,
    pub(super) usage: Usage,
    pub(super) unwritten: Unwritten,
    /// What it needs once it is decoded.
    pub(super) finishing: Finishing,
    /// The face of another picture that it is, if it is one.
    pub(super) part: Option<Part>,
    /// What side the model draws best, pixels.
    pub(super) side: usize,
}

/// Starts the thread; it ends when the sender is dropped. Faces to be drawn go to `inbox`.
pub(super) fn spawn(
    shared: &Arc<Shared>,
    inbox: Sender<Vec<Part>>,
) -> std::io::Result<(Sender<Finished>, JoinHandle<()>)> {
    let (send, receive) = channel();
    let shared = Arc::clone(shared);
    let thread = thread::Builder::new()
        .name("darkroom-decode".into())
        .spawn(move || run(&shared, &receive, &inbox))?;
    Ok((send, thread))
}

fn run(shared: &Shared, latents: &Receiver<Finished>, inbox: &Sender<Vec<Part>>) {
    let mut waiting: Vec<Finished> = Vec::new();
    loop {
        if waiting.is_empty() {
            match latents.recv() {
                Ok(finished) => waiting.push(finished),
                Err(_) => return,
            }
        }
        waiting.extend(latents.try_iter());
        if shared.is_stopping() {
            return;
        }
        let first = &waiting[0];
        let same = |other: &Finished| {
            Arc::ptr_eq(&other.pipeline, &first.pipeline) && other.latent.dims() == first.latent.dims()
        };
        let count = waiting.iter().take(MOST).take_while(|other| same(other)).count();
        let batch: Vec<Finished> = waiting.drain(..count).collect();
        decode(shared, batch, inbox);
    }
}

fn decode(shared: &Shared, batch: Vec<Finished>, inbox: &Sender<Vec<Part>>) {
    let started = Instant::now();
    let mut items: Vec<(Finished, Option<Picture>)> = batch.into_iter().map(|f| (f, None)).collect();
    let outcome = in_halves(&mut items, &mut |part| {
        let Some((first, _)) = part.first() else { return Ok(()) };
        let latents: Vec<&Tensor> = part.iter().map(|(finished, _)| &finished.latent).collect();
        let decode = std::panic::AssertUnwindSafe(|| first.pipeline.decode(&latents));
        let pictures = std::panic::catch_unwind(decode)
            .unwrap_or_else(|_| Err(PipelineError::NotANumber { index: 0 }))?;
        for ((_, slot), picture) in part.iter_mut().zip(pictures) {
            *slot = Some(picture);
        }
        Ok::<_, PipelineError>(())
    });
    shared.metrics.stage("decode", started.elapsed());
    let seconds = started.elapsed().as_secs_f64() / items.len().max(1) as f64;
    let mut errors: Vec<Option<PipelineError>> = items.iter().map(|_| None).collect();
    for (index, error) in outcome.failed {
        errors[index] = Some(error);
    }
    for ((finished, picture), error) in items.into_iter().zip(errors) {
        let Finished { job, spec, pipeline, mut usage, unwritten, finishing, part, side, .. } = finished;
        // Whoever hears that it is drawn finds the model free.
        drop(pipeline);
        usage.device_seconds += seconds;
        let broken = picture.as_ref().is_some_and(|p| p.data().iter().any(|value| !value.is_finite()));
        let picture = match picture {
            Some(picture) if !broken => Ok(picture),
            _ => Err(match error {
                Some(error) => format!("decoding: {error}"),
                None => "the decoded picture's values are no numbers: the model's VAE is damaged".to_owned(),
            }),
        };
        match (part, picture) {
            (Some(part), picture) => {
                if let Some(whole) = part.done(picture, &usage) {
                    finish(shared, whole);
                }
            }
            (None, Ok(picture)) => {
                let whole = Detailed {
                    job,
                    spec: Arc::clone(&spec),
                    picture,
                    usage,
                    warnings: Vec::new(),
                    unwritten,
                    finishing,
                };
                let Some(detail) = &spec.detail else {
                    finish(shared, whole);
                    continue;
                };
                let started = Instant::now();
                match detail::look(detail, side, whole) {
                    Looked::Nothing(whole) => finish(shared, *whole),
                    // The device ends after this thread.
                    Looked::Parts(parts) => drop(inbox.send(parts)),
                }
                shared.metrics.stage("detect", started.elapsed());
                shared.wake();
            }
            (None, Err(message)) => {
                tracing::error!(task = %job.id.task, index = job.id.index, message, "cannot decode");
                let error = TaskError { kind: TaskErrorKind::Internal, message };
                shared.tell(EngineEvent::Failed { job: job.id, error });
            }
        }
    }
}

/// The last part: what becomes of the background, and the word that a picture is drawn.
pub(super) fn finish(shared: &Shared, whole: Detailed) {
    let Detailed { job, spec, picture, mut usage, warnings: own, unwritten, finishing } = whole;
    let Pixels { rgb, alpha, warnings: more } = finish::pixels(&picture, &spec, &finishing);
    let warnings = finishing.unmatched.into_iter().chain(own).chain(more).collect();
    usage.pixels += (picture.width() * picture.height()) as u64;
    shared.tell(EngineEvent::Drawn(Drawn {
        width: picture.width(),
        height: picture.height(),
        rgb,
        alpha,
        warnings,
        job,
        spec,
        computed: finishing.computed,
        usage,
        unwritten,
    }));
}
