//! How a sample starts: noise on a latent, what holds its unmasked part, the sampler's first step. For pictures that
//! are asked for in words and for latents of a workflow alike.

use std::sync::Arc;

use candle_core::{DType, Tensor};
use darkroom_models::checkpoint::ModelKind;
use darkroom_models::unet::{FreeUScales, SIZE_IDS};

use super::Pipeline;
use crate::PipelineError;
use crate::condition::{Frame, Placed, Sides};
use crate::guidance::Guidance;
use crate::latent_request::LatentRequest;
use crate::noise::{BatchPosition, indexed_noise, initial_noise};
use crate::picture::Mask;
use crate::request::{FlowShift, ImageRequest, PIXELS_PER_CELL};
use crate::sample::{Differential, End, Repaint, Sample};
use crate::sampler::{self, SamplerKind};
use crate::schedule::{self, ModelSampling};
use crate::speed::StepCache;
use crate::step_cache::CachedFeatures;

/// Most tokens of a context: as many as the longest prompts that ComfyUI can be made to join.
const MAX_TOKENS: usize = 128 * 77;
/// How close to 1 a guidance scale must be to leave the negative conditions out (`math.isclose` in ComfyUI).
const NO_GUIDANCE_RELATIVE: f64 = 1e-9;

/// `[b1, b2, s1, s2]` as the network takes them.
fn free_u([b1, b2, s1, s2]: &[f64; 4]) -> FreeUScales {
    FreeUScales { backbone: [*b1, *b2], skip: [*s1, *s2] }
}

/// A run from its first noise level on.
pub(super) struct Run<'a> {
    /// `[4, h, w]`, network scale.
    pub(super) latent: Tensor,
    /// The noise that it starts with; `None`: none.
    pub(super) noise: Option<Tensor>,
    pub(super) mask: Option<&'a Mask>,
    pub(super) differential: Option<f64>,
    pub(super) sampler: SamplerKind,
    pub(super) step_seed: u64,
    pub(super) position: BatchPosition,
    pub(super) sigmas: &'a [f32],
    pub(super) noise_sigmas: Option<&'a [f32]>,
    pub(super) step_cache: Option<StepCache>,
}

/// The noise levels of a run that is asked for in words.
pub(super) struct FlowRun {
    /// What they are of, where that is not the model's own choice.
    pub(super) sampling: Option<Arc<ModelSampling>>,
    /// From first to last.
    pub(super) sigmas: Vec<f32>,
}

impl Pipeline {
    /// Fails for what the model's family cannot do.
    pub(super) fn check_family(&self, request: &ImageRequest) -> Result<(), PipelineError> {
        let refuse = |field, what: &str| {
            let message = format!("is not for {}: {what}", self.kind);
            Err(PipelineError::Request { field, message })
        };
        if self.kind != ModelKind::QwenImage {
            return match request.shift {
                Some(_) => refuse("shift", "it predicts no flow"),
                None => Ok(()),
            };
        }
        if !request.controls.is_empty() {
            return refuse("controlnets", "its ControlNets are not supported yet");
        }
        if request.clip_skip.is_some() {
            return refuse("clip_skip", "its text encoder is no CLIP");
        }
        if request.speed.step_cache.is_some_and(|cache| cache.cache_interval > 1) {
            return refuse("speed.step_cache", "it has no UNet whose features could be kept");
        }
        Ok(())
    }

    /// The same of a latent's run.
    fn check_latent_family(&self, request: &LatentRequest) -> Result<(), PipelineError> {
        if self.network()?.unet().is_some() {
            return Ok(());
        }
        let refuse = |field| {
            let message = format!("is not for {}, which has no UNet", self.kind);
            Err(PipelineError::Request { field, message })
        };
        if !request.free_u.is_empty() {
            return refuse("free_u");
        }
        if request.speed.step_cache.is_some_and(|cache| cache.cache_interval > 1) {
            return refuse("speed.step_cache");
        }
        Ok(())
    }

