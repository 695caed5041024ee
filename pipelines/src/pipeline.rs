//! A loaded model and the four stages of a picture: encode, prepare, denoise, decode.
//!
//! The stages are separate calls so that a scheduler can batch each over many requests; [`Pipeline::denoise`]
//! is the simplest such scheduler, enough for one caller with a list of requests.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use darkroom_models::Precision;
use darkroom_models::checkpoint::{Checkpoint, Component, ModelKind, PredictionType};
use darkroom_models::clip::{ClipTextConfig, ClipTextEncoder, HiddenLayer};
use darkroom_models::tokenizer::ClipTokenizer;
use darkroom_models::unet::UNet2DConditionModel;
use darkroom_models::vae::AutoencoderKl;

use crate::PipelineError;
use crate::conditioning::{self, Conditioning};
use crate::denoise::Denoiser;
use crate::noise::initial_noise;
use crate::picture::{Mask, Picture};
use crate::prompt::{self, CLIP_G_PAD, CLIP_L_PAD};
use crate::request::{ImageRequest, InpaintMode, Limits, PIXELS_PER_CELL, Source};
use crate::sample::{Guidance, Repaint, Sample};
use crate::sampler::{self, SamplerKind};
use crate::schedule::{self, ModelSampling, Prediction};

/// A text-to-image model, resident and ready.
pub struct Pipeline {
    kind: ModelKind,
    device: Device,
    tokenizer: Arc<ClipTokenizer>,
    clip_l: ClipTextEncoder,
    clip_g: Option<ClipTextEncoder>,
    unet: UNet2DConditionModel,
    vae: AutoencoderKl,
    latent_scale: f64,
    sampling: ModelSampling,
    limits: Limits,
    activation_budget: usize,
}

/// What [`Pipeline::denoise`] tells after each network call.
#[derive(Debug)]
pub struct StepReport<'a> {
    /// Which samples the call advanced.
    pub advanced: &'a [usize],
    /// `(steps done, steps in all)` of each of those.
    pub progress: &'a [(usize, usize)],
    /// How long the call took.
    pub elapsed: Duration,
}

/// Bytes of activations that the VAE may take before it goes by tiles.
const DEFAULT_ACTIVATION_BUDGET: usize = 6 << 30;

impl Pipeline {
    /// Builds the networks of an opened checkpoint in full precision. Every tensor of every part must be used.
    pub fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Self, PipelineError> {
        Self::load_at(checkpoint, device, Precision::Full)
    }

    /// The same with the UNet and the VAE at `precision`. The text encoders always compute in full: they take a
    /// small part of the time and everything else hangs on them.
    pub fn load_at(
        checkpoint: &Checkpoint,
        device: &Device,
        precision: Precision,
    ) -> Result<Self, PipelineError> {
        if checkpoint.prediction.zero_terminal_snr {
            return Err(PipelineError::ZeroTerminalSnr { origin: checkpoint.origin.clone() });
        }
        let prediction = match checkpoint.prediction.kind {
            PredictionType::Epsilon => Prediction::Epsilon,
            PredictionType::V => Prediction::V,
        };
        let text_encoder = |part: &Component<ClipTextConfig>| -> Result<_, PipelineError> {
            let encoder = ClipTextEncoder::load(&part.config, &part.weights)?;
            part.weights.finish()?;
            Ok(encoder)
        };
        let clip_l = text_encoder(&checkpoint.clip_l)?;
        let clip_g = checkpoint.clip_g.as_ref().map(text_encoder).transpose()?;
        let part = &checkpoint.vae;
        let vae = AutoencoderKl::load(&part.config, &part.weights.at_precision(precision))?;
        part.weights.finish()?;
        let latent_scale = part.config.scaling_factor;
        let part = &checkpoint.unet;
        let unet = UNet2DConditionModel::load(&part.config, &part.weights.at_precision(precision))?;
        part.weights.finish()?;
        Ok(Self {
            kind: checkpoint.kind,
            device: device.clone(),
            tokenizer: ClipTokenizer::standard()?,
            clip_l,
            clip_g,
            unet,
            vae,
            latent_scale,
            sampling: ModelSampling::scaled_linear(prediction),
            limits: Limits::default(),
            activation_budget: DEFAULT_ACTIVATION_BUDGET,
        })
    }

