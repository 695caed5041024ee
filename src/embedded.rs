//! What is compiled into the program: a tiny SDXL that `scripts/tiny_model` trains, and what works beside it.

use std::sync::Arc;

use candle_core::Device;
use darkroom_models::checkpoint::{Checkpoint, CheckpointError};
use darkroom_models::weights::WeightFile;

use crate::catalog::AuxiliaryKind;

static WEIGHTS: &[u8] = include_bytes!("../assets/tiny-sdxl.safetensors");
static CONTROL_NETS: &[(&str, &[u8])] = &[("tiny-canny", include_bytes!("../assets/tiny-canny.safetensors"))];
static LORAS: &[(&str, &[u8])] = &[
    ("tinychan", include_bytes!("../assets/lora-tinychan.safetensors")),
    ("tinyvio", include_bytes!("../assets/lora-tinyvio.safetensors")),
];

/// Opens it, for networks on `device`.
pub fn checkpoint(device: &Device) -> Result<Checkpoint, CheckpointError> {
    let file = WeightFile::from_static("the embedded model", WEIGHTS)?;
    Checkpoint::from_file(&Arc::new(file), device)
}

/// The file as it is compiled in.
pub fn weights() -> &'static [u8] {
    WEIGHTS
}

/// Its size in bytes.
pub fn bytes() -> u64 {
    WEIGHTS.len() as u64
}

/// What is built in of a kind that works beside a model: name and file.
pub fn auxiliaries(kind: AuxiliaryKind) -> &'static [(&'static str, &'static [u8])] {
    match kind {
        AuxiliaryKind::Lora => LORAS,
        AuxiliaryKind::ControlNet => CONTROL_NETS,
        AuxiliaryKind::Depth | AuxiliaryKind::Detector | AuxiliaryKind::Matting | AuxiliaryKind::Upscaler => {
            &[]
        }
    }
}
