//! 3×3 convolution of stride 1 by Winograd's minimal filtering, F(4×4, 3×3) (Lavin & Gray 2016): a tile of
//! 4×4 outputs takes 36 multiplications a channel pair instead of 144.
//!
//! Weights stay as they are stored: each task transforms the block of output channels it works on, a slice of
//! input channels at a time. Rounding errors are a few times those of the direct sum.
#![allow(
    clippy::needless_range_loop,
    reason = "rows and columns index several arrays, one of them transposed"
)]

use super::element::Element;
use super::gemm::{Kernel, Tile};
use super::isa::Isa;
use super::parallel::{self, Shared};
use super::scratch;
use super::vector::{self, Arithmetic, Body};

/// Side of a tile of outputs.
const OUT: usize = 4;
/// Side of the patch of inputs that a tile depends on.
const SIDE: usize = OUT + 2;
/// Elements of a transformed tile.
const POINTS: usize = SIDE * SIDE;
/// Input channels whose weights are transformed at once.
const DEPTH: usize = 128;
/// Input channels whose patches are transformed at once.
const CHANNELS: usize = 32;
/// Floats of transformed inputs kept at once (16 MiB).
const INPUT_FLOATS: usize = 4 << 20;
/// Floats of products a task keeps (768 KiB): with its weights they stay in the second-level cache.
const PRODUCT_FLOATS: usize = 192 << 10;
/// The most rows any kernel's panel has.
const MAX_ROWS: usize = 16;

/// A convolution of `x: [batch, height, width, channels]` with `weight: [out, 3, 3, channels]`.
pub(crate) struct Problem<'a, E> {
    pub(crate) x: &'a [f32],
    pub(crate) weight: &'a [E],
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) batch: usize,
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) channels: usize,
    pub(crate) out: usize,
    pub(crate) out_height: usize,
    pub(crate) out_width: usize,
    /// Zeros above.
    pub(crate) top: usize,
    /// Zeros to the left.
    pub(crate) left: usize,
}

/// Whether this beats the direct sum, by a count of vector operations for both (fitted to measurements: the
/// transforms cost about 8 a weight, 20 an input and 20 an output of a tile).
pub(crate) fn pays(batch: usize, out_height: usize, out_width: usize, channels: usize, out: usize) -> bool {
    if channels < 32 || out < 32 {
        return false;
    }
    let tiles = (batch * out_height.div_ceil(OUT) * out_width.div_ceil(OUT)) as f64;
    let (positions, channels, out) = ((batch * out_height * out_width) as f64, channels as f64, out as f64);
    let direct = positions * 9.0 * channels * out / 32.0;
    let products = tiles * POINTS as f64 * channels * out / 32.0;
    products + 8.0 * channels * out + 20.0 * tiles * (channels + out) < 0.8 * direct
}

/// Convolves into `y: [batch, out_height, out_width, out]`.
///
/// # Safety
/// The kernel is `isa`'s, and the machine has it. The slices are as large as the problem says, nothing is
/// empty, and `y` has room for the output.
pub(crate) unsafe fn convolve<K: Kernel, E: Element>(isa: Isa, problem: &Problem<'_, E>, y: *mut f32) {
    let grid = Grid { down: problem.out_height.div_ceil(OUT), across: problem.out_width.div_ceil(OUT) };
    let tiles = problem.batch * grid.down * grid.across;
    let most = (INPUT_FLOATS / (POINTS * problem.channels)).min(PRODUCT_FLOATS / (POINTS * K::NR));
    let parts = tiles.div_ceil(most.max(K::MR));
    let block = tiles.div_ceil(parts);
    let y = Shared::new(y);
    let blocks_out = problem.out.div_ceil(K::NR);
    let most_panels = block.div_ceil(K::MR);
    scratch::with(POINTS * most_panels * K::MR * problem.channels, |inputs| {
        let inputs = Shared::new(inputs.as_mut_ptr());
        for first in (0..tiles).step_by(block) {
            let count = block.min(tiles - first);
            let panels = count.div_ceil(K::MR);
            let part = Part { grid, first, count, panels, rows: count.div_ceil(panels) };
            let slices = problem.channels.div_ceil(CHANNELS);
            parallel::for_each(panels * slices, |task| {
                // SAFETY: each task writes the slice of channels of the panel that is its own.
                unsafe {
                    transform_inputs::<K, E>(isa, problem, &part, task / slices, task % slices, inputs.get());
                }
            });
            parallel::for_each(blocks_out, |task| {
                // SAFETY: the inputs are transformed; each task writes its own output channels.
                unsafe { multiply::<K, E>(isa, problem, &part, task * K::NR, inputs.get(), y.get()) };
            });
        }
    });
}

