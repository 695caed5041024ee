//! Weights on loan: workflows encode prompts, decode latents and prepare samples on threads of their own, with weights
//! that the device's thread keeps. What is borrowed is not put out for others while it is held. Called from threads
//! that may block.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use darkroom_models::controlnet::ControlNet;
use darkroom_models::face_detector::FaceDetector;
use darkroom_models::matting::BackgroundRemover;
use darkroom_models::upscaler::Upscaler;
use darkroom_pipelines::{LoraSet, Pipeline};
use tokio_util::sync::CancellationToken;

use super::denoise::LOOK;
use super::{Control, Engine};
use crate::task::LoraSpec;

/// How long somebody waits for room before nothing new is started that keeps it from him.
const ROOM_PATIENCE: Duration = Duration::from_secs(3);

/// Why there is nothing to borrow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BorrowError {
    /// It is not there, or cannot be used.
    #[error("{0}")]
    Unavailable(String),
    /// The caller was told to stop.
    #[error("interrupted")]
    Interrupted,
    /// The engine has stopped.
    #[error("the server is stopping")]
    Stopped,
}

/// What somebody wants to work with.
#[derive(Debug, Clone)]
pub(super) enum Wish {
    Model(Arc<str>),
    Loras { model: Arc<str>, loras: Vec<LoraSpec> },
    ControlNet { model: Arc<str>, id: String },
    Detector(String),
    Remover(String),
    Upscaler(String),
}

/// The same, there.
pub(super) enum Lent {
    Model(Arc<Pipeline>),
    Loras(Arc<LoraSet>),
    ControlNet(Arc<ControlNet>),
    Detector(Arc<FaceDetector>),
    Remover(Arc<BackgroundRemover>),
    Upscaler(Arc<Upscaler>),
}

/// Somebody who waits for it.
pub(super) struct Lending {
    pub(super) wish: Wish,
    pub(super) since: Instant,
    pub(super) stop: CancellationToken,
    pub(super) reply: Sender<Result<Lent, BorrowError>>,
}

impl Lending {
    /// The model that it needs to be there.
    pub(super) fn model(&self) -> Option<&Arc<str>> {
        match &self.wish {
            Wish::Model(model) | Wish::Loras { model, .. } | Wish::ControlNet { model, .. } => Some(model),
            Wish::Detector(_) | Wish::Remover(_) | Wish::Upscaler(_) => None,
        }
    }

    /// Whether it has waited so long that nothing new should keep it waiting.
    pub(super) fn is_late(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= ROOM_PATIENCE
    }
}

macro_rules! lent {
    ($self:ident, $wish:expr, $stop:ident, $variant:ident) => {
        match $self.borrow($wish, $stop)? {
            Lent::$variant(value) => Ok(value),
            _ => Err(BorrowError::Unavailable("something else was lent; the log has more".into())),
        }
    };
}

/// All of these wait until it is there, and end early when `stop` is cancelled.
///
/// # Errors
/// When it cannot be had, with the reason in words for the client.
impl Engine {
    /// A model, by its id in the catalog.
    pub fn borrow_model(&self, model: &str, stop: &CancellationToken) -> Result<Arc<Pipeline>, BorrowError> {
        let there = self.shared.lock().resident.get(model).and_then(std::sync::Weak::upgrade);
        if let Some(pipeline) = there {
            return Ok(pipeline);
        }
        lent!(self, Wish::Model(model.into()), stop, Model)
    }

    /// A stack of LoRAs, bound to a model; `None` for none.
    pub fn borrow_loras(
        &self,
        model: &str,
        loras: &[LoraSpec],
        stop: &CancellationToken,
    ) -> Result<Option<Arc<LoraSet>>, BorrowError> {
        if loras.is_empty() {
            return Ok(None);
        }
        let wish = Wish::Loras { model: model.into(), loras: loras.to_vec() };
        lent!(self, wish, stop, Loras).map(Some)
    }

    /// A ControlNet, shaped for a model.
    pub fn borrow_control_net(
        &self,
        model: &str,
        id: &str,
        stop: &CancellationToken,
    ) -> Result<Arc<ControlNet>, BorrowError> {
        lent!(self, Wish::ControlNet { model: model.into(), id: id.to_owned() }, stop, ControlNet)
    }

    /// A network that finds faces.
    pub fn borrow_detector(
        &self,
        id: &str,
        stop: &CancellationToken,
    ) -> Result<Arc<FaceDetector>, BorrowError> {
        lent!(self, Wish::Detector(id.to_owned()), stop, Detector)
    }

    /// A network that takes backgrounds out.
    pub fn borrow_remover(
        &self,
        id: &str,
        stop: &CancellationToken,
    ) -> Result<Arc<BackgroundRemover>, BorrowError> {
        lent!(self, Wish::Remover(id.to_owned()), stop, Remover)
    }

    /// A network that enlarges pictures.
    pub fn borrow_upscaler(&self, id: &str, stop: &CancellationToken) -> Result<Arc<Upscaler>, BorrowError> {
        lent!(self, Wish::Upscaler(id.to_owned()), stop, Upscaler)
    }

    fn borrow(&self, wish: Wish, stop: &CancellationToken) -> Result<Lent, BorrowError> {
        let (reply, answer) = channel();
        let lending = Lending { wish, since: Instant::now(), stop: stop.clone(), reply };
        {
            let mut state = self.shared.lock();
            // Samples that are prepared with what the first device lends may be denoised by any: all are of one kind.
            let Some(controls) = state.controls.first_mut() else { return Err(BorrowError::Stopped) };
            controls.push(Control::Lend(lending));
            self.shared.changed.notify_all();
        }
        loop {
            if stop.is_cancelled() {
                return Err(BorrowError::Interrupted);
            }
            match answer.recv_timeout(LOOK) {
                Ok(result) => return result,
                Err(RecvTimeoutError::Timeout) if !self.shared.is_stopping() => {}
                // The device drops wishes that are no longer wanted, and may see that first.
                Err(_) if stop.is_cancelled() => return Err(BorrowError::Interrupted),
                Err(_) => return Err(BorrowError::Stopped),
            }
        }
    }
}
