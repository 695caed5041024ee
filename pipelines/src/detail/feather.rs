//! The soft edge of a pasted part.

use std::ops::Range;

/// Spread of the blur in pixels; what `feather` sets is only how far the blur reaches.
const SIGMA: f64 = 10.0;

/// One direction of a blurred box: how much of the new part every pixel of a line of `length` gets. A blurred box is
/// the product of its columns' and its rows' profile.
///
/// Gaussian weights of at most `feather` pixels each way, mirrored at the line's ends: what `FaceDetailer` gets from
/// torchvision's `GaussianBlur`. `shorter` is the mask's shorter side, which limits the blur.
pub(super) fn profile(length: usize, inside: &Range<usize>, feather: usize, shorter: usize) -> Vec<f32> {
    let reach = reach(feather, shorter.min(length)) as i64;
    let weight = |offset: i64| (-0.5 * (offset as f64 / SIGMA).powi(2)).exp();
    let total: f64 = (-reach..=reach).map(weight).sum();
    let last = length as i64 - 1;
    let mirrored = |at: i64| {
        let at = at.abs();
        usize::try_from(if at > last { 2 * last - at } else { at }).unwrap_or(0)
    };
    (0..length as i64)
        .map(|at| {
            let mut sum = 0.0;
            let mut whole = true;
            for offset in -reach..=reach {
                if inside.contains(&mirrored(at + offset)) {
                    sum += weight(offset);
                } else {
                    whole = false;
                }
            }
            // Exactly 1 where nothing of the outside is seen.
            if whole { 1.0 } else { (sum / total) as f32 }
        })
        .collect()
}

/// Pixels each way. A mask that is not larger than the blur is blurred by half its shorter side, and not at all
/// when that is nothing.
fn reach(feather: usize, shorter: usize) -> usize {
    if feather == 0 || shorter > 2 * feather + 1 {
        return feather;
    }
    let kernel = (shorter / 2) | 1;
    (kernel - 1) / 2
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `f32` against `f32`: torch adds the weights in another order.
    const ROUNDING: f32 = 1e-6;

    fn assert_close(found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len());
        for (a, b) in found.iter().zip(expected) {
            assert!((a - b).abs() <= ROUNDING, "{found:?} for {expected:?}");
        }
    }

    #[test]
    fn a_box_in_the_middle_is_blurred_as_torchvision_does() {
        let edge = [0.198_003, 0.398_998_5, 0.601_001_4, 0.801_997];
        let mut expected = vec![0.0, 0.0];
        expected.extend(edge);
        expected.extend([1.0; 12]);
        expected.extend(edge.iter().rev());
        expected.resize(32, 0.0);
        assert_close(&profile(32, &(4..20), 2, 32), &expected);
    }

    #[test]
    fn a_box_at_the_edge_of_the_picture_is_not_blurred_there() {
        let mut expected = vec![1.0; 9];
        expected.extend([0.860_691, 0.717_855, 0.572_861, 0.427_139, 0.282_145, 0.139_309]);
        expected.resize(24, 0.0);
        assert_close(&profile(24, &(0..12), 3, 24), &expected);
    }

    #[test]
    fn a_mask_smaller_than_the_blur_is_blurred_less() {
        assert_eq!(reach(5, 9), 2);
        assert_eq!(reach(5, 12), 5);
        assert_eq!(reach(5, 11), 2);
        assert_eq!(reach(100, 3), 0);
        assert_eq!(reach(0, 50), 0);
    }

    proptest! {
        #[test]
        fn a_profile_is_one_deep_inside_zero_beyond_the_feather_and_between_elsewhere(
            length in 1usize..200, a in 0usize..200, b in 0usize..200, feather in 0usize..101,
        ) {
            let inside = a.min(b).min(length)..a.max(b).min(length);
            for (at, value) in profile(length, &inside, feather, length).into_iter().enumerate() {
                prop_assert!((0.0..=1.0 + ROUNDING).contains(&value));
                let near = inside.start.saturating_sub(feather)..inside.end + feather;
                prop_assert!(near.contains(&at) && !inside.is_empty() || value == 0.0);
                if at >= inside.start + feather && at + feather < inside.end {
                    prop_assert_eq!(value, 1.0);
                }
            }
        }
    }
}
