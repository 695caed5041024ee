//! Panels of tiles: rounding to `bf16`, and the order in which the multiplication reads both matrices.
//!
//! A panel holds 32 rows, step by step: 32 columns of the first 16 rows, then of the others. Tiles of `A` are
//! plain, `[16 rows][32 columns]`; those of `W` are `[16 pairs of columns][16 rows][2]`. Rows that are not
//! there keep what the memory held: they touch no other row's sums. Columns that are not there are zero.

use std::arch::x86_64::*;

use super::super::avx512::transpose;
use super::tiles::{PANEL_STEP, STEP, TILE};
use crate::cpu::element::Element;

/// How many columns ahead rows are fetched: 32 rows are more streams than the hardware follows.
const AHEAD: usize = 256;

/// Bits `from..to`.
fn bits(from: usize, to: usize) -> u32 {
    ((1u64 << to) - (1u64 << from)) as u32
}

/// Packs columns `at..at + len` of a panel of `A` that has `depth` columns.
///
/// # Safety
/// The CPU has the instructions; each of at most 32 rows has `len` elements, `at + len <= depth`, and the
/// panel has room for `depth` rounded up to whole steps.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn pack_a<E: Element>(
    rows: &[*const E],
    at: usize,
    len: usize,
    depth: usize,
    panel: *mut f32,
) {
    let end = at + len;
    let mut from = at;
    while from < end {
        let (step, low) = (from / STEP, from % STEP);
        let high = (low + end - from).min(STEP);
        let read = bits(low, high);
        // The last columns bring along the zeros behind them.
        let stored = if step * STEP + high == depth { bits(low, STEP) } else { read };
        // SAFETY: the step is one of the panel's, and its tiles have 16 rows each.
        unsafe {
            let tiles = panel.add(step * PANEL_STEP).cast::<i16>();
            for (i, row) in rows.iter().enumerate() {
                let source = row.wrapping_add(from - at).wrapping_sub(low);
                _mm_prefetch::<_MM_HINT_T0>(source.wrapping_add(AHEAD).cast());
                _mm_prefetch::<_MM_HINT_T0>(source.wrapping_add(AHEAD + 16).cast());
                _mm512_mask_storeu_epi16(tiles.add(i * STEP), stored, E::round32(source, read));
            }
        }
        from += high - low;
    }
}

/// Packs all `depth` columns of a panel of `W`.
///
/// # Safety
/// As for [`pack_a`], each row having `depth` elements.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn pack_b<E: Element>(rows: &[*const E], depth: usize, panel: *mut f32) {
    for (half, rows) in rows.chunks(STEP / 2).enumerate() {
        for (step, from) in (0..depth).step_by(STEP).enumerate() {
            let read = bits(0, STEP.min(depth - from));
            let mut block = [_mm512_setzero_ps(); 16];
            for (vector, row) in block.iter_mut().zip(rows) {
                // SAFETY: the mask ends where the row does.
                unsafe {
                    _mm_prefetch::<_MM_HINT_T0>(row.wrapping_add(from + AHEAD).cast());
                    *vector = _mm512_castsi512_ps(E::round32(row.wrapping_add(from), read));
                }
            }
            for (pair, vector) in transpose(block).iter().enumerate() {
                // SAFETY: the step is one of the panel's, the pair one of the tile's sixteen.
                unsafe { _mm512_store_ps(panel.add(step * PANEL_STEP + half * TILE + pair * 16), *vector) };
            }
        }
    }
}
