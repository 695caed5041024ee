//! Matrix multiplication of numbers rounded to `bf16`, summed in `f32`, with Intel AMX: the path of
//! [`Precision::Bf16`](crate::Precision::Bf16), beside the driver and kernels that compute in `f32`.
//!
//! Reference: Intel Architecture Instruction Set Extensions Programming Reference, chapter 3 (AMX).

mod driver;
mod pack;
mod tiles;

use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
use std::sync::OnceLock;

pub(crate) use driver::multiply;

/// Whether this process may use AMX on `bf16`. Asks the operating system once, at the first call.
pub(crate) fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512bf16")
            && has_tiles()
            && tiles_are_saved()
            && tiles_are_permitted()
    })
}

/// Whether the CPU has tiles and multiplies `bf16` with them.
#[allow(unused_unsafe, reason = "`cpuid` is a safe function in newer compilers")]
fn has_tiles() -> bool {
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    // SAFETY: every 64-bit CPU has the instruction.
    let features = unsafe { if __cpuid(0).eax >= 7 { __cpuid_count(7, 0).edx } else { 0 } };
    features & (AMX_BF16 | AMX_TILE) == AMX_BF16 | AMX_TILE
}

/// Whether the operating system saves tiles when it switches threads.
#[allow(unused_unsafe, reason = "as above")]
fn tiles_are_saved() -> bool {
    const OSXSAVE: u32 = 1 << 27;
    const TILE_STATE: u64 = 1 << 17 | 1 << 18;
    // SAFETY: every 64-bit CPU has `cpuid`; `OSXSAVE` says that `xgetbv` works.
    unsafe { __cpuid(1).ecx & OSXSAVE != 0 && xcr0() & TILE_STATE == TILE_STATE }
}

#[target_feature(enable = "xsave")]
unsafe fn xcr0() -> u64 {
    // SAFETY: register 0 exists wherever the instruction does.
    unsafe { _xgetbv(0) }
}

/// Asks Linux to let all threads of this process use tiles (their state is large, so it is opt-in).
fn tiles_are_permitted() -> bool {
    const ARCH_PRCTL: isize = 158;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const XFEATURE_XTILEDATA: usize = 18;
    let result: isize;
    // SAFETY: `arch_prctl(ARCH_REQ_XCOMP_PERM, feature)` takes no pointer; `syscall` changes `rax`, `rcx`
    // and `r11` alone.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    result == 0
}

#[cfg(test)]
mod tests;
