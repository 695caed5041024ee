//! Pillow's Lanczos, rows first and then columns (Pillow 13 turns them around where that is faster; earlier ones do
//! not): on 8-bit values with whole-number weights, as ComfyUI calls it for `lanczos`, or on floats.

use std::f64::consts::PI;

use rayon::prelude::*;

use super::{Crop, Part, Raster};

/// Lobes of the filter.
const SUPPORT: f64 = 3.0;
/// Fraction bits of the weights: Pillow keeps 2 bits of the sum for overshoot beside the 8 of the value.
const BITS: u32 = 32 - 8 - 2;

/// The weights of one target pixel, for source pixels from `first` on.
struct Taps<T> {
    first: usize,
    weights: Vec<T>,
}

/// `part` of the values at `width` × `height`, rounded to 8 bits after the rows and again after the columns.
pub(super) fn eight_bit(source: Raster<'_>, part: Part, width: usize, height: usize) -> Vec<f32> {
    let channels = source.channels;
    let columns = whole_taps(part.width, width);
    let rows = whole_taps(part.height, height);
    // Pillow copies a picture that has the size; colours are not weighed by alpha for nothing.
    let weighed = channels == 4 && (part.width, part.height) != (width, height);
    let mut wide = vec![0u8; width * part.height * channels];
    wide.par_chunks_mut(width * channels).enumerate().for_each(|(y, out)| {
        // ComfyUI truncates to 8 bits.
        let mut row: Vec<u8> = source.row(part, y).iter().map(|v| (255.0 * v) as u8).collect();
        if weighed {
            row.chunks_exact_mut(4).for_each(multiply_alpha);
        }
        for (pixel, taps) in out.chunks_exact_mut(channels).zip(&columns) {
            for (channel, value) in pixel.iter_mut().enumerate() {
                *value = taps.apply(&row, channel, channels);
            }
        }
    });
    let mut data = vec![0.0; width * height * channels];
    data.par_chunks_mut(width * channels).zip(&rows).for_each_init(
        || vec![0u8; width * channels],
        |row, (out, taps)| {
            for (i, value) in row.iter_mut().enumerate() {
                *value = taps.apply(&wide, i, width * channels);
            }
            if weighed {
                row.chunks_exact_mut(4).for_each(divide_alpha);
            }
            out.iter_mut().zip(&*row).for_each(|(value, byte)| *value = f32::from(*byte) / 255.0);
        },
    );
    data
}

/// The same filter on floats, `[height, width, channels]`, with no rounding; cut to `0..=1`, which the filter
/// overshoots at edges. A side of 0 is taken for 1; values that have the size stay as they are.
pub fn lanczos_floats(source: Raster<'_>, width: usize, height: usize, crop: Crop) -> Vec<f32> {
    let (width, height) = (width.max(1), height.max(1));
    let part = source.part(width, height, crop);
    let channels = source.channels;
    if (source.width, source.height) == (width, height) {
        return source.data.to_vec();
    }
    let columns = taps(part.width, width);
    let mut wide = vec![0f32; width * part.height * channels];
    wide.par_chunks_exact_mut(width * channels).enumerate().for_each(|(y, target)| {
        let row = source.row(part, y);
        for (pixel, taps) in target.chunks_exact_mut(channels).zip(&columns) {
            let values = row.chunks_exact(channels).skip(taps.first);
            for (weight, values) in taps.weights.iter().zip(values) {
                pixel.iter_mut().zip(values).for_each(|(sum, value)| *sum += *weight as f32 * value);
            }
        }
    });
    let rows = taps(part.height, height);
    let mut data = vec![0f32; width * height * channels];
    data.par_chunks_exact_mut(width * channels).zip(&rows).for_each(|(target, taps)| {
        let lines = wide.chunks_exact(width * channels).skip(taps.first);
        for (weight, line) in taps.weights.iter().zip(lines) {
            target.iter_mut().zip(line).for_each(|(sum, value)| *sum += *weight as f32 * value);
        }
        target.iter_mut().for_each(|value| *value = value.clamp(0.0, 1.0));
    });
    data
}

impl Taps<i32> {
    fn apply(&self, values: &[u8], offset: usize, stride: usize) -> u8 {
        let values = values[self.first * stride + offset..].iter().step_by(stride);
        let half = 1 << (BITS - 1);
        let sum = self.weights.iter().zip(values).fold(half, |sum, (w, v)| sum + w * i32::from(*v));
        (sum >> BITS).clamp(0, 255) as u8
    }
}

