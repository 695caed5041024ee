//! One step of many samples: the unit of work that everything above schedules.
//!
//! Samples of one latent shape go through the network together whatever their prompts, areas, seeds, noise levels,
//! step counts, samplers, guidance, LoRAs and ControlNets are; each then advances on its own. What comes out
//! for a sample does not depend on which others were there.
//!
//! With step caching, rows that run the whole network and rows that run its outer part go in a call each.

mod controls;

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use darkroom_models::adapter::Adapters;
use darkroom_models::unet::{FreeU, FreeUScales, Steering, UNet2DConditionModel, UNetInput};

use crate::PipelineError;
use crate::condition::{Cells, Placed};
use crate::conditioning::pad_contexts;
use crate::lora::LoraSet;
use crate::sample::{Evaluation, Sample};
use crate::schedule::ModelSampling;
use crate::step_cache::Pass;

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

/// What a step put through networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StepWork {
    /// Calls of the UNet.
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

/// What one call gave.
struct Output {
    /// `[rows, 4, h, w]`.
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
    pub fn step(&self, batch: &mut [&mut Sample]) -> Result<StepWork, PipelineError> {
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
        let latents = rows
            .iter()
            .map(|row| row.sampling.scale_input(&row.latent, row.sigma))
            .collect::<candle_core::Result<Vec<_>>>()?;
        let timesteps: Vec<f32> = rows.iter().map(|row| row.sampling.timestep(row.sigma)).collect();
        let contexts: Vec<&Tensor> = rows.iter().map(|row| &row.placed.text.context).collect();
        let (context, context_lengths) = pad_contexts(&contexts)?;
        let pooled: Vec<&Tensor> = rows.iter().filter_map(|row| row.placed.text.pooled.as_ref()).collect();
        let sizes: Vec<f32> = rows.iter().filter_map(|row| row.placed.size_ids).flatten().collect();
        let free_u: Vec<(usize, FreeUScales)> = rows
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
        let control_rows = calls.iter().map(controls::Call::rows).sum();
        let prepared = calls.iter().map(|call| call.prepare(rows.len(), self.device));
        let controls = prepared.collect::<candle_core::Result<Vec<_>>>()?;
        let mut kept: Vec<Option<Tensor>> = vec![None; rows.len()];
        let keeps = |row: &&Row<'_>| matches!(row.pass, Pass::Whole { keep: Some(_) });
        let plain = free_u.is_empty() && !rows.iter().any(keeps);
        let predictions = match branch {
            None if plain => self.unet.forward_replayed(
                &input,
                &Steering {
                    key: controls.iter().map(controls::Prepared::key).collect(),
                    tensors: controls.iter().flat_map(controls::Prepared::tensors).collect(),
                    adjust: &|features, input, tensors| {
                        let mut tensors = tensors.iter();
                        controls.iter().try_for_each(|call| call.over(&mut tensors)?.add_to(features, input))
                    },
                },
            )?,
            None => self.unet.forward_observed(
                &input,
                &FreeU::new(free_u),
                |features| controls.iter().try_for_each(|call| call.add_to(features, &input)),
                |skip, below| keep(rows, skip, below, &mut kept),
            )?,
            Some(branch) => {
                let below = stacked_features(rows, !free_u.is_empty())?;
                self.unet.forward_shallow(&input, &FreeU::new(free_u), branch, below, |features| {
                    controls.iter().try_for_each(|call| call.add_to_shallow(features, &input))
                })?
            }
        };
        Ok(Output { predictions, kept, control_rows })
    }
}

/// Copies what rows are to keep of what comes from below at a skip.
fn keep(
    rows: &[&Row<'_>],
    skip: usize,
    below: &Tensor,
    kept: &mut [Option<Tensor>],
) -> candle_core::Result<()> {
    for (i, (row, kept)) in rows.iter().zip(kept).enumerate() {
        if matches!(row.pass, Pass::Whole { keep: Some(wanted) } if wanted == skip) {
            *kept = Some(below.get(i)?.force_contiguous()?);
        }
    }
    Ok(())
}

/// Kept features of the rows of a shallow call, `[rows, h, w, c]`; `own`: in memory of its own whatever happens.
fn stacked_features(rows: &[&Row<'_>], own: bool) -> candle_core::Result<Tensor> {
    let kept: Vec<&Tensor> = rows
        .iter()
        .filter_map(|row| match row.pass {
            Pass::Shallow { below, .. } => Some(below),
            Pass::Whole { .. } => None,
        })
        .collect();
    let stacked = Tensor::stack(&kept, 0)?;
    // The stack of one tensor is that tensor.
    if own && kept.len() == 1 { stacked.force_contiguous() } else { Ok(stacked) }
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
