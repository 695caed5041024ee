//! Impact Pack: faces that are found and drawn anew at a larger size.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use darkroom_models::face_detector::DetectOptions;
use darkroom_pipelines::resample::{Crop, Filter, Raster, scale};
use darkroom_pipelines::sampler::SamplerKind;
use darkroom_pipelines::schedule::{MAX_STEPS, ModelSampling};

use super::gaussian::blurred;
use super::sampling::{self, Job, SAMPLERS, model_sampling, sampler};
use super::segment::{Region, Segment, Sizing, combined, feather_kernel};
use super::text::encode_prompt;
use super::upscale::without_extension;
use super::{extra_schedules, inpaint, vae};
use crate::catalog::AuxiliaryKind;
use crate::workflow::Context;
use crate::workflow::context::{Inputs, NodeError, Outputs, Slot};
use crate::workflow::image::{Image, Mask};
use crate::workflow::interface::{Input, Interface, boolean, combo, float, int, link, model_file, string};
use crate::workflow::latent::Latent;
use crate::workflow::registry::Registry;
use crate::workflow::value::{Clip, Cond, Kind, Model, Noise, Vae, Value};

const MODULE: &str = "custom_nodes.ComfyUI-Impact-Pack";
const SUBPACK: &str = "custom_nodes.ComfyUI-Impact-Subpack";
const BBOX_DETECTOR: Kind = Kind::other("BBOX_DETECTOR");
const SEGM_DETECTOR: Kind = Kind::other("SEGM_DETECTOR");
const BASIC_PIPE: Kind = Kind::other("BASIC_PIPE");
/// ComfyUI's `MAX_RESOLUTION`.
const MAX_RESOLUTION: u64 = 16384;
/// Width of the bell that masks are blurred with.
const SIGMA: f64 = 10.0;
/// Most places of a picture, and how much boxes of one class may overlap: the detector's own defaults.
const MOST_FOUND: usize = 300;
const OVERLAP: f32 = 0.7;
/// What prompts of their own for places may not have: words that stand for others, LoRAs and orders.
const SYNTAX: [&str; 11] =
    ["{", "__", "<lora", "BREAK", "[LAB]", "[ASC", "[DSC", "[RND]", "[SEP]", "[CONCAT]", "[SEED"];

/// Adds them.
pub(super) fn register(registry: &mut Registry) {
    registry.add(
        Interface::new("UltralyticsDetectorProvider", "ImpactPack")
            .input(model_file("model_name", "ultralytics"))
            .output(BBOX_DETECTOR)
            .output(SEGM_DETECTOR)
            .module(SUBPACK),
        provide,
    );
    face_detailer(registry);
    let pipe = ["model", "clip", "vae", "positive", "negative"];
    let kinds = [Kind::MODEL, Kind::CLIP, Kind::VAE, Kind::CONDITIONING, Kind::CONDITIONING];
    let mut to = Interface::new("ToBasicPipe", "ImpactPack/Pipe").module(MODULE);
    let mut from = Interface::new("FromBasicPipe", "ImpactPack/Pipe").module(MODULE);
    from = from.input(link("basic_pipe", BASIC_PIPE));
    for (name, kind) in pipe.into_iter().zip(kinds) {
        to = to.input(link(name, kind));
        from = from.named_output(name, kind);
    }
    registry.add(to.named_output("basic_pipe", BASIC_PIPE), |inputs, _| {
        let parts = ["model", "clip", "vae", "positive", "negative"];
        let parts = parts.map(|name| inputs.get(name).cloned().unwrap_or(Value::None));
        Ok(Outputs::one(Value::List(parts.to_vec())))
    });
    registry.add(from, |inputs, _| match inputs.get("basic_pipe") {
        Some(Value::List(parts)) if parts.len() == 5 => Ok(Outputs::of(parts.iter().cloned())),
        _ => Err(NodeError::input("basic_pipe", "is no pipe of five")),
    });
    registry.add(
        Interface::new("ImpactInt", "ImpactPack/Logic")
            .input(int("value", 0, 0, i64::MAX.unsigned_abs()).with("step", 1))
            .output(Kind::INT)
            .module(MODULE),
        |inputs, _| Ok(Outputs::one(Value::Int(inputs.int("value")?))),
    );
}

