//! ComfyUI-Easy-Use: backgrounds taken out, seeds and prompts as plain values.

use candle_core::{Device, Tensor};

use super::save_image::{save, unsaved, with_metadata};
use crate::catalog::AuxiliaryKind;
use crate::workflow::Context;
use crate::workflow::context::{Inputs, NodeError, Outputs};
use crate::workflow::folders::FileType;
use crate::workflow::image::{Image, Mask};
use crate::workflow::interface::{Hidden, Interface, boolean, combo, int, link, string};
use crate::workflow::registry::Registry;
use crate::workflow::value::{Kind, Value};

const MODULE: &str = "custom_nodes.ComfyUI-Easy-Use";
/// The largest seed.
const SEEDS: u64 = 1_125_899_906_842_624;

/// Adds them.
pub(super) fn register(registry: &mut Registry) {
    let remove = Interface::new("easy imageRemBg", "EasyUse/Image")
        .display("Image Remove Bg")
        .input(link("images", Kind::IMAGE))
        .input(combo("rem_mode", ["RMBG-2.0", "RMBG-1.4", "Inspyrenet", "BEN2"]).with("default", "RMBG-1.4"))
        .input(combo("image_output", ["Hide", "Preview", "Save", "Hide/Save"]).with("default", "Preview"))
        .input(string("save_prefix").with("default", "ComfyUI"))
        .optional(boolean("torchscript_jit", false))
        .optional(combo("add_background", ["none", "white", "black"]).with("default", "none"))
        .optional(boolean("refine_foreground", false));
    registry.add(
        with_metadata(remove)
            .named_output("image", Kind::IMAGE)
            .named_output("mask", Kind::MASK)
            .output_node()
            .module(MODULE),
        remove_background,
    );
    registry.add(
        Interface::new("easy seed", "EasyUse/Seed")
            .display("EasySeed")
            .input(int("seed", 0, 0, SEEDS))
            .hidden("prompt", Hidden::Prompt)
            .hidden("extra_pnginfo", Hidden::ExtraPngInfo)
            .hidden("my_unique_id", Hidden::UniqueId)
            .named_output("seed", Kind::INT)
            .module(MODULE),
        |inputs, _| Ok(Outputs::one(Value::Int(inputs.int("seed")?))),
    );
    let text = |name, placeholder: &str| {
        string(name).with("default", "").with("multiline", true).with("placeholder", placeholder)
    };
    registry.add(
        Interface::new("easy positive", "EasyUse/Prompt")
            .display("Positive")
            .input(text("positive", "Positive"))
            .named_output("positive", Kind::STRING)
            .module(MODULE),
        |inputs, _| Ok(Outputs::one(Value::String(inputs.string("positive")?))),
    );
    registry.add(
        Interface::new("easy negative", "EasyUse/Prompt")
            .display("Negative")
            .input(text("negative", "Negative"))
            .named_output("negative", Kind::STRING)
            .module(MODULE),
        |inputs, _| Ok(Outputs::one(Value::String(inputs.string("negative")?))),
    );
}

/// The background remover that a mode means, by its id in the catalog.
fn remover(mode: &str, context: &Context<'_>) -> Result<String, NodeError> {
    if mode != "RMBG-1.4" {
        return Err(NodeError::input("rem_mode", format!("{mode} is not supported; take RMBG-1.4")));
    }
    let entries = context.catalog.auxiliaries(AuxiliaryKind::Matting);
    let named = entries.iter().find(|entry| entry.id.contains("1.4"));
    let found = named.or_else(|| entries.first()).map(|entry| entry.id.clone());
    found.ok_or_else(|| {
        let message = "RMBG-1.4 is not there: put its model.safetensors into RMBG/ of the models folder";
        NodeError::input("rem_mode", message)
    })
}

/// Pillow's product of two bytes, as a share.
fn times(a: u8, b: u8) -> u8 {
    let product = u32::from(a) * u32::from(b) + 128;
    (((product >> 8) + product) >> 8) as u8
}

