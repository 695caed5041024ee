//! CLIP text encoders (Radford et al. 2021): tokens to the hidden states that condition the UNet.
//!
//! One code for OpenAI's CLIP-L and OpenCLIP's bigG; [`ClipTextConfig`] tells them apart.

mod config;
mod embedding;
mod layer;
mod text_encoder;

pub use config::{ClipTextConfig, HiddenAct};
pub use embedding::{Embedding, EmbeddingError};
pub use text_encoder::{ClipEncoding, ClipTextEncoder, GivenVector, HiddenLayer};
