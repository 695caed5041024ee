//! Qwen-Image's autoencoder against diffusers, and tiles against the whole.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests fail by panicking and say what they measured"
)]

#[path = "support/safetensors_bytes.rs"]
mod safetensors_bytes;
mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use darkroom_models::vae::Tiling;
use darkroom_models::vae_qwen::{AutoencoderKlQwenImage, QwenVaeConfig};
use darkroom_models::weights::{Stored, Transform, WeightFile, Weights};
use support::{BATCH_TOLERANCE, Cases, REFERENCE_TOLERANCE, assert_close, folder, golden, relative_error};

fn opened(name: &str) -> (QwenVaeConfig, Weights) {
    folder(&format!("qwen_image/vae_{name}"))
}

fn vae(name: &str) -> (AutoencoderKlQwenImage, Cases) {
    let (config, weights) = opened(name);
    let vae = AutoencoderKlQwenImage::load(&config, &weights).unwrap();
    weights.finish().unwrap();
    (vae, Cases::open(&format!("vae_qwen_{name}.safetensors")))
}

fn equals_diffusers(name: &str) {
    let (vae, cases) = vae(name);
    let check = |what: &str, actual: &Tensor| {
        assert_close(&format!("{name}: {what}"), actual, &cases.get(what), REFERENCE_TOLERANCE);
    };
    check("decoded", &vae.decode(&cases.get("latent")).unwrap());
    check("encoded", &vae.encode(&cases.get("image")).unwrap());
    check("uneven.encoded", &vae.encode(&cases.get("uneven.image")).unwrap());
}

#[test]
fn the_published_structure_equals_diffusers() {
    equals_diffusers("published");
}

#[test]
fn another_structure_equals_diffusers() {
    equals_diffusers("other");
}

#[test]
fn a_batched_row_equals_the_row_alone() {
    let (vae, cases) = vae("published");
    let (latent, image) = (cases.get("latent"), cases.get("image"));
    let (decoded, encoded) = (vae.decode(&latent).unwrap(), vae.encode(&image).unwrap());
    for i in 0..2 {
        let row = |x: &Tensor| x.narrow(0, i, 1).unwrap();
        assert_close("decoded", &row(&decoded), &vae.decode(&row(&latent)).unwrap(), BATCH_TOLERANCE);
        assert_close("encoded", &row(&encoded), &vae.encode(&row(&image)).unwrap(), BATCH_TOLERANCE);
    }
}

#[test]
fn pixels_are_clamped_whole_and_in_tiles() {
    let (vae, cases) = vae("published");
    let largest = |picture: Tensor| {
        let largest = picture.abs().unwrap().flatten_all().unwrap().max(0).unwrap();
        largest.to_scalar::<f32>().unwrap()
    };
    assert_eq!(largest(vae.decode(&cases.get("latent")).unwrap()), 1.0);
    assert_eq!(largest(vae.decode_tiled(&cases.get("tiled.latent"), 6, 2).unwrap()), 1.0);
}

#[test]
fn norms_of_zeros_are_zeros() {
    let folder = tempfile::tempdir().unwrap();
    let (config, weights) = opened("other");
    let tensors = weights.names().into_iter().map(|name| (name.clone(), weights.shape(&name).unwrap()));
    let file = safetensors_bytes::hollow(&folder.path().join("zeros.safetensors"), tensors, &[]);
    let zeros = Weights::from_file(Arc::new(WeightFile::open(&file).unwrap()), &Device::Cpu);
    let vae = AutoencoderKlQwenImage::load(&config, &zeros).unwrap();
    let picture = vae.decode(&Tensor::ones((1, 4, 2, 2), DType::F32, &Device::Cpu).unwrap()).unwrap();
    assert_eq!(picture.flatten_all().unwrap().to_vec1::<f32>().unwrap(), vec![0.0; 3 * 8 * 8]);
}

#[test]
fn tiles_as_large_as_the_picture_change_nothing() {
    let (vae, cases) = vae("other");
    let (latent, image) = (cases.get("latent"), cases.get("image"));
    let decoded = vae.decode_tiled(&latent, 16, 4).unwrap();
    assert_close("decoded", &decoded, &cases.get("decoded"), REFERENCE_TOLERANCE);
    let encoded = vae.encode_tiled(&image, 16, 4).unwrap();
    assert_close("encoded", &encoded, &cases.get("encoded"), REFERENCE_TOLERANCE);
}

