//! ControlNets as a sample has them: which network, the picture that steers it, how strongly and when.

use std::ops::RangeInclusive;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use darkroom_models::controlnet::ControlNet;

use crate::PipelineError;
use crate::picture::Picture;
use crate::preprocess::resize;
use crate::schedule::ModelSampling;

/// A ControlNet with its picture.
#[derive(Debug, Clone)]
pub struct Control {
    /// The network.
    pub network: Arc<ControlNet>,
    /// The picture as the network sees it at every step, `[h/8, w/8, c]`: [`Control::embed`] makes it.
    pub hint: Tensor,
    /// What its residuals are multiplied by.
    pub strength: f64,
    /// Share of the schedule at which it begins (ComfyUI's `start_percent`).
    pub start: f64,
    /// Share of the schedule at which it ends.
    pub end: f64,
}

impl Control {
    /// The picture, brought to `width × height` pixels as ComfyUI does it and embedded: once for all steps.
    pub fn embed(
        network: &ControlNet,
        picture: &Picture,
        width: usize,
        height: usize,
        device: &Device,
    ) -> Result<Tensor, PipelineError> {
        let hint = resize::hint(picture, width, height);
        let pixels = Tensor::from_slice(hint.data(), (1, height, width, 3), device)?;
        let pixels = pixels.permute((0, 3, 1, 2))?.contiguous()?;
        Ok(network.embed_hint(&pixels)?.get(0)?)
    }

    /// Checks that the numbers are some that ComfyUI takes.
    pub(crate) fn validate(&self) -> Result<(), PipelineError> {
        let refuse =
            |message: &str| Err(PipelineError::Request { field: "controls", message: message.into() });
        if !self.strength.is_finite() || self.strength.abs() > 100.0 {
            return refuse("strength must be a number within 100");
        }
        if !(0.0..=1.0).contains(&self.start) || !(0.0..=1.0).contains(&self.end) || self.start > self.end {
            return refuse("start and end must be 0 to 1, and start not after end");
        }
        Ok(())
    }

    /// The noise levels at which it acts.
    pub(crate) fn sigmas(&self, sampling: &ModelSampling) -> RangeInclusive<f32> {
        sampling.percent_to_sigma(self.end)..=sampling.percent_to_sigma(self.start)
    }
}

/// A control of a sample, with the noise levels at which it acts.
#[derive(Debug, Clone)]
pub(crate) struct ActiveControl {
    pub(crate) control: Control,
    pub(crate) sigmas: RangeInclusive<f32>,
}

impl ActiveControl {
    /// Whether it does anything at a noise level.
    pub(crate) fn acts_at(&self, sigma: f32) -> bool {
        self.control.strength != 0.0 && self.sigmas.contains(&sigma)
    }
}
