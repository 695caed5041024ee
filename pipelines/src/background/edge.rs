//! Edge pixels: how much of each is character, and of what colour that part is.
//!
//! A pixel on the edge is `share · character + (1 - share) · background`. The background is known from the filled
//! pixels around. The character's colour is the neighbour that lies farthest out on the line from the background
//! through the pixel: where the pixel is no mixture, nothing lies farther out and it stays opaque. A dark outline on a
//! light background is therefore kept whole, which a threshold on the distance alone would not do.

use rayon::prelude::*;

use super::KeyOptions;
use super::region::Region;
use crate::{Mask, Picture};

/// How far a mixture may lie beside the line between its two colours, in sRGB values.
const BESIDE: f32 = 0.05;
/// The largest angle (as a sine) between a pixel and its supposed colour, seen from the background: about 15°.
const ANGLE: f32 = 0.26;
/// Shares above this are opaque: shading within the character also lies on such lines.
const OPAQUE: f32 = 0.88;

/// The alpha of each pixel, and `picture` with the background taken out of the edge.
pub(super) fn take_apart(
    picture: &Picture,
    background: &Region,
    distance: &[f32],
    colour: [u8; 3],
    options: &KeyOptions,
) -> (Mask, Picture) {
    let (width, height) = (picture.width(), picture.height());
    // How many pixels wide decoders make an edge.
    let reach = (2 + width.max(height) / 1024).min(5);
    let edge = background.within_reach(reach);
    let flat = colour.map(|v| f32::from(v) / 255.0);
    let scene = Scene { picture, background, flat, reach: reach + 1 };
    let pixels: Vec<(f32, [f32; 3])> = (0..width * height)
        .into_par_iter()
        .map(|i| {
            let (x, y) = (i % width, i / width);
            let own = scene.pixel(x, y);
            if background.contains(x, y) {
                return (0.0, own);
            }
            if !edge[i] {
                return (1.0, own);
            }
            let (share, own) = scene.split(x, y);
            (share.min(ramp(distance[i], options)), own)
        })
        .collect();
    (Mask::over(picture, |i| pixels[i].0), picture.with_pixels(|i| pixels[i].1))
}

/// 0 within the tolerance, 1 beyond the softness.
fn ramp(distance: f32, options: &KeyOptions) -> f32 {
    let beyond = distance - options.tolerance;
    if beyond <= 0.0 { 0.0 } else { (beyond / options.softness.max(f32::MIN_POSITIVE)).min(1.0) }
}

struct Scene<'a> {
    picture: &'a Picture,
    background: &'a Region,
    /// The background's colour where no background pixel is near.
    flat: [f32; 3],
    reach: usize,
}

impl Scene<'_> {
    /// Finite and within `0..=1`.
    fn pixel(&self, x: usize, y: usize) -> [f32; 3] {
        let start = 3 * (y * self.picture.width() + x);
        let mut pixel = [0.0; 3];
        for (target, v) in pixel.iter_mut().zip(&self.picture.data()[start..start + 3]) {
            *target = if v.is_finite() { v.clamp(0.0, 1.0) } else { 0.0 };
        }
        pixel
    }

    fn window(&self, x: usize, y: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let columns = x.saturating_sub(self.reach)..(x + self.reach + 1).min(self.picture.width());
        let rows = y.saturating_sub(self.reach)..(y + self.reach + 1).min(self.picture.height());
        rows.flat_map(move |y| columns.clone().map(move |x| (x, y)))
    }

    /// The mean background around a pixel: what counts as flat may still drift across the picture.
    fn background_near(&self, x: usize, y: usize) -> [f32; 3] {
        let mut sum = [0f32; 3];
        let mut count = 0f32;
        for (x, y) in self.window(x, y).filter(|(x, y)| self.background.contains(*x, *y)) {
            count += 1.0;
            sum.iter_mut().zip(self.pixel(x, y)).for_each(|(sum, v)| *sum += v);
        }
        if count == 0.0 { self.flat } else { sum.map(|v| v / count) }
    }

    /// The character's share of an edge pixel, and its colour without the background.
    fn split(&self, x: usize, y: usize) -> (f32, [f32; 3]) {
        let own = self.pixel(x, y);
        let behind = self.background_near(x, y);
        let out = difference(own, behind);
        let length = dot(out, out).sqrt();
        if length < 1e-4 {
            return (0.0, own);
        }
        let mut farthest = length;
        for (x, y) in self.window(x, y).filter(|(x, y)| !self.background.contains(*x, *y)) {
            let other = difference(self.pixel(x, y), behind);
            let along = dot(other, out) / length;
            let beside = (dot(other, other) - along * along).max(0.0).sqrt();
            let sine = beside / along.max(1e-6);
            if along > farthest && sine <= ANGLE && sine * length <= BESIDE {
                farthest = along;
            }
        }
        let share = length / farthest;
        if share >= OPAQUE {
            return (1.0, own);
        }
        let share = share / OPAQUE;
        let mut clean = behind;
        clean.iter_mut().zip(out).for_each(|(clean, out)| *clean = (*clean + out / share).clamp(0.0, 1.0));
        (share, clean)
    }
}

fn difference(a: [f32; 3], b: [f32; 3]) -> [f32; 3] {
    [a[0] - b[0], a[1] - b[1], a[2] - b[2]]
}

fn dot(a: [f32; 3], b: [f32; 3]) -> f32 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}
