//! A loaded model and the four stages of a picture: encode, prepare, denoise, decode.
//!
//! The stages are separate calls so that a scheduler can batch each over many requests; [`Pipeline::denoise`]
//! is the simplest such scheduler, enough for one caller with a list of requests.

mod latent;
mod loras;
mod memory;
mod options;
mod text;
mod vae;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use darkroom_models::ComputeType;
use darkroom_models::adapter::NetworkAdapter;
use darkroom_models::arithmetic::Range;
use darkroom_models::checkpoint::{
    Checkpoint, CheckpointParts, Component, ModelKind, Part, Prediction as CheckpointPrediction,
    PredictionType,
};
use darkroom_models::clip::{ClipTextConfig, ClipTextEncoder, HiddenLayer};
use darkroom_models::tokenizer::ClipTokenizer;
use darkroom_models::unet::{UNet2DConditionModel, UNetConfig};
use darkroom_models::vae::{AutoencoderKl, VaeConfig};
use darkroom_models::weights::Kept;

use crate::PipelineError;
use crate::condition::Placed;
use crate::conditioning::{self, Conditioning};
use crate::control::ActiveControl;
use crate::denoise::{Denoiser, StepWork};
use crate::guidance::Guidance;
use crate::lora::LoraSet;
use crate::noise::initial_noise;
use crate::picture::{Mask, Picture};
use crate::prompt::EmbeddingSource;
use crate::request::{ImageRequest, InpaintMode, Limits, PIXELS_PER_CELL, Source};
use crate::sample::Sample;
use crate::schedule::{self, ModelSampling, Prediction};
use latent::Run;
use loras::KeptWeights;
pub use loras::Rounding;
pub use options::LoadOptions;
use text::Side;

/// A text-to-image model, resident and ready. Cloning one shares its weights.
#[derive(Clone)]
pub struct Pipeline {
    kind: ModelKind,
    device: Device,
    /// Where the VAE is: the same device, but decoding goes on beside denoising there.
    vae_device: Device,
    tokenizer: Arc<ClipTokenizer>,
    /// The file or folder, for errors.
    origin: Arc<str>,
    clip_l: Option<ClipTextEncoder>,
    clip_g: Option<ClipTextEncoder>,
    unet: Option<UNet2DConditionModel>,
    /// What the networks took from the file, for LoRAs.
    kept: Arc<KeptWeights>,
    /// The LoRAs that are in the UNet's weights.
    merged: Option<Arc<LoraSet>>,
    vae: Option<AutoencoderKl>,
    latent_scale: f64,
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
    /// `[4, h/8, w/8]`, network scale.
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

/// A checkpoint's parts, each of which may be missing.
struct Parts<'a> {
    origin: &'a str,
    kind: ModelKind,
    prediction: &'a CheckpointPrediction,
    unet: Option<&'a Component<UNetConfig>>,
    vae: Option<&'a Component<VaeConfig>>,
    clip_l: Option<&'a Component<ClipTextConfig>>,
    clip_g: Option<&'a Component<ClipTextConfig>>,
}

/// What models of a family multiply latents by (ComfyUI's `latent_formats`), where no VAE's config says it.
fn own_latent_scale(kind: ModelKind) -> f64 {
    if kind == ModelKind::Sd15 { 0.18215 } else { 0.13025 }
}

/// Bytes of activations that the VAE may take before it goes by tiles.
const DEFAULT_ACTIVATION_BUDGET: usize = 6 << 30;

impl Pipeline {
    /// Builds the networks of an opened checkpoint, computing in `f32` throughout. Every tensor of every part must be used.
    pub fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Self, PipelineError> {
        Self::load_at(checkpoint, device, ComputeType::Full)
    }

    /// The same with other [`LoadOptions`], of which a [`ComputeType`] alone is one. The text encoders' activations are always `f32`:
    /// they take a small part of the time and everything else hangs on them.
    pub fn load_at(
        checkpoint: &Checkpoint,
        device: &Device,
        options: impl Into<LoadOptions>,
    ) -> Result<Self, PipelineError> {
        let Checkpoint { origin, kind, prediction, unet, vae, clip_l, clip_g, .. } = checkpoint;
        let parts = Parts {
            origin,
            kind: *kind,
            prediction,
            unet: Some(unet),
            vae: Some(vae),
            clip_l: Some(clip_l),
            clip_g: clip_g.as_ref(),
        };
        Self::load_parts(&parts, device, options.into())
    }

