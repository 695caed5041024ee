//! How a pipeline's networks are loaded: what they compute in, and where they go on a device with little memory.

use candle_core::Device;
use darkroom_models::{ComputeType, Precision};

/// Bytes that a step and the decoding of one picture are taken to need beside the weights: SDXL's at 1024² in 16 bits,
/// the decoder by tiles.
const ROOM: u64 = 1 << 30;

/// How networks are loaded.
#[derive(Debug, Clone, Copy, Default)]
pub struct LoadOptions {
    /// What the UNet and the VAE compute in.
    pub compute_type: ComputeType,
    /// Bytes of the device for weights and activations; `None`: enough. Where not everything fits, text encoders stay
    /// in the host's memory and compute there: prompts are encoded once and then kept.
    pub budget: Option<u64>,
}

impl From<ComputeType> for LoadOptions {
    fn from(compute_type: ComputeType) -> Self {
        Self { compute_type, budget: None }
    }
}

impl From<Precision> for LoadOptions {
    fn from(precision: Precision) -> Self {
        ComputeType::from(precision).into()
    }
}

impl LoadOptions {
    /// Where text encoders go if the rest goes to `device`, and all of it takes `bytes`.
    pub(super) fn text_device(&self, bytes: u64, device: &Device) -> Device {
        match self.budget {
            Some(budget) if bytes.saturating_add(ROOM) > budget && !device.is_cpu() => Device::Cpu,
            _ => device.clone(),
        }
    }
}
