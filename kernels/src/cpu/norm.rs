//! Group, layer and root-mean-square normalisation.
//!
//! Group statistics are gathered per channel as sums of differences from a pivot (the channel's first value),
//! in `f32` over short runs of positions and in `f64` beyond, so a large common offset costs no accuracy.

use super::isa::Isa;
use super::math;
use super::parallel::{self, Shared};
use super::vector::{self, Arithmetic, Body};
use crate::Activation;

/// Positions summed in `f32` before the sums go into `f64`.
const RUN: usize = 32;
/// Floats a task reads: some hundred kilobytes, so that tasks are many and their overhead is small.
const TASK_FLOATS: usize = 1 << 15;

/// Sizes of a group normalisation over `[batch, positions, channels]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Groups {
    pub(crate) batch: usize,
    pub(crate) positions: usize,
    pub(crate) channels: usize,
    pub(crate) groups: usize,
    pub(crate) eps: f64,
}

/// Writes the normalised, scaled, shifted and activated `x` to `out`.
///
/// # Safety
/// `isa` is one the machine has; `x` holds `batch · positions · channels` floats and `out` has room for them;
/// `weight` and `bias` hold `channels`; `groups` divides `channels`; nothing is empty.
pub(crate) unsafe fn group_norm(
    isa: Isa,
    sizes: Groups,
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    activation: Activation,
    out: *mut f32,
) {
    let Groups { batch, positions, channels, groups, eps } = sizes;
    let step = (TASK_FLOATS / channels).clamp(1, positions);
    let blocks = positions.div_ceil(step);
    let block_of = |task: usize| {
        let (row, block) = (task / blocks, task % blocks);
        let start = block * step;
        (row, start, step.min(positions - start))
    };
    let mut partial = vec![0f64; batch * blocks * 2 * channels];
    let partial_at = Shared::new(partial.as_mut_ptr());
    parallel::for_each(batch * blocks, |task| {
        let (row, start, count) = block_of(task);
        let first = row * positions * channels;
        // SAFETY: each task has its own `2 · channels` sums.
        let sums = unsafe {
            std::slice::from_raw_parts_mut(partial_at.get().add(task * 2 * channels), 2 * channels)
        };
        let x = &x[first..first + positions * channels];
        let (pivot, x) = (&x[..channels], &x[start * channels..(start + count) * channels]);
        vector::run(isa, Sums { x, pivot, sums });
    });
    // Per batch row and channel: what to subtract, and what to multiply with.
    let mut scales = vec![0f32; batch * 2 * channels];
    let width = channels / groups;
    for row in 0..batch {
        let partial = &partial[row * blocks * 2 * channels..(row + 1) * blocks * 2 * channels];
        let (means, factors) = scales[row * 2 * channels..(row + 1) * 2 * channels].split_at_mut(channels);
        let n = positions as f64;
        for group in 0..groups {
            let of_channel = |c: usize| {
                let (sum, square) = partial
                    .chunks_exact(2 * channels)
                    .fold((0.0, 0.0), |(s, q), block| (s + block[c], q + block[channels + c]));
                (f64::from(x[row * positions * channels + c]) + sum / n, square - sum * sum / n)
            };
            let members = group * width..(group + 1) * width;
            let moments: Vec<(f64, f64)> = members.clone().map(of_channel).collect();
            let mean = moments.iter().map(|m| m.0).sum::<f64>() / width as f64;
            let square: f64 = moments.iter().map(|&(m, q)| q + n * (m - mean) * (m - mean)).sum();
            let inverse = 1.0 / (square / (n * width as f64) + eps).sqrt();
            for c in members {
                means[c] = mean as f32;
                factors[c] = (inverse * f64::from(weight[c])) as f32;
            }
        }
    }
    let out = Shared::new(out);
    parallel::for_each(batch * blocks, |task| {
        let (row, start, count) = block_of(task);
        let first = (row * positions + start) * channels;
        let (mean, factor) = scales[row * 2 * channels..(row + 1) * 2 * channels].split_at(channels);
        let x = &x[first..first + count * channels];
        // SAFETY: each task writes its own positions, all of which lie inside `out`.
        let out = unsafe { out.get().add(first) };
        match activation {
            Activation::Identity => vector::run(isa, Scale::<0> { x, mean, factor, bias, out }),
            Activation::Silu => vector::run(isa, Scale::<1> { x, mean, factor, bias, out }),
            Activation::Gelu => vector::run(isa, Scale::<2> { x, mean, factor, bias, out }),
            Activation::QuickGelu => vector::run(isa, Scale::<3> { x, mean, factor, bias, out }),
            Activation::GeluTanh => vector::run(isa, Scale::<4> { x, mean, factor, bias, out }),
        }
    });
}

