//! One step of many samples: the unit of work that everything above schedules.
//!
//! Samples of one latent shape go through the network together whatever their prompts, areas, seeds, noise levels,
//! step counts, samplers, guidance, LoRAs and ControlNets are; each then advances on its own. What comes out
//! for a sample does not depend on which others were there.
//!
//! With step caching, rows that run the whole network and rows that run its outer part go in a call each.

mod controls;
mod qwen_image;
mod unet;

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use darkroom_models::adapter::Adapters;
use darkroom_models::unet::FreeUScales;

use crate::PipelineError;
use crate::condition::{Cells, Placed};
use crate::conditioning::pad_contexts;
use crate::lora::LoraSet;
use crate::network::Network;
use crate::sample::{Evaluation, Sample};
use crate::schedule::ModelSampling;
use crate::step_cache::Pass;

/// A network and its noise schedule: what turns noisy latents into denoised ones.
pub(crate) struct Denoiser<'a> {
    /// The network.
    pub(crate) network: &'a Network,
    /// Its noise schedule and prediction type, for samples that have no others.
    pub(crate) sampling: &'a ModelSampling,
    /// Where it lives.
    pub(crate) device: &'a Device,
    /// The LoRAs that are in the network's weights.
    pub(crate) merged: Option<&'a LoraSet>,
}

/// What a step put through networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StepWork {
    /// Calls of the denoising network.
    pub calls: usize,
    /// Rows that went through all of it.
    pub whole_rows: usize,
    /// Rows that went through its outer part on kept features.
    pub shallow_rows: usize,
    /// Rows that went through ControlNets, whole or as far as a shallow pass needs.
    pub control_rows: usize,
}

/// One row of the network's batch.
struct Row<'s> {
    latent: Tensor,
    sigma: f32,
    /// Its condition's number within its sample.
    condition: usize,
    placed: &'s Placed,
    pass: Pass<'s>,
    sampling: &'s ModelSampling,
    /// LoRAs that are not in the network's weights.
    loras: Option<&'s Arc<LoraSet>>,
    free_u: &'s [FreeUScales],
}

/// What became of a row.
struct Evaluated {
    denoised: Tensor,
    /// What the sample keeps of it, `[h, w, c]`.
    kept: Option<Tensor>,
}

/// What rows of one call share.
#[derive(PartialEq)]
struct CallKind<'r> {
    dims: &'r [usize],
    /// Where the pass is cut; `None`: nowhere.
    branch: Option<usize>,
}

/// What networks of all kinds are told of the rows of a call.
struct Inputs {
    /// `[rows, channels, h, w]`, scaled for the network.
    latent: Tensor,
    /// `[rows]`
    timesteps: Tensor,
    /// `[rows, tokens, width]`
    context: Tensor,
    /// Of each row, where they differ.
    context_lengths: Option<Vec<usize>>,
}

