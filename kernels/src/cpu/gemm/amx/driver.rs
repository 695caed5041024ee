//! The loops around the tiles: slices of both matrices are packed by all threads, then multiplied by all.

use std::arch::x86_64::*;

use super::super::driver::{Slice, part, task_shape};
use super::super::{PanelSource, Problem, Tile};
use super::pack::{pack_a, pack_b};
use super::tiles::{BLOCK, PANEL_STEP, SIDE, STEP, Tiles};
use crate::cpu::parallel::{self, Shared};
use crate::cpu::scratch;

/// Columns of both matrices packed at once: few slices, because each reads and writes all of `C`.
const DEPTH: usize = 2560;
/// Steps of depth multiplied at once: a panel of `B` stays in the first-level cache.
const STEPS: usize = 16;
/// Rows of `A` packed at once.
const ROWS: usize = 2048;
/// Columns of `B` packed at once.
const COLUMNS: usize = 2560;
/// The most panels of `A` and of `B` that one task multiplies: its part of `A` and its sums stay in the
/// second-level cache.
const TASK_PANELS: (usize, usize) = (8, 4);

/// Solves `problem` into `c`, with `A` and `W` rounded to `bf16`.
///
/// # Safety
/// AMX is [available](super::available); otherwise as for [`super::super::multiply`].
pub(crate) unsafe fn multiply<A: PanelSource, W: PanelSource>(problem: &Problem<'_, A, W>, c: *mut f32) {
    let &Problem { m, n, depth, .. } = problem;
    let rows_step = part(m, ROWS, SIDE);
    let cols_step = part(n, COLUMNS, SIDE);
    let depth_step = part(depth, DEPTH, STEP);
    let c = Shared::new(c);
    // Two numbers of a packed matrix take the room of one float.
    let a_len = rows_step * depth_step / 2;
    scratch::with(a_len + cols_step * depth_step / 2, |buffer| {
        let (a_packed, b_packed) = buffer.split_at_mut(a_len);
        let (a_packed, b_packed) = (Shared::new(a_packed.as_mut_ptr()), Shared::new(b_packed.as_mut_ptr()));
        for row in (0..m).step_by(rows_step) {
            let rows = rows_step.min(m - row);
            for col in (0..n).step_by(cols_step) {
                let cols = cols_step.min(n - col);
                for k in (0..depth).step_by(depth_step) {
                    let slice = Slice { row, rows, col, cols, k, depth: depth_step.min(depth - k) };
                    // SAFETY: the slice lies inside the problem and the buffers hold a slice each.
                    unsafe {
                        pack(problem, &slice, a_packed, b_packed);
                        compute(problem, &slice, a_packed, b_packed, c);
                    }
                }
            }
        }
    });
}

/// Floats in a packed panel of `depth` columns.
fn panel_len(depth: usize) -> usize {
    depth.div_ceil(STEP) * PANEL_STEP
}

unsafe fn pack<A: PanelSource, W: PanelSource>(
    problem: &Problem<'_, A, W>,
    slice: &Slice,
    a: Shared<'_, f32>,
    b: Shared<'_, f32>,
) {
    let a_panels = slice.rows.div_ceil(SIDE);
    let ks = slice.k..slice.k + slice.depth;
    let len = panel_len(slice.depth);
    parallel::for_each(a_panels + slice.cols.div_ceil(SIDE), |task| {
        if task < a_panels {
            let first = task * SIDE;
            let rows = slice.row + first..slice.row + (first + SIDE).min(slice.rows);
            // SAFETY: rows and depth lie inside `A`; each panel has its own place in the buffer.
            unsafe {
                let panel = a.get().add(task * len);
                problem.a.runs(rows, ks.clone(), |starts, at, len| {
                    pack_a(starts, at, len, slice.depth, panel);
                });
            }
        } else {
            let task = task - a_panels;
            let first = task * SIDE;
            let cols = slice.col + first..slice.col + (first + SIDE).min(slice.cols);
            // SAFETY: as above, for `W`, whose rows are single runs.
            unsafe {
                let panel = b.get().add(task * len);
                problem.w.runs(cols, ks.clone(), |starts, _, len| pack_b(starts, len, panel));
            }
        }
    });
}

