//! LoRAs against ComfyUI, LyCORIS and PEFT, and the two ways to apply them against each other.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests fail by panicking and say what they measured"
)]

#[path = "support/safetensors_bytes.rs"]
mod safetensors_bytes;
mod support;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use darkroom_models::adapter::{Adapters, LayerAdapter};
use darkroom_models::checkpoint::{Layout, ModelKind, inspect};
use darkroom_models::clip::{ClipEncoding, ClipTextConfig, ClipTextEncoder, HiddenLayer};
use darkroom_models::lora::{
    DenoiserKind, Family, Lora, LoraError, LoraFile, LoraPart, LoraTarget, adapter, merge,
};
use darkroom_models::unet::{UNet2DConditionModel, UNetConfig, UNetInput};
use darkroom_models::weights::{Kept, KeptOrder, Stored, Transform, WeightFile, Weights};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use support::{Cases, assert_close, golden, relative_error};

fn open(name: &str) -> LoraFile {
    let file = WeightFile::open(&golden(&format!("lora/{name}.safetensors"))).unwrap();
    LoraFile::open(Arc::new(file)).unwrap()
}

/// The shape of ComfyUI's recorded UNet, as far as names depend on it.
fn recorded_config() -> UNetConfig {
    serde_json::from_value(serde_json::json!({
        "block_out_channels": [32, 64, 128],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 1, 2],
        "attention_head_dim": [1, 1, 2],
        "cross_attention_dim": 128,
        "use_linear_projection": true,
    }))
    .unwrap()
}

/// What a network would keep that took the `.base` tensors of the recording that begin with `part`.
fn recorded_base(file: &Arc<WeightFile>, part: &str) -> Kept {
    let mut tensors = BTreeMap::new();
    for name in file.header().tensors.keys() {
        if let Some(layer) = name.strip_prefix(part).and_then(|name| name.strip_suffix(".base")) {
            let stored = Stored { file: file.clone(), name: name.clone(), transform: Transform::None };
            tensors.insert(format!("{layer}.weight"), stored);
        }
    }
    keep(&Weights::new("recorded", tensors, &Device::Cpu))
}

/// Takes everything, as a network without convolutions would.
fn keep(weights: &Weights) -> Kept {
    weights.keep();
    for name in weights.names() {
        weights.take(&name, &weights.shape(&name).unwrap()).unwrap();
    }
    weights.kept()
}

