//! Pillow's Lanczos on 8-bit values, which ComfyUI calls for `lanczos`: whole-number weights, rounded to 8 bits after
//! the rows and again after the columns. (Pillow 13 takes the columns first where that is faster; earlier ones do not.)

use std::f64::consts::PI;

use rayon::prelude::*;

use super::Part;
use crate::Picture;

/// Lobes of the filter.
const SUPPORT: f64 = 3.0;
/// Fraction bits of the weights: Pillow keeps 2 bits of the sum for overshoot beside the 8 of the value.
const BITS: u32 = 32 - 8 - 2;

/// The weights of one target pixel, for source pixels from `first` on.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

/// `part` of the picture at `width` × `height`.
pub(super) fn resize(picture: &Picture, part: Part, width: usize, height: usize) -> Picture {
    let columns = taps(part.width, width);
    let rows = taps(part.height, height);
    let stride = picture.width() * 3;
    // ComfyUI truncates to 8 bits.
    let bytes: Vec<u8> = picture.data().par_iter().map(|v| (255.0 * v) as u8).collect();
    let mut wide = vec![0u8; width * part.height * 3];
    wide.par_chunks_mut(width * 3).enumerate().for_each(|(y, out)| {
        let row = &bytes[(part.top + y) * stride + part.left * 3..][..part.width * 3];
        for (pixel, taps) in out.chunks_exact_mut(3).zip(&columns) {
            for (channel, value) in pixel.iter_mut().enumerate() {
                *value = taps.apply(row, channel, 3);
            }
        }
    });
    let mut data = vec![0.0; width * height * 3];
    data.par_chunks_mut(width * 3).zip(&rows).for_each(|(out, taps)| {
        for (i, value) in out.iter_mut().enumerate() {
            *value = f32::from(taps.apply(&wide, i, width * 3)) / 255.0;
        }
    });
    // The buffer has the length that the size asks for.
    Picture::new(width, height, data).unwrap_or_else(|| picture.clone())
}

impl Taps {
    fn apply(&self, values: &[u8], offset: usize, stride: usize) -> u8 {
        let values = values[self.first * stride + offset..].iter().step_by(stride);
        let half = 1 << (BITS - 1);
        let sum = self.weights.iter().zip(values).fold(half, |sum, (w, v)| sum + w * i32::from(*v));
        (sum >> BITS).clamp(0, 255) as u8
    }
}

fn taps(from: usize, to: usize) -> Vec<Taps> {
    if from == to {
        // Pillow skips an axis that keeps its length.
        return (0..to).map(|first| Taps { first, weights: vec![1 << BITS] }).collect();
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
        let whole = |weight: &f64| {
            let share = weight / sum * f64::from(1 << BITS);
            (if share < 0.0 { share - 0.5 } else { share + 0.5 }) as i32
        };
        Taps { first, weights: weights.iter().map(whole).collect() }
    };
    (0..to).map(of).collect()
}

fn lanczos(x: f64) -> f64 {
    let sinc = |x: f64| if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) };
    if (-SUPPORT..SUPPORT).contains(&x) { sinc(x) * sinc(x / SUPPORT) } else { 0.0 }
}
