//! Each network on the device against the same elsewhere: tiny ones against what diffusers and transformers gave in
//! `f32` (the reference data of `models/tests`), the full-size ones against the CPU in `f32`.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use darkroom_models::ComputeType;
use darkroom_models::adapter::Adapters;
use darkroom_models::arithmetic::Range;
use darkroom_models::checkpoint::Checkpoint;
use darkroom_models::clip::{ClipTextConfig, ClipTextEncoder, HiddenLayer};
use darkroom_models::controlnet::ControlNet;
use darkroom_models::unet::{UNet2DConditionModel, UNetConfig, UNetInput};
use darkroom_models::vae::{AutoencoderKl, VaeConfig};
use darkroom_models::weights::{WeightFile, Weights};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::likeness::{floats, not_numbers, relative_error};
use crate::record::Record;
use crate::{Outcome, Plan, random, weights};

/// `‖out − ref‖ / ‖ref‖` that is allowed of a whole network: the rounding of many layers, of their weights too.
fn limit(compute: ComputeType) -> f64 {
    match compute {
        ComputeType::Bf16 => 4e-2,
        ComputeType::F16 => 5e-3,
        ComputeType::Auto | ComputeType::Full => 1e-4,
        ComputeType::Fp8 => 1e-1,
    }
}

fn name_of(compute: ComputeType) -> &'static str {
    match compute {
        ComputeType::Auto => "auto",
        ComputeType::Full => "f32",
        ComputeType::Bf16 => "bf16",
        ComputeType::F16 => "f16",
        ComputeType::Fp8 => "fp8",
    }
}

/// What networks may be asked to compute in on this device.
pub(crate) fn compute_types(plan: &Plan) -> &'static [ComputeType] {
    match plan.target.is_cuda() {
        true => &[ComputeType::Bf16, ComputeType::F16, ComputeType::Full],
        false => &[ComputeType::Full],
    }
}

pub(crate) fn check(plan: &Plan, record: &mut Record) -> Outcome<()> {
    let golden = plan.root.join("models/tests/golden");
    if golden.is_dir() {
        for compute in compute_types(plan) {
            tiny(plan, record, &golden, *compute);
        }
    } else {
        record.skipped(
            "tiny networks",
            &format!("{} is not there; --root names the sources", golden.display()),
        );
    }
    full(plan, record)
}

fn compared(compute: ComputeType, actual: &Tensor, expected: &Tensor) -> Outcome<Value> {
    let (error, limit) = (relative_error(actual, expected)?, limit(compute));
    let broken = not_numbers(&floats(actual)?);
    Ok(json!({
        "dtype": name_of(compute), "error": error, "limit": limit, "within": error <= limit, "not_numbers": broken,
    }))
}

/// The reference's tensors of a file.
fn cases(golden: &Path, name: &str) -> Outcome<HashMap<String, Tensor>> {
    Ok(candle_core::safetensors::load(golden.join(name), &Device::Cpu)?)
}

/// A network's folder as diffusers writes it.
fn folder<C: DeserializeOwned>(folder: &Path, device: &Device) -> Outcome<(C, Weights)> {
    let config = serde_json::from_str(&std::fs::read_to_string(folder.join("config.json"))?)?;
    let files = ["model.safetensors", "diffusion_pytorch_model.safetensors"].map(|file| folder.join(file));
    let file = files.iter().find(|file| file.exists()).ok_or("a folder without weights")?;
    Ok((config, Weights::from_file(Arc::new(WeightFile::open(file)?), device)))
}

/// A forward pass' tensors.
struct Pass {
    latent: Tensor,
    timesteps: Tensor,
    context: Tensor,
    pooled: Option<Tensor>,
    size_ids: Option<Tensor>,
}

impl Pass {
    fn of(cases: &HashMap<String, Tensor>, name: &str, device: &Device) -> Outcome<Self> {
        let find = |part: &str| cases.get(&format!("{name}.{part}"));
        let need = |part: &str| find(part).ok_or_else(|| format!("no {name}.{part} in the reference"));
        let there = |x: &Tensor| x.to_device(device);
        Ok(Self {
            latent: there(need("latent")?)?,
            timesteps: there(need("timesteps")?)?,
            context: there(need("context")?)?,
            pooled: find("pooled").map(there).transpose()?,
            size_ids: find("size_ids").map(there).transpose()?,
        })
    }

