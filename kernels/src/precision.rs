//! The choice between exact and fast products, for the operations that are nothing but products and sums.

use crate::cpu::gemm;

/// How precisely products are formed. Inputs, outputs and sums are `f32` either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// Products of `f32` numbers.
    #[default]
    Full,
    /// Products of numbers rounded to `bf16` (nearest, ties to even), summed in `f32`: a relative error of
    /// about 2⁻⁹ a factor. Computes as [`Precision::Full`] where it would not be faster: on a CPU without
    /// Intel AMX, on devices and types without a fast path, and for layers of few channels; never by the number
    /// of rows, which grows with the batch.
    Bf16,
}

/// Whether [`Precision::Bf16`] does anything on this CPU (else it computes as [`Precision::Full`]).
///
/// On Linux the first call asks the kernel for the process's permission to use AMX.
pub fn bf16_is_accelerated() -> bool {
    gemm::has_bf16()
}
