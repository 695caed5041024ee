//! Efficiency nodes: a loader that encodes prompts too, a sampler that decodes and shows, and stacks.

use std::sync::{Arc, LazyLock};

use candle_core::{DType, Device, Tensor};

use super::lora::apply;
use super::rgthree::lora_or_none;
use super::sampling::{self, Job, SAMPLERS, model_sampling, sampler};
use super::text::encode_prompt;
use super::{control_net, extra_schedules, loaders, save_image, vae};
use crate::task::LoraSpec;
use crate::workflow::Context;
use crate::workflow::context::{Inputs, NodeError, Outputs, Slot};
use crate::workflow::image::Image;
use crate::workflow::interface::{
    Choices, Hidden, Input, Interface, Socket, combo, float, int, link, model_file, string,
};
use crate::workflow::latent::Latent;
use crate::workflow::registry::Registry;
use crate::workflow::value::{Cond, Kind, Noise, Vae, Value};

const MODULE: &str = "custom_nodes.efficiency-nodes-comfyui";
const LORA_STACK: Kind = Kind::other("LORA_STACK");
const CONTROL_NET_STACK: Kind = Kind::other("CONTROL_NET_STACK");
/// ComfyUI's `MAX_RESOLUTION`.
const MAX_RESOLUTION: u64 = 16384;
/// Values of the latents that are begun with; the number of pictures alone would allow far more than memory holds.
const MOST_VALUES: usize = 1 << 27;
/// Rows of a stacker.
const ROWS: usize = 50;

/// The names of a stacker's inputs.
static STACKER: LazyLock<Vec<[String; 4]>> = LazyLock::new(|| {
    let row = |i| ["lora_name", "lora_wt", "model_str", "clip_str"].map(|name| format!("{name}_{i}"));
    (1..=ROWS).map(row).collect()
});

