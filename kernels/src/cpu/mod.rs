//! Fast paths for CPU tensors: `f32` activations, weights in `f32`, `f16`, `bf16` or 8 bits.
//!
//! The public functions of the crate check shapes and then ask for these; whatever they do not take (another
//! device, another activation type) goes to [`crate::reference`]. Instruction sets are chosen at run time.

pub(crate) mod attention;
pub(crate) mod element;
pub(crate) mod gemm;
pub(crate) mod isa;
pub(crate) mod math;
pub(crate) mod norm;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
pub(crate) mod oracle;
pub(crate) mod parallel;
pub(crate) mod pointwise;
pub(crate) mod rotary;
pub(crate) mod scratch;
pub(crate) mod tensors;
pub(crate) mod vector;
pub(crate) mod winograd;