fn remove_background(inputs: &Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
    let images = inputs.image("images")?;
    let background = match inputs.get("add_background") {
        Some(Value::String(name)) if &**name == "white" => Some(255u8),
        Some(Value::String(name)) if &**name == "black" => Some(0),
        _ => None,
    };
    if images.channels() < 3 || images.count() == 0 {
        return Err(NodeError::input("images", "pictures of three channels are needed"));
    }
    let id = remover(&inputs.string("rem_mode")?, context)?;
    let remover = context.engine.borrow_remover(&id, context.interrupt)?;
    let (width, height, count) = (images.width(), images.height(), images.count());
    let channels = if background.is_some() { 3 } else { 4 };
    let mut pixels = Vec::with_capacity(count * width * height * channels);
    let mut alphas = Vec::with_capacity(count * width * height);
    for index in 0..count {
        context.check_interrupt()?;
        let seen = images.picture(index).chunks_exact(images.channels());
        let rgb: Vec<u8> =
            seen.flat_map(|pixel| &pixel[..3]).map(|value| (255.0 * value).clamp(0.0, 255.0) as u8).collect();
        let data: Vec<f32> = rgb.iter().map(|byte| f32::from(*byte) / 255.0).collect();
        let picture = Tensor::from_vec(data, (height, width, 3), &Device::Cpu)?;
        let alpha = remover.alpha(&picture).map_err(|error| NodeError::Failed(error.to_string()))?;
        let alpha: Vec<f32> = alpha.flatten_all()?.to_vec1()?;
        let alpha: Vec<u8> = alpha.iter().map(|value| (255.0 * value).clamp(0.0, 255.0) as u8).collect();
        for (rgb, &alpha) in rgb.chunks_exact(3).zip(&alpha) {
            // Pasted onto nothing through its mask, so that colours fade with it.
            let faded = rgb.iter().map(|value| times(*value, alpha));
            let share = |byte: u8| f32::from(byte) / 255.0;
            match background {
                None => pixels.extend(faded.chain([alpha]).map(share)),
                Some(behind) => pixels.extend(faded.map(|value| {
                    let sum = u32::from(behind) * u32::from(255 - alpha)
                        + u32::from(value) * u32::from(alpha)
                        + 128;
                    share((((sum >> 8) + sum) >> 8) as u8)
                })),
            }
        }
        alphas.extend(alpha.iter().map(|byte| f32::from(*byte) / 255.0));
        context.progress(index + 1, count);
    }
    let none = || NodeError::Failed("no picture comes out".into());
    let image = Image::new(count, height, width, channels, pixels).ok_or_else(none)?;
    let mask = Mask::new(count, height, width, alphas).ok_or_else(none)?;
    let output = inputs.string("image_output")?;
    let ui = match &*output {
        "Hide" => None,
        "Preview" => {
            let numbered =
                context.folders.fresh(FileType::Temp, "easyPreview").map_err(|error| unsaved(&error))?;
            Some(save(&image, numbered, context)?)
        }
        _ => {
            let prefix = inputs.string("save_prefix")?;
            let numbered = context
                .folders
                .numbered(FileType::Output, &prefix, width, height)
                .map_err(|error| NodeError::input("save_prefix", format!("'{prefix}': {error}")))?;
            let saved = save(&image, numbered, context)?;
            (&*output == "Save").then_some(saved)
        }
    };
    let outputs = Outputs::of([Value::Image(image), Value::Mask(mask)]);
    Ok(match ui {
        Some(ui) => outputs.showing(ui),
        None => outputs,
    })
}

#[cfg(test)]
mod tests {
    use super::times;

    #[test]
    fn shares_are_rounded_as_pillow_rounds_them() {
        for a in 0..=255u8 {
            for b in 0..=255u8 {
                let exact = f64::from(a) * f64::from(b) / 255.0;
                assert_eq!(f64::from(times(a, b)), exact.round(), "{a} {b}");
            }
        }
    }
}
