//! One step of many samples: the unit of work that everything above schedules.
//!
//! Samples of one latent shape go through the network together whatever their prompts, areas, seeds, noise levels,
//! step counts, samplers, guidance, LoRAs and ControlNets are; each then advances on its own. What comes out
//! for a sample does not depend on which others were there.

mod controls;

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use darkroom_models::adapter::Adapters;
use darkroom_models::unet::{FreeU, FreeUScales, UNet2DConditionModel, UNetInput};

use crate::PipelineError;
use crate::condition::{Cells, Placed};
use crate::conditioning::pad_contexts;
use crate::lora::LoraSet;
use crate::sample::{Evaluation, Sample};
use crate::schedule::ModelSampling;

/// A network and its noise schedule: what turns noisy latents into denoised ones.
pub struct Denoiser<'a> {
    /// The network.
    pub unet: &'a UNet2DConditionModel,
    /// Its noise schedule and prediction type, for samples that have no others.
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
    placed: &'s Placed,
    sampling: &'s ModelSampling,
    /// LoRAs that are not in the network's weights.
    loras: Option<&'s Arc<LoraSet>>,
    free_u: &'s [FreeUScales],
}

impl Denoiser<'_> {
    /// Advances every unfinished sample of `batch` by one network evaluation. All must have the same latent shape.
    ///
    /// Parts of latents, which conditions with areas have, go through the network in calls of their own, one for each
    /// shape. No call has more rows than two for each sample, so that what a call takes is known beforehand.
    pub fn step(&self, batch: &mut [&mut Sample]) -> Result<(), PipelineError> {
        let mut evaluations: Vec<(usize, Evaluation)> = Vec::with_capacity(batch.len());
        for (index, sample) in batch.iter().enumerate() {
            evaluations.extend(sample.next_evaluation()?.map(|evaluation| (index, evaluation)));
        }
        if evaluations.is_empty() {
            return Ok(());
        }
        self.check_merged(batch)?;
        // A stable sort: which rows are neighbours depends on the samples alone.
        let loras = |index: usize| batch[index].loras().filter(|set| self.is_apart(set));
        let name = |index: usize| loras(index).map(|set| set.name());
        evaluations.sort_by(|(a, _), (b, _)| name(*a).cmp(&name(*b)));

        let mut rows = Vec::with_capacity(2 * evaluations.len());
        let mut ends = Vec::with_capacity(evaluations.len());
        for (index, Evaluation { latent, sigma }) in &evaluations {
            let guidance = batch[*index].guidance();
            for placed in guidance.rows(*sigma) {
                rows.push(Row {
                    latent: match &placed.part {
                        None => latent.clone(),
                        Some(Cells { height, width, y, x }) => {
                            latent.narrow(1, *y, *height)?.narrow(2, *x, *width)?.contiguous()?
                        }
                    },
                    sigma: *sigma,
                    placed,
                    sampling: guidance.sampling.as_deref().unwrap_or(self.sampling),
                    loras: loras(*index),
                    free_u: &guidance.free_u,
                });
            }
            ends.push(rows.len());
        }
        let denoised = self.denoised(&rows, 2 * evaluations.len())?;
        drop(rows);

        let mut start = 0;
        for ((index, evaluation), end) in evaluations.iter().zip(ends) {
            batch[*index].advance(evaluation, &denoised[start..end])?;
            start = end;
        }
        Ok(())
    }

    /// What each row's latent is without its noise, in calls of one shape and at most `most` rows.
    fn denoised(&self, rows: &[Row<'_>], most: usize) -> Result<Vec<Tensor>, PipelineError> {
        let mut shapes: Vec<(&[usize], Vec<usize>)> = Vec::new();
        for (i, row) in rows.iter().enumerate() {
            match shapes.iter_mut().find(|(dims, _)| *dims == row.latent.dims()) {
                Some((_, alike)) => alike.push(i),
                None => shapes.push((row.latent.dims(), vec![i])),
            }
        }
        let mut denoised: Vec<(usize, Tensor)> = Vec::with_capacity(rows.len());
        for call in shapes.iter().flat_map(|(_, alike)| alike.chunks(most.max(1))) {
            let of_call: Vec<&Row<'_>> = call.iter().map(|i| &rows[*i]).collect();
            let output = self.evaluate(&of_call)?;
            for (i, (index, row)) in call.iter().zip(of_call).enumerate() {
                denoised.push((*index, row.sampling.denoised(&row.latent, &output.get(i)?, row.sigma)?));
            }
        }
        denoised.sort_unstable_by_key(|(index, _)| *index);
        Ok(denoised.into_iter().map(|(_, tensor)| tensor).collect())
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

    /// One network call: `[rows, 4, h, w]`.
    fn evaluate(&self, rows: &[&Row<'_>]) -> Result<Tensor, PipelineError> {
        let latents = rows
            .iter()
            .map(|row| row.sampling.scale_input(&row.latent, row.sigma))
            .collect::<candle_core::Result<Vec<_>>>()?;
        let timesteps: Vec<f32> = rows.iter().map(|row| row.sampling.timestep(row.sigma)).collect();
        let contexts: Vec<&Tensor> = rows.iter().map(|row| &row.placed.text.context).collect();
        let (context, context_lengths) = pad_contexts(&contexts)?;
        let pooled: Vec<&Tensor> = rows.iter().filter_map(|row| row.placed.text.pooled.as_ref()).collect();
        let sizes: Vec<f32> = rows.iter().filter_map(|row| row.placed.size_ids).flatten().collect();
        let free_u = rows
            .iter()
            .enumerate()
            .flat_map(|(i, row)| row.free_u.iter().map(move |scales| (i, *scales)))
            .collect();

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
            adapters: &adapters(rows),
        };
        let calls = controls::calls(rows.iter().map(|row| (row.sigma, row.placed.controls.as_slice())));
        Ok(self.unet.forward_with(&input, &FreeU::new(free_u), |features| {
            calls.iter().try_for_each(|call| call.add_to(features, &input, self.device))
        })?)
    }
}

/// Which rows have which LoRAs.
fn adapters(rows: &[&Row<'_>]) -> Adapters {
    let mut groups: Vec<(Range<usize>, &Arc<LoraSet>)> = Vec::new();
    for (i, row) in rows.iter().enumerate() {
        let Some(set) = row.loras else { continue };
        match groups.last_mut() {
            Some((known, last)) if last.name() == set.name() && known.end == i => known.end = i + 1,
            _ => groups.push((i..i + 1, set)),
        }
    }
    Adapters::new(groups.into_iter().map(|(rows, set)| (rows, Arc::clone(&set.unet))).collect())
}
