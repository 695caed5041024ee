//! Passes that a GPU replays: a pass whose shapes and adapters come again is recorded as a graph and launched as one.

use std::ops::Range;

use candle_core::{Result, Tensor, bail};

use super::UNet2DConditionModel;
use crate::identity::Identity;
use crate::unet::{FreeU, UNetFeatures, UNetInput};

/// Most passes that are recorded at once: batches of 1 to 16 rows of a few sizes, with a few ControlNets and LoRAs.
pub(super) const MOST_RECORDINGS: usize = 48;

/// What a recording is made for beside the shapes of its inputs.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Baked {
    /// Key lengths are arguments of kernels.
    lengths: Option<Vec<usize>>,
    has_pooled: bool,
    has_sizes: bool,
    /// Their weights' addresses are arguments of kernels. Where they are gone nobody asks for this any more.
    adapters: Vec<(Range<usize>, Identity)>,
    steering: Vec<SteeringKey>,
}

/// One network that steers a pass, and the rows of the batch that it does so for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SteeringKey {
    /// Its weights.
    pub network: Identity,
    /// Rows, in the network's own order.
    pub rows: Vec<usize>,
}

/// What changes the features of a pass ([`UNet2DConditionModel::forward_with`]'s `adjust`) in a form that can be
/// recorded: it must compute from the pass's input, `tensors` and weights that `key` names alone.
pub struct Steering<'a> {
    /// What it has baked in.
    pub key: Vec<SteeringKey>,
    /// What it computes from, and may be different each time.
    pub tensors: Vec<&'a Tensor>,
    /// Changes the features, given the pass's input and `tensors`, both where it is computed.
    pub adjust: &'a Adjust<'a>,
}

/// See [`Steering::adjust`].
pub type Adjust<'a> = dyn Fn(&mut UNetFeatures, &UNetInput<'_>, &[Tensor]) -> Result<()> + 'a;

impl UNet2DConditionModel {
    /// [`UNet2DConditionModel::forward_with`] and no FreeU; on a GPU recorded when the same kind of pass comes for the
    /// second time, and replayed from then on.
    ///
    /// # Errors
    /// As [`UNet2DConditionModel::forward`].
    pub fn forward_replayed(&self, input: &UNetInput<'_>, steering: &Steering<'_>) -> Result<Tensor> {
        let baked = Baked {
            lengths: input.context_lengths.map(<[usize]>::to_vec),
            has_pooled: input.pooled.is_some(),
            has_sizes: input.size_ids.is_some(),
            adapters: input.adapters.identities(),
            steering: steering.key.clone(),
        };
        let always = [input.latent, input.timesteps, input.context];
        let own = always.into_iter().chain(input.pooled).chain(input.size_ids);
        let inputs: Vec<&Tensor> = own.chain(steering.tensors.iter().copied()).collect();
        self.replays.call(&baked, &inputs, &|tensors| {
            let [latent, timesteps, context, rest @ ..] = tensors else {
                bail!("UNet: a recording needs three inputs, got {}", tensors.len());
            };
            let mut rest = rest.iter();
            let input = UNetInput {
                latent,
                timesteps,
                context,
                context_lengths: baked.lengths.as_deref(),
                pooled: baked.has_pooled.then(|| rest.next()).flatten(),
                size_ids: baked.has_sizes.then(|| rest.next()).flatten(),
                adapters: input.adapters,
            };
            let steering_tensors = rest.as_slice();
            self.forward_with(&input, &FreeU::default(), |features| {
                (steering.adjust)(features, &input, steering_tensors)
            })
        })
    }

    /// How many kinds of passes are recorded.
    pub fn recordings(&self) -> usize {
        self.replays.recorded()
    }
}