    /// The noise levels that a request asks for, of a picture of `cells` rows and columns.
    pub(super) fn flow_run(
        &self,
        request: &ImageRequest,
        (height, width): (usize, usize),
    ) -> Result<FlowRun, PipelineError> {
        let ImageRequest { scheduler, steps, denoise, sampler, .. } = *request;
        if self.kind != ModelKind::QwenImage {
            let sigmas = schedule::sigmas(scheduler, &self.sampling, steps, denoise, sampler)?;
            return Ok(FlowRun { sampling: None, sigmas });
        }
        let (sampling, sigmas) = match request.shift.unwrap_or(FlowShift::OWN) {
            FlowShift::Fixed(shift) => {
                let sampling = ModelSampling::flow(shift, 1.0);
                let sigmas = schedule::sigmas(scheduler, &sampling, steps, denoise, sampler)?;
                (sampling, sigmas)
            }
            FlowShift::Dynamic => {
                let mu = FlowShift::exponent(PIXELS_PER_CELL * width, PIXELS_PER_CELL * height);
                (ModelSampling::flux(mu), schedule::dynamic_flow_sigmas(steps, denoise, mu)?)
            }
        };
        Ok(FlowRun { sampling: Some(sampling.into()), sigmas })
    }

    /// The model's noise levels and what it predicts.
    pub fn sampling(&self) -> &ModelSampling {
        &self.sampling
    }

    /// Starts a latent's run through its sigmas. [`Sample::latent`] is in the network's scale when it is done:
    /// [`Pipeline::to_vae_units`] makes a `LATENT` of it.
    ///
    /// # Errors
    /// A value is out of range, an area lies outside the latent, the conditioning or a ControlNet's picture is not of
    /// a size that fits, or the sigmas are none that the sampler can walk.
    pub fn start_latent(&self, request: &LatentRequest) -> Result<Sample, PipelineError> {
        let network = self.network()?;
        request.validate(&self.limits, network.latent_channels())?;
        self.check_latent_family(request)?;
        let latent = request.latent.to_dtype(DType::F32)?.to_device(&self.device)?.contiguous()?;
        // What is empty stays so, whatever the format's mean.
        let empty = latent.abs()?.max_all()?.to_scalar::<f32>()? == 0.0;
        let latent = if empty { latent } else { self.latent_format.normalised(&latent)? };
        let (_, height, width) = latent.dims3()?;
        let sampling = request.sampling.as_deref().unwrap_or(&self.sampling);
        let frame = Frame {
            height,
            width,
            device: &self.device,
            sampling,
            sized: network.unet().is_some_and(|unet| unet.config().addition.is_some()),
        };
        let Sides { positive, negative } = frame.place(&request.positive, request.negative.as_deref())?;
        for placed in positive.iter().chain(negative.iter().flatten()) {
            self.check_conditioning(placed)?;
        }
        let scale = if (request.cfg - 1.0).abs() <= NO_GUIDANCE_RELATIVE { 1.0 } else { request.cfg };
        let negative = match negative {
            // Nothing at all, as the sampler sees it.
            None if request.sampler.needs_uncond() => Some((Vec::new(), 1.0)),
            Some(negative) if scale != 1.0 || request.sampler.needs_uncond() => Some((negative, scale)),
            _ => None,
        };
        let (negative, scale) = negative.map_or((None, 1.0), |(negative, scale)| (Some(negative), scale));
        let guidance = Guidance {
            positive,
            negative,
            scale,
            interval: request.speed.guidance_interval.and_then(|interval| interval.sigmas(sampling)),
            rescale: request.rescale_cfg,
            velocity_norm: false,
            loras: request.loras.clone(),
            sampling: request.sampling.as_ref().map(Arc::clone),
            cfg_norms: request.cfg_norms.clone(),
            free_u: request.free_u.iter().map(free_u).collect(),
        };
        let shape = latent.dims();
        let noise = request.noise.map(|noise| match noise.batch_index {
            Some(index) => indexed_noise(noise.seed, index, shape, &self.device),
            None => initial_noise(noise.seed, request.position, shape, &self.device),
        });
        let noise = noise.transpose()?;
        let run = Run {
            latent,
            noise,
            mask: request.noise_mask.as_deref(),
            differential: request.differential,
            sampler: request.sampler,
            step_seed: request.step_seed,
            position: request.position,
            sigmas: &request.sigmas,
            noise_sigmas: request.noise_sigmas.as_deref(),
            step_cache: request.speed.step_cache,
        };
        self.begin(run, guidance)
    }

