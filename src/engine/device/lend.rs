//! Weights for whoever works beside the device's thread.

use std::sync::Arc;
use std::time::Instant;

use darkroom_pipelines::Pipeline;

use super::DeviceThread;
use crate::engine::borrow::{BorrowError, Lent, Wish};
use crate::engine::residency::Want;
use crate::task::TaskError;

impl DeviceThread {
    /// Gives what is there to who waits for it, and has the rest loaded.
    pub(super) fn lend(&mut self) {
        let now = Instant::now();
        for lending in std::mem::take(&mut self.lending) {
            if lending.stop.is_cancelled() {
                continue;
            }
            match self.lent(&lending.wish, now).transpose() {
                // Whoever asked may have gone.
                Some(answer) => drop(lending.reply.send(answer)),
                None => self.lending.push(lending),
            }
        }
    }

    /// Whether somebody has waited for room for so long that nothing new should be started.
    pub(super) fn lends_late(&self, now: Instant) -> bool {
        self.lending.iter().any(|lending| {
            let missing = lending.model().is_some_and(|model| self.weights.get(model).is_none());
            missing && lending.is_late(now) && !lending.stop.is_cancelled()
        })
    }

    fn lent(&mut self, wish: &Wish, now: Instant) -> Result<Option<Lent>, BorrowError> {
        match wish {
            Wish::Model(model) => Ok(self.model(model, now)?.map(Lent::Model)),
            Wish::Loras { model, loras } => {
                let Some(pipeline) = self.model(model, now)? else { return Ok(None) };
                let set = self.companions.lora_set(model, &pipeline, loras, now).map_err(refused)?;
                Ok(set.map(Lent::Loras))
            }
            Wish::ControlNet { model, id } => {
                let Some(pipeline) = self.model(model, now)? else { return Ok(None) };
                let network = self.companions.control_net(model, &pipeline, id, now).map_err(refused)?;
                Ok(network.map(|(network, _)| Lent::ControlNet(network)))
            }
            Wish::Detector(id) => Ok(self.companions.detector(id, now).map_err(refused)?.map(Lent::Detector)),
            Wish::Remover(id) => Ok(self.companions.remover(id, now).map_err(refused)?.map(Lent::Remover)),
            Wish::Upscaler(id) => Ok(self.companions.upscaler(id, now).map_err(refused)?.map(Lent::Upscaler)),
        }
    }

    /// A model, if it is there; else it is asked for.
    fn model(&mut self, model: &Arc<str>, now: Instant) -> Result<Option<Arc<Pipeline>>, BorrowError> {
        let needed = self.needed_models();
        match self.want(model, &needed, now) {
            Want::Resident => {
                self.weights.used(model, now);
                Ok(self.weights.get(model).map(|resident| Arc::clone(&resident.pipeline)))
            }
            Want::Loading | Want::NeedsRoom => Ok(None),
            Want::Never(message) => Err(BorrowError::Unavailable(message)),
        }
    }
}

fn refused(error: TaskError) -> BorrowError {
    BorrowError::Unavailable(error.message)
}
