//! One step of many samples: the unit of work that everything above schedules.
//!
//! Samples of one latent shape go through the network together whatever their prompts, seeds, noise levels,
//! step counts, samplers and guidance scales are; each then advances on its own. What comes out for a sample
//! does not depend on which others were there.

use candle_core::{Device, Tensor};
use darkroom_models::adapter::Adapters;
use darkroom_models::unet::{UNet2DConditionModel, UNetInput};

use crate::PipelineError;
use crate::conditioning::{Conditioning, pad_contexts};
use crate::sample::Sample;
use crate::schedule::ModelSampling;

/// A network and its noise schedule: what turns noisy latents into denoised ones.
pub struct Denoiser<'a> {
    /// The network.
    pub unet: &'a UNet2DConditionModel,
    /// Its noise schedule and prediction type.
    pub sampling: &'a ModelSampling,
    /// Where it lives.
    pub device: &'a Device,
}

/// One row of the network's batch.
struct Row<'s> {
    latent: Tensor,
    sigma: f32,
    conditioning: &'s Conditioning,
    size_ids: Option<[f32; 6]>,
}

impl Denoiser<'_> {
    /// Advances every unfinished sample of `batch` by one network evaluation, in one call. All must have the
    /// same latent shape.
    pub fn step(&self, batch: &mut [&mut Sample]) -> Result<(), PipelineError> {
        let mut rows = Vec::with_capacity(2 * batch.len());
        let mut evaluated = Vec::with_capacity(batch.len());
        for (index, sample) in batch.iter().enumerate() {
            let Some(evaluation) = sample.next_evaluation()? else { continue };
            let guidance = sample.guidance();
            let (latent, sigma) = (evaluation.latent, evaluation.sigma);
            let row = |conditioning| Row {
                latent: latent.clone(),
                sigma,
                conditioning,
                size_ids: guidance.size_ids,
            };
            rows.push(row(&guidance.positive));
            rows.extend(guidance.negative.as_ref().map(row));
            evaluated.push((index, guidance.negative.is_some()));
        }
        if rows.is_empty() {
            return Ok(());
        }
        let output = self.evaluate(&rows)?;
        let denoised = rows
            .iter()
            .enumerate()
            .map(|(i, row)| self.sampling.denoised(&row.latent, &output.get(i)?, row.sigma))
            .collect::<candle_core::Result<Vec<_>>>()?;

        let mut denoised = denoised.iter();
        for (index, guided) in evaluated {
            let (Some(cond), uncond) = (denoised.next(), if guided { denoised.next() } else { None }) else {
                break;
            };
            batch[index].advance(cond, uncond)?;
        }
        Ok(())
    }

    /// One network call: `[rows, 4, h/8, w/8]`.
    fn evaluate(&self, rows: &[Row<'_>]) -> Result<Tensor, PipelineError> {
        let latents = rows
            .iter()
            .map(|row| self.sampling.scale_input(&row.latent, row.sigma))
            .collect::<candle_core::Result<Vec<_>>>()?;
        let timesteps: Vec<f32> = rows.iter().map(|row| self.sampling.timestep(row.sigma)).collect();
        let contexts: Vec<&Tensor> = rows.iter().map(|row| &row.conditioning.context).collect();
        let (context, context_lengths) = pad_contexts(&contexts)?;
        let pooled: Vec<&Tensor> = rows.iter().filter_map(|row| row.conditioning.pooled.as_ref()).collect();
        let sizes: Vec<f32> = rows.iter().filter_map(|row| row.size_ids).flatten().collect();

        let latent = Tensor::stack(&latents, 0)?;
        let timesteps = Tensor::from_vec(timesteps, rows.len(), self.device)?;
        let pooled = if pooled.is_empty() { None } else { Some(Tensor::stack(&pooled, 0)?) };
        let size_ids = if sizes.is_empty() {
            None
        } else {
            Some(Tensor::from_vec(sizes, (rows.len(), 6), self.device)?)
        };
        Ok(self.unet.forward(&UNetInput {
            latent: &latent,
            timesteps: &timesteps,
            context: &context,
            context_lengths: context_lengths.as_deref(),
            pooled: pooled.as_ref(),
            size_ids: size_ids.as_ref(),
            adapters: Adapters::none(),
        })?)
    }
}
