//! Scaling that turns vectors instead of averaging them, for latents: ComfyUI's `bislerp`.

use rayon::prelude::*;

use super::taps::between;
use super::{Crop, Raster};

/// How near to parallel or opposite two vectors are mixed in a straight line.
const STRAIGHT: f32 = 1e-5;

/// `source` at `width` × `height`, `[height, width, channels]`, along the rows first and then along the columns. Between
/// two neighbours the direction of the channels' vector is turned and its length is mixed. A side of 0 is taken for 1.
pub fn bislerp(source: Raster<'_>, width: usize, height: usize, crop: Crop) -> Vec<f32> {
    let (width, height) = (width.max(1), height.max(1));
    let part = source.part(width, height, crop);
    let channels = source.channels;
    let columns = steps(part.width, width);
    let mut wide = vec![0f32; width * part.height * channels];
    wide.par_chunks_exact_mut(width * channels).enumerate().for_each(|(y, out)| {
        let row = source.row(part, y);
        let pixel = |x: usize| &row[x * channels..][..channels];
        for (out, step) in out.chunks_exact_mut(channels).zip(&columns) {
            turn(pixel(step.first), pixel(step.second), step.share, out);
        }
    });
    let rows = steps(part.height, height);
    let mut data = vec![0f32; width * height * channels];
    data.par_chunks_exact_mut(width * channels).zip(&rows).for_each(|(out, step)| {
        let line = |y: usize| wide[y * width * channels..][..width * channels].chunks_exact(channels);
        for ((out, first), second) in
            out.chunks_exact_mut(channels).zip(line(step.first)).zip(line(step.second))
        {
            turn(first, second, step.share, out);
        }
    });
    data
}

/// The two pixels that a target pixel lies between, and the second's share.
struct Step {
    first: usize,
    second: usize,
    share: f32,
}

/// ComfyUI scales the pixels' numbers bilinearly and cuts them to whole ones; where rounding leaves a number just
/// below a whole one, that is another pixel, so it is done in the same way here.
fn steps(from: usize, to: usize) -> Vec<Step> {
    let last = from - 1;
    let following = |i: usize| (i + 1).min(last) as f32;
    let of = |i: usize| {
        let (low, share) = between(i, from, to);
        let high = (low + 1).min(last);
        let mix = |first: f32, second: f32| second.mul_add(share, first * (1.0 - share));
        let position = mix(low as f32, high as f32);
        let second = mix(following(low), following(high));
        Step {
            first: (position as usize).min(last),
            second: (second as usize).min(last),
            share: position - position.floor(),
        }
    };
    (0..to).map(of).collect()
}

/// The vector that lies `share` of the way from `first` to `second`.
fn turn(first: &[f32], second: &[f32], share: f32, out: &mut [f32]) {
    let norm = |vector: &[f32]| vector.iter().map(|value| value * value).sum::<f32>().sqrt();
    let (first_norm, second_norm) = (norm(first), norm(second));
    let unit = |value: f32, norm: f32| if norm == 0.0 { 0.0 } else { value / norm };
    let dot: f32 = first.iter().zip(second).map(|(a, b)| unit(*a, first_norm) * unit(*b, second_norm)).sum();
    if dot > 1.0 - STRAIGHT {
        out.copy_from_slice(first);
        return;
    }
    let pairs = out.iter_mut().zip(first.iter().zip(second));
    if dot < STRAIGHT - 1.0 {
        pairs.for_each(|(out, (a, b))| *out = a * (1.0 - share) + b * share);
        return;
    }
    let angle = dot.acos();
    let sine = angle.sin();
    let (first_weight, second_weight) = (((1.0 - share) * angle).sin() / sine, (share * angle).sin() / sine);
    let length = first_norm * (1.0 - share) + second_norm * share;
    for (out, (a, b)) in pairs {
        *out = (first_weight * unit(*a, first_norm) + second_weight * unit(*b, second_norm)) * length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halfway_between_two_directions_lies_the_one_between_them_with_the_mean_length() {
        let data = [1.0, 0.0, 0.0, 3.0];
        let out = bislerp(Raster::new(&data, 2, 1, 2).unwrap(), 3, 1, Crop::Disabled);
        let middle = 2.0 / 2f32.sqrt();
        for (found, expected) in out.iter().zip([1.0, 0.0, middle, middle, 0.0, 3.0]) {
            assert!((found - expected).abs() < 1e-5, "{out:?}");
        }
    }

    #[test]
    fn the_same_size_is_the_same_latent_and_zeros_stay_zeros() {
        let data: Vec<f32> = (0..5 * 3 * 4).map(|i| (i as f32).sin()).collect();
        let raster = Raster::new(&data, 5, 3, 4).unwrap();
        // Turning by nothing rounds.
        let same = bislerp(raster, 5, 3, Crop::Center);
        assert!(same.iter().zip(&data).all(|(found, expected)| (found - expected).abs() < 1e-6), "{same:?}");
        let zeros = [0.0; 2 * 2 * 4];
        assert!(
            bislerp(Raster::new(&zeros, 2, 2, 4).unwrap(), 5, 7, Crop::Disabled).iter().all(|v| *v == 0.0)
        );
    }
}