fn face_detailer(registry: &mut Registry) {
    let switch = |name, default, on: &str, off: &str| -> Input {
        boolean(name, default).with("label_on", on).with("label_off", off)
    };
    let size =
        |name, default: f64| -> Input { float(name, default, 64.0, MAX_RESOLUTION as f64).with("step", 8) };
    let share = |name, default: f64| -> Input { float(name, default, 0.0, 1.0).with("step", 0.01) };
    let whole =
        |name, default: i64, min: i64, max: u64| -> Input { int(name, default, min, max).with("step", 1) };
    let schedulers = extra_schedules::names(&["AYS SDXL", "AYS SD1", "AYS SVD", "GITS[coeff=1.2]"]);
    registry.add(
        Interface::new("FaceDetailer", "ImpactPack/Simple")
            .input(link("image", Kind::IMAGE))
            .input(link("model", Kind::MODEL))
            .input(link("clip", Kind::CLIP))
            .input(link("vae", Kind::VAE))
            .input(size("guide_size", 512.0))
            .input(switch("guide_size_for", true, "bbox", "crop_region"))
            .input(size("max_size", 1024.0))
            .input(int("seed", 0, 0, u64::MAX))
            .input(int("steps", 20, 1, 10_000))
            .input(float("cfg", 8.0, 0.0, 100.0))
            .input(combo("sampler_name", SAMPLERS))
            .input(combo("scheduler", schedulers))
            .input(link("positive", Kind::CONDITIONING))
            .input(link("negative", Kind::CONDITIONING))
            .input(float("denoise", 0.5, 0.0001, 1.0).with("step", 0.01))
            .input(whole("feather", 5, 0, 100))
            .input(switch("noise_mask", true, "enabled", "disabled"))
            .input(switch("force_inpaint", true, "enabled", "disabled"))
            .input(share("bbox_threshold", 0.5))
            .input(whole("bbox_dilation", 10, -512, 512))
            .input(float("bbox_crop_factor", 3.0, 1.0, 10.0).with("step", 0.1))
            .input(combo(
                "sam_detection_hint",
                [
                    "center-1",
                    "horizontal-2",
                    "vertical-2",
                    "rect-4",
                    "diamond-4",
                    "mask-area",
                    "mask-points",
                    "mask-point-bbox",
                    "none",
                ],
            ))
            .input(whole("sam_dilation", 0, -512, 512))
            .input(share("sam_threshold", 0.93))
            .input(whole("sam_bbox_expansion", 0, 0, 1000))
            .input(share("sam_mask_hint_threshold", 0.7))
            .input(combo("sam_mask_hint_use_negative", ["False", "Small", "Outter"]))
            .input(whole("drop_size", 10, 1, MAX_RESOLUTION))
            .input(link("bbox_detector", BBOX_DETECTOR))
            .input(string("wildcard").with("multiline", true).with("dynamicPrompts", false))
            .input(whole("cycle", 1, 1, 10))
            .optional(link("sam_model_opt", Kind::other("SAM_MODEL")))
            .optional(link("segm_detector_opt", SEGM_DETECTOR))
            .optional(link("detailer_hook", Kind::other("DETAILER_HOOK")))
            .optional(switch("inpaint_model", false, "enabled", "disabled"))
            .optional(whole("noise_mask_feather", 20, 0, 100))
            .optional(link("scheduler_func_opt", Kind::other("SCHEDULER_FUNC")))
            .named_output("image", Kind::IMAGE)
            .list_output("cropped_refined", Kind::IMAGE)
            .list_output("cropped_enhanced_alpha", Kind::IMAGE)
            .named_output("mask", Kind::MASK)
            .named_output("detailer_pipe", Kind::other("DETAILER_PIPE"))
            .list_output("cnet_images", Kind::IMAGE)
            .module(MODULE),
        detail,
    );
}

fn failed(message: impl Into<String>) -> NodeError {
    NodeError::Failed(message.into())
}

fn provide(inputs: &Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
    let name = inputs.string("model_name")?;
    let plain = without_extension(&name);
    // Detectors of boxes are also found without their folder.
    let bare = plain.strip_prefix("bbox/").unwrap_or(plain);
    let known = |id: &&str| context.catalog.find_auxiliary(AuxiliaryKind::Detector, id).is_some();
    let Some(id) = [plain, bare].into_iter().find(|id| known(id)) else {
        let message = format!(
            "there is no detector '{name}': convert it with scripts/convert_yolo.py and put it into ultralytics/ of \
             the models folder"
        );
        return Err(NodeError::input("model_name", message));
    };
    context.engine.borrow_detector(id, context.interrupt)?;
    let detector = Value::Detector(id.into());
    // One of boxes has no masks.
    let masks = if plain.starts_with("bbox/") { Value::None } else { detector.clone() };
    Ok(Outputs::of([detector, masks]))
}