#[test]
fn tiles_are_blended_by_comfyuis_rule_for_video() {
    for name in ["published", "other"] {
        let (vae, cases) = vae(name);
        let tiles = Tiling::Tiles { tile: 6, overlap: 2 };
        let decoded = vae.decode_with(&cases.get("tiled.latent"), tiles).unwrap();
        assert_close("decoded", &decoded, &cases.get("tiled.decoded"), REFERENCE_TOLERANCE);
        let encoded = vae.encode_with(&cases.get("tiled.decoded"), tiles).unwrap();
        assert_close("encoded", &encoded, &cases.get("tiled.encoded"), REFERENCE_TOLERANCE);
        let whole = vae.decode_with(&cases.get("tiled.latent"), Tiling::Whole).unwrap();
        assert!(relative_error(&whole, &decoded) > 1e-2, "a tile sees another picture than the whole");
    }
}

#[test]
fn the_budget_decides_between_whole_and_tiles() {
    let (vae, _) = vae("published");
    let enough = vae.decode_bytes(96, 64);
    assert!(enough > vae.decode_bytes(96, 63));
    assert_eq!(vae.decode_tiling(96, 64, enough), Tiling::Whole);
    assert_eq!(vae.decode_tiling(96, 64, enough - 1), Tiling::Tiles { tile: 32, overlap: 8 });
    assert_eq!(vae.decode_tiling(96, 64, 0), Tiling::Tiles { tile: 16, overlap: 4 });
    assert_eq!(vae.encode_tiling(96, 64, vae.encode_bytes(96, 64)), Tiling::Whole);
    assert_eq!(vae.decode_bytes(usize::MAX, 2), usize::MAX);
}

#[test]
fn a_network_taken_again_from_what_was_kept_is_the_same() {
    let (config, weights) = opened("other");
    weights.keep();
    let cases = Cases::open("vae_qwen_other.safetensors");
    AutoencoderKlQwenImage::load(&config, &weights).unwrap();
    let again = weights.kept().with_replaced(std::collections::HashMap::new());
    let vae = AutoencoderKlQwenImage::load(&config, &again).unwrap();
    again.finish().unwrap();
    let decoded = vae.decode(&cases.get("latent")).unwrap();
    assert_close("decoded", &decoded, &cases.get("decoded"), REFERENCE_TOLERANCE);
}

#[test]
fn a_file_of_another_structure_is_refused() {
    let (config, weights) = opened("published");
    let narrower = QwenVaeConfig { base_dim: 2, ..config.clone() };
    let error = AutoencoderKlQwenImage::load(&narrower, &weights).unwrap_err().to_string();
    assert!(error.contains("encoder.") && error.contains("shape"), "{error}");
    let deeper = QwenVaeConfig { num_res_blocks: 3, ..config.clone() };
    assert!(AutoencoderKlQwenImage::load(&deeper, &opened("published").1).is_err());
    let nonsense = QwenVaeConfig { dim_mult: Vec::new(), ..config };
    assert!(AutoencoderKlQwenImage::load(&nonsense, &opened("published").1).is_err());
}

#[test]
fn tensors_that_the_network_does_not_have_are_named() {
    let file = golden("qwen_image/vae_other").join("diffusion_pytorch_model.safetensors");
    let file = Arc::new(WeightFile::open(&file).unwrap());
    let stored =
        |name: &str| Stored { file: file.clone(), name: name.to_owned(), transform: Transform::None };
    let mut tensors: BTreeMap<String, Stored> =
        file.header().tensors.keys().map(|name| (name.clone(), stored(name))).collect();
    tensors.insert("encoder.conv_in.time_conv.weight".into(), stored("quant_conv.weight"));
    let weights = Weights::new("file", tensors, &Device::Cpu);
    AutoencoderKlQwenImage::load(&opened("other").0, &weights).unwrap();
    assert!(weights.finish().unwrap_err().to_string().contains("quant_conv.weight"));
}

#[test]
fn wrong_shapes_are_refused() {
    let (vae, _) = vae("published");
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    for shape in [&[1, 4, 8, 8][..], &[16, 8, 8], &[1, 16, 0, 8], &[0, 16, 8, 8], &[1, 16, 1, 8, 8]] {
        assert!(vae.decode(&zeros(shape)).unwrap_err().to_string().contains("latent"), "{shape:?}");
    }
    for shape in [&[1, 4, 64, 64][..], &[3, 64, 64], &[1, 3, 7, 64]] {
        assert!(vae.encode(&zeros(shape)).unwrap_err().to_string().contains("image"), "{shape:?}");
    }
    assert!(vae.encode_tiled(&zeros(&[1, 3, 63, 64]), 16, 4).unwrap_err().to_string().contains("divide"));
    assert!(vae.decode_tiled(&zeros(&[1, 16, 8, 8]), 4, 4).unwrap_err().to_string().contains("overlap"));
    let absurd = vae.decode_tiled(&zeros(&[1, 16, 8, 8]), usize::MAX, 4);
    assert!(absurd.unwrap_err().to_string().contains("overlap"));
}
