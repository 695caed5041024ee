//! The nodes, a section of a file each: its interface and, below it, what it does. CONTRIBUTING says how to add one.

mod animated;
mod arithmetic;
mod bytes;
mod composite;
mod conditioning;
mod control_net;
mod custom_sampling;
mod easy_use;
mod efficiency;
mod essentials;
mod expression;
mod extra_schedules;
mod gaussian;
mod grid;
mod image_batch;
mod image_compose;
mod image_filter;
mod image_quantize;
mod image_scale;
mod image_transform;
mod impact;
mod inpaint;
mod ksampler;
mod latent_batch;
mod latent_compose;
mod latent_transform;
mod load_image;
mod loaders;
mod lora;
mod mask;
mod mask_convert;
mod model_patches;
mod palette;
mod preview;
mod primitive;
mod pysssss;
mod rgthree;
mod sampling;
mod save_image;
mod save_latent;
mod segment;
mod sigmas;
mod strings;
mod substitute;
mod text;
mod text_pattern;
mod tile_plan;
mod ultimate_upscale;
mod upscale;
mod vae;
mod was;

#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests;

use super::registry::Registry;

/// Adds every node.
pub(super) fn register(registry: &mut Registry) {
    animated::register(registry);
    conditioning::register(registry);
    control_net::register(registry);
    custom_sampling::register(registry);
    essentials::register(registry);
    image_batch::register(registry);
    image_compose::register(registry);
    image_filter::register(registry);
    image_quantize::register(registry);
    image_scale::register(registry);
    image_transform::register(registry);
    inpaint::register(registry);
    ksampler::register(registry);
    latent_batch::register(registry);
    latent_compose::register(registry);
    latent_transform::register(registry);
    load_image::register(registry);
    loaders::register(registry);
    lora::register(registry);
    mask::register(registry);
    mask_convert::register(registry);
    model_patches::register(registry);
    preview::register(registry);
    primitive::register(registry);
    pysssss::register(registry);
    rgthree::register(registry);
    save_image::register(registry);
    save_latent::register(registry);
    sigmas::register(registry);
    strings::register(registry);
    text::register(registry);
    text_pattern::register(registry);
    ultimate_upscale::register(registry);
    upscale::register(registry);
    vae::register(registry);
    easy_use::register(registry);
    efficiency::register(registry);
    impact::register(registry);
    was::register(registry);
}
