//! Diffusion networks and their weights. No sampling here, and no devices chosen: a network is built from
//! [`weights::Weights`] on the device these name, and maps tensors to tensors through `darkroom-kernels`.

pub mod adapter;
pub mod arithmetic;
pub mod checkpoint;
pub mod clip;
pub mod controlnet;
pub mod depth;
pub mod face_detector;
mod fields;
mod identity;
mod layers;
pub mod lora;
pub mod matting;
pub mod qwen_image;
pub mod qwen_vl;
pub mod tokenizer;
pub mod unet;
pub mod upscaler;
pub mod vae;
pub mod vae_qwen;
pub mod weights;

pub use arithmetic::{ComputeType, Computed};
pub use darkroom_kernels::{Precision, bf16_is_accelerated, device};
pub use fields::ConfigError;
pub use identity::Identity;