/// What is the same for all places of all pictures.
struct Detailer<'a> {
    context: &'a Context<'a>,
    model: Model,
    clip: Clip,
    vae: Vae,
    positive: Arc<Vec<Cond>>,
    negative: Arc<Vec<Cond>>,
    sizing: Sizing,
    steps: usize,
    cfg: f64,
    sampler: SamplerKind,
    scheduler: Arc<str>,
    sampling: Arc<ModelSampling>,
    denoise: f64,
    feather: usize,
    noise_mask: bool,
    noise_mask_feather: usize,
    inpaint_model: bool,
    wildcard: Arc<str>,
    cycle: usize,
}

/// What came of a picture.
struct Detailed {
    image: Image,
    refined: Vec<Image>,
    with_alpha: Vec<Image>,
}

fn detail(inputs: &Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
    for (name, what) in [
        ("sam_model_opt", "SAM is"),
        ("segm_detector_opt", "detectors of masks are"),
        ("detailer_hook", "hooks are"),
        ("scheduler_func_opt", "schedules from other nodes are"),
    ] {
        if inputs.get(name).is_some() {
            return Err(NodeError::input(name, format!("{what} not supported; disconnect it")));
        }
    }
    let images = inputs.image("image")?;
    if images.channels() < 3 || images.count() == 0 {
        return Err(NodeError::input("image", "pictures of three channels are needed"));
    }
    let wildcard = inputs.string("wildcard")?;
    let comment = wildcard.lines().any(|line| line.trim_start().starts_with('#'));
    if let Some(word) = SYNTAX.iter().find(|word| wildcard.contains(**word)).or(comment.then_some(&"#")) {
        let message = format!("'{word}' is not supported here; write a plain prompt, or none");
        return Err(NodeError::input("wildcard", message));
    }
    let mut model = inputs.model("model")?;
    let noise_mask_feather =
        if inputs.get("noise_mask_feather").is_some() { inputs.size("noise_mask_feather")? } else { 0 };
    if noise_mask_feather > 0 && model.differential.is_none() {
        model.differential = Some(1.0);
    }
    let detailer = Detailer {
        context,
        sampling: model_sampling(context, &model)?,
        model,
        clip: inputs.clip("clip")?,
        vae: inputs.vae("vae")?,
        positive: inputs.conditioning("positive")?,
        negative: inputs.conditioning("negative")?,
        sizing: Sizing {
            guide_size: inputs.float("guide_size")?,
            for_box: inputs.boolean("guide_size_for")?,
            max_size: inputs.float("max_size")?,
            force_inpaint: inputs.boolean("force_inpaint")?,
        },
        steps: inputs.size("steps")?,
        cfg: inputs.float("cfg")?,
        sampler: sampler(inputs, "sampler_name")?,
        scheduler: inputs.string("scheduler")?,
        denoise: inputs.float("denoise")?,
        feather: inputs.size("feather")?,
        noise_mask: inputs.boolean("noise_mask")?,
        noise_mask_feather,
        inpaint_model: inputs.get("inpaint_model").is_some() && inputs.boolean("inpaint_model")?,
        wildcard,
        cycle: inputs.size("cycle")?,
    };
    let Some(Value::Detector(detector)) = inputs.get("bbox_detector") else {
        return Err(NodeError::input("bbox_detector", "is no detector"));
    };
    let seed = inputs.seed("seed")?;
    let (width, height) = (images.width(), images.height());
    let (mut data, mut masks) = (Vec::new(), Vec::new());
    let (mut refined, mut with_alpha) = (Vec::new(), Vec::new());
    for index in 0..images.count() {
        let rgb: Vec<f32> = images
            .picture(index)
            .chunks_exact(images.channels())
            .flat_map(|pixel| pixel[..3].iter().copied())
            .collect();
        let image = Image::new(1, height, width, 3, rgb).ok_or_else(|| failed("there is no picture"))?;
        let segments = found(context, detector, &image, inputs)?;
        let result = detailer.picture(&image, &segments, seed.wrapping_add(index as u64))?;
        data.extend_from_slice(result.image.data());
        masks.extend(combined(&segments, width, height));
        refined.extend(or_nothing(result.refined));
        with_alpha.extend(or_nothing(result.with_alpha));
    }
    let none = || failed("no picture comes out");
    let image = Image::new(images.count(), height, width, 3, data).ok_or_else(none)?;
    let mask = Mask::new(images.count(), height, width, masks).ok_or_else(none)?;
    let pictures = |images: Vec<Image>| Slot::List(images.into_iter().map(Value::Image).collect());
    let given = |name: &str| inputs.get(name).cloned().unwrap_or(Value::None);
    let mut pipe: Vec<Value> =
        ["model", "clip", "vae", "positive", "negative", "wildcard", "bbox_detector"].map(given).to_vec();
    pipe.resize(14, Value::None);
    let control_images = pictures((0..images.count()).flat_map(|_| or_nothing(Vec::new())).collect());
    Ok(Outputs {
        slots: vec![
            Slot::One(Value::Image(image)),
            pictures(refined),
            pictures(with_alpha),
            Slot::One(Value::Mask(mask)),
            Slot::One(Value::List(pipe)),
            control_images,
        ],
        ui: None,
    })
}