/// Adds them.
pub(super) fn register(registry: &mut Registry) {
    let prompt = |name, default: &str| string(name).with("default", default).with("multiline", true);
    let side = |name| int(name, 512, 64, MAX_RESOLUTION).with("step", 64);
    let strength = |name| float(name, 1.0, -10.0, 10.0).with("step", 0.01);
    registry.add(
        Interface::new("Efficient Loader", "Efficiency Nodes/Loaders")
            .input(model_file("ckpt_name", "checkpoints"))
            .input(vae_or_baked())
            .input(whole("clip_skip", -1, -24, -1))
            .input(lora_or_none("lora_name"))
            .input(strength("lora_model_strength"))
            .input(strength("lora_clip_strength"))
            .input(prompt("positive", "CLIP_POSITIVE"))
            .input(prompt("negative", "CLIP_NEGATIVE"))
            .input(combo("token_normalization", ["none", "mean", "length", "length+mean"]))
            .input(combo("weight_interpretation", ["comfy", "A1111", "compel", "comfy++", "down_weight"]))
            .input(side("empty_latent_width"))
            .input(side("empty_latent_height"))
            .input(int("batch_size", 1, 1, 262_144))
            .optional(link("lora_stack", LORA_STACK))
            .optional(link("cnet_stack", CONTROL_NET_STACK))
            .hidden("prompt", Hidden::Prompt)
            .hidden("my_unique_id", Hidden::UniqueId)
            .output(Kind::MODEL)
            .named_output("CONDITIONING+", Kind::CONDITIONING)
            .named_output("CONDITIONING-", Kind::CONDITIONING)
            .output(Kind::LATENT)
            .output(Kind::VAE)
            .output(Kind::CLIP)
            .output(Kind::other("DEPENDENCIES"))
            .module(MODULE),
        load,
    );
    registry.add(
        Interface::new("KSampler (Efficient)", "Efficiency Nodes/Sampling")
            .input(link("model", Kind::MODEL))
            .input(int("seed", 0, 0, u64::MAX))
            .input(int("steps", 20, 1, 10_000))
            .input(float("cfg", 7.0, 0.0, 100.0))
            .input(combo("sampler_name", SAMPLERS))
            .input(combo("scheduler", extra_schedules::names(&["AYS SD1", "AYS SDXL", "AYS SVD", "GITS"])))
            .input(link("positive", Kind::CONDITIONING))
            .input(link("negative", Kind::CONDITIONING))
            .input(link("latent_image", Kind::LATENT))
            .input(float("denoise", 1.0, 0.0, 1.0).with("step", 0.01))
            .input(combo("preview_method", ["auto", "latent2rgb", "taesd", "vae_decoded_only", "none"]))
            .input(combo("vae_decode", ["true", "true (tiled)", "false"]))
            .optional(link("optional_vae", Kind::VAE))
            .optional(link("script", Kind::other("SCRIPT")))
            .hidden("prompt", Hidden::Prompt)
            .hidden("extra_pnginfo", Hidden::ExtraPngInfo)
            .hidden("my_unique_id", Hidden::UniqueId)
            .output(Kind::MODEL)
            .named_output("CONDITIONING+", Kind::CONDITIONING)
            .named_output("CONDITIONING-", Kind::CONDITIONING)
            .output(Kind::LATENT)
            .output(Kind::VAE)
            .output(Kind::IMAGE)
            .output_node()
            .module(MODULE),
        sample,
    );
    let mut stacker = Interface::new("LoRA Stacker", "Efficiency Nodes/Stackers")
        .input(combo("input_mode", ["simple", "advanced"]))
        .input(int("lora_count", 3, 0, ROWS as u64).with("step", 1));
    for [lora, weight, model, clip] in STACKER.iter() {
        stacker = stacker.input(lora_or_none(lora)).input(strength(weight)).input(strength(model));
        stacker = stacker.input(strength(clip));
    }
    registry
        .add(stacker.optional(link("lora_stack", LORA_STACK)).output(LORA_STACK).module(MODULE), stack_loras);
    registry.add(
        Interface::new("Control Net Stacker", "Efficiency Nodes/Stackers")
            .input(link("control_net", Kind::CONTROL_NET))
            .input(link("image", Kind::IMAGE))
            .input(float("strength", 1.0, 0.0, 10.0).with("step", 0.01))
            .input(float("start_percent", 0.0, 0.0, 1.0).with("step", 0.001))
            .input(float("end_percent", 1.0, 0.0, 1.0).with("step", 0.001))
            .optional(link("cnet_stack", CONTROL_NET_STACK))
            .named_output("CNET_STACK", CONTROL_NET_STACK)
            .module(MODULE),
        stack_control_nets,
    );
    registry.add(
        Interface::new("Apply ControlNet Stack", "Efficiency Nodes/Stackers")
            .input(link("positive", Kind::CONDITIONING))
            .input(link("negative", Kind::CONDITIONING))
            .optional(link("cnet_stack", CONTROL_NET_STACK))
            .named_output("CONDITIONING+", Kind::CONDITIONING)
            .named_output("CONDITIONING-", Kind::CONDITIONING)
            .module(MODULE),
        |inputs, context| {
            let sides = [inputs.conditioning("positive")?, inputs.conditioning("negative")?];
            let [positive, negative] = with_control_nets(inputs, context, sides)?;
            Ok(Outputs::of([Value::Conditioning(positive), Value::Conditioning(negative)]))
        },
    );
}

/// A whole number whose upper bound may be below 0.
fn whole(name: &'static str, default: i64, min: i64, max: i64) -> Input {
    let mut input = int(name, default, min, 0).with("max", max).with("step", 1);
    input.socket = Socket::Int { range: (min.into(), max.into()) };
    input
}

fn vae_or_baked() -> Input {
    let choices = Choices::Models { folder: "vae", also: &["Baked VAE"] };
    Input { socket: Socket::Combo { choices, tagged: false }, ..model_file("vae_name", "vae") }
}

/// What is on one of a node's outputs.
fn taken(outputs: &Outputs, index: usize) -> Result<Value, NodeError> {
    match outputs.slots.get(index) {
        Some(Slot::One(value)) => Ok(value.clone()),
        _ => Err(NodeError::Failed("a loader gave nothing".into())),
    }
}

