//! ControlNet files: which models they are for, and what is wrong with those that cannot be used.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests fail by panicking and say what they measured"
)]

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use darkroom_models::checkpoint::{Checkpoint, Layout, ModelKind, inspect};
use darkroom_models::controlnet::{
    ControlNet, ControlNetError, ControlNetFamily, ControlNetForm, ControlNetKind,
};
use darkroom_models::unet::UNetConfig;
use darkroom_models::weights::{WeightFile, WeightsError};
use support::{folder, golden};
use tempfile::TempDir;

fn file(name: &str) -> PathBuf {
    golden(&format!("controlnet/{name}.safetensors"))
}

fn base(model: &str) -> UNetConfig {
    folder::<UNetConfig>(&format!("{model}/unet")).0
}

fn zeros(shape: &[usize]) -> Tensor {
    Tensor::zeros(shape, DType::F16, &Device::Cpu).unwrap()
}

type Tensors = BTreeMap<String, Tensor>;

/// A golden ControlNet with some tensors changed.
fn changed(name: &str, change: impl FnOnce(&mut Tensors)) -> (TempDir, PathBuf) {
    let mut tensors: Tensors =
        candle_core::safetensors::load(file(name), &Device::Cpu).unwrap().into_iter().collect();
    change(&mut tensors);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.safetensors");
    candle_core::safetensors::save(&tensors.into_iter().collect(), &path).unwrap();
    (folder, path)
}

/// What a changed SDXL ControlNet fails with.
#[track_caller]
fn refused(change: impl FnOnce(&mut Tensors)) -> ControlNetError {
    let (_folder, path) = changed("sdxl", change);
    ControlNet::open(&path, &base("sdxl"), &Device::Cpu).map(|_| "loaded").unwrap_err()
}

fn set(tensors: &mut Tensors, name: &str, shape: &[usize]) {
    tensors.insert(name.into(), zeros(shape));
}

#[test]
fn another_familys_controlnet_is_refused_with_both_names() {
    for (name, model, said) in [
        ("sd15", "sdxl", "is a ControlNet for SD 1.5, but the model is SDXL: pick one made for it"),
        ("sdxl", "sd15", "is a ControlNet for SDXL, but the model is SD 1.5: pick one made for it"),
    ] {
        let error = ControlNet::open(&file(name), &base(model), &Device::Cpu).unwrap_err();
        assert!(matches!(error, ControlNetError::Family { .. }), "{error}");
        assert!(error.to_string().contains(said), "{error}");
    }
    // Flux and Stable Diffusion 3.
    for name in ["controlnet_x_embedder.weight", "controlnet_blocks.0.weight"] {
        let (_folder, path) = changed("sdxl", |tensors| {
            tensors.clear();
            set(tensors, name, &[4, 4]);
            set(tensors, "single_transformer_blocks.0.norm.linear.weight", &[4, 4]);
        });
        let error = ControlNet::open(&path, &base("sdxl"), &Device::Cpu).unwrap_err().to_string();
        assert!(error.contains("for another model family, but the model is SDXL"), "{error}");
    }
}

#[test]
fn a_controlnet_of_another_shape_is_refused_with_the_difference() {
    let path = file("sdxl");
    type Change = fn(&mut UNetConfig);
    let changes: [(Change, &str); 5] = [
        (|c| c.block_out_channels = vec![16, 32, 48], "its channels a level: [8, 16, 24], the model's: [16"),
        (|c| c.layers_per_block = 3, "layers a level"),
        (|c| c.cross_attention_dim = 96, "context width: 80, the model's: 96"),
        (|c| c.transformer_layers = vec![0, 1, 1], "transformer layers a level"),
        (|c| c.addition.as_mut().unwrap().projection_input_dim = 90, "pooled prompt and sizes"),
    ];
    for (change, said) in changes {
        let mut base = base("sdxl");
        change(&mut base);
        let error = ControlNet::open(&path, &base, &Device::Cpu).unwrap_err();
        assert!(matches!(error, ControlNetError::Shape { .. }), "{said}: {error}");
        let error = error.to_string();
        assert!(error.contains(said) && error.contains("pick one made for this model"), "{said}: {error}");
    }
}

