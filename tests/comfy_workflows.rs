//! Every recorded workflow gives ComfyUI's files: the same names, the same text in them, and pictures and latents that
//! are the same but for rounding. Asked of the real program with the models that ComfyUI had.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod comfy;
mod server;

use std::collections::BTreeMap;
use std::io::Cursor;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use comfy::{Comfy, difference, none_differ, recorded, recorded_bytes, settled};
use image::codecs::webp::WebPDecoder;
use image::{AnimationDecoder, Frame, ImageDecoder};
use reqwest::Method;
use safetensors::SafeTensors;
use serde_json::Value;

/// Values of a picture that may be more than two levels off.
const FEW: f64 = 1e-3;
/// Latents, ‖ours − theirs‖ / ‖theirs‖. ComfyUI against itself with another thread count is 3.5e-6 off, and 1e-4 where
/// a picture was encoded first.
const LATENTS: f64 = 1e-3;
/// The same where a picture is cut to 8 bits on the way (Lanczos): the first pass agrees to 5e-6, and still 4 of its
/// 12,288 values fall to the other side of a level, which alone is 1.5e-3 of the latents encoded from it. ComfyUI is 9.9e-4
/// off itself with another number of threads, by 3 values.
const LATENTS_AFTER_8_BITS: (&str, f64) = ("latents/hires_image", 4e-3);
/// Mean distance, in levels, of frames that two encoders have made lossy.
const LOSSY: f64 = 3.0;

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

fn workflows() -> &'static Value {
    static READ: OnceLock<Value> = OnceLock::new();
    READ.get_or_init(|| recorded("workflows.json"))
}

/// Runs a recorded workflow and compares its history and its files.
async fn replay(name: &str) {
    let workflow = &workflows()[name];
    let comfy = shared();
    let response = comfy.send(Method::POST, "/prompt", workflow["body"].as_str().unwrap()).await;
    let (status, posted) = server::answer(response).await;
    assert_eq!(status, 200, "{posted}");
    let entry = comfy.finished(posted["prompt_id"].as_str().unwrap()).await;
    let last = entry["status"]["messages"].as_array().unwrap().last().unwrap();
    assert_eq!(entry["status"]["status_str"], workflow["status"], "{last}");

    let mut found = Vec::new();
    for (what, theirs, ours) in [
        ("outputs", &workflow["outputs"], &entry["outputs"]),
        ("meta", &workflow["meta"], &entry["meta"]),
        ("node_errors", &workflow["node_errors"], &posted["node_errors"]),
    ] {
        found.extend(difference(what, &settled(theirs), &settled(ours)));
    }
    let kinds: Value =
        entry["status"]["messages"].as_array().unwrap().iter().map(|one| one[0].clone()).collect();
    found.extend(difference("messages", &workflow["messages"], &kinds));
    none_differ(&found);

    let files: Vec<_> = files(&workflow["outputs"]).into_iter().zip(files(&entry["outputs"])).collect();
    for (theirs, ours) in &files {
        let [folder, name] = ["subfolder", "filename"].map(|key| theirs[key].as_str().unwrap());
        let path = format!("{}/{folder}/{name}", theirs["type"].as_str().unwrap()).replace("//", "/");
        let query: Vec<(&str, &str)> =
            ours.as_object().unwrap().iter().map(|(key, value)| (&**key, value.as_str().unwrap())).collect();
        let query = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(query).finish();
        let view = comfy.get(&format!("/view?{query}")).await;
        assert_eq!(view.status(), 200, "{path}");
        let ours = view.bytes().await.unwrap();
        let theirs = recorded_bytes(&path);
        let said = match name.rsplit('.').next() {
            Some("png") => compare_pictures(&theirs, &ours),
            Some("latent") => {
                let (rounded, tolerance) = LATENTS_AFTER_8_BITS;
                compare_latents(&theirs, &ours, if path.contains(rounded) { tolerance } else { LATENTS })
            }
            Some("webp") => compare_animations(&theirs, &ours),
            other => panic!("{path}: no comparison for {other:?}"),
        };
        found.extend(said.into_iter().map(|said| format!("{path}: {said}")));
    }
    none_differ(&found);
}

/// The files that outputs name, in the order of node ids.
fn files(outputs: &Value) -> Vec<Value> {
    let lists = outputs.as_object().unwrap().values().flat_map(|node| node.as_object().unwrap().values());
    let entries = lists.filter_map(Value::as_array).flatten();
    entries.filter(|entry| entry.get("filename").is_some()).cloned().collect()
}

/// A PNG's shape, its text, and its values.
fn read_png(bytes: &[u8]) -> (String, BTreeMap<String, String>, Vec<u8>) {
    let mut reader = png::Decoder::new(Cursor::new(bytes)).read_info().unwrap();
    let mut values = vec![0; reader.output_buffer_size().unwrap()];
    let frame = reader.next_frame(&mut values).unwrap();
    reader.finish().unwrap();
    values.truncate(frame.buffer_size());
    let info = reader.info();
    let shape = format!("{} x {} {:?} {:?}", info.width, info.height, info.color_type, info.bit_depth);
    assert!(info.utf8_text.is_empty() && info.compressed_latin1_text.is_empty());
    let text = info.uncompressed_latin1_text.iter().map(|chunk| (chunk.keyword.clone(), chunk.text.clone()));
    (shape, text.collect(), values)
}

