//! The nodes, a section of a file each: its interface and, below it, what it does. CONTRIBUTING says how to add one.

mod animated;
mod conditioning;
mod control_net;
mod custom_sampling;
mod inpaint;
mod ksampler;
mod load_image;
mod loaders;
mod lora;
mod model_patches;
mod primitive;
mod sampling;
mod save_image;
mod save_latent;
mod sigmas;
mod text;
mod upscale;
mod vae;

use super::registry::Registry;

/// Adds every node.
pub(super) fn register(registry: &mut Registry) {
    animated::register(registry);
    load_image::register(registry);
    primitive::register(registry);
    conditioning::register(registry);
    control_net::register(registry);
    custom_sampling::register(registry);
    inpaint::register(registry);
    ksampler::register(registry);
    loaders::register(registry);
    lora::register(registry);
    model_patches::register(registry);
    save_image::register(registry);
    save_latent::register(registry);
    sigmas::register(registry);
    text::register(registry);
    upscale::register(registry);
    vae::register(registry);
}