impl Inputs {
    fn of(rows: &[&Row<'_>], device: &Device) -> Result<Self, PipelineError> {
        let latents = rows
            .iter()
            .map(|row| row.sampling.scale_input(&row.latent, row.sigma))
            .collect::<candle_core::Result<Vec<_>>>()?;
        let timesteps: Vec<f32> = rows.iter().map(|row| row.sampling.timestep(row.sigma)).collect();
        let contexts: Vec<&Tensor> = rows.iter().map(|row| &row.placed.text.context).collect();
        let (context, context_lengths) = pad_contexts(&contexts)?;
        Ok(Self {
            latent: Tensor::stack(&latents, 0)?,
            timesteps: Tensor::from_vec(timesteps, rows.len(), device)?,
            context,
            context_lengths,
        })
    }
}

/// What one call gave.
struct Output {
    /// `[rows, channels, h, w]`.
    predictions: Tensor,
    /// Copies of what its rows keep.
    kept: Vec<Option<Tensor>>,
    control_rows: usize,
}

impl Denoiser<'_> {
    /// Advances every unfinished sample of `batch` by one network evaluation. All must have the same latent shape.
    ///
    /// Parts of latents, which conditions with areas have, go through the network in calls of their own, one for each
    /// shape. No call has more rows than two for each sample, so that what a call takes is known beforehand.
    pub(crate) fn step(&self, batch: &mut [&mut Sample]) -> Result<StepWork, PipelineError> {
        let mut work = StepWork::default();
        batch.iter_mut().for_each(|sample| sample.drop_stale_features());
        let mut evaluations: Vec<(usize, Evaluation)> = Vec::with_capacity(batch.len());
        for (index, sample) in batch.iter().enumerate() {
            evaluations.extend(sample.next_evaluation()?.map(|evaluation| (index, evaluation)));
        }
        if evaluations.is_empty() {
            return Ok(work);
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
            for (condition, placed) in guidance.rows(*sigma) {
                rows.push(Row {
                    latent: match &placed.part {
                        None => latent.clone(),
                        Some(Cells { height, width, y, x }) => {
                            latent.narrow(1, *y, *height)?.narrow(2, *x, *width)?.contiguous()?
                        }
                    },
                    sigma: *sigma,
                    condition,
                    placed,
                    pass: batch[*index].pass(condition),
                    sampling: guidance.sampling.as_deref().unwrap_or(self.sampling),
                    loras: loras(*index),
                    free_u: &guidance.free_u,
                });
            }
            ends.push(rows.len());
        }
        let evaluated = self.evaluate_all(&rows, 2 * evaluations.len(), &mut work)?;
        let conditions: Vec<usize> = rows.iter().map(|row| row.condition).collect();
        drop(rows);

        let mut of_rows = evaluated.into_iter().zip(conditions);
        let mut start = 0;
        for ((index, evaluation), end) in evaluations.iter().zip(ends) {
            let (mut denoised, mut kept) = (Vec::with_capacity(end - start), Vec::new());
            for (row, condition) in of_rows.by_ref().take(end - start) {
                denoised.push(row.denoised);
                kept.extend(row.kept.map(|features| (condition, features)));
            }
            batch[*index].advance(evaluation, &denoised, kept)?;
            start = end;
        }
        Ok(work)
    }

    /// What each row's latent is without its noise, in calls of one shape, one depth and at most `most` rows.
    fn evaluate_all(
        &self,
        rows: &[Row<'_>],
        most: usize,
        work: &mut StepWork,
    ) -> Result<Vec<Evaluated>, PipelineError> {
        let mut kinds: Vec<(CallKind<'_>, Vec<usize>)> = Vec::new();
        for (i, row) in rows.iter().enumerate() {
            let own = CallKind { dims: row.latent.dims(), branch: row.pass.branch() };
            match kinds.iter_mut().find(|(kind, _)| *kind == own) {
                Some((_, alike)) => alike.push(i),
                None => kinds.push((own, vec![i])),
            }
        }
        let mut evaluated: Vec<(usize, Evaluated)> = Vec::with_capacity(rows.len());
        for (CallKind { branch, .. }, alike) in &kinds {
            for call in alike.chunks(most.max(1)) {
                let of_call: Vec<&Row<'_>> = call.iter().map(|i| &rows[*i]).collect();
                let Output { predictions, kept, control_rows } = self.evaluate(&of_call, *branch)?;
                work.calls += 1;
                work.control_rows += control_rows;
                match branch {
                    None => work.whole_rows += call.len(),
                    Some(_) => work.shallow_rows += call.len(),
                }
                for (i, ((index, row), kept)) in call.iter().zip(of_call).zip(kept).enumerate() {
                    let denoised = row.sampling.denoised(&row.latent, &predictions.get(i)?, row.sigma)?;
                    evaluated.push((*index, Evaluated { denoised, kept }));
                }
            }
        }
        evaluated.sort_unstable_by_key(|(index, _)| *index);
        Ok(evaluated.into_iter().map(|(_, row)| row).collect())
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

    /// One network call, of the whole network or of what is above skip `branch`.
    fn evaluate(&self, rows: &[&Row<'_>], branch: Option<usize>) -> Result<Output, PipelineError> {
        match self.network {
            Network::UNet(unet) => unet::evaluate(unet, rows, branch, self.device),
            Network::QwenImage(transformer) => qwen_image::evaluate(transformer, rows, self.device),
        }
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
