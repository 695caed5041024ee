//! Tensor operations of diffusion networks, one public function each, one file each.
//!
//! This crate is the lowest layer: networks (`darkroom-models`) call it and it calls only candle. Every
//! operation exists as a plain candle composition in [`reference`], which is the oracle of the property tests
//! and what runs where nothing faster exists; on the CPU, and with the feature `cuda` on NVIDIA's GPUs, the
//! functions here choose their own fast path.
//!
//! Conventions, everywhere:
//! - Activations are channels-last: pictures are `[batch, height, width, channels]`, token sequences are
//!   `[batch, tokens, channels]`, so going from one to the other is a reshape and never a copy.
//! - Activations are `f32` on the CPU. Weights stay in the type they are stored in (`f32`, `f16`, `bf16`, or the
//!   8 bits of [`Fp8Weight`]) and are widened a tile at a time. [`linear_at`] and [`conv2d_at`] round both to `bf16` on request.
//! - Convolution weights are `[out, kernel_h, kernel_w, in]`, linear weights `[out, in]`.

mod activation;
mod add;
mod add_linear;
mod add_rows;
mod attention;
mod concat;
mod conv2d;
mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod device;
mod e4m3;
mod fp8;
mod geglu;
mod group_norm;
mod layer_norm;
mod linear;
mod low_rank;
mod modulation;
mod precision;
pub mod reference;
mod replay;
mod rgb;
mod rms_norm;
mod rotary;
pub mod sampling;
mod sinusoid;
mod swiglu;
mod upsample;

pub use activation::{Activation, activate};
pub use add::{add, add_row_shift};
pub use add_linear::add_linear_to_rows;
pub use add_rows::add_to_rows;
pub use attention::{AttentionMask, attention};
pub use candle_core::{Error, Result};
pub use concat::concat_channels;
pub use conv2d::{Conv2dGeometry, Padding, conv2d, conv2d_add, conv2d_at, conv2d_upsampled_2x};
pub use device::multiplies_bf16;
pub use fp8::{
    Fp8Scaling, Fp8Weight, fp8_scaling, linear_fp8, linear_widened, number_of_e4m3, quantize as quantize_fp8,
    supports_fp8,
};
pub use geglu::geglu;
pub use group_norm::{group_norm, group_norm_shifted};
pub use layer_norm::{add_layer_norm, layer_norm};
pub use linear::{linear, linear_add, linear_at};
pub use low_rank::{LowRank, add_low_rank_to_rows};
pub use modulation::{add_gated, modulated_layer_norm};
pub use precision::{Precision, bf16_is_accelerated};
pub use replay::Replays;
pub use rgb::to_rgb8;
pub use rms_norm::rms_norm;
pub use rotary::{RotaryPairs, rotary};
pub use sinusoid::sinusoid;
pub use swiglu::swiglu;
pub use upsample::upsample_nearest_2x;
