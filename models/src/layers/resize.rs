//! Resizing pictures and feature maps by separable interpolation, as torch does it.

use candle_core::{CpuStorage, Result, Storage, Tensor, bail};
use rayon::prelude::*;

/// How values between pixels come about (no antialiasing in any of them).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Interpolation {
    /// Bilinear, pixel centres at halves (torch's `align_corners=False`).
    Bilinear,
    /// Bilinear, the corner pixels' centres lie on each other (torch's `align_corners=True`).
    BilinearCorners,
    /// Cubic convolution (Keys 1981, a = -0.75), pixel centres at halves; torch's and OpenCV's.
    Bicubic,
    /// The same with source pixels per target pixel given, rows then columns, instead of taken from the sizes
    /// (torch's `scale_factor`).
    BicubicAt([f64; 2]),
}

/// `x: [b, h, w, c] -> [b, height, width, c]`, in `f32`.
pub(crate) fn resize(x: &Tensor, height: usize, width: usize, how: Interpolation) -> Result<Tensor> {
    let (_, h, w, _) = x.dims4()?;
    if x.elem_count() == 0 || height == 0 || width == 0 {
        bail!("cannot resize {:?} to {height}×{width}", x.shape());
    }
    let given = |axis: usize| match how {
        Interpolation::BicubicAt(scales) => Some(scales[axis]),
        _ => None,
    };
    let rows = Taps::new(h, height, how, given(0));
    let columns = Taps::new(w, width, how, given(1));
    let x = x.contiguous()?;
    if x.device().is_cpu() { on_cpu(&x, &rows, &columns) } else { composed(&x, &rows, &columns) }
}

/// Which source pixels a target pixel is made of, and their weights.
struct Taps {
    indices: Vec<Vec<u32>>,
    weights: Vec<Vec<f32>>,
}

impl Taps {
    fn new(from: usize, to: usize, how: Interpolation, scale: Option<f64>) -> Self {
        let scale = scale.unwrap_or_else(|| match how {
            Interpolation::BilinearCorners if to > 1 => (from - 1) as f64 / (to - 1) as f64,
            Interpolation::BilinearCorners => 0.0,
            _ => from as f64 / to as f64,
        });
        let count =
            if matches!(how, Interpolation::Bilinear | Interpolation::BilinearCorners) { 2 } else { 4 };
        let mut taps = Self { indices: vec![Vec::new(); count], weights: vec![Vec::new(); count] };
        for target in 0..to {
            let centred = (target as f64 + 0.5) * scale - 0.5;
            let source = match how {
                Interpolation::BilinearCorners => target as f64 * scale,
                Interpolation::Bilinear => centred.max(0.0),
                Interpolation::Bicubic | Interpolation::BicubicAt(_) => centred,
            };
            let low = source.floor();
            let t = source - low;
            let (first, weights) = if count == 2 { (0.0, vec![1.0 - t, t]) } else { (-1.0, cubic(t)) };
            for (k, weight) in weights.into_iter().enumerate() {
                // Pixels beyond the border are its nearest pixel. `as` saturates.
                let index = (low + first + k as f64).clamp(0.0, (from - 1) as f64);
                taps.indices[k].push(index as u32);
                taps.weights[k].push(weight as f32);
            }
        }
        taps
    }

    fn len(&self) -> usize {
        self.indices[0].len()
    }

    /// The source pixels of `target` and their weights.
    fn of(&self, target: usize) -> impl Iterator<Item = (usize, f32)> {
        self.indices.iter().zip(&self.weights).map(move |(i, w)| (i[target] as usize, w[target]))
    }
}

/// The weights of four pixels around a point `t` beyond the second.
fn cubic(t: f64) -> Vec<f64> {
    const A: f64 = -0.75;
    let near = |x: f64| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = |x: f64| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    vec![far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)]
}

