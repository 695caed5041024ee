//! Group normalisation: partial statistics of chunks, then one more pass over the data.

use candle_core::{D, DType, Error, Result, Tensor};

use super::compile::{Source, function};
use super::launch::{self, Dense, launch};
use super::operand::operand;
use super::packs;
use crate::Activation;

const SOURCE: Source = Source { name: "group_norm", text: include_str!("../../cuda/group_norm.cu") };
/// Threads of a block at most (the kernels' launch bound).
const THREADS: usize = 512;
/// Channels whose statistics a block's shared memory holds on every card.
const MOST_CHANNELS: usize = 12_288;
/// Elements of a chunk where a sample is small: enough chunks to occupy a card at a batch of two, few enough to merge.
const SMALL_CHUNK: usize = 1 << 14;
/// Chunks that a small sample has at most.
const FEW_CHUNKS: usize = 64;
/// Elements of a chunk where a sample is large.
const LARGE_CHUNK: usize = 1 << 16;
/// Chunks that any sample has at most.
const MOST_CHUNKS: usize = 512;

/// Whether the kernels take `x`.
pub(crate) fn takes(x: &Tensor) -> bool {
    launch::takes(x) && x.dim(D::Minus1).is_ok_and(|channels| channels <= MOST_CHANNELS)
}

/// Positions of a chunk, of a sample's own shape alone: what a sample gives must not depend on its batch.
fn chunk(positions: usize, channels: usize) -> usize {
    let elements = positions * channels;
    let few = (elements / SMALL_CHUNK).clamp(1, FEW_CHUNKS);
    let many = (elements / LARGE_CHUNK).min(MOST_CHUNKS);
    positions.div_ceil(few.max(many))
}

/// Threads of a block, and what each shares of `columns` packs: as many whole rows of packs as fit, else parts of one.
fn threads(columns: usize) -> usize {
    let threads = if columns <= THREADS {
        THREADS / columns * columns
    } else {
        columns.div_ceil(columns.div_ceil(THREADS))
    };
    threads.next_multiple_of(32)
}

/// `activation(group_norm(x + shift))`; shapes have been checked, and [`takes`] it.
pub(crate) fn group_norm(
    x: &Tensor,
    shift: Option<&Tensor>,
    groups: usize,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
    activation: Activation,
) -> Result<Tensor> {
    let device = launch::device(x)?;
    let dtype = x.dtype();
    let (batch, channels) = (x.dim(0)?, x.dim(D::Minus1)?);
    let positions = x.elem_count() / (batch * channels);
    let chunk = chunk(positions, channels);
    let chunks = positions.div_ceil(chunk);

    let x = Dense::of(x)?;
    let shift = shift.map(|shift| Dense::of(&shift.to_dtype(dtype)?)).transpose()?;
    let shift_at = shift.as_ref().map_or(0, Dense::address);
    let on = x.tensor().device();
    let (weight, bias) = (operand(weight, DType::F32, on)?, operand(bias, DType::F32, on)?);
    let partial = Dense::unset((batch, groups, chunks, 2), DType::F32, x.tensor().device())?;
    let y = Dense::unset(x.tensor().shape(), dtype, x.tensor().device())?;

    let width = packs::width(dtype, &[channels]);
    let columns = channels / width;
    let threads = threads(columns);
    let lanes = (threads / columns).max(1);
    let mut defines = packs::defines(dtype, width)?;
    defines.push(format!("ACTIVATION={}", activation.code()));

    let number = |n: usize| u32::try_from(n).map_err(Error::wrap);
    let sizes = (number(positions)?, number(channels)?, number(groups)?, number(chunk)?, number(chunks)?);
    let (positions, channels, groups, chunk, chunks) = sizes;
    let blocks =
        (number(batch)?.checked_mul(chunks)).ok_or_else(|| Error::msg("group_norm: too large a batch"))?;
    let floats = |n: usize| number(n * size_of::<f32>());

    let moments = function(&device, SOURCE, &defines, "moments")?;
    let shared = floats(2 * lanes * channels as usize)?;
    launch::allow_shared(&moments, shared)?;
    let config = launch::grid((blocks, 1, 1), number(threads)?, shared);
    launch!(
        device,
        moments,
        config,
        x.address(),
        shift_at,
        partial.address(),
        positions,
        channels,
        groups,
        chunk,
        chunks,
    )?;

    let normalise = function(&device, SOURCE, &defines, "normalise")?;
    let shared = floats(2 * groups as usize)?;
    launch::allow_shared(&normalise, shared)?;
    let config = launch::grid((blocks, 1, 1), number(threads)?, shared);
    launch!(
        device,
        normalise,
        config,
        x.address(),
        shift_at,
        partial.address(),
        weight.address(),
        bias.address(),
        y.address(),
        positions,
        channels,
        groups,
        chunk,
        chunks,
        eps as f32,
    )?;
    Ok(y.into_tensor())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_whole_warps_that_cover_their_columns() {
        for columns in 1..2000 {
            let threads = threads(columns);
            assert!(threads <= THREADS && threads.is_multiple_of(32), "{columns}");
            assert!(threads >= columns.min(THREADS / 2), "{columns}");
        }
    }

    #[test]
    fn chunks_fill_a_card_and_are_bounded() {
        let chunks = |positions: usize, channels| positions.div_ceil(chunk(positions, channels));
        // Two samples of the UNet's smallest map are a block a multiprocessor.
        assert_eq!(chunks(32 * 32, 1280), 64);
        assert_eq!(chunks(128 * 128, 320), 80);
        assert_eq!(chunks(1024 * 1024, 128), 512);
        assert_eq!(chunks(1, 2560), 1);
        assert_eq!(chunks(3, 1), 1);
    }
}
