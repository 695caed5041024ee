//! The nodes, a section of a file each: its interface and, below it, what it does. CONTRIBUTING says how to add one.

mod conditioning;
mod control_net;
mod custom_sampling;
mod inpaint;
mod ksampler;
mod loaders;
mod lora;
mod model_patches;
mod primitive;
mod sampling;
mod sigmas;
mod text;
mod upscale;
mod vae;

use super::registry::Registry;

/// Adds every node.
pub(super) fn register(registry: &mut Registry) {
    primitive::register(registry);
    upscale::register(registry);
    conditioning::register(registry);
    control_net::register(registry);
    custom_sampling::register(registry);
    inpaint::register(registry);
    ksampler::register(registry);
    loaders::register(registry);
    lora::register(registry);
    model_patches::register(registry);
    sigmas::register(registry);
    text::register(registry);
    vae::register(registry);
}
