//! The loops around the kernel: slices of both matrices are packed by all threads, then multiplied by all.

use super::{Kernel, PanelSource, Tile};
use crate::cpu::parallel::{self, Shared};
use crate::cpu::scratch;

/// Steps of depth packed at once: a panel of `B` stays in the first-level cache.
const DEPTH: usize = 320;
/// Rows of `A` packed at once.
const ROWS: usize = 2048;
/// Columns of `B` packed at once.
const COLUMNS: usize = 2560;
/// Panels of either matrix that one packing task copies.
const PACK_PANELS: usize = 4;

/// `C[m, n] (+)= A[m, depth] · W[n, depth]ᵀ + bias`.
pub(crate) struct Problem<'a, A, W> {
    /// Rows of `A` and `C`.
    pub(crate) m: usize,
    /// Rows of `W`, columns of `C`.
    pub(crate) n: usize,
    /// Columns of `A` and `W`.
    pub(crate) depth: usize,
    /// The activations.
    pub(crate) a: A,
    /// The weights.
    pub(crate) w: W,
    /// One number a column of `C`.
    pub(crate) bias: Option<&'a [f32]>,
    /// Add to what `C` holds instead of overwriting it.
    pub(crate) accumulate: bool,
}

/// Splits `len` into the fewest parts of at most `most`, of nearly equal size, rounded up to `unit`.
pub(super) fn part(len: usize, most: usize, unit: usize) -> usize {
    len.div_ceil(len.div_ceil(most)).next_multiple_of(unit)
}

/// Solves `problem` into `c`.
///
/// # Safety
/// The CPU has the kernel's instructions; `c` has room for `m · n` floats, which nobody else touches, and which are
/// initialised where the problem adds to them.
/// None of `m`, `n`, `depth` is zero; the matrices and the bias are as large as the problem says.
pub(crate) unsafe fn multiply<K: Kernel, A: PanelSource, W: PanelSource>(
    problem: &Problem<'_, A, W>,
    c: *mut f32,
) {
    let &Problem { m, n, depth, .. } = problem;
    let rows_step = part(m, ROWS, K::MR);
    let cols_step = part(n, COLUMNS, K::NR);
    let depth_step = part(depth, DEPTH, 8);
    let c = Shared::new(c);
    // Panels begin at cache lines: `B` because its loads are aligned, `A` because it costs nothing.
    let a_len = (rows_step * depth_step).next_multiple_of(16);
    scratch::with(a_len + cols_step * depth_step, |buffer| {
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
                        pack::<K, A, W>(problem, &slice, a_packed, b_packed);
                        compute::<K, A, W>(problem, &slice, a_packed, b_packed, c);
                    }
                }
            }
        }
    });
}

/// The part of a problem that is packed at one time.
pub(super) struct Slice {
    pub(super) row: usize,
    pub(super) rows: usize,
    pub(super) col: usize,
    pub(super) cols: usize,
    pub(super) k: usize,
    pub(super) depth: usize,
}

unsafe fn pack<K: Kernel, A: PanelSource, W: PanelSource>(
    problem: &Problem<'_, A, W>,
    slice: &Slice,
    a: Shared<'_, f32>,
    b: Shared<'_, f32>,
) {
    let a_panels = slice.rows.div_ceil(K::MR);
    let b_panels = slice.cols.div_ceil(K::NR);
    let a_tasks = a_panels.div_ceil(PACK_PANELS);
    let ks = slice.k..slice.k + slice.depth;
    parallel::for_each(a_tasks + b_panels.div_ceil(PACK_PANELS), |task| {
        if task < a_tasks {
            for panel in task * PACK_PANELS..((task + 1) * PACK_PANELS).min(a_panels) {
                let first = panel * K::MR;
                let rows = slice.row + first..slice.row + (first + K::MR).min(slice.rows);
                // SAFETY: rows and depth lie inside `A`; each panel has its own place in the buffer.
                unsafe { problem.a.pack::<K>(rows, ks.clone(), a.get().add(first * slice.depth), K::MR) };
            }
        } else {
            let task = task - a_tasks;
            for panel in task * PACK_PANELS..((task + 1) * PACK_PANELS).min(b_panels) {
                let first = panel * K::NR;
                let cols = slice.col + first..slice.col + (first + K::NR).min(slice.cols);
                // SAFETY: as above, for `W`.
                unsafe { problem.w.pack::<K>(cols, ks.clone(), b.get().add(first * slice.depth), K::NR) };
            }
        }
    });
}

/// The most panels of `A` and of `B` that one task multiplies: few enough rows that its part of `A` stays in
/// the second-level cache.
const TASK_PANELS: (usize, usize) = (8, 20);

/// Panels of `A` and of `B` that one task multiplies: at most `most`, and enough tasks for all threads.
pub(super) fn task_shape(a_panels: usize, b_panels: usize, most: (usize, usize)) -> (usize, usize) {
    let (mut tall, mut wide) = (a_panels.min(most.0), b_panels.min(most.1));
    let wanted = 8 * rayon::current_num_threads();
    while a_panels.div_ceil(tall) * b_panels.div_ceil(wide) < wanted && tall * wide > 8 {
        if wide >= tall {
            wide = wide.div_ceil(2);
        } else {
            tall = tall.div_ceil(2);
        }
    }
    (a_panels.div_ceil(a_panels.div_ceil(tall)), b_panels.div_ceil(b_panels.div_ceil(wide)))
}

unsafe fn compute<K: Kernel, A: PanelSource, W: PanelSource>(
    problem: &Problem<'_, A, W>,
    slice: &Slice,
    a: Shared<'_, f32>,
    b: Shared<'_, f32>,
    c: Shared<'_, f32>,
) {
    let (a_panels, b_panels) = (slice.rows.div_ceil(K::MR), slice.cols.div_ceil(K::NR));
    let (tall, wide) = task_shape(a_panels, b_panels, TASK_PANELS);
    let down = a_panels.div_ceil(tall);
    parallel::for_each(down * b_panels.div_ceil(wide), |task| {
        let (i, j) = (task % down, task / down);
        for jr in j * wide..((j + 1) * wide).min(b_panels) {
            let first_col = jr * K::NR;
            let col = slice.col + first_col;
            let bias = match problem.bias {
                Some(bias) if slice.k == 0 => bias[col..].as_ptr(),
                _ => std::ptr::null(),
            };
            for ir in i * tall..((i + 1) * tall).min(a_panels) {
                let first_row = ir * K::MR;
                let row = slice.row + first_row;
                // SAFETY: the panels are packed, the tile lies inside `C` and belongs to this task alone.
                unsafe {
                    let tile = Tile {
                        c: c.get().add(row * problem.n + col),
                        ldc: problem.n,
                        accumulate: problem.accumulate || slice.k > 0,
                        bias,
                    };
                    K::tile(
                        K::MR.min(slice.rows - first_row),
                        K::NR.min(slice.cols - first_col),
                        slice.depth,
                        a.get().add(first_row * slice.depth),
                        b.get().add(first_col * slice.depth),
                        tile,
                    );
                }
            }
        }
    });
}
