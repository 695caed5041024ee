//! The conditional UNet of Stable Diffusion 1.5 and SDXL (Rombach et al. 2022, Podell et al. 2023): a noisy
//! latent, its noise level and a prompt to the noise in it.
//!
//! [`UNet2DConditionModel`] is the network; its downward half is a part of its own so that other networks can
//! be built on it.

mod blocks;
mod condition;
mod config;
mod encoder;
mod free_u;
mod memory;
mod model;
mod transformer;

pub use condition::UNetInput;
pub(crate) use condition::{Condition, ConditionEmbedding};
pub use config::{AdditionConfig, SIZE_IDS, UNetConfig};
pub(crate) use encoder::UNetEncoder;
pub use encoder::UNetFeatures;
pub use free_u::{FreeU, FreeUScales};
pub(crate) use memory::encoder_elements;
pub use model::{Adjust, ShallowFeatures, Steering, SteeringKey, UNet2DConditionModel};