/// Tiles of a picture.
#[derive(Clone, Copy)]
struct Grid {
    down: usize,
    across: usize,
}

impl Grid {
    /// Image, first row and first column of a tile's outputs.
    fn corner(self, tile: usize) -> (usize, usize, usize) {
        let (line, column) = (tile / self.across, tile % self.across);
        (line / self.down, line % self.down * OUT, column * OUT)
    }
}

/// The tiles that are transformed at one time, in panels of nearly equal height.
struct Part {
    grid: Grid,
    first: usize,
    count: usize,
    panels: usize,
    rows: usize,
}

/// Transforms a panel's patches, one slice of channels, into `[point][panel][channel][row]`.
unsafe fn transform_inputs<K: Kernel, E: Element>(
    isa: Isa,
    problem: &Problem<'_, E>,
    part: &Part,
    panel: usize,
    slice: usize,
    inputs: *mut f32,
) {
    let channel = slice * CHANNELS;
    let count = CHANNELS.min(problem.channels - channel);
    let first = panel * part.rows;
    let rows = part.rows.min(part.count.saturating_sub(first));
    if rows == 0 {
        return;
    }
    // Pixels are read where they lie; only the last, narrower slice of channels is copied to its full width.
    let zeros = [0f32; CHANNELS];
    let mut copies = [[0f32; CHANNELS]; POINTS];
    scratch::with(POINTS * MAX_ROWS * CHANNELS, |transformed| {
        for row in 0..rows {
            let (image, top, left) = part.grid.corner(part.first + first + row);
            let mut patch = [zeros.as_slice(); POINTS];
            for (point, (pixel, copy)) in patch.iter_mut().zip(&mut copies).enumerate() {
                let y = (top + point / SIDE).checked_sub(problem.top).filter(|&y| y < problem.height);
                let x = (left + point % SIDE).checked_sub(problem.left).filter(|&x| x < problem.width);
                if let (Some(y), Some(x)) = (y, x) {
                    let at = ((image * problem.height + y) * problem.width + x) * problem.channels;
                    let channels = &problem.x[at + channel..at + channel + count];
                    if count == CHANNELS {
                        *pixel = channels;
                    } else {
                        copy[..count].copy_from_slice(channels);
                        *pixel = copy;
                    }
                }
            }
            vector::run(isa, InputTransform { patch, transformed: &mut transformed[row * CHANNELS..] });
        }
        for point in 0..POINTS {
            let mut starts = [std::ptr::null(); MAX_ROWS];
            for (row, start) in starts[..rows].iter_mut().enumerate() {
                *start = transformed[(point * MAX_ROWS + row) * CHANNELS..].as_ptr();
            }
            let at = (point * part.panels + panel) * problem.channels + channel;
            // SAFETY: each start has `CHANNELS` floats behind it, the panel `channels · MR`.
            unsafe { K::pack(&starts[..rows], count, inputs.add(at * K::MR), K::MR) };
        }
    });
}

