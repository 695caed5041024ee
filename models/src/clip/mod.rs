//! The CLIP text encoders.

mod config;

pub use config::{ClipTextConfig, HiddenAct};