/// A small black picture where there is none.
fn or_nothing(images: Vec<Image>) -> Vec<Image> {
    const SIDE: usize = 64;
    if images.is_empty() {
        return Image::new(1, SIDE, SIDE, 3, vec![0.0; SIDE * SIDE * 3]).into_iter().collect();
    }
    images
}

/// What the detector finds in a picture.
fn found(
    context: &Context<'_>,
    detector: &str,
    image: &Image,
    inputs: &Inputs,
) -> Result<Vec<Segment>, NodeError> {
    let (width, height) = (image.width(), image.height());
    let detector = context.engine.borrow_detector(detector, context.interrupt)?;
    // Eight bits, as the detector's pictures have.
    let data: Vec<f32> =
        image.data().iter().map(|value| f32::from((255.0 * value).clamp(0.0, 255.0) as u8) / 255.0).collect();
    let picture = Tensor::from_vec(data, (height, width, 3), &Device::Cpu)?;
    let options = DetectOptions {
        confidence: inputs.float("bbox_threshold")? as f32,
        iou: OVERLAP,
        max_detections: MOST_FOUND,
        ..DetectOptions::default()
    };
    let found = detector.detect(&[picture], &options).map_err(|error| failed(error.to_string()))?;
    let (dilation, factor) = (inputs.int("bbox_dilation")?, inputs.float("bbox_crop_factor")?);
    let drop_size = inputs.size("drop_size")?;
    let boxes = found.into_iter().flatten();
    let boxes = boxes.map(|found| [found.x0, found.y0, found.x1, found.y1]);
    Ok(boxes
        .filter_map(|bounds| Segment::new((width, height), bounds, dilation, factor, drop_size))
        .collect())
}

