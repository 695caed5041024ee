//! Upscalers against spandrel: all generations of ESRGAN's names, scales from 1 to 8, and compact networks; and what
//! other files are refused as.

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
use darkroom_models::upscaler::{Architecture, Upscaler, UpscalerError};
use darkroom_models::weights::WeightFile;
use support::{BATCH_TOLERANCE, Cases, REFERENCE_TOLERANCE, assert_close, golden};

fn open(path: &Path) -> Result<Upscaler, UpscalerError> {
    Upscaler::from_file(&Arc::new(WeightFile::open(path).unwrap()), &Device::Cpu)
}

fn upscaler(name: &str) -> Upscaler {
    open(&golden(&format!("upscaler/{name}.safetensors"))).unwrap()
}

/// What a golden network with tensors renamed, added or changed loads as.
fn changed(name: &str, change: impl FnOnce(&mut HashMap<String, Tensor>)) -> Result<Upscaler, UpscalerError> {
    let path = golden(&format!("upscaler/{name}.safetensors"));
    let mut tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    change(&mut tensors);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("changed.safetensors");
    candle_core::safetensors::save(&tensors, &path).unwrap();
    open(&path)
}

fn refusal(name: &str, change: impl FnOnce(&mut HashMap<String, Tensor>)) -> String {
    changed(name, change).unwrap_err().to_string()
}

/// A file of these names alone.
fn named(names: &[&str]) -> String {
    refusal("esrgan_x1", |tensors| {
        let any = tensors["model.0.weight"].clone();
        *tensors = names.iter().map(|name| ((*name).to_owned(), any.clone())).collect();
    })
}

fn channels_last(x: &Tensor) -> Tensor {
    x.permute((0, 2, 3, 1)).unwrap().contiguous().unwrap()
}

const SCALES: [(&str, usize); 9] = [
    ("esrgan_x4", 4),
    ("esrgan_x1", 1),
    ("esrgan_plus_x2", 2),
    ("bsrgan_x2", 2),
    ("real_x8", 8),
    ("real_x2", 2),
    ("real_x1", 1),
    ("compact_x4", 4),
    ("compact_x1", 1),
];

#[test]
fn every_generation_and_scale_equals_spandrel() {
    let cases = Cases::open("upscaler/cases.safetensors");
    for (name, scale) in SCALES {
        let network = upscaler(name);
        assert_eq!(network.scale(), scale, "{name}");
        let mut count = 0;
        while let Some(pixels) = cases.find(&format!("{name}.{count}.pixels")) {
            let expected = channels_last(&cases.get(format!("{name}.{count}.result")));
            let actual = network.forward(&channels_last(&pixels)).unwrap();
            assert_close(&format!("{name} {count}"), &actual, &expected, REFERENCE_TOLERANCE);
            count += 1;
        }
        assert!(count >= 2, "{name}");
    }
}

#[test]
fn a_header_says_all_widths() {
    let Architecture::Rrdb(config) = *upscaler("real_x2").architecture() else { panic!("no ESRGAN") };
    assert_eq!((config.inputs, config.outputs, config.unshuffle, config.doublings), (12, 3, 2, 2));
    assert_eq!((config.filters, config.growth, config.blocks, config.plus), (6, 4, 1, false));
    let Architecture::Rrdb(config) = *upscaler("esrgan_plus_x2").architecture() else { panic!("no ESRGAN") };
    assert!(config.plus);
    let Architecture::Compact(config) = *upscaler("compact_x4").architecture() else { panic!("not compact") };
    assert_eq!((config.channels, config.filters, config.layers, config.scale), (3, 8, 3, 4));
}

#[test]
fn a_batched_picture_equals_the_picture_alone() {
    for name in ["esrgan_x4", "real_x2", "compact_x4"] {
        let network = upscaler(name);
        let pixels = Tensor::rand(0f32, 1.0, (2, 8, 12, 3), &Device::Cpu).unwrap();
        let both = network.forward(&pixels).unwrap();
        for i in 0..2 {
            let alone = network.forward(&pixels.narrow(0, i, 1).unwrap()).unwrap();
            assert_close(name, &both.narrow(0, i, 1).unwrap(), &alone, BATCH_TOLERANCE);
        }
    }
}

