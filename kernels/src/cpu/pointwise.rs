//! Operations that touch each element once: activations, gates, scales of columns, nearest upsampling.

use super::isa::Isa;
use super::math;
use super::parallel::{self, Shared};
use super::vector::{self, Arithmetic, Body};
use crate::Activation;

/// Floats a task writes.
const TASK_FLOATS: usize = 1 << 14;

/// Writes `activation` of every element of `x` to `out`.
///
/// # Safety
/// `isa` is one the machine has; `out` has room for `x.len()` floats.
pub(crate) unsafe fn activate(isa: Isa, x: &[f32], activation: Activation, out: *mut f32) {
    let out = Shared::new(out);
    parallel::for_each(x.len().div_ceil(TASK_FLOATS), |task| {
        let first = task * TASK_FLOATS;
        let x = &x[first..(first + TASK_FLOATS).min(x.len())];
        // SAFETY: each task writes its own elements.
        let out = unsafe { out.get().add(first) };
        match activation {
            // SAFETY: as above.
            Activation::Identity => unsafe { out.copy_from_nonoverlapping(x.as_ptr(), x.len()) },
            Activation::Silu => vector::run(isa, Silu { x, out }),
            Activation::Gelu => vector::run(isa, Gelu { x, out }),
            Activation::QuickGelu => vector::run(isa, QuickGelu { x, out }),
            Activation::GeluTanh => vector::run(isa, GeluTanh { x, out }),
        }
    });
}

/// A loop that writes `$expression` of each element.
macro_rules! map {
    ($(#[$doc:meta])* $name:ident, $function:ident) => {
        $(#[$doc])*
        struct $name<'a> {
            x: &'a [f32],
            out: *mut f32,
        }

        impl Body for $name<'_> {
            #[inline(always)]
            fn run<M: Arithmetic>(self) {
                for (i, &x) in self.x.iter().enumerate() {
                    // SAFETY: `out` has room for as many elements as `x` has.
                    unsafe { *self.out.add(i) = math::$function::<M>(x) };
                }
            }
        }
    };
}
map!(
    /// See [`math::silu`].
    Silu,
    silu
);
map!(
    /// See [`math::gelu`].
    Gelu,
    gelu
);
map!(
    /// See [`math::quick_gelu`].
    QuickGelu,
    quick_gelu
);
map!(
    /// See [`math::gelu_tanh`].
    GeluTanh,
    gelu_tanh
);

/// Writes `x[.., ..c] · gelu(x[.., c..])` to `out`.
///
/// # Safety
/// `isa` is one the machine has; `x` holds whole rows of `2 · c` floats, `out` has room for half as many;
/// `c` is not zero.
pub(crate) unsafe fn geglu(isa: Isa, x: &[f32], c: usize, out: *mut f32) {
    let rows = x.len() / (2 * c);
    let step = (TASK_FLOATS / c).max(1);
    let out = Shared::new(out);
    parallel::for_each(rows.div_ceil(step), |task| {
        let first = task * step;
        for row in first..(first + step).min(rows) {
            let (value, gate) = x[row * 2 * c..(row + 1) * 2 * c].split_at(c);
            // SAFETY: each task writes its own rows.
            let out = unsafe { out.get().add(row * c) };
            vector::run(isa, Gate { value, gate, out });
        }
    });
}

/// `value · gelu(gate)`.
struct Gate<'a> {
    value: &'a [f32],
    gate: &'a [f32],
    out: *mut f32,
}

impl Body for Gate<'_> {
    #[inline(always)]
    fn run<M: Arithmetic>(self) {
        for (i, (&value, &gate)) in self.value.iter().zip(self.gate).enumerate() {
            // SAFETY: `out` has room for as many elements as there are gates.
            unsafe { *self.out.add(i) = value * math::gelu::<M>(gate) };
        }
    }
}

/// Writes `silu(gate) · value` to `out`.
///
/// # Safety
/// `isa` is one the machine has; `value` is as long as `gate`, and `out` has room for as many floats.
pub(crate) unsafe fn swiglu(isa: Isa, gate: &[f32], value: &[f32], out: *mut f32) {
    let out = Shared::new(out);
    parallel::for_each(gate.len().div_ceil(TASK_FLOATS), |task| {
        let first = task * TASK_FLOATS;
        let own = first..(first + TASK_FLOATS).min(gate.len());
        // SAFETY: each task writes its own elements.
        let out = unsafe { out.get().add(first) };
        vector::run(isa, SiluGate { value: &value[own.clone()], gate: &gate[own], out });
    });
}

/// `silu(gate) · value`.
struct SiluGate<'a> {
    value: &'a [f32],
    gate: &'a [f32],
    out: *mut f32,
}

