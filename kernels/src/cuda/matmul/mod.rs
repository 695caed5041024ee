//! Matrix products by cuBLASLt: linear layers with their bias and a residual sum in the same pass, and 8-bit products.
//!
//! [`crate::linear_add`] and [`crate::add_linear_to_rows`] come here for tensors on a CUDA device. `y[m, n] =
//! x[m, k] · weight[n, k]ᵀ` is, counted down columns as cuBLASLt does, `Y = Wᵀ X`: the weight is its A, transposed, and
//! `x` its B, so that everything lies as it is and the bias runs along the rows of its D.
//!
//! - Products are formed in the weight's type, of `f32` activations in `f32`, and summed in `f32`; `f32` products are not
//!   rounded to TF32. The result leaves in the type of `x` where cuBLASLt has that pair of types, else in `f32` and is converted.
//! - Fused are a bias (in the result's type; in another it is converted at each call, so weights are best loaded with
//!   biases that have the activations' type) and a sum with a residual. cuBLASLt's GELU is the tanh approximation, and
//!   the networks have the exact one: it stays a kernel of its own.
//! - The algorithm is the heuristic's first choice, kept per problem. By default it is chosen among those that sum over
//!   `k` in one block, in order: a row then does not depend on how many others there are through how its sum is split
//!   (tile sizes still follow `m`). [`set_tuning`] allows the others, or a choice by the clock.
//! - All of it can be captured in a graph: results, conversions and workspaces (up to 32 MiB where an algorithm wants
//!   one, 4 before Hopper) are memory of the activations' stream, and weights may belong to another.
//!
//! # Where a step's work is
//!
//! SDXL's UNet at 1024² (latents of 128²), one sample, 77 keys; TFLOP, two for a multiplication and an addition:
//!
//! | products `[m, k] · [n, k]ᵀ` | m | k → n | times | TFLOP |
//! |---|---|---|---|---|
//! | self-attention's q, k, v and output, and cross-attention's q and output, at 64² | 4096 | 640 → 640 | 60 | 0.201 |
//! | feed-forward at 64² | 4096 | 640 → 5120, 2560 → 640 | 10 each | 0.403 |
//! | the same projections at 32² | 1024 | 1280 → 1280 | 360 | 1.208 |
//! | feed-forward at 32² | 1024 | 1280 → 10240, 5120 → 1280 | 60 each | 2.416 |
//! | keys and values of the text | 77 | 2048 → 640, 1280 | 20, 120 | 0.053 |
//! | into and out of the transformers | 4096, 1024 | 640 → 640, 1280 → 1280 | 10, 12 | 0.074 |
//! | embeddings of time and size | 1 | 320 … 2816 → 320 … 1280 | 21 | < 0.001 |
//! | **matrix products** | | | | **4.354** (64 %) |
//! | convolutions, 1×1 shortcuts included | | | | **1.623** (24 %) |
//! | attention: scores and their use | | | | **0.784** (12 %) |
//! | **all** | | | | **6.761** |

pub(crate) mod fp8;
mod library;
pub(crate) mod low_rank;
mod plan;
mod tune;

use std::sync::PoisonError;
use std::sync::atomic::{AtomicU8, Ordering};

use candle_core::{DType, Result, Tensor};

use self::library::Addresses;
use self::plan::{Problem, Scales};
use super::launch::{self, Dense};
use super::operand::{self, operand};

/// How algorithms are chosen, for all devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Tuning {
    /// Allow algorithms that share the sums over `k` between blocks: faster where rows and columns are few, but then
    /// a picture depends on how many are drawn with it in the last bits.
    pub split_k: bool,
    /// Time the heuristic's first few on first use and keep the fastest, which may be another one at the next start.
    /// While a graph is being captured the first is taken.
    pub timed: bool,
}

static TUNING: AtomicU8 = AtomicU8::new(0);

/// Sets how algorithms are chosen from now on.
pub fn set_tuning(tuning: Tuning) {
    TUNING.store(u8::from(tuning.split_k) | u8::from(tuning.timed) << 1, Ordering::Relaxed);
}

fn tuning() -> Tuning {
    let bits = TUNING.load(Ordering::Relaxed);
    Tuning { split_k: bits & 1 != 0, timed: bits & 2 != 0 }
}