impl Detailer<'_> {
    /// A picture with each of its places drawn anew, one after another.
    fn picture(&self, image: &Image, segments: &[Segment], seed: u64) -> Result<Detailed, NodeError> {
        let (width, height) = (image.width(), image.height());
        let mut data = image.data().to_vec();
        let (mut refined, mut with_alpha) = (Vec::new(), Vec::new());
        let own_prompt = match self.wildcard.trim() {
            "" | "[SKIP]" | "[STOP]" => None,
            _ => Some(vec![encode_prompt(self.context, &self.clip, &self.wildcard)?]),
        };
        let leave_all = ["[SKIP]", "[STOP]"].contains(&self.wildcard.trim());
        for (index, segment) in segments.iter().enumerate() {
            self.context.check_interrupt()?;
            if leave_all || segment.mask.iter().all(|value| *value == 0.0) {
                continue;
            }
            let region = segment.region;
            let Some(size) = self.sizing.of(region, segment.bounds) else { continue };
            let cropped = crop(&data, width, region);
            let mask = Mask::new(1, region.height(), region.width(), segment.mask.clone())
                .ok_or_else(|| failed("a place has no mask"))?;
            let conds = |conds: &[Cond]| {
                conds.iter().map(|cond| cropped_cond(cond, (width, height), region)).collect()
            };
            let positive: Vec<Cond> = match &own_prompt {
                Some(prompt) => prompt.clone(),
                None => conds(&self.positive),
            };
            let negative: Vec<Cond> = conds(&self.negative);
            let seed = seed.wrapping_add(index as u64);
            let result = self.place(&cropped, region, &mask, size, (positive, negative), seed)?;
            let soft = feathered(&mask, self.feather);
            paste(&mut data, width, region, &result, soft.data());
            let rgba = result.chunks_exact(3).zip(soft.data());
            let rgba = rgba.flat_map(|(rgb, alpha)| [rgb[0], rgb[1], rgb[2], *alpha]).collect();
            let sized = |channels, data| Image::new(1, region.height(), region.width(), channels, data);
            refined.extend(sized(3, result));
            with_alpha.extend(sized(4, rgba));
        }
        // The largest first.
        let order = |image: &Image| std::cmp::Reverse((image.height(), image.width()));
        refined.sort_by_key(order);
        with_alpha.sort_by_key(order);
        let image = Image::new(1, height, width, 3, data).ok_or_else(|| failed("no picture comes out"))?;
        Ok(Detailed { image, refined, with_alpha })
    }

    /// What is in a region, drawn anew at `size`, and back at its own.
    fn place(
        &self,
        cropped: &[f32],
        region: Region,
        mask: &Mask,
        (width, height): (usize, usize),
        (mut positive, mut negative): (Vec<Cond>, Vec<Cond>),
        seed: u64,
    ) -> Result<Vec<f32>, NodeError> {
        if width.max(height) as u64 > MAX_RESOLUTION || width < 8 || height < 8 {
            return Err(failed(format!("a place cannot be drawn at {width}×{height}")));
        }
        let larger = lanczos(cropped, (region.width(), region.height()), (width, height))?;
        let larger =
            Image::new(1, height, width, 3, larger).ok_or_else(|| failed("a place has no picture"))?;
        let noise_mask = self.noise_mask.then(|| feathered(mask, self.noise_mask_feather));
        let mut latent = match noise_mask {
            Some(mask) if self.inpaint_model => {
                let inputs = Inputs(
                    [
                        ("positive".to_owned(), Value::Conditioning(Arc::new(positive))),
                        ("negative".to_owned(), Value::Conditioning(Arc::new(negative))),
                        ("vae".to_owned(), Value::Vae(self.vae.clone())),
                        ("pixels".to_owned(), Value::Image(larger)),
                        ("mask".to_owned(), Value::Mask(mask)),
                        ("noise_mask".to_owned(), Value::Boolean(true)),
                    ]
                    .into(),
                );
                let mut slots = inpaint::model_conditioning(&inputs, self.context)?.slots.into_iter();
                match (slots.next(), slots.next(), slots.next()) {
                    (
                        Some(Slot::One(Value::Conditioning(for_positive))),
                        Some(Slot::One(Value::Conditioning(for_negative))),
                        Some(Slot::One(Value::Latent(latent))),
                    ) => {
                        (positive, negative) = (for_positive.to_vec(), for_negative.to_vec());
                        latent
                    }
                    _ => return Err(failed("the inpaint model's conditions are not there")),
                }
            }
            noise_mask => {
                let samples = vae::encode(self.context, &self.vae, &larger, None)?;
                Arc::new(Latent { noise_mask, ..Latent::new(samples) })
            }
        };
        for turn in 0..self.cycle {
            latent = self.sampled(&latent, &positive, &negative, seed.wrapping_add(turn as u64))?;
        }
        let drawn = vae::decode(self.context, &self.vae, &latent, None)?;
        lanczos(drawn.picture(0), (drawn.width(), drawn.height()), (region.width(), region.height()))
    }

    /// The last steps of a longer schedule; Brownian noise is that of all of it, and what counts is what the last step
    /// took the picture to be.
    fn sampled(
        &self,
        latent: &Arc<Latent>,
        positive: &[Cond],
        negative: &[Cond],
        seed: u64,
    ) -> Result<Arc<Latent>, NodeError> {
        let total = (self.steps as f64 / self.denoise).floor();
        if total > MAX_STEPS as f64 {
            return Err(NodeError::input(
                "denoise",
                format!("{total} steps would be needed; {MAX_STEPS} is the limit"),
            ));
        }
        let total = total as usize;
        let all = extra_schedules::sigmas(&self.scheduler, &self.sampling, total, 1.0, self.sampler)
            .map_err(|message| NodeError::input("scheduler", message))?;
        let start = total.saturating_sub(self.steps);
        if start + 1 >= all.len() {
            return Ok(Arc::clone(latent));
        }
        let over_all =
            matches!(self.sampler, SamplerKind::DpmppSde | SamplerKind::Dpmpp2mSde | SamplerKind::Dpmpp3mSde);
        let job = Job {
            model: &self.model,
            positive,
            negative: Some(negative),
            cfg: self.cfg,
            sampler: self.sampler,
            sigmas: &all[start..],
            noise_sigmas: over_all.then_some(&all),
            noise: Noise::Seed(seed),
            step_seed: seed,
            latent,
        };
        Ok(sampling::denoise(self.context, &job)?.denoised)
    }
}