fn bits(x: &Tensor) -> Vec<u32> {
    x.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

#[test]
fn merged_weights_are_comfyuis_to_the_last_bit() {
    let config = recorded_config();
    let recorded = Cases::open("lora/comfyui.safetensors");
    let folder = tempfile::tempdir().unwrap();
    let stored = Arc::new(WeightFile::open(&golden("lora/comfyui.safetensors")).unwrap());
    // ComfyUI recorded what it computed before rounding, so bases in f32 give that very number.
    let wide = widened("lora/comfyui.safetensors", &folder);
    for (run, file) in [("d1", &stored), ("d3", &stored), ("d1", &wide), ("d3", &wide)] {
        let [unet, clip_l, clip_g] =
            &["unet.", "clip_l.", "clip_g."].map(|part| recorded_base(file, &format!("{run}.{part}")));
        let target = LoraTarget {
            denoiser: unet,
            kind: Some(DenoiserKind::UNet(&config)),
            clip_l,
            clip_g: Some(clip_g),
        };
        let lora = open(&format!("comfyui_{run}")).bind(&target).unwrap();
        assert!(lora.unmatched.is_empty(), "{:?}", lora.unmatched);
        let mut compared = 0;
        for (prefix, kept, part) in [
            ("unet.", unet, &lora.unet),
            ("clip_l.", clip_l, &lora.clip_l),
            ("clip_g.", clip_g, &lora.clip_g),
        ] {
            for (name, tensor) in merge(kept, &[(part, 0.8)]).unwrap() {
                let layer = format!("{run}.{prefix}{}", name.trim_end_matches(".weight"));
                let expected = recorded.get(format!("{layer}.patched"));
                let stored = kept.get(&name).unwrap().tensor.dtype();
                assert_eq!(tensor.dtype(), stored, "{name}");
                let expected = expected.to_dtype(stored).unwrap().to_dtype(DType::F32).unwrap();
                assert_eq!(bits(&tensor.to_dtype(DType::F32).unwrap()), bits(&expected), "{layer}");
                compared += 1;
            }
        }
        assert_eq!(compared, 4);
    }
}

const STRENGTHS: [f64; 2] = [1.0, 0.6];
/// LoRA files by the model whose UNet they change.
const SDXL: [&str; 13] = [
    "lora",
    "locon_mid",
    "dora_in",
    "dora_out",
    "peft_dora",
    "loha",
    "loha_mid",
    "loha_dora",
    "lokr",
    "lokr_whole",
    "lokr_both",
    "lokr_mid",
    "differences",
];
const SD15: [&str; 2] = ["pointwise_convolution", "pointwise_linear"];

/// A tiny model, its weights in `f32`, and what its networks kept.
struct Model {
    name: &'static str,
    _folder: tempfile::TempDir,
    config: UNetConfig,
    file: Arc<WeightFile>,
    unet: UNet2DConditionModel,
    kept: Kept,
    clip: Kept,
}

/// The tensors of a golden file in `f32`, as a file.
fn widened(golden_file: &str, folder: &tempfile::TempDir) -> Arc<WeightFile> {
    let tensors = candle_core::safetensors::load(golden(golden_file), &Device::Cpu).unwrap();
    let wide: HashMap<_, _> =
        tensors.into_iter().map(|(name, x)| (name, x.to_dtype(DType::F32).unwrap())).collect();
    let path = folder.path().join(golden_file.replace('/', "_"));
    candle_core::safetensors::save(&wide, &path).unwrap();
    Arc::new(WeightFile::open(&path).unwrap())
}

impl Model {
    fn open(name: &'static str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = std::fs::read_to_string(golden(&format!("{name}/unet/config.json"))).unwrap();
        let config: UNetConfig = serde_json::from_str(&config).unwrap();
        let file = widened(&format!("{name}/unet/diffusion_pytorch_model.safetensors"), &folder);
        let weights = Weights::from_file(file.clone(), &Device::Cpu);
        weights.keep();
        let unet = UNet2DConditionModel::load(&config, &weights).unwrap();
        let clip = widened(&format!("{name}/text_encoder/model.safetensors"), &folder);
        let clip = keep(&Weights::from_file(clip, &Device::Cpu));
        Self { name, _folder: folder, config, file, unet, kept: weights.kept(), clip }
    }

    fn target(&self) -> LoraTarget<'_> {
        LoraTarget {
            denoiser: &self.kept,
            kind: Some(DenoiserKind::UNet(&self.config)),
            clip_l: &self.clip,
            clip_g: None,
        }
    }

    fn bind(&self, file: &LoraFile) -> Lora {
        let lora = file.bind(&self.target()).unwrap();
        assert!(lora.unmatched.is_empty(), "{}: {:?}", file.name(), lora.unmatched);
        lora
    }

    fn with(&self, stack: &[(&LoraPart, f64)]) -> UNet2DConditionModel {
        let weights = self.kept.with_replaced(merge(&self.kept, stack).unwrap());
        UNet2DConditionModel::load(&self.config, &weights).unwrap()
    }

    fn forward(&self, unet: &UNet2DConditionModel, adapters: &Adapters) -> Tensor {
        let cases = Cases::open(&format!("unet_{}.safetensors", self.name));
        let (pooled, size_ids) = (cases.find("batch.pooled"), cases.find("batch.size_ids"));
        let input = UNetInput {
            latent: &cases.get("batch.latent"),
            timesteps: &cases.get("batch.timesteps"),
            context: &cases.get("batch.context"),
            context_lengths: None,
            pooled: pooled.as_ref(),
            size_ids: size_ids.as_ref(),
            adapters,
        };
        unet.forward(&input).unwrap()
    }

    /// Fails unless every kept tensor is the file's own, bit by bit.
    fn assert_pristine(&self) {
        for (name, kept) in self.kept.iter() {
            let stored = self.file.tensor(name, &Device::Cpu).unwrap();
            let stored = match kept.order {
                KeptOrder::Canonical => stored,
                KeptOrder::ChannelsLast => stored.permute((0, 2, 3, 1)).unwrap().contiguous().unwrap(),
            };
            assert_eq!(bits(&kept.tensor), bits(&stored), "{name}");
        }
    }
}

