//! The nodes, a section of a file each: its interface and, below it, what it does. CONTRIBUTING says how to add one.

mod primitive;
mod upscale;

use super::registry::Registry;

/// Adds every node.
pub(super) fn register(registry: &mut Registry) {
    primitive::register(registry);
    upscale::register(registry);
}