#[test]
fn forms_that_are_not_supported_are_refused_by_name() {
    for (mark, shape, form, said) in [
        (
            "task_embedding",
            &[6, 8][..],
            ControlNetForm::Union,
            "control-type union models are not supported yet: use a ControlNet for one control type",
        ),
        ("control_add_embedding.linear_1.weight", &[4, 4], ControlNetForm::Union, "union"),
        ("transformer_layes.0.ln_1.weight", &[4], ControlNetForm::Union, "union"),
        ("lora_controlnet", &[], ControlNetForm::ControlLora, "control-LoRA"),
        ("difference", &[], ControlNetForm::Difference, "differences"),
    ] {
        let (_folder, path) = changed("sdxl", |tensors| set(tensors, mark, shape));
        let error = ControlNet::open(&path, &base("sdxl"), &Device::Cpu).unwrap_err();
        assert!(matches!(error, ControlNetError::Unsupported { .. }), "{mark}: {error}");
        assert!(error.to_string().contains(said), "{mark}: {error}");
        let kind = ControlNetKind::of(WeightFile::open(&path).unwrap().header()).unwrap();
        assert_eq!(kind, ControlNetKind { family: ControlNetFamily::Sdxl, form });
        let found = inspect(&path).unwrap();
        assert_eq!(found.controlnet, Some(kind));
        assert!(found.notes.iter().any(|note| note.contains(said)), "{found}");
    }
    let error = refused(|tensors| set(tensors, "controlnet_cond_embedding.conv_in.weight", &[4, 1, 3, 3]));
    assert!(error.to_string().contains("its hints have 1 channels"), "{error}");
}

#[test]
fn inspection_tells_whom_a_controlnet_is_made_for() {
    for (name, family, said) in [
        ("sdxl", ControlNetFamily::Sdxl, "it is made for SDXL"),
        ("sdxl_small", ControlNetFamily::Sdxl, "it is made for SDXL"),
        ("sd15", ControlNetFamily::Sd15, "it is made for SD 1.5"),
    ] {
        let found = inspect(&file(name)).unwrap();
        assert_eq!((found.kind, found.layout), (ModelKind::ControlNet, Layout::Diffusers));
        assert_eq!(found.controlnet, Some(ControlNetKind { family, form: ControlNetForm::Plain }));
        assert!(found.to_string().contains(said), "{found}");
    }
    // No attention to tell the family by, nor a second conditioning.
    let (_folder, path) = changed("sd15", |tensors| tensors.retain(|name, _| !name.contains("attn2")));
    let kind = inspect(&path).unwrap().controlnet.unwrap();
    assert_eq!(kind.family, ControlNetFamily::Unknown);
    assert_eq!(inspect(&golden("sdxl.safetensors")).unwrap().controlnet, None);
}

#[test]
fn the_built_in_controlnet_takes_from_the_built_in_model_what_its_shapes_do_not_show() {
    let asset = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets").join(name);
    let base = Checkpoint::open(&asset("tiny-sdxl.safetensors"), &Device::Cpu).unwrap().unet.config;
    let net = ControlNet::open(&asset("tiny-canny.safetensors"), &base, &Device::Cpu).unwrap();
    let unet = &net.config().unet;
    assert_eq!((unet.norm_num_groups, unet.attention_heads.as_slice()), (8, [2, 3, 4].as_slice()));
    assert_eq!(unet.addition.as_ref().map(|addition| addition.time_embed_dim), Some(32));
    assert_eq!(net.config().conditioning_embedding_out_channels, [16, 32, 64, 96]);
}

#[test]
fn what_is_no_controlnet_is_called_by_its_name() {
    let unet = golden("sdxl/unet/diffusion_pytorch_model.safetensors");
    for (path, said) in [(golden("sdxl.safetensors"), "an SDXL base model"), (unet, "an SDXL base model")] {
        let error = ControlNet::open(&path, &base("sdxl"), &Device::Cpu).unwrap_err();
        assert!(matches!(error, ControlNetError::Kind { .. }), "{error}");
        assert!(error.to_string().contains(said), "{error}");
    }
}

