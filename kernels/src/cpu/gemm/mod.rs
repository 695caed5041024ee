//! Packed matrix multiplication, `C = A · Wᵀ (+ bias)`, shared by linear layers and convolutions.
//!
//! Laid out like BLIS (Van Zee & van de Geijn 2015): slices of both matrices are copied into panels that a
//! register-blocked kernel walks linearly. Packing is where weights are widened to `f32` and where a picture
//! is read as its im2col matrix, so neither ever exists as a whole.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod driver;
mod pack;
mod portable;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
pub(crate) use driver::{Problem, multiply};
pub(crate) use pack::{Dense, Im2col, PanelSource};
pub(crate) use portable::{Portable, multiply_add};

use crate::Precision;
use crate::cpu::element::Element;
use crate::cpu::isa::Isa;

/// Where a kernel's tile goes and what it starts from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tile {
    /// First element of the tile.
    pub(crate) c: *mut f32,
    /// Distance between rows of `C`.
    pub(crate) ldc: usize,
    /// Add to what `C` holds instead of overwriting it.
    pub(crate) accumulate: bool,
    /// One number a column to add; null for none.
    pub(crate) bias: *const f32,
}

/// One instruction set's packing and multiplication.
pub(crate) trait Kernel: Send + Sync + 'static {
    /// Rows of a tile, and the stride of a packed panel of `A`.
    const MR: usize;
    /// Columns of a tile, and the stride of a packed panel of `B`.
    const NR: usize;

    /// Transposes rows into a panel: `panel[k · stride + i] = rows[i][k]` for `k < len`, and zeros for
    /// `rows.len() <= i < stride`.
    ///
    /// # Safety
    /// The CPU has the instructions; every row has `len` elements, the panel `len · stride`;
    /// `rows.len() <= stride`, and `stride` is `MR` or `NR`.
    unsafe fn pack<E: Element>(rows: &[*const E], len: usize, panel: *mut f32, stride: usize);

    /// `C[rows, cols] (+)= Σ_k a[k · MR + row] · b[k · NR + col]`.
    ///
    /// # Safety
    /// The CPU has the instructions; `1 <= rows <= MR`, `1 <= cols <= NR`; the panels have `depth` steps and
    /// the tile's rows and bias `cols` elements; `b` is 64-byte aligned.
    unsafe fn tile(rows: usize, cols: usize, depth: usize, a: *const f32, b: *const f32, tile: Tile);
}

/// Runs `$body` with the type `$kernel` standing for the kernel of `$isa`.
macro_rules! with_kernel {
    ($isa:expr, $kernel:ident => $body:expr) => {
        match $isa {
            #[cfg(target_arch = "x86_64")]
            $crate::cpu::isa::Isa::Avx512 => {
                type $kernel = $crate::cpu::gemm::Avx512;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            $crate::cpu::isa::Isa::Avx2 => {
                type $kernel = $crate::cpu::gemm::Avx2;
                $body
            }
            $crate::cpu::isa::Isa::Portable => {
                type $kernel = $crate::cpu::gemm::Portable;
                $body
            }
        }
    };
}
pub(crate) use with_kernel;

/// Whether this machine multiplies `bf16` faster than `f32`.
pub(crate) fn has_bf16() -> bool {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    let available = amx::available();
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    let available = false;
    available
}

/// Whether products `[_, depth] · [n, depth]ᵀ` at `precision` are formed in `bf16`. The number of rows has no
/// say, though few do not repay the packing: it grows with the batch, and a picture must not change with it.
pub(crate) fn takes_bf16(precision: Precision, n: usize, depth: usize) -> bool {
    precision == Precision::Bf16 && n >= BF16_COLUMNS && depth >= BF16_DEPTH && has_bf16()
}

/// The fewest columns and the least depth that fill enough of a tile.
const BF16_COLUMNS: usize = 4;
const BF16_DEPTH: usize = 32;

/// Solves `problem` into `c` at `precision`.
///
/// # Safety
/// `isa` is one the machine has; otherwise as for [`multiply`].
pub(crate) unsafe fn solve<A: PanelSource, W: PanelSource>(
    isa: Isa,
    precision: Precision,
    problem: &Problem<'_, A, W>,
    c: *mut f32,
) {
    // SAFETY: the caller's promises are the ones asked for; AMX is there where `bf16` is taken.
    unsafe {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if takes_bf16(precision, problem.n, problem.depth) {
            amx::multiply(problem, c);
            return;
        }
        #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
        let _ = precision;
        with_kernel!(isa, K => multiply::<K, _, _>(problem, c));
    }
}

/// Calls `$function::<ROWS>` with the constant equal to the run-time `$rows`.
macro_rules! with_rows {
    ($rows:expr, [$($n:literal)*], $function:ident $arguments:tt) => {
        match $rows {
            $($n => $function::<$n> $arguments,)*
            _ => {}
        }
    };
}
pub(crate) use with_rows;
