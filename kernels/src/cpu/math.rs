//! Exponential and Gaussian distribution function, branch-free so that loops over them vectorise.

use super::vector::Arithmetic;

/// `eˣ` with a relative error of at most 2·10⁻⁷; zero below −87, capped at `e⁸⁸`; NaN stays NaN.
/// Cody–Waite reduction and the polynomial of Cephes' `expf`.
#[inline(always)]
pub(crate) fn exp<M: Arithmetic>(x: f32) -> f32 {
    const LOWEST: f32 = -87.0;
    /// Adding this to a small float rounds it to an integer, held in the low bits.
    const ROUNDING: f32 = 12_582_912.0;
    let clamped = if x < LOWEST { LOWEST } else { x };
    let clamped = if clamped > 88.0 { 88.0 } else { clamped };
    let shifted = M::multiply_add(clamped, std::f32::consts::LOG2_E, ROUNDING);
    let n = shifted - ROUNDING;
    let r = M::multiply_add(n, -0.693_359_4, clamped);
    let r = M::multiply_add(n, 2.121_944_4e-4, r);
    let p = M::multiply_add(1.987_569_1e-4, r, 1.398_199_9e-3);
    let p = M::multiply_add(p, r, 8.333_452e-3);
    let p = M::multiply_add(p, r, 4.166_579_6e-2);
    let p = M::multiply_add(p, r, 1.666_666_5e-1);
    let p = M::multiply_add(p, r, 0.5);
    let y = M::multiply_add(p, r * r, r) + 1.0;
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    if x < LOWEST { 0.0 } else { y * power }
}

/// `x · sigmoid(x)`.
#[inline(always)]
pub(crate) fn silu<M: Arithmetic>(x: f32) -> f32 {
    x / (1.0 + exp::<M>(-x))
}

/// `x · sigmoid(1.702 x)`.
#[inline(always)]
pub(crate) fn quick_gelu<M: Arithmetic>(x: f32) -> f32 {
    x / (1.0 + exp::<M>(-1.702 * x))
}

/// `x · Φ(x)` by its tanh approximation: `x · sigmoid(2 √(2/π) (x + 0.044715 x³))`.
#[inline(always)]
pub(crate) fn gelu_tanh<M: Arithmetic>(x: f32) -> f32 {
    const SLOPE: f32 = -1.595_769; // −2 √(2/π)
    let cubic = M::multiply_add(0.044_715 * x * x, x, x);
    x / (1.0 + exp::<M>(SLOPE * cubic))
}

/// `x · Φ(x)`, the exact GELU. `Φ` through the Chebyshev fit of the complementary error function in Numerical
/// Recipes (§6.2), whose relative error is at most 1.2·10⁻⁷ everywhere, so the negative tail is right too.
#[inline(always)]
pub(crate) fn gelu<M: Arithmetic>(x: f32) -> f32 {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / M::multiply_add(0.5, z, 1.0);
    let p = M::multiply_add(0.170_872_77, t, -0.822_152_2);
    let p = M::multiply_add(p, t, 1.488_515_9);
    let p = M::multiply_add(p, t, -1.135_204);
    let p = M::multiply_add(p, t, 0.278_868_07);
    let p = M::multiply_add(p, t, -0.186_288_06);
    let p = M::multiply_add(p, t, 0.096_784_18);
    let p = M::multiply_add(p, t, 0.374_091_96);
    let p = M::multiply_add(p, t, 1.000_023_7);
    let p = M::multiply_add(p, t, -1.265_512_2);
    let tail = 0.5 * t * exp::<M>(M::multiply_add(-z, z, p));
    x * if x > 0.0 { 1.0 - tail } else { tail }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::isa::Isa;
    use crate::cpu::vector::{self, Body};

    struct Map<'a, const FUNCTION: usize>(&'a mut [f32]);

    impl<const FUNCTION: usize> Body for Map<'_, FUNCTION> {
        #[inline(always)]
        fn run<M: Arithmetic>(self) {
            for x in self.0 {
                *x = if FUNCTION == 0 { exp::<M>(*x) } else { gelu::<M>(*x) };
            }
        }
    }

    #[test]
    fn exp_is_within_2e_7_of_the_true_value_on_every_instruction_set() {
        for isa in Isa::available() {
            let xs: Vec<f32> = (-870_000..880_000).map(|i| i as f32 * 1e-4).collect();
            let mut ys = xs.clone();
            vector::run(isa, Map::<0>(&mut ys));
            for (x, y) in xs.iter().zip(ys) {
                let truth = f64::from(*x).exp();
                assert!((f64::from(y) / truth - 1.0).abs() < 2e-7, "{isa:?}: exp({x}) = {y}");
            }
        }
    }

    #[test]
    fn exp_of_minus_infinity_is_zero_and_of_nan_is_nan() {
        for isa in Isa::available() {
            let mut xs = [f32::NEG_INFINITY, f32::NAN, -1e30, 0.0];
            vector::run(isa, Map::<0>(&mut xs));
            assert_eq!((xs[0], xs[2], xs[3]), (0.0, 0.0, 1.0));
            assert!(xs[1].is_nan());
        }
    }

    #[test]
    fn gelu_is_exact_to_1e_6_of_its_argument() {
        for isa in Isa::available() {
            let xs: Vec<f32> = (-100_000..100_000).map(|i| i as f32 * 1e-4).collect();
            let mut ys = xs.clone();
            vector::run(isa, Map::<1>(&mut ys));
            let x = candle_core::Tensor::new(xs.as_slice(), &candle_core::Device::Cpu).unwrap();
            let truth = x.to_dtype(candle_core::DType::F64).unwrap().gelu_erf().unwrap();
            for ((x, y), truth) in xs.iter().zip(ys).zip(truth.to_vec1::<f64>().unwrap()) {
                let scale = f64::from(x.abs()).max(1e-6);
                assert!((f64::from(y) - truth).abs() / scale < 1e-6, "{isa:?}: gelu({x}) = {y}, not {truth}");
            }
        }
    }
}
