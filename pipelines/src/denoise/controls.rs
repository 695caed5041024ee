//! The ControlNets of a step batch: each network is called once for all rows that want it, whatever their pictures and
//! strengths, and its residuals are added to those rows (ComfyUI's `control_merge`: several add up).

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use darkroom_models::adapter::Adapters;
use darkroom_models::controlnet::ControlNet;
use darkroom_models::unet::{ShallowFeatures, SteeringKey, UNetFeatures, UNetInput};

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

/// A call with what it computes from on the device.
pub(super) struct Prepared<'s> {
    call: &'s Call<'s>,
    /// Embedded hints, one a row of the call.
    hints: Tensor,
    /// Each row's strength, `[rows, 1, 1, 1]`.
    strengths: Tensor,
    /// Which rows of the batch; `None`: all, in their order.
    ids: Option<Tensor>,
}

impl<'s> Prepared<'s> {
    /// The call's network and rows.
    pub(super) fn key(&self) -> SteeringKey {
        let rows = self.call.rows.iter().map(|row| row.row).collect();
        SteeringKey { network: self.call.network.identity(), rows }
    }

    /// What it computes from beside a pass's input.
    pub(super) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        [&self.hints, &self.strengths].into_iter().chain(&self.ids)
    }

    /// The same call over other tensors, taken from the front of `tensors`: those of [`Prepared::tensors`] elsewhere.
    pub(super) fn over(&self, tensors: &mut std::slice::Iter<'_, Tensor>) -> candle_core::Result<Self> {
        let mut next = || match tensors.next() {
            Some(tensor) => Ok(tensor.clone()),
            None => candle_core::bail!("a ControlNet's call lacks a tensor"),
        };
        let (hints, strengths) = (next()?, next()?);
        let ids = self.ids.as_ref().map(|_| next()).transpose()?;
        Ok(Self { call: self.call, hints, strengths, ids })
    }

    /// Calls the network and adds what it says to the rows' features.
    pub(super) fn add_to(
        &self,
        features: &mut UNetFeatures,
        input: &UNetInput<'_>,
    ) -> candle_core::Result<()> {
        let residuals = self.run(input, |input| self.call.network.forward(input, &self.hints))?;
        features.add_to_rows(&residuals.scaled(&self.strengths)?, &self.call.runs())
    }

    /// The same for a shallow pass: the network runs only as far as that needs.
    pub(super) fn add_to_shallow(
        &self,
        features: &mut ShallowFeatures,
        input: &UNetInput<'_>,
    ) -> candle_core::Result<()> {
        let count = features.skips.len();
        let residuals =
            self.run(input, |input| self.call.network.forward_shallow(input, &self.hints, count))?;
        let scaled = residuals
            .iter()
            .map(|residual| residual.broadcast_mul(&self.strengths.to_dtype(residual.dtype())?))
            .collect::<candle_core::Result<Vec<_>>>()?;
        features.add_to_rows(&scaled, &self.call.runs())
    }

    /// Runs the network on its rows of a pass's input.
    fn run<T>(
        &self,
        input: &UNetInput<'_>,
        network: impl FnOnce(&UNetInput<'_>) -> candle_core::Result<T>,
    ) -> candle_core::Result<T> {
        let select = |tensor: &Tensor| match &self.ids {
            None => Ok(tensor.clone()),
            Some(ids) => tensor.index_select(ids, 0),
        };
        let (latent, timesteps, context) =
            (select(input.latent)?, select(input.timesteps)?, select(input.context)?);
        let pooled = input.pooled.map(select).transpose()?;
        let size_ids = input.size_ids.map(select).transpose()?;
        let lengths: Option<Vec<usize>> =
            input.context_lengths.map(|lengths| self.call.rows.iter().map(|row| lengths[row.row]).collect());
        network(&UNetInput {
            latent: &latent,
            timesteps: &timesteps,
            context: &context,
            context_lengths: lengths.as_deref(),
            pooled: pooled.as_ref(),
            size_ids: size_ids.as_ref(),
            // LoRAs change the model, not its ControlNets.
            adapters: Adapters::none(),
        })
    }
}

impl Call<'_> {
    /// Rows of the call.
    pub(super) fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Brings what it computes from, in a batch of `all` rows, to `device`.
    pub(super) fn prepare(&self, all: usize, device: &Device) -> candle_core::Result<Prepared<'_>> {
        let hints: Vec<&Tensor> = self.rows.iter().map(|row| row.hint).collect();
        let strengths: Vec<f32> = self.rows.iter().map(|row| row.strength as f32).collect();
        let numbers: Vec<u32> = self.rows.iter().map(|row| row.row as u32).collect();
        let whole = numbers.len() == all && numbers.iter().enumerate().all(|(i, row)| i == *row as usize);
        let count = self.rows.len();
        Ok(Prepared {
            call: self,
            hints: Tensor::stack(&hints, 0)?,
            strengths: Tensor::from_vec(strengths, (count, 1, 1, 1), device)?,
            ids: if whole { None } else { Some(Tensor::from_vec(numbers, count, device)?) },
        })
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
