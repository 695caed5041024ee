//! FreeU (Si et al. 2024, "Free Lunch in Diffusion U-Net") in its second version, as ComfyUI's `FreeU_V2` has it: on
//! the way up, half of the backbone's channels are strengthened where the backbone is strong, and the lowest
//! frequencies of skips are weighed.
//!
//! Rows without it keep their bits, so that they share a call with rows that have it.

use candle_core::{D, DType, Device, Tensor};
use darkroom_kernels::add_to_rows;

/// What a row's features are multiplied by: the wider level is the one with four times the first level's channels, the
/// narrower the one with twice as many. Other levels stay as they are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FreeUScales {
    /// The backbone, where it is strongest: `b1` of the wider level, `b2` of the narrower.
    pub backbone: [f64; 2],
    /// The lowest frequencies of skips: `s1` and `s2`.
    pub skip: [f64; 2],
}

/// Which rows of a batch have FreeU.
#[derive(Debug, Clone, Default)]
pub struct FreeU {
    rows: Vec<(usize, FreeUScales)>,
}

impl FreeU {
    /// Rows by their number in the batch.
    pub fn new(rows: Vec<(usize, FreeUScales)>) -> Self {
        Self { rows }
    }

    /// Changes what comes from below, `[b, h, w, c]`, and the skip that is to be joined with it, in place where that
    /// can be. `first` is the number of the first level's channels.
    pub(super) fn apply(
        &self,
        first: usize,
        backbone: Tensor,
        skip: Tensor,
    ) -> candle_core::Result<(Tensor, Tensor)> {
        let channels = backbone.dim(D::Minus1)?;
        let level = [4, 2].iter().position(|times| first * times == channels);
        let (Some(level), false) = (level, self.rows.is_empty()) else { return Ok((backbone, skip)) };
        let (backbone, skip) = (backbone.contiguous()?, skip.contiguous()?);
        for (row, scales) in &self.rows {
            let own = backbone.narrow(0, *row, 1)?;
            add_to_rows(&backbone, *row, &strengthening(&own, scales.backbone[level])?)?;
            let own = skip.narrow(0, *row, 1)?;
            add_to_rows(&skip, *row, &lowest_frequencies(&own, scales.skip[level] - 1.0)?)?;
        }
        Ok((backbone, skip))
    }
}

/// What the first half of the channels of `[1, h, w, c]` gains: `scale - 1` of itself where the mean over channels is
/// largest, nothing where it is smallest.
fn strengthening(x: &Tensor, scale: f64) -> candle_core::Result<Tensor> {
    let channels = x.dim(D::Minus1)?;
    let mean = x.mean_keepdim(D::Minus1)?;
    let flat = mean.flatten_all()?;
    let (least, most) = (flat.min(0)?, flat.max(0)?);
    let share = mean.broadcast_sub(&least)?.broadcast_div(&(most - &least)?)?;
    let half = x.narrow(D::Minus1, 0, channels / 2)?;
    half.broadcast_mul(&share.affine(scale - 1.0, 0.0)?)?.pad_with_zeros(
        D::Minus1,
        0,
        channels - channels / 2,
    )
}

/// `change` times the part of `[1, h, w, c]` whose frequencies are 0 or -1 both ways: what is left of a Fourier
/// transform that keeps these alone.
fn lowest_frequencies(x: &Tensor, change: f64) -> candle_core::Result<Tensor> {
    let (_, height, width, channels) = x.dims4()?;
    let (waves, positions) = (waves(height, width, x.device())?, height * width);
    let flat = x.reshape((positions, channels))?.to_dtype(DType::F32)?;
    let coefficients = waves.matmul(&flat)?.affine(change / positions as f64, 0.0)?;
    waves.t()?.matmul(&coefficients)?.to_dtype(x.dtype())?.reshape(x.dims())
}

/// Cosine and sine of each frequency at each position, `[n, height · width]`. A side of one position has no frequency
/// but 0.
fn waves(height: usize, width: usize, device: &Device) -> candle_core::Result<Tensor> {
    let frequencies = |side: usize| if side > 1 { [0, -1].as_slice() } else { [0].as_slice() };
    let mut values = Vec::new();
    let mut count = 0;
    for v in frequencies(height) {
        for u in frequencies(width) {
            let angle = |i: usize| {
                let turns = f64::from(*v) * (i / width) as f64 / height as f64
                    + f64::from(*u) * (i % width) as f64 / width as f64;
                turns * std::f64::consts::TAU
            };
            values.extend((0..height * width).map(|i| angle(i).cos() as f32));
            values.extend((0..height * width).map(|i| angle(i).sin() as f32));
            count += 2;
        }
    }
    Tensor::from_vec(values, (count, height * width), device)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Largest difference of a value of about 3: sums of up to 48 products in `f32`.
    const TOLERANCE: f32 = 2e-6;
    const SCALES: FreeUScales = FreeUScales { backbone: [1.3, 1.4], skip: [0.9, 0.2] };

    fn channels_last(tensor: &Tensor) -> Tensor {
        tensor.permute((0, 2, 3, 1)).unwrap().contiguous().unwrap()
    }

    fn difference(a: &Tensor, b: &Tensor) -> f32 {
        let difference = (a - b).unwrap().abs().unwrap().flatten_all().unwrap();
        difference.max(0).unwrap().to_scalar().unwrap()
    }

    #[test]
    fn features_change_as_comfyuis_do_and_those_of_other_rows_keep_their_bits() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/free_u.safetensors");
        let golden = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
        let cases: Vec<&str> = golden.keys().filter_map(|name| name.strip_suffix(".backbone")).collect();
        assert_eq!(cases.len(), 5);
        for case in cases {
            let get = |what: &str| channels_last(&golden[&format!("{case}.{what}")]);
            for rows in [vec![0, 1], vec![1]] {
                let free_u = FreeU::new(rows.iter().map(|row| (*row, SCALES)).collect());
                let (backbone, skip) = free_u.apply(2, get("backbone"), get("skip")).unwrap();
                for row in 0..2 {
                    let changed = rows.contains(&row);
                    let (wanted, filtered) =
                        if changed { ("changed", "filtered") } else { ("backbone", "skip") };
                    for (ours, theirs) in [(&backbone, get(wanted)), (&skip, get(filtered))] {
                        let error = difference(&ours.get(row).unwrap(), &theirs.get(row).unwrap());
                        assert!(
                            error <= if changed { TOLERANCE } else { 0.0 },
                            "{case} row {row}: {error:e}"
                        );
                    }
                }
            }
        }
    }
}
