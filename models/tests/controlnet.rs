//! ControlNets against diffusers and against a recorded run of ComfyUI.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests fail by panicking and say what they measured"
)]

mod support;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, IndexOp, Tensor};
use darkroom_models::Precision;
use darkroom_models::adapter::{Adapters, LayerAdapter, NetworkAdapter};
use darkroom_models::checkpoint::Checkpoint;
use darkroom_models::controlnet::ControlNet;
use darkroom_models::unet::{FreeU, UNet2DConditionModel, UNetConfig, UNetFeatures, UNetInput};
use darkroom_models::weights::WeightFile;
use support::{BATCH_TOLERANCE, Cases, REFERENCE_TOLERANCE, assert_close, folder, golden, relative_error};

/// What the reference scaled the two ControlNets' residuals by.
const STRENGTHS: [f64; 2] = [0.8, 0.35];
/// Weights in another type of the same values: sums in another order.
const TYPE_TOLERANCE: f32 = 1e-5;

fn file(name: &str) -> PathBuf {
    golden(&format!("controlnet/{name}.safetensors"))
}

fn unet(model: &str) -> (UNetConfig, UNet2DConditionModel) {
    let (config, weights) = folder::<UNetConfig>(&format!("{model}/unet"));
    let unet = UNet2DConditionModel::load(&config, &weights).unwrap();
    (config, unet)
}

fn open(name: &str, base: &UNetConfig) -> ControlNet {
    ControlNet::open(&file(name), base, &Device::Cpu).unwrap()
}

/// A forward pass' tensors, owned.
struct Case {
    latent: Tensor,
    timesteps: Tensor,
    context: Tensor,
    pooled: Option<Tensor>,
    size_ids: Option<Tensor>,
}

impl Case {
    fn open(cases: &Cases, name: &str) -> Self {
        Self {
            latent: cases.get(format!("{name}.latent")),
            timesteps: cases.get(format!("{name}.timesteps")),
            context: cases.get(format!("{name}.context")),
            pooled: cases.find(&format!("{name}.pooled")),
            size_ids: cases.find(&format!("{name}.size_ids")),
        }
    }