    /// The same of a checkpoint that may lack parts: a UNet, text encoders or a VAE from a file of their own. Stages
    /// that need what is missing fail and name it.
    pub fn load_partial(
        checkpoint: &CheckpointParts,
        device: &Device,
        options: impl Into<LoadOptions>,
    ) -> Result<Self, PipelineError> {
        let CheckpointParts { origin, kind, prediction, unet, vae, clip_l, clip_g, .. } = checkpoint;
        let parts = Parts {
            origin,
            kind: *kind,
            prediction,
            unet: unet.as_ref(),
            vae: vae.as_ref(),
            clip_l: clip_l.as_ref(),
            clip_g: clip_g.as_ref(),
        };
        Self::load_parts(&parts, device, options.into())
    }

    fn load_parts(
        checkpoint: &Parts<'_>,
        device: &Device,
        options: LoadOptions,
    ) -> Result<Self, PipelineError> {
        let compute_type = options.compute_type;
        let prediction = match checkpoint.prediction.kind {
            PredictionType::Epsilon => Prediction::Epsilon,
            PredictionType::V => Prediction::V,
        };
        let vae_device = darkroom_models::device::beside(device)?;
        let mut weight_bytes = memory::network_bytes(checkpoint, compute_type);
        let text_bytes = memory::text_bytes(checkpoint);
        let text_device = options.text_device(weight_bytes + text_bytes, device);
        if text_device.same_device(device) {
            weight_bytes += text_bytes;
        } else {
            tracing::info!(
                origin = checkpoint.origin,
                "text encoders compute on the CPU: the card has no room for them"
            );
        }
        if let Some(budget) = options.budget.filter(|budget| weight_bytes > *budget) {
            return Err(PipelineError::TooLarge {
                origin: checkpoint.origin.into(),
                bytes: weight_bytes,
                budget,
            });
        }
        let text_encoder = |part: &Component<ClipTextConfig>| -> Result<_, PipelineError> {
            let weights = part.weights.on(&text_device);
            weights.keep();
            let encoder = ClipTextEncoder::load(&part.config, &weights)?;
            weights.finish()?;
            Ok((encoder, weights.kept()))
        };
        let (clip_l, kept_clip_l) = checkpoint.clip_l.map(text_encoder).transpose()?.unzip();
        let (clip_g, kept_clip_g) = checkpoint.clip_g.map(text_encoder).transpose()?.unzip();
        let vae = |part: &Component<VaeConfig>| -> Result<_, PipelineError> {
            let vae = AutoencoderKl::load(
                &part.config,
                &part.weights.on(&vae_device).computing(compute_type, Range::Wide),
            )?;
            part.weights.finish()?;
            Ok(vae)
        };
        let latent_scale = match checkpoint.vae {
            Some(vae) => vae.config.scaling_factor,
            None => own_latent_scale(checkpoint.kind),
        };
        let vae = checkpoint.vae.map(vae).transpose()?;
        let unet = |part: &Component<UNetConfig>| -> Result<_, PipelineError> {
            let weights = part.weights.computing(compute_type, Range::Half);
            weights.keep();
            let unet = UNet2DConditionModel::load(&part.config, &weights)?;
            weights.finish()?;
            Ok((unet, weights.kept()))
        };
        let (unet, kept_unet) = checkpoint.unet.map(unet).transpose()?.unzip();
        let kept = KeptWeights {
            unet: kept_unet.unwrap_or_else(|| Kept::none(checkpoint.origin, device)),
            clip_l: kept_clip_l.unwrap_or_else(|| Kept::none(checkpoint.origin, &text_device)),
            clip_g: kept_clip_g,
        };
        Ok(Self {
            kind: checkpoint.kind,
            device: device.clone(),
            vae_device,
            tokenizer: ClipTokenizer::standard()?,
            origin: checkpoint.origin.into(),
            clip_l,
            clip_g,
            unet,
            kept: Arc::new(kept),
            merged: None,
            vae,
            latent_scale,
            sampling: match checkpoint.prediction.zero_terminal_snr {
                true => ModelSampling::zero_terminal_snr(prediction),
                false => ModelSampling::scaled_linear(prediction),
            },
            limits: Limits::default(),
            embeddings: None,
            compute_type,
            activation_budget: DEFAULT_ACTIVATION_BUDGET,
            weight_bytes,
        })
    }

