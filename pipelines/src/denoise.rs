//! One step of many samples: the unit of work that everything above schedules.
//!
//! Samples of one latent shape go through the network together whatever their prompts, seeds, noise levels,
//! step counts, samplers, guidance scales, LoRAs and ControlNets are; each then advances on its own. What comes out
//! for a sample does not depend on which others were there.

mod controls;

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use darkroom_models::adapter::Adapters;
use darkroom_models::unet::{UNet2DConditionModel, UNetInput};

use crate::PipelineError;
use crate::conditioning::{Conditioning, pad_contexts};
use crate::control::ActiveControl;
use crate::lora::LoraSet;
use crate::sample::{Evaluation, Sample};
use crate::schedule::ModelSampling;

/// A network and its noise schedule: what turns noisy latents into denoised ones.
pub struct Denoiser<'a> {
    /// The network.
    pub unet: &'a UNet2DConditionModel,
    /// Its noise schedule and prediction type.
    pub sampling: &'a ModelSampling,
    /// Where it lives.
    pub device: &'a Device,
    /// The LoRAs that are in the network's weights.
    pub merged: Option<&'a LoraSet>,
}

/// One row of the network's batch.
struct Row<'s> {
    latent: Tensor,
    sigma: f32,
    conditioning: &'s Conditioning,
    size_ids: Option<[f32; 6]>,
    controls: &'s [ActiveControl],
}

/// Samples that the network's call is about, in the order of its rows: those of one set of LoRAs are neighbours.
struct Evaluated<'s> {
    index: usize,
    guided: bool,
    loras: Option<&'s Arc<LoraSet>>,
}

impl Denoiser<'_> {
    /// Advances every unfinished sample of `batch` by one network evaluation, in one call. All must have the
    /// same latent shape.
    pub fn step(&self, batch: &mut [&mut Sample]) -> Result<(), PipelineError> {
        let mut evaluations: Vec<(usize, Evaluation, Option<&Arc<LoraSet>>)> =
            Vec::with_capacity(batch.len());
        for (index, sample) in batch.iter().enumerate() {
            if let Some(evaluation) = sample.next_evaluation()? {
                evaluations.push((index, evaluation, sample.loras().filter(|set| self.is_apart(set))));
            }
        }
        if evaluations.is_empty() {
            return Ok(());
        }
        self.check_merged(batch)?;
        // A stable sort: which rows are neighbours depends on the samples alone.
        evaluations.sort_by(|(_, _, a), (_, _, b)| a.map(|set| set.name()).cmp(&b.map(|set| set.name())));

        let mut rows = Vec::with_capacity(2 * evaluations.len());
        let mut evaluated = Vec::with_capacity(evaluations.len());
        for (index, Evaluation { latent, sigma }, loras) in evaluations {
            let guidance = batch[index].guidance();
            let row = |conditioning| Row {
                latent: latent.clone(),
                sigma,
                conditioning,
                size_ids: guidance.size_ids,
                controls: &guidance.controls,
            };
            rows.push(row(&guidance.positive));
            rows.extend(guidance.negative.as_ref().map(row));
            evaluated.push(Evaluated { index, guided: guidance.negative.is_some(), loras });
        }
        let output = self.evaluate(&rows, &adapters(&evaluated))?;
        let denoised = rows
            .iter()
            .enumerate()
            .map(|(i, row)| self.sampling.denoised(&row.latent, &output.get(i)?, row.sigma))
            .collect::<candle_core::Result<Vec<_>>>()?;

        let order: Vec<(usize, bool)> = evaluated.iter().map(|e| (e.index, e.guided)).collect();
        let mut denoised = denoised.iter();
        for (index, guided) in order {
            let (Some(cond), uncond) = (denoised.next(), if guided { denoised.next() } else { None }) else {
                break;
            };
            batch[index].advance(cond, uncond)?;
        }
        Ok(())
    }

    /// Whether a set is not in the network's weights.
    fn is_apart(&self, set: &LoraSet) -> bool {
        self.merged.is_none_or(|merged| merged.name() != set.name())
    }

    /// Weights with LoRAs in them are for samples of these LoRAs only.
    fn check_merged(&self, batch: &[&mut Sample]) -> Result<(), PipelineError> {
        let Some(merged) = self.merged else { return Ok(()) };
        if batch.iter().all(|sample| sample.loras().is_some_and(|set| set.name() == merged.name())) {
            return Ok(());
        }
        Err(PipelineError::Request {
            field: "loras",
            message: format!("of a sample are not those in the weights ({})", merged.name()),
        })
    }

    /// One network call: `[rows, 4, h/8, w/8]`.
    fn evaluate(&self, rows: &[Row<'_>], adapters: &Adapters) -> Result<Tensor, PipelineError> {
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
        let input = UNetInput {
            latent: &latent,
            timesteps: &timesteps,
            context: &context,
            context_lengths: context_lengths.as_deref(),
            pooled: pooled.as_ref(),
            size_ids: size_ids.as_ref(),
            adapters,
        };
        let calls = controls::calls(rows.iter().map(|row| (row.sigma, row.controls)));
        Ok(self.unet.forward_with(&input, |features| {
            calls.iter().try_for_each(|call| call.add_to(features, &input, self.device))
        })?)
    }
}

/// Which rows have which LoRAs.
fn adapters(evaluated: &[Evaluated<'_>]) -> Adapters {
    let mut groups: Vec<(Range<usize>, &Arc<LoraSet>)> = Vec::new();
    let mut row = 0;
    for sample in evaluated {
        let rows = row..row + if sample.guided { 2 } else { 1 };
        row = rows.end;
        let Some(set) = sample.loras else { continue };
        match groups.last_mut() {
            Some((known, last)) if last.name() == set.name() && known.end == rows.start => {
                known.end = rows.end;
            }
            _ => groups.push((rows, set)),
        }
    }
    Adapters::new(groups.into_iter().map(|(rows, set)| (rows, Arc::clone(&set.unet))).collect())
}
