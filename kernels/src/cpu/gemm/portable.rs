//! The kernel for every other CPU: plain loops in a shape that compilers vectorise, 4×16 tiles.

use super::{Kernel, Tile};
use crate::cpu::element::Element;

/// Kernel that needs no instruction beyond the target's baseline.
pub(crate) struct Portable;

const MR: usize = 4;
const NR: usize = 16;

impl Kernel for Portable {
    const MR: usize = MR;
    const NR: usize = NR;

    unsafe fn pack<E: Element>(rows: &[*const E], len: usize, panel: *mut f32, stride: usize) {
        // SAFETY: the caller's promises are the ones asked for.
        unsafe { pack(rows, len, panel, stride) }
    }

    unsafe fn tile(rows: usize, cols: usize, depth: usize, a: *const f32, b: *const f32, tile: Tile) {
        let mut sums = [0f32; MR * NR];
        for k in 0..depth {
            // SAFETY: both panels have `depth` steps.
            let (x, w) =
                unsafe { (&*a.add(k * MR).cast::<[f32; MR]>(), &*b.add(k * NR).cast::<[f32; NR]>()) };
            for row in 0..MR {
                for col in 0..NR {
                    sums[row * NR + col] = multiply_add(x[row], w[col], sums[row * NR + col]);
                }
            }
        }
        // SAFETY: the caller vouches for the tile's rows and columns.
        unsafe { finish(&sums, NR, rows, cols, tile) }
    }
}

/// `x · y + z`, fused only where that is an instruction and not a library call.
#[inline(always)]
pub(crate) fn multiply_add(x: f32, y: f32, z: f32) -> f32 {
    if cfg!(any(target_feature = "fma", target_arch = "aarch64")) { x.mul_add(y, z) } else { x * y + z }
}

/// Writes `rows` × `cols` of `sums` to the tile.
///
/// # Safety
/// The tile has that many rows and columns (and bias, if not null).
pub(super) unsafe fn finish(sums: &[f32], stride: usize, rows: usize, cols: usize, tile: Tile) {
    for row in 0..rows {
        for col in 0..cols {
            // SAFETY: inside the tile, by the caller's promise.
            unsafe {
                let c = tile.c.add(row * tile.ldc + col);
                let mut sum = sums[row * stride + col];
                if !tile.bias.is_null() {
                    sum += *tile.bias.add(col);
                }
                *c = if tile.accumulate { *c + sum } else { sum };
            }
        }
    }
}

/// See [`Kernel::pack`].
///
/// # Safety
/// As there.
#[inline(always)]
pub(super) unsafe fn pack<E: Element>(rows: &[*const E], len: usize, panel: *mut f32, stride: usize) {
    for (i, row) in rows.iter().enumerate() {
        for k in 0..len {
            // SAFETY: `k < len`, `i < stride`.
            unsafe { *panel.add(k * stride + i) = (*row.add(k)).widen() };
        }
    }
    for i in rows.len()..stride {
        for k in 0..len {
            // SAFETY: as above.
            unsafe { *panel.add(k * stride + i) = 0.0 };
        }
    }
}
