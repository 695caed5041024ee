//! Makes the model that everything large is measured with: SDXL's shapes, a ControlNet and two LoRAs, all of seeded
//! random numbers in `f16`. Speed and memory depend on shapes and types, not on what a model has learnt. Values are
//! scaled as initialisations are, so that activations stay finite. A diffusers folder, which both sides read.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use darkroom_models::clip::ClipTextConfig;
use darkroom_models::unet::UNetConfig;
use darkroom_models::vae::VaeConfig;
use half::f16;
use rayon::prelude::*;
use serde_json::{Map, Value, json};

use crate::architecture::{self, Layer};
use crate::configs::{self, Configs};
use crate::record::Record;
use crate::{Outcome, Plan, random, speed};

pub(crate) const MODEL: &str = "random_sdxl";
pub(crate) const CONTROL_NET: &str = "random_canny";
pub(crate) const LORAS: [&str; 2] = ["random_a", "random_b"];

/// Rank of the LoRAs.
const RANK: usize = 16;
/// Numbers of a piece that one core makes.
const PIECE: usize = 1 << 20;
/// Pieces made before they are written.
const PIECES: usize = 32;
/// Any will do; the same one makes the same weights.
const SEED: u64 = 20_260;

/// The folder that a server would take as its models folder.
pub(crate) fn models(work: &Path) -> PathBuf {
    work.join("models")
}

/// The model, as a diffusers folder.
pub(crate) fn checkpoint(work: &Path) -> PathBuf {
    models(work).join("checkpoints").join(MODEL)
}

pub(crate) fn control_net(work: &Path) -> PathBuf {
    models(work).join("controlnet").join(format!("{CONTROL_NET}.safetensors"))
}

pub(crate) fn lora(work: &Path, name: &str) -> PathBuf {
    models(work).join("loras").join(format!("{name}.safetensors"))
}

/// The configs that a run is about.
pub(crate) fn configs(plan: &Plan) -> Configs {
    if plan.quick { Configs::tiny() } else { Configs::full() }
}

pub(crate) fn make(plan: &Plan, record: &mut Record) -> Outcome<()> {
    let mut counted = Map::new();
    let sides: &[(usize, usize)] = match plan.quick {
        true => &[(64, 64), (64, 96)],
        false => &[(512, 512), (1024, 1024), (1024, 1536), (1536, 1536)],
    };
    for size in sides {
        let ((step, decode), (guided, _)) =
            (speed::flops(plan, *size, false)?, speed::flops(plan, *size, true)?);
        let tflop = json!({"step": step / 1e12, "step_with_control": guided / 1e12, "decode": decode / 1e12});
        counted.insert(format!("{}x{}", size.0, size.1), tflop);
    }
    record.fact("tflop_a_picture", &Value::Object(counted));
    let made = plan.work.join("made.json");
    let wanted = json!({"tiny": plan.quick, "seed": SEED, "version": 1});
    if fs::read_to_string(&made)
        .is_ok_and(|text| serde_json::from_str::<Value>(&text).is_ok_and(|is| is == wanted))
    {
        record.skipped("weights", "they are there already");
        return Ok(());
    }
    record.case("weights", 0.0, || {
        let bytes = write_all(plan)?;
        fs::write(&made, wanted.to_string())?;
        Ok(json!({"bytes": bytes}))
    });
    Ok(())
}

fn write_all(plan: &Plan) -> Outcome<u64> {
    let (all, folder) = (configs(plan), checkpoint(&plan.work));
    let unet: UNetConfig = Configs::read(&all.unet)?;
    let vae: VaeConfig = Configs::read(&all.vae)?;
    let clip = |config: &Value| Configs::read::<ClipTextConfig>(config);
    let pictures = [architecture::vae_encoder(&vae, 8, 8), architecture::vae_decoder(&vae, 8, 8)].concat();
    let first = unet.block_out_channels.first().copied().unwrap_or(0);
    let control =
        [architecture::control_net(&unet, 8, 8, 77), architecture::hint(&all.hint, first, 8, 8)].concat();
    let unet = architecture::unet(&unet, 8, 8, 77);
    let texts = [
        architecture::clip(&clip(&all.text_encoder)?, false),
        architecture::clip(&clip(&all.text_encoder_2)?, true),
    ];

    for (part, config) in [
        ("unet", &all.unet),
        ("vae", &all.vae),
        ("text_encoder", &all.text_encoder),
        ("text_encoder_2", &all.text_encoder_2),
    ] {
        write_json(&folder.join(part).join("config.json"), config)?;
    }
    write_json(&folder.join("scheduler").join("scheduler_config.json"), &configs::scheduler())?;
    write_json(&folder.join("model_index.json"), &configs::model_index())?;
    write_json(&plan.work.join("control_net").join("config.json"), &all.control_net())?;

    let network = "diffusion_pytorch_model.safetensors";
    let mut files = vec![
        (folder.join("unet").join(network), "unet", weights_of(&unet)),
        (folder.join("vae").join(network), "vae", weights_of(&pictures)),
        (folder.join("text_encoder/model.safetensors"), "text_encoder", weights_of(&texts[0])),
        (folder.join("text_encoder_2/model.safetensors"), "text_encoder_2", weights_of(&texts[1])),
        (control_net(&plan.work), "control", weights_of(&control)),
    ];
    for name in LORAS {
        files.push((lora(&plan.work, name), name, lora_weights(&unet)));
    }
    let written = files
        .par_iter()
        .map(|(path, part, tensors)| write_safetensors(path, part, tensors))
        .collect::<std::io::Result<Vec<u64>>>()?;
    Ok(written.into_iter().sum())
}

