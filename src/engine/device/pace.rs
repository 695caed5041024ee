//! How far the host runs ahead of a GPU, which works on what it is handed later. One step: the GPU always has the next
//! one to go on with, and no more is settled than that, so that samples join and leave at every step boundary.

use candle_core::Device;
use darkroom_models::device::{self, Mark};

/// The ends of the steps that a device has not been waited for.
pub(super) struct Pace {
    device: Device,
    last: Option<Mark>,
}

impl Pace {
    /// Of a device that has nothing to do.
    pub(super) fn new(device: Device) -> Self {
        Self { device, last: None }
    }

    /// A step was handed over: returns when the one before it is done. A CPU has done both.
    pub(super) fn keep(&mut self) {
        let mark = device::mark(&self.device);
        if let Some(before) = self.last.take()
            && let Err(error) = before.wait()
        {
            // Whoever reads the step's result fails, and says so.
            tracing::error!(%error, "the device failed");
        }
        self.last = mark.ok();
    }
}