    fn missing(&self, part: Part) -> PipelineError {
        PipelineError::MissingPart { origin: self.origin.to_string(), part }
    }

    fn unet(&self) -> Result<&UNet2DConditionModel, PipelineError> {
        self.unet.as_ref().ok_or_else(|| self.missing(Part::UNet))
    }

    fn vae(&self) -> Result<&AutoencoderKl, PipelineError> {
        self.vae.as_ref().ok_or_else(|| self.missing(Part::Vae))
    }

    fn clip_l(&self) -> Result<&ClipTextEncoder, PipelineError> {
        self.clip_l.as_ref().ok_or_else(|| self.missing(Part::ClipL))
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
        let size_ids = self.clip_g.is_some().then(|| conditioning::size_ids(width, height));
        let controls: Vec<ActiveControl> = request
            .controls
            .iter()
            .map(|control| ActiveControl { control: control.clone(), sigmas: control.sigmas(&self.sampling) })
            .collect();
        let everywhere = |text| Placed::everywhere(text, size_ids, controls.clone());
        let guidance = Guidance {
            positive: vec![everywhere(positive)],
            negative: negative.map(|negative| vec![everywhere(negative)]),
            scale: request.cfg,
            interval: request.speed.guidance_interval.and_then(|interval| interval.sigmas(&self.sampling)),
            rescale: None,
            cfg_norms: Vec::new(),
            loras: request.loras.clone(),
            sampling: None,
            free_u: Vec::new(),
        };
        let SourceLatent { latent, mask } = source.clone();
        let sigmas = schedule::sigmas(
            request.scheduler,
            &self.sampling,
            request.steps,
            request.denoise,
            request.sampler,
        )?;
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

    /// The prompts that a request needs encoded. The negative one is left out where guidance would not use it.
    pub fn prompts(&self, request: &ImageRequest) -> RequestPrompts {
        let layer = self.hidden_layer(request.clip_skip);
        let guided = request.cfg != 1.0 || request.sampler.needs_uncond();
        let loras = request.loras.as_ref().filter(|set| set.changes_text()).map(|set| set.name().clone());
        let prompt = |text: &str| PromptText { layer, loras: loras.clone(), text: text.to_owned() };
        RequestPrompts {
            positive: prompt(&request.prompt),
            negative: guided.then(|| prompt(&request.negative_prompt)),
        }
    }

    /// Positive and negative conditioning of each request, every distinct prompt encoded once.
    pub fn encode(
        &self,
        requests: &[ImageRequest],
    ) -> Result<Vec<(Conditioning, Option<Conditioning>)>, PipelineError> {
        let wanted: Vec<RequestPrompts> = requests.iter().map(|request| self.prompts(request)).collect();
        let mut distinct: Vec<WantedPrompt<'_>> = Vec::new();
        for (request, prompts) in requests.iter().zip(&wanted) {
            for (field, prompt) in prompts.fields() {
                if !distinct.iter().any(|known| known.prompt == prompt) {
                    distinct.push(WantedPrompt { field, prompt, loras: request.loras.as_ref() });
                }
            }
        }
        let encoded = self.encode_prompts(&distinct)?;
        let encoded: HashMap<&PromptText, Conditioning> =
            distinct.iter().map(|wanted| wanted.prompt).zip(encoded).collect();
        let find = |prompt: &PromptText| encoded.get(prompt).cloned();
        Ok(wanted
            .iter()
            .filter_map(|prompts| Some((find(&prompts.positive)?, prompts.negative.as_ref().and_then(find))))
            .collect())
    }

    /// Encodes prompts together, in their order: those of one hidden layer and one set of LoRAs in one call.
    pub fn encode_prompts(&self, prompts: &[WantedPrompt<'_>]) -> Result<Vec<Conditioning>, PipelineError> {
        let way = |wanted: &WantedPrompt<'_>| (wanted.prompt.layer, wanted.prompt.loras.clone());
        let mut ways: Vec<(HiddenLayer, Option<Arc<str>>)> = Vec::new();
        for wanted in prompts {
            if !ways.contains(&way(wanted)) {
                ways.push(way(wanted));
            }
        }
        let mut encoded: Vec<(usize, Conditioning)> = Vec::with_capacity(prompts.len());
        for (layer, name) in ways {
            let alike = || {
                prompts.iter().enumerate().filter(|(_, w)| w.prompt.layer == layer && w.prompt.loras == name)
            };
            let loras = match &name {
                None => None,
                Some(name) => {
                    let named = alike().find_map(|(_, w)| w.loras.filter(|set| set.name() == name));
                    Some(named.ok_or_else(|| PipelineError::Request {
                        field: "loras",
                        message: "were not given with the prompt".into(),
                    })?)
                }
            };
            let texts: Vec<_> = alike().map(|(_, w)| (w.field, w.prompt.text.as_str())).collect();
            let indices = alike().map(|(index, _)| index);
            encoded.extend(indices.zip(self.encode_texts(&texts, layer, loras)?));
        }
        encoded.sort_unstable_by_key(|(index, _)| *index);
        Ok(encoded.into_iter().map(|(_, conditioning)| conditioning).collect())
    }

    fn encode_texts(
        &self,
        texts: &[(&'static str, &str)],
        layer: HiddenLayer,
        loras: Option<&Arc<LoraSet>>,
    ) -> Result<Vec<Conditioning>, PipelineError> {
        let parsed = texts
            .iter()
            .map(|(field, text)| Ok((*field, text::parse(field, text, &self.limits.prompt)?)))
            .collect::<Result<Vec<_>, PipelineError>>()?;
        let run = |encoder: &ClipTextEncoder, side: Side, adapter: Option<&Arc<NetworkAdapter>>| {
            let chunks = parsed
                .iter()
                .map(|(field, segments)| self.rows((field, segments), encoder, side))
                .collect::<Result<Vec<_>, _>>()?;
            conditioning::encode_prompts(encoder, &chunks, layer, adapter)
        };
        // Where the text encoders are elsewhere, what they gave comes to the UNet.
        let here = |conditioning: Conditioning| Ok(conditioning.on(&self.device)?);
        let l = run(self.clip_l()?, Side::L, loras.map(|set| &set.clip_l))?;
        match &self.clip_g {
            None => {
                l.into_iter().map(|l| Conditioning { context: l.hidden, pooled: None }).map(here).collect()
            }
            Some(clip_g) => {
                let g = run(clip_g, Side::G, loras.map(|set| &set.clip_g))?;
                l.iter().zip(&g).map(|(l, g)| here(conditioning::join(l, g)?)).collect()
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

    /// Advances every unfinished sample of `batch` by one network evaluation. All must have the same latent shape; in
    /// one call, but for conditions with areas and samples with several conditions, whose calls have no more rows than
    /// two for each sample, and for step caching, where rows on kept features go in a call of their own. When the network call fails, no sample has moved.
    pub fn step(&self, batch: &mut [&mut Sample]) -> Result<StepWork, PipelineError> {
        let (unet, sampling, merged) = (self.unet()?, &self.sampling, self.merged.as_deref());
        Denoiser { unet, sampling, device: &self.device, merged }.step(batch)
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
                let shape = (4, height / PIXELS_PER_CELL, width / PIXELS_PER_CELL);
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

    /// `[4, h/8, w/8]`, network scale.
    pub(crate) fn encode_picture(&self, picture: &Picture) -> Result<Tensor, PipelineError> {
        let pixels = picture.cropped_to_multiple(PIXELS_PER_CELL).to_tensor(&self.vae_device)?;
        let (_, _, height, width) = pixels.dims4()?;
        let (rows, columns) = (height / PIXELS_PER_CELL, width / PIXELS_PER_CELL);
        let tiling = self.vae()?.encode_tiling(rows, columns, self.activation_budget);
        let latent = (self.vae()?.encode_with(&pixels, tiling)?.get(0)? * self.latent_scale)?;
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
