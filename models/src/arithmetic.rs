//! What networks compute in: the type of their activations and how their products are formed, by device and by the
//! type that the weights are stored in. Between `darkroom-kernels`, which computes, and the weights that networks load.

use std::fmt;

use candle_core::{DType, Device};
use darkroom_kernels::Precision;
use serde::{Deserialize, Serialize};

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
    /// As [`ComputeType::Auto`], and the linear layers of UNets and ControlNets multiply 8-bit codes (e4m3): twice the
    /// rate and half the weights on cards that can (Ada, Hopper and later). A CPU imitates it, which is slower and
    /// shows what the rounding costs.
    Fp8,
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
    /// Beyond it, in a network whose linear layers may be held in 8 bits: Qwen-Image's transformer.
    WideTransformer,
}

/// What matrices and convolution kernels are held in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// In the type that they are stored in; kernels widen them as they read them, exactly.
    Stored,
    /// In the activations' type.
    Activations,
    /// Linear layers' in 8 bits; kernels of convolutions in the activations' type on a GPU and as stored on a CPU.
    EightBit,
}

/// What a network computes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arithmetic {
    /// The type of activations.
    pub activations: DType,
    /// Matrices and convolution kernels.
    pub held: Held,
    /// How products are formed on a CPU.
    pub products: Precision,
}

/// What a network's products are formed in: what a picture's metadata say of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Computed {
    /// `f32`.
    #[default]
    Full,
    /// `bf16`.
    Bf16,
    /// `f16`.
    F16,
    /// e4m3, in linear layers; convolutions in the activations' type.
    Fp8,
}

impl Computed {
    /// Whether nothing is rounded.
    pub fn is_full(&self) -> bool {
        *self == Self::Full
    }
}

impl fmt::Display for Computed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "full",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Fp8 => "fp8",
        })
    }
}

impl Default for Arithmetic {
    fn default() -> Self {
        Self { activations: DType::F32, held: Held::Stored, products: Precision::Full }
    }
}

impl Arithmetic {
    /// Of layers with few rows, whose products are not rounded.
    pub(crate) fn full(device: &Device) -> Self {
        let held = if device.is_cuda() { Held::Activations } else { Held::Stored };
        Self { held, ..Self::default() }
    }

    /// What products are formed in.
    pub fn computed(&self) -> Computed {
        let rounded = self.products == Precision::Bf16 && darkroom_kernels::bf16_is_accelerated();
        match (self.held, self.activations) {
            (Held::EightBit, _) => Computed::Fp8,
            (_, DType::F16) => Computed::F16,
            (_, DType::BF16) => Computed::Bf16,
            _ if rounded => Computed::Bf16,
            _ => Computed::Full,
        }
    }

    /// What kernels of convolutions that are stored as `stored` are held in.
    pub(crate) fn kernel_type(&self, on_card: bool, stored: DType) -> DType {
        match self.held {
            Held::Activations => self.activations,
            Held::EightBit if on_card => self.activations,
            Held::EightBit | Held::Stored => stored,
        }
    }
}

impl ComputeType {
    /// What a network whose weights are mostly `stored` computes in on `device`.
    pub fn on(self, device: &Device, stored: DType, range: Range) -> Arithmetic {
        if !device.is_cuda() {
            let eight_bit = self == Self::Fp8 && range != Range::Wide;
            let products = if self == Self::Bf16 { Precision::Bf16 } else { Precision::Full };
            let held = if eight_bit { Held::EightBit } else { Held::Stored };
            return Arithmetic { activations: DType::F32, held, products };
        }
        self.on_card(darkroom_kernels::multiplies_bf16(device), stored, range)
    }

    /// The same on a GPU, which need not be there.
    pub(crate) fn on_card(self, has_bf16: bool, stored: DType, range: Range) -> Arithmetic {
        let eight_bit = self == Self::Fp8 && range != Range::Wide;
        let held = if eight_bit { Held::EightBit } else { Held::Activations };
        Arithmetic { activations: self.on_gpu(has_bf16, stored, range), held, products: Precision::Full }
    }

    fn on_gpu(self, has_bf16: bool, stored: DType, range: Range) -> DType {
        let wanted = match (self, stored) {
            (Self::Full, _) => DType::F32,
            (Self::F16, _) | (Self::Auto | Self::Fp8, DType::F16) => DType::F16,
            (Self::Bf16 | Self::Auto | Self::Fp8, _) => DType::BF16,
        };
        match (wanted, range) {
            (DType::F16, Range::Wide | Range::WideTransformer) if has_bf16 => DType::BF16,
            (DType::F16, Range::Wide | Range::WideTransformer) => DType::F32,
            (DType::BF16, Range::Wide | Range::WideTransformer) if !has_bf16 => DType::F32,
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
        use ComputeType::{Auto, Bf16, F16, Fp8, Full};
        for wanted in [Auto, Full, Bf16, F16, Fp8] {
            let arithmetic = wanted.on(&Device::Cpu, DType::F16, Range::Half);
            assert_eq!(arithmetic.activations, DType::F32);
            assert_eq!(arithmetic.products == Precision::Bf16, wanted == Bf16);
            assert_eq!(arithmetic.held == Held::EightBit, wanted == Fp8);
        }
    }

    #[test]
    fn decoders_are_not_rounded_to_8_bits() {
        assert_eq!(ComputeType::Fp8.on(&Device::Cpu, DType::F16, Range::Wide).held, Held::Stored);
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
