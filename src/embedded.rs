//! The model that is compiled into the program: a tiny SDXL that `scripts/tiny_model` trains.

use std::sync::Arc;

use candle_core::Device;
use darkroom_models::checkpoint::{Checkpoint, CheckpointError};
use darkroom_models::weights::WeightFile;

static WEIGHTS: &[u8] = include_bytes!("../assets/tiny-sdxl.safetensors");

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
