//! What networks compute in: the type of their activations and how their products are formed, by device and by the
//! type that the weights are stored in. Between `darkroom-kernels`, which computes, and the weights that networks load.

use candle_core::{DType, Device};
use darkroom_kernels::Precision;

/// What a network is asked to compute in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ComputeType {
    /// What the device is good at: `f32` on a CPU; on a GPU the 16-bit type that the weights are stored in, or `bf16`
    /// where they are stored in `f32`.
    #[default]
    Auto,
    /// `f32` throughout: ComfyUI's pictures on a CPU.
    Full,
    /// `bf16`: on a CPU for products alone, on a GPU for activations too.
    Bf16,
    /// `f16` on a GPU; as [`ComputeType::Full`] on a CPU, which is slower at it.
    F16,
}

impl From<Precision> for ComputeType {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::Full => Self::Full,
            Precision::Bf16 => Self::Bf16,
        }
    }
}

/// The largest numbers that a network's activations reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Range {
    /// Within `f16`'s 65504.
    Half,
    /// Beyond it: SDXL's VAE decoder. `bf16` reaches as far as `f32`.
    Wide,
}

/// What a network computes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arithmetic {
    /// The type of activations, and of matrices and convolution kernels; these stay in their stored type on a CPU where
    /// activations are `f32`.
    pub activations: DType,
    /// How products are formed on a CPU.
    pub products: Precision,
}

impl Default for Arithmetic {
    fn default() -> Self {
        Self { activations: DType::F32, products: Precision::Full }
    }
}

impl ComputeType {
    /// What a network whose weights are mostly `stored` computes in on `device`.
    pub fn on(self, device: &Device, stored: DType, range: Range) -> Arithmetic {
        if !device.is_cuda() {
            let products = if self == Self::Bf16 { Precision::Bf16 } else { Precision::Full };
            return Arithmetic { activations: DType::F32, products };
        }
        let activations = self.on_gpu(darkroom_kernels::multiplies_bf16(device), stored, range);
        Arithmetic { activations, products: Precision::Full }
    }

    fn on_gpu(self, has_bf16: bool, stored: DType, range: Range) -> DType {
        let wanted = match (self, stored) {
            (Self::Full, _) => DType::F32,
            (Self::F16, _) | (Self::Auto, DType::F16) => DType::F16,
            (Self::Bf16 | Self::Auto, _) => DType::BF16,
        };
        match (wanted, range) {
            (DType::F16, Range::Wide) if has_bf16 => DType::BF16,
            (DType::F16, Range::Wide) => DType::F32,
            (DType::BF16, Range::Wide) if !has_bf16 => DType::F32,
            (DType::BF16, Range::Half) if !has_bf16 => DType::F16,
            (wanted, _) => wanted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_computes_in_single_precision() {
        for wanted in [ComputeType::Auto, ComputeType::Full, ComputeType::Bf16, ComputeType::F16] {
            let arithmetic = wanted.on(&Device::Cpu, DType::F16, Range::Half);
            assert_eq!(arithmetic.activations, DType::F32);
            assert_eq!(arithmetic.products == Precision::Bf16, wanted == ComputeType::Bf16);
        }
    }

    #[test]
    fn a_gpu_computes_in_the_stored_half_precision_unless_the_numbers_are_too_large() {
        let auto = |has_bf16, stored, range| ComputeType::Auto.on_gpu(has_bf16, stored, range);
        assert_eq!(auto(true, DType::F16, Range::Half), DType::F16);
        assert_eq!(auto(true, DType::BF16, Range::Half), DType::BF16);
        assert_eq!(auto(true, DType::F32, Range::Half), DType::BF16);
        assert_eq!(auto(true, DType::F16, Range::Wide), DType::BF16);
        // Cards before Ampere.
        assert_eq!(auto(false, DType::BF16, Range::Half), DType::F16);
        assert_eq!(auto(false, DType::F16, Range::Wide), DType::F32);
        assert_eq!(auto(false, DType::F32, Range::Wide), DType::F32);
        assert_eq!(ComputeType::Full.on_gpu(true, DType::F16, Range::Half), DType::F32);
        assert_eq!(ComputeType::F16.on_gpu(true, DType::F32, Range::Wide), DType::BF16);
    }
}
