//! What all sampling nodes do: every sample of a latent's batch becomes one of the engine's, and all are handed over
//! together, so that they share step batches with each other and with those of other prompts.

use std::collections::HashMap;
use std::str::FromStr;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use darkroom_models::controlnet::ControlNet as ControlNetwork;
use darkroom_pipelines::noise::BatchPosition;
use darkroom_pipelines::sampler::SamplerKind;
use darkroom_pipelines::schedule::{ModelSampling, Scheduler};
use darkroom_pipelines::{
    Condition, ConditionMask, Control, LatentNoise, LatentRequest, Mask as PictureMask, PipelineError, Speed,
};

use super::vae::picture;
use crate::engine::{DenoiseEvent, Denoised};
use crate::workflow::borrowed::Borrowed;
use crate::workflow::context::{Inputs, NodeError};
use crate::workflow::event::Event;
use crate::workflow::value::{Cond, CondControl, Model, Noise, SamplingChange};
use crate::workflow::{Context, Latent, Mask};

/// Pixels a side of a latent cell.
const CELL: usize = 8;

/// Samplers by ComfyUI's names, in its order.
pub(super) const SAMPLERS: [&str; 42] = [
    "euler",
    "euler_cfg_pp",
    "euler_ancestral",
    "euler_ancestral_cfg_pp",
    "heun",
    "heunpp2",
    "dpm_2",
    "dpm_2_ancestral",
    "lms",
    "dpm_fast",
    "dpm_adaptive",
    "dpmpp_2s_ancestral",
    "dpmpp_2s_ancestral_cfg_pp",
    "dpmpp_sde",
    "dpmpp_sde_gpu",
    "dpmpp_2m",
    "dpmpp_2m_cfg_pp",
    "dpmpp_2m_sde",
    "dpmpp_2m_sde_gpu",
    "dpmpp_2m_sde_heun",
    "dpmpp_2m_sde_heun_gpu",
    "dpmpp_3m_sde",
    "dpmpp_3m_sde_gpu",
    "ddpm",
    "lcm",
    "ipndm",
    "ipndm_v",
    "deis",
    "res_multistep",
    "res_multistep_cfg_pp",
    "res_multistep_ancestral",
    "res_multistep_ancestral_cfg_pp",
    "gradient_estimation",
    "gradient_estimation_cfg_pp",
    "er_sde",
    "seeds_2",
    "seeds_3",
    "sa_solver",
    "sa_solver_pece",
    "ddim",
    "uni_pc",
    "uni_pc_bh2",
];

/// The sampler that an input names.
pub(super) fn sampler(inputs: &Inputs, name: &str) -> Result<SamplerKind, NodeError> {
    let sampler = inputs.string(name)?;
    SamplerKind::from_str(&sampler).map_err(|error| NodeError::input(name, error.to_string()))
}

/// The scheduler that an input names.
pub(super) fn scheduler(inputs: &Inputs, name: &str) -> Result<Scheduler, NodeError> {
    let scheduler = inputs.string(name)?;
    Scheduler::from_str(&scheduler).map_err(|error| NodeError::input(name, error.to_string()))
}

/// A model's noise levels, and what it is taken to predict.
pub(super) fn model_sampling(context: &Context<'_>, model: &Model) -> Result<Arc<ModelSampling>, NodeError> {
    match changed_sampling(model) {
        Some(sampling) => Ok(sampling),
        None => Ok(Arc::new(Borrowed::model(context, &model.origin)?.pipeline.sampling().clone())),
    }
}

/// The same where a node said otherwise than the model's file.
fn changed_sampling(model: &Model) -> Option<Arc<ModelSampling>> {
    let change = model.sampling?;
    let sampling = match change {
        SamplingChange::Discrete { prediction, zero_snr: true } => {
            ModelSampling::zero_terminal_snr(prediction)
        }
        SamplingChange::Discrete { prediction, zero_snr: false } => ModelSampling::scaled_linear(prediction),
        SamplingChange::Flow { shift, multiplier } => ModelSampling::flow(shift, multiplier),
    };
    Some(Arc::new(sampling))
}

