//! LoRAs of Qwen-Image: files in every spelling against weights merged in torch, on weights that are held, streamed or in
//! 8 bits, and files for other families.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests fail by panicking and say what they measured"
)]

#[path = "support/safetensors_bytes.rs"]
mod safetensors_bytes;
mod support;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use darkroom_kernels::Fp8Weight;
use darkroom_models::adapter::{Adapters, NetworkAdapter};
use darkroom_models::checkpoint::{Layout, ModelKind, inspect};
use darkroom_models::lora::{
    DenoiserKind, Family, Lora, LoraError, LoraFile, LoraPart, LoraTarget, adapter, merge, merge_unrounded,
};
use darkroom_models::qwen_image::{QwenImageConfig, QwenImageInput, QwenImageTransformer2DModel};
use darkroom_models::unet::{UNet2DConditionModel, UNetConfig};
use darkroom_models::weights::{Kept, WeightFile, Weights, WeightsError};
use support::{BATCH_TOLERANCE, Cases, REFERENCE_TOLERANCE, folder, golden};

const NETWORK: &str = "qwen_image/transformer_3";
const FILES: [&str; 5] = ["bare", "peft", "comfyui", "kohya", "lycoris"];
/// What `scripts/golden/qwen_image_lora.py` put into the weights together.
const STACKS: [(&str, &[(&str, f64)]); 7] = [
    ("bare", &[("bare", 0.8)]),
    ("peft", &[("peft", 0.8)]),
    ("comfyui", &[("comfyui", 0.8)]),
    ("kohya", &[("kohya", 0.8)]),
    ("lycoris", &[("lycoris", 0.8)]),
    ("bare_and_peft", &[("bare", 0.75), ("peft", -0.5)]),
    ("comfyui_and_kohya", &[("comfyui", 1.0), ("kohya", 0.6)]),
];

fn path(name: &str) -> std::path::PathBuf {
    golden(&format!("qwen_image/lora/{name}.safetensors"))
}

fn open(path: &Path) -> LoraFile {
    LoraFile::open(Arc::new(WeightFile::open(path).unwrap())).unwrap()
}

/// A network and what it kept.
struct Model {
    config: QwenImageConfig,
    network: QwenImageTransformer2DModel,
    kept: Kept,
    none: Kept,
}

impl Model {
    fn load(config: QwenImageConfig, weights: &Weights) -> Self {
        weights.keep();
        let network = QwenImageTransformer2DModel::load(&config, weights).unwrap();
        Self { config, network, kept: weights.kept(), none: Kept::none("no text encoder", &Device::Cpu) }
    }

    fn open() -> Self {
        let (config, weights) = folder(NETWORK);
        Self::load(config, &weights)
    }

    fn streamed() -> Self {
        let (config, weights) = folder::<QwenImageConfig>(NETWORK);
        Self::load(config, &weights.streaming())
    }

    fn target(&self) -> LoraTarget<'_> {
        LoraTarget {
            denoiser: &self.kept,
            kind: Some(DenoiserKind::QwenImage),
            clip_l: &self.none,
            clip_g: None,
        }
    }

    fn bind(&self, file: &LoraFile) -> Lora {
        let lora = file.bind(&self.target()).unwrap();
        assert_eq!(lora.unmatched, Vec::<String>::new(), "{}", file.name());
        assert!(lora.clip_l.is_empty() && lora.clip_g.is_empty());
        lora
    }

    fn with(&self, replaced: HashMap<String, Tensor>) -> QwenImageTransformer2DModel {
        let weights = self.kept.with_replaced(replaced);
        let network = QwenImageTransformer2DModel::load(&self.config, &weights).unwrap();
        weights.finish().unwrap();
        network
    }

    /// What the network predicts for the rows of a golden case, all with one adapter.
    fn adapted(&self, case: &str, adapter: NetworkAdapter) -> Tensor {
        let rows = inputs().get(format!("{case}.latent")).dim(0).unwrap();
        predict(&self.network, case, &Adapters::all(adapter.into(), rows))
    }
}

fn inputs() -> Cases {
    Cases::open("qwen_image/cases_3.safetensors")
}

