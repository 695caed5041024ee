//! The types weights are stored in, and how each is widened to `f32`.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use half::{bf16, f16};

use crate::e4m3;

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

/// A code of the 8-bit float e4m3.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
pub(crate) struct E4m3(u8);

impl E4m3 {
    /// Bytes as the codes that they are.
    pub(crate) fn of(codes: &[u8]) -> &[Self] {
        // SAFETY: the type is a transparent `u8`.
        unsafe { std::slice::from_raw_parts(codes.as_ptr().cast(), codes.len()) }
    }
}

impl Element for E4m3 {
    #[inline(always)]
    fn widen(self) -> f32 {
        e4m3::number(self.0)
    }

    /// A code's seven bits behind the sign, moved to where `f16` has the like, are its number divided by 2⁸: the exponents'
    /// biases are 7 and 15. Numbers below the normal ones are so in both.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn load16(from: *const Self, mask: u16) -> __m512 {
        // SAFETY: as above.
        let codes = _mm256_cvtepu8_epi16(unsafe { _mm_maskz_loadu_epi8(mask, from.cast()) });
        let size = _mm256_slli_epi16::<7>(_mm256_and_si256(codes, _mm256_set1_epi16(0x7f)));
        let sign = _mm256_slli_epi16::<8>(_mm256_and_si256(codes, _mm256_set1_epi16(0x80)));
        let no_number = _mm256_cmpeq_epi16_mask(size, _mm256_set1_epi16(0x7f << 7));
        let small = _mm512_cvtph_ps(_mm256_or_si256(size, sign));
        let numbers = _mm512_mul_ps(small, _mm512_set1_ps(256.0));
        _mm512_mask_mov_ps(numbers, no_number, _mm512_set1_ps(f32::NAN))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn sixteen_codes_at_once_are_what_each_is_alone() {
        if !crate::cpu::isa::Isa::available().contains(&crate::cpu::isa::Isa::Avx512) {
            return;
        }
        let codes: Vec<u8> = (0..=u8::MAX).collect();
        for (first, of) in E4m3::of(&codes).chunks(16).enumerate() {
            for mask in [u16::MAX, 0x00ff, 0x5a5a, 0] {
                let mut wide = [0f32; 16];
                // SAFETY: the instructions are there, and so are sixteen codes.
                unsafe { store16(E4m3::load16(of.as_ptr(), mask), &mut wide) };
                for (i, wide) in wide.into_iter().enumerate() {
                    let expected = if mask >> i & 1 == 1 { of[i].widen() } else { 0.0 };
                    let same = wide.to_bits() == expected.to_bits() || wide.is_nan() && expected.is_nan();
                    assert!(same, "code {:#x}: {wide} for {expected}", 16 * first + i);
                }
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f")]
    fn store16(x: __m512, to: &mut [f32; 16]) {
        // SAFETY: there is room for sixteen.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), x) };
    }
}
