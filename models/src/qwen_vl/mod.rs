//! Qwen2.5-VL's language model (Bai et al. 2025) as a text encoder: tokens to the hidden states that condition
//! Qwen-Image. transformers' `Qwen2_5_VLTextModel`; the tower that sees pictures is not part of it.

mod attention;
mod config;
mod layer;
mod memory;
mod model;
mod template;

pub use config::QwenVlTextConfig;
pub use model::{MAX_TOKENS, QwenVlTextEncoder};
pub use template::{Prompt, prompt_ids};
