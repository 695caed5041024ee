//! Depth from one picture: Depth Anything V2 (Yang et al. 2024), for depth ControlNets and `darkroom preprocess`.
//!
//! A DINOv2 vision transformer (Oquab et al. 2023) and a DPT head (Ranftl et al. 2021). Files are read as their
//! authors publish them (`pretrained.*`, `depth_head.*`) or as transformers does (`backbone.*`, `neck.*`, `head.*`).
//! Nothing in the tensors tells the first Depth Anything, which taps other layers, or the metric models, which end
//! in another function, from this one: such files load and give a wrong depth.

mod config;
mod error;
mod estimator;
mod head;
mod keys;
mod transformer;

pub use config::DepthConfig;
pub use error::DepthError;
pub use estimator::DepthEstimator;