fn load(inputs: &Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
    for (name, plain) in [("token_normalization", "none"), ("weight_interpretation", "comfy")] {
        let choice = inputs.string(name)?;
        if &*choice != plain {
            return Err(NodeError::input(name, format!("'{choice}' is not supported; take '{plain}'")));
        }
    }
    let checkpoint = loaders::checkpoint(inputs, context)?;
    let (Value::Model(mut model), Value::Clip(mut clip), baked) =
        (taken(&checkpoint, 0)?, taken(&checkpoint, 1)?, taken(&checkpoint, 2)?)
    else {
        return Err(NodeError::Failed("a loader gave something else".into()));
    };
    let vae = match &*inputs.string("vae_name")? {
        "Baked VAE" => baked,
        _ => taken(&loaders::vae(inputs, context)?, 0)?,
    };
    let name = inputs.string("lora_name")?;
    if &*name != "None" {
        let strengths = [inputs.float("lora_model_strength")?, inputs.float("lora_clip_strength")?];
        apply(context.catalog, &name, strengths, &mut model, Some(&mut clip))?;
    }
    for lora in lora_stack(inputs)? {
        let strengths = [lora.strength, lora.text_strength];
        apply(context.catalog, &lora.lora, strengths, &mut model, Some(&mut clip))?;
    }
    clip.last_layer = i32::try_from(inputs.int("clip_skip")?).ok();
    let encoded = |name: &str| -> Result<Arc<Vec<Cond>>, NodeError> {
        Ok(Arc::new(vec![encode_prompt(context, &clip, &inputs.string(name)?)?]))
    };
    let sides = [encoded("positive")?, encoded("negative")?];
    let [positive, negative] = with_control_nets(inputs, context, sides)?;
    Ok(Outputs::of([
        Value::Model(model),
        Value::Conditioning(positive),
        Value::Conditioning(negative),
        Value::Latent(Arc::new(Latent::new(empty(inputs)?))),
        vae,
        Value::Clip(clip),
        // Only plots of many pictures read these.
        Value::None,
    ]))
}

fn empty(inputs: &Inputs) -> Result<Tensor, NodeError> {
    let (width, height) = (inputs.size("empty_latent_width")? / 8, inputs.size("empty_latent_height")? / 8);
    let batch = inputs.size("batch_size")?;
    let values = batch.saturating_mul(4).saturating_mul(width).saturating_mul(height);
    if values > MOST_VALUES {
        return Err(NodeError::input("batch_size", format!("{batch} pictures of that size are too many")));
    }
    Ok(Tensor::zeros((batch, 4, height, width), DType::F32, &Device::Cpu)?)
}

fn lora_stack(inputs: &Inputs) -> Result<Vec<LoraSpec>, NodeError> {
    match inputs.get("lora_stack") {
        None => Ok(Vec::new()),
        Some(Value::LoraStack(stack)) => Ok(stack.clone()),
        Some(_) => Err(NodeError::input("lora_stack", "is no stack of LoRAs")),
    }
}

fn stack_loras(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let simple = &*inputs.string("input_mode")? == "simple";
    let mut stack = Vec::new();
    for [name, weight, model, clip] in STACKER.iter().take(inputs.size("lora_count")?) {
        let lora = inputs.string(name)?;
        if &*lora == "None" {
            continue;
        }
        let (model, clip) = if simple { (weight, weight) } else { (model, clip) };
        let (strength, text_strength) = (inputs.float(model)?, inputs.float(clip)?);
        stack.push(LoraSpec { lora: lora.to_string(), strength, text_strength });
    }
    stack.extend(lora_stack(inputs)?);
    Ok(Outputs::one(Value::LoraStack(stack)))
}

fn control_net_stack(inputs: &Inputs) -> Result<Vec<Value>, NodeError> {
    match inputs.get("cnet_stack") {
        None => Ok(Vec::new()),
        Some(Value::List(stack)) => Ok(stack.clone()),
        Some(_) => Err(NodeError::input("cnet_stack", "is no stack of ControlNets")),
    }
}

/// What `ControlNetApplyAdvanced` takes, by its names.
const CONTROL: [&str; 5] = ["control_net", "image", "strength", "start_percent", "end_percent"];