impl Body for SiluGate<'_> {
    #[inline(always)]
    fn run<M: Arithmetic>(self) {
        for (i, (&value, &gate)) in self.value.iter().zip(self.gate).enumerate() {
            // SAFETY: `out` has room for as many elements as there are gates.
            unsafe { *self.out.add(i) = math::silu::<M>(gate) * value };
        }
    }
}

/// Writes `x + gate · y` to `out`; `x`, `y: [b, tokens, channels]`, `gate: [b, channels]`.
///
/// # Safety
/// `isa` is one the machine has; the slices are as large as that, no side being zero, and `out` as `x`.
pub(crate) unsafe fn add_gated(
    isa: Isa,
    x: &[f32],
    y: &[f32],
    gate: &[f32],
    [tokens, channels]: [usize; 2],
    out: *mut f32,
) {
    let rows = x.len() / channels;
    let step = (TASK_FLOATS / channels).max(1);
    let out = Shared::new(out);
    parallel::for_each(rows.div_ceil(step), |task| {
        for row in task * step..((task + 1) * step).min(rows) {
            let own = row * channels..(row + 1) * channels;
            let gate = &gate[row / tokens * channels..][..channels];
            // SAFETY: each task writes its own rows.
            let out = unsafe { out.get().add(row * channels) };
            vector::run(isa, Gated { x: &x[own.clone()], y: &y[own], gate, out });
        }
    });
}

/// `x + gate · y`.
struct Gated<'a> {
    x: &'a [f32],
    y: &'a [f32],
    gate: &'a [f32],
    out: *mut f32,
}

impl Body for Gated<'_> {
    #[inline(always)]
    fn run<M: Arithmetic>(self) {
        for (i, ((&x, &y), &gate)) in self.x.iter().zip(self.y).zip(self.gate).enumerate() {
            // SAFETY: `out` has room for as many elements as `x` has.
            unsafe { *self.out.add(i) = M::multiply_add(y, gate, x) };
        }
    }
}

/// `y · scales + bias + residual` in place, for `rows` rows of `y`.
///
/// # Safety
/// `isa` is one the machine has; `y` holds `rows · scales.len()` floats, which nobody else touches; `bias` is as long as
/// `scales`, which is not empty, and `residual` as `y`.
pub(crate) unsafe fn scale_columns(
    isa: Isa,
    y: *mut f32,
    rows: usize,
    scales: &[f32],
    bias: &[f32],
    residual: Option<&[f32]>,
) {
    let width = scales.len();
    let step = (TASK_FLOATS / width).max(1);
    let y = Shared::new(y);
    parallel::for_each(rows.div_ceil(step), |task| {
        let first = task * step;
        for row in first..(first + step).min(rows) {
            // SAFETY: each task has its own rows.
            let y = unsafe { std::slice::from_raw_parts_mut(y.get().add(row * width), width) };
            let residual = residual.map(|residual| &residual[row * width..][..width]);
            vector::run(isa, ScaleColumns { y, scales, bias, residual });
        }
    });
}

/// `y · scales + bias + residual` of one row.
struct ScaleColumns<'a> {
    y: &'a mut [f32],
    scales: &'a [f32],
    bias: &'a [f32],
    residual: Option<&'a [f32]>,
}

impl Body for ScaleColumns<'_> {
    #[inline(always)]
    fn run<M: Arithmetic>(self) {
        let scaled = self.y.iter_mut().zip(self.scales).zip(self.bias);
        match self.residual {
            Some(residual) => {
                for (((y, &scale), &bias), &residual) in scaled.zip(residual) {
                    *y = M::multiply_add(*y, scale, bias) + residual;
                }
            }
            None => {
                for ((y, &scale), &bias) in scaled {
                    *y = M::multiply_add(*y, scale, bias);
                }
            }
        }
    }
}

/// Repeats each pixel of `x: [lines, width, c]` in both directions.
///
/// # Safety
/// `x` holds `lines · width · c` floats and `out` has room for four times as many.
pub(crate) unsafe fn upsample_nearest_2x(x: &[f32], lines: usize, width: usize, c: usize, out: *mut f32) {
    let out = Shared::new(out);
    parallel::for_each(lines, |line| {
        let wide = 2 * width * c;
        // SAFETY: each task writes the two lines that its own becomes.
        unsafe {
            let to = out.get().add(line * 2 * wide);
            for pixel in 0..width {
                let from = x[(line * width + pixel) * c..][..c].as_ptr();
                to.add(2 * pixel * c).copy_from_nonoverlapping(from, c);
                to.add((2 * pixel + 1) * c).copy_from_nonoverlapping(from, c);
            }
            to.add(wide).copy_from_nonoverlapping(to, wide);
        }
    });
}
