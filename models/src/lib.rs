//! Diffusion networks and their weights. No sampling here, and no devices chosen: a network is built from
//! [`weights::Weights`] on the device these name, and maps tensors to tensors through `darkroom-kernels`.

mod fields;
mod layers;
pub mod clip;
pub mod tokenizer;
pub mod unet;
pub mod vae;
pub mod weights;

pub use fields::ConfigError;
