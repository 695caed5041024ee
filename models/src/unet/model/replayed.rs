//! Passes that a GPU replays: a plain pass of a shape that comes again is recorded as a graph and launched as one.

use candle_core::Tensor;

use super::UNet2DConditionModel;
use crate::adapter::Adapters;
use crate::unet::UNetInput;

/// Most shapes that are recorded at once: batches of 1 to 16 rows of a few sizes.
pub(super) const MOST_RECORDINGS: usize = 48;

/// What a recording is made for beside the shapes of its inputs.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Baked {
    /// Key lengths are arguments of kernels.
    lengths: Option<Vec<usize>>,
    has_pooled: bool,
    has_sizes: bool,
}

impl UNet2DConditionModel {
    /// [`UNet2DConditionModel::forward`] of an input without adapters; on a GPU recorded when a shape comes for the
    /// second time, and replayed from then on. An input with adapters is computed each time.
    ///
    /// # Errors
    /// As [`UNet2DConditionModel::forward`].
    pub fn forward_replayed(&self, input: &UNetInput<'_>) -> candle_core::Result<Tensor> {
        if !input.adapters.is_empty() {
            return self.forward(input);
        }
        let baked = Baked {
            lengths: input.context_lengths.map(<[usize]>::to_vec),
            has_pooled: input.pooled.is_some(),
            has_sizes: input.size_ids.is_some(),
        };
        let always = [input.latent, input.timesteps, input.context];
        let inputs: Vec<&Tensor> = always.into_iter().chain(input.pooled).chain(input.size_ids).collect();
        self.replays.call(&baked, &inputs, &|tensors| {
            let [latent, timesteps, context, rest @ ..] = tensors else {
                candle_core::bail!("UNet: a recording needs three inputs, got {}", tensors.len());
            };
            let mut rest = rest.iter();
            self.forward(&UNetInput {
                latent,
                timesteps,
                context,
                context_lengths: baked.lengths.as_deref(),
                pooled: baked.has_pooled.then(|| rest.next()).flatten(),
                size_ids: baked.has_sizes.then(|| rest.next()).flatten(),
                adapters: Adapters::none(),
            })
        })
    }

    /// How many shapes are recorded.
    pub fn recordings(&self) -> usize {
        self.replays.recorded()
    }
}
