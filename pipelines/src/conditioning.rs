//! Prompts to conditioning: token chunks through the text encoders, weighted as ComfyUI weights them.
//!
//! Sits between [`crate::prompt`] (text to weighted tokens) and the denoising step, which wants a context of
//! any number of tokens and a pooled vector for each prompt.

use std::sync::Arc;

use candle_core::{D, DType, Device, Tensor};
use darkroom_models::adapter::{Adapters, NetworkAdapter};
use darkroom_models::clip::{ClipTextEncoder, GivenVector, HiddenLayer};

use crate::PipelineError;
use crate::prompt::{GivenToken, TokenChunks};

/// What one prompt says to the network.
#[derive(Debug, Clone)]
pub struct Conditioning {
    /// `[tokens, context]`, tokens a multiple of 77.
    pub context: Tensor,
    /// `[pooled]`, where the network takes a pooled vector (SDXL).
    pub pooled: Option<Tensor>,
}

impl Conditioning {
    /// The same on `device`, where its network is.
    pub(crate) fn on(&self, device: &Device) -> candle_core::Result<Self> {
        // A view would bring all that it is a view of.
        let moved = |tensor: &Tensor| match tensor.device().same_device(device) {
            true => Ok(tensor.clone()),
            false => tensor.force_contiguous()?.to_device(device),
        };
        Ok(Self { context: moved(&self.context)?, pooled: self.pooled.as_ref().map(moved).transpose()? })
    }
}

/// One prompt's chunks for one encoder, encoded: `[tokens, width]`, and the first chunk's pooled vector.
pub(crate) struct EncodedPrompt {
    pub(crate) hidden: Tensor,
    pub(crate) pooled: Option<Tensor>,
}

/// Most chunks that go through a text encoder in one call.
const ROWS_A_CALL: usize = 32;

/// Encodes the chunks of all `prompts` together. A token of weight `w ≠ 1` becomes
/// `(z - z_empty) · w + z_empty`, `z_empty` being the empty prompt's hidden state at the same position.
pub(crate) fn encode_prompts(
    encoder: &ClipTextEncoder,
    prompts: &[TokenChunks],
    layer: HiddenLayer,
    adapter: Option<&Arc<NetworkAdapter>>,
) -> Result<Vec<EncodedPrompt>, PipelineError> {
    let mut rows: Vec<Vec<u32>> =
        prompts.iter().flat_map(|p| p.chunks.iter().map(|chunk| chunk.ids.to_vec())).collect();
    rows.extend(prompts.iter().find(|p| p.is_weighted()).map(|p| p.empty.to_vec()));
    let vectors: Vec<&[GivenToken]> =
        prompts.iter().flat_map(|p| p.chunks.iter().map(|chunk| chunk.given.as_slice())).collect();
    let (mut hidden, mut pooled) = (Vec::new(), Vec::new());
    for (call, rows) in rows.chunks(ROWS_A_CALL).enumerate() {
        let given: Vec<GivenVector<'_>> = vectors
            .iter()
            .skip(call * ROWS_A_CALL)
            .take(rows.len())
            .enumerate()
            .flat_map(|(row, given)| {
                given.iter().map(move |token| GivenVector {
                    row,
                    position: token.position,
                    vector: &token.vector,
                })
            })
            .collect();
        let adapters = match adapter {
            Some(adapter) => Adapters::all(Arc::clone(adapter), rows.len()),
            None => Adapters::none().clone(),
        };
        let encoded = encoder.encode_with(rows, &given, layer, &adapters)?;
        hidden.push(encoded.hidden);
        pooled.extend(encoded.pooled);
    }
    let hidden = Tensor::cat(&hidden, 0)?;
    let pooled = if pooled.is_empty() { None } else { Some(Tensor::cat(&pooled, 0)?) };
    // Only read where a weight is not 1, and then the last row is the empty prompt's.
    let z_empty = hidden.get(hidden.dim(0)? - 1)?;

    let mut first_row = 0;
    prompts
        .iter()
        .map(|prompt| {
            let chunks = &prompt.chunks;
            let states = chunks.iter().enumerate().map(|(i, chunk)| {
                let z = hidden.get(first_row + i)?;
                if chunk.is_weighted() { reweight(&z, &z_empty, &chunk.weights) } else { Ok(z) }
            });
            let states = states.collect::<candle_core::Result<Vec<_>>>()?;
            let pooled = pooled.as_ref().map(|p| p.get(first_row)).transpose()?;
            first_row += chunks.len();
            Ok(EncodedPrompt { hidden: Tensor::cat(&states, 0)?, pooled })
        })
        .collect()
}

