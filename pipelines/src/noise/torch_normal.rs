//! torch's vectorised Box-Muller transform, bit for bit.
//!
//! torch takes the logarithm, sine and cosine from polynomials in single precision (Moshier's Cephes library), and
//! its compiler contracts products and sums into fused multiply-adds. The order of operations below is therefore
//! part of the result: do not rearrange it. [`f32::mul_add`] is fused on every CPU, in software if need be.

/// Values that are transformed together: 8 radii and 8 angles.
pub(super) const BLOCK: usize = 16;
const HALF: usize = BLOCK / 2;

/// Turns uniform values into standard normal ones, in place. Values after the last whole block stay as they are.
pub(super) fn transform_blocks(values: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the CPU has AVX2 and FMA, which is all that the function asks for.
        unsafe { transform_blocks_fma(values) };
        return;
    }
    transform_blocks_portable(values);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn transform_blocks_fma(values: &mut [f32]) {
    transform_blocks_portable(values);
}

#[inline(always)]
fn transform_blocks_portable(values: &mut [f32]) {
    for block in values.as_chunks_mut::<BLOCK>().0 {
        for i in 0..HALF {
            let radius = (-2.0 * ln(1.0 - block[i])).sqrt();
            let (sin, cos) = sin_cos(2.0 * std::f32::consts::PI * block[i + HALF]);
            block[i] = radius * cos;
            block[i + HALF] = radius * sin;
        }
    }
}

/// Natural logarithm of a positive value.
#[inline(always)]
fn ln(x: f32) -> f32 {
    const SQRT_HALF: f32 = 0.707_106_77;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    const LN2_HIGH: f32 = 0.693_359_4;
    let bits = x.max(f32::MIN_POSITIVE).to_bits();
    let mantissa = f32::from_bits((bits & 0x007f_ffff) | 0x3f00_0000);
    let exponent = ((bits >> 23) as i32 - 0x7f) as f32 + 1.0;
    let small = mantissa < SQRT_HALF;
    let e = exponent - if small { 1.0 } else { 0.0 };
    let x = (mantissa - 1.0) + if small { mantissa } else { 0.0 };
    let z = x * x;
    let mut y = 7.037_683_6e-2f32;
    y = y.mul_add(x, -1.151_461e-1);
    y = y.mul_add(x, 1.167_699_84e-1);
    y = y.mul_add(x, -1.242_014_1e-1);
    y = y.mul_add(x, 1.424_932_3e-1);
    y = y.mul_add(x, -1.666_805_7e-1);
    y = y.mul_add(x, 2.000_071_4e-1);
    y = y.mul_add(x, -2.499_999_4e-1);
    y = y.mul_add(x, 3.333_333e-1);
    y *= x;
    y = y.mul_add(z, e * LN2_LOW);
    y = z.mul_add(-0.5, y);
    e.mul_add(LN2_HIGH, x + y)
}

/// Sine and cosine of an angle in `[0, 2π)`.
#[inline(always)]
fn sin_cos(angle: f32) -> (f32, f32) {
    const FOUR_OVER_PI: f32 = 1.273_239_5;
    const QUARTER_PI_1: f32 = -0.785_156_25;
    const QUARTER_PI_2: f32 = -2.418_756_5e-4;
    const QUARTER_PI_3: f32 = -3.774_895e-8;
    // Whole numbers below 2^23 stand in the mantissa of 2^23 plus themselves. Unlike a saturating conversion, that
    // is one instruction for eight lanes.
    const TO_MANTISSA: f32 = (1 << 23) as f32;
    let whole = (angle * FOUR_OVER_PI).floor() + TO_MANTISSA;
    let octant = ((whole.to_bits() & 0x007f_ffff) + 1) & !1;
    let y = f32::from_bits(TO_MANTISSA.to_bits() | octant) - TO_MANTISSA;
    let x = y.mul_add(QUARTER_PI_3, y.mul_add(QUARTER_PI_2, y.mul_add(QUARTER_PI_1, angle)));
    let z = x * x;

    let mut even = 2.443_315_7e-5f32;
    even = even.mul_add(z, -1.388_731_6e-3);
    even = even.mul_add(z, 4.166_664_6e-2);
    even *= z;
    even = even.mul_add(z, -(z * 0.5)) + 1.0;

    let mut odd = -1.951_529_6e-4f32;
    odd = odd.mul_add(z, 8.332_161e-3);
    odd = odd.mul_add(z, -1.666_665_5e-1);
    odd *= z;
    odd = odd.mul_add(x, x);

    let (sin, cos) = if octant & 2 == 0 { (odd, even) } else { (even, odd) };
    let sin_sign = (octant & 4) << 29;
    let cos_sign = (!octant.wrapping_sub(2) & 4) << 29;
    (f32::from_bits(sin.to_bits() ^ sin_sign), f32::from_bits(cos.to_bits() ^ cos_sign))
}

#[cfg(test)]
mod tests {
    use super::{BLOCK, transform_blocks, transform_blocks_portable};

    #[test]
    fn the_result_does_not_depend_on_the_instructions_the_cpu_has() {
        // Every angle and radius in steps of a thousandth, and both ends of the unit interval.
        let ramp = |i: usize| ((i * 619) % 1000) as f32 / 1000.0;
        let mut values: Vec<f32> = (0..1000 * BLOCK).map(ramp).collect();
        values[..BLOCK].fill(0.0);
        values[BLOCK..2 * BLOCK].fill(1.0 - f32::EPSILON / 2.0);
        let mut portable = values.clone();
        transform_blocks(&mut values);
        transform_blocks_portable(&mut portable);
        assert_eq!(values, portable);
        assert!(values.iter().all(|value| value.is_finite()));
    }
}
