//! A loaded model and the four stages of a picture: encode, prepare, denoise, decode.
//!
//! The stages are separate calls so that a scheduler can batch each over many requests; [`Pipeline::denoise`]
//! is the simplest such scheduler, enough for one caller with a list of requests.

mod encode;
mod latent;
mod load;
mod loras;
mod memory;
mod options;
mod plan;
mod text;
mod vae;

use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use darkroom_models::ComputeType;
use darkroom_models::checkpoint::{ModelKind, Part};
use darkroom_models::clip::HiddenLayer;
use darkroom_models::unet::UNet2DConditionModel;

use crate::PipelineError;
use crate::autoencoder::{Autoencoder, LatentFormat};
use crate::condition::Placed;
use crate::conditioning::{self, Conditioning};
use crate::control::ActiveControl;
use crate::denoise::{Denoiser, StepWork};
use crate::guidance::Guidance;
use crate::lora::LoraSet;
use crate::network::Network;
use crate::noise::initial_noise;
use crate::picture::{Mask, Picture};
use crate::prompt::EmbeddingSource;
use crate::request::{ImageRequest, InpaintMode, Limits, PIXELS_PER_CELL, Source};
use crate::sample::Sample;
use crate::schedule::ModelSampling;
use crate::text_encoders::TextEncoders;
use latent::{FlowRun, Run};
use loras::KeptWeights;
pub use loras::Rounding;
pub use options::LoadOptions;
pub use plan::{MemoryPlan, Placement, PlannedPart};

/// A text-to-image model, resident and ready. Cloning one shares its weights.
#[derive(Clone)]
pub struct Pipeline {
    kind: ModelKind,
    device: Device,
    /// Where the VAE is: the same device, but decoding goes on beside denoising there.
    vae_device: Device,
    /// The file or folder, for errors.
    origin: Arc<str>,
    text: TextEncoders,
    network: Option<Network>,
    /// What the networks took from the file, for LoRAs.
    kept: Arc<KeptWeights>,
    /// The LoRAs that are in the network's weights.
    merged: Option<Arc<LoraSet>>,
    vae: Option<Autoencoder>,
    latent_format: LatentFormat,
    sampling: ModelSampling,
    limits: Limits,
    /// What `embedding:name` in prompts may name.
    embeddings: Option<Arc<dyn EmbeddingSource>>,
    compute_type: ComputeType,
    activation_budget: usize,
    weight_bytes: u64,
}

/// A prompt as the text encoders take it: equal ones have equal conditioning.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PromptText {
    /// Which hidden state counts.
    layer: HiddenLayer,
    /// The set of LoRAs that the text encoders read it with, by its name.
    loras: Option<Arc<str>>,
    /// ComfyUI's prompt syntax.
    text: String,
}

/// A prompt to encode.
#[derive(Debug, Clone, Copy)]
pub struct WantedPrompt<'a> {
    /// The name of its field, for errors.
    pub field: &'static str,
    /// The prompt.
    pub prompt: &'a PromptText,
    /// The LoRAs of its request.
    pub loras: Option<&'a Arc<LoraSet>>,
}

/// The prompts of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestPrompts {
    /// What to draw.
    pub positive: PromptText,
    /// What to stay away from, where guidance uses it.
    pub negative: Option<PromptText>,
}

impl RequestPrompts {
    /// Each prompt with the name of its field.
    pub fn fields(&self) -> impl Iterator<Item = (&'static str, &PromptText)> {
        let negative = self.negative.as_ref().map(|prompt| ("negative_prompt", prompt));
        std::iter::once(("prompt", &self.positive)).chain(negative)
    }
}

/// A source as the network sees it.
#[derive(Debug, Clone)]
pub struct SourceLatent {
    /// `[channels, h/8, w/8]`, network scale.
    latent: Tensor,
    /// Where to repaint.
    mask: Option<Mask>,
}

/// What [`Pipeline::denoise`] tells after each network call.
#[derive(Debug)]
pub struct StepReport<'a> {
    /// Which samples the call advanced.
    pub advanced: &'a [usize],
    /// `(steps done, steps in all)` of each of those.
    pub progress: &'a [(usize, usize)],
    /// What went through the networks.
    pub work: StepWork,
    /// How long the call took.
    pub elapsed: Duration,
}

impl Pipeline {
    fn missing(&self, part: Part) -> PipelineError {
        PipelineError::MissingPart { origin: self.origin.to_string(), part }
    }

    fn network(&self) -> Result<&Network, PipelineError> {
        let part = if self.kind == ModelKind::QwenImage { Part::Transformer } else { Part::UNet };
        self.network.as_ref().ok_or_else(|| self.missing(part))
    }

    /// The UNet, for what only UNets can.
    fn unet(&self) -> Result<&UNet2DConditionModel, PipelineError> {
        self.network()?.unet().ok_or_else(|| PipelineError::Unsupported {
            origin: self.origin.to_string(),
            kind: self.kind,
            what: "ControlNets, FreeU and step caching",
        })
    }

