//! Plain loops compiled once per instruction set: the compiler vectorises them, [`run`] picks at run time.

use super::isa::Isa;

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// The arithmetic of an instruction set: scalars for loops the compiler vectorises by itself, and a vector
/// for those it does not.
pub(crate) trait Arithmetic {
    /// Some numbers side by side.
    type Vector: Copy;
    /// How many.
    const LANES: usize;

    /// `x · y + z`, in the way the instruction set does it fastest.
    fn multiply_add(x: f32, y: f32, z: f32) -> f32;
    /// The first `LANES` elements of `from`, which has at least as many.
    fn load(from: &[f32]) -> Self::Vector;
    /// Writes the first `LANES` elements of `to`, which has at least as many.
    fn store(to: &mut [f32], x: Self::Vector);
    /// `x` in every lane.
    fn splat(x: f32) -> Self::Vector;
    /// `x + y`.
    fn add(x: Self::Vector, y: Self::Vector) -> Self::Vector;
    /// `x − y`.
    fn sub(x: Self::Vector, y: Self::Vector) -> Self::Vector;
    /// `x · factor + z`.
    fn scale_add(x: Self::Vector, factor: f32, z: Self::Vector) -> Self::Vector;
}

/// An x86 instruction set with fused multiplication and vectors of its own.
#[cfg(target_arch = "x86_64")]
macro_rules! x86 {
    ($name:ident, $vector:ident, $lanes:literal, $load:ident, $store:ident, $splat:ident, $add:ident, $sub:ident, $fma:ident) => {
        struct $name;

        // SAFETY of the blocks: this type is only used inside `run`, behind the detection of its
        // instructions; slices are indexed to at least one vector before their pointers are used.
        impl Arithmetic for $name {
            type Vector = $vector;
            const LANES: usize = $lanes;

            #[inline(always)]
            fn multiply_add(x: f32, y: f32, z: f32) -> f32 {
                x.mul_add(y, z)
            }
            #[inline(always)]
            fn load(from: &[f32]) -> $vector {
                let from = &from[..$lanes];
                // SAFETY: see above.
                unsafe { $load(from.as_ptr()) }
            }
            #[inline(always)]
            fn store(to: &mut [f32], x: $vector) {
                let to = &mut to[..$lanes];
                // SAFETY: see above.
                unsafe { $store(to.as_mut_ptr(), x) }
            }
            #[inline(always)]
            fn splat(x: f32) -> $vector {
                // SAFETY: see above.
                unsafe { $splat(x) }
            }
            #[inline(always)]
            fn add(x: $vector, y: $vector) -> $vector {
                // SAFETY: see above.
                unsafe { $add(x, y) }
            }
            #[inline(always)]
            fn sub(x: $vector, y: $vector) -> $vector {
                // SAFETY: see above.
                unsafe { $sub(x, y) }
            }
            #[inline(always)]
            fn scale_add(x: $vector, factor: f32, z: $vector) -> $vector {
                // SAFETY: see above.
                unsafe { $fma(x, $splat(factor), z) }
            }
        }
    };
}
#[cfg(target_arch = "x86_64")]
x86!(
    Wide,
    __m512,
    16,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_set1_ps,
    _mm512_add_ps,
    _mm512_sub_ps,
    _mm512_fmadd_ps
);
#[cfg(target_arch = "x86_64")]
x86!(
    Narrow,
    __m256,
    8,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_set1_ps,
    _mm256_add_ps,
    _mm256_sub_ps,
    _mm256_fmadd_ps
);

/// What belongs to the target's baseline.
struct Baseline;

impl Arithmetic for Baseline {
    type Vector = [f32; 4];
    const LANES: usize = 4;

    #[inline(always)]
    fn multiply_add(x: f32, y: f32, z: f32) -> f32 {
        super::gemm::multiply_add(x, y, z)
    }
    #[inline(always)]
    fn load(from: &[f32]) -> [f32; 4] {
        [from[0], from[1], from[2], from[3]]
    }
    #[inline(always)]
    fn store(to: &mut [f32], x: [f32; 4]) {
        to[..4].copy_from_slice(&x);
    }
    #[inline(always)]
    fn splat(x: f32) -> [f32; 4] {
        [x; 4]
    }
    #[inline(always)]
    fn add(x: [f32; 4], y: [f32; 4]) -> [f32; 4] {
        [x[0] + y[0], x[1] + y[1], x[2] + y[2], x[3] + y[3]]
    }
    #[inline(always)]
    fn sub(x: [f32; 4], y: [f32; 4]) -> [f32; 4] {
        [x[0] - y[0], x[1] - y[1], x[2] - y[2], x[3] - y[3]]
    }
    #[inline(always)]
    fn scale_add(x: [f32; 4], factor: f32, z: [f32; 4]) -> [f32; 4] {
        let lane = |i: usize| Self::multiply_add(x[i], factor, z[i]);
        [lane(0), lane(1), lane(2), lane(3)]
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
    body.run::<Wide>();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(body: impl Body) {
    body.run::<Narrow>();
}