    /// Puts a latent at its first noise level and asks the sampler for its first step. Without sigmas it is finished.
    pub(super) fn begin(&self, run: Run<'_>, guidance: Guidance) -> Result<Sample, PipelineError> {
        let Run {
            latent,
            noise,
            mask,
            differential,
            sampler: kind,
            step_seed,
            position,
            sigmas,
            noise_sigmas,
            step_cache,
        } = run;
        let cache = self.cached_features(step_cache, &guidance, &latent)?;
        let Some(first_sigma) = sigmas.first().copied() else {
            return Ok(Sample::finished(latent, guidance));
        };
        let shape = latent.dims().to_vec();
        let noise = match noise {
            Some(noise) => noise,
            None => latent.zeros_like()?,
        };
        let sampling = guidance.sampling.as_deref().unwrap_or(&self.sampling);
        let repaint = match mask {
            Some(mask) => {
                // ComfyUI's ddim draws the noise that holds the source from the next seed.
                let held = match kind {
                    SamplerKind::Ddim => {
                        initial_noise(step_seed.wrapping_add(1), position, &shape, &self.device)?
                    }
                    _ => noise.clone(),
                };
                let order = differential.map(|strength| Differential::new(sampling, sigmas, strength));
                Some(Repaint::new(mask, &latent, held, sampling.process())?.in_order(order))
            }
            None => None,
        };
        let pure_noise = sampling.is_max_denoise(first_sigma);
        let noisy = sampling.noise_latent(&latent, &noise, first_sigma, pure_noise)?;
        let step_noise = sampler::noise_for(
            kind,
            step_seed,
            position,
            &shape,
            noise_sigmas.unwrap_or(sigmas),
            &self.device,
        )?;
        let end = End { process: sampling.process(), sigma: sigmas.last().copied().unwrap_or_default() };
        let (sampler, first) = sampler::start(kind, noisy, sigmas, step_noise, sampling)?;
        Ok(Sample::new(sampler, first, guidance, repaint, sigmas.len() - 1, end)?.caching(cache))
    }

    /// What a sample's evaluations share, and what that takes; `None`: nothing.
    fn cached_features(
        &self,
        step_cache: Option<StepCache>,
        guidance: &Guidance,
        latent: &Tensor,
    ) -> Result<Option<CachedFeatures>, PipelineError> {
        let Some(StepCache { cache_interval, cache_branch_id }) = step_cache else { return Ok(None) };
        if cache_interval <= 1 {
            return Ok(None);
        }
        let unet = self.unet()?;
        let (count, outermost) = (unet.config().skip_count(), unet.config().outermost_skip());
        let branch = cache_branch_id.unwrap_or(outermost);
        if branch >= count {
            return Err(PipelineError::Request {
                field: "speed.step_cache.cache_branch_id",
                message: format!("is {branch}, but this model has skip connections 0 to {}", count - 1),
            });
        }
        let (_, height, width) = latent.dims3()?;
        let bytes = guidance.conditions().map(|placed| {
            let (height, width) = placed.part.map_or((height, width), |part| (part.height, part.width));
            unet.kept_bytes(branch, height, width)
        });
        let bytes = bytes.fold(0, usize::saturating_add);
        Ok(Some(CachedFeatures::new(cache_interval, branch, bytes)))
    }

    /// Checks that a prompt was encoded for a model like this one.
    fn check_conditioning(&self, placed: &Placed) -> Result<(), PipelineError> {
        let network = self.network()?;
        let needed = network.context_width();
        let refuse = |message: String| Err(PipelineError::Request { field: "conditions", message });
        let (context, pooled) = (&placed.text.context, &placed.text.pooled);
        match context.dims() {
            &[tokens, width] if width == needed && (1..=MAX_TOKENS).contains(&tokens) => {}
            other => {
                return refuse(format!(
                    "have a context of shape {other:?}, but [1 to {MAX_TOKENS}, {needed}] is needed: encode the prompt \
                     with the text encoders of the model"
                ));
            }
        }
        if network.unet().is_none() && !placed.controls.is_empty() {
            return refuse(format!("have ControlNets, which {} does not take", self.kind));
        }
        let Some(addition) = network.unet().and_then(|unet| unet.config().addition.as_ref()) else {
            return Ok(());
        };
        let wanted = addition.projection_input_dim - SIZE_IDS * addition.time_embed_dim;
        match pooled.as_ref().map(Tensor::dims) {
            Some(&[width]) if width == wanted => Ok(()),
            other => refuse(format!(
                "have a pooled vector of shape {other:?}, but [{wanted}] is needed: encode the prompt with the text \
                 encoders of the model"
            )),
        }
    }
}