/// A kept tensor in its canonical order.
fn canonical(kept: &Kept, name: &str, tensor: &Tensor) -> Tensor {
    match kept.get(name).unwrap().order {
        KeptOrder::Canonical => tensor.clone(),
        KeptOrder::ChannelsLast => tensor.permute((0, 3, 1, 2)).unwrap().contiguous().unwrap(),
    }
}

#[test]
fn every_kind_merges_as_its_trainer_and_comfyui_merge_it() {
    let expected = Cases::open("lora/kinds.safetensors");
    for (model, files) in [("sdxl", &SDXL as &[_]), ("sd15", &SD15)] {
        let model = Model::open(model);
        for file in files {
            let lora = model.bind(&open(file));
            for strength in STRENGTHS {
                let mut compared = 0;
                for (name, merged) in merge(&model.kept, &[(&lora.unet, strength)]).unwrap() {
                    // PEFT has no strengths between 0 and 1.
                    let Some(expected) = expected.find(&format!("{file}.{strength:.1}.{name}")) else {
                        assert_eq!((*file, strength), ("peft_dora", 0.6), "{name}");
                        continue;
                    };
                    let merged = canonical(&model.kept, &name, &merged);
                    assert_close(&format!("{file} {strength} {name}"), &merged, &expected, 2e-6);
                    let before = canonical(&model.kept, &name, &model.kept.get(&name).unwrap().tensor);
                    assert!(relative_error(&before, &expected) > 1e-2, "{file} {name} changes nothing");
                    compared += 1;
                }
                assert!(compared > 0 || *file == "peft_dora", "{file}");
            }
        }
        model.assert_pristine();
    }
}

#[test]
fn adapters_and_merged_weights_draw_the_same_for_every_kind() {
    for (model, files) in [("sdxl", &SDXL as &[_]), ("sd15", &SD15)] {
        let model = Model::open(model);
        let plain = model.forward(&model.unet, Adapters::none());
        for file in files {
            let lora = model.bind(&open(file));
            let stack = [(&lora.unet, 0.6)];
            let adapter = adapter(&model.kept, &stack).unwrap();
            let merged = model.forward(&model.with(&stack), Adapters::none());
            let adapted = model.forward(&model.unet, &Adapters::all(adapter.into(), 3));
            assert_close(file, &adapted, &merged, 1e-5);
            let effect = relative_error(&merged, &plain);
            assert!(effect > 1e-3, "{file} changes the output by {effect} only");
        }
        model.assert_pristine();
    }
}

#[test]
fn rows_with_different_stacks_and_without_draw_as_each_alone() {
    let model = Model::open("sdxl");
    let parts = ["lora", "loha", "dora_in", "locon_mid"].map(|file| model.bind(&open(file)).unet);
    let [lora, loha, dora, mid] = &parts;
    let stacks: [&[(&LoraPart, f64)]; 3] =
        [&[(lora, 0.8), (mid, -0.5)], &[(loha, 1.2), (lora, 0.3)], &[(dora, 1.0)]];
    let adapters = stacks.map(|stack| Arc::new(adapter(&model.kept, stack).unwrap()));
    assert!(adapters[0].get("down_blocks.1.resnets.0.conv1").is_some());
    let plain = model.forward(&model.unet, Adapters::none());
    let merged = stacks.map(|stack| model.forward(&model.with(stack), Adapters::none()));
    for rows in [[Some(0), Some(1), Some(2)], [Some(2), None, Some(0)], [None, Some(1), None]] {
        let groups = rows
            .iter()
            .enumerate()
            .filter_map(|(row, stack)| Some((row..row + 1, adapters[(*stack)?].clone())))
            .collect();
        let together = model.forward(&model.unet, &Adapters::new(groups));
        for (row, stack) in rows.iter().enumerate() {
            let alone = stack.map_or(&plain, |stack| &merged[stack]);
            let row_of = |x: &Tensor| x.narrow(0, row, 1).unwrap();
            assert_close(&format!("row {row} of {rows:?}"), &row_of(&together), &row_of(alone), 1e-5);
        }
    }
    model.assert_pristine();
}

