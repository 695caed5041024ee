//! How a sample starts: noise on a latent, what holds its unmasked part, the sampler's first step. For pictures that
//! are asked for in words and for latents of a workflow alike.

use std::sync::Arc;

use candle_core::{DType, Tensor};
use darkroom_models::unet::{FreeUScales, SIZE_IDS};

use super::Pipeline;
use crate::PipelineError;
use crate::condition::{Frame, Placed, Sides};
use crate::guidance::Guidance;
use crate::latent_request::LatentRequest;
use crate::noise::{BatchPosition, indexed_noise, initial_noise};
use crate::picture::Mask;
use crate::sample::{Differential, End, Repaint, Sample};
use crate::sampler::{self, SamplerKind};
use crate::schedule::ModelSampling;
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

impl Pipeline {
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
        request.validate(&self.limits, self.unet()?.config().in_channels)?;
        let latent = request.latent.to_dtype(DType::F32)?.to_device(&self.device)?.contiguous()?;
        let latent = (latent * self.latent_scale)?;
        let (_, height, width) = latent.dims3()?;
        let sampling = request.sampling.as_deref().unwrap_or(&self.sampling);
        let frame = Frame {
            height,
            width,
            device: &self.device,
            sampling,
            sized: self.unet()?.config().addition.is_some(),
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
        let config = self.unet()?.config();
        let refuse = |message: String| Err(PipelineError::Request { field: "conditions", message });
        let (context, pooled) = (&placed.text.context, &placed.text.pooled);
        match context.dims() {
            &[tokens, width] if width == config.cross_attention_dim && (1..=MAX_TOKENS).contains(&tokens) => {
            }
            other => {
                return refuse(format!(
                    "have a context of shape {other:?}, but [1 to {MAX_TOKENS}, {}] is needed: encode the prompt with \
                     the text encoders of the model",
                    config.cross_attention_dim
                ));
            }
        }
        let Some(addition) = &config.addition else { return Ok(()) };
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
