//! A call of Qwen-Image's transformer: prompts of different lengths are padded to the longest and masked. A few hundred
//! tokens beside the thousands of a picture cost less than a call of their own would.

use candle_core::Device;
use darkroom_models::qwen_image::{QwenImageInput, QwenImageTransformer2DModel};

use super::{Inputs, Output, Row, adapters};
use crate::PipelineError;

/// One call.
pub(super) fn evaluate(
    transformer: &QwenImageTransformer2DModel,
    rows: &[&Row<'_>],
    device: &Device,
) -> Result<Output, PipelineError> {
    let Inputs { latent, timesteps, context, context_lengths } = Inputs::of(rows, device)?;
    let input = QwenImageInput {
        latent: &latent,
        timesteps: &timesteps,
        context: &context,
        context_lengths: context_lengths.as_deref(),
        references: &[],
        adapters: &adapters(rows),
    };
    let predictions = transformer.forward(&input)?;
    Ok(Output { predictions, kept: vec![None; rows.len()], control_rows: 0 })
}
