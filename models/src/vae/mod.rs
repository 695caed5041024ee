//! The autoencoder of latent diffusion (Rombach et al. 2022): pictures to latents and back.
//!
//! [`AutoencoderKl`] does it in one piece; pictures too large for that go through it in overlapping tiles.

mod blocks;
mod config;
mod memory;
mod model;
mod tiled;

pub use config::VaeConfig;
pub use memory::Tiling;
pub use model::AutoencoderKl;
