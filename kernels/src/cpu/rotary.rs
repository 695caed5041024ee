//! Rotary position embedding: pairs of numbers turned by angles that all heads share.

use super::isa::Isa;
use super::parallel::{self, Shared};
use super::vector::{self, Arithmetic, Body};
use crate::RotaryPairs;

/// Floats a task reads.
const TASK_FLOATS: usize = 1 << 14;

/// Writes `x: [b, tokens, heads · 2 half]` with each pair turned to `out`; `cos`, `sin: [tokens, half]`, and `sizes` are
/// tokens, heads and half.
///
/// # Safety
/// `isa` is one the machine has; `x` holds whole batch rows of these sizes, none of which is zero, `out` has room for as
/// many floats, and `cos` and `sin` are as large as that.
pub(crate) unsafe fn rotate(
    isa: Isa,
    x: &[f32],
    cos: &[f32],
    sin: &[f32],
    [tokens, heads, half]: [usize; 3],
    pairs: RotaryPairs,
    out: *mut f32,
) {
    let inner = heads * 2 * half;
    let rows = x.len() / inner;
    let step = (TASK_FLOATS / inner).max(1);
    let out = Shared::new(out);
    parallel::for_each(rows.div_ceil(step), |task| {
        for row in task * step..((task + 1) * step).min(rows) {
            let x = &x[row * inner..][..inner];
            let first = row % tokens * half;
            let (cos, sin) = (&cos[first..][..half], &sin[first..][..half]);
            // SAFETY: each task writes its own rows, which `out` has room for.
            let out = unsafe { out.get().add(row * inner) };
            match pairs {
                RotaryPairs::Adjacent => vector::run(isa, Adjacent { x, cos, sin, out }),
                RotaryPairs::Halves => vector::run(isa, Halves { x, cos, sin, out }),
            }
        }
    });
}

/// The heads of one token, pairs side by side.
struct Adjacent<'a> {
    x: &'a [f32],
    cos: &'a [f32],
    sin: &'a [f32],
    out: *mut f32,
}

impl Body for Adjacent<'_> {
    #[inline(always)]
    fn run<M: Arithmetic>(self) {
        let width = 2 * self.cos.len();
        for (head, x) in self.x.chunks_exact(width).enumerate() {
            let pairs = x.as_chunks::<2>().0.iter().zip(self.cos.iter().zip(self.sin));
            for (i, ([a, b], (cos, sin))) in pairs.enumerate() {
                // SAFETY: `out` is as long as `x`, and here is one of the head's pairs.
                unsafe {
                    let to = self.out.add(head * width + 2 * i);
                    *to = M::multiply_add(*a, *cos, -(b * sin));
                    *to.add(1) = M::multiply_add(*b, *cos, a * sin);
                }
            }
        }
    }
}

/// The heads of one token, the first numbers of all pairs before the second.
struct Halves<'a> {
    x: &'a [f32],
    cos: &'a [f32],
    sin: &'a [f32],
    out: *mut f32,
}

impl Body for Halves<'_> {
    #[inline(always)]
    fn run<M: Arithmetic>(self) {
        let half = self.cos.len();
        for (head, x) in self.x.chunks_exact(2 * half).enumerate() {
            let (a, b) = x.split_at(half);
            let pairs = a.iter().zip(b).zip(self.cos.iter().zip(self.sin));
            for (i, ((a, b), (cos, sin))) in pairs.enumerate() {
                // SAFETY: `out` is as long as `x`, and here is one of the head's pairs.
                unsafe {
                    let to = self.out.add(head * 2 * half + i);
                    *to = M::multiply_add(*a, *cos, -(b * sin));
                    *to.add(half) = M::multiply_add(*b, *cos, a * sin);
                }
            }
        }
    }
}