#[test]
fn plain_stacks_become_one_pair_of_factors_a_layer() {
    let model = Model::open("sdxl");
    let [lora, mid] = &["lora", "locon_mid"].map(|file| model.bind(&open(file)).unet);
    let adapter = adapter(&model.kept, &[(lora, 0.5), (mid, 2.0), (lora, 0.0)]).unwrap();
    let Some(LayerAdapter::LowRank { down, up }) = adapter.get("down_blocks.1.resnets.0.conv1") else {
        panic!("not low-rank")
    };
    assert_eq!((down.dims(), up.dims()), (&[8, 3, 3, 8][..], &[16, 8][..]));
    assert_eq!((down.dtype(), up.dtype()), (DType::F32, DType::F32));
    let Some(LayerAdapter::LowRank { down, .. }) = adapter.get("down_blocks.1.resnets.0.conv_shortcut")
    else {
        panic!("not low-rank")
    };
    assert_eq!(down.dims(), [4, 8]);
}

/// Random tensors as a LoRA file.
fn made(folder: &tempfile::TempDir, tensors: Vec<(String, Tensor)>) -> Result<LoraFile, LoraError> {
    let path = folder.path().join("made.safetensors");
    let tensors: HashMap<_, _> = tensors.into_iter().collect();
    candle_core::safetensors::save(&tensors, &path).unwrap();
    LoraFile::open(Arc::new(WeightFile::open(&path).unwrap()))
}

fn normal(shape: &[usize]) -> Tensor {
    Tensor::randn(0f32, 0.3, shape, &Device::Cpu).unwrap()
}