fn compare_pictures(theirs: &[u8], ours: &[u8]) -> Vec<String> {
    let ((shape, text, values), (our_shape, our_text, our_values)) = (read_png(theirs), read_png(ours));
    let mut found = Vec::from_iter(text_difference(&text, &our_text));
    if shape != our_shape {
        found.push(format!("theirs is {shape}, ours {our_shape}"));
        return found;
    }
    let off: Vec<u8> = values
        .iter()
        .zip(&our_values)
        .map(|(left, right)| left.abs_diff(*right))
        .filter(|off| *off > 2)
        .collect();
    let share = off.len() as f64 / values.len() as f64;
    if share > FEW {
        let most = off.iter().max().unwrap();
        found.push(format!("{:.2} % of the values are off, by up to {most}", 100.0 * share));
    }
    found
}

/// Where texts differ first, with a few words around it.
fn text_difference(theirs: &BTreeMap<String, String>, ours: &BTreeMap<String, String>) -> Option<String> {
    let [theirs, ours] = [theirs, ours].map(|texts| format!("{texts:?}"));
    let at = theirs.bytes().zip(ours.bytes()).position(|(left, right)| left != right);
    let at = at.or_else(|| (theirs.len() != ours.len()).then(|| theirs.len().min(ours.len())))?;
    let [theirs, ours] = [theirs, ours].map(|text| {
        let around = &text.as_bytes()[at.saturating_sub(60).min(text.len())..(at + 60).min(text.len())];
        String::from_utf8_lossy(around).into_owned()
    });
    Some(format!("theirs says ...{theirs}..., ours ...{ours}..."))
}

fn compare_latents(theirs: &[u8], ours: &[u8], tolerance: f64) -> Vec<String> {
    let read = |bytes: &[u8]| {
        let (_, header) = SafeTensors::read_metadata(bytes).unwrap();
        let tensors = SafeTensors::deserialize(bytes).unwrap();
        let mut names: Vec<_> = tensors
            .tensors()
            .iter()
            .map(|(name, view)| format!("{name} {:?} {:?}", view.dtype(), view.shape()))
            .collect();
        names.sort();
        let latent = tensors.tensor("latent_tensor").unwrap();
        let values: Vec<f64> = latent
            .data()
            .chunks_exact(4)
            .map(|four| f32::from_le_bytes(four.try_into().unwrap()).into())
            .collect();
        (names, BTreeMap::from_iter(header.metadata().clone().unwrap_or_default()), values)
    };
    let ((names, metadata, values), (our_names, our_metadata, our_values)) = (read(theirs), read(ours));
    let mut found = Vec::from_iter(text_difference(&metadata, &our_metadata));
    if names != our_names {
        found.push(format!("theirs has {names:?}, ours {our_names:?}"));
        return found;
    }
    let off: f64 = values.iter().zip(&our_values).map(|(left, right)| (left - right).powi(2)).sum();
    let whole: f64 = values.iter().map(|value| value.powi(2)).sum();
    let relative = if whole == 0.0 { off.sqrt() } else { (off / whole).sqrt() };
    if relative.is_nan() || relative > tolerance {
        found.push(format!("{relative:.2e} off"));
    }
    found
}

fn compare_animations(theirs: &[u8], ours: &[u8]) -> Vec<String> {
    let read = |bytes: &[u8]| {
        let mut decoder = WebPDecoder::new(Cursor::new(bytes)).unwrap();
        let exif = decoder.exif_metadata().unwrap().unwrap_or_default();
        (texts(&exif), decoder.into_frames().collect_frames().unwrap())
    };
    let ((text, frames), (our_text, our_frames)) = (read(theirs), read(ours));
    let mut found = Vec::from_iter(text_difference(&text, &our_text));
    if frames.len() != our_frames.len() {
        found.push(format!("theirs has {} frames, ours {}", frames.len(), our_frames.len()));
    }
    for (index, (left, right)) in frames.iter().zip(&our_frames).enumerate() {
        let shape = |frame: &Frame| (frame.buffer().dimensions(), frame.delay().numer_denom_ms());
        if shape(left) != shape(right) {
            found.push(format!("frame {index}: theirs is {:?}, ours {:?}", shape(left), shape(right)));
            continue;
        }
        let values = left.buffer().iter().zip(right.buffer().iter());
        let sum: f64 = values.map(|(left, right)| f64::from(left.abs_diff(*right))).sum();
        let mean = sum / left.buffer().len() as f64;
        if mean > LOSSY {
            found.push(format!("frame {index} is {mean:.1} levels off in the mean"));
        }
    }
    found
}

/// The workflow's texts in Exif data: those that begin with a word and a colon, up to their NUL.
fn texts(exif: &[u8]) -> BTreeMap<String, String> {
    let pieces = exif.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    let texts = pieces.filter_map(|piece| piece.find("prompt:{").map(|at| piece[at..].to_owned()));
    texts
        .filter_map(|text| text.split_once(':').map(|(key, text)| (key.to_owned(), text.to_owned())))
        .collect()
}

macro_rules! workflows {
    ($($name:ident)*) => {
        #[test]
        fn every_recorded_workflow_is_replayed() {
            let mut replayed = vec![$(stringify!($name)),*];
            replayed.sort_unstable();
            let recorded: Vec<_> = workflows().as_object().unwrap().keys().map(String::as_str).collect();
            assert_eq!(recorded, replayed);
        }

        mod comfyui_s_files_come_of {
            $(#[tokio::test]
            async fn $name() {
                super::replay(stringify!($name)).await;
            })*
        }
    };
}

workflows! {
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
