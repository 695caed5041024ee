//! A call of Qwen-Image's transformer: prompts of different lengths are padded to the longest and masked. A few hundred
//! tokens beside the thousands of a picture cost less than a call of their own would.

use candle_core::{Device, Tensor};
use darkroom_models::qwen_image::{QwenImageInput, QwenImageTransformer2DModel};

use super::{Output, Row, adapters};
use crate::PipelineError;
use crate::conditioning::pad_contexts;

/// One call.
pub(super) fn evaluate(
    transformer: &QwenImageTransformer2DModel,
    rows: &[&Row<'_>],
    device: &Device,
) -> Result<Output, PipelineError> {
    let latents = rows
        .iter()
        .map(|row| row.sampling.scale_input(&row.latent, row.sigma))
        .collect::<candle_core::Result<Vec<_>>>()?;
    let timesteps: Vec<f32> = rows.iter().map(|row| row.sampling.timestep(row.sigma)).collect();
    let contexts: Vec<&Tensor> = rows.iter().map(|row| &row.placed.text.context).collect();
    let (context, context_lengths) = pad_contexts(&contexts)?;
    let input = QwenImageInput {
        latent: &Tensor::stack(&latents, 0)?,
        timesteps: &Tensor::from_vec(timesteps, rows.len(), device)?,
        context: &context,
        context_lengths: context_lengths.as_deref(),
        references: &[],
        adapters: &adapters(rows),
    };
    let predictions = transformer.forward(&input)?;
    Ok(Output { predictions, kept: vec![None; rows.len()], control_rows: 0 })
}