#[test]
fn what_training_frameworks_put_before_names_does_not_matter() {
    let renamed = changed("esrgan_x1", |tensors| {
        *tensors = tensors.drain().map(|(name, tensor)| (format!("module.netG.{name}"), tensor)).collect();
    });
    assert_eq!(renamed.unwrap().architecture(), upscaler("esrgan_x1").architecture());
}

#[test]
fn other_architectures_are_refused_by_name() {
    let swinir = named(&["conv_first.weight", "layers.0.residual_group.blocks.0.norm1.weight"]);
    assert!(swinir.contains("this is a SwinIR, which is not supported"), "{swinir}");
    let hat = named(&[
        "conv_first.weight",
        "layers.0.residual_group.blocks.0.norm1.weight",
        "layers.0.residual_group.overlap_attn.qkv.weight",
    ]);
    assert!(hat.contains("this is a HAT"), "{hat}");
    let span = named(&["block_1.c1_r.sk.weight", "conv_cat.weight"]);
    assert!(span.contains("this is a SPAN"), "{span}");
    let other = open(&golden("vae_sdxl.safetensors")).unwrap_err().to_string();
    assert!(other.contains("no upscaler that is known"), "{other}");
}

#[test]
fn damaged_files_are_refused_with_what_is_wrong() {
    let missing = refusal("esrgan_x4", |tensors| {
        tensors.remove("model.1.sub.1.RDB2.conv3.0.bias").unwrap();
    });
    assert!(missing.contains("body.1.rdb2.conv3.bias"), "{missing}");
    let narrow = refusal("real_x8", |tensors| {
        let weight = tensors.get_mut("body.0.rdb1.conv2.weight").unwrap();
        *weight = weight.narrow(1, 0, 2).unwrap().contiguous().unwrap();
    });
    assert!(narrow.contains("body.0.rdb1.conv2.weight"), "{narrow}");
    let extra = refusal("real_x8", |tensors| {
        tensors.insert("conv_more.weight".into(), tensors["conv_first.bias"].clone());
    });
    assert!(extra.contains("conv_more.weight"), "{extra}");
    let doubling = refusal("real_x8", |tensors| {
        tensors.insert("conv_up60.weight".into(), tensors["conv_up1.weight"].clone());
    });
    assert!(doubling.contains("doubles pictures 60 times"), "{doubling}");
    let huge = refusal("real_x8", |tensors| {
        tensors.insert(format!("conv_up{}.weight", usize::MAX), tensors["conv_up1.weight"].clone());
    });
    assert!(huge.contains("16 is the largest scale"), "{huge}");
    let flat = refusal("compact_x4", |tensors| {
        let weight = tensors.get_mut("body.8.weight").unwrap();
        *weight = weight.narrow(0, 0, 47).unwrap().contiguous().unwrap();
    });
    assert!(flat.contains("47 channels"), "{flat}");
}

#[test]
fn what_is_no_picture_is_refused() {
    let network = upscaler("esrgan_x1");
    for shape in [vec![1, 0, 4, 3], vec![1, 4, 4, 4], vec![4, 4, 3], vec![0, 4, 4, 3]] {
        let picture = Tensor::zeros(shape.clone(), DType::F32, &Device::Cpu).unwrap();
        let error = network.forward(&picture).unwrap_err();
        assert!(matches!(&error, UpscalerError::Shape { found, .. } if *found == shape), "{error}");
    }
}

#[test]
fn what_is_forecast_does_not_grow_with_the_scale_but_for_the_result() {
    let Architecture::Rrdb(config) = *upscaler("real_x8").architecture() else { panic!("no ESRGAN") };
    let bytes = upscaler("real_x8").forward_bytes(512, 512);
    let result = 2 * 3 * 4 * (512 << 3) * (512 << 3);
    let bands = 3 * (64 << 20);
    let body = 512 * 512 * 4 * (6 * config.filters + 8 * config.growth);
    assert!(bytes > result / 2 && bytes < result + bands + body, "{bytes}");
}