/// Sums of differences from the pivot and of their squares, per channel.
struct Sums<'a> {
    x: &'a [f32],
    pivot: &'a [f32],
    sums: &'a mut [f64],
}

impl Body for Sums<'_> {
    #[inline(always)]
    fn run<M: Arithmetic>(self) {
        const LANES: usize = 32;
        let channels = self.pivot.len();
        let (sums, squares) = self.sums.split_at_mut(channels);
        for run in self.x.chunks(RUN * channels) {
            let mut c = 0;
            while c + LANES <= channels {
                let mut pivot = [0f32; LANES];
                pivot.copy_from_slice(&self.pivot[c..c + LANES]);
                let (mut s, mut q) = ([0f32; LANES], [0f32; LANES]);
                for position in run.chunks_exact(channels) {
                    if let Some(x) = position[c..].first_chunk::<LANES>() {
                        for i in 0..LANES {
                            let x = x[i] - pivot[i];
                            s[i] += x;
                            q[i] = M::multiply_add(x, x, q[i]);
                        }
                    }
                }
                for i in 0..LANES {
                    sums[c + i] += f64::from(s[i]);
                    squares[c + i] += f64::from(q[i]);
                }
                c += LANES;
            }
            for c in c..channels {
                let (mut s, mut q) = (0f32, 0f32);
                for position in run.chunks_exact(channels) {
                    let x = position[c] - self.pivot[c];
                    s += x;
                    q = M::multiply_add(x, x, q);
                }
                sums[c] += f64::from(s);
                squares[c] += f64::from(q);
            }
        }
    }
}

/// The activation with the number that [`group_norm`] gives it, so that the loop has no branch.
#[inline(always)]
fn activated<M: Arithmetic, const ACTIVATION: usize>(x: f32) -> f32 {
    match ACTIVATION {
        0 => x,
        1 => math::silu::<M>(x),
        2 => math::gelu::<M>(x),
        3 => math::quick_gelu::<M>(x),
        _ => math::gelu_tanh::<M>(x),
    }
}

/// `(x − mean) · factor + bias`, activated.
struct Scale<'a, const ACTIVATION: usize> {
    x: &'a [f32],
    mean: &'a [f32],
    factor: &'a [f32],
    bias: &'a [f32],
    out: *mut f32,
}

impl<const ACTIVATION: usize> Body for Scale<'_, ACTIVATION> {
    #[inline(always)]
    fn run<M: Arithmetic>(self) {
        let channels = self.mean.len();
        let (mean, factor, bias) = (self.mean, &self.factor[..channels], &self.bias[..channels]);
        for (position, x) in self.x.chunks_exact(channels).enumerate() {
            // SAFETY: `out` has room for as many positions as `x` has.
            let out = unsafe { self.out.add(position * channels) };
            for c in 0..channels {
                let y = M::multiply_add(x[c] - mean[c], factor[c], bias[c]);
                // SAFETY: `c < channels`.
                unsafe { *out.add(c) = activated::<M, ACTIVATION>(y) };
            }
        }
    }
}

/// Writes the normalised, scaled and shifted rows of `x` to `out`.
///
/// # Safety
/// `isa` is one the machine has; `x` holds whole rows of `weight.len()` floats, `out` has room for as many,
/// and `bias` is as long as `weight`, which is not empty.
pub(crate) unsafe fn layer_norm(isa: Isa, x: &[f32], weight: &[f32], bias: &[f32], eps: f64, out: *mut f32) {
    let width = weight.len();
    let rows = x.len() / width;
    let step = (TASK_FLOATS / width).clamp(1, rows);
    let out = Shared::new(out);
    parallel::for_each(rows.div_ceil(step), |task| {
        let first = task * step * width;
        let x = &x[first..(first + step * width).min(x.len())];
        // SAFETY: each task writes its own rows.
        let out = unsafe { out.get().add(first) };
        vector::run(isa, Rows { x, weight, bias, eps: eps as f32, out });
    });
}

