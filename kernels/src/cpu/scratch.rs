//! Aligned working memory, kept by each thread between operations so that it is not mapped and zeroed anew.

use std::cell::Cell;

/// One cache line of `f32`.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line {
    _floats: [f32; 16],
}

thread_local! {
    static KEPT: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
}

/// Buffers larger than this (bytes) are given back instead of kept.
const KEEP_BYTES: usize = 16 << 20;

/// Calls `body` with at least `len` floats, 64-byte aligned, of unspecified content. Nested calls work: the
/// inner one gets memory of its own.
pub(crate) fn with<R>(len: usize, body: impl FnOnce(&mut [f32]) -> R) -> R {
    let lines = len.div_ceil(16);
    let mut buffer = KEPT.take();
    if buffer.len() < lines {
        buffer = vec![Line { _floats: [0.0; 16] }; lines];
    }
    // SAFETY: a `Line` is sixteen floats without padding, and the exclusive borrow lasts for the call.
    let floats = unsafe { std::slice::from_raw_parts_mut(buffer.as_mut_ptr().cast::<f32>(), lines * 16) };
    let result = body(floats);
    if buffer.len() * size_of::<Line>() <= KEEP_BYTES {
        KEPT.set(buffer);
    }
    result
}