fn on_cpu(x: &Tensor, rows: &Taps, columns: &Taps) -> Result<Tensor> {
    let (batch, h, w, c) = x.dims4()?;
    let (height, width) = (rows.len(), columns.len());
    let (storage, layout) = x.storage_and_layout();
    let (Storage::Cpu(CpuStorage::F32(all)), Some((start, end))) = (&*storage, layout.contiguous_offsets())
    else {
        bail!("resize: input is {:?}, f32 is needed", x.dtype());
    };
    let pixels = &all[start..end];
    let mut out = vec![0f32; batch * height * width * c];
    out.par_chunks_mut(width * c).enumerate().for_each_init(
        || vec![0f32; w * c],
        |blended, (i, target)| {
            let (picture, y) = (i / height, i % height);
            blended.fill(0.0);
            for (row, weight) in rows.of(y) {
                let row = &pixels[(picture * h + row) * w * c..][..w * c];
                blended.iter_mut().zip(row).for_each(|(sum, v)| *sum += weight * v);
            }
            for (x, pixel) in target.chunks_exact_mut(c).enumerate() {
                for (column, weight) in columns.of(x) {
                    let source = &blended[column * c..][..c];
                    pixel.iter_mut().zip(source).for_each(|(sum, v)| *sum += weight * v);
                }
            }
        },
    );
    Tensor::from_vec(out, (batch, height, width, c), x.device())
}

/// The same as tensor operations, for devices other than the CPU.
fn composed(x: &Tensor, rows: &Taps, columns: &Taps) -> Result<Tensor> {
    let along = |x: &Tensor, axis: usize, taps: &Taps| -> Result<Tensor> {
        let mut shape = [1; 4];
        shape[axis] = taps.len();
        let mut sum: Option<Tensor> = None;
        for (indices, weights) in taps.indices.iter().zip(&taps.weights) {
            let indices = Tensor::from_slice(indices, taps.len(), x.device())?;
            let weights = Tensor::from_slice(weights, &shape, x.device())?;
            let part = x.index_select(&indices, axis)?.broadcast_mul(&weights)?;
            sum = Some(match sum {
                None => part,
                Some(sum) => (sum + part)?,
            });
        }
        sum.map_or_else(|| Ok(x.clone()), Ok)
    };
    along(&along(x, 1, rows)?, 2, columns)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn row(values: &[f32]) -> Tensor {
        Tensor::from_slice(values, (1, 1, values.len(), 1), &Device::Cpu).unwrap()
    }

    fn resized(values: &[f32], width: usize, how: Interpolation) -> Vec<f32> {
        resize(&row(values), 1, width, how).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn both_bilinear_rules_are_torchs() {
        // torch.nn.functional.interpolate(tensor([[[[0., 4., 8.]]]]), size=(1, 5), mode="bilinear", …)
        assert_eq!(resized(&[0.0, 4.0, 8.0], 5, Interpolation::BilinearCorners), [0.0, 2.0, 4.0, 6.0, 8.0]);
        let halves = resized(&[0.0, 4.0, 8.0], 5, Interpolation::Bilinear);
        for (actual, expected) in halves.iter().zip([0.0, 1.6, 4.0, 6.4, 8.0]) {
            assert!((actual - expected).abs() < 1e-5, "{halves:?}");
        }
        assert_eq!(resized(&[3.0, 4.0], 1, Interpolation::BilinearCorners), [3.0]);
    }

    #[test]
    fn cubic_weights_sum_to_one_and_keep_pixels() {
        for t in [0.0, 0.1, 0.5, 0.99] {
            assert!((cubic(t).iter().sum::<f64>() - 1.0).abs() < 1e-12);
        }
        assert_eq!(resized(&[1.0, 5.0, 2.0], 3, Interpolation::Bicubic), [1.0, 5.0, 2.0]);
    }

    #[test]
    fn the_cpu_path_equals_the_composition() {
        let x = Tensor::randn(0f32, 1.0, (2, 5, 7, 3), &Device::Cpu).unwrap();
        for how in [
            Interpolation::Bilinear,
            Interpolation::BilinearCorners,
            Interpolation::Bicubic,
            Interpolation::BicubicAt([0.7, 0.6]),
        ] {
            let scale = |axis| if let Interpolation::BicubicAt(s) = how { Some(s[axis]) } else { None };
            let (rows, columns) = (Taps::new(5, 8, how, scale(0)), Taps::new(7, 4, how, scale(1)));
            let fast = on_cpu(&x, &rows, &columns).unwrap();
            let slow = composed(&x, &rows, &columns).unwrap();
            let worst = (fast - slow).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(worst < 1e-5, "{how:?}: {worst}");
        }
    }

    #[test]
    fn a_size_of_zero_is_an_error() {
        assert!(resize(&row(&[1.0]), 0, 3, Interpolation::Bilinear).is_err());
    }
}