unsafe fn compute<A: PanelSource, W: PanelSource>(
    problem: &Problem<'_, A, W>,
    slice: &Slice,
    a: Shared<'_, f32>,
    b: Shared<'_, f32>,
    c: Shared<'_, f32>,
) {
    let (a_panels, b_panels) = (slice.rows.div_ceil(SIDE), slice.cols.div_ceil(SIDE));
    let (tall, wide) = task_shape(a_panels, b_panels, TASK_PANELS);
    let down = a_panels.div_ceil(tall);
    let steps = slice.depth.div_ceil(STEP);
    let at_once = part(steps, STEPS, 1);
    // Sums that are finished at once need only one place.
    let kept = if at_once < steps { tall * wide } else { 1 };
    parallel::for_each(down * b_panels.div_ceil(wide), |task| {
        let (i, j) = (task % down * tall, task / down * wide);
        scratch::with(kept * BLOCK, |sums| {
            // SAFETY: AMX is available, and tasks do not nest.
            let tiles = unsafe { Tiles::configure() };
            for step in (0..steps).step_by(at_once) {
                let count = at_once.min(steps - step);
                for jr in j..(j + wide).min(b_panels) {
                    for ir in i..(i + tall).min(a_panels) {
                        let place = ((jr - j) * tall + (ir - i)) % kept;
                        let sums = &mut sums[place * BLOCK..][..BLOCK];
                        // SAFETY: the panels are packed, `steps` steps each; the sums are a block. The tile
                        // lies inside `C` and belongs to this task alone.
                        unsafe {
                            let a = a.get().add((ir * steps + step) * PANEL_STEP);
                            let b = b.get().add((jr * steps + step) * PANEL_STEP);
                            tiles.multiply(a, b, count, step > 0, sums.as_mut_ptr());
                            if step + count == steps {
                                store(problem, slice, ir * SIDE, jr * SIDE, sums, c.get());
                            }
                        }
                    }
                }
            }
        });
    });
}

/// Brings the block whose first row and column in the slice are `first_row` and `first_col` to `c`.
unsafe fn store<A, W>(
    problem: &Problem<'_, A, W>,
    slice: &Slice,
    first_row: usize,
    first_col: usize,
    sums: &[f32],
    c: *mut f32,
) {
    let (row, col) = (slice.row + first_row, slice.col + first_col);
    let bias = match problem.bias {
        Some(bias) if slice.k == 0 => bias[col..].as_ptr(),
        _ => std::ptr::null(),
    };
    // SAFETY: the caller's promises are the ones asked for.
    unsafe {
        let tile = Tile { c: c.add(row * problem.n + col), ldc: problem.n, accumulate: slice.k > 0, bias };
        finish(sums, SIDE.min(slice.rows - first_row), SIDE.min(slice.cols - first_col), tile);
    }
}

/// Writes `rows` × `cols` of a block to `tile`.
#[target_feature(enable = "avx512f")]
unsafe fn finish(sums: &[f32], rows: usize, cols: usize, tile: Tile) {
    for half in 0..cols.div_ceil(16) {
        let first = half * 16;
        let mask = if cols - first >= 16 { !0 } else { (1u16 << (cols - first)) - 1 };
        let bias = if tile.bias.is_null() {
            _mm512_setzero_ps()
        } else {
            // SAFETY: the mask keeps to the tile's columns, and so to the bias.
            unsafe { _mm512_maskz_loadu_ps(mask, tile.bias.add(first)) }
        };
        for row in 0..rows {
            // SAFETY: as above; a block has 32 rows.
            unsafe {
                let block = sums.as_ptr().add((row / 16 * 2 + half) * 256 + row % 16 * 16);
                let c = tile.c.add(row * tile.ldc + first);
                let mut sum = _mm512_add_ps(_mm512_loadu_ps(block), bias);
                if tile.accumulate {
                    sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, c));
                }
                _mm512_mask_storeu_ps(c, mask, sum);
            }
        }
    }
}
