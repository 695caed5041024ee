//! One picture, completely: with the same model, a spec always draws the same picture. Everything a client left
//! open (seed, steps, sampler, …) has been decided by the time there is a spec.

use darkroom_pipelines::{FlowShift, Speed};
use serde::{Deserialize, Serialize};

use super::{Background, BlobId, ControlSpec, DetailSpec, LoraSpec};

/// One picture to draw.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageSpec {
    /// The model's id in the catalog.
    pub model: String,
    /// What to draw, ComfyUI's prompt syntax.
    pub prompt: String,
    /// What to stay away from.
    pub negative_prompt: String,
    /// Pixels in a row, a multiple of 8.
    pub width: usize,
    /// Rows of pixels, a multiple of 8.
    pub height: usize,
    /// Sampling steps.
    pub steps: usize,
    /// Classifier-free guidance scale.
    pub cfg: f64,
    /// ComfyUI's name of the sampler.
    pub sampler: String,
    /// ComfyUI's name of the scheduler.
    pub scheduler: String,
    /// Seed of the noise.
    pub seed: u64,
    /// Share of the schedule that runs; 1 without a source.
    pub denoise: f64,
    /// Text-encoder layer from the end; `None`: the model's own.
    pub clip_skip: Option<usize>,
    /// What to start from.
    pub source: SourceSpec,
    /// LoRAs, applied in this order.
    #[serde(default)]
    pub loras: Vec<LoraSpec>,
    /// ControlNets; their effects add up.
    #[serde(default)]
    pub controls: Vec<ControlSpec>,
    /// What is given up for speed.
    #[serde(default)]
    pub speed: Speed,
    /// How far noise levels are moved up, of models that predict a flow; `None`: the model's own.
    #[serde(default)]
    pub shift: Option<FlowShift>,
    /// Faces drawn once more, larger.
    #[serde(default)]
    pub detail: Option<DetailSpec>,
    /// What becomes of the background.
    #[serde(default)]
    pub background: Background,
    /// How the file is written.
    pub format: ImageFormat,
    /// Whether the file carries these settings.
    pub metadata: bool,
    /// What this picture is among its task's, for people: an expression's name.
    pub label: Option<String>,
    /// Its place in the expression bank, where it may be taken from there and is kept there.
    pub bank: Option<BankRef>,
}

/// A place in the expression bank.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BankRef {
    /// 64 hexadecimal digits: a digest of owner, character, tag, style, size, model and format.
    pub key: String,
    /// Whose picture it is, for invalidation.
    pub character: String,
}

/// What a picture starts from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum SourceSpec {
    /// Noise alone.
    Empty,
    /// A picture, scaled and cut to the spec's size.
    Image {
        /// The uploaded picture.
        image: BlobId,
        /// The part to repaint, if not all.
        inpaint: Option<Inpaint>,
    },
}

/// Which part of a source is repainted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Inpaint {
    /// The uploaded mask, white where to repaint; `None`: the picture's transparent areas.
    pub mask: Option<BlobId>,
    /// `Some(pixels)`: blank the masked part first and grow the mask so far (ComfyUI's `VAEEncodeForInpaint`);
    /// `None`: the mask only steers the noise (`SetLatentNoiseMask`).
    pub fill_grow: Option<usize>,
}

/// How a picture is written to a file.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ImageFormat {
    /// Lossless.
    Png,
    /// WebP without a quality is lossless.
    Webp {
        /// 1 to 100.
        quality: Option<u8>,
    },
    /// JPEG.
    Jpeg {
        /// 1 to 100.
        quality: u8,
    },
}

impl ImageFormat {
    /// The media type.
    pub fn mime(self) -> &'static str {
        match self {
            Self::Png => "image/png",
            Self::Webp { .. } => "image/webp",
            Self::Jpeg { .. } => "image/jpeg",
        }
    }

    /// The usual file name extension.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Webp { .. } => "webp",
            Self::Jpeg { .. } => "jpg",
        }
    }
}

impl ImageSpec {
    /// The kept pictures that it needs.
    pub fn blobs(&self) -> impl Iterator<Item = &BlobId> {
        let (image, mask) = match &self.source {
            SourceSpec::Empty => (None, None),
            SourceSpec::Image { image, inpaint } => {
                (Some(image), inpaint.as_ref().and_then(|inpaint| inpaint.mask.as_ref()))
            }
        };
        image.into_iter().chain(mask).chain(self.controls.iter().map(|control| &control.image))
    }

    /// Steps that will be counted for this picture before the sampler has said otherwise.
    pub fn expected_steps(&self) -> usize {
        self.steps
    }
}
