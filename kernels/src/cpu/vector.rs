//! Plain loops compiled once per instruction set: the compiler vectorises them, [`run`] picks at run time.

use super::isa::Isa;

/// `x · y + z`, in the way the instruction set does it fastest.
pub(crate) trait Arithmetic {
    /// `x · y + z`.
    fn multiply_add(x: f32, y: f32, z: f32) -> f32;
}

/// One rounding: for CPUs where it is an instruction.
#[cfg(target_arch = "x86_64")]
struct Fused;

#[cfg(target_arch = "x86_64")]
impl Arithmetic for Fused {
    #[inline(always)]
    fn multiply_add(x: f32, y: f32, z: f32) -> f32 {
        x.mul_add(y, z)
    }
}

/// Fused only where that belongs to the target's baseline; elsewhere it would be a library call.
struct Baseline;

impl Arithmetic for Baseline {
    #[inline(always)]
    fn multiply_add(x: f32, y: f32, z: f32) -> f32 {
        super::gemm::multiply_add(x, y, z)
    }
}

/// A loop to be vectorised.
pub(crate) trait Body {
    /// The loop. Implementations are `#[inline(always)]`, or they are not compiled for the instruction set.
    fn run<M: Arithmetic>(self);
}

/// Runs `body` with the instructions of `isa`, which must be one that this machine has.
pub(crate) fn run(isa: Isa, body: impl Body) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an `Isa` only comes from detection.
        Isa::Avx512 => unsafe { avx512(body) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { avx2(body) },
        Isa::Portable => body.run::<Baseline>(),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn avx512(body: impl Body) {
    body.run::<Fused>();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(body: impl Body) {
    body.run::<Fused>();
}
