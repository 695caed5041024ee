//! A call of the UNet: the rows' conditioning, ControlNets, FreeU and step caching around it.

use candle_core::{Device, Tensor};
use darkroom_models::unet::{FreeU, FreeUScales, Steering, UNet2DConditionModel, UNetInput};

use super::{Inputs, Output, Row, adapters, controls};
use crate::PipelineError;
use crate::step_cache::Pass;

/// One call of the whole network or of what is above skip `branch`.
pub(super) fn evaluate(
    unet: &UNet2DConditionModel,
    rows: &[&Row<'_>],
    branch: Option<usize>,
    device: &Device,
) -> Result<Output, PipelineError> {
    let Inputs { latent, timesteps, context, context_lengths } = Inputs::of(rows, device)?;
    let pooled: Vec<&Tensor> = rows.iter().filter_map(|row| row.placed.text.pooled.as_ref()).collect();
    let sizes: Vec<f32> = rows.iter().filter_map(|row| row.placed.size_ids).flatten().collect();
    let free_u: Vec<(usize, FreeUScales)> = rows
        .iter()
        .enumerate()
        .flat_map(|(i, row)| row.free_u.iter().map(move |scales| (i, *scales)))
        .collect();

    let pooled = if pooled.is_empty() { None } else { Some(Tensor::stack(&pooled, 0)?) };
    let size_ids =
        if sizes.is_empty() { None } else { Some(Tensor::from_vec(sizes, (rows.len(), 6), device)?) };
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
    let prepared = calls.iter().map(|call| call.prepare(rows.len(), device));
    let controls = prepared.collect::<candle_core::Result<Vec<_>>>()?;
    let mut kept: Vec<Option<Tensor>> = vec![None; rows.len()];
    let keeps = |row: &&Row<'_>| matches!(row.pass, Pass::Whole { keep: Some(_) });
    let plain = free_u.is_empty() && !rows.iter().any(keeps);
    let predictions = match branch {
        None if plain => unet.forward_replayed(
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
        None => unet.forward_observed(
            &input,
            &FreeU::new(free_u),
            |features| controls.iter().try_for_each(|call| call.add_to(features, &input)),
            |skip, below| keep(rows, skip, below, &mut kept),
        )?,
        Some(branch) => {
            let below = stacked_features(rows, !free_u.is_empty())?;
            unet.forward_shallow(&input, &FreeU::new(free_u), branch, below, |features| {
                controls.iter().try_for_each(|call| call.add_to_shallow(features, &input))
            })?
        }
    };
    Ok(Output { predictions, kept, control_rows })
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
