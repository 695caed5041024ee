//! The 8-bit float e4m3 (OCP 8-bit Floating Point Specification): a sign, four bits of exponent with bias 7, three of
//! fraction, no infinities, 448 the largest.
//!
//! Rounding takes the same steps as in `kernels/cuda/prelude.cuh`, so that both give the same codes. Below both
//! [`crate::cpu`], where codes are multiplied, and the functions of [`crate::Fp8Weight`].

/// The largest number that has a code.
pub(crate) const LARGEST: f32 = 448.0;

/// The code of the number nearest to `x`, ties to even; beyond the largest it saturates. What is no number stays so.
pub(crate) fn code(x: f32) -> u8 {
    let bits = x.to_bits();
    let sign = ((bits >> 24) & 0x80) as u8;
    let size = x.abs();
    if size.is_nan() {
        return sign | 0x7f;
    }
    if size >= 464.0 {
        return sign | 0x7e;
    }
    if size < 0.015_625 {
        // Subnormal, in steps of 2⁻⁹: adding and taking away 2¹⁴ rounds to them.
        let steps = (size + 16_384.0) - 16_384.0;
        return sign | (steps * 512.0) as u8;
    }
    let rounded = size.to_bits() + 0x7_ffff + ((size.to_bits() >> 20) & 1);
    // The exponent's bias of 127 becomes 7.
    let code = (rounded >> 20) - (120 << 3);
    sign | code.min(0x7e) as u8
}

/// The number that `code` stands for.
#[inline(always)]
pub fn number(code: u8) -> f32 {
    /// All of them: looking one up is faster than putting it together.
    static NUMBERS: [f32; 256] = {
        let mut numbers = [0.0; 256];
        let mut code = 0;
        while code < 256 {
            numbers[code as usize] = decoded(code);
            code += 1;
        }
        numbers
    };
    NUMBERS[usize::from(code)]
}

const fn decoded(code: u32) -> f32 {
    let (exponent, fraction) = (code >> 3 & 15, code & 7);
    let size = match (exponent, fraction) {
        (15, 7) => f32::NAN,
        (0, _) => fraction as f32 / 512.0,
        // The exponent's bias of 7 becomes 127.
        _ => f32::from_bits((exponent + 120) << 23 | fraction << 20),
    };
    if code & 0x80 == 0 { size } else { -size }
}

#[cfg(test)]
mod tests {
    use float8::F8E4M3;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn codes_stand_for_what_they_stand_for_elsewhere() {
        for bits in 0..=u8::MAX {
            let expected = F8E4M3::from_bits(bits).to_f32();
            let got = number(bits);
            assert!(got == expected || got.is_nan() && expected.is_nan(), "{bits:#x}: {got} for {expected}");
            if !got.is_nan() {
                assert_eq!(code(got), bits, "{got}");
            }
        }
    }

    proptest! {
        #[test]
        fn numbers_get_the_nearest_code(x in prop_oneof![-500f32..500.0, -1f32..1.0, -0.02f32..0.02]) {
            prop_assert_eq!(code(x), F8E4M3::from_f32(x).to_bits(), "{}", x);
            // Half a step: of the fraction's three bits, or of the smallest numbers' spacing.
            let most = (x.abs() / 16.0).max(1.0 / 1024.0);
            if x.abs() <= LARGEST {
                prop_assert!((number(code(x)) - x).abs() <= most, "{} became {}", x, number(code(x)));
            }
        }

        #[test]
        fn every_float_has_the_code_it_has_elsewhere(bits: u32) {
            let x = f32::from_bits(bits);
            if x.is_nan() {
                prop_assert!(number(code(x)).is_nan());
            } else {
                prop_assert_eq!(code(x), F8E4M3::from_f32(x).to_bits(), "{}", x);
            }
        }
    }
}