/// Weights that sum up to one.
fn taps(from: usize, to: usize) -> Vec<Taps<f64>> {
    if from == to {
        // Pillow skips an axis that keeps its length.
        return (0..to).map(|first| Taps { first, weights: vec![1.0] }).collect();
    }
    let scale = from as f64 / to as f64;
    let spread = scale.max(1.0);
    let support = SUPPORT * spread;
    let of = |i: usize| {
        let centre = (i as f64 + 0.5) * scale;
        let first = (centre - support + 0.5).max(0.0) as usize;
        let end = ((centre + support + 0.5) as usize).min(from);
        let weight = |j: usize| lanczos((j as f64 - centre + 0.5) * (1.0 / spread));
        let weights: Vec<f64> = (first..end).map(weight).collect();
        let sum: f64 = weights.iter().sum();
        Taps { first, weights: weights.into_iter().map(|weight| weight / sum).collect() }
    };
    (0..to).map(of).collect()
}

fn whole_taps(from: usize, to: usize) -> Vec<Taps<i32>> {
    let whole = |weight: &f64| {
        let share = weight * f64::from(1 << BITS);
        (if share < 0.0 { share - 0.5 } else { share + 0.5 }) as i32
    };
    let round =
        |taps: Taps<f64>| Taps { first: taps.first, weights: taps.weights.iter().map(whole).collect() };
    taps(from, to).into_iter().map(round).collect()
}

fn lanczos(x: f64) -> f64 {
    let sinc = |x: f64| if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) };
    if (-SUPPORT..SUPPORT).contains(&x) { sinc(x) * sinc(x / SUPPORT) } else { 0.0 }
}

/// Pillow's `RGBA` to `RGBa`: colours times alpha, rounded.
fn multiply_alpha(pixel: &mut [u8]) {
    let alpha = u32::from(pixel[3]);
    for value in &mut pixel[..3] {
        let product = u32::from(*value) * alpha + 128;
        *value = ((product + (product >> 8)) >> 8) as u8;
    }
}

/// Pillow's `RGBa` to `RGBA`: colours through alpha, truncated.
fn divide_alpha(pixel: &mut [u8]) {
    let alpha = u32::from(pixel[3]);
    if alpha == 0 || alpha == 255 {
        return;
    }
    for value in &mut pixel[..3] {
        *value = (255 * u32::from(*value) / alpha).min(255) as u8;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn floats(data: &[f32], from: (usize, usize), to: (usize, usize)) -> Vec<f32> {
        lanczos_floats(Raster::new(data, from.0, from.1, 3).unwrap(), to.0, to.1, Crop::Disabled)
    }

    fn assert_pillow(to: usize, expected: &[f32]) {
        let line: Vec<f32> =
            [0.1, 0.9, 0.3, 0.5, 0.7, 0.2].into_iter().flat_map(|value| [value; 3]).collect();
        for (found, size) in
            [(floats(&line, (6, 1), (to, 1)), "a row"), (floats(&line, (1, 6), (1, to)), "a column")]
        {
            for (pixel, expected) in found.chunks_exact(3).zip(expected) {
                assert!(
                    pixel.iter().all(|v| (v - expected).abs() < 2e-6),
                    "{size}: {found:?} for {expected}"
                );
            }
            assert_eq!(found.len(), 3 * expected.len());
        }
    }

    #[test]
    fn enlarging_equals_pillows() {
        assert_pillow(
            9,
            &[
                0.009_214, 0.524_45, 0.899_68, 0.398_504, 0.279_076, 0.577_561, 0.737_578, 0.440_587,
                0.148_247,
            ],
        );
    }

    #[test]
    fn shrinking_equals_pillows() {
        assert_pillow(4, &[0.422_632, 0.540_163, 0.536_794, 0.398_798]);
    }

    proptest! {
        #[test]
        fn a_flat_picture_stays_flat_and_nothing_leaves_the_range(
            from in (1usize..40, 1usize..40), to in (1usize..80, 1usize..80), value in 0f32..=1.0, seed in any::<u32>(),
        ) {
            let flat = floats(&vec![value; from.0 * from.1 * 3], from, to);
            prop_assert_eq!(flat.len(), to.0 * to.1 * 3);
            prop_assert!(flat.iter().all(|v| (v - value).abs() < 1e-5));
            let noise: Vec<f32> = (0..from.0 * from.1 * 3)
                .map(|i| ((i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed) >> 16 & 1) as f32)
                .collect();
            prop_assert!(floats(&noise, from, to).iter().all(|v| (0.0..=1.0).contains(v)));
        }
    }
}