/// What is to be drawn.
pub(super) struct Job<'a> {
    /// With what.
    pub(super) model: &'a Model,
    /// What.
    pub(super) positive: &'a [Cond],
    /// What to stay away from; `None`: no guidance.
    pub(super) negative: Option<&'a [Cond]>,
    /// Guidance scale.
    pub(super) cfg: f64,
    /// How to walk through the sigmas.
    pub(super) sampler: SamplerKind,
    /// Noise levels; none: the latent stays as it is.
    pub(super) sigmas: &'a [f32],
    /// The noise levels that Brownian step noise is drawn over, where they are more than those.
    pub(super) noise_sigmas: Option<&'a [f32]>,
    /// What is added to the latent first.
    pub(super) noise: Noise,
    /// Seed of the noise that samplers add at their steps.
    pub(super) step_seed: u64,
    /// From what.
    pub(super) latent: &'a Latent,
}

/// What came of it.
pub(super) struct Drawn {
    /// The latent after the last step.
    pub(super) latent: Arc<Latent>,
    /// What the last step took the finished latent to be, at its first evaluation.
    pub(super) denoised: Arc<Latent>,
}

/// Draws.
///
/// # Errors
/// When something of it does not do, does not go together or cannot be had; when the prompt is interrupted.
pub(super) fn denoise(context: &Context<'_>, job: &Job<'_>) -> Result<Drawn, NodeError> {
    let model = Borrowed::model(context, &job.model.origin)?;
    let latent = with_channels(job.latent, model.pipeline.latent_channels())?;
    if job.sigmas.is_empty() {
        let latent = Arc::new(latent);
        return Ok(Drawn { latent: Arc::clone(&latent), denoised: latent });
    }
    let requests = requests(context, &model, job, &latent)?;
    let samples: Result<Vec<_>, PipelineError> =
        requests.iter().map(|request| model.pipeline.start_latent(request)).collect();
    let samples = samples?;
    drop(requests);
    let total = job.sigmas.len() - 1;
    let mut watch = |event| match event {
        DenoiseEvent::Step { done, total } => context.progress(done, total),
        // ComfyUI shows the first of a batch.
        DenoiseEvent::Preview { sample: 0, width, height, rgb } => {
            context.listener.tell(Event::Preview { node: context.node.to_owned(), width, height, rgb });
        }
        DenoiseEvent::Preview { .. } => {}
    };
    let previews = context.listener.wants_previews() && total > 0;
    let done = context.engine.denoise(
        &model.name,
        &model.pipeline,
        samples,
        context.interrupt,
        previews,
        &mut watch,
    )?;
    let finished = |pick: &dyn Fn(&Denoised) -> Tensor| -> Result<Arc<Latent>, NodeError> {
        let latents: Result<Vec<Tensor>, NodeError> = done
            .iter()
            .map(|sample| Ok(model.pipeline.to_vae_units(&pick(sample))?.to_device(&Device::Cpu)?))
            .collect();
        let samples = Tensor::stack(&latents?, 0)?;
        if samples.sqr()?.sum_all()?.to_scalar::<f32>()?.is_nan() {
            return Err(NodeError::Failed(
                "the latent turned into values that are not numbers: the weights are damaged, or the guidance scale \
                 or a prompt's weight is far too large; lower cfg first"
                    .into(),
            ));
        }
        Ok(Arc::new(Latent { samples, ..latent.clone() }))
    };
    Ok(Drawn {
        latent: finished(&|sample| sample.latent.clone())?,
        denoised: finished(&|sample| sample.denoised.clone().unwrap_or_else(|| sample.latent.clone()))?,
    })
}

