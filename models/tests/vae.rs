//! The autoencoders against diffusers, and tiles against the whole.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests fail by panicking and say what they measured"
)]

mod support;

use candle_core::{DType, Device, Tensor};
use darkroom_models::vae::{AutoencoderKl, Tiling, VaeConfig};
use support::{BATCH_TOLERANCE, Cases, REFERENCE_TOLERANCE, assert_close, folder, relative_error};

fn vae(name: &str) -> AutoencoderKl {
    let (config, weights) = folder::<VaeConfig>(&format!("{name}/vae"));
    let vae = AutoencoderKl::load(&config, &weights).unwrap();
    weights.finish().unwrap();
    vae
}

fn equals_diffusers(name: &str) {
    let (vae, cases) = (vae(name), Cases::open(&format!("vae_{name}.safetensors")));
    let check = |what: &str, actual: &Tensor| {
        assert_close(&format!("{name}: {what}"), actual, &cases.get(what), REFERENCE_TOLERANCE);
    };
    check("decoded", &vae.decode(&cases.get("latent")).unwrap());
    check("encoded", &vae.encode(&cases.get("image")).unwrap());
    check("uneven.encoded", &vae.encode(&cases.get("uneven.image")).unwrap());
}

#[test]
fn two_layers_a_level_equal_diffusers() {
    equals_diffusers("sdxl");
}

#[test]
fn one_layer_a_level_equals_diffusers() {
    equals_diffusers("sd15");
}

#[test]
fn a_batched_row_equals_the_row_alone() {
    let (vae, cases) = (vae("sdxl"), Cases::open("vae_sdxl.safetensors"));
    let (latent, image) = (cases.get("latent"), cases.get("image"));
    let (decoded, encoded) = (vae.decode(&latent).unwrap(), vae.encode(&image).unwrap());
    for i in 0..2 {
        let row = |x: &Tensor| x.narrow(0, i, 1).unwrap();
        assert_close("decoded", &row(&decoded), &vae.decode(&row(&latent)).unwrap(), BATCH_TOLERANCE);
        assert_close("encoded", &row(&encoded), &vae.encode(&row(&image)).unwrap(), BATCH_TOLERANCE);
    }
}

#[test]
fn tiles_as_large_as_the_picture_change_nothing() {
    let (vae, cases) = (vae("sd15"), Cases::open("vae_sd15.safetensors"));
    let (latent, image) = (cases.get("latent"), cases.get("image"));
    let decoded = vae.decode_tiled(&latent, 16, 4).unwrap();
    assert_close("decoded", &decoded, &cases.get("decoded"), REFERENCE_TOLERANCE);
    let encoded = vae.encode_tiled(&image, 16, 4).unwrap();
    assert_close("encoded", &encoded, &cases.get("encoded"), REFERENCE_TOLERANCE);
}

#[test]
fn tiles_are_blended_by_comfyuis_rule() {
    for name in ["sdxl", "sd15"] {
        let (vae, cases) = (vae(name), Cases::open(&format!("vae_{name}.safetensors")));
        let tiles = Tiling::Tiles { tile: 8, overlap: 2 };
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
    let vae = vae("sdxl");
    let enough = vae.decode_bytes(96, 64);
    assert!(enough > vae.decode_bytes(96, 63));
    assert_eq!(vae.decode_tiling(96, 64, enough), Tiling::Whole);
    assert_eq!(vae.decode_tiling(96, 64, enough - 1), Tiling::Tiles { tile: 64, overlap: 16 });
    assert_eq!(vae.decode_tiling(96, 64, vae.decode_bytes(32, 32)), Tiling::Tiles { tile: 32, overlap: 8 });
    assert_eq!(vae.decode_tiling(96, 64, 0), Tiling::Tiles { tile: 16, overlap: 4 });
    assert_eq!(vae.encode_tiling(96, 64, vae.encode_bytes(96, 64)), Tiling::Whole);
    assert_eq!(vae.decode_bytes(usize::MAX, 2), usize::MAX);
}

#[test]
fn wrong_shapes_are_refused() {
    let vae = vae("sd15");
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    for shape in [&[1, 3, 8, 8][..], &[4, 8, 8], &[1, 4, 0, 8], &[0, 4, 8, 8]] {
        assert!(vae.decode(&zeros(shape)).unwrap_err().to_string().contains("latent"), "{shape:?}");
    }
    for shape in [&[1, 4, 64, 64][..], &[3, 64, 64], &[1, 3, 7, 64]] {
        assert!(vae.encode(&zeros(shape)).unwrap_err().to_string().contains("image"), "{shape:?}");
    }
    assert!(vae.encode_tiled(&zeros(&[1, 3, 63, 64]), 16, 4).unwrap_err().to_string().contains("divide"));
    assert!(vae.decode_tiled(&zeros(&[1, 4, 64, 64]), 16, 8).unwrap_err().to_string().contains("overlap"));
}
