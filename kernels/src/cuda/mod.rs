//! CUDA paths: kernels of our own, compiled for the card at run time, and NVIDIA's libraries where they are better.
//!
//! As in [`crate::cpu`], the public functions of the crate check shapes and come here for tensors on a CUDA device.
//! Activations are `f16`, `bf16` or `f32`; what is computed between loading and storing an element is `f32`. All work
//! of a device goes to its one stream, in order, and nothing here waits for it: a step can be captured as a graph.

pub(crate) mod attention;
pub(crate) mod canny;
pub(crate) mod compile;
pub(crate) mod conv2d;
pub mod cudnn;
pub(crate) mod device;
pub(crate) mod embedding;
pub(crate) mod graph;
pub(crate) mod group_norm;
pub(crate) mod image;
pub(crate) mod launch;
pub(crate) mod layer_norm;
pub mod matmul;
pub(crate) mod modulation;
pub(crate) mod operand;
pub(crate) mod packs;
pub(crate) mod pointwise;
pub(crate) mod rms_norm;
pub(crate) mod rotary;
pub(crate) mod row_threads;
pub(crate) mod sampling;
pub(crate) mod view;

pub use attention::{AttentionPath, attention_by};
pub use canny::{CannyRule, canny};
pub use compile::{CompileError, set_cache_folder};
pub use conv2d::{CONV_VARIABLE, ConvPath, conv2d_by};