/// The latent with as many channels as the network takes. An empty one may have others: it says only how large.
fn with_channels(latent: &Latent, wanted: usize) -> Result<Latent, NodeError> {
    let refuse = |message: String| Err(NodeError::input("latent_image", message));
    let (batch, channels, height, width) = match *latent.samples.dims() {
        [batch, channels, height, width] if batch * channels * height * width > 0 => {
            (batch, channels, height, width)
        }
        ref other => {
            return refuse(format!("has shape {other:?}, must be [batch, {wanted}, height, width]"));
        }
    };
    if channels == wanted {
        return Ok(latent.clone());
    }
    if latent.samples.abs()?.max_all()?.to_scalar::<f32>()? != 0.0 {
        return refuse(format!(
            "has {channels} channels and was made for another kind of model, which takes {wanted}: encode it with \
             this model's VAE"
        ));
    }
    let samples = Tensor::zeros((batch, wanted, height, width), DType::F32, &Device::Cpu)?;
    Ok(Latent { samples, ..latent.clone() })
}

/// One for each sample of the batch.
fn requests(
    context: &Context<'_>,
    model: &Borrowed,
    job: &Job<'_>,
    latent: &Latent,
) -> Result<Vec<LatentRequest>, NodeError> {
    let (batch, _, height, width) = latent.samples.dims4()?;
    let sampling = changed_sampling(job.model);
    let levels = sampling.as_deref().unwrap_or_else(|| model.pipeline.sampling());
    let loras = model.loras(context, &job.model.loras)?;
    let noise_masks = latent.noise_mask.as_ref().map(masks).transpose()?;
    if let Some(indices) = &latent.batch_index
        && indices.len() != batch
    {
        let message = format!("has {batch} samples and numbers for {}", indices.len());
        return Err(NodeError::input("latent_image", message));
    }
    let mut conditions = Conditions { context, model, levels, height, width, networks: HashMap::new() };
    let mut sides = Vec::with_capacity(batch);
    let positive = conditions.of(job.positive, batch)?;
    let negative = job.negative.map(|negative| conditions.of(negative, batch)).transpose()?;
    for index in 0..batch {
        sides.push((positive.at(index), negative.as_ref().map(|negative| negative.at(index))));
    }
    sides
        .into_iter()
        .enumerate()
        .map(|(index, (positive, negative))| {
            let noise = match job.noise {
                Noise::Disabled => None,
                Noise::Seed(seed) => {
                    let number = latent.batch_index.as_ref().map(|indices| indices[index]);
                    Some(LatentNoise { seed, batch_index: number })
                }
            };
            Ok(LatentRequest {
                latent: latent.samples.get(index)?,
                position: BatchPosition { index, size: batch },
                noise,
                noise_mask: noise_masks.as_ref().map(|masks| Arc::clone(&masks[index % masks.len()])),
                differential: job.model.differential,
                noise_sigmas: job.noise_sigmas.map(<[f32]>::to_vec),
                sampler: job.sampler,
                step_seed: job.step_seed,
                sigmas: job.sigmas.to_vec(),
                positive,
                negative,
                cfg: job.cfg,
                rescale_cfg: job.model.rescale_cfg,
                loras: loras.clone(),
                sampling: sampling.clone(),
                cfg_norms: job.model.cfg_norms.clone(),
                free_u: job.model.free_u.clone(),
                speed: Speed::default(),
            })
        })
        .collect()
}

/// Each mask of a batch by itself.
fn masks(mask: &Mask) -> Result<Vec<Arc<PictureMask>>, NodeError> {
    let one = |index| PictureMask::new(mask.width(), mask.height(), mask.mask(index).to_vec()).map(Arc::new);
    let all: Option<Vec<_>> = (0..mask.count()).map(one).collect();
    all.filter(|masks| !masks.is_empty()).ok_or_else(|| {
        NodeError::Failed("a mask without pixels cannot be drawn with: give it some, or none".into())
    })
}

/// Makes what pipelines take of what travels along links.
struct Conditions<'a> {
    context: &'a Context<'a>,
    model: &'a Borrowed,
    levels: &'a ModelSampling,
    height: usize,
    width: usize,
    /// ControlNets that were borrowed.
    networks: HashMap<Arc<str>, Arc<ControlNetwork>>,
}

