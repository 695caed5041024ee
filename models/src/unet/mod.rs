//! The conditional UNet of Stable Diffusion 1.5 and SDXL.

mod config;

pub use config::{AdditionConfig, SIZE_IDS, UNetConfig};