#[test]
fn a_diffusers_folder_is_opened_and_an_empty_one_says_what_is_expected() {
    let folder = tempfile::tempdir().unwrap();
    let error = ControlNet::open(folder.path(), &base("sdxl"), &Device::Cpu).unwrap_err().to_string();
    assert!(error.contains("diffusion_pytorch_model.safetensors"), "{error}");
    let name = "diffusion_pytorch_model.fp16.safetensors";
    std::fs::copy(file("sdxl"), folder.path().join(name)).unwrap();
    ControlNet::open(folder.path(), &base("sdxl"), &Device::Cpu).unwrap();
}

#[test]
fn a_damaged_file_is_refused_with_the_tensor_it_is_about() {
    // Every one of the network's own parts, and one that it shares with the UNet.
    for name in [
        "controlnet_cond_embedding.conv_out.bias",
        "controlnet_down_blocks.8.weight",
        "controlnet_mid_block.bias",
        "down_blocks.1.attentions.1.transformer_blocks.0.attn2.to_k.weight",
        "time_embedding.linear_2.weight",
    ] {
        let error = refused(|tensors| drop(tensors.remove(name)));
        let ControlNetError::Weights(WeightsError::Missing { name: missing, .. }) = &error else {
            panic!("{name}: {error}")
        };
        assert_eq!(missing, name);
        let error = refused(|tensors| set(tensors, name, &[3, 5]));
        assert!(matches!(error, ControlNetError::Weights(WeightsError::Shape { .. })), "{name}: {error}");
        assert!(error.to_string().contains(name), "{error}");
        let error = refused(|tensors| {
            let tensor = (&tensors[name] * f64::NAN).unwrap();
            tensors.insert(name.into(), tensor);
        });
        assert!(matches!(error, ControlNetError::Weights(WeightsError::NotFinite { .. })), "{name}: {error}");
        assert!(error.to_string().contains(name), "{error}");
    }
    let error = refused(|tensors| set(tensors, "controlnet_down_blocks.9.weight", &[24, 24, 1, 1]));
    assert!(matches!(error, ControlNetError::Weights(WeightsError::Unexpected { .. })), "{error}");
    let error = refused(|tensors| {
        let bias = tensors["controlnet_mid_block.bias"].clone();
        tensors.insert("middle_block_out.0.bias".into(), bias);
    });
    assert!(matches!(error, ControlNetError::Ambiguous { .. }), "{error}");
}

#[test]
fn shapes_that_tell_nothing_sensible_are_refused_before_anything_is_loaded() {
    for (name, shape) in [
        ("conv_in.weight", &[8][..]),
        ("down_blocks.0.resnets.0.conv1.weight", &[]),
        ("controlnet_cond_embedding.conv_in.weight", &[4, 3]),
        ("controlnet_cond_embedding.blocks.1.weight", &[0, 4, 3, 3]),
        ("controlnet_cond_embedding.blocks.1.weight", &[2000, 4, 3, 3]),
    ] {
        let error = refused(|tensors| set(tensors, name, shape));
        assert!(matches!(error, ControlNetError::Undetectable { .. }), "{name}: {error}");
    }
    let error = refused(|tensors| tensors.retain(|name, _| !name.contains("embedding.blocks.4")));
    assert!(error.to_string().contains("shrinks pictures by 4"), "{error}");
    let error = refused(|tensors| tensors.retain(|name, _| name.starts_with("controlnet_")));
    assert!(error.to_string().contains("for another model family"), "{error}");
}

#[test]
fn a_truncated_file_says_so() {
    let whole = std::fs::read(file("sdxl")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.safetensors");
    for length in [0, 7, 100, 20_000, whole.len() - 1] {
        std::fs::write(&path, &whole[..length]).unwrap();
        let error = ControlNet::open(&path, &base("sdxl"), &Device::Cpu).unwrap_err();
        assert!(matches!(error, ControlNetError::Weights(WeightsError::Malformed { .. })), "{error}");
    }
}
