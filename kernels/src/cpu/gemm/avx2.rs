//! The AVX2 kernel: 6×16 tiles, twelve accumulators in the sixteen registers.
#![allow(clippy::needless_range_loop, reason = "a tile's rows index accumulators and addresses alike")]

use std::arch::x86_64::*;

use super::{Kernel, Tile, portable, with_rows};
use crate::cpu::element::Element;

/// Kernel for CPUs with AVX2, FMA and F16C.
pub(crate) struct Avx2;

const MR: usize = 6;
const NR: usize = 16;

impl Kernel for Avx2 {
    const MR: usize = MR;
    const NR: usize = NR;

    unsafe fn pack<E: Element>(rows: &[*const E], len: usize, panel: *mut f32, stride: usize) {
        // SAFETY: the caller's promises are the ones asked for.
        unsafe { pack(rows, len, panel, stride) }
    }

    unsafe fn tile(rows: usize, cols: usize, depth: usize, a: *const f32, b: *const f32, tile: Tile) {
        if cols == NR {
            // SAFETY: the caller's promises are the ones asked for.
            unsafe { with_rows!(rows, [1 2 3 4 5 6], multiply(depth, a, b, tile)) }
            return;
        }
        let mut whole = [0f32; MR * NR];
        let inner = Tile { c: whole.as_mut_ptr(), ldc: NR, accumulate: false, bias: std::ptr::null() };
        // SAFETY: as above, and `whole` holds a full tile.
        unsafe {
            with_rows!(rows, [1 2 3 4 5 6], multiply(depth, a, b, inner));
            portable::finish(&whole, NR, rows, cols, tile);
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn multiply<const ROWS: usize>(depth: usize, a: *const f32, b: *const f32, tile: Tile) {
    // SAFETY: panels and tile are as large as the caller promises, all sixteen columns are there.
    unsafe {
        let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
        let (mut a, mut b) = (a, b);
        for _ in 0..depth {
            let b0 = _mm256_load_ps(b);
            let b1 = _mm256_load_ps(b.add(8));
            for row in 0..ROWS {
                let x = _mm256_set1_ps(*a.add(row));
                sums[row][0] = _mm256_fmadd_ps(x, b0, sums[row][0]);
                sums[row][1] = _mm256_fmadd_ps(x, b1, sums[row][1]);
            }
            a = a.add(MR);
            b = b.add(NR);
        }
        let (bias0, bias1) = if tile.bias.is_null() {
            (_mm256_setzero_ps(), _mm256_setzero_ps())
        } else {
            (_mm256_loadu_ps(tile.bias), _mm256_loadu_ps(tile.bias.add(8)))
        };
        for row in 0..ROWS {
            let c = tile.c.add(row * tile.ldc);
            let mut c0 = _mm256_add_ps(sums[row][0], bias0);
            let mut c1 = _mm256_add_ps(sums[row][1], bias1);
            if tile.accumulate {
                c0 = _mm256_add_ps(c0, _mm256_loadu_ps(c));
                c1 = _mm256_add_ps(c1, _mm256_loadu_ps(c.add(8)));
            }
            _mm256_storeu_ps(c, c0);
            _mm256_storeu_ps(c.add(8), c1);
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn pack<E: Element>(rows: &[*const E], len: usize, panel: *mut f32, stride: usize) {
    // SAFETY: the caller's promises are the ones asked for.
    unsafe { portable::pack(rows, len, panel, stride) }
}
