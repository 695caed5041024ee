//! The building blocks that networks share: a weight or two and the kernel that applies them.
//!
//! Between the weight views below and the networks above. Activations are channels-last (see `darkroom-kernels`).
//! Matrices and convolution kernels stay in their stored type; the small vectors (norms, biases) are widened to
//! `f32` when they are loaded.

mod blocks;
mod conv2d;
mod feed_forward;
mod layout;
mod linear;
mod norm;
mod resample;
mod resize;
mod resnet;
mod rms_norm;

pub(crate) use blocks::Blocks;
pub(crate) use conv2d::Conv2d;
pub(crate) use feed_forward::TwoLayerMlp;
pub(crate) use layout::{channels_first, channels_last};
pub(crate) use linear::Linear;
pub(crate) use norm::{GroupNorm, LayerNorm};
pub(crate) use resample::{Downsampler, Upsampler};
pub(crate) use resize::{Interpolation, resize};
pub(crate) use resnet::ResnetBlock;
pub(crate) use rms_norm::RmsNorm;
