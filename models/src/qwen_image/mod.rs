//! Qwen-Image's denoiser: a dual-stream diffusion transformer (diffusers' `QwenImageTransformer2DModel`; Wu et al. 2025,
//! blocks as in Esser et al. 2024). A noisy latent, its noise level and a prompt to the flow's velocity.
//!
//! The picture's tokens and the prompt's are two streams with weights of their own that see each other in every block.
//! ComfyUI's file calls all tensors as diffusers does.

mod attention;
mod block;
mod config;
mod embedding;
mod input;
mod memory;
mod model;
mod pack;
mod rope;

pub use config::QwenImageConfig;
pub use input::QwenImageInput;
pub use model::QwenImageTransformer2DModel;