#[test]
fn text_encoders_encode_the_same_with_adapters_and_with_merged_weights() {
    for (folder_name, cases, prefix) in [
        ("sd15/text_encoder", "clip_l.safetensors", "lora_te_"),
        ("sdxl/text_encoder_2", "clip_g.safetensors", "lora_te2_"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let config = std::fs::read_to_string(golden(&format!("{folder_name}/config.json"))).unwrap();
        let config: ClipTextConfig = serde_json::from_str(&config).unwrap();
        let file = widened(&format!("{folder_name}/model.safetensors"), &folder);
        let weights = Weights::from_file(file, &Device::Cpu);
        weights.keep();
        let encoder = ClipTextEncoder::load(&config, &weights).unwrap();
        let kept = weights.kept();
        let mut tensors = Vec::new();
        for (name, tensor) in kept.iter() {
            let Some(layer) = name.strip_suffix(".weight") else { continue };
            if let ([out, inputs], false) = (tensor.shape().as_slice(), layer.contains("embedding")) {
                let module = layer.trim_start_matches("text_model.").replace('.', "_");
                let module = format!("{prefix}text_model_{module}");
                tensors.push((format!("{module}.lora_down.weight"), normal(&[2, *inputs])));
                tensors.push((format!("{module}.lora_up.weight"), normal(&[*out, 2])));
                tensors.push((format!("{module}.alpha"), Tensor::new(1f32, &Device::Cpu).unwrap()));
            }
        }
        let layers = tensors.len() / 3;
        let model = Model::open("sdxl");
        let target = LoraTarget { clip_l: &kept, clip_g: Some(&kept), ..model.target() };
        let lora = made(&folder, tensors).unwrap().bind(&target).unwrap();
        assert!(lora.unmatched.is_empty(), "{:?}", lora.unmatched);
        let part = if prefix == "lora_te2_" { &lora.clip_g } else { &lora.clip_l };
        assert_eq!(part.len(), layers);
        let merged = kept.with_replaced(merge(&kept, &[(part, 0.7)]).unwrap());
        let merged = ClipTextEncoder::load(&config, &merged).unwrap();
        let adapter = Arc::new(adapter(&kept, &[(part, 0.7)]).unwrap());
        let tokens = Cases::open(cases).get("tokens").to_dtype(DType::U32).unwrap().to_vec2::<u32>().unwrap();
        let last = tokens.len() - 1;
        let adapters = Adapters::new(vec![(0..last, adapter)]);
        let together = encoder.encode_with(&tokens, &[], HiddenLayer::Skip(2), &adapters).unwrap();
        let [plain, merged] =
            [&encoder, &merged].map(|encoder| encoder.encode(&tokens, HiddenLayer::Skip(2)).unwrap());
        let rows = |x: &Tensor, from: usize, to: usize| x.narrow(0, from, to - from).unwrap();
        let outputs = |encoding: &ClipEncoding| {
            std::iter::once(encoding.hidden.clone()).chain(encoding.pooled.clone()).collect::<Vec<_>>()
        };
        for ((together, merged), plain) in
            outputs(&together).iter().zip(outputs(&merged)).zip(outputs(&plain))
        {
            assert_close(folder_name, &rows(together, 0, last), &rows(&merged, 0, last), 1e-5);
            assert_close(folder_name, &rows(together, last, last + 1), &rows(&plain, last, last + 1), 1e-5);
            assert!(relative_error(&plain, &merged) > 1e-3, "{folder_name}: no effect");
        }
    }
}

#[test]
fn every_spelling_of_one_lora_gives_the_same_weights() {
    let model = Model::open("sdxl");
    let reference = merge(&model.kept, &[(&model.bind(&open("lora")).unet, 0.6)]).unwrap();
    let stored = candle_core::safetensors::load(golden("lora/lora.safetensors"), &Device::Cpu).unwrap();
    let modules = [
        (
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
            "input_blocks.4.1.transformer_blocks.0.attn1.to_q",
        ),
        (
            "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
            "input_blocks.4.1.transformer_blocks.0.attn2.to_k",
        ),
        (
            "down_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj",
            "input_blocks.4.1.transformer_blocks.0.ff.net.0.proj",
        ),
        ("down_blocks.1.resnets.0.conv1", "input_blocks.4.0.in_layers.2"),
        ("down_blocks.1.resnets.0.conv_shortcut", "input_blocks.4.0.skip_connection"),
    ];
    type Spelling = fn(&str, &str) -> String;
    let spellings: [(&str, Spelling, &str, &str); 6] = [
        (
            "kohya, ldm",
            |_, ldm| format!("lora_unet_{}", ldm.replace('.', "_")),
            ".lora_up.weight",
            ".lora_down.weight",
        ),
        (
            "kohya, diffusers",
            |ours, _| format!("lora_unet_{}", ours.replace('.', "_")),
            ".lora_up.weight",
            ".lora_down.weight",
        ),
        ("ldm", |_, ldm| format!("diffusion_model.{ldm}"), ".lora_B.weight", ".lora_A.weight"),
        ("diffusers", |ours, _| format!("unet.{ours}"), ".lora.up.weight", ".lora.down.weight"),
        (
            "old diffusers",
            |ours, _| format!("unet.{}", ours.replace(".to_", ".processor.to_")),
            "_lora.up.weight",
            "_lora.down.weight",
        ),
        (
            "PEFT",
            |ours, _| format!("base_model.model.{ours}"),
            ".lora_B.default.weight",
            ".lora_A.default.weight",
        ),
    ];
    for (name, module, up, down) in spellings {
        let folder = tempfile::tempdir().unwrap();
        let mut tensors = Vec::new();
        for (ours, ldm) in modules {
            let (theirs, module) = (format!("lycoris_{}", ours.replace('.', "_")), module(ours, ldm));
            for (from, to) in [(".lora_up.weight", up), (".lora_down.weight", down), (".alpha", ".alpha")] {
                tensors.push((format!("{module}{to}"), stored[&format!("{theirs}{from}")].clone()));
            }
        }
        assert_eq!(tensors.len(), stored.len());
        let lora = model.bind(&made(&folder, tensors).unwrap());
        let merged = merge(&model.kept, &[(&lora.unet, 0.6)]).unwrap();
        assert_eq!(merged.len(), reference.len(), "{name}");
        for (layer, tensor) in &reference {
            assert_eq!(bits(tensor), bits(&merged[layer]), "{name}: {layer}");
        }
    }
}

#[test]
fn a_packed_projection_is_shared_out_among_q_k_and_v() {
    let model = Model::open("sdxl");
    let folder = tempfile::tempdir().unwrap();
    let layer = |name: &str| format!("encoder.layers.0.self_attn.{name}_proj.weight");
    let [width, _] = model.clip.get(&layer("q")).unwrap().shape()[..] else { panic!() };
    let (up, down) = (normal(&[3 * width, 2]), normal(&[2, width]));
    let tensors = vec![
        ("lora_te1_transformer_resblocks_0_attn_in_proj.lora_up.weight".to_owned(), up.clone()),
        ("lora_te1_transformer_resblocks_0_attn_in_proj.lora_down.weight".to_owned(), down.clone()),
    ];
    let lora = model.bind(&made(&folder, tensors).unwrap());
    let merged = merge(&model.clip, &[(&lora.clip_l, 1.0)]).unwrap();
    assert_eq!(merged.len(), 3);
    let product = up.matmul(&down).unwrap();
    for (third, name) in ["q", "k", "v"].into_iter().enumerate() {
        let before = &model.clip.get(&layer(name)).unwrap().tensor;
        let expected = (before + product.narrow(0, third * width, width).unwrap()).unwrap();
        assert_close(name, &merged[&layer(name)], &expected, 1e-6);
    }
}

const LINEAR: &str = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q";

fn pair(module: &str, up: &[usize], down: &[usize]) -> Vec<(String, Tensor)> {
    vec![
        (format!("{module}.lora_up.weight"), normal(up)),
        (format!("{module}.lora_down.weight"), normal(down)),
    ]
}

#[test]
fn what_fits_nothing_is_listed_and_changes_nothing() {
    let model = Model::open("sdxl");
    let folder = tempfile::tempdir().unwrap();
    let mut tensors = pair(LINEAR, &[16, 4], &[4, 16]);
    tensors.extend(pair("lora_unet_no_such_layer", &[16, 4], &[4, 16]));
    tensors.extend(pair("lora_te2_text_model_encoder_layers_0_mlp_fc1", &[16, 4], &[4, 16]));
    tensors.push(("something.else".to_owned(), normal(&[1])));
    // A layer without bias.
    tensors.push((format!("{LINEAR}.diff_b"), normal(&[16])));
    let lora = made(&folder, tensors).unwrap().bind(&model.target()).unwrap();
    assert_eq!(
        lora.unmatched,
        [
            "lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight",
            "lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_up.weight",
            &format!("{LINEAR}.diff_b"),
            "lora_unet_no_such_layer.lora_down.weight",
            "lora_unet_no_such_layer.lora_up.weight",
            "something.else",
        ]
    );
    assert_eq!((lora.unet.len(), lora.clip_l.len(), lora.clip_g.len()), (1, 0, 0));
}

/// What is wrong with these tensors as a LoRA for the tiny SDXL model.
fn error_of(tensors: Vec<(String, Tensor)>) -> String {
    let folder = tempfile::tempdir().unwrap();
    let found = made(&folder, tensors).and_then(|file| {
        let model = Model::open("sdxl");
        file.bind(&model.target())
    });
    found.unwrap_err().to_string()
}

#[test]
fn wrong_files_are_refused_with_what_to_do() {
    let named = |module: &str, end: &str, shape: &[usize]| vec![(format!("{module}.{end}"), normal(shape))];
    let mut nan = pair(LINEAR, &[16, 4], &[4, 16]);
    nan[0].1 = (normal(&[16, 4]) * f64::NAN).unwrap();
    let mut integers = pair(LINEAR, &[16, 4], &[4, 16]);
    integers[0].1 = Tensor::zeros((16, 4), DType::U32, &Device::Cpu).unwrap();
    let mut infinite = pair(LINEAR, &[16, 4], &[4, 16]);
    infinite.push((format!("{LINEAR}.alpha"), Tensor::new(f32::INFINITY, &Device::Cpu).unwrap()));
    let mut twice = pair(LINEAR, &[16, 4], &[4, 16]);
    twice.extend(pair("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", &[16, 4], &[4, 16]));
    let mut two_kinds = pair(LINEAR, &[16, 4], &[4, 16]);
    two_kinds.extend(named(LINEAR, "diff", &[16, 16]));
    let context = LINEAR.replace("attn1_to_q", "attn2_to_k");
    let mut core = pair(LINEAR, &[16, 4], &[4, 16]);
    core.push((format!("{LINEAR}.lora_mid.weight"), normal(&[4, 5, 3, 3])));
    for (tensors, wants) in [
        (pair(LINEAR, &[16, 4], &[3, 16]), "same rank"),
        (pair(LINEAR, &[17, 4], &[4, 16]), "does not fit layer"),
        (pair(LINEAR, &[16, 4], &[4, 20]), "does not fit layer"),
        (pair(LINEAR, &[16, 0], &[0, 16]), "same rank"),
        (pair(LINEAR, &[], &[]), "does not fit layer"),
        (named(LINEAR, "lora_up.weight", &[16, 4]), "has no down (A) factor"),
        (named(LINEAR, "lora_down.weight", &[4, 16]), "has no up (B) factor"),
        (named(LINEAR, "lora_mid.weight", &[4, 4, 3, 3]), "has no up (B) factor"),
        (named(LINEAR, "dora_scale", &[16, 1]), "has no factors for its magnitudes"),
        (named(LINEAR, "hada_w1_a", &[16, 4]), "second LoHa factor"),
        (named(LINEAR, "lokr_w1_b", &[16, 4]), "first LoKr factor"),
        (named(LINEAR, "lokr_w1", &[16, 4]), "second LoKr factor"),
        (named(LINEAR, "diff", &[16, 17]), "does not fit layer"),
        (named(LINEAR, "oft_blocks", &[4, 4, 4]), "an OFT or BOFT file, which is not supported"),
        (named(LINEAR, "weight", &[4, 4]), "this is not a LoRA"),
        (named(LINEAR, "alpha", &[]), "this is not a LoRA"),
        (pair("lora_unet_double_blocks_0_img_attn_qkv", &[16, 4], &[4, 16]), "a LoRA for Flux"),
        (pair("lora_unet_nothing", &[16, 4], &[4, 16]), "none of its 1 modules fits"),
        (pair(&context, &[16, 4], &[4, 768]), "a LoRA for Stable Diffusion 1.5"),
        (pair(&context, &[16, 4], &[4, 2048]), "a LoRA for SDXL"),
        (pair("lora_unet_down_blocks_1_resnets_0_norm1", &[8, 4], &[4, 1]), "does not fit layer"),
        (core, "same rank"),
        (nan, "NaN or infinite"),
        (infinite, "NaN or infinite"),
        (integers, "stored as"),
        (twice, "both change the same layer"),
        (two_kinds, "both change the same layer"),
    ] {
        let names: Vec<_> = tensors.iter().map(|(name, x)| format!("{name} {:?}", x.dims())).collect();
        let error = error_of(tensors);
        assert!(error.contains(wants), "{names:?}: {error}");
        assert!(error.contains("made.safetensors"), "no file named: {error}");
    }
}

#[test]
fn strengths_that_are_no_numbers_are_refused() {
    let model = Model::open("sdxl");
    let lora = model.bind(&open("lora"));
    for strength in [f64::NAN, f64::INFINITY] {
        assert!(matches!(merge(&model.kept, &[(&lora.unet, strength)]), Err(LoraError::Strength { .. })));
        assert!(matches!(adapter(&model.kept, &[(&lora.unet, strength)]), Err(LoraError::Strength { .. })));
    }
    assert!(merge(&model.kept, &[(&lora.unet, 0.0)]).unwrap().is_empty());
    assert!(adapter(&model.kept, &[(&lora.unet, 0.0)]).unwrap().is_empty());
}

#[test]
fn a_lora_bound_to_another_model_is_refused() {
    let (sdxl, sd15) = (Model::open("sdxl"), Model::open("sd15"));
    let lora = sdxl.bind(&open("lora"));
    let error = merge(&sd15.kept, &[(&lora.unet, 1.0)]).unwrap_err();
    assert!(matches!(error, LoraError::OtherModel { .. }), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_names_and_shapes_make_binding_panic(
        tensors in vec(
            (
                select(&["lora_unet_down_blocks_1_resnets_0_conv1", LINEAR, "lora_unet_down_blocks_1_resnets_0_norm1",
                    "lora_te1_transformer_resblocks_0_attn_in_proj", "x"][..]),
                select(&["lora_up.weight", "lora_down.weight", "lora_mid.weight", "alpha", "dora_scale", "hada_w1_a",
                    "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2", "lokr_w1", "lokr_w1_a", "lokr_w1_b",
                    "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "diff", "diff_b", "w_norm", "b_norm", "set_weight",
                    "lora_magnitude_vector", "weight", "", "."][..]),
                vec(select(&[0usize, 1, 2, 3, 4, 8, 16, 48][..]), 0..5),
            ),
            1..7,
        )
    ) {
        thread_local! {
            static MODEL: Model = Model::open("sdxl");
        }
        MODEL.with(|model| {
            let folder = tempfile::tempdir().unwrap();
            let tensors = tensors.iter().map(|(module, end, shape)| (format!("{module}.{end}"), normal(shape)));
            let Ok(file) = made(&folder, tensors.collect()) else { return };
            let _ = (file.summary(), file.trigger_words(), file.bytes());
            let Ok(lora) = file.bind(&model.target()) else { return };
            // What binds also merges.
            merge(&model.kept, &[(&lora.unet, 0.5)]).unwrap();
            adapter(&model.kept, &[(&lora.unet, 0.5)]).unwrap();
            merge(&model.clip, &[(&lora.clip_l, 0.5)]).unwrap();
        });
    }

    #[test]
    fn no_name_makes_opening_panic(names in vec("[a-z_.0-9]{0,20}(\\.lora_[AB](\\.[a-z]{0,3})?(\\.weight|\\.bias)?|_lora.up.weight|.alpha|)", 1..5)) {
        let folder = tempfile::tempdir().unwrap();
        let tensors = names.into_iter().map(|name| (name, normal(&[1]))).collect();
        if let Ok(file) = made(&folder, tensors) {
            prop_assert!(!file.summary().targets.is_empty());
        }
    }
}

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[test]
fn an_inspected_lora_says_what_it_is_and_how_to_call_it() {
    let tags =
        r#"{"10_mika": {"1girl": 12, "mika": 20, "": 3}, "other": {"mika": 5, "smile": 7, "never": 0}}"#;
    let module = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k";
    let entries = [
        (format!("{module}.lora_down.weight"), vec![2, 2048]),
        (format!("{module}.lora_up.weight"), vec![640, 2]),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1.hada_w1_b".to_owned(), vec![3, 768]),
    ];
    let entries: Vec<_> = entries
        .iter()
        .map(|(name, shape)| {
            let bytes = bytes_of(&vec![0.0; shape.iter().product()]);
            (name.as_str(), "F32", shape.as_slice(), bytes)
        })
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mika.safetensors");
    std::fs::write(&path, safetensors_bytes::file_of(&entries, &[("ss_tag_frequency", tags)])).unwrap();
    let found = inspect(&path).unwrap();
    assert_eq!((found.kind, found.layout), (ModelKind::Lora, Layout::Kohya));
    let lora = found.lora.as_ref().unwrap();
    assert_eq!((lora.family, lora.ranks), (Some(Family::Sdxl), Some((2, 3))));
    assert_eq!(lora.trigger_words, ["mika", "1girl", "smile"]);
    let text = found.to_string();
    for part in
        ["LoRA, ranks 2 to 3, made for SDXL", "changes UNet: 1 modules", r#"["mika", "1girl", "smile"]"#]
    {
        assert!(text.contains(part), "no '{part}' in {text}");
    }

    let phrase = &[("modelspec.trigger_phrase", "mika, pink hair , "), ("ss_tag_frequency", tags)];
    std::fs::write(&path, safetensors_bytes::file_of(&entries, phrase)).unwrap();
    assert_eq!(inspect(&path).unwrap().lora.unwrap().trigger_words, ["mika", "pink hair"]);
    for broken in ["{", "[]", r#"{"a": {"b": "c"}}"#, r#"{"a": 1}"#] {
        std::fs::write(&path, safetensors_bytes::file_of(&entries, &[("ss_tag_frequency", broken)])).unwrap();
        assert!(inspect(&path).unwrap().lora.unwrap().trigger_words.is_empty(), "{broken}");
    }
}

#[test]
fn kinds_without_support_are_inspected_as_what_they_are() {
    let entries =
        [("lora_unet_mid_block_attentions_0_proj_in.oft_blocks", "F32", &[1usize][..], bytes_of(&[0.0]))];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("oft.safetensors");
    std::fs::write(&path, safetensors_bytes::file_of(&entries, &[])).unwrap();
    let found = inspect(&path).unwrap();
    assert_eq!(found.kind, ModelKind::Lora);
    assert!(found.notes[0].contains("an OFT or BOFT file, which is not supported"), "{:?}", found.notes);
}