fn predict(network: &QwenImageTransformer2DModel, case: &str, adapters: &Adapters) -> Tensor {
    let cases = inputs();
    let references: Vec<Tensor> =
        (0..).map_while(|i| cases.find(&format!("{case}.references.{i}"))).collect();
    let lengths = cases.find(&format!("{case}.lengths")).map(|lengths| {
        let lengths = lengths.to_vec1::<i64>().unwrap();
        lengths.into_iter().map(|length| length as usize).collect::<Vec<_>>()
    });
    let input = QwenImageInput {
        latent: &cases.get(format!("{case}.latent")),
        timesteps: &cases.get(format!("{case}.timesteps")),
        context: &cases.get(format!("{case}.context")),
        context_lengths: lengths.as_deref(),
        references: &references.iter().collect::<Vec<_>>(),
        adapters,
    };
    network.forward(&input).unwrap()
}

/// The largest difference over the largest value.
fn distance(ours: &Tensor, theirs: &Tensor) -> f32 {
    assert_eq!(ours.dims(), theirs.dims());
    let largest = |x: &Tensor| x.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    largest(&(ours - theirs).unwrap()) / largest(theirs)
}

#[track_caller]
fn assert_near(what: &str, ours: &Tensor, theirs: &Tensor, tolerance: f32) {
    let distance = distance(ours, theirs);
    println!("{what}: {distance:.1e}");
    assert!(distance <= tolerance, "{what}: {distance:e}");
}

fn bits(x: &Tensor) -> Vec<u32> {
    let numbers = x.flatten_all().unwrap().to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap();
    numbers.into_iter().map(f32::to_bits).collect()
}

fn stack_of<'a>(loras: &'a HashMap<&str, Lora>, files: &[(&str, f64)]) -> Vec<(&'a LoraPart, f64)> {
    files.iter().map(|(file, strength)| (&loras[*file].unet, *strength)).collect()
}

#[test]
fn files_in_every_spelling_and_stacks_of_them_predict_what_merged_weights_in_torch_do() {
    let model = Model::open();
    let expected = Cases::open("qwen_image/lora/outputs.safetensors");
    let loras: HashMap<_, _> = FILES.map(|file| (file, model.bind(&open(&path(file))))).into();
    for (name, files) in STACKS {
        let stack = stack_of(&loras, files);
        let merged = model.with(merge_unrounded(&model.kept, &stack).unwrap());
        for case in ["lengths", "edit"] {
            let expected = expected.get(format!("{name}.{case}"));
            let adapted = model.adapted(case, adapter(&model.kept, &stack).unwrap());
            assert_near(&format!("{name}, {case}, adapter"), &adapted, &expected, REFERENCE_TOLERANCE);
            let merged = predict(&merged, case, Adapters::none());
            assert_near(&format!("{name}, {case}, merged"), &merged, &expected, REFERENCE_TOLERANCE);
        }
    }
}

#[test]
fn rows_with_different_loras_predict_as_each_alone() {
    let model = Model::open();
    let loras = ["bare", "kohya"].map(|file| model.bind(&open(&path(file))));
    let adapters = loras.each_ref().map(|lora| Arc::new(adapter(&model.kept, &[(&lora.unet, 0.7)]).unwrap()));
    let groups = vec![(0..1, adapters[0].clone()), (2..3, adapters[1].clone())];
    let together = predict(&model.network, "lengths", &Adapters::new(groups));
    for (row, adapters) in [
        (0, Adapters::all(adapters[0].clone(), 3)),
        (1, Adapters::default()),
        (2, Adapters::all(adapters[1].clone(), 3)),
    ] {
        let alone = predict(&model.network, "lengths", &adapters);
        let row_of = |x: &Tensor| x.narrow(0, row, 1).unwrap();
        assert_near(&format!("row {row}"), &row_of(&together), &row_of(&alone), BATCH_TOLERANCE);
    }
}

