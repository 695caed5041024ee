//! The outer part of the network alone, on features that an earlier pass kept: what step caching runs on most steps
//! (DeepCache, Ma, Fang & Wang 2023).
//!
//! A pass is cut at a skip connection. Above the cut are the first convolution, the stages down to the skip, and the
//! stages of the upward half from the one that takes the skip on. Everything below is left out: what it would have
//! handed up is given instead.

use std::ops::Range;

use candle_core::{Tensor, bail};

use super::UNet2DConditionModel;
use crate::unet::encoder::add_runs;
use crate::unet::{FreeU, UNetConfig, UNetInput};

impl UNetConfig {
    /// Skip connections, the stem's included: where a pass can be cut. Their numbers count from the stem's, 0, down,
    /// which are DeepCache's `cache_branch_id`s.
    pub fn skip_count(&self) -> usize {
        let levels = self.block_out_channels.len();
        (self.layers_per_block + 1) * levels
    }

    /// The innermost skip connection of the outermost blocks: a pass that is cut there runs these blocks as a whole.
    pub fn outermost_skip(&self) -> usize {
        self.layers_per_block
    }

    /// The up block that takes a skip, and which of its stages does.
    fn taker(&self, skip: usize) -> Option<(usize, usize)> {
        let stages = self.layers_per_block + 1;
        let block = self.block_out_channels.len().checked_sub(skip / stages + 1)?;
        Some((block, self.layers_per_block - skip % stages))
    }
}

/// What the downward half hands to the upward half above a cut. Channels-last.
#[derive(Debug, Clone)]
pub struct ShallowFeatures {
    /// The stem's skip and those that follow it, to the cut.
    pub skips: Vec<Tensor>,
}

impl ShallowFeatures {
    /// Adds some rows of another network's first skips to some of these, in place: `runs` has the rows there and the
    /// first row here.
    ///
    /// # Errors
    /// They are not as many, or of another shape.
    pub fn add_to_rows(
        &mut self,
        residuals: &[Tensor],
        runs: &[(Range<usize>, usize)],
    ) -> candle_core::Result<()> {
        if self.skips.len() != residuals.len() {
            bail!("UNet: residuals for {} skips, but the pass has {}", residuals.len(), self.skips.len());
        }
        for (own, residual) in self.skips.iter().zip(residuals) {
            add_runs(own, residual, runs)?;
        }
        Ok(())
    }
}

impl UNet2DConditionModel {
    /// Predicts every row's noise as [`UNet2DConditionModel::forward_with`] does, with everything below the skip
    /// number `branch` left out: `below`, `[b, h', w', c]`, is what an earlier pass showed there
    /// ([`UNet2DConditionModel::forward_observed`]). FreeU may change `below` in place.
    ///
    /// With what a pass of the same input showed, the result is that pass's to the bit.
    ///
    /// # Errors
    /// There is no such skip, or `below` does not fit the input.
    pub fn forward_shallow(
        &self,
        input: &UNetInput<'_>,
        free_u: &FreeU,
        branch: usize,
        below: Tensor,
        adjust: impl FnOnce(&mut ShallowFeatures) -> candle_core::Result<()>,
    ) -> candle_core::Result<Tensor> {
        let Some(taker) = self.config.taker(branch) else {
            bail!("UNet: a pass cannot be cut at skip {branch}: there are {}", self.config.skip_count());
        };
        let (condition, stem) = self.enter(input)?;
        let skips = self.encoder.first_skips(stem, &condition, branch + 1)?;
        let (below_side, own_side) = (below.dims4()?, skips[branch].dims4()?);
        if (below_side.0, below_side.1, below_side.2) != (own_side.0, own_side.1, own_side.2) {
            bail!(
                "UNet: kept features have shape {:?}, but the skip beside them has {:?}",
                below.dims(),
                skips[branch].dims()
            );
        }
        let mut features = ShallowFeatures { skips };
        adjust(&mut features)?;
        let x = self.ascend(taker, below, features.skips, &condition, free_u, |_, _| Ok(()))?;
        self.leave(&x, &condition)
    }
}