/// One side of guidance for a batch: a list of conditions for each sample, or one for all.
struct Side(Vec<Vec<Condition>>);

impl Side {
    fn at(&self, sample: usize) -> Vec<Condition> {
        self.0[sample % self.0.len()].clone()
    }
}

impl Conditions<'_> {
    fn of(&mut self, conds: &[Cond], batch: usize) -> Result<Side, NodeError> {
        // Where nothing differs from sample to sample, one list does for all.
        let several = conds.iter().any(|cond| {
            cond.mask.as_ref().is_some_and(|mask| mask.mask.count() > 1)
                || cond.controls.iter().any(|control| control.image.count() > 1)
        });
        let mut hints: HashMap<(usize, usize, usize), Tensor> = HashMap::new();
        let lists = (0..if several { batch } else { 1 }).map(|sample| {
            let one = |(number, cond)| self.one(number, cond, sample, &mut hints);
            conds.iter().enumerate().map(one).collect::<Result<Vec<Condition>, NodeError>>()
        });
        Ok(Side(lists.collect::<Result<_, _>>()?))
    }

    /// The condition of one sample. `hints` keeps pictures that were embedded, by condition, control and picture.
    fn one(
        &mut self,
        number: usize,
        cond: &Cond,
        sample: usize,
        hints: &mut HashMap<(usize, usize, usize), Tensor>,
    ) -> Result<Condition, NodeError> {
        let mask = cond.mask.as_ref().map(|own| {
            let masks = masks(&own.mask)?;
            let mask = Arc::clone(&masks[sample % masks.len()]);
            Ok::<_, NodeError>(ConditionMask { mask, strength: own.strength, bounds: own.bounds })
        });
        let mut condition = Condition {
            size_ids: cond.size_ids,
            area: cond.area,
            strength: cond.strength,
            mask: mask.transpose()?,
            sigmas: cond
                .range
                .map(|(start, end)| self.levels.percent_to_sigma(end)..=self.levels.percent_to_sigma(start)),
            shares_controls: cond.controls_both,
            ..Condition::new(cond.text.clone())
        };
        let size = condition.size(self.height, self.width)?;
        for (place, control) in cond.controls.iter().enumerate() {
            // One that ends before it begins never acts.
            if control.start > control.end {
                continue;
            }
            let network = self.network(control)?;
            let picture = sample % control.image.count().max(1);
            let hint = match hints.get(&(number, place, picture)) {
                Some(hint) => hint.clone(),
                None => {
                    let hint = self.hint(&network, control, picture, size)?;
                    hints.insert((number, place, picture), hint.clone());
                    hint
                }
            };
            let CondControl { strength, start, end, .. } = *control;
            condition.controls.push(Control { network, hint, strength, start, end });
        }
        Ok(condition)
    }

    fn network(&mut self, control: &CondControl) -> Result<Arc<ControlNetwork>, NodeError> {
        if let Some(network) = self.networks.get(&control.net.name) {
            return Ok(Arc::clone(network));
        }
        let network = self.model.control_net(self.context, &control.net.name)?;
        self.networks.insert(Arc::clone(&control.net.name), Arc::clone(&network));
        Ok(network)
    }

    fn hint(
        &self,
        network: &ControlNetwork,
        control: &CondControl,
        index: usize,
        (height, width): (usize, usize),
    ) -> Result<Tensor, NodeError> {
        let missing =
            || NodeError::Failed("a ControlNet's picture has no pixels, or fewer than three channels".into());
        if control.image.count() == 0 {
            return Err(missing());
        }
        let picture = picture(&control.image, index).ok_or_else(missing)?;
        let device = self.model.pipeline.device();
        Ok(Control::embed(network, &picture, CELL * width, CELL * height, device)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sampler_that_is_offered_is_one() {
        for name in SAMPLERS {
            let sampler = name.parse::<SamplerKind>().unwrap();
            assert_eq!(sampler.name(), name.strip_suffix("_gpu").unwrap_or(name));
        }
    }
}
