//! A run as a workflow asks for it: from a latent through given sigmas, steered by conditions (ComfyUI's sampling
//! nodes). [`crate::ImageRequest`] is the same in a person's words.

use std::sync::Arc;

use candle_core::Tensor;

use crate::PipelineError;
use crate::condition::Condition;
use crate::lora::LoraSet;
use crate::noise::BatchPosition;
use crate::picture::Mask;
use crate::request::{Limits, PIXELS_PER_CELL};
use crate::sampler::SamplerKind;
use crate::schedule::{MAX_STEPS, ModelSampling};
use crate::speed::Speed;

/// Most changes of one kind that follow one another.
const MAX_PATCHES: usize = 64;

/// One latent to sample.
#[derive(Debug, Clone)]
pub struct LatentRequest {
    /// What it starts from, `[4, h, w]`, in the VAE's units.
    pub latent: Tensor,
    /// Its place in the batch that the node samples: noise is drawn for the whole of it.
    pub position: BatchPosition,
    /// The noise that it starts with; `None`: none is added, and none holds what a mask keeps.
    pub noise: Option<LatentNoise>,
    /// Where to repaint; resized to the latent.
    pub noise_mask: Option<Arc<Mask>>,
    /// Repaints what the mask has most of first, and the rest from step to step (`DifferentialDiffusion`), so strongly,
    /// 0 to 1; `None`: the mask counts alike at every step.
    pub differential: Option<f64>,
    /// How to walk through the sigmas.
    pub sampler: SamplerKind,
    /// Seed of the noise that stochastic samplers add.
    pub step_seed: u64,
    /// Noise levels from first to last. Where the last is not 0, the result keeps its noise. One alone adds noise and
    /// ends; none at all gives the latent back.
    pub sigmas: Vec<f32>,
    /// The noise levels that Brownian step noise is drawn over, where they are more than the run's own.
    pub noise_sigmas: Option<Vec<f32>>,
    /// What to draw.
    pub positive: Vec<Condition>,
    /// What to stay away from; `None`: no guidance (`BasicGuider`), whatever `cfg` says.
    pub negative: Option<Vec<Condition>>,
    /// Classifier-free guidance scale; 1 leaves the negative conditions out.
    pub cfg: f64,
    /// `RescaleCFG`'s multiplier, 0 to 1.
    pub rescale_cfg: Option<f64>,
    /// LoRAs to draw with; all of the pipeline's own making.
    pub loras: Option<Arc<LoraSet>>,
    /// What the network predicts and its noise levels, where a node says otherwise than the model
    /// (`ModelSamplingDiscrete`, `ModelSamplingSD3`, `ModelSamplingAuraFlow`).
    pub sampling: Option<Arc<ModelSampling>>,
    /// Strengths of `CFGNorm`, 0 to 100, one after the other: guidance makes no cell's prediction longer than the
    /// prompt's, and then it is multiplied by the strength.
    pub cfg_norms: Vec<f64>,
    /// `[b1, b2, s1, s2]` of each `FreeU_V2`, one after the other.
    pub free_u: Vec<[f64; 4]>,
    /// What is given up for speed.
    pub speed: Speed,
}

/// Noise that a latent starts with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LatentNoise {
    /// Its seed; the low 32 bits count.
    pub seed: u64,
    /// The latent's own number in a batch that keeps numbers (`batch_index` of a `LATENT`); `None`: its slice of the
    /// draw for the batch that it is sampled in.
    pub batch_index: Option<usize>,
}

impl LatentRequest {
    /// Checks every bound but the conditions'; the error names the field and what it may be.
    pub(crate) fn validate(&self, limits: &Limits, channels: usize) -> Result<(), PipelineError> {
        let refuse = |field: &'static str, message: String| Err(PipelineError::Request { field, message });
        let &[own, height, width] = self.latent.dims() else {
            return refuse("latent", format!("has shape {:?}, must be [channels, h, w]", self.latent.dims()));
        };
        if own != channels || height == 0 || width == 0 {
            return refuse(
                "latent",
                format!("has shape [{own}, {height}, {width}], must be [{channels}, h, w]"),
            );
        }
        let most = limits.side.end() / PIXELS_PER_CELL;
        let cells = limits.pixels / (PIXELS_PER_CELL * PIXELS_PER_CELL);
        if height > most || width > most || height * width > cells {
            return refuse(
                "latent",
                format!(
                    "has {height} rows and {width} columns; {most} each way and {cells} cells are the most"
                ),
            );
        }
        if self.position.index >= self.position.size {
            return refuse("position", "the index must be below the batch's size".into());
        }
        if self.sigmas.len() > MAX_STEPS + 1 {
            return refuse(
                "sigmas",
                format!("are {}, at most {} are possible", self.sigmas.len(), MAX_STEPS + 1),
            );
        }
        if !limits.cfg.contains(&self.cfg) {
            return refuse("cfg", format!("must be {} to {}", limits.cfg.start(), limits.cfg.end()));
        }
        if self.rescale_cfg.is_some_and(|multiplier| !(0.0..=1.0).contains(&multiplier)) {
            return refuse("rescale_cfg", "must be 0 to 1".into());
        }
        if !self.cfg_norms.iter().all(|strength| (0.0..=100.0).contains(strength)) {
            return refuse("cfg_norms", "must be 0 to 100 each".into());
        }
        if !self.free_u.iter().flatten().all(|scale| (0.0..=10.0).contains(scale)) {
            return refuse("free_u", "must be 0 to 10 each".into());
        }
        if self.cfg_norms.len() > MAX_PATCHES || self.free_u.len() > MAX_PATCHES {
            return refuse("free_u", format!("and cfg_norms are at most {MAX_PATCHES} each"));
        }
        self.speed.validate(self.sampler)
    }
}