    fn vae(&self) -> Result<&Autoencoder, PipelineError> {
        self.vae.as_ref().ok_or_else(|| self.missing(Part::Vae))
    }

    /// Channels of its latents.
    pub fn latent_channels(&self) -> usize {
        self.network.as_ref().map_or(self.latent_format.channels(), Network::latent_channels)
    }

    /// The same with other bounds on requests.
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The same with embeddings for prompts to name.
    pub fn with_embeddings(mut self, source: Arc<dyn EmbeddingSource>) -> Self {
        self.embeddings = Some(source);
        self
    }

    /// The model's family.
    pub fn kind(&self) -> ModelKind {
        self.kind
    }

    /// Checks `requests`, encodes their prompts together (each distinct one once) and gives each its noise:
    /// samples that [`Self::denoise`] can run.
    pub fn prepare(&self, requests: &[ImageRequest]) -> Result<Vec<Sample>, PipelineError> {
        for request in requests {
            request.validate(&self.limits)?;
        }
        let conditionings = self.encode(requests)?;
        let mut sources: Vec<(&Source, SourceLatent)> = Vec::new();
        requests
            .iter()
            .zip(conditionings)
            .map(|(request, (positive, negative))| {
                let source = match sources.iter().find(|(known, _)| known.same_as(&request.source)) {
                    Some((_, latent)) => latent.clone(),
                    None => {
                        let latent = self.encode_source(&request.source)?;
                        sources.push((&request.source, latent.clone()));
                        latent
                    }
                };
                self.start(request, positive, negative, &source)
            })
            .collect()
    }

    /// Puts the source at the schedule's first noise level and starts the sampler. `positive` and `negative` are
    /// the request's [`Self::prompts`], encoded; `source` is its source, encoded.
    pub fn start(
        &self,
        request: &ImageRequest,
        positive: Conditioning,
        negative: Option<Conditioning>,
        source: &SourceLatent,
    ) -> Result<Sample, PipelineError> {
        request.validate(&self.limits)?;
        let (width, height) = request.source.size();
        self.check_family(request)?;
        let size_ids = self.text.is_sdxl().then(|| conditioning::size_ids(width, height));
        let cells = (height / PIXELS_PER_CELL, width / PIXELS_PER_CELL);
        let FlowRun { sampling, sigmas } = self.flow_run(request, cells)?;
        let sampling_or_own = sampling.as_deref().unwrap_or(&self.sampling);
        let controls: Vec<ActiveControl> = request
            .controls
            .iter()
            .map(|control| ActiveControl {
                control: control.clone(),
                sigmas: control.sigmas(sampling_or_own),
            })
            .collect();
        let everywhere = |text| Placed::everywhere(text, size_ids, controls.clone());
        let guidance = Guidance {
            positive: vec![everywhere(positive)],
            negative: negative.map(|negative| vec![everywhere(negative)]),
            scale: request.cfg,
            interval: request.speed.guidance_interval.and_then(|interval| interval.sigmas(sampling_or_own)),
            rescale: None,
            velocity_norm: self.kind == ModelKind::QwenImage,
            cfg_norms: Vec::new(),
            loras: request.loras.clone(),
            sampling: sampling.clone(),
            free_u: Vec::new(),
        };
        let SourceLatent { latent, mask } = source.clone();
        let noise = initial_noise(request.seed, request.position, latent.dims(), &self.device)?;
        let run = Run {
            latent,
            noise: Some(noise),
            mask: mask.as_ref(),
            differential: None,
            sampler: request.sampler,
            step_seed: request.seed,
            position: request.position,
            sigmas: &sigmas,
            noise_sigmas: None,
            step_cache: request.speed.step_cache,
        };
        self.begin(run, guidance)
    }

    /// Advances every unfinished sample of `batch` by one network evaluation. All must have the same latent shape; in
    /// one call, but for conditions with areas and samples with several conditions, whose calls have no more rows than
    /// two for each sample, and for step caching, where rows on kept features go in a call of their own. When the network call fails, no sample has moved.
    pub fn step(&self, batch: &mut [&mut Sample]) -> Result<StepWork, PipelineError> {
        let (network, sampling, merged) = (self.network()?, &self.sampling, self.merged.as_deref());
        Denoiser { network, sampling, device: &self.device, merged }.step(batch)
    }

