//! Leaky and parametric ReLU in place: a dense block has five of them over the largest tensors of the network.

use candle_core::{CpuStorage, Device, InplaceOp1, Layout, Result, Tensor, bail};
use rayon::prelude::*;

/// Values that one thread takes at a time.
const PART: usize = 1 << 16;

/// What values below zero are multiplied by, a channel each or one for all.
#[derive(Debug, Clone)]
pub(super) struct Rectifier {
    slopes: Vec<f32>,
}

impl Rectifier {
    /// ESRGAN's.
    pub(super) fn leaky() -> Self {
        Self { slopes: vec![0.2] }
    }

    /// `PReLU`'s weights, `[channels]`, of any float type.
    pub(super) fn parametric(slopes: &Tensor) -> Result<Self> {
        Ok(Self { slopes: slopes.to_dtype(candle_core::DType::F32)?.to_vec1()? })
    }

    /// `x: [.., channels]`, which nothing else may hold: its values change.
    pub(super) fn apply(&self, x: Tensor) -> Result<Tensor> {
        if !matches!(x.device(), Device::Cpu) || !x.is_contiguous() {
            let slopes = Tensor::from_slice(&self.slopes, self.slopes.len(), x.device())?;
            return x.relu()? - x.neg()?.relu()?.broadcast_mul(&slopes)?;
        }
        x.inplace_op1(self)?;
        Ok(x)
    }
}

impl InplaceOp1 for Rectifier {
    fn name(&self) -> &'static str {
        "rectify"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (CpuStorage::F32(values), Some((start, end))) = (storage, layout.contiguous_offsets()) else {
            bail!("rectify: contiguous f32 is needed");
        };
        let Some(values) = values.get_mut(start..end) else { bail!("rectify: a tensor beyond its storage") };
        let channels = self.slopes.len().max(1);
        values.par_chunks_mut((PART / channels).max(1) * channels).for_each(|part| {
            if let [slope] = self.slopes[..] {
                part.iter_mut().for_each(|value| *value = if *value < 0.0 { *value * slope } else { *value });
                return;
            }
            for pixel in part.chunks_mut(channels) {
                for (value, slope) in pixel.iter_mut().zip(&self.slopes) {
                    *value = if *value < 0.0 { *value * slope } else { *value };
                }
            }
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_channel_has_its_own_slope() {
        let slopes = Tensor::new(&[0.5f32, 0.0, -1.0], &Device::Cpu).unwrap();
        let x = Tensor::new(&[[-2f32, -2.0, -2.0], [3.0, 3.0, 3.0]], &Device::Cpu).unwrap();
        let y = Rectifier::parametric(&slopes).unwrap().apply(x).unwrap();
        assert_eq!(y.to_vec2::<f32>().unwrap(), [[-1.0, 0.0, 2.0], [3.0, 3.0, 3.0]]);
    }
}