    /// The same with other bounds on requests.
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
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
        let mut sources = SourceLatents { pipeline: self, encoded: Vec::new() };
        requests
            .iter()
            .zip(conditionings)
            .map(|(request, (positive, negative))| {
                let (width, height) = request.source.size();
                let size_ids = self.clip_g.is_some().then(|| conditioning::size_ids(width, height));
                let guidance = Guidance { positive, negative, scale: request.cfg, size_ids };
                self.start(request, guidance, &mut sources)
            })
            .collect()
    }

    /// Puts the source at the schedule's first noise level and starts the sampler.
    fn start(
        &self,
        request: &ImageRequest,
        guidance: Guidance,
        sources: &mut SourceLatents<'_>,
    ) -> Result<Sample, PipelineError> {
        let (latent, mask) = sources.latent(&request.source)?;
        let sigmas = schedule::sigmas(
            request.scheduler,
            &self.sampling,
            request.steps,
            request.denoise,
            request.sampler,
        )?;
        let Some(first_sigma) = sigmas.first().copied().filter(|_| sigmas.len() > 1) else {
            return Ok(Sample::finished(latent, guidance));
        };
        let shape = latent.dims().to_vec();
        let noise = initial_noise(request.seed, request.position, &shape, &self.device)?;
        let repaint = match mask {
            Some(mask) => {
                // ComfyUI's ddim draws the noise that holds the source from the next seed.
                let held = match request.sampler {
                    SamplerKind::Ddim => {
                        initial_noise(request.seed.wrapping_add(1), request.position, &shape, &self.device)?
                    }
                    _ => noise.clone(),
                };
                Some(Repaint::new(&mask, &latent, held)?)
            }
            None => None,
        };
        let pure_noise = self.sampling.is_max_denoise(first_sigma);
        let noisy = self.sampling.noise_latent(&latent, &noise, first_sigma, pure_noise)?;
        let step_noise = sampler::noise_for(
            request.sampler,
            request.seed,
            request.position,
            &shape,
            &sigmas,
            &self.device,
        )?;
        let (sampler, first) = sampler::start(request.sampler, noisy, &sigmas, step_noise, &self.sampling)?;
        Ok(Sample::new(sampler, first, guidance, repaint, sigmas.len() - 1))
    }

    /// Positive and negative conditioning of each request, every distinct prompt encoded once.
    pub fn encode(
        &self,
        requests: &[ImageRequest],
    ) -> Result<Vec<(Conditioning, Option<Conditioning>)>, PipelineError> {
        let mut by_layer: HashMap<HiddenLayer, Vec<(&'static str, &str)>> = HashMap::new();
        let wanted = requests.iter().map(|request| {
            let layer = self.hidden_layer(request.clip_skip);
            let guided = request.cfg != 1.0 || request.sampler.needs_uncond();
            (layer, request.prompt.as_str(), guided.then_some(request.negative_prompt.as_str()))
        });
        let wanted: Vec<_> = wanted.collect();
        for (layer, prompt, negative) in &wanted {
            let texts = by_layer.entry(*layer).or_default();
            let both = [("prompt", Some(*prompt)), ("negative_prompt", *negative)];
            for (field, text) in both.into_iter().filter_map(|(f, t)| Some((f, t?))) {
                if !texts.iter().any(|(_, known)| *known == text) {
                    texts.push((field, text));
                }
            }
        }
        let mut encoded: HashMap<(HiddenLayer, &str), Conditioning> = HashMap::new();
        for (layer, texts) in by_layer {
            for ((_, text), conditioning) in texts.iter().zip(self.encode_texts(&texts, layer)?) {
                encoded.insert((layer, *text), conditioning);
            }
        }
        let find = |layer, text| encoded.get(&(layer, text)).cloned();
        Ok(wanted
            .into_iter()
            .filter_map(|(layer, prompt, negative)| {
                Some((find(layer, prompt)?, negative.and_then(|text| find(layer, text))))
            })
            .collect())
    }

    fn encode_texts(
        &self,
        texts: &[(&'static str, &str)],
        layer: HiddenLayer,
    ) -> Result<Vec<Conditioning>, PipelineError> {
        let parsed = texts
            .iter()
            .map(|(field, text)| {
                let refuse = |source| PipelineError::Prompt { field, source };
                let segments = prompt::parse(text, &self.limits.prompt).map_err(refuse)?;
                prompt::check_weights(&segments).map_err(refuse)?;
                Ok((*field, segments))
            })
            .collect::<Result<Vec<_>, PipelineError>>()?;
        let run = |encoder: &ClipTextEncoder, pad: u32| {
            let chunks = parsed
                .iter()
                .map(|(field, segments)| {
                    prompt::chunk(segments, &self.tokenizer, pad, &self.limits.prompt)
                        .map_err(|source| PipelineError::Prompt { field, source })
                })
                .collect::<Result<Vec<_>, _>>()?;
            for warning in chunks.iter().flat_map(|chunks| &chunks.warnings) {
                tracing::warn!("{warning}");
            }
            conditioning::encode_prompts(encoder, &chunks, layer)
        };
        let l = run(&self.clip_l, CLIP_L_PAD)?;
        match &self.clip_g {
            None => Ok(l.into_iter().map(|l| Conditioning { context: l.hidden, pooled: None }).collect()),
            Some(clip_g) => {
                let g = run(clip_g, CLIP_G_PAD)?;
                Ok(l.iter().zip(&g).map(|(l, g)| conditioning::join(l, g)).collect::<Result<_, _>>()?)
            }
        }
    }

    /// SDXL takes the penultimate layer as it is; SD 1.5 the last, normalised.
    fn hidden_layer(&self, clip_skip: Option<usize>) -> HiddenLayer {
        match (&self.clip_g, clip_skip) {
            (Some(_), skip) => HiddenLayer::Skip(skip.unwrap_or(2)),
            (None, Some(skip)) => HiddenLayer::SkipNormed(skip),
            (None, None) => HiddenLayer::Final,
        }
    }

    /// Runs `samples` to the end, at most `max_batch` a network call; a finished sample's place goes to the
    /// next one at once. Fails if a sample turns into NaN.
    pub fn denoise(
        &self,
        samples: &mut [Sample],
        max_batch: usize,
        on_step: &mut dyn FnMut(&StepReport<'_>),
    ) -> Result<(), PipelineError> {
        let denoiser = Denoiser { unet: &self.unet, sampling: &self.sampling, device: &self.device };
        loop {
            let mut unfinished =
                samples.iter_mut().enumerate().filter(|(_, sample)| sample.latent().is_none()).peekable();
            let Some(dims) = unfinished.peek().map(|(_, sample)| sample.latent_dims().to_vec()) else {
                return Ok(());
            };
            let (advanced, mut batch): (Vec<usize>, Vec<&mut Sample>) =
                unfinished.filter(|(_, sample)| sample.latent_dims() == dims).take(max_batch.max(1)).unzip();
            let started = Instant::now();
            denoiser.step(&mut batch)?;
            for (index, sample) in advanced.iter().zip(&batch) {
                if let Some(latent) = sample.latent()
                    && latent.sqr()?.sum_all()?.to_scalar::<f32>()?.is_nan()
                {
                    return Err(PipelineError::NotANumber { index: *index });
                }
            }
            let progress: Vec<_> = batch.iter().map(|sample| sample.progress()).collect();
            on_step(&StepReport { advanced: &advanced, progress: &progress, elapsed: started.elapsed() });
        }
    }

    /// A finished latent in VAE units, `[4, h/8, w/8]`: what ComfyUI's `SaveLatent` stores.
    pub fn to_vae_units(&self, latent: &Tensor) -> Result<Tensor, PipelineError> {
        Ok((latent / self.latent_scale)?)
    }

    /// Decodes finished latents (`[4, h/8, w/8]`, network scale), several a call while activations fit the
    /// memory budget, by tiles where even one does not.
    pub fn decode(&self, latents: &[&Tensor]) -> Result<Vec<Picture>, PipelineError> {
        let mut pictures = Vec::with_capacity(latents.len());
        let mut rest = latents;
        while let Some(first) = rest.first() {
            let (_, height, width) = first.dims3()?;
            let fit = self.activation_budget / self.vae.decode_bytes(height, width).max(1);
            let same = rest.iter().take_while(|latent| latent.dims() == first.dims()).count();
            let (now, later) = rest.split_at(same.min(fit).max(1));
            let batch = self.to_vae_units(&Tensor::stack(now, 0)?)?;
            let tiling = self.vae.decode_tiling(height, width, self.activation_budget);
            let decoded = self.vae.decode_with(&batch, tiling)?;
            for i in 0..now.len() {
                pictures.push(Picture::from_tensor(&decoded.get(i)?)?);
            }
            rest = later;
        }
        Ok(pictures)
    }

    fn encode_picture(&self, picture: &Picture) -> Result<Tensor, PipelineError> {
        let pixels = picture.cropped_to_multiple(PIXELS_PER_CELL).to_tensor(&self.device)?;
        let (_, _, height, width) = pixels.dims4()?;
        let (rows, columns) = (height / PIXELS_PER_CELL, width / PIXELS_PER_CELL);
        let tiling = self.vae.encode_tiling(rows, columns, self.activation_budget);
        Ok((self.vae.encode_with(&pixels, tiling)?.get(0)? * self.latent_scale)?)
    }
}

/// Source pictures as latents, each distinct one encoded once for all requests that share it.
struct SourceLatents<'a> {
    pipeline: &'a Pipeline,
    encoded: Vec<(Source, Tensor, Option<Mask>)>,
}

impl SourceLatents<'_> {
    /// The latent that a source starts from (`[4, h/8, w/8]`, network scale), and its noise mask.
    fn latent(&mut self, source: &Source) -> Result<(Tensor, Option<Mask>), PipelineError> {
        if let Some((_, latent, mask)) = self.encoded.iter().find(|(known, ..)| known.same_as(source)) {
            return Ok((latent.clone(), mask.clone()));
        }
        let (latent, mask) = match source {
            Source::Empty { width, height } => {
                let shape = (4, height / PIXELS_PER_CELL, width / PIXELS_PER_CELL);
                (Tensor::zeros(shape, candle_core::DType::F32, &self.pipeline.device)?, None)
            }
            Source::Image(picture) => (self.pipeline.encode_picture(picture)?, None),
            Source::Inpaint { picture, mask, mode: InpaintMode::NoiseMask } => {
                (self.pipeline.encode_picture(picture)?, Some(Mask::clone(mask)))
            }
            Source::Inpaint { picture, mask, mode: InpaintMode::Fill { grow } } => {
                let mask = mask
                    .resized(picture.width(), picture.height())
                    .cropped_to_multiple(PIXELS_PER_CELL)
                    .rounded();
                let replaced: Vec<bool> = mask.data().iter().map(|v| *v >= 1.0).collect();
                let picture = picture.cropped_to_multiple(PIXELS_PER_CELL).greyed_where(&replaced);
                (self.pipeline.encode_picture(&picture)?, Some(mask.grown(*grow)))
            }
        };
        self.encoded.push((source.clone(), latent.clone(), mask.clone()));
        Ok((latent, mask))
    }
}

impl Source {
    /// Whether both give the same latent: the same size of nothing, or the very same picture and mask.
    fn same_as(&self, other: &Self) -> bool {
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
