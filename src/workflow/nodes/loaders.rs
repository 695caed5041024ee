//! Loaders: they only name what lies in the models folder; weights are borrowed when they are needed.

use crate::catalog::{AuxiliaryKind, PartKind};
use crate::workflow::Context;
use crate::workflow::context::{Inputs, NodeError, Outputs};
use crate::workflow::interface::{Choices, Input, Interface, Socket, combo, link, model_file};
use crate::workflow::registry::Registry;
use crate::workflow::value::{Clip, ControlNet, Kind, Model, Origin, Vae, Value};

const CLIP_TYPES: [&str; 16] = [
    "stable_diffusion",
    "stable_cascade",
    "sd3",
    "stable_audio",
    "mochi",
    "ltxv",
    "pixart",
    "cosmos",
    "lumina2",
    "wan",
    "hidream",
    "chroma",
    "ace",
    "omnigen2",
    "qwen_image",
    "hunyuan_image",
];

/// Adds them.
pub(super) fn register(registry: &mut Registry) {
    registry.add(
        Interface::new("CheckpointLoaderSimple", "loaders")
            .display("Load Checkpoint")
            .description("Names a whole model: its denoising network, its text encoders and its VAE.")
            .input(model_file("ckpt_name", "checkpoints"))
            .output(Kind::MODEL)
            .output(Kind::CLIP)
            .output(Kind::VAE),
        checkpoint,
    );
    registry.add(
        Interface::new("UNETLoader", "advanced/loaders")
            .display("Load Diffusion Model")
            .input(model_file("unet_name", "diffusion_models"))
            .input(combo("weight_dtype", ["default", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2"]))
            .output(Kind::MODEL),
        unet,
    );
    let device = || combo("device", ["default", "cpu"]).with("advanced", true);
    registry.add(
        Interface::new("CLIPLoader", "advanced/loaders")
            .display("Load CLIP")
            .input(model_file("clip_name", "text_encoders"))
            .input(combo("type", CLIP_TYPES))
            .optional(device())
            .output(Kind::CLIP),
        |inputs, context| text_encoders(inputs, context, &["clip_name"]),
    );
    registry.add(
        Interface::new("DualCLIPLoader", "advanced/loaders")
            .display("DualCLIPLoader")
            .input(model_file("clip_name1", "text_encoders"))
            .input(model_file("clip_name2", "text_encoders"))
            .input(combo("type", ["sdxl", "sd3", "flux", "hunyuan_video", "hidream", "hunyuan_image"]))
            .optional(device())
            .output(Kind::CLIP),
        |inputs, context| text_encoders(inputs, context, &["clip_name1", "clip_name2"]),
    );
    registry.add(
        Interface::new("VAELoader", "loaders").display("Load VAE").input(vae_file()).output(Kind::VAE),
        vae,
    );
    registry.add(
        Interface::new("ControlNetLoader", "loaders")
            .display("Load ControlNet Model")
            .input(model_file("control_net_name", "controlnet"))
            .output(Kind::CONTROL_NET),
        control_net,
    );
    registry.add(
        Interface::new("DiffControlNetLoader", "loaders")
            .display("Load ControlNet Model (diff)")
            .input(link("model", Kind::MODEL))
            .input(model_file("control_net_name", "controlnet"))
            .output(Kind::CONTROL_NET),
        control_net,
    );
    registry.add(
        Interface::new("StyleModelLoader", "loaders")
            .display("Load Style Model")
            .input(model_file("style_model_name", "style_models"))
            .output(Kind::STYLE_MODEL),
        |_, _| Err(NodeError::input("style_model_name", "style models are not supported")),
    );
    registry.add(
        Interface::new("CLIPVisionLoader", "loaders")
            .display("Load CLIP Vision")
            .input(model_file("clip_name", "clip_vision"))
            .output(Kind::CLIP_VISION),
        |_, _| Err(NodeError::input("clip_name", "image encoders (CLIP vision) are not supported")),
    );
}

/// ComfyUI lists `pixel_space` among the files.
fn vae_file() -> Input {
    let mut input = model_file("vae_name", "vae");
    input.socket =
        Socket::Combo { choices: Choices::Models { folder: "vae", also: &["pixel_space"] }, tagged: false };
    input
}

pub(super) fn checkpoint(inputs: &Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
    let name = inputs.string("ckpt_name")?;
    let Some(entry) = context.catalog.find(&name) else {
        let near = context.catalog.near(&name).join(", ");
        let hint = if near.is_empty() { String::new() } else { format!("; near to it: {near}") };
        return Err(NodeError::input("ckpt_name", format!("there is no model '{name}'{hint}")));
    };
    if let Some(problem) = entry.problem {
        return Err(NodeError::input("ckpt_name", format!("'{name}' cannot be used: {problem}")));
    }
    let origin: Origin = entry.id.into();
    Ok(Outputs::of([
        Value::Model(Model::new(origin.clone())),
        Value::Clip(Clip { origin: origin.clone(), loras: Vec::new(), last_layer: None }),
        Value::Vae(Vae { origin }),
    ]))
}

fn unet(inputs: &Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
    let origin = part(inputs, context, PartKind::DiffusionModel, &["unet_name"])?;
    Ok(Outputs::one(Value::Model(Model::new(origin))))
}

fn text_encoders(inputs: &Inputs, context: &Context<'_>, names: &[&str]) -> Result<Outputs, NodeError> {
    let origin = part(inputs, context, PartKind::TextEncoders, names)?;
    Ok(Outputs::one(Value::Clip(Clip { origin, loras: Vec::new(), last_layer: None })))
}

pub(super) fn vae(inputs: &Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
    if &*inputs.string("vae_name")? == "pixel_space" {
        return Err(NodeError::input("vae_name", "models that draw in pixel space are not supported"));
    }
    let origin = part(inputs, context, PartKind::Vae, &["vae_name"])?;
    Ok(Outputs::one(Value::Vae(Vae { origin })))
}

/// The engine's name of the files that these inputs name; they must be there.
fn part(inputs: &Inputs, context: &Context<'_>, kind: PartKind, names: &[&str]) -> Result<Origin, NodeError> {
    let mut files = Vec::with_capacity(names.len());
    for name in names {
        let file = inputs.string(name)?;
        if context.catalog.find(&kind.id(&[&file])).is_none() {
            return Err(NodeError::input(name, format!("there is no file '{file}'")));
        }
        files.push(file);
    }
    Ok(kind.id(&files.iter().map(|file| &**file).collect::<Vec<_>>()).into())
}

fn control_net(inputs: &Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
    let name = inputs.string("control_net_name")?;
    let Some(entry) = context.catalog.find_auxiliary(AuxiliaryKind::ControlNet, &name) else {
        return Err(NodeError::input("control_net_name", format!("there is no ControlNet '{name}'")));
    };
    if let Some(problem) = context.catalog.about(&entry).problem {
        return Err(NodeError::input("control_net_name", format!("'{name}' cannot be used: {problem}")));
    }
    Ok(Outputs::one(Value::ControlNet(ControlNet { name: entry.id.into(), union_type: None })))
}
