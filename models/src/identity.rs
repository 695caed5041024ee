//! Numbers that tell sets of weights apart: what recorded passes ([`crate::unet`]) know them by. An address would not do,
//! since another set may come to lie there.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that nothing else in this process has. Copies share it, as they share the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity(u64);

impl Identity {
    /// The next one.
    pub(crate) fn fresh() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}
