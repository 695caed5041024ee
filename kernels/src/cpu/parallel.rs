//! Work sharing among the threads of the current rayon pool.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Runs `body(0..tasks)`, each index once, on all threads of the pool. Threads take the next index when they
/// are free, so a core that is busy elsewhere does not hold the others up.
pub(crate) fn for_each(tasks: usize, body: impl Fn(usize) + Sync) {
    let threads = rayon::current_num_threads().min(tasks);
    if threads <= 1 {
        (0..tasks).for_each(body);
        return;
    }
    let next = AtomicUsize::new(0);
    let work = || {
        loop {
            let task = next.fetch_add(1, Ordering::Relaxed);
            if task >= tasks {
                break;
            }
            body(task);
        }
    };
    rayon::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(|_| work());
        }
        work();
    });
}

/// A buffer that several threads write at once, each its own part.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shared<'a, T> {
    start: *mut T,
    buffer: PhantomData<&'a mut [T]>,
}

// SAFETY: only hands out a raw pointer; whoever writes through it promises disjoint parts.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    /// Shares `start` and what follows it; the caller keeps that memory alive and to itself for `'a`.
    pub(crate) fn new(start: *mut T) -> Self {
        Self { start, buffer: PhantomData }
    }

    /// Address of the first element.
    pub(crate) fn get(self) -> *mut T {
        self.start
    }
}
