//! Enlarging and shrinking with little loss.

use rayon::prelude::*;

/// Lobes of the filter on each side.
const LOBES: f64 = 3.0;

/// `data: [height, width, 3]` at another size, by Lanczos' filter as Pillow applies it (widened when shrinking, so
/// that nothing aliases), in floats, cut to `0..=1`, which the filter overshoots at edges.
pub(super) fn lanczos(data: &[f32], from: (usize, usize), to: (usize, usize)) -> Vec<f32> {
    if from == to {
        return data.to_vec();
    }
    let (width, height) = to;
    let columns = taps(from.0, width);
    let mut wide = vec![0f32; width * from.1 * 3];
    wide.par_chunks_exact_mut(width * 3).zip(data.par_chunks_exact(from.0 * 3)).for_each(|(target, row)| {
        for (pixel, taps) in target.chunks_exact_mut(3).zip(&columns) {
            let source = row.chunks_exact(3).skip(taps.first);
            for (weight, source) in taps.weights.iter().zip(source) {
                for (value, source) in pixel.iter_mut().zip(source) {
                    *value += weight * source;
                }
            }
        }
    });
    let rows = taps(from.1, height);
    let mut result = vec![0f32; width * height * 3];
    result.par_chunks_exact_mut(width * 3).zip(&rows).for_each(|(target, taps)| {
        let source = wide.chunks_exact(width * 3).skip(taps.first);
        for (weight, source) in taps.weights.iter().zip(source) {
            for (value, source) in target.iter_mut().zip(source) {
                *value += weight * source;
            }
        }
        target.iter_mut().for_each(|value| *value = value.clamp(0.0, 1.0));
    });
    result
}

/// The source pixels that one target pixel is made of.
struct Taps {
    first: usize,
    weights: Vec<f32>,
}

fn taps(from: usize, to: usize) -> Vec<Taps> {
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    let support = LOBES * stretch;
    (0..to)
        .map(|i| {
            let middle = (i as f64 + 0.5) * scale;
            let first = (middle - support + 0.5).max(0.0) as usize;
            let end = ((middle + support + 0.5) as usize).min(from);
            let weights: Vec<f64> =
                (first..end).map(|at| filter((at as f64 - middle + 0.5) / stretch)).collect();
            let total: f64 = weights.iter().sum();
            Taps { first, weights: weights.into_iter().map(|weight| (weight / total) as f32).collect() }
        })
        .collect()
}

fn filter(x: f64) -> f64 {
    let sinc = |x: f64| {
        let x = x * std::f64::consts::PI;
        if x == 0.0 { 1.0 } else { x.sin() / x }
    };
    if x.abs() < LOBES { sinc(x) * sinc(x / LOBES) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn grey(values: &[f32]) -> Vec<f32> {
        values.iter().flat_map(|value| [*value; 3]).collect()
    }

    fn assert_pillow(to: usize, expected: &[f32]) {
        let line = grey(&[0.1, 0.9, 0.3, 0.5, 0.7, 0.2]);
        for (found, size) in
            [(lanczos(&line, (6, 1), (to, 1)), "a row"), (lanczos(&line, (1, 6), (1, to)), "a column")]
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
            let flat = lanczos(&vec![value; from.0 * from.1 * 3], from, to);
            prop_assert_eq!(flat.len(), to.0 * to.1 * 3);
            prop_assert!(flat.iter().all(|v| (v - value).abs() < 1e-5));
            let noise: Vec<f32> = (0..from.0 * from.1 * 3)
                .map(|i| ((i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed) >> 16 & 1) as f32)
                .collect();
            prop_assert!(lanczos(&noise, from, to).iter().all(|v| (0.0..=1.0).contains(v)));
        }
    }
}
