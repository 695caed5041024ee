//! Background removal against a network written from the paper, and what pictures and files make of it.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests fail by panicking and say what they measured"
)]

mod support;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use darkroom_models::matting::{BackgroundRemover, MattingError};
use darkroom_models::weights::WeightFile;
use support::{BATCH_TOLERANCE, Cases, REFERENCE_TOLERANCE, assert_close, golden};

fn open(path: &Path) -> Result<BackgroundRemover, MattingError> {
    BackgroundRemover::from_file(&Arc::new(WeightFile::open(path).unwrap()), &Device::Cpu)
}

fn remover() -> BackgroundRemover {
    open(&golden("matting.safetensors")).unwrap()
}

/// The golden network, changed, in a file of its own.
fn changed(change: impl FnOnce(&mut HashMap<String, Tensor>)) -> Result<BackgroundRemover, MattingError> {
    let mut tensors = candle_core::safetensors::load(golden("matting.safetensors"), &Device::Cpu).unwrap();
    change(&mut tensors);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("changed.safetensors");
    candle_core::safetensors::save(&tensors, &path).unwrap();
    open(&path)
}

/// What the golden network with tensors renamed or added is refused as.
fn refusal(change: impl FnOnce(&mut HashMap<String, Tensor>)) -> String {
    changed(change).unwrap_err().to_string()
}

fn channels_last(x: &Tensor) -> Tensor {
    x.permute((0, 2, 3, 1)).unwrap().contiguous().unwrap()
}

fn values(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn sides_that_halve_unevenly_equal_the_reference() {
    let (remover, cases) = (remover(), Cases::open("matting_cases.safetensors"));
    for case in ["uneven", "batch"] {
        let alpha = remover.forward(&channels_last(&cases.get(format!("{case}.pixels")))).unwrap();
        assert_close(case, &alpha, &cases.get(format!("{case}.alpha")), REFERENCE_TOLERANCE);
    }
}

#[test]
fn a_picture_is_scaled_and_its_alpha_stretched_as_rmbg_does() {
    let cases = Cases::open("matting_cases.safetensors");
    let alpha = remover().alpha(&cases.get("picture.pixels")).unwrap();
    assert_close("picture", &alpha, &cases.get("picture.alpha"), REFERENCE_TOLERANCE);
    let values = values(&alpha);
    let (least, most) = values.iter().fold((f32::MAX, f32::MIN), |(l, m), v| (l.min(*v), m.max(*v)));
    assert!(least == 0.0 && (most - 1.0).abs() < 1e-6, "{least} to {most}");
}

#[test]
fn a_batched_picture_equals_the_picture_alone() {
    let (remover, cases) = (remover(), Cases::open("matting_cases.safetensors"));
    let pixels = channels_last(&cases.get("batch.pixels"));
    let both = remover.forward(&pixels).unwrap();
    for i in 0..2 {
        let alone = remover.forward(&pixels.narrow(0, i, 1).unwrap()).unwrap();
        assert_close("row", &both.narrow(0, i, 1).unwrap(), &alone, BATCH_TOLERANCE);
    }
}

#[test]
fn what_only_training_uses_may_be_missing() {
    let stripped = changed(|tensors| {
        tensors.retain(|name, _| !name.ends_with("num_batches_tracked") && !name.starts_with("side6"));
    });
    let pixels = Tensor::zeros((1, 40, 40, 3), DType::F32, &Device::Cpu).unwrap();
    let alpha = stripped.unwrap().forward(&pixels).unwrap();
    assert_eq!(values(&alpha), values(&remover().forward(&pixels).unwrap()));
}

#[test]
fn other_background_removers_are_refused_by_name() {
    let birefnet = refusal(|tensors| {
        let any = tensors["side1.bias"].clone();
        tensors.clear();
        for name in ["bb.patch_embed.proj.weight", "decoder.conv_out1.0.weight"] {
            tensors.insert(name.into(), any.clone());
        }
    });
    assert!(birefnet.contains("BiRefNet") && birefnet.contains("RMBG-1.4's model.safetensors"), "{birefnet}");
    let u2net = refusal(|tensors| {
        let any = tensors.remove("conv_in.weight").unwrap();
        tensors.remove("conv_in.bias").unwrap();
        tensors.insert("outconv.weight".into(), any);
    });
    assert!(u2net.contains("U²-Net"), "{u2net}");
    let other = open(&golden("vae_sdxl.safetensors")).unwrap_err().to_string();
    assert!(other.contains("no IS-Net"), "{other}");
}

#[test]
fn damaged_files_are_refused_with_what_is_wrong() {
    let missing = refusal(|tensors| {
        tensors.remove("stage3d.rebnconv2d.bn_s1.running_var").unwrap();
    });
    assert!(missing.contains("stage3d.rebnconv2d.bn_s1.running_var"), "{missing}");
    let negative = refusal(|tensors| {
        let variance = tensors.get_mut("stage1.rebnconv3.bn_s1.running_var").unwrap();
        *variance = variance.neg().unwrap();
    });
    assert!(negative.contains("running_var is negative"), "{negative}");
    let narrow = refusal(|tensors| {
        let weight = tensors.get_mut("stage2.rebnconv4.conv_s1.weight").unwrap();
        *weight = weight.narrow(1, 0, 2).unwrap().contiguous().unwrap();
    });
    assert!(narrow.contains("stage2.rebnconv4.conv_s1.weight"), "{narrow}");
    let extra = refusal(|tensors| {
        tensors.insert("stage7.weight".into(), tensors["side1.bias"].clone());
    });
    assert!(extra.contains("stage7.weight"), "{extra}");
}

#[test]
fn what_is_no_picture_is_refused() {
    let remover = remover();
    for shape in [vec![0, 4, 3], vec![4, 4, 1], vec![4, 4], vec![1, 4, 4, 3]] {
        let picture = Tensor::zeros(shape.clone(), DType::F32, &Device::Cpu).unwrap();
        let error = remover.alpha(&picture).unwrap_err();
        assert!(matches!(&error, MattingError::Shape { found } if *found == shape), "{error}");
    }
}
