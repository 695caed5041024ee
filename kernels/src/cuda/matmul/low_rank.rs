//! Low-rank changes of several ranges of rows in two launches (`kernels/cuda/lora.cu`).

use candle_core::{CudaDevice, DType, Result, Tensor};
use cudarc::driver::DeviceRepr;

use crate::LowRank;
use crate::cuda::compile::{Source, function};
use crate::cuda::launch::{self, Dense, launch};
use crate::cuda::operand::operand;

const SOURCE: Source = Source { name: "lora", text: include_str!("../../../cuda/lora.cu") };
const THREADS: u32 = 256;

/// Ranges that one launch takes.
const GROUPS: usize = 16;
/// The highest rank that the kernels are made for.
const MOST_RANK: usize = 128;
/// Elements of a 16-byte access.
const PACK: usize = 8;

/// As `LowRankGroup` in the kernel's source.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
struct Group {
    down: u64,
    up: u64,
    first: i32,
    rows: i32,
    inner: i32,
    rank: i32,
    scale: f32,
    unused: i32,
}

/// As `LowRankGroups` in the kernel's source.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
struct Groups([Group; GROUPS]);

// SAFETY: plain numbers in C's layout, as the kernel declares them, with nothing between them.
unsafe impl DeviceRepr for Groups {}

/// `target[rows] += scale (x[rows] · downᵀ) · upᵀ` for each group, in place. The caller has checked shapes and that
/// `target` is contiguous. `false`: nothing was done, the kernels do not take it.
pub(crate) fn add(target: &Tensor, x: &Tensor, groups: &[LowRank<'_>]) -> Result<bool> {
    let dtype = target.dtype();
    let (Some(&width), Some(&depth)) = (target.dims().last(), x.dims().last()) else { return Ok(false) };
    let ranks = groups.iter().map(|group| group.up.dims2().map(|(_, rank)| rank));
    let Some(rank) = ranks.collect::<Result<Vec<_>>>()?.into_iter().max() else { return Ok(true) };
    let taken = matches!(dtype, DType::F16 | DType::BF16)
        && x.dtype() == dtype
        && width % PACK == 0
        && depth % PACK == 0
        && rank <= MOST_RANK
        && i32::try_from(target.elem_count() / width).is_ok()
        && (launch::first_address(target)?).is_multiple_of(16);
    if !taken || overlap(groups) {
        return Ok(false);
    }
    let device = launch::device(target)?;
    let x = Dense::of(x)?;
    // Tokens of a row of the batch.
    let each = target.elem_count() / width / target.dim(0)?.max(1);
    for groups in groups.chunks(GROUPS) {
        add_some(
            &device,
            target,
            &x,
            groups,
            &Sizes { width, depth, each, rank: rank.next_power_of_two().max(16) },
        )?;
    }
    Ok(true)
}

/// Whether a row is in two groups: blocks of one launch would add to it at the same time.
fn overlap(groups: &[LowRank<'_>]) -> bool {
    let mut ranges: Vec<_> = groups.iter().map(|group| (group.rows.start, group.rows.end)).collect();
    ranges.sort_unstable();
    ranges.windows(2).any(|pair| matches!(pair, [(_, end), (start, _)] if end > start))
}

/// What all groups of a launch share.
struct Sizes {
    width: usize,
    depth: usize,
    each: usize,
    rank: usize,
}

fn add_some(
    device: &CudaDevice,
    target: &Tensor,
    x: &Dense,
    groups: &[LowRank<'_>],
    sizes: &Sizes,
) -> Result<()> {
    let &Sizes { width, depth, each, rank } = sizes;
    let dtype = target.dtype();
    let number = |n: usize| i32::try_from(n).map_err(candle_core::Error::wrap);
    let mut all = Groups::default();
    let (mut inner_rows, mut most_rows) = (0, 0);
    // Held until both launches are queued.
    let mut factors = Vec::with_capacity(groups.len());
    for (to, group) in all.0.iter_mut().zip(groups) {
        let (down, up) =
            (operand(group.down, dtype, target.device())?, operand(group.up, dtype, target.device())?);
        let rows = group.rows.len() * each;
        *to = Group {
            down: down.address(),
            up: up.address(),
            first: number(group.rows.start * each)?,
            rows: number(rows)?,
            inner: number(inner_rows)?,
            rank: number(group.up.dim(1)?)?,
            scale: group.scale,
            unused: 0,
        };
        inner_rows += rows;
        most_rows = most_rows.max(rows);
        factors.push((down, up));
    }
    let inner = Dense::unset((inner_rows, rank), dtype, target.device())?;
    let defines = [launch::element(dtype)?, format!("R={rank}")];
    let count = number(groups.len())?.unsigned_abs();
    let blocks = |n: usize, each: usize| u32::try_from(n.div_ceil(each)).map_err(candle_core::Error::wrap);

    let down = function(device, SOURCE, &defines, "low_rank_down")?;
    let shared = down_bytes(rank);
    launch::allow_shared(&down, shared)?;
    let config = launch::grid((blocks(most_rows, 32)?, count, 1), THREADS, shared);
    launch!(device, down, config, x.address(), inner.address(), number(depth)?, all)?;

    let up = function(device, SOURCE, &defines, "low_rank_up")?;
    let shared = up_bytes(rank);
    launch::allow_shared(&up, shared)?;
    let config = launch::grid((blocks(width, 128)?, blocks(most_rows, 64)?, count), THREADS, shared);
    launch!(device, up, config, inner.address(), launch::first_address(target)?, number(width)?, all)
}

/// Shared memory of `low_rank_down`: stages of 32 rows of `x` and all of the factor, 128 deep; afterwards three of its
/// four parts of the sums.
fn down_bytes(rank: usize) -> u32 {
    let stages = if rank > 64 { 2 } else { 3 };
    (stages * (32 + rank) * (128 + 8) * 2).max(3 * 32 * rank * 4) as u32
}

/// Shared memory of `low_rank_up`: 64 rows and 128 columns of the factors; afterwards of their product.
fn up_bytes(rank: usize) -> u32 {
    ((64 + 128) * (rank + 8) * 2).max(64 * (128 + 4) * 4) as u32
}