    /// Random ones for a network of this config.
    fn random(seed: u64, config: &UNetConfig, rows: usize, cells: usize) -> Outcome<Self> {
        let draw = |name: &str, shape: &[usize]| random::tensor(shape, random::stream(seed, name), 1.0);
        let addition = config.addition.as_ref();
        let pooled = addition.map(|a| a.projection_input_dim - 6 * a.time_embed_dim);
        let sizes = [1024f32, 1024.0, 0.0, 0.0, 1024.0, 1024.0].repeat(rows);
        let times = (0..rows).map(|row| 900.0 - 333.0 * row as f32).collect::<Vec<_>>();
        Ok(Self {
            latent: draw("latent", &[rows, config.in_channels, cells, cells])?,
            timesteps: Tensor::from_vec(times, rows, &Device::Cpu)?,
            context: draw("context", &[rows, 77, config.cross_attention_dim])?,
            pooled: pooled.map(|width| draw("pooled", &[rows, width])).transpose()?,
            size_ids: addition.map(|_| Tensor::from_vec(sizes, (rows, 6), &Device::Cpu)).transpose()?,
        })
    }

    fn on(&self, device: &Device) -> Outcome<Self> {
        let there = |x: &Tensor| x.to_device(device);
        Ok(Self {
            latent: there(&self.latent)?,
            timesteps: there(&self.timesteps)?,
            context: there(&self.context)?,
            pooled: self.pooled.as_ref().map(there).transpose()?,
            size_ids: self.size_ids.as_ref().map(there).transpose()?,
        })
    }

    fn input(&self) -> UNetInput<'_> {
        UNetInput {
            latent: &self.latent,
            timesteps: &self.timesteps,
            context: &self.context,
            context_lengths: None,
            pooled: self.pooled.as_ref(),
            size_ids: self.size_ids.as_ref(),
            adapters: Adapters::none(),
        }
    }
}

fn tiny(plan: &Plan, record: &mut Record, golden: &Path, compute: ComputeType) {
    let (device, dtype) = (&plan.target.device, name_of(compute));
    for model in ["sdxl", "sd15"] {
        for case in ["batch", "odd"] {
            record.case(&format!("tiny {model} UNet, {case}, {dtype}"), 1.0, || {
                let (config, weights) = folder::<UNetConfig>(&golden.join(model).join("unet"), device)?;
                let unet = UNet2DConditionModel::load(&config, &weights.computing(compute, Range::Half))?;
                let cases = cases(golden, &format!("unet_{model}.safetensors"))?;
                let pass = Pass::of(&cases, case, device)?;
                let expected = cases.get(&format!("{case}.output")).ok_or("no output in the reference")?;
                compared(compute, &unet.forward(&pass.input())?, expected)
            });
        }
        for (part, input) in [("decoded", "latent"), ("encoded", "image")] {
            record.case(&format!("tiny {model} VAE, {part}, {dtype}"), 1.0, || {
                let (config, weights) = folder::<VaeConfig>(&golden.join(model).join("vae"), device)?;
                let vae = AutoencoderKl::load(&config, &weights.computing(compute, Range::Wide))?;
                let cases = cases(golden, &format!("vae_{model}.safetensors"))?;
                let input = cases.get(input).ok_or("no input in the reference")?.to_device(device)?;
                let actual = if part == "decoded" { vae.decode(&input)? } else { vae.encode(&input)? };
                let expected = cases.get(part).ok_or("no output in the reference")?;
                // The VAE is never in f16: bf16 stands in.
                let compute = if compute == ComputeType::F16 { ComputeType::Bf16 } else { compute };
                compared(compute, &actual, expected)
            });
        }
    }
    record.case(&format!("tiny SDXL ControlNet, {dtype}"), 1.0, || {
        let (config, _) = folder::<UNetConfig>(&golden.join("sdxl/unet"), device)?;
        let file = Arc::new(WeightFile::open(&golden.join("controlnet/sdxl.safetensors"))?);
        let network = ControlNet::from_file(file, &config, device, compute)?;
        let cases = cases(golden, "controlnet/sdxl_cases.safetensors")?;
        let hint = cases.get("even.a.hint").ok_or("no hint in the reference")?;
        let hint = (hint.to_dtype(DType::F32)? / 255.0)?.to_device(device)?;
        let features =
            network.forward(&Pass::of(&cases, "even", device)?.input(), &network.embed_hint(&hint)?)?;
        let expected = cases.get("even.a.middle").ok_or("no middle in the reference")?;
        compared(compute, &features.middle.permute((0, 3, 1, 2))?.contiguous()?, expected)
    });
    if compute != ComputeType::Full {
        return;
    }
    for (part, file) in [("text_encoder", "clip_l.safetensors"), ("text_encoder_2", "clip_g.safetensors")] {
        record.case(&format!("tiny {part}"), 1.0, || {
            let (config, weights) = folder::<ClipTextConfig>(&golden.join("sdxl").join(part), device)?;
            let encoder = ClipTextEncoder::load(&config, &weights)?;
            let cases = cases(golden, file)?;
            let tokens = cases.get("tokens").ok_or("no tokens in the reference")?.to_dtype(DType::U32)?;
            let encoding = encoder.encode(&tokens.to_vec2::<u32>()?, HiddenLayer::Skip(2))?;
            compared(compute, &encoding.hidden, cases.get("skip.2").ok_or("no output in the reference")?)
        });
    }
}

