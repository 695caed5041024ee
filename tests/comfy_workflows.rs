//! Every recorded workflow gives ComfyUI's files: the same names, the same text in them, and pictures and latents that
//! are the same but for rounding. Asked of the real program with the models that ComfyUI had.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod comfy;
#[path = "comfy/replay.rs"]
mod replay;
mod server;

use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use comfy::Comfy;
use replay::Recording;

/// Latents, ‖ours − theirs‖ / ‖theirs‖. ComfyUI against itself with another thread count is 3.5e-6 off, and 1e-4 where
/// a picture was encoded first.
const LATENTS: f64 = 1e-3;
/// Where a picture is cut to 8 bits on the way (Lanczos): the first pass agrees to 5e-6, and still 4 of its
/// 12,288 values fall to the other side of a level, which alone is 1.5e-3 of the latents encoded from it. ComfyUI is 9.9e-4
/// off itself with another number of threads, by 3 values.
const LATENTS_AFTER_8_BITS: (&str, f64) = ("latents/hires_image", 4e-3);

/// One server for all tests of this file; it ends with the last test that holds it.
fn shared() -> Arc<Comfy> {
    static RUNNING: Mutex<Weak<Comfy>> = Mutex::new(Weak::new());
    let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(server) = running.upgrade() {
        return server;
    }
    let mut comfy = Comfy::start(true);
    comfy.server.client = server::lone_client();
    let comfy = Arc::new(comfy);
    *running = Arc::downgrade(&comfy);
    comfy
}

fn recording() -> &'static Recording {
    static READ: OnceLock<Recording> = OnceLock::new();
    READ.get_or_init(|| Recording::read("comfyui", LATENTS, &[LATENTS_AFTER_8_BITS]))
}

replay::workflows! {
    txt2img seed_and_scale_limits samplers_noise samplers_brownian samplers_plain schedulers img2img
    img2img_odd_size inpaint_noise_mask inpaint_encode inpaint_conditioning inpaint_soft_batch outpaint
    hires_latent hires_image hires_model advanced_two_stages advanced_late_and_early sampler_custom
    custom_advanced_split custom_schedulers flipped_sigmas areas areas_of_the_negative masked_conditions
    masked_conditions_elsewhere_shaped concat_and_average combine_of_lengths zeroed_out timestep_ranges
    text_encode_sdxl clip_skip long_weighted_prompts embedding same_conditions_twice lora_stack
    lora_of_one_side controlnet_apply controlnet_two controlnet_with_a_batch_of_hints rescale_cfg free_u
    cfg_norm sampling_eps sampling_v_prediction sampling_lcm sampling_x0 sampling_sd3 sampling_auraflow
    everything_at_once split_files upscale_models upscale_model_in_tiles vae_tiled latent_scaling
    latent_shapes latent_batches rebatched_latents load_latent empty_latents image_scale_nearest_exact
    image_scale_bilinear image_scale_area image_scale_bicubic image_scale_lanczos
    image_invert_flip_rotate image_crop image_pad image_blend image_blur_sharpen image_quantize
    image_batches lists_of_different_lengths empty_images image_masks alpha composites canny mask_shapes
    mask_composites load_images load_animated_images load_image_masks load_from_elsewhere file_names
    metadata animated previews primitives numbers_as_text
}