fn stack_control_nets(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let mut stack = control_net_stack(inputs)?;
    let one = CONTROL.map(|name| inputs.get(name).cloned().unwrap_or(Value::None));
    stack.push(Value::List(one.to_vec()));
    Ok(Outputs::one(Value::List(stack)))
}

fn with_control_nets(
    inputs: &Inputs,
    context: &Context<'_>,
    sides: [Arc<Vec<Cond>>; 2],
) -> Result<[Arc<Vec<Cond>>; 2], NodeError> {
    let mut sides = sides;
    for one in control_net_stack(inputs)? {
        let Value::List(values) = one else {
            return Err(NodeError::input("cnet_stack", "is no stack of ControlNets"));
        };
        let mut own: Inputs = Inputs(CONTROL.map(str::to_owned).into_iter().zip(values).collect());
        let [positive, negative] = sides;
        own.0.insert("positive".into(), Value::Conditioning(positive));
        own.0.insert("negative".into(), Value::Conditioning(negative));
        let applied = control_net::apply_advanced(&own, context)?;
        let (Value::Conditioning(positive), Value::Conditioning(negative)) =
            (taken(&applied, 0)?, taken(&applied, 1)?)
        else {
            return Err(NodeError::Failed("a ControlNet gave something else".into()));
        };
        sides = [positive, negative];
    }
    Ok(sides)
}

fn sample(inputs: &Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
    if inputs.get("script").is_some() {
        return Err(NodeError::input(
            "script",
            "scripts are not supported; take the nodes that they stand for",
        ));
    }
    let (model, latent) = (inputs.model("model")?, inputs.latent("latent_image")?);
    let (positive, negative) = (inputs.conditioning("positive")?, inputs.conditioning("negative")?);
    let vae: Option<Vae> =
        inputs.get("optional_vae").is_some().then(|| inputs.vae("optional_vae")).transpose()?;
    let denoise = inputs.float("denoise")?;
    let drawn = if denoise > 0.0 {
        let sampler = sampler(inputs, "sampler_name")?;
        let sampling = model_sampling(context, &model)?;
        let sigmas = extra_schedules::sigmas(
            &inputs.string("scheduler")?,
            &sampling,
            inputs.size("steps")?,
            denoise,
            sampler,
        )
        .map_err(|message| NodeError::input("scheduler", message))?;
        let seed = inputs.seed("seed")?;
        sampling::denoise(
            context,
            &Job {
                model: &model,
                positive: &positive,
                negative: Some(&negative),
                cfg: inputs.float("cfg")?,
                sampler,
                sigmas: &sigmas,
                noise_sigmas: None,
                noise: Noise::Seed(seed),
                step_seed: seed,
                latent: &latent,
            },
        )?
        .latent
    } else {
        latent
    };
    // Without a VAE nothing is decoded.
    let decode = inputs.string("vae_decode")?;
    let image = match &vae {
        Some(vae) if &*decode != "false" => {
            let tiling = if decode.contains("tiled") { Some(vae::tiles(320, 64)?) } else { None };
            Some(vae::decode(context, vae, &drawn, tiling)?)
        }
        _ => None,
    };
    let preview = inputs.string("preview_method")?;
    let ui = match (&*preview, &image) {
        ("none", _) | ("vae_decoded_only", None) => Some(serde_json::json!({ "images": [] })),
        (_, Some(image)) => Some(save_image::preview(image, context)?),
        _ => None,
    };
    let image = match image {
        Some(image) => image,
        // One pixel of nothing.
        None => Image::new(1, 1, 1, 4, vec![0.0; 4])
            .ok_or_else(|| NodeError::Failed("there is no picture".into()))?,
    };
    let outputs = Outputs::of([
        Value::Model(model),
        Value::Conditioning(positive),
        Value::Conditioning(negative),
        Value::Latent(drawn),
        vae.map_or(Value::None, Value::Vae),
        Value::Image(image),
    ]);
    Ok(match ui {
        Some(ui) => outputs.showing(ui),
        None => outputs,
    })
}
