//! The autoencoder of latent diffusion (Rombach et al. 2022): pictures to latents and back.
//!
//! [`AutoencoderKl`] does it in one piece; pictures too large for that go through it in overlapping tiles. How tiles are
//! laid and blended, and when they are needed, does not depend on the network: `vae_qwen` uses it too.

mod blocks;
mod config;
pub(crate) mod memory;
mod model;
pub(crate) mod tiled;

pub use config::VaeConfig;
pub use memory::Tiling;
pub use model::AutoencoderKl;
pub(crate) use model::check_picture;