/// All tiles of the part for the output channels from `col` on, one kernel's width of them.
unsafe fn multiply<K: Kernel, E: Element>(
    isa: Isa,
    problem: &Problem<'_, E>,
    part: &Part,
    col: usize,
    inputs: *const f32,
    y: *mut f32,
) {
    let (nr, channels) = (K::NR, problem.channels);
    let cols = nr.min(problem.out - col);
    let mut bias = [0f32; 32];
    if let Some(all) = problem.bias {
        bias[..cols].copy_from_slice(&all[col..col + cols]);
    }
    let depth = DEPTH.min(channels);
    let sizes = [9 * depth * nr, POINTS * depth * nr, POINTS * part.count * nr, OUT * OUT * nr];
    scratch::with(sizes.iter().sum(), |buffer| {
        let (taps, buffer) = buffer.split_at_mut(sizes[0]);
        let (weights, buffer) = buffer.split_at_mut(sizes[1]);
        let (products, buffer) = buffer.split_at_mut(sizes[2]);
        let outputs = &mut buffer[..sizes[3]];
        for k in (0..channels).step_by(depth) {
            let count = depth.min(channels - k);
            for tap in 0..9 {
                let mut starts = [std::ptr::null(); 32];
                for (i, start) in starts[..cols].iter_mut().enumerate() {
                    *start = problem.weight[((col + i) * 9 + tap) * channels + k..].as_ptr();
                }
                // SAFETY: each start has `count` weights behind it, the panel `count · NR` floats.
                unsafe { K::pack(&starts[..cols], count, taps[tap * depth * nr..].as_mut_ptr(), nr) };
            }
            let len = count * nr;
            vector::run(isa, WeightTransform { taps, weights, stride: depth * nr, len });
            for point in 0..POINTS {
                for panel in 0..part.panels {
                    let first = panel * part.rows;
                    let rows = part.rows.min(part.count.saturating_sub(first));
                    if rows == 0 {
                        continue;
                    }
                    let tile = Tile {
                        c: products[(point * part.count + first) * nr..].as_mut_ptr(),
                        ldc: nr,
                        accumulate: k > 0,
                        bias: std::ptr::null(),
                    };
                    let at = (point * part.panels + panel) * channels + k;
                    // SAFETY: panel and weights are packed, the products hold every tile.
                    unsafe {
                        let a = inputs.add(at * K::MR);
                        K::tile(rows, nr, count, a, weights[point * depth * nr..].as_ptr(), tile);
                    }
                }
            }
        }
        for tile in 0..part.count {
            let (image, top, left) = part.grid.corner(part.first + tile);
            let products = &products[tile * nr..];
            let stride = part.count * nr;
            vector::run(isa, OutputTransform { products, stride, bias: &bias[..nr], outputs });
            for (i, pixel) in outputs.chunks_exact(nr).enumerate() {
                let (row, column) = (top + i / OUT, left + i % OUT);
                if row < problem.out_height && column < problem.out_width {
                    let at = (image * problem.out_height + row) * problem.out_width + column;
                    // SAFETY: inside the output, and this task's own channels.
                    unsafe { y.add(at * problem.out + col).copy_from_nonoverlapping(pixel.as_ptr(), cols) };
                }
            }
        }
    });
}

/// `Bᵀ d` of one column.
#[inline(always)]
fn input_line<M: Arithmetic>(d: [M::Vector; SIDE]) -> [M::Vector; SIDE] {
    let even = M::scale_add(d[2], -4.0, d[4]);
    let odd = M::scale_add(d[1], -4.0, d[3]);
    let near = M::sub(d[4], d[2]);
    let slope = M::sub(d[3], d[1]);
    [
        M::scale_add(d[0], 4.0, M::scale_add(d[2], -5.0, d[4])),
        M::add(even, odd),
        M::sub(even, odd),
        M::scale_add(slope, 2.0, near),
        M::scale_add(slope, -2.0, near),
        M::scale_add(d[1], 4.0, M::scale_add(d[3], -5.0, d[5])),
    ]
}

/// `G g` of one column.
#[inline(always)]
fn weight_line<M: Arithmetic>(g: [M::Vector; 3]) -> [M::Vector; SIDE] {
    let zero = M::splat(0.0);
    let outer = M::scale_add(M::add(g[0], g[2]), -1.0 / 6.0, zero);
    let wide = M::scale_add(g[0], 1.0 / 24.0, M::scale_add(g[2], 1.0 / 6.0, zero));
    [
        M::scale_add(g[0], 0.25, zero),
        M::scale_add(g[1], -1.0 / 6.0, outer),
        M::scale_add(g[1], 1.0 / 6.0, outer),
        M::scale_add(g[1], 1.0 / 12.0, wide),
        M::scale_add(g[1], -1.0 / 12.0, wide),
        g[2],
    ]
}

