//! Gaussian blur of masks as torchvision does it: a kernel of odd size, the picture mirrored around its edges.

use crate::workflow::image::Mask;

/// torchvision's width of the bell where none is given.
pub(super) fn default_sigma(size: usize) -> f64 {
    0.3 * ((size as f64 - 1.0) * 0.5 - 1.0) + 0.8
}

/// `mask`, blurred by a kernel of `size` (odd) values; `None` where that is not smaller than twice the shorter side,
/// so that there is nothing to mirror.
pub(super) fn blurred(mask: &Mask, size: usize, sigma: f64) -> Option<Mask> {
    let (width, height) = (mask.width(), mask.height());
    let around = size / 2;
    if around >= width.min(height) || sigma <= 0.0 {
        return None;
    }
    let kernel = kernel(size, sigma);
    let mirrored = |place: usize, side: usize| {
        // `place` counts from `around` before the edge.
        let place = place.abs_diff(around);
        if place < side { place } else { 2 * side - 2 - place }
    };
    let columns: Vec<usize> = (0..width + 2 * around).map(|x| mirrored(x, width)).collect();
    let rows: Vec<usize> = (0..height + 2 * around).map(|y| mirrored(y, height)).collect();
    let mut data = Vec::with_capacity(mask.data().len());
    for index in 0..mask.count() {
        let source = mask.mask(index);
        let mut across = vec![0f32; width * height];
        for (target, line) in across.chunks_exact_mut(width).zip(source.chunks_exact(width)) {
            let padded: Vec<f32> = columns.iter().map(|x| line[*x]).collect();
            for (value, seen) in target.iter_mut().zip(padded.windows(size)) {
                *value = seen.iter().zip(&kernel).map(|(value, weight)| value * weight).sum();
            }
        }
        let mut down = vec![0f32; width * height];
        for (y, target) in down.chunks_exact_mut(width).enumerate() {
            for (row, weight) in rows[y..y + size].iter().zip(&kernel) {
                let line = &across[row * width..(row + 1) * width];
                target.iter_mut().zip(line).for_each(|(sum, value)| *sum += weight * value);
            }
        }
        data.extend(down);
    }
    Mask::new(mask.count(), height, width, data)
}

fn kernel(size: usize, sigma: f64) -> Vec<f32> {
    let half = (size as f64 - 1.0) / 2.0;
    let weights = (0..size).map(|i| (-0.5 * ((i as f64 - half) / sigma).powi(2)).exp() as f32);
    let weights: Vec<f32> = weights.collect();
    let sum: f32 = weights.iter().sum();
    weights.iter().map(|weight| weight / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flat_mask_stays_and_a_point_spreads_evenly() {
        let flat = Mask::new(1, 5, 7, vec![0.5; 35]).unwrap();
        assert!(blurred(&flat, 5, 1.0).unwrap().data().iter().all(|value| (value - 0.5).abs() < 1e-6));
        let mut point = vec![0.0; 49];
        point[24] = 1.0;
        let point = blurred(&Mask::new(1, 7, 7, point).unwrap(), 3, default_sigma(3)).unwrap();
        let at = |x: usize, y: usize| point.data()[y * 7 + x];
        assert!(at(3, 3) > at(2, 3) && (at(2, 3) - at(3, 4)).abs() < 1e-7 && at(5, 3) == 0.0);
        assert!((point.data().iter().sum::<f32>() - 1.0).abs() < 1e-6);
    }

    #[test]
    fn a_kernel_larger_than_the_mask_is_none() {
        let small = Mask::new(1, 2, 9, vec![0.5; 18]).unwrap();
        assert!(blurred(&small, 5, 1.0).is_none());
        assert!(blurred(&small, 3, 1.0).is_some());
    }
}
