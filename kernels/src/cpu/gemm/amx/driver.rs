//! The loops around the tiles: slices of both matrices are packed by all threads, then multiplied by all.

use std::arch::x86_64::*;
use std::ops::Range;

use super::super::driver::{Slice, part, task_shape};
use super::super::{PanelSource, Problem};
use super::pack::{pack_a, pack_b};
use super::tiles::{BLOCK, PANEL_STEP, SIDE, STEP, TILE, Tiles};
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
/// The most panels of `A` and of `B` that one task multiplies: its part of `A` and its sums (640 KiB) stay in
/// the second-level cache.
const TASK_PANELS: (usize, usize) = (8, 20);

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
    parallel::for_each(down * b_panels.div_ceil(wide), |task| {
        let (i, j) = (task % down * tall, task / down * wide);
        scratch::with(tall * wide * BLOCK, |sums| {
            // SAFETY: AMX is available, and tasks do not nest.
            let tiles = unsafe { Tiles::configure() };
            let (rows, cols) = (i..(i + tall).min(a_panels), j..(j + wide).min(b_panels));
            for step in (0..steps).step_by(at_once) {
                let count = at_once.min(steps - step);
                for jr in cols.clone() {
                    for ir in rows.clone() {
                        let place = (jr - j) * tall + (ir - i);
                        let sums = &mut sums[place * BLOCK..][..BLOCK];
                        // SAFETY: the panels are packed, `steps` steps each; the sums are a block.
                        unsafe {
                            let a = a.get().add((ir * steps + step) * PANEL_STEP);
                            let b = b.get().add((jr * steps + step) * PANEL_STEP);
                            tiles.multiply(a, b, count, step > 0, sums.as_mut_ptr());
                        }
                    }
                }
            }
            drop(tiles);
            let block = Block { rows, cols, tall };
            // SAFETY: the sums are complete; the block lies inside `C` and belongs to this task alone.
            unsafe { store(problem, slice, &block, sums, c.get()) };
        });
    });
}

/// The panels of both matrices whose products a task sums.
struct Block {
    rows: Range<usize>,
    cols: Range<usize>,
    /// Blocks of sums from one panel of `W` to the next.
    tall: usize,
}

/// Brings a task's sums to `C`, row by row, so that its memory is written in long runs.
///
/// # Safety
/// The CPU has the instructions; the block lies inside the slice and `C`, which nobody else touches there.
#[target_feature(enable = "avx512f")]
unsafe fn store<A, W>(problem: &Problem<'_, A, W>, slice: &Slice, block: &Block, sums: &[f32], c: *mut f32) {
    let first_col = block.cols.start * SIDE;
    let cols = (block.cols.end * SIDE).min(slice.cols) - first_col;
    let col = slice.col + first_col;
    let bias = problem.bias.filter(|_| slice.k == 0).map(|bias| &bias[col..][..cols]);
    for row in block.rows.start * SIDE..(block.rows.end * SIDE).min(slice.rows) {
        let (panel, in_panel) = (row / SIDE - block.rows.start, row % SIDE);
        let in_block = in_panel / 16 * 2 * TILE + in_panel % 16 * 16;
        for at in (0..cols).step_by(16) {
            let mask = if cols - at >= 16 { !0 } else { (1u16 << (cols - at)) - 1 };
            let place = at / SIDE * block.tall + panel;
            let from = sums[place * BLOCK + in_block + at % SIDE / 16 * TILE..][..16].as_ptr();
            // SAFETY: sixteen sums are there; the mask keeps to the block's columns, in `C` and in the bias.
            unsafe {
                let to = c.add((slice.row + row) * problem.n + col + at);
                let mut sum = _mm512_load_ps(from);
                if let Some(bias) = bias {
                    sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, bias.as_ptr().add(at)));
                }
                if problem.accumulate || slice.k > 0 {
                    sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, to));
                }
                _mm512_mask_storeu_ps(to, mask, sum);
            }
        }
    }
}
