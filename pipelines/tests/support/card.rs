//! The CUDA card that tests draw on, opened once: each opening has streams of its own.

use std::sync::OnceLock;

use candle_core::Device;
use darkroom_models::device::{self, DeviceName};

/// Fails where none answers.
pub(crate) fn card() -> &'static Device {
    static CARD: OnceLock<Device> = OnceLock::new();
    CARD.get_or_init(|| {
        device::open(DeviceName::Cuda(0)).expect("no card answers: scripts/cuda/test brings an emulator").0
    })
}