    fn row(&self, i: usize) -> Self {
        let row = |x: &Tensor| x.narrow(0, i, 1).unwrap();
        Self {
            latent: row(&self.latent),
            timesteps: row(&self.timesteps),
            context: row(&self.context),
            pooled: self.pooled.as_ref().map(row),
            size_ids: self.size_ids.as_ref().map(row),
        }
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

/// Bytes of a picture as values 0 to 1.
fn hint(cases: &Cases, name: &str) -> Tensor {
    (cases.get(name).to_dtype(DType::F32).unwrap() / 255.).unwrap()
}

fn residuals(net: &ControlNet, case: &Case, hint: &Tensor) -> UNetFeatures {
    net.forward(&case.input(), &net.embed_hint(hint).unwrap()).unwrap()
}

fn all(features: &UNetFeatures) -> Vec<&Tensor> {
    features.skips.iter().chain([&features.middle]).collect()
}

fn scaled(features: &UNetFeatures, strength: f64) -> candle_core::Result<UNetFeatures> {
    let skips = features.skips.iter().map(|skip| skip * strength).collect::<candle_core::Result<_>>()?;
    Ok(UNetFeatures { skips, middle: (&features.middle * strength)? })
}

/// One case of the reference, whose `a` and `b` are these two ControlNets.
fn equals_diffusers(model: &str, names: [&str; 2]) {
    let (base, unet) = unet(model);
    let nets = names.map(|name| open(name, &base));
    let cases = Cases::open(&format!("controlnet/{model}_cases.safetensors"));
    for name in ["even", "odd"] {
        let case = Case::open(&cases, name);
        let mut total = Vec::new();
        for (net, (letter, strength)) in nets.iter().zip(["a", "b"].into_iter().zip(STRENGTHS)) {
            let what = format!("{model} {name} {letter}");
            let residuals = residuals(net, &case, &hint(&cases, &format!("{name}.{letter}.hint")));
            assert!(cases.find(&format!("{name}.{letter}.skip.{}", residuals.skips.len())).is_none());
            let expected = (0..residuals.skips.len()).map(|i| format!("skip.{i}")).chain(["middle".into()]);
            for (residual, part) in all(&residuals).into_iter().zip(expected) {
                let expected = cases.get(format!("{name}.{letter}.{part}"));
                // The mean over the picture stands for every position.
                let (_, _, h, w) = expected.dims4().unwrap();
                let residual = residual.permute((0, 3, 1, 2)).unwrap();
                let residual = residual.i((.., .., ..h, ..w)).unwrap();
                assert_close(&format!("{what} {part}"), &residual, &expected, REFERENCE_TOLERANCE);
            }
            total.push(scaled(&residuals, strength).unwrap());
        }
        let steered = unet.forward_with(&case.input(), &FreeU::default(), |features| {
            total.iter().try_for_each(|residuals| features.add(residuals))
        });
        let expected = cases.get(format!("{name}.output"));
        assert_close(&format!("{model} {name} UNet"), &steered.unwrap(), &expected, REFERENCE_TOLERANCE);
        let alone = unet.forward(&case.input()).unwrap();
        assert!(relative_error(&alone, &expected) > 1e-2, "the residuals make no difference");
    }
}

#[test]
fn sdxl_controlnets_equal_diffusers_alone_and_together() {
    equals_diffusers("sdxl", ["sdxl", "sdxl_small"]);
}

#[test]
fn sd15_controlnets_equal_diffusers_alone_and_together() {
    equals_diffusers("sd15", ["sd15", "sd15_shuffle"]);
}

#[test]
fn the_first_residuals_alone_are_those_of_the_whole_pass_to_the_bit() {
    for (model, name) in [("sdxl", "sdxl"), ("sdxl", "sdxl_small"), ("sd15", "sd15_shuffle")] {
        let net = open(name, &unet(model).0);
        let cases = Cases::open(&format!("controlnet/{model}_cases.safetensors"));
        let (case, hint) = (Case::open(&cases, "odd"), hint(&cases, "odd.a.hint"));
        let whole = residuals(&net, &case, &hint);
        let hint = net.embed_hint(&hint).unwrap();
        for count in 1..=whole.skips.len() {
            let first = net.forward_shallow(&case.input(), &hint, count).unwrap();
            assert_eq!(first.len(), count);
            for (first, whole) in first.iter().zip(&whole.skips) {
                assert_close(&format!("{name}, {count}"), first, whole, 0.0);
            }
        }
    }
}

#[test]
fn averaged_residuals_are_the_same_everywhere() {
    let (base, _) = unet("sd15");
    let net = open("sd15_shuffle", &base);
    assert!(net.config().global_pool_conditions && !open("sd15", &base).config().global_pool_conditions);
    let cases = Cases::open("controlnet/sd15_cases.safetensors");
    let features = residuals(&net, &Case::open(&cases, "even"), &hint(&cases, "even.b.hint"));
    for feature in all(&features) {
        let (_, h, w, _) = feature.dims4().unwrap();
        let corner = |y: usize, x: usize| feature.i((.., y, x)).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(corner(0, 0), corner(h - 1, w - 1));
    }
}

/// The tensors of a golden ControlNet under their names in diffusers.
fn tensors(name: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(file(name), &Device::Cpu).unwrap()
}

fn saved(folder: &Path, tensors: &HashMap<String, Tensor>) -> PathBuf {
    let path = folder.join("t.safetensors");
    candle_core::safetensors::save(tensors, &path).unwrap();
    path
}

#[test]
fn cldms_names_give_the_same_bits_as_diffusers_names() {
    let names = std::fs::read_to_string(golden("controlnet/cldm_names.json")).unwrap();
    let names: BTreeMap<String, BTreeMap<String, String>> = serde_json::from_str(&names).unwrap();
    for model in ["sdxl", "sd15"] {
        let (base, _) = unet(model);
        let cases = Cases::open(&format!("controlnet/{model}_cases.safetensors"));
        let (case, hint) = (Case::open(&cases, "odd"), hint(&cases, "odd.a.hint"));
        let expected = residuals(&open(model, &base), &case, &hint);
        let cldm: HashMap<_, _> =
            tensors(model).into_iter().map(|(name, tensor)| (names[model][&name].clone(), tensor)).collect();
        let bare: HashMap<_, _> = cldm
            .iter()
            .map(|(name, tensor)| (name.strip_prefix("control_model.").unwrap().to_owned(), tensor.clone()))
            .collect();
        // Some published files hold the whole base model too.
        let mut whole = cldm.clone();
        let other = Tensor::zeros((2, 2), DType::F16, &Device::Cpu).unwrap();
        whole.insert("model.diffusion_model.input_blocks.0.0.weight".into(), other.clone());
        whole.insert("first_stage_model.decoder.conv_in.weight".into(), other);
        for (what, tensors) in [("cldm", cldm), ("bare", bare), ("whole", whole)] {
            let folder = tempfile::tempdir().unwrap();
            let net = ControlNet::open(&saved(folder.path(), &tensors), &base, &Device::Cpu).unwrap();
            let found = residuals(&net, &case, &hint);
            assert_eq!(found.skips.len(), expected.skips.len());
            for (found, expected) in all(&found).into_iter().zip(all(&expected)) {
                assert_close(&format!("{model} {what}"), found, expected, 0.0);
            }
        }
    }
}

#[test]
fn weights_of_every_float_type_are_read() {
    let (base, _) = unet("sdxl");
    let cases = Cases::open("controlnet/sdxl_cases.safetensors");
    let (case, hint) = (Case::open(&cases, "odd"), hint(&cases, "odd.a.hint"));
    let expected = residuals(&open("sdxl", &base), &case, &hint);
    // bf16 rounds the weights, to 3 significant digits.
    for (dtype, tolerance) in [(DType::F32, TYPE_TOLERANCE), (DType::BF16, 3e-2)] {
        let tensors =
            tensors("sdxl").into_iter().map(|(name, t)| (name, t.to_dtype(dtype).unwrap())).collect();
        let folder = tempfile::tempdir().unwrap();
        let net = ControlNet::open(&saved(folder.path(), &tensors), &base, &Device::Cpu).unwrap();
        let size = |t: &Tensor| (t.elem_count() * t.dtype().size_in_bytes()) as u64;
        assert_eq!(net.weight_bytes(), tensors.values().map(size).sum::<u64>());
        let found = residuals(&net, &case, &hint);
        for (found, expected) in all(&found).into_iter().zip(all(&expected)) {
            assert_close(&format!("{dtype:?}"), found, expected, tolerance);
        }
    }
}

#[test]
fn a_batched_row_equals_the_row_alone_with_its_own_hint() {
    let (base, _) = unet("sdxl");
    let net = open("sdxl", &base);
    let cases = Cases::open("controlnet/sdxl_cases.safetensors");
    let (case, hint) = (Case::open(&cases, "even"), hint(&cases, "even.a.hint"));
    let together = residuals(&net, &case, &hint);
    let row = |x: &Tensor, i: usize| x.narrow(0, i, 1).unwrap();
    for i in 0..2 {
        let alone = residuals(&net, &case.row(i), &row(&hint, i));
        let other = residuals(&net, &case.row(i), &row(&hint, 1 - i));
        for ((together, alone), other) in all(&together).into_iter().zip(all(&alone)).zip(all(&other)) {
            assert_close("row", &row(together, i), alone, BATCH_TOLERANCE);
            assert!(relative_error(other, alone) > 1e-3, "the hint makes no difference");
        }
    }
}

#[test]
fn what_changes_the_unets_layers_leaves_the_controlnet_alone() {
    let (base, unet) = unet("sdxl");
    let net = open("sdxl", &base);
    let cases = Cases::open("controlnet/sdxl_cases.safetensors");
    let (case, hint) = (Case::open(&cases, "even"), hint(&cases, "even.a.hint"));
    let bias = Some(Tensor::full(3f32, 8, &Device::Cpu).unwrap());
    let change = LayerAdapter::Replaced { weight: None, bias };
    let adapter = NetworkAdapter::new(HashMap::from([("conv_in".to_owned(), change)]));
    let adapters = Adapters::all(Arc::new(adapter), 2);
    let input = UNetInput { adapters: &adapters, ..case.input() };
    let plain = unet.forward(&case.input()).unwrap();
    assert!(relative_error(&unet.forward(&input).unwrap(), &plain) > 1e-3);
    let expected = residuals(&net, &case, &hint);
    let found = net.forward(&input, &net.embed_hint(&hint).unwrap()).unwrap();
    for (found, expected) in all(&found).into_iter().zip(all(&expected)) {
        assert_close("adapters", found, expected, 0.0);
    }
}

#[test]
fn wrong_shapes_are_refused() {
    let (base, _) = unet("sdxl");
    let net = open("sdxl", &base);
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    for shape in [&[1, 1, 64, 64][..], &[1, 3, 60, 64], &[1, 3, 64, 0], &[0, 3, 64, 64], &[3, 64, 64]] {
        assert!(net.embed_hint(&zeros(shape)).is_err(), "{shape:?}");
    }
    let cases = Cases::open("controlnet/sdxl_cases.safetensors");
    let mut case = Case::open(&cases, "even");
    for shape in [&[1, 8, 12, 8][..], &[2, 8, 11, 8], &[2, 8, 12, 16], &[2, 8, 96]] {
        let error = net.forward(&case.input(), &zeros(shape)).unwrap_err().to_string();
        assert!(error.contains("embedded hint"), "{shape:?}: {error}");
    }
    case.latent = zeros(&[2, 5, 8, 12]);
    let error = net.forward(&case.input(), &zeros(&[2, 8, 12, 8])).unwrap_err().to_string();
    assert!(error.contains("latent"), "{error}");
}

#[test]
fn residuals_equal_comfyuis() {
    let recorded = Path::new(env!("CARGO_MANIFEST_DIR")).join("../pipelines/tests/golden/comfyui");
    let base = Checkpoint::open(&recorded.join("sdxl-tiny.safetensors"), &Device::Cpu).unwrap().unet.config;
    let file = Arc::new(WeightFile::open(&recorded.join("controlnet-tiny.safetensors")).unwrap());
    let net = ControlNet::from_file(file, &base, &Device::Cpu, Precision::Full).unwrap();
    let call = candle_core::safetensors::load(recorded.join("controlnet.safetensors"), &Device::Cpu).unwrap();
    // Recorded channels-last, one picture for both rows.
    let hint = (call["hint"].to_dtype(DType::F32).unwrap() / 255.).unwrap().permute((0, 3, 1, 2)).unwrap();
    let embedded = net.embed_hint(&hint).unwrap().repeat((2, 1, 1, 1)).unwrap();
    let case = Case {
        latent: call["latent"].clone(),
        timesteps: call["timesteps"].clone(),
        context: call["context"].clone(),
        pooled: Some(call["pooled"].clone()),
        size_ids: Some(call["size_ids"].clone()),
    };
    let strength = f64::from(call["strength"].to_vec1::<f32>().unwrap()[0]);
    let features = scaled(&net.forward(&case.input(), &embedded).unwrap(), strength).unwrap();
    let names = (0..features.skips.len()).map(|i| format!("control.output.{i}"));
    assert!(!call.contains_key(&format!("control.output.{}", features.skips.len())));
    for (feature, name) in all(&features).into_iter().zip(names.chain(["control.middle.0".into()])) {
        // Recorded at 8 by 8 positions spread over the picture.
        let (_, h, w, _) = feature.dims4().unwrap();
        let every = |side: usize| {
            let indices = (0..8).map(|i| (i * side / 8) as u32).collect::<Vec<_>>();
            Tensor::from_vec(indices, 8, &Device::Cpu).unwrap()
        };
        let feature = feature.index_select(&every(h), 1).unwrap().index_select(&every(w), 2).unwrap();
        let feature = feature.permute((0, 3, 1, 2)).unwrap().contiguous().unwrap();
        assert_close(&name, &feature, &call[&name], REFERENCE_TOLERANCE);
    }
}
