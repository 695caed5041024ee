//! Edges as `cv2.Canny(grey, low, high, apertureSize=3)` finds them on the 8-bit grey picture: whole numbers
//! throughout, and no blur.

use rayon::prelude::*;

use super::hysteresis::{Strength, connected};
use crate::Picture;

/// Weights of red, green and blue in 1/32768: `cv2.cvtColor(rgb, COLOR_RGB2GRAY)`.
const GREY: [u32; 3] = [9798, 19235, 3735];
const GREY_BITS: u32 = 15;
/// tan 22.5° in 1/32768.
const TANGENT: i64 = 13573;
const TANGENT_BITS: u32 = 15;
/// Largest threshold that OpenCV squares for L2 gradients.
const MOST: f64 = 32767.0;

/// Which pixels are edges, row by row.
pub(super) fn edges(picture: &Picture, low: f64, high: f64, l2_gradient: bool) -> Vec<bool> {
    let (width, height) = (picture.width(), picture.height());
    let (low, high) = thresholds(low, high, l2_gradient);
    let gradients = gradients(&grey(picture), width, height);
    let size = |(x, y): (i32, i32)| if l2_gradient { x * x + y * y } else { x.abs() + y.abs() };
    // Beyond the border there is no gradient.
    let at = |x: isize, y: isize| match (usize::try_from(x), usize::try_from(y)) {
        (Ok(x), Ok(y)) if x < width && y < height => size(gradients[y * width + x]),
        _ => 0,
    };
    let mut strengths = vec![Strength::None; width * height];
    strengths.par_chunks_mut(width).enumerate().for_each(|(row, strengths)| {
        for (column, strength) in strengths.iter_mut().enumerate() {
            let gradient = gradients[row * width + column];
            let here = size(gradient);
            if here <= low {
                continue;
            }
            let (x, y) = (column as isize, row as isize);
            // Ties go to the left or upper pixel; on diagonals both neighbours must be weaker.
            let ridge = match across(gradient) {
                Across::Columns => here > at(x - 1, y) && here >= at(x + 1, y),
                Across::Rows => here > at(x, y - 1) && here >= at(x, y + 1),
                Across::Falling => here > at(x - 1, y - 1) && here > at(x + 1, y + 1),
                Across::Rising => here > at(x + 1, y - 1) && here > at(x - 1, y + 1),
            };
            if ridge {
                *strength = if here > high { Strength::Strong } else { Strength::Weak };
            }
        }
    });
    connected(strengths, width)
}

/// What [`edges`] holds the sizes of gradients against.
pub(super) fn thresholds(low: f64, high: f64, l2_gradient: bool) -> (i32, i32) {
    let threshold = |value: f64| match l2_gradient {
        true if value > 0.0 => value.min(MOST).powi(2).floor() as i32,
        _ => value.floor() as i32,
    };
    let (low, high) = if low > high { (high, low) } else { (low, high) };
    (threshold(low), threshold(high))
}

/// Where a gradient points, up to its sign.
enum Across {
    Columns,
    Rows,
    /// From the upper left to the lower right.
    Falling,
    Rising,
}

fn across((x, y): (i32, i32)) -> Across {
    let (width, height) = (i64::from(x.abs()), i64::from(y.abs()) << TANGENT_BITS);
    let shallow = width * TANGENT;
    // tan 67.5° = tan 22.5° + 2.
    let steep = shallow + (width << (TANGENT_BITS + 1));
    match height {
        _ if height < shallow => Across::Columns,
        _ if height > steep => Across::Rows,
        _ if (x ^ y) < 0 => Across::Rising,
        _ => Across::Falling,
    }
}

fn grey(picture: &Picture) -> Vec<u8> {
    // Pictures from files hold n / 255, so rounding gives n back.
    let byte = |value: f32| u32::from((value * 255.0).round() as u8);
    let of = |rgb: &[f32]| {
        let sum = GREY[0] * byte(rgb[0]) + GREY[1] * byte(rgb[1]) + GREY[2] * byte(rgb[2]);
        ((sum + (1 << (GREY_BITS - 1))) >> GREY_BITS) as u8
    };
    picture.data().chunks_exact(3).map(of).collect()
}

/// Sobel's derivatives along x and y; the border repeats its pixel.
fn gradients(grey: &[u8], width: usize, height: usize) -> Vec<(i32, i32)> {
    let mut out = vec![(0, 0); grey.len()];
    out.par_chunks_mut(width).enumerate().for_each(|(y, out)| {
        let line = |y: usize| &grey[y * width..][..width];
        let (above, row, below) = (line(y.saturating_sub(1)), line(y), line((y + 1).min(height - 1)));
        let of = |line: &[u8], x: usize| i32::from(line[x]);
        for (x, gradient) in out.iter_mut().enumerate() {
            let (left, right) = (x.saturating_sub(1), (x + 1).min(width - 1));
            let column = |x: usize| of(above, x) + 2 * of(row, x) + of(below, x);
            let smooth = |line: &[u8]| of(line, left) + 2 * of(line, x) + of(line, right);
            *gradient = (column(right) - column(left), smooth(below) - smooth(above));
        }
    });
    out
}
