//! What a caller asks of a pipeline, and the bounds it must keep.

use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::PipelineError;
use crate::control::Control;
use crate::lora::LoraSet;
use crate::noise::BatchPosition;
use crate::picture::{Mask, Picture};
use crate::prompt::PromptLimits;
use crate::sampler::SamplerKind;
use crate::schedule::{self, Scheduler};
use crate::speed::Speed;

/// Pixels a side of one latent cell: what width and height must be multiples of.
pub const PIXELS_PER_CELL: usize = 8;

/// Most tokens of a prompt for Qwen-Image: as many as it was trained with. What is beyond is left out, as diffusers does.
const QWEN_TOKENS: usize = 1024;

/// Largest shift of a flow's noise levels, as ComfyUI's nodes have it.
const MAX_SHIFT: f64 = 100.0;

/// One picture to draw.
#[derive(Debug, Clone)]
pub struct ImageRequest {
    /// What to draw, in ComfyUI's prompt syntax.
    pub prompt: String,
    /// What to stay away from; empty is a valid negative prompt.
    pub negative_prompt: String,
    /// Denoising steps, as the scheduler counts them.
    pub steps: usize,
    /// Classifier-free guidance scale; exactly 1 skips the negative prompt.
    pub cfg: f64,
    /// How to walk from noise to picture.
    pub sampler: SamplerKind,
    /// Where the steps lie.
    pub scheduler: Scheduler,
    /// Seed of the noise.
    pub seed: u64,
    /// The picture's place in a ComfyUI batch drawn from one seed; `BatchPosition::ALONE` otherwise.
    pub position: BatchPosition,
    /// Share of the schedule to run: 1 draws from pure noise, less keeps some of the source.
    pub denoise: f64,
    /// Text-encoder layers to leave out, counted as ComfyUI's `stop_at_clip_layer` without its sign;
    /// `None` is the model's own choice.
    pub clip_skip: Option<usize>,
    /// What to start from.
    pub source: Source,
    /// LoRAs to draw with; all of a pipeline's own making.
    pub loras: Option<Arc<LoraSet>>,
    /// ControlNets; their effects add up.
    pub controls: Vec<Control>,
    /// What is given up for speed.
    pub speed: Speed,
    /// How far noise levels are moved up, of models that predict a flow (Qwen-Image); `None` is the model's own.
    pub shift: Option<FlowShift>,
}

/// How far a flow's noise levels are moved up.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FlowShift {
    /// So far for every size (`ModelSamplingAuraFlow`), above 0.
    Fixed(f64),
    /// The further the larger the picture is, by diffusers' rule for Qwen-Image; steps are evenly spread, whatever the
    /// scheduler.
    Dynamic,
}

impl FlowShift {
    /// Where a request does not say: what the authors of Qwen-Image's few-step LoRAs, and ComfyUI's own workflows, draw with.
    pub const OWN: Self = Self::Fixed(3.0);

    /// The exponent by which [`FlowShift::Dynamic`] moves noise levels of a picture of so many pixels up.
    pub fn exponent(width: usize, height: usize) -> f64 {
        // Tokens are patches of two by two cells.
        let side = |pixels: usize| (pixels / PIXELS_PER_CELL).div_ceil(2);
        schedule::dynamic_shift(side(width) * side(height))
    }
}

/// What a picture starts from.
#[derive(Debug, Clone)]
pub enum Source {
    /// Nothing: text to image.
    Empty {
        /// Pixels, a multiple of 8.
        width: usize,
        /// Pixels, a multiple of 8.
        height: usize,
    },
    /// A picture: image to image. Sides are cut to multiples of 8.
    Image(Arc<Picture>),
    /// A picture of which the masked part is drawn anew.
    Inpaint {
        /// The picture.
        picture: Arc<Picture>,
        /// 1 where to repaint; resized to the picture.
        mask: Arc<Mask>,
        /// What the network sees under the mask.
        mode: InpaintMode,
    },
}

/// What the network sees under the mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InpaintMode {
    /// The picture itself (`VAEEncode` + `SetLatentNoiseMask`): for changes at denoise < 1.
    NoiseMask,
    /// Grey (`VAEEncodeForInpaint`), with the mask grown by a box of this many pixels: for replacing.
    Fill {
        /// Side of the box.
        grow: usize,
    },
}

/// Bounds that every request must keep.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Pixels a side.
    pub side: RangeInclusive<usize>,
    /// Pixels in all.
    pub pixels: usize,
    /// Denoising steps.
    pub steps: RangeInclusive<usize>,
    /// Guidance scale.
    pub cfg: RangeInclusive<f64>,
    /// Length of each prompt.
    pub prompt: PromptLimits,
    /// The same of Qwen-Image, in tokens behind its template's beginning.
    pub qwen_tokens: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            side: 16..=8192,
            pixels: 4096 * 4096,
            steps: 1..=1000,
            cfg: 0.0..=100.0,
            prompt: PromptLimits::default(),
            qwen_tokens: QWEN_TOKENS,
        }
    }
}