    /// Runs `samples` to the end, at most `max_batch` a network call; a finished sample's place goes to the
    /// next one at once. Fails if a sample turns into NaN.
    pub fn denoise(
        &self,
        samples: &mut [Sample],
        max_batch: usize,
        on_step: &mut dyn FnMut(&StepReport<'_>),
    ) -> Result<(), PipelineError> {
        loop {
            let mut unfinished =
                samples.iter_mut().enumerate().filter(|(_, sample)| sample.latent().is_none()).peekable();
            let Some(dims) = unfinished.peek().map(|(_, sample)| sample.latent_dims().to_vec()) else {
                return Ok(());
            };
            let (advanced, mut batch): (Vec<usize>, Vec<&mut Sample>) =
                unfinished.filter(|(_, sample)| sample.latent_dims() == dims).take(max_batch.max(1)).unzip();
            let started = Instant::now();
            let work = self.step(&mut batch)?;
            for (index, sample) in advanced.iter().zip(&batch) {
                if sample.is_broken()? {
                    return Err(PipelineError::NotANumber { index: *index });
                }
            }
            let progress: Vec<_> = batch.iter().map(|sample| sample.progress()).collect();
            let elapsed = started.elapsed();
            on_step(&StepReport { advanced: &advanced, progress: &progress, work, elapsed });
        }
    }

    /// A finished latent in VAE units, `[channels, h/8, w/8]`: what ComfyUI's `SaveLatent` stores.
    pub fn to_vae_units(&self, latent: &Tensor) -> Result<Tensor, PipelineError> {
        Ok(self.latent_format.denormalised(latent)?)
    }

    /// Decodes finished latents (`[channels, h/8, w/8]`, network scale), several a call while activations fit the
    /// memory budget, by tiles where even one does not.
    pub fn decode(&self, latents: &[&Tensor]) -> Result<Vec<Picture>, PipelineError> {
        let mut pictures = Vec::with_capacity(latents.len());
        let mut rest = latents;
        while let Some(first) = rest.first() {
            let (_, height, width) = first.dims3()?;
            let fit = self.activation_budget / self.vae()?.decode_bytes(height, width).max(1);
            let same = rest.iter().take_while(|latent| latent.dims() == first.dims()).count();
            let (now, later) = rest.split_at(same.min(fit).max(1));
            let now = now.iter().map(|latent| self.to_decoder(latent)).collect::<Result<Vec<_>, _>>()?;
            let batch = self.to_vae_units(&Tensor::stack(&now, 0)?)?;
            let tiling = self.vae()?.decode_tiling(height, width, self.activation_budget);
            let decoded = self.vae()?.decode_with(&batch, tiling)?;
            for i in 0..now.len() {
                pictures.push(Picture::from_tensor(&decoded.get(i)?)?);
            }
            rest = later;
        }
        Ok(pictures)
    }

    /// The latent that a source starts from, and its noise mask.
    pub fn encode_source(&self, source: &Source) -> Result<SourceLatent, PipelineError> {
        let (latent, mask) = match source {
            Source::Empty { width, height } => {
                let shape = (self.latent_channels(), height / PIXELS_PER_CELL, width / PIXELS_PER_CELL);
                (Tensor::zeros(shape, candle_core::DType::F32, &self.device)?, None)
            }
            Source::Image(picture) => (self.encode_picture(picture)?, None),
            Source::Inpaint { picture, mask, mode: InpaintMode::NoiseMask } => {
                (self.encode_picture(picture)?, Some(Mask::clone(mask)))
            }
            Source::Inpaint { picture, mask, mode: InpaintMode::Fill { grow } } => {
                let mask = mask
                    .resized(picture.width(), picture.height())
                    .cropped_to_multiple(PIXELS_PER_CELL)
                    .rounded();
                let replaced: Vec<bool> = mask.data().iter().map(|v| *v >= 1.0).collect();
                let picture = picture.cropped_to_multiple(PIXELS_PER_CELL).greyed_where(&replaced);
                (self.encode_picture(&picture)?, Some(mask.grown(*grow)))
            }
        };
        Ok(SourceLatent { latent, mask })
    }

    /// `[channels, h/8, w/8]`, network scale.
    pub(crate) fn encode_picture(&self, picture: &Picture) -> Result<Tensor, PipelineError> {
        let pixels = picture.cropped_to_multiple(PIXELS_PER_CELL).to_tensor(&self.vae_device)?;
        let (_, _, height, width) = pixels.dims4()?;
        let (rows, columns) = (height / PIXELS_PER_CELL, width / PIXELS_PER_CELL);
        let tiling = self.vae()?.encode_tiling(rows, columns, self.activation_budget);
        let latent = self.latent_format.normalised(&self.vae()?.encode_with(&pixels, tiling)?.get(0)?)?;
        Ok(darkroom_models::device::moved(&latent, &self.device)?)
    }
}

impl Source {
    /// Whether both give the same latent: the same size of nothing, or the very same picture and mask.
    pub fn same_as(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Empty { width: a, height: b }, Self::Empty { width: c, height: d }) => (a, b) == (c, d),
            (Self::Image(a), Self::Image(b)) => Arc::ptr_eq(a, b),
            (
                Self::Inpaint { picture: a, mask: m, mode: x },
                Self::Inpaint { picture: b, mask: n, mode: y },
            ) => Arc::ptr_eq(a, b) && Arc::ptr_eq(m, n) && x == y,
            _ => false,
        }
    }
}