/// The type that both factors are brought to. What is in `f32` is so because rounding it would be seen: text encoders and
/// embeddings, whose weights are stored in 16 bits and are widened at each call (few rows; 3 ms for SDXL's encoders at
/// 3 TB/s).
fn factor_type(x: DType, weight: DType) -> DType {
    if x == DType::F32 { x } else { weight }
}

/// The type that a product of `factors`' type leaves cuBLASLt in, if it is to become `wanted`.
fn result_type(factors: DType, wanted: DType) -> DType {
    if factors == wanted { wanted } else { DType::F32 }
}

/// `x · weightᵀ (+ bias) (+ residual)` in the type of `x`; `x: [.., k]`, `weight: [n, k]`, `bias: [n]`,
/// `residual: [.., n]`. The caller has checked shapes. `None`: cuBLASLt does not take it.
pub(crate) fn linear(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
) -> Result<Option<Tensor>> {
    let device = launch::device(x)?;
    let (n, k) = weight.dims2()?;
    let m = x.elem_count() / k;
    let factors = factor_type(x.dtype(), weight.dtype());
    let result = result_type(factors, x.dtype());
    let library = library::of(&device)?;
    let mut library = library.lock().unwrap_or_else(PoisonError::into_inner);
    let problem = Problem {
        m,
        n,
        k,
        factors,
        result,
        bias: bias.is_some(),
        bias_type: result,
        adds: residual.is_some(),
        alignment: 16,
        scales: Scales::None,
        tuning: tuning(),
    };
    if library.refused(&problem) {
        return Ok(None);
    }
    let mut dims = x.dims().to_vec();
    if let Some(last) = dims.last_mut() {
        *last = n;
    }
    let on = x.device();
    let (x_in, weight) = (operand(x, factors, on)?, operand(weight, factors, on)?);
    let bias = bias.map(|bias| operand(bias, result, on)).transpose()?;
    let residual = residual.map(|residual| operand(residual, result, on)).transpose()?;
    let y = Dense::unset(dims, result, on)?;
    let address = |of: &Option<Dense>| of.as_ref().map_or(0, Dense::address);
    let at = Addresses {
        weight: weight.address(),
        x: x_in.address(),
        bias: address(&bias),
        residual: address(&residual),
        y: y.address(),
        scales: [0; 2],
    };
    // SAFETY: the tensors have the types and, by the caller's checks, the sizes that the problem says, and `Dense`
    // aligns them. Memory is given back in the order of the stream, after this product.
    if !unsafe { library.multiply(&device.cuda_stream(), &problem, at) }? {
        return Ok(None);
    }
    operand::result(y, x.dtype()).map(Some)
}

/// `target[first ..] += x · weightᵀ` in place, rows counted along the first dimension. The caller has checked shapes
/// and that `target` is contiguous. `false`: nothing was done, cuBLASLt does not take it.
pub(crate) fn add_to_rows(target: &Tensor, first: usize, x: &Tensor, weight: &Tensor) -> Result<bool> {
    let device = launch::device(target)?;
    let (n, k) = weight.dims2()?;
    let m = x.elem_count() / k;
    // What is added to decides the type: a result in another could not be added in place.
    let result = target.dtype();
    let wanted = factor_type(x.dtype(), weight.dtype());
    let factors = if result_type(wanted, result) == result { wanted } else { result };
    let rows = target.dims().first().copied().unwrap_or(1).max(1);
    let start = first * (target.elem_count() / rows) * result.size_in_bytes();
    let y = launch::first_address(target)? + start as u64;
    let library = library::of(&device)?;
    let mut library = library.lock().unwrap_or_else(PoisonError::into_inner);
    let problem = Problem {
        m,
        n,
        k,
        factors,
        result,
        bias: false,
        bias_type: result,
        adds: true,
        alignment: 1 << y.trailing_zeros().min(4),
        scales: Scales::None,
        tuning: tuning(),
    };
    if library.refused(&problem) {
        return Ok(false);
    }
    let on = target.device();
    let (x, weight) = (operand(x, factors, on)?, operand(weight, factors, on)?);
    let at = Addresses { weight: weight.address(), x: x.address(), bias: 0, residual: y, y, scales: [0; 2] };
    // SAFETY: as in `linear`; the rows from `first` lie inside the target by the caller's checks.
    unsafe { library.multiply(&device.cuda_stream(), &problem, at) }
}
