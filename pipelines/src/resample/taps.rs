//! Which pixels a target pixel is made of, and by how much: torch's `interpolate` along one axis.

use super::Filter;

/// torch's a for bicubic.
const CUBIC: f32 = -0.75;

/// For each of `to` target pixels the source pixels and their weights, of `from` source pixels. Positions are computed
/// in f32 as torch computes them.
pub(super) fn taps(filter: Filter, from: usize, to: usize) -> Vec<Vec<(usize, f32)>> {
    if from == to {
        return (0..to).map(|i| vec![(i, 1.0)]).collect();
    }
    let scale = from as f32 / to as f32;
    let last = from - 1;
    let of = |i: usize| -> Vec<(usize, f32)> {
        match filter {
            Filter::NearestExact => vec![((((i as f32 + 0.5) * scale) as usize).min(last), 1.0)],
            Filter::Bilinear => {
                let (low, share) = between(i, from, to);
                vec![(low, 1.0 - share), ((low + 1).min(last), share)]
            }
            Filter::Area => {
                let (low, high) = (i * from / to, ((i + 1) * from).div_ceil(to));
                (low..high).map(|source| (source, 1.0 / (high - low) as f32)).collect()
            }
            // Lanczos is Pillow's and has its own file; the cubic is the nearest that torch has.
            Filter::Bicubic | Filter::Lanczos => {
                let position = source_position(i, scale);
                let low = position.floor();
                let clamped = |offset: isize| (low as isize + offset).clamp(0, last as isize) as usize;
                let weights = cubic(position - low);
                (-1..=2).zip(weights).map(|(offset, weight)| (clamped(offset), weight)).collect()
            }
        }
    };
    (0..to).map(of).collect()
}

/// The first of the two pixels that target pixel `i` lies between, and the second's share.
pub(super) fn between(i: usize, from: usize, to: usize) -> (usize, f32) {
    if from == to {
        return (i, 0.0);
    }
    let scale = from as f32 / to as f32;
    let position = source_position(i, scale).max(0.0);
    let low = (position as usize).min(from - 1);
    (low, (position - low as f32).min(1.0))
}

/// Where the centre of target pixel `i` lies. torch's build fuses the product with the difference, which decides on
/// which side of a pixel a position falls.
fn source_position(i: usize, scale: f32) -> f32 {
    scale.mul_add(i as f32 + 0.5, -0.5)
}

/// Weights of the four pixels around a point that lies `t` of the way from the second to the third.
fn cubic(t: f32) -> [f32; 4] {
    let near = |x: f32| ((CUBIC + 2.0) * x - (CUBIC + 3.0)) * x * x + 1.0;
    let far = |x: f32| ((CUBIC * x - 5.0 * CUBIC) * x + 8.0 * CUBIC) * x - 4.0 * CUBIC;
    [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)]
}