fn write_json(path: &Path, value: &Value) -> std::io::Result<()> {
    fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
    fs::write(path, format!("{value:#}\n"))
}

type Shapes = BTreeMap<String, Vec<usize>>;

fn weights_of(layers: &[Layer]) -> Shapes {
    layers.iter().flat_map(Layer::weights).collect()
}

/// PEFT's names: what both sides know. Every linear layer of the transformers.
fn lora_weights(unet: &[Layer]) -> Shapes {
    let mut shapes = Shapes::new();
    for layer in unet {
        let Layer::Linear { name, out, inner, .. } = layer else { continue };
        if name.contains(".attentions.") {
            shapes.insert(format!("unet.{name}.lora_A.weight"), vec![RANK, *inner]);
            shapes.insert(format!("unet.{name}.lora_B.weight"), vec![*out, RANK]);
        }
    }
    shapes
}

/// Mean and deviation of a tensor's values.
fn scale(part: &str, name: &str, shape: &[usize]) -> (f32, f32) {
    let (layer, kind) = name.rsplit_once('.').unwrap_or((name, ""));
    if shape.len() == 1 {
        let of_norm = layer.rsplit('.').next().is_some_and(|last| last.contains("norm"));
        return (if of_norm && kind == "weight" { 1.0 } else { 0.0 }, 0.02);
    }
    if part.starts_with("text") && name.contains("embedding") {
        return (0.0, 0.02);
    }
    let inputs: usize = shape.iter().skip(1).product();
    // What is predicted stays small beside the noise; what a ControlNet or a LoRA adds, beside what is there.
    let gain = match (part, layer) {
        ("unet", "conv_out") => 0.1,
        ("control", layer) if layer.starts_with("controlnet_") && !layer.contains("cond") => 0.1,
        (_, layer) if layer.ends_with("lora_B") => 0.1,
        _ => 1.0,
    };
    (0.0, gain / (inputs as f32).sqrt())
}

fn write_safetensors(path: &Path, part: &str, tensors: &Shapes) -> std::io::Result<u64> {
    fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut offset = 0;
    for (name, shape) in tensors {
        let end = offset + 2 * shape.iter().product::<usize>();
        header.insert(name.clone(), json!({"dtype": "F16", "shape": shape, "data_offsets": [offset, end]}));
        offset = end;
    }
    let mut text = Value::Object(header).to_string();
    text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
    let mut file = BufWriter::new(File::create(path)?);
    file.write_all(&(text.len() as u64).to_le_bytes())?;
    file.write_all(text.as_bytes())?;
    for (name, shape) in tensors {
        let (mean, deviation) = scale(part, name, shape);
        let stream = random::stream(SEED, &format!("{part}/{name}"));
        let count = shape.iter().product::<usize>();
        for first in (0..count).step_by(PIECE * PIECES) {
            let until = count.min(first + PIECE * PIECES);
            let pieces: Vec<Vec<u8>> = (first..until)
                .into_par_iter()
                .step_by(PIECE)
                .map(|from| {
                    let numbers = from..until.min(from + PIECE);
                    numbers
                        .flat_map(|index| {
                            f16::from_f32(mean + deviation * random::normal(stream, index as u64))
                                .to_le_bytes()
                        })
                        .collect()
                })
                .collect();
            for piece in pieces {
                file.write_all(&piece)?;
            }
        }
    }
    file.flush()?;
    Ok(8 + text.len() as u64 + offset as u64)
}
