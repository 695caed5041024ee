//! Depth Anything V2 against transformers, under both sets of names, and what pictures make of it.

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

use candle_core::{Device, Tensor};
use darkroom_models::depth::{DepthError, DepthEstimator};
use darkroom_models::weights::WeightFile;
use support::{BATCH_TOLERANCE, Cases, REFERENCE_TOLERANCE, assert_close, golden};

const HEADS: usize = 2;

fn open(path: &Path) -> Result<DepthEstimator, DepthError> {
    let file = Arc::new(WeightFile::open(path).unwrap());
    DepthEstimator::from_file_with_heads(&file, HEADS, &Device::Cpu)
}

fn estimator(names: &str) -> DepthEstimator {
    open(&golden(&format!("depth_{names}.safetensors"))).unwrap()
}

/// The golden network, changed, in a file of its own.
fn changed(change: impl FnOnce(&mut HashMap<String, Tensor>)) -> Result<DepthEstimator, DepthError> {
    let mut tensors =
        candle_core::safetensors::load(golden("depth_authors.safetensors"), &Device::Cpu).unwrap();
    change(&mut tensors);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("changed.safetensors");
    candle_core::safetensors::save(&tensors, &path).unwrap();
    open(&path)
}

fn channels_last(x: &Tensor) -> Tensor {
    x.permute((0, 2, 3, 1)).unwrap().contiguous().unwrap()
}

fn values(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn both_sets_of_names_equal_transformers_at_any_size() {
    let cases = Cases::open("depth_cases.safetensors");
    for names in ["authors", "transformers"] {
        let network = estimator(names);
        for size in ["trained", "wide", "batch"] {
            let pixels = channels_last(&cases.get(format!("{size}.pixels")));
            let depth = network.forward(&pixels).unwrap();
            let expected = cases.get(format!("{size}.depth"));
            assert_close(&format!("{names}: {size}"), &depth, &expected, REFERENCE_TOLERANCE);
        }
    }
}

#[test]
fn a_batched_picture_equals_the_picture_alone() {
    let network = estimator("authors");
    let pixels = channels_last(&Cases::open("depth_cases.safetensors").get("batch.pixels"));
    let both = network.forward(&pixels).unwrap();
    for i in 0..2 {
        let alone = network.forward(&pixels.narrow(0, i, 1).unwrap()).unwrap();
        assert_close("row", &both.narrow(0, i, 1).unwrap(), &alone, BATCH_TOLERANCE);
    }
}

#[test]
fn a_picture_is_scaled_normalised_and_scaled_back_as_the_authors_do() {
    let cases = Cases::open("depth_cases.safetensors");
    let depth = estimator("authors").estimate(&cases.get("picture.pixels")).unwrap();
    assert_close("picture", &depth, &cases.get("picture.depth"), REFERENCE_TOLERANCE);
}

#[test]
fn the_depth_of_a_picture_has_its_size_and_fills_the_range() {
    let network = estimator("authors");
    let picture = Tensor::rand(0f32, 1.0, (40, 56, 3), &Device::Cpu).unwrap();
    let depth = network.estimate(&picture).unwrap();
    assert_eq!(depth.dims(), [40, 56]);
    let values = values(&depth);
    let (least, most) = values.iter().fold((f32::MAX, f32::MIN), |(l, m), v| (l.min(*v), m.max(*v)));
    assert_eq!(least, 0.0);
    assert!((most - 1.0).abs() < 1e-6, "{most}");
}

#[test]
fn where_nothing_is_nearer_the_depth_is_zero() {
    let network = changed(|tensors| {
        let weight = tensors.get_mut("depth_head.scratch.output_conv2.2.weight").unwrap();
        *weight = weight.zeros_like().unwrap();
    });
    let picture = Tensor::rand(0f32, 1.0, (30, 30, 3), &Device::Cpu).unwrap();
    let depth = network.unwrap().estimate(&picture).unwrap();
    assert!(values(&depth).iter().all(|v| *v == 0.0));
}

#[test]
fn a_picture_that_is_too_narrow_or_empty_is_refused() {
    let network = estimator("authors");
    for shape in [(10, 41, 3), (41, 10, 3), (0, 5, 3), (8, 8, 4)] {
        let picture = Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu).unwrap();
        let error = network.estimate(&picture).unwrap_err();
        assert!(matches!(error, DepthError::Shape { most: 4, .. }), "{shape:?}: {error}");
    }
}

#[test]
fn another_network_is_refused_by_what_it_lacks() {
    let error = open(&golden("vae_sdxl.safetensors")).unwrap_err();
    assert!(matches!(error, DepthError::Kind { .. }), "{error}");
    let message = error.to_string();
    assert!(message.contains("projection.weight' is missing"), "{message}");
    assert!(message.contains("depth_anything_v2_vits.safetensors"), "{message}");
}

#[test]
fn a_missing_and_a_superfluous_tensor_are_named() {
    let missing = changed(|tensors| {
        tensors.remove("pretrained.blocks.2.attn.qkv.bias").unwrap();
    });
    assert!(missing.unwrap_err().to_string().contains("layer.2.attention.attention.query.bias"));
    let extra = changed(|tensors| {
        let token = tensors["pretrained.cls_token"].clone();
        tensors.insert("pretrained.register_tokens".into(), token);
    });
    assert!(extra.unwrap_err().to_string().contains("pretrained.register_tokens"));
}

#[test]
fn heads_that_do_not_divide_the_channels_are_refused() {
    let file = Arc::new(WeightFile::open(&golden("depth_authors.safetensors")).unwrap());
    for heads in [0, 5] {
        assert!(DepthEstimator::from_file_with_heads(&file, heads, &Device::Cpu).is_err());
    }
    // Half a head of the published width.
    assert!(DepthEstimator::from_file(&file, &Device::Cpu).is_err());
}