/// Pillow's Lanczos on 8-bit values.
fn lanczos(data: &[f32], from: (usize, usize), to: (usize, usize)) -> Result<Vec<f32>, NodeError> {
    let raster =
        Raster::new(data, from.0, from.1, 3).ok_or_else(|| failed("there is no picture to scale"))?;
    Ok(scale(raster, to.0, to.1, Filter::Lanczos, Crop::Disabled))
}

fn feathered(mask: &Mask, feather: usize) -> Mask {
    let kernel = feather_kernel(feather, mask.width(), mask.height());
    kernel.and_then(|kernel| blurred(mask, kernel, SIGMA)).unwrap_or_else(|| mask.clone())
}

fn crop(data: &[f32], width: usize, region: Region) -> Vec<f32> {
    let rows = data.chunks_exact(width * 3).skip(region.y1).take(region.height());
    rows.flat_map(|row| &row[region.x1 * 3..region.x2 * 3]).copied().collect()
}

/// A condition whose mask is cut to the region as the picture is.
fn cropped_cond(cond: &Cond, (width, height): (usize, usize), region: Region) -> Cond {
    let mut cond = cond.clone();
    if let Some(own) = &mut cond.mask {
        let mask = &own.mask;
        // Which side goes by which scale is the extension's own.
        let scales = [mask.height() as f64 / height as f64, mask.width() as f64 / width as f64];
        let place = |value: usize, i: usize| (value as f64 * scales[i % 2]).round_ties_even() as usize;
        let (x1, x2) = (place(region.x1, 0).min(mask.width()), place(region.x2, 2).min(mask.width()));
        let (y1, y2) = (place(region.y1, 1).min(mask.height()), place(region.y2, 3).min(mask.height()));
        let data: Vec<f32> = (0..mask.count())
            .flat_map(|index| {
                mask.mask(index).chunks_exact(mask.width()).skip(y1).take(y2.saturating_sub(y1))
            })
            .flat_map(|row| &row[x1..x2.max(x1)])
            .copied()
            .collect();
        if !data.is_empty()
            && let Some(part) = Mask::new(mask.count(), y2 - y1, x2 - x1, data)
        {
            own.mask = part;
        }
    }
    cond
}

/// Puts `values` over a region, as far as `mask` says.
fn paste(data: &mut [f32], width: usize, region: Region, values: &[f32], mask: &[f32]) {
    let lines = values.chunks_exact(region.width() * 3).zip(mask.chunks_exact(region.width()));
    for (y, (line, shares)) in lines.enumerate() {
        let start = ((region.y1 + y) * width + region.x1) * 3;
        let target = data[start..start + line.len()].chunks_exact_mut(3);
        for ((target, pixel), share) in target.zip(line.chunks_exact(3)).zip(shares) {
            for (old, new) in target.iter_mut().zip(pixel) {
                *old = (1.0 - share) * *old + share * new;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_pasted_where_it_was_cut_out() {
        let data: Vec<f32> = (0..4 * 3 * 3).map(|value| value as f32).collect();
        let region = Region { x1: 1, y1: 1, x2: 3, y2: 3 };
        let part = crop(&data, 4, region);
        let mut same = data.clone();
        paste(&mut same, 4, region, &part, &[1.0; 4]);
        assert_eq!(same, data);
        paste(&mut same, 4, region, &vec![0.0; part.len()], &[0.5, 0.0, 0.0, 1.0]);
        assert_eq!(same[(4 + 1) * 3], data[(4 + 1) * 3] / 2.0);
        assert_eq!(same[(8 + 2) * 3..(8 + 3) * 3], [0.0; 3]);
        assert_eq!(same[(8 + 1) * 3..(8 + 2) * 3], data[(8 + 1) * 3..(8 + 2) * 3]);
    }
}