/// `[77, width]` hidden states with each token's weight applied; tokens of weight 1 stay as they are, to the bit.
fn reweight(z: &Tensor, z_empty: &Tensor, weights: &[f64]) -> candle_core::Result<Tensor> {
    let column: Vec<f32> = weights.iter().map(|w| *w as f32).collect();
    let column = Tensor::from_vec(column, (weights.len(), 1), z.device())?;
    let unweighted = column.eq(1f32)?.broadcast_as(z.shape())?;
    let scaled = (z - z_empty)?.broadcast_mul(&column)?.add(z_empty)?;
    unweighted.where_cond(z, &scaled)
}

/// SDXL's context: both encoders' states side by side, cut to the shorter; pooled from the second.
pub(crate) fn join(l: &EncodedPrompt, g: &EncodedPrompt) -> candle_core::Result<Conditioning> {
    let tokens = l.hidden.dim(0)?.min(g.hidden.dim(0)?);
    let context = Tensor::cat(&[l.hidden.narrow(0, 0, tokens)?, g.hidden.narrow(0, 0, tokens)?], D::Minus1)?;
    Ok(Conditioning { context, pooled: g.pooled.clone() })
}

/// SDXL's size ids `[height, width, crop_top, crop_left, target_height, target_width]` in pixels: what plain
/// `CLIPTextEncode` says for a picture of this size.
pub(crate) fn size_ids(width: usize, height: usize) -> [f32; 6] {
    let (w, h) = (width as f32, height as f32);
    [h, w, 0.0, 0.0, h, w]
}

/// Contexts of different lengths as one `[rows, longest, context]`, zeros behind the shorter ones, and each
/// row's own length where they differ. ComfyUI repeats the shorter context up to a common multiple, which
/// attention cannot tell from the context alone; masking the padding gives the same and costs less.
pub(crate) fn pad_contexts(contexts: &[&Tensor]) -> candle_core::Result<(Tensor, Option<Vec<usize>>)> {
    let lengths = contexts.iter().map(|c| c.dim(0)).collect::<candle_core::Result<Vec<_>>>()?;
    let longest = lengths.iter().copied().max().unwrap_or(0);
    let padded = contexts
        .iter()
        .zip(&lengths)
        .map(|(context, length)| context.to_dtype(DType::F32)?.pad_with_zeros(0, 0, longest - length))
        .collect::<candle_core::Result<Vec<_>>>()?;
    let uneven = lengths.iter().any(|l| *l != longest);
    Ok((Tensor::stack(&padded, 0)?, uneven.then_some(lengths)))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn tokens_of_weight_one_keep_their_bits_and_others_move_away_from_the_empty_prompt() {
        let device = Device::Cpu;
        let z = Tensor::new(&[[0.1f32, 0.7], [0.3, 0.4]], &device).unwrap();
        let empty = Tensor::new(&[[9.3f32, 1.1], [0.1, 0.2]], &device).unwrap();
        let got = reweight(&z, &empty, &[1.0, 2.0]).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(got[0], [0.1, 0.7]);
        assert!((got[1][0] - 0.5).abs() < 1e-6 && (got[1][1] - 0.6).abs() < 1e-6, "{got:?}");
    }

    #[test]
    fn contexts_of_one_length_need_no_mask() {
        let a = Tensor::zeros((77, 4), DType::F32, &Device::Cpu).unwrap();
        let (all, lengths) = pad_contexts(&[&a, &a]).unwrap();
        assert_eq!((all.dims(), lengths), (&[2, 77, 4][..], None));
    }

    #[test]
    fn a_shorter_context_is_padded_and_its_length_kept() {
        let a = Tensor::ones((154, 4), DType::F32, &Device::Cpu).unwrap();
        let b = Tensor::ones((77, 4), DType::F32, &Device::Cpu).unwrap();
        let (all, lengths) = pad_contexts(&[&a, &b]).unwrap();
        assert_eq!((all.dims(), lengths), (&[2, 154, 4][..], Some(vec![154, 77])));
        assert_eq!(all.sum_all().unwrap().to_scalar::<f32>().unwrap(), (154 + 77) as f32 * 4.0);
    }
}
