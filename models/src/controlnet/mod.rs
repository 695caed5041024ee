//! ControlNet (Zhang et al. 2023) for Stable Diffusion 1.5 and SDXL: a copy of the UNet's downward half that sees a
//! hint picture too (edges, a pose, depth) and tells the UNet what to add to its skips and its middle.
//!
//! [`ControlNet`] is diffusers' `ControlNetModel`. Its residuals go to
//! [`UNet2DConditionModel::forward_with`](crate::unet::UNet2DConditionModel::forward_with), scaled, by
//! [`UNetFeatures::add`](crate::unet::UNetFeatures::add). What a file is, before any of it is loaded, says
//! [`ControlNetKind`].

mod config;
mod error;
mod hint;
mod memory;
mod model;

pub use crate::checkpoint::{ControlNetFamily, ControlNetForm, ControlNetKind};
pub use config::ControlNetConfig;
pub use error::ControlNetError;
pub use model::ControlNet;
