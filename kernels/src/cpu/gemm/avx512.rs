//! The AVX-512 kernel: 14×32 tiles, 28 accumulators and two weight vectors in the 32 registers.
#![allow(clippy::needless_range_loop, reason = "a tile's rows index accumulators and addresses alike")]

use std::arch::x86_64::*;

use super::{Kernel, Tile, with_rows};
use crate::cpu::element::Element;

/// Kernel for CPUs with AVX-512 F, BW, DQ and VL.
pub(crate) struct Avx512;

const MR: usize = 14;
const NR: usize = 32;

impl Kernel for Avx512 {
    const MR: usize = MR;
    const NR: usize = NR;

    unsafe fn pack<E: Element>(rows: &[*const E], len: usize, panel: *mut f32, stride: usize) {
        // SAFETY: the caller's promises are the ones asked for.
        unsafe { pack(rows, len, panel, stride) }
    }

    unsafe fn tile(rows: usize, cols: usize, depth: usize, a: *const f32, b: *const f32, tile: Tile) {
        // SAFETY: the caller's promises are the ones asked for.
        unsafe {
            if cols <= NR / 2 {
                with_rows!(rows, [1 2 3 4 5 6 7 8 9 10 11 12 13 14], multiply_half(cols, depth, a, b, tile));
            } else {
                with_rows!(rows, [1 2 3 4 5 6 7 8 9 10 11 12 13 14], multiply(cols, depth, a, b, tile));
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn multiply<const ROWS: usize>(cols: usize, depth: usize, a: *const f32, b: *const f32, tile: Tile) {
    let low: u16 = if cols >= 16 { !0 } else { (1 << cols) - 1 };
    let high: u16 = if cols >= 32 { !0 } else { (1u32 << cols.saturating_sub(16)) as u16 - 1 };
    // SAFETY: panels and tile are as large as the caller promises; masks keep to the tile's columns.
    unsafe {
        for row in 0..ROWS {
            let c = tile.c.wrapping_add(row * tile.ldc);
            _mm_prefetch::<_MM_HINT_T0>(c.cast());
            _mm_prefetch::<_MM_HINT_T0>(c.wrapping_add(16).cast());
        }
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        let (mut a, mut b) = (a, b);
        for _ in 0..depth {
            let b0 = _mm512_load_ps(b);
            let b1 = _mm512_load_ps(b.add(16));
            for row in 0..ROWS {
                let x = _mm512_set1_ps(*a.add(row));
                sums[row][0] = _mm512_fmadd_ps(x, b0, sums[row][0]);
                sums[row][1] = _mm512_fmadd_ps(x, b1, sums[row][1]);
            }
            a = a.add(MR);
            b = b.add(NR);
        }
        let (bias0, bias1) = if tile.bias.is_null() {
            (_mm512_setzero_ps(), _mm512_setzero_ps())
        } else {
            (_mm512_maskz_loadu_ps(low, tile.bias), _mm512_maskz_loadu_ps(high, tile.bias.wrapping_add(16)))
        };
        for row in 0..ROWS {
            let c = tile.c.wrapping_add(row * tile.ldc);
            let mut c0 = _mm512_add_ps(sums[row][0], bias0);
            let mut c1 = _mm512_add_ps(sums[row][1], bias1);
            if tile.accumulate {
                c0 = _mm512_add_ps(c0, _mm512_maskz_loadu_ps(low, c));
                c1 = _mm512_add_ps(c1, _mm512_maskz_loadu_ps(high, c.wrapping_add(16)));
            }
            _mm512_mask_storeu_ps(c, low, c0);
            _mm512_mask_storeu_ps(c.wrapping_add(16), high, c1);
        }
    }
}

/// [`multiply`] for tiles of at most sixteen columns, such as the ranks of low-rank changes: the second weight vector
/// would be multiplied for nothing.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn multiply_half<const ROWS: usize>(
    cols: usize,
    depth: usize,
    a: *const f32,
    b: *const f32,
    tile: Tile,
) {
    let mask: u16 = if cols >= 16 { !0 } else { (1 << cols) - 1 };
    // SAFETY: panels and tile are as large as the caller promises; the mask keeps to the tile's columns.
    unsafe {
        let mut sums = [_mm512_setzero_ps(); ROWS];
        let (mut a, mut b) = (a, b);
        for _ in 0..depth {
            let b0 = _mm512_load_ps(b);
            for row in 0..ROWS {
                sums[row] = _mm512_fmadd_ps(_mm512_set1_ps(*a.add(row)), b0, sums[row]);
            }
            a = a.add(MR);
            b = b.add(NR);
        }
        let bias =
            if tile.bias.is_null() { _mm512_setzero_ps() } else { _mm512_maskz_loadu_ps(mask, tile.bias) };
        for row in 0..ROWS {
            let c = tile.c.wrapping_add(row * tile.ldc);
            let mut sum = _mm512_add_ps(sums[row], bias);
            if tile.accumulate {
                sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, c));
            }
            _mm512_mask_storeu_ps(c, mask, sum);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn pack<E: Element>(rows: &[*const E], len: usize, panel: *mut f32, stride: usize) {
    for offset in (0..stride).step_by(16) {
        let rows = &rows[offset.min(rows.len())..(offset + 16).min(rows.len())];
        let lanes = (stride - offset).min(16);
        let stored: u16 = if lanes == 16 { !0 } else { (1 << lanes) - 1 };
        // Rows that are not there read nothing: an empty mask, behind a pointer that is never followed.
        let mut starts = [std::ptr::null(); 16];
        let mut present = [0u16; 16];
        for (i, row) in rows.iter().enumerate() {
            starts[i] = *row;
            present[i] = !0;
        }
        let whole = len / 16 * 16;
        for k in (0..whole).step_by(16) {
            let mut block = [_mm512_setzero_ps(); 16];
            for i in 0..16 {
                // SAFETY: present rows have `len` elements.
                block[i] = unsafe { E::load16(starts[i].wrapping_add(k), present[i]) };
            }
            let block = transpose(block);
            for step in 0..16 {
                // SAFETY: step `k + step < len` of the panel, lanes below `stride`.
                unsafe {
                    _mm512_mask_storeu_ps(panel.add((k + step) * stride + offset), stored, block[step]);
                }
            }
        }
        if whole < len {
            let read: u16 = (1 << (len - whole)) - 1;
            let mut block = [_mm512_setzero_ps(); 16];
            for i in 0..16 {
                // SAFETY: present rows have `len` elements, where the mask ends.
                block[i] = unsafe { E::load16(starts[i].wrapping_add(whole), present[i] & read) };
            }
            let block = transpose(block);
            for (step, vector) in block.iter().enumerate().take(len - whole) {
                // SAFETY: as above.
                unsafe {
                    _mm512_mask_storeu_ps(panel.add((whole + step) * stride + offset), stored, *vector);
                }
            }
        }
    }
}

/// Transposes sixteen rows of sixteen.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
pub(super) fn transpose(r: [__m512; 16]) -> [__m512; 16] {
    let mut t = [_mm512_setzero_ps(); 16];
    for i in 0..8 {
        t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    let mut u = [_mm512_setzero_ps(); 16];
    for i in 0..4 {
        for half in 0..2 {
            let low = _mm512_castps_pd(t[4 * i + half]);
            let high = _mm512_castps_pd(t[4 * i + 2 + half]);
            u[4 * i + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
            u[4 * i + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
        }
    }
    // `u[4i + j]` now holds, in each 128-bit lane l, column 4l + j of rows 4i..4i+4.
    let mut out = [_mm512_setzero_ps(); 16];
    for j in 0..4 {
        let ab_low = _mm512_shuffle_f32x4::<0x88>(u[j], u[4 + j]);
        let ab_high = _mm512_shuffle_f32x4::<0xdd>(u[j], u[4 + j]);
        let cd_low = _mm512_shuffle_f32x4::<0x88>(u[8 + j], u[12 + j]);
        let cd_high = _mm512_shuffle_f32x4::<0xdd>(u[8 + j], u[12 + j]);
        out[j] = _mm512_shuffle_f32x4::<0x88>(ab_low, cd_low);
        out[8 + j] = _mm512_shuffle_f32x4::<0xdd>(ab_low, cd_low);
        out[4 + j] = _mm512_shuffle_f32x4::<0x88>(ab_high, cd_high);
        out[12 + j] = _mm512_shuffle_f32x4::<0xdd>(ab_high, cd_high);
    }
    out
}
