//! The tile registers: their configuration, and the product of one block of 32×32.
//!
//! The instructions are written in assembly because their intrinsics are not stable.

use std::arch::asm;

/// Rows and columns of a block, two tiles each.
pub(super) const SIDE: usize = 32;
/// Columns of `A` and `W` that one tile holds.
pub(super) const STEP: usize = 32;
/// The size of a tile in `f32`: 16 rows of 64 bytes.
pub(super) const TILE: usize = 256;
/// The size of a step of a packed panel in `f32`: two tiles.
pub(super) const PANEL_STEP: usize = 2 * TILE;
/// The size of a block of sums in `f32`: four tiles.
pub(super) const BLOCK: usize = SIDE * SIDE;

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Eight tiles of 16 rows of 64 bytes.
static WHOLE: Configuration = {
    let mut whole =
        Configuration { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
    let mut tile = 0;
    while tile < 8 {
        whole.row_bytes[tile] = 64;
        whole.rows[tile] = 16;
        tile += 1;
    }
    whole
};

/// The current thread's tiles, configured until this is dropped.
pub(super) struct Tiles {
    /// Tiles belong to a thread.
    _thread: std::marker::PhantomData<*const ()>,
}

impl Tiles {
    /// Configures the current thread's tiles.
    ///
    /// # Safety
    /// AMX is [available](super::available), and the thread has no other `Tiles`.
    pub(super) unsafe fn configure() -> Self {
        // SAFETY: the configuration is valid for palette 1.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const WHOLE, options(readonly, nostack)) };
        Self { _thread: std::marker::PhantomData }
    }

    /// `sums (+)= A · B` for a panel of each, over `steps` steps. `sums` are four tiles `[2][2][16][16]`.
    ///
    /// # Safety
    /// Both panels hold `steps · PANEL_STEP` floats, `sums` holds [`BLOCK`].
    #[inline]
    pub(super) unsafe fn multiply(
        &self,
        a: *const f32,
        b: *const f32,
        steps: usize,
        accumulate: bool,
        sums: *mut f32,
    ) {
        // SAFETY: the tiles are configured; the panels and sums are as large as the caller promises. The
        // compiler keeps nothing in tile registers.
        unsafe {
            asm!(
                "test {accumulate:e}, {accumulate:e}",
                "jnz 2f",
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "jmp 3f",
                "2:",
                "tileloadd tmm0, [{sums} + {stride}]",
                "tileloadd tmm1, [{sums} + {stride} + 1024]",
                "tileloadd tmm2, [{sums} + {stride} + 2048]",
                "tileloadd tmm3, [{sums} + {stride} + 3072]",
                "3:",
                "test {steps}, {steps}",
                "jz 5f",
                "4:",
                "tileloadd tmm4, [{a} + {stride}]",
                "tileloadd tmm6, [{b} + {stride}]",
                "tileloadd tmm7, [{b} + {stride} + 1024]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{a} + {stride} + 1024]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "add {a}, 2048",
                "add {b}, 2048",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "dec {steps}",
                "jnz 4b",
                "5:",
                "tilestored [{sums} + {stride}], tmm0",
                "tilestored [{sums} + {stride} + 1024], tmm1",
                "tilestored [{sums} + {stride} + 2048], tmm2",
                "tilestored [{sums} + {stride} + 3072], tmm3",
                accumulate = in(reg) u32::from(accumulate),
                sums = in(reg) sums,
                stride = in(reg) 64usize,
                a = inout(reg) a => _,
                b = inout(reg) b => _,
                steps = inout(reg) steps => _,
                options(nostack),
            );
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: they were configured on this thread. Released tiles need not be saved at thread switches.
        unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
    }
}
