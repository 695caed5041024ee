//! The types weights are stored in, and how each is widened to `f32`.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use half::{bf16, f16};

/// A stored number that widens to `f32` without loss.
pub(crate) trait Element: Copy + Send + Sync + 'static {
    /// The same number in `f32`.
    fn widen(self) -> f32;

    /// Sixteen consecutive numbers, those whose bit in `mask` is clear being zero (and not read).
    ///
    /// # Safety
    /// AVX-512 F, BW and VL are present; the elements selected by `mask` are readable.
    #[cfg(target_arch = "x86_64")]
    unsafe fn load16(from: *const Self, mask: u16) -> __m512;

    /// Thirty-two consecutive numbers rounded to `bf16` (nearest, ties to even), those whose bit in `mask` is
    /// clear being zero (and not read).
    ///
    /// # Safety
    /// AVX-512 F, BW, VL and BF16 are present; the elements selected by `mask` are readable.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn round32(from: *const Self, mask: u32) -> __m512i {
        // SAFETY: the caller vouches for the elements under the mask.
        unsafe {
            let low = Self::load16(from, mask as u16);
            let high = Self::load16(from.wrapping_add(16), (mask >> 16) as u16);
            std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low))
        }
    }
}

impl Element for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn load16(from: *const Self, mask: u16) -> __m512 {
        // SAFETY: the caller vouches for the elements under the mask; masked-out lanes are not accessed.
        unsafe { _mm512_maskz_loadu_ps(mask, from) }
    }
}

impl Element for f16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn load16(from: *const Self, mask: u16) -> __m512 {
        // SAFETY: as above; `f16` is a transparent `u16`.
        _mm512_cvtph_ps(unsafe { _mm256_maskz_loadu_epi16(mask, from.cast()) })
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn load16(from: *const Self, mask: u16) -> __m512 {
        // SAFETY: as above; `bf16` is a transparent `u16`.
        let narrow = unsafe { _mm256_maskz_loadu_epi16(mask, from.cast()) };
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(narrow)))
    }

    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn round32(from: *const Self, mask: u32) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_maskz_loadu_epi16(mask, from.cast()) }
    }
}