impl ImageRequest {
    /// Checks every bound but the prompts' (encoding checks those); the error names the field and what it may be.
    pub fn validate(&self, limits: &Limits) -> Result<(), PipelineError> {
        let refuse = |field: &'static str, message: String| Err(PipelineError::Request { field, message });
        if !limits.steps.contains(&self.steps) {
            return refuse("steps", format!("must be {} to {}", limits.steps.start(), limits.steps.end()));
        }
        if !limits.cfg.contains(&self.cfg) {
            return refuse("cfg", format!("must be {} to {}", limits.cfg.start(), limits.cfg.end()));
        }
        if !(0.0..=1.0).contains(&self.denoise) {
            return refuse("denoise", "must be 0 to 1".into());
        }
        if self.clip_skip == Some(0) {
            return refuse("clip_skip", "counts from 1 (the last layer)".into());
        }
        if self.position.index >= self.position.size {
            return refuse("position", "the index must be below the batch's size".into());
        }
        if let Some(FlowShift::Fixed(shift)) = self.shift
            && !(shift > 0.0 && shift <= MAX_SHIFT)
        {
            return refuse("shift", format!("must be above 0, up to {MAX_SHIFT}"));
        }
        self.controls.iter().try_for_each(Control::validate)?;
        self.speed.validate(self.sampler)?;
        self.validate_size(limits)
    }

    fn validate_size(&self, limits: &Limits) -> Result<(), PipelineError> {
        let (width, height) = self.source.size();
        for (field, side) in [("width", width), ("height", height)] {
            if !limits.side.contains(&side) {
                let message = format!("is {side}, must be {} to {}", limits.side.start(), limits.side.end());
                return Err(PipelineError::Request { field, message });
            }
            if side % PIXELS_PER_CELL != 0 {
                let below = side / PIXELS_PER_CELL * PIXELS_PER_CELL;
                let message = format!(
                    "is {side}, must be a multiple of {PIXELS_PER_CELL}: {below} or {}",
                    below + PIXELS_PER_CELL
                );
                return Err(PipelineError::Request { field, message });
            }
        }
        if width * height > limits.pixels {
            let message = format!("{width}x{height} has more than {} pixels", limits.pixels);
            return Err(PipelineError::Request { field: "width", message });
        }
        Ok(())
    }
}

impl Source {
    /// Width and height of the picture that will come out.
    pub fn size(&self) -> (usize, usize) {
        match self {
            Self::Empty { width, height } => (*width, *height),
            Self::Image(picture) | Self::Inpaint { picture, .. } => (
                picture.width() / PIXELS_PER_CELL * PIXELS_PER_CELL,
                picture.height() / PIXELS_PER_CELL * PIXELS_PER_CELL,
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> ImageRequest {
        ImageRequest {
            prompt: "a cube".into(),
            negative_prompt: String::new(),
            steps: 20,
            cfg: 7.0,
            sampler: SamplerKind::Euler,
            scheduler: Scheduler::Normal,
            seed: 1,
            position: BatchPosition::ALONE,
            denoise: 1.0,
            clip_skip: None,
            source: Source::Empty { width: 128, height: 64 },
            loras: None,
            controls: Vec::new(),
            speed: Speed::default(),
            shift: None,
        }
    }

    fn refused_field(change: impl FnOnce(&mut ImageRequest)) -> &'static str {
        let mut request = request();
        change(&mut request);
        match request.validate(&Limits::default()) {
            Err(PipelineError::Request { field, .. }) => field,
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    #[test]
    fn a_plain_request_is_accepted() {
        request().validate(&Limits::default()).unwrap();
    }

    #[test]
    fn each_value_out_of_range_is_refused_by_its_field_name() {
        assert_eq!(refused_field(|r| r.steps = 0), "steps");
        assert_eq!(refused_field(|r| r.cfg = f64::NAN), "cfg");
        assert_eq!(refused_field(|r| r.denoise = 7.0), "denoise");
        assert_eq!(refused_field(|r| r.denoise = f64::NAN), "denoise");
        assert_eq!(refused_field(|r| r.clip_skip = Some(0)), "clip_skip");
        assert_eq!(refused_field(|r| r.position = BatchPosition { index: 2, size: 2 }), "position");
        assert_eq!(refused_field(|r| r.source = Source::Empty { width: 64, height: 100 }), "height");
        assert_eq!(refused_field(|r| r.source = Source::Empty { width: 8200, height: 64 }), "width");
        assert_eq!(refused_field(|r| r.source = Source::Empty { width: 8192, height: 8192 }), "width");
    }

    #[test]
    fn an_uneven_size_names_the_nearest_valid_ones() {
        let mut request = request();
        request.source = Source::Empty { width: 130, height: 64 };
        let error = request.validate(&Limits::default()).unwrap_err().to_string();
        assert!(error.contains("128 or 136"), "{error}");
    }
}