/// A LoRA in all spellings: how a layer is called, and its factors.
type Spelling = (&'static str, fn(&str) -> String, &'static str, &'static str);
const SPELLINGS: [Spelling; 11] = [
    ("few-step", str::to_owned, ".lora_up.weight", ".lora_down.weight"),
    ("bare PEFT", str::to_owned, ".lora_B.weight", ".lora_A.weight"),
    ("named PEFT", str::to_owned, ".lora_B.default.weight", ".lora_A.default.weight"),
    ("diffusers", |layer| format!("transformer.{layer}"), ".lora_B.weight", ".lora_A.weight"),
    ("old diffusers", |layer| format!("transformer.{layer}"), ".lora.up.weight", ".lora.down.weight"),
    ("ComfyUI", |layer| format!("diffusion_model.{layer}"), ".lora_B.weight", ".lora_A.weight"),
    ("ComfyUI, kohya", |layer| format!("diffusion_model.{layer}"), ".lora_up.weight", ".lora_down.weight"),
    ("wrapped", |layer| format!("base_model.model.{layer}"), ".lora_B.weight", ".lora_A.weight"),
    (
        "wrapped twice",
        |layer| format!("base_model.model.transformer.{layer}"),
        ".lora_B.default.weight",
        ".lora_A.default.weight",
    ),
    (
        "kohya",
        |layer| format!("lora_unet_{}", layer.replace('.', "_")),
        ".lora_up.weight",
        ".lora_down.weight",
    ),
    (
        "LyCORIS",
        |layer| format!("lycoris_{}", layer.replace('.', "_")),
        ".lora_up.weight",
        ".lora_down.weight",
    ),
];

fn saved(folder: &tempfile::TempDir, tensors: impl IntoIterator<Item = (String, Tensor)>) -> LoraFile {
    let path = folder.path().join("made.safetensors");
    candle_core::safetensors::save(&tensors.into_iter().collect::<HashMap<_, _>>(), &path).unwrap();
    open(&path)
}

fn normal(shape: &[usize]) -> Tensor {
    Tensor::randn(0f32, 0.3, shape, &Device::Cpu).unwrap()
}

#[test]
fn every_layer_is_found_by_all_its_spellings_and_all_say_the_family() {
    let model = Model::open();
    // Every matrix of the network.
    let layers: Vec<(String, Tensor, Tensor)> = model
        .kept
        .iter()
        .filter_map(|(name, kept)| {
            let [outputs, inputs] = kept.shape()[..] else { return None };
            let layer = name.strip_suffix(".weight")?.to_owned();
            Some((layer, normal(&[outputs, 2]), normal(&[2, inputs])))
        })
        .collect();
    assert_eq!(layers.len(), 3 * 14 + 6);
    let mut reference: Option<HashMap<String, Tensor>> = None;
    for (name, module, up_end, down_end) in SPELLINGS {
        let folder = tempfile::tempdir().unwrap();
        let mut tensors = Vec::new();
        for (layer, up, down) in &layers {
            tensors.push((format!("{}{up_end}", module(layer)), up.clone()));
            tensors.push((format!("{}{down_end}", module(layer)), down.clone()));
            tensors.push((format!("{}.alpha", module(layer)), Tensor::new(1f32, &Device::Cpu).unwrap()));
        }
        let file = saved(&folder, tensors);
        assert_eq!(file.family(), Some(Family::QwenImage), "{name}");
        let targets: Vec<_> = file.summary().targets.into_iter().collect();
        assert_eq!(targets, [("transformer".to_owned(), layers.len())], "{name}");
        let merged = merge_unrounded(&model.kept, &[(&model.bind(&file).unet, 0.6)]).unwrap();
        assert_eq!(merged.len(), layers.len(), "{name}");
        let reference = reference.get_or_insert_with(|| merged.clone());
        for (layer, tensor) in &merged {
            assert_eq!(bits(tensor), bits(&reference[layer]), "{name}: {layer}");
        }
    }
}

#[test]
fn the_last_layer_of_an_attention_may_lack_its_number() {
    let model = Model::open();
    for module in
        ["transformer.transformer_blocks.2.attn.to_out", "lora_unet_transformer_blocks_2_attn_to_out"]
    {
        let folder = tempfile::tempdir().unwrap();
        let lora = model.bind(&saved(&folder, pair(module, &[32, 4], &[4, 32])));
        assert_eq!(lora.unet.layers().collect::<Vec<_>>(), ["transformer_blocks.2.attn.to_out.0"]);
    }
}

fn pair(module: &str, up: &[usize], down: &[usize]) -> Vec<(String, Tensor)> {
    vec![
        (format!("{module}.lora_up.weight"), normal(up)),
        (format!("{module}.lora_down.weight"), normal(down)),
    ]
}

#[test]
fn norms_and_biases_change_too() {
    let model = Model::open();
    let folder = tempfile::tempdir().unwrap();
    let (scale, shift) = (normal(&[16]), normal(&[32]));
    let tensors = vec![
        ("diffusion_model.transformer_blocks.1.attn.norm_added_q.diff".to_owned(), scale.clone()),
        ("diffusion_model.transformer_blocks.1.attn.to_v.diff_b".to_owned(), shift.clone()),
        ("diffusion_model.txt_norm.diff".to_owned(), normal(&[24])),
    ];
    let lora = model.bind(&saved(&folder, tensors));
    let stack = [(&lora.unet, 0.5)];
    let merged = merge_unrounded(&model.kept, &stack).unwrap();
    assert_eq!(merged.len(), 3);
    for (name, change) in [
        ("transformer_blocks.1.attn.norm_added_q.weight", &scale),
        ("transformer_blocks.1.attn.to_v.bias", &shift),
    ] {
        let before = model.kept.get(name).unwrap().tensor.to_dtype(DType::F32).unwrap();
        assert_near(name, &merged[name], &(before + (change * 0.5).unwrap()).unwrap(), 1e-6);
    }
    let (adapted, merged) =
        (model.adapted("edit", adapter(&model.kept, &stack).unwrap()), model.with(merged));
    assert_near("adapter", &adapted, &predict(&merged, "edit", Adapters::none()), 1e-5);
}

#[test]
fn streamed_weights_take_plain_loras_and_refuse_what_wants_their_content() {
    let (held, streamed) = (Model::open(), Model::streamed());
    assert!(streamed.kept.is_streamed());
    for file in FILES {
        let file = open(&path(file));
        let [expected, found] = [&held, &streamed].map(|model| {
            let lora = model.bind(&file);
            model.adapted("edit", adapter(&model.kept, &[(&lora.unet, 0.9)]).unwrap())
        });
        assert_eq!(bits(&found), bits(&expected), "{}", file.name());
        let lora = streamed.bind(&file);
        for merged in [
            merge(&streamed.kept, &[(&lora.unet, 1.0)]),
            merge_unrounded(&streamed.kept, &[(&lora.unet, 1.0)]),
        ] {
            assert!(matches!(merged, Err(LoraError::Streamed { .. })), "{}", file.name());
        }
    }
    let layer = "transformer_blocks.0.attn.to_q";
    let dora =
        [pair(layer, &[32, 4], &[4, 32]), vec![(format!("{layer}.dora_scale"), normal(&[32, 1]))]].concat();
    for tensors in [
        dora,
        vec![(format!("{layer}.diff"), normal(&[32, 32]))],
        vec![(format!("{layer}.diff_b"), normal(&[32]))],
        vec![(format!("{layer}.lokr_w1"), normal(&[4, 4])), (format!("{layer}.lokr_w2"), normal(&[8, 8]))],
    ] {
        let folder = tempfile::tempdir().unwrap();
        let lora = streamed.bind(&saved(&folder, tensors));
        let error = adapter(&streamed.kept, &[(&lora.unet, 1.0)]).unwrap_err();
        assert!(matches!(error, LoraError::Streamed { .. }), "{error}");
        assert!(error.to_string().contains(layer), "{error}");
    }
    // Nor is a network built of weights that are not there.
    let error =
        QwenImageTransformer2DModel::load(&streamed.config, &streamed.kept.with_replaced(HashMap::new()));
    assert!(matches!(error.unwrap_err(), WeightsError::Streamed { .. }));
}

/// The network with matrices in 8 bits, and the same numbers in `f32`.
fn eight_bits(folder: &tempfile::TempDir) -> [Model; 2] {
    let stored = golden(&format!("{NETWORK}/diffusion_pytorch_model.safetensors"));
    let config = std::fs::read_to_string(golden(&format!("{NETWORK}/config.json"))).unwrap();
    let (mut codes, mut wide) = (Vec::new(), HashMap::new());
    for (name, tensor) in candle_core::safetensors::load(stored, &Device::Cpu).unwrap() {
        let tensor = tensor.to_dtype(DType::F32).unwrap();
        let shape = tensor.dims().to_vec();
        let layer = name.strip_suffix(".weight");
        if let (Some(layer), 2) = (layer, shape.len()) {
            // Of either sign and below 2: the exponent's highest bit is off, so that none is NaN.
            let bytes: Vec<u8> = (0..tensor.elem_count()).map(|i| (i * 37 % 251) as u8 & 0xbf).collect();
            let scale = 0.4f32;
            let values = Tensor::from_slice(&bytes, shape.as_slice(), &Device::Cpu).unwrap();
            wide.insert(name.clone(), Fp8Weight::from_codes(values, scale).unwrap().widened().unwrap());
            codes.push((format!("{layer}.weight_scale"), "F32", vec![], scale.to_le_bytes().to_vec()));
            codes.push((name, "F8_E4M3", shape, bytes));
        } else {
            let numbers = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            codes.push((name.clone(), "F32", shape, numbers.iter().flat_map(|x| x.to_le_bytes()).collect()));
            wide.insert(name, tensor);
        }
    }
    let entries: Vec<safetensors_bytes::Entry<'_>> = codes
        .iter()
        .map(|(name, dtype, shape, bytes)| (name.as_str(), *dtype, shape.as_slice(), bytes.clone()))
        .collect();
    let paths = ["codes.safetensors", "wide.safetensors"].map(|file| folder.path().join(file));
    std::fs::write(&paths[0], safetensors_bytes::file_of(&entries, &[])).unwrap();
    candle_core::safetensors::save(&wide, &paths[1]).unwrap();
    paths.map(|path| {
        let weights = Weights::from_file(Arc::new(WeightFile::open(&path).unwrap()), &Device::Cpu);
        Model::load(serde_json::from_str(&config).unwrap(), &weights)
    })
}

#[test]
fn weights_in_8_bits_are_changed_as_the_numbers_that_they_stand_for() {
    let folder = tempfile::tempdir().unwrap();
    let models = eight_bits(&folder);
    let [codes, wide] = &models;
    assert!(codes.kept.is_stored_eight_bit() && !wide.kept.is_stored_eight_bit());
    let layer = "transformer_blocks.0.attn.to_q";
    let dora =
        [pair(layer, &[32, 4], &[4, 32]), vec![(format!("{layer}.dora_scale"), normal(&[32, 1]))]].concat();
    let lokr =
        vec![(format!("{layer}.lokr_w1"), normal(&[4, 4])), (format!("{layer}.lokr_w2"), normal(&[8, 8]))];
    let difference = vec![(format!("{layer}.diff"), normal(&[32, 32]))];
    let made = tempfile::tempdir().unwrap();
    let plain = predict(&wide.network, "edit", Adapters::none());
    assert_near("no LoRA", &predict(&codes.network, "edit", Adapters::none()), &plain, BATCH_TOLERANCE);
    for (name, file) in [
        ("LoRA", open(&path("bare"))),
        ("DoRA", saved(&made, dora)),
        ("LoKr", saved(&made, lokr)),
        ("difference", saved(&made, difference)),
    ] {
        let [found, expected] = models.each_ref().map(|model| {
            let lora = model.bind(&file);
            model.adapted("edit", adapter(&model.kept, &[(&lora.unet, 0.9)]).unwrap())
        });
        assert_near(name, &found, &expected, BATCH_TOLERANCE);
        assert!(distance(&expected, &plain) > 1e-3, "{name} changes nothing");
        let lora = codes.bind(&file);
        let error = merge(&codes.kept, &[(&lora.unet, 1.0)]).unwrap_err();
        assert!(matches!(error, LoraError::EightBit { .. }), "{name}: {error}");
        let merged = codes.with(merge_unrounded(&codes.kept, &[(&lora.unet, 0.9)]).unwrap());
        assert_near(name, &predict(&merged, "edit", Adapters::none()), &expected, BATCH_TOLERANCE);
    }
}

fn error_of(model: &Model, tensors: Vec<(String, Tensor)>) -> LoraError {
    let folder = tempfile::tempdir().unwrap();
    saved(&folder, tensors).bind(&model.target()).unwrap_err()
}

#[test]
fn loras_of_other_families_are_refused_by_name() {
    let model = Model::open();
    let unet = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k";
    let flux = "transformer.single_transformer_blocks.0.attn.to_q";
    // Which has layers that would fit.
    let fits = pair("transformer.transformer_blocks.0.attn.to_q", &[32, 4], &[4, 32]);
    for (tensors, family) in [
        (pair(unet, &[16, 4], &[4, 2048]), Family::Sdxl),
        (pair(unet, &[16, 4], &[4, 768]), Family::Sd15),
        (pair("lora_te2_text_model_encoder_layers_0_mlp_fc1", &[16, 4], &[4, 16]), Family::Sdxl),
        (pair("lora_unet_double_blocks_0_img_mod_lin", &[16, 4], &[4, 16]), Family::Flux),
        ([pair(flux, &[32, 4], &[4, 32]), fits].concat(), Family::Flux),
        (pair("diffusion_model.blocks.0.cross_attn.k", &[16, 4], &[4, 16]), Family::Wan),
    ] {
        let error = error_of(&model, tensors);
        let LoraError::Family { family: found, wanted, .. } = &error else { panic!("{error}") };
        assert_eq!((*found, *wanted), (family, Family::QwenImage), "{error}");
        let said = error.to_string();
        assert!(said.contains(&format!("a LoRA for {family}")) && said.contains("is Qwen-Image"), "{said}");
    }
    for module in [
        "lora_te_text_model_encoder_layers_0_mlp_fc1",
        "text_encoder.model.layers.0.self_attn.q_proj",
        "lora_unet_down_blocks_0_attentions_0_proj_in",
        "transformer_blocks.3.attn.to_q",
        "transformer_blocks.0.attn",
        "transformer.",
    ] {
        let error = error_of(&model, pair(module, &[32, 4], &[4, 32]));
        let LoraError::NothingFits { wanted, .. } = &error else { panic!("{module}: {error}") };
        assert_eq!(*wanted, Family::QwenImage, "{module}");
    }
}

#[test]
fn a_unet_refuses_loras_of_qwen_image_by_name() {
    let none = Kept::none("nothing", &Device::Cpu);
    for name in ["sdxl", "sd15"] {
        let (config, weights) = folder::<UNetConfig>(&format!("{name}/unet"));
        weights.keep();
        UNet2DConditionModel::load(&config, &weights).unwrap();
        let kept = weights.kept();
        let text_encoder = folder::<serde_json::Value>(&format!("{name}/text_encoder")).1;
        text_encoder.keep();
        for tensor in text_encoder.names() {
            text_encoder.take(&tensor, &text_encoder.shape(&tensor).unwrap()).unwrap();
        }
        let clip_l = text_encoder.kept();
        assert!(!clip_l.is_empty());
        let target = LoraTarget {
            denoiser: &kept,
            kind: Some(DenoiserKind::UNet(&config)),
            clip_l: &clip_l,
            clip_g: None,
        };
        for file in ["bare", "comfyui", "kohya", "lycoris"] {
            let error = open(&path(file)).bind(&target).unwrap_err();
            let LoraError::Family { family, .. } = &error else { panic!("{file}: {error}") };
            assert_eq!(*family, Family::QwenImage);
            assert!(error.to_string().contains("a LoRA for Qwen-Image"), "{error}");
        }
        // Stable Diffusion 3 and Flux have such layers too.
        let error = open(&path("peft")).bind(&target).unwrap_err();
        assert!(matches!(error, LoraError::NothingFits { .. }), "{error}");
        // Text encoders alone: nothing fits, and that is no error there.
        let target = LoraTarget { denoiser: &none, kind: None, clip_l: &clip_l, clip_g: None };
        let lora = open(&path("bare")).bind(&target).unwrap();
        assert!(lora.unet.is_empty() && lora.clip_l.is_empty() && !lora.unmatched.is_empty());
    }
}

#[test]
fn what_fits_nothing_is_listed_beside_what_does_and_shapes_are_checked() {
    let model = Model::open();
    let folder = tempfile::tempdir().unwrap();
    let fits = pair("transformer_blocks.0.img_mod.1", &[192, 4], &[4, 32]);
    let strays = pair("transformer_blocks.60.img_mod.1", &[192, 4], &[4, 32]);
    let lora = saved(&folder, [fits, strays].concat()).bind(&model.target()).unwrap();
    assert_eq!(
        lora.unmatched,
        [
            "transformer_blocks.60.img_mod.1.lora_down.weight",
            "transformer_blocks.60.img_mod.1.lora_up.weight"
        ]
    );
    assert_eq!(lora.unet.layers().collect::<Vec<_>>(), ["transformer_blocks.0.img_mod.1"]);
    for (up, down) in [([191, 4], [4, 32]), ([192, 4], [4, 31]), ([192, 3], [4, 32])] {
        let error = error_of(&model, pair("transformer_blocks.0.img_mod.1", &up, &down));
        assert!(matches!(error, LoraError::Shape { .. } | LoraError::Rank { .. }), "{error}");
    }
}

#[test]
fn golden_files_are_inspected_as_loras_of_qwen_image() {
    for (file, layout, family) in [
        ("bare", Layout::Diffusers, Some(Family::QwenImage)),
        ("peft", Layout::Peft, None),
        ("comfyui", Layout::Peft, Some(Family::QwenImage)),
        ("kohya", Layout::Kohya, Some(Family::QwenImage)),
        ("lycoris", Layout::Kohya, Some(Family::QwenImage)),
    ] {
        let found = inspect(&path(file)).unwrap();
        assert_eq!((found.kind, found.layout), (ModelKind::Lora, layout), "{file}");
        let lora = found.lora.unwrap();
        assert_eq!(lora.family, family, "{file}");
        assert_eq!(lora.targets.into_keys().collect::<Vec<_>>(), ["transformer"], "{file}");
    }
}
