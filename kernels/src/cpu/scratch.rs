//! Aligned working memory, kept by each thread between operations so that it is not mapped and zeroed anew.

use std::cell::{Cell, RefCell};

/// One cache line of `f32`.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line {
    _floats: [f32; 16],
}

thread_local! {
    /// How many calls of [`with`] this thread is inside of.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
    /// The buffer of each depth, empty while in use.
    static KEPT: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// Buffers larger than this (bytes) are given back instead of kept.
const KEEP_BYTES: usize = 32 << 20;

/// Calls `body` with at least `len` floats, 64-byte aligned, of unspecified content. Nested calls work: the
/// inner one gets memory of its own.
pub(crate) fn with<R>(len: usize, body: impl FnOnce(&mut [f32]) -> R) -> R {
    let lines = len.div_ceil(16);
    let depth = DEPTH.replace(DEPTH.get() + 1);
    let mut buffer = KEPT.with_borrow_mut(|kept| kept.get_mut(depth).map(std::mem::take).unwrap_or_default());
    if buffer.len() < lines {
        drop(buffer);
        buffer = vec![Line { _floats: [0.0; 16] }; lines];
    }
    // SAFETY: a `Line` is sixteen floats without padding, and the exclusive borrow lasts for the call.
    let floats = unsafe { std::slice::from_raw_parts_mut(buffer.as_mut_ptr().cast::<f32>(), lines * 16) };
    let result = body(floats);
    DEPTH.set(depth);
    if buffer.len() * size_of::<Line>() <= KEEP_BYTES {
        KEPT.with_borrow_mut(|kept| {
            if kept.len() <= depth {
                kept.resize_with(depth + 1, Vec::new);
            }
            kept[depth] = buffer;
        });
    }
    result
}