/// `Aᵀ m` of one column.
#[inline(always)]
fn output_line<M: Arithmetic>(m: [M::Vector; SIDE]) -> [M::Vector; OUT] {
    let (near, near_odd) = (M::add(m[1], m[2]), M::sub(m[1], m[2]));
    let (far, far_odd) = (M::add(m[3], m[4]), M::sub(m[3], m[4]));
    [
        M::add(m[0], M::add(near, far)),
        M::scale_add(far_odd, 2.0, near_odd),
        M::scale_add(far, 4.0, near),
        M::add(M::scale_add(far_odd, 8.0, near_odd), m[5]),
    ]
}

/// `Bᵀ d B` of a patch, `CHANNELS` side by side; points go `MAX_ROWS · CHANNELS` apart.
struct InputTransform<'a> {
    patch: [&'a [f32]; POINTS],
    transformed: &'a mut [f32],
}

impl Body for InputTransform<'_> {
    #[inline(always)]
    fn run<M: Arithmetic>(self) {
        const STRIDE: usize = MAX_ROWS * CHANNELS;
        let out = &mut self.transformed[..(POINTS - 1) * STRIDE + CHANNELS];
        let zero = M::splat(0.0);
        for i in (0..CHANNELS).step_by(M::LANES) {
            let mut columns = [[zero; SIDE]; SIDE];
            for x in 0..SIDE {
                let mut column = [zero; SIDE];
                for y in 0..SIDE {
                    column[y] = M::load(&self.patch[y * SIDE + x][i..]);
                }
                columns[x] = input_line::<M>(column);
            }
            for y in 0..SIDE {
                let mut line = [zero; SIDE];
                for x in 0..SIDE {
                    line[x] = columns[x][y];
                }
                let line = input_line::<M>(line);
                for x in 0..SIDE {
                    M::store(&mut out[(y * SIDE + x) * STRIDE + i..], line[x]);
                }
            }
        }
    }
}

/// `G g Gᵀ` of `len` kernels side by side (whole vectors); taps and points go `stride` apart.
struct WeightTransform<'a> {
    taps: &'a [f32],
    weights: &'a mut [f32],
    stride: usize,
    len: usize,
}

impl Body for WeightTransform<'_> {
    #[inline(always)]
    fn run<M: Arithmetic>(self) {
        let stride = self.stride;
        let taps = &self.taps[..8 * stride + self.len];
        let out = &mut self.weights[..(POINTS - 1) * stride + self.len];
        let zero = M::splat(0.0);
        for i in (0..self.len).step_by(M::LANES) {
            let mut columns = [[zero; SIDE]; 3];
            for x in 0..3 {
                let mut column = [zero; 3];
                for y in 0..3 {
                    column[y] = M::load(&taps[(y * 3 + x) * stride + i..]);
                }
                columns[x] = weight_line::<M>(column);
            }
            for y in 0..SIDE {
                let line = weight_line::<M>([columns[0][y], columns[1][y], columns[2][y]]);
                for x in 0..SIDE {
                    M::store(&mut out[(y * SIDE + x) * stride + i..], line[x]);
                }
            }
        }
    }
}

/// `Aᵀ m A` of one tile plus bias, output channels side by side (whole vectors); points go `stride` apart.
struct OutputTransform<'a> {
    products: &'a [f32],
    stride: usize,
    bias: &'a [f32],
    outputs: &'a mut [f32],
}

impl Body for OutputTransform<'_> {
    #[inline(always)]
    fn run<M: Arithmetic>(self) {
        let (stride, lanes) = (self.stride, self.bias.len());
        let products = &self.products[..(POINTS - 1) * stride + lanes];
        let out = &mut self.outputs[..OUT * OUT * lanes];
        let zero = M::splat(0.0);
        for i in (0..lanes).step_by(M::LANES) {
            let bias = M::load(&self.bias[i..]);
            let mut columns = [[zero; OUT]; SIDE];
            for x in 0..SIDE {
                let mut column = [zero; SIDE];
                for y in 0..SIDE {
                    column[y] = M::load(&products[(y * SIDE + x) * stride + i..]);
                }
                columns[x] = output_line::<M>(column);
            }
            for y in 0..OUT {
                let mut line = [zero; SIDE];
                for x in 0..SIDE {
                    line[x] = columns[x][y];
                }
                let line = output_line::<M>(line);
                for x in 0..OUT {
                    M::store(&mut out[(y * OUT + x) * lanes + i..], M::add(line[x], bias));
                }
            }
        }
    }
}
