//! The background's colour: the densest cluster of colours along the picture's border, less the lower edge, which
//! belongs to whoever stands there.

use std::collections::BTreeMap;

use super::KeyOptions;
use super::oklab::Oklab;
use crate::Picture;

/// Rounds of moving a cluster's centre to the mean of what is near it; few are needed from its densest cell.
const ROUNDS: usize = 8;

/// What was found along the border.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Background {
    pub(super) colour: [u8; 3],
    pub(super) lab: Oklab,
    /// The part of the border within the tolerance of `lab`.
    pub(super) share: f32,
    /// The part of the border beyond the tolerance of `lab`, but within twice of it.
    pub(super) shaded: f32,
}

/// The background of `picture`, whose colours are `lab`: the one given, else the commonest one of the border.
pub(super) fn background(picture: &Picture, lab: &[Oklab], options: &KeyOptions) -> Background {
    let ring = ring(picture.width(), picture.height());
    if let Some(colour) = options.colour {
        let centre = Oklab::from_pixel(&colour.map(|v| f32::from(v) / 255.0));
        return described(lab, &ring, centre, colour, options.tolerance);
    }
    let mut centre = densest(lab, &ring, options.tolerance);
    for _ in 0..ROUNDS {
        let mut sum = [0f64; 3];
        let mut count = 0u32;
        for pixel in ring.iter().filter_map(|&i| lab.get(i)) {
            if pixel.distance(centre) <= options.tolerance {
                count += 1;
                for (sum, v) in sum.iter_mut().zip(pixel.0) {
                    *sum += f64::from(v);
                }
            }
        }
        if count == 0 {
            break;
        }
        let mean = Oklab(sum.map(|v| (v / f64::from(count)) as f32));
        let moved = mean.distance(centre);
        centre = mean;
        if moved < 1e-4 {
            break;
        }
    }
    let colour = mean_colour(picture, lab, &ring, centre, options.tolerance);
    described(lab, &ring, centre, colour, options.tolerance)
}

/// Indices of the pixels along the upper edge and the sides: a band of 1/64 of the shorter side, 1 to 16 pixels wide,
/// since a single row would be at the mercy of what a decoder does at the very edge.
fn ring(width: usize, height: usize) -> Vec<usize> {
    let thick = (width.min(height) / 64).clamp(1, 16);
    let mut ring = Vec::new();
    for y in 0..height {
        let row = y * width;
        if y < thick || 2 * thick >= width {
            ring.extend(row..row + width);
        } else {
            ring.extend(row..row + thick);
            ring.extend(row + width - thick..row + width);
        }
    }
    ring
}

/// The mean of the fullest cell of a histogram with cells of `size`.
fn densest(lab: &[Oklab], ring: &[usize], size: f32) -> Oklab {
    // Ordered, so that of two equally full cells always the same one wins.
    let mut cells: BTreeMap<[i32; 3], (u32, [f64; 3])> = BTreeMap::new();
    for pixel in ring.iter().filter_map(|&i| lab.get(i)) {
        let (count, sum) = cells.entry(pixel.0.map(|v| (v / size).floor() as i32)).or_default();
        *count += 1;
        for (sum, v) in sum.iter_mut().zip(pixel.0) {
            *sum += f64::from(v);
        }
    }
    let fullest = cells.values().max_by_key(|(count, _)| *count);
    fullest.map_or(Oklab([0.0; 3]), |(count, sum)| Oklab(sum.map(|v| (v / f64::from(*count)) as f32)))
}

fn described(lab: &[Oklab], ring: &[usize], centre: Oklab, colour: [u8; 3], tolerance: f32) -> Background {
    let mut counts = [0u32; 2];
    for pixel in ring.iter().filter_map(|&i| lab.get(i)) {
        let distance = pixel.distance(centre);
        counts[0] += u32::from(distance <= tolerance);
        counts[1] += u32::from(distance > tolerance && distance <= 2.0 * tolerance);
    }
    let [share, shaded] = counts.map(|count| count as f32 / ring.len().max(1) as f32);
    Background { colour, lab: centre, share, shaded }
}

fn mean_colour(picture: &Picture, lab: &[Oklab], ring: &[usize], centre: Oklab, tolerance: f32) -> [u8; 3] {
    let mut sum = [0f64; 3];
    let mut count = 0u32;
    for &i in ring {
        let near = lab.get(i).is_some_and(|pixel| pixel.distance(centre) <= tolerance);
        if let (true, Some(pixel)) = (near, picture.data().get(3 * i..3 * i + 3)) {
            count += 1;
            for (sum, v) in sum.iter_mut().zip(pixel) {
                *sum += f64::from(if v.is_finite() { v.clamp(0.0, 1.0) } else { 0.0 });
            }
        }
    }
    sum.map(|v| (255.0 * v / f64::from(count.max(1))).round() as u8)
}