/// The random model: each network on the device, then on the CPU.
fn full(plan: &Plan, record: &mut Record) -> Outcome<()> {
    let cells = if plan.quick { 8 } else { 64 };
    let open = |device: &Device| Checkpoint::open(&weights::checkpoint(&plan.work), device);
    let cpu = open(&Device::Cpu)?;
    let there = open(&plan.target.device)?;

    let pass = Pass::random(plan.seed, &cpu.unet.config, 1, cells)?;
    let mut expected = None;
    for compute in compute_types(plan) {
        record.case(&format!("UNet, {} pixels a side, {}", 8 * cells, name_of(*compute)), 8.0, || {
            let reference = match &expected {
                Some(known) => Tensor::clone(known),
                None => {
                    let weights = cpu.unet.weights.computing(ComputeType::Full, Range::Half);
                    let unet = UNet2DConditionModel::load(&cpu.unet.config, &weights)?;
                    expected.insert(unet.forward(&pass.input())?).clone()
                }
            };
            // Loaded anew each time: weights can be taken once.
            let unet = open(&plan.target.device)?.unet;
            let network =
                UNet2DConditionModel::load(&unet.config, &unet.weights.computing(*compute, Range::Half))?;
            let actual = network.forward(&pass.on(&plan.target.device)?.input())?;
            compared(*compute, &actual, &reference)
        });
    }

    let draw = |name: &str, shape: &[usize]| random::tensor(shape, random::stream(plan.seed, name), 1.0);
    let mut expected = None;
    for compute in compute_types(plan).iter().filter(|compute| **compute != ComputeType::F16) {
        record.case(&format!("VAE decoder, {} pixels a side, {}", 8 * cells, name_of(*compute)), 8.0, || {
            let latent = draw("vae latent", &[1, cpu.vae.config.latent_channels, cells, cells])?;
            let load = |checkpoint: &Checkpoint, compute| -> Outcome<AutoencoderKl> {
                let weights = checkpoint.vae.weights.computing(compute, Range::Wide);
                Ok(AutoencoderKl::load(&checkpoint.vae.config, &weights)?)
            };
            let reference = match &expected {
                Some(known) => Tensor::clone(known),
                None => expected.insert(load(&cpu, ComputeType::Full)?.decode(&latent)?).clone(),
            };
            let vae = load(&open(&plan.target.device)?, *compute)?;
            compared(*compute, &vae.decode(&latent.to_device(&plan.target.device)?)?, &reference)
        });
    }

    let mut expected = None;
    for compute in compute_types(plan) {
        record.case(&format!("ControlNet, {} pixels a side, {}", 8 * cells, name_of(*compute)), 8.0, || {
            let hint = draw("hint", &[1, 3, 8 * cells, 8 * cells])?.abs()?.clamp(0.0, 1.0)?;
            let run = |device: &Device, compute: ComputeType| -> Outcome<Tensor> {
                let file = Arc::new(WeightFile::open(&weights::control_net(&plan.work))?);
                let network = ControlNet::from_file(file, &cpu.unet.config, device, compute)?;
                let hint = network.embed_hint(&hint.to_device(device)?)?;
                Ok(network.forward(&pass.on(device)?.input(), &hint)?.middle)
            };
            let reference = match &expected {
                Some(known) => Tensor::clone(known),
                None => expected.insert(run(&Device::Cpu, ComputeType::Full)?).clone(),
            };
            compared(*compute, &run(&plan.target.device, *compute)?, &reference)
        });
    }

    for (name, here, there) in [
        ("CLIP-L", Some(&cpu.clip_l), Some(&there.clip_l)),
        ("CLIP-G", cpu.clip_g.as_ref(), there.clip_g.as_ref()),
    ] {
        let (Some(here), Some(there)) = (here, there) else { continue };
        record.case(name, 4.0, || {
            let tokens: Vec<u32> = std::iter::once(here.config.bos_token_id)
                .chain((1..76).map(|i| (i * 577) % 40_000))
                .chain([here.config.eos_token_id])
                .collect();
            let run = |part: &darkroom_models::checkpoint::Component<ClipTextConfig>| -> Outcome<Tensor> {
                let encoder = ClipTextEncoder::load(&part.config, &part.weights)?;
                Ok(encoder.encode(std::slice::from_ref(&tokens), HiddenLayer::Skip(2))?.hidden)
            };
            // Weights stay in f16 and activations are f32 on both sides.
            let mut found = compared(ComputeType::Full, &run(there)?, &run(here)?)?;
            let limit = if plan.target.is_cuda() { 5e-3 } else { 1e-4 };
            found["limit"] = json!(limit);
            found["within"] = json!(found["error"].as_f64().is_some_and(|error| error <= limit));
            Ok(found)
        });
    }
    Ok(())
}
