//! Qwen-Image's autoencoder (diffusers' `AutoencoderKLQwenImage`, Wan 2.1's in another training), for single pictures.
//!
//! The network is made for video: its convolutions see the frames before their own, and what is before the first is
//! zeros. Of a single picture they are plain 2-D convolutions with the last frame of their kernels, and the
//! convolutions over time between levels (`time_conv`) have nothing to do. How large pictures are cut into tiles is
//! `vae`'s matter.

mod blocks;
mod config;
mod detect;
mod memory;
mod model;
mod tiled;

pub use config::QwenVaeConfig;
pub use model::AutoencoderKlQwenImage;
