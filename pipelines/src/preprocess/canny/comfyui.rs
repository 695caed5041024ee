//! Edges as ComfyUI's `Canny` node finds them. The node calls `kornia.filters.canny`; the steps, the borders and
//! the ties are those of kornia 0.9.
//!
//! The comparison of neighbours turns on the last bit, so sums are taken in the order in which torch takes them on a
//! CPU: channel by channel, and row by row through a convolution's kernel, each product fused with the sum. Earlier
//! kornia does not fuse the products of the grey picture and drops both of two equal ridges, which shows in flat
//! drawings alone.

use std::f64::consts::PI;

use rayon::prelude::*;

use super::hysteresis::{Strength, connected};
use crate::Picture;

/// Weights of red, green and blue.
const GREY: [f32; 3] = [0.299, 0.587, 0.114];
/// The Gaussian of five taps and σ = 1, computed and normalised in f32 as kornia does.
const GAUSSIAN: [f32; 5] = [0.054_488_69, 0.244_201_36, 0.402_619_96, 0.244_201_36, 0.054_488_69];
/// What kornia adds under the root.
const EPSILON: f32 = 1e-6;
/// (x, y) of the neighbour in each of eight directions, from the right by way of down.
const NEIGHBOURS: [(isize, isize); 8] =
    [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)];

/// Which pixels are edges, row by row.
pub(super) fn edges(picture: &Picture, low: f32, high: f32) -> Vec<bool> {
    let (width, height) = (picture.width(), picture.height());
    let (magnitude, direction) = gradients(&blurred(grey(picture), width, height), width, height);
    // Beyond the border there is no gradient.
    let flat = EPSILON.sqrt();
    let at = |x: isize, y: isize| match (usize::try_from(x), usize::try_from(y)) {
        (Ok(x), Ok(y)) if x < width && y < height => magnitude[y * width + x],
        _ => flat,
    };
    let mut strengths = vec![Strength::None; width * height];
    strengths.par_chunks_mut(width).enumerate().for_each(|(y, row)| {
        for (x, strength) in row.iter_mut().enumerate() {
            let (here, towards) = (magnitude[y * width + x], usize::from(direction[y * width + x]));
            let beats = |direction: usize| {
                let (dx, dy) = NEIGHBOURS[direction % 8];
                let there = at(x as isize + dx, y as isize + dy);
                // Of two equal pixels across an edge the left or the upper one is kept.
                here > there || (here == there && matches!(direction % 8, 0 | 2))
            };
            *strength = match here {
                _ if !(here > flat && beats(towards) && beats(towards + 4)) => Strength::None,
                _ if here > high => Strength::Strong,
                _ if here > low => Strength::Weak,
                _ => Strength::None,
            };
        }
    });
    connected(strengths, width)
}

fn grey(picture: &Picture) -> Vec<f32> {
    let of = |rgb: &[f32]| rgb[2].mul_add(GREY[2], rgb[1].mul_add(GREY[1], rgb[0] * GREY[0]));
    picture.data().chunks_exact(3).map(of).collect()
}

/// The index that lies at `i` when the border mirrors, the outermost pixel itself not repeated.
fn mirrored(i: isize, length: usize) -> usize {
    let period = (2 * length as isize - 2).max(1);
    let i = i.rem_euclid(period);
    i.min(period - i) as usize % length
}

/// Rows first, then columns.
fn blurred(grey: Vec<f32>, width: usize, height: usize) -> Vec<f32> {
    let mut rows = vec![0.0; grey.len()];
    rows.par_chunks_mut(width).zip(grey.par_chunks(width)).for_each(|(blurred, row)| {
        for (x, value) in blurred.iter_mut().enumerate() {
            *value = weighed(|tap| row[mirrored(x as isize + tap, width)]);
        }
    });
    let mut out = grey;
    out.par_chunks_mut(width).enumerate().for_each(|(y, blurred)| {
        let lines = [-2, -1, 0, 1, 2].map(|tap| &rows[mirrored(y as isize + tap, height) * width..][..width]);
        for (x, value) in blurred.iter_mut().enumerate() {
            *value = weighed(|tap| lines[(tap + 2) as usize][x]);
        }
    });
    out
}

fn weighed(tap: impl Fn(isize) -> f32) -> f32 {
    let fused = |sum: f32, (i, weight): (usize, &f32)| tap(i as isize - 2).mul_add(*weight, sum);
    GAUSSIAN.iter().enumerate().fold(0.0, fused)
}

/// The gradient's magnitude, and its direction as an index of [`NEIGHBOURS`].
fn gradients(blurred: &[f32], width: usize, height: usize) -> (Vec<f32>, Vec<u8>) {
    let mut magnitude = vec![0.0; blurred.len()];
    let mut direction = vec![0; blurred.len()];
    let lines = magnitude.par_chunks_mut(width).zip(direction.par_chunks_mut(width));
    lines.enumerate().for_each(|(y, (magnitude, direction))| {
        let line = |y: usize| &blurred[y * width..][..width];
        let (above, row, below) = (line(y.saturating_sub(1)), line(y), line((y + 1).min(height - 1)));
        for x in 0..width {
            let (left, right) = (x.saturating_sub(1), (x + 1).min(width - 1));
            // The products are exact, so that fusing them with the sum changes nothing.
            let gx =
                -above[left] + above[right] - 2.0 * row[left] + 2.0 * row[right] - below[left] + below[right];
            let gy =
                -above[left] - 2.0 * above[x] - above[right] + below[left] + 2.0 * below[x] + below[right];
            magnitude[x] = (gx * gx + gy * gy + EPSILON).sqrt();
            let eighths = (gy.atan2(gx) * (4.0 / PI) as f32).round_ties_even();
            direction[x] = eighths.rem_euclid(8.0) as u8;
        }
    });
    (magnitude, direction)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gaussian_is_the_f32_one() {
        let bits = GAUSSIAN.map(f32::to_bits);
        assert_eq!(bits, [0x3d5f_2f88, 0x3e7a_0fec, 0x3ece_2434, 0x3e7a_0fec, 0x3d5f_2f88]);
    }

    #[test]
    fn the_border_mirrors_without_repeating_its_pixel() {
        let of = |length| (-2..length as isize + 2).map(|i| mirrored(i, length)).collect::<Vec<_>>();
        assert_eq!(of(4), [2, 1, 0, 1, 2, 3, 2, 1]);
        assert_eq!(of(2), [0, 1, 0, 1, 0, 1]);
        assert_eq!(of(1), [0, 0, 0, 0, 0]);
    }
}
