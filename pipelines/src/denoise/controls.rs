//! The ControlNets of a step batch: each network is called once for all rows that want it, whatever their pictures and
//! strengths, and its residuals are added to those rows (ComfyUI's `control_merge`: several add up).

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use darkroom_models::adapter::Adapters;
use darkroom_models::controlnet::ControlNet;
use darkroom_models::unet::{ShallowFeatures, UNetFeatures, UNetInput};

use crate::control::ActiveControl;

/// One network and the rows that want it; a row that wants it twice stands there twice.
pub(super) struct Call<'s> {
    network: &'s Arc<ControlNet>,
    rows: Vec<ControlledRow<'s>>,
}

struct ControlledRow<'s> {
    row: usize,
    hint: &'s Tensor,
    strength: f64,
}

/// The calls for rows, given each one's noise level and controls.
pub(super) fn calls<'s>(rows: impl Iterator<Item = (f32, &'s [ActiveControl])>) -> Vec<Call<'s>> {
    let mut calls: Vec<Call<'s>> = Vec::new();
    for (row, (sigma, controls)) in rows.enumerate() {
        for ActiveControl { control, .. } in controls.iter().filter(|control| control.acts_at(sigma)) {
            let wanted = ControlledRow { row, hint: &control.hint, strength: control.strength };
            match calls.iter_mut().find(|call| Arc::ptr_eq(call.network, &control.network)) {
                Some(call) => call.rows.push(wanted),
                None => calls.push(Call { network: &control.network, rows: vec![wanted] }),
            }
        }
    }
    calls
}

impl Call<'_> {
    /// Rows of the call.
    pub(super) fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Calls the network and adds what it says to the rows' features.
    pub(super) fn add_to(
        &self,
        features: &mut UNetFeatures,
        input: &UNetInput<'_>,
        device: &Device,
    ) -> candle_core::Result<()> {
        let residuals = self.call(input, device, |input, hints| self.network.forward(input, hints))?;
        features.add_to_rows(&residuals.scaled(&self.strengths(device)?)?, &self.runs())
    }

    /// The same for a shallow pass: the network runs only as far as that needs.
    pub(super) fn add_to_shallow(
        &self,
        features: &mut ShallowFeatures,
        input: &UNetInput<'_>,
        device: &Device,
    ) -> candle_core::Result<()> {
        let count = features.skips.len();
        let residuals =
            self.call(input, device, |input, hints| self.network.forward_shallow(input, hints, count))?;
        let strengths = self.strengths(device)?;
        let scaled = residuals
            .iter()
            .map(|residual| residual.broadcast_mul(&strengths.to_dtype(residual.dtype())?))
            .collect::<candle_core::Result<Vec<_>>>()?;
        features.add_to_rows(&scaled, &self.runs())
    }

    /// Each row's strength, `[rows, 1, 1, 1]`.
    fn strengths(&self, device: &Device) -> candle_core::Result<Tensor> {
        let strengths: Vec<f32> = self.rows.iter().map(|row| row.strength as f32).collect();
        Tensor::from_vec(strengths, (self.rows.len(), 1, 1, 1), device)
    }

    /// Calls the network for its rows.
    fn call<T>(
        &self,
        input: &UNetInput<'_>,
        device: &Device,
        network: impl FnOnce(&UNetInput<'_>, &Tensor) -> candle_core::Result<T>,
    ) -> candle_core::Result<T> {
        let hints: Vec<&Tensor> = self.rows.iter().map(|row| row.hint).collect();
        let hints = Tensor::stack(&hints, 0)?;
        let all = input.latent.dim(0)?;
        let numbers: Vec<u32> = self.rows.iter().map(|row| row.row as u32).collect();
        let whole = numbers.len() == all && numbers.iter().enumerate().all(|(i, row)| i == *row as usize);
        let ids = Tensor::from_vec(numbers, self.rows.len(), device)?;
        let select = |tensor: &Tensor| if whole { Ok(tensor.clone()) } else { tensor.index_select(&ids, 0) };
        let (latent, timesteps, context) =
            (select(input.latent)?, select(input.timesteps)?, select(input.context)?);
        let pooled = input.pooled.map(select).transpose()?;
        let size_ids = input.size_ids.map(select).transpose()?;
        let lengths: Option<Vec<usize>> =
            input.context_lengths.map(|lengths| self.rows.iter().map(|row| lengths[row.row]).collect());
        network(
            &UNetInput {
                latent: &latent,
                timesteps: &timesteps,
                context: &context,
                context_lengths: lengths.as_deref(),
                pooled: pooled.as_ref(),
                size_ids: size_ids.as_ref(),
                // LoRAs change the model, not its ControlNets.
                adapters: Adapters::none(),
            },
            &hints,
        )
    }

    /// Neighbouring rows as `(rows of the residuals, first row of the batch)`.
    fn runs(&self) -> Vec<(Range<usize>, usize)> {
        let mut runs: Vec<(Range<usize>, usize)> = Vec::new();
        for (i, row) in self.rows.iter().enumerate() {
            match runs.last_mut() {
                Some((from, to)) if *to + from.len() == row.row => from.end = i + 1,
                _ => runs.push((i..i + 1, row.row)),
            }
        }
        runs
    }
}
