//! The whole network: conditioning, downward half, upward half, output.

use std::sync::Arc;

use candle_core::{DType, Tensor, bail};
use darkroom_kernels::{Activation, Replays};

use super::blocks::UpBlock;
use super::condition::{Condition, ConditionEmbedding};
use super::encoder::UNetEncoder;
use super::{FreeU, UNetConfig, UNetFeatures, UNetInput};
use crate::layers::{Conv2d, GroupNorm, channels_first, channels_last};
use crate::weights::{Weights, WeightsError};

mod replayed;
mod shallow;

use replayed::{Baked, MOST_RECORDINGS};

pub use replayed::{Adjust, Steering, SteeringKey};
pub use shallow::ShallowFeatures;

/// diffusers' `UNet2DConditionModel`, for the configs that [`UNetConfig`] can express.
#[derive(Debug, Clone)]
pub struct UNet2DConditionModel {
    config: UNetConfig,
    embedding: ConditionEmbedding,
    encoder: UNetEncoder,
    /// Lowest resolution first.
    up: Vec<UpBlock>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
    activations: DType,
    /// Shared by clones, which have the same weights.
    replays: Arc<Replays<Baked>>,
}

impl UNet2DConditionModel {
    /// Takes all of the network's tensors under diffusers' names.
    pub fn load(config: &UNetConfig, weights: &Weights) -> Result<Self, WeightsError> {
        config.validate().map_err(candle_core::Error::wrap)?;
        let (levels, first) = (config.block_out_channels.len(), config.block_out_channels[0]);
        let up = weights.scope("up_blocks");
        Ok(Self {
            config: config.clone(),
            embedding: ConditionEmbedding::load(config, weights)?,
            encoder: UNetEncoder::load(config, weights)?,
            up: (0..levels)
                .map(|i| UpBlock::load(config, &up.scope(i), levels - 1 - i))
                .collect::<Result<_, _>>()?,
            norm_out: GroupNorm::load(
                &weights.scope("conv_norm_out"),
                first,
                config.norm_num_groups,
                config.norm_eps,
                Activation::Silu,
            )?,
            conv_out: Conv2d::load(&weights.scope("conv_out"), first, config.out_channels, 3)?,
            activations: weights.activations(),
            replays: Arc::new(Replays::new(MOST_RECORDINGS)),
        })
    }

    /// What the network was built from.
    pub fn config(&self) -> &UNetConfig {
        &self.config
    }

    /// The type of the activations between the blocks. Inputs and outputs are `f32`.
    pub fn activations(&self) -> DType {
        self.activations
    }

    /// Predicts every row's noise: `[b, in_channels, h, w] -> [b, out_channels, h, w]`, any `h` and `w`.
    /// Rows do not influence each other.
    pub fn forward(&self, input: &UNetInput<'_>) -> candle_core::Result<Tensor> {
        self.forward_with(input, &FreeU::default(), |_| Ok(()))
    }

    /// The same, with `adjust` called on what the downward half made before the upward half reads it, and features on
    /// the way up weighed in the rows that `free_u` has.
    pub fn forward_with(
        &self,
        input: &UNetInput<'_>,
        free_u: &FreeU,
        adjust: impl FnOnce(&mut UNetFeatures) -> candle_core::Result<()>,
    ) -> candle_core::Result<Tensor> {
        self.forward_observed(input, free_u, adjust, |_, _| Ok(()))
    }

    /// The same, with `observe` shown what comes from below at every skip, `[b, h, w, c]`, and the skip's number: the
    /// stem's has 0 and comes last. What is to be kept of it must be copied: FreeU changes it in place.
    pub fn forward_observed(
        &self,
        input: &UNetInput<'_>,
        free_u: &FreeU,
        adjust: impl FnOnce(&mut UNetFeatures) -> candle_core::Result<()>,
        observe: impl FnMut(usize, &Tensor) -> candle_core::Result<()>,
    ) -> candle_core::Result<Tensor> {
        let (condition, stem) = self.enter(input)?;
        let mut features = self.encoder.forward(stem, &condition)?;
        adjust(&mut features)?;
        let UNetFeatures { skips, middle } = features;
        let x = self.ascend((0, 0), middle, skips, &condition, free_u, observe)?;
        self.leave(&x, &condition)
    }

    /// The embedded conditioning, and the first convolution's output, `[b, h, w, c]`.
    fn enter(&self, input: &UNetInput<'_>) -> candle_core::Result<(Condition, Tensor)> {
        let (batch, channels, height, width) = input.latent.dims4()?;
        if channels != self.config.in_channels || batch == 0 || height == 0 || width == 0 {
            bail!(
                "UNet: latent has shape {:?}, but [batch, {}, height, width] is needed",
                input.latent.dims(),
                self.config.in_channels
            );
        }
        let condition = self.embedding.forward(input)?;
        let latent = channels_last(input.latent)?.to_dtype(self.activations)?;
        let stem = self.encoder.stem(&latent, input.adapters)?;
        Ok((condition, stem))
    }

    /// The upward half from a stage of an up block on, to which `x` comes from below.
    fn ascend(
        &self,
        (first_block, first_stage): (usize, usize),
        x: Tensor,
        mut skips: Vec<Tensor>,
        condition: &Condition,
        free_u: &FreeU,
        mut observe: impl FnMut(usize, &Tensor) -> candle_core::Result<()>,
    ) -> candle_core::Result<Tensor> {
        let first = self.config.block_out_channels[0];
        let (mut x, mut skip_number) = (x, skips.len());
        for (index, block) in self.up.iter().enumerate().skip(first_block) {
            let passed_over = if index == first_block { first_stage } else { 0 };
            x = block.forward(x, condition, &mut skips, passed_over, |x, skip| {
                skip_number = skip_number.saturating_sub(1);
                observe(skip_number, &x)?;
                free_u.apply(first, x, skip)
            })?;
        }
        Ok(x)
    }

    /// The output, `[b, out_channels, h, w]` in `f32`, of what the upward half made.
    fn leave(&self, x: &Tensor, condition: &Condition) -> candle_core::Result<Tensor> {
        let x = self.norm_out.forward(x, &condition.adapters)?;
        channels_first(&self.conv_out.forward(&x, &condition.adapters)?.to_dtype(DType::F32)?)
    }
}
