//! Background removal: IS-Net (Qin et al. 2022), as in RMBG-1.4, for stickers whose background is no flat colour.
//!
//! Loads RMBG-1.4's `model.safetensors` and any IS-Net under the names of the authors' code. Widths are read off the
//! tensors. BiRefNet (RMBG-2.0) and U²-Net are other networks and refused by name.

mod blocks;
mod error;
mod network;
mod remover;

pub use error::MattingError;
pub use remover::BackgroundRemover;