/// Layer normalisation of whole rows.
struct Rows<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    eps: f32,
    out: *mut f32,
}

impl Body for Rows<'_> {
    #[inline(always)]
    fn run<M: Arithmetic>(self) {
        let width = self.weight.len();
        let bias = &self.bias[..width];
        for (row, x) in self.x.chunks_exact(width).enumerate() {
            // SAFETY: `out` has room for as many rows as `x` has.
            let out = unsafe { self.out.add(row * width) };
            let mean = sum::<M, false>(x, 0.0) / width as f32;
            let variance = sum::<M, true>(x, mean) / width as f32;
            let inverse = 1.0 / (variance + self.eps).sqrt();
            for c in 0..width {
                let y = M::multiply_add((x[c] - mean) * inverse, self.weight[c], bias[c]);
                // SAFETY: `c < width`.
                unsafe { *out.add(c) = y };
            }
        }
    }
}

/// Writes `activation(x / √(mean(x²) + eps) · weight)` of each row of `x` to `out`.
///
/// # Safety
/// `isa` is one the machine has; `x` holds whole rows of `weight.len()` floats, `out` has room for as many, and `weight` is
/// not empty.
pub(crate) unsafe fn rms_norm(
    isa: Isa,
    x: &[f32],
    weight: &[f32],
    eps: f64,
    activation: Activation,
    out: *mut f32,
) {
    let width = weight.len();
    let rows = x.len() / width;
    let step = (TASK_FLOATS / width).clamp(1, rows);
    let (eps, out) = (eps as f32, Shared::new(out));
    parallel::for_each(rows.div_ceil(step), |task| {
        let first = task * step * width;
        let x = &x[first..(first + step * width).min(x.len())];
        // SAFETY: each task writes its own rows.
        let out = unsafe { out.get().add(first) };
        match activation {
            Activation::Identity => vector::run(isa, RootMeanSquare::<0> { x, weight, eps, out }),
            Activation::Silu => vector::run(isa, RootMeanSquare::<1> { x, weight, eps, out }),
            Activation::Gelu => vector::run(isa, RootMeanSquare::<2> { x, weight, eps, out }),
            Activation::QuickGelu => vector::run(isa, RootMeanSquare::<3> { x, weight, eps, out }),
            Activation::GeluTanh => vector::run(isa, RootMeanSquare::<4> { x, weight, eps, out }),
        }
    });
}

/// Root-mean-square normalisation of whole rows.
struct RootMeanSquare<'a, const ACTIVATION: usize> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    out: *mut f32,
}

impl<const ACTIVATION: usize> Body for RootMeanSquare<'_, ACTIVATION> {
    #[inline(always)]
    fn run<M: Arithmetic>(self) {
        let width = self.weight.len();
        for (row, x) in self.x.chunks_exact(width).enumerate() {
            // SAFETY: `out` has room for as many rows as `x` has.
            let out = unsafe { self.out.add(row * width) };
            let inverse = 1.0 / (sum::<M, true>(x, 0.0) / width as f32 + self.eps).sqrt();
            for (c, (&x, &weight)) in x.iter().zip(self.weight).enumerate() {
                // SAFETY: `c < width`.
                unsafe { *out.add(c) = activated::<M, ACTIVATION>(x * inverse * weight) };
            }
        }
    }
}

/// `Σ x`, or `Σ (x − mean)²`, in 64 partial sums that are then added pairwise.
#[inline(always)]
fn sum<M: Arithmetic, const SQUARED: bool>(x: &[f32], mean: f32) -> f32 {
    const LANES: usize = 64;
    let mut lanes = [0f32; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            let x = chunk[i] - mean;
            lanes[i] = if SQUARED { M::multiply_add(x, x, lanes[i]) } else { lanes[i] + x };
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        let x = x - mean;
        *lane += if SQUARED { x * x } else { x };
    }
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}
