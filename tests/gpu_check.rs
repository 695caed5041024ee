//! What `benches/gpu_check` counts, makes and compares with: the layers of the networks, walked from their configs;
//! random numbers; how alike results are.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

#[path = "../benches/gpu_check/architecture.rs"]
#[allow(dead_code, reason = "the bench uses more of it")]
mod architecture;
#[path = "../benches/gpu_check/configs.rs"]
#[allow(dead_code, reason = "the bench uses more of it")]
mod configs;
#[path = "../benches/gpu_check/likeness.rs"]
mod likeness;
#[path = "../benches/gpu_check/random.rs"]
mod random;

use std::collections::BTreeMap;

use architecture::{Layer, flops};
use candle_core::{Device, Tensor};
use configs::Configs;
use darkroom_models::clip::ClipTextConfig;
use darkroom_models::unet::UNetConfig;
use darkroom_models::vae::VaeConfig;

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Tokens of a prompt of one chunk.
const TOKENS: usize = 77;

fn unet() -> UNetConfig {
    Configs::read(&Configs::full().unet).unwrap()
}

fn vae() -> VaeConfig {
    Configs::read(&Configs::full().vae).unwrap()
}

/// Fails unless `layers` take so many TFLOP, to two in a hundred.
#[track_caller]
fn takes(layers: &[Layer], tflop: f64) {
    let counted = flops(layers) / 1e12;
    assert!((counted / tflop - 1.0).abs() < 0.02, "{counted:.3} TFLOP, not {tflop}");
}

#[test]
fn the_unet_takes_what_was_counted_by_hand() {
    takes(&architecture::unet(&unet(), 128, 128, TOKENS), 6.76);
    takes(&architecture::unet(&unet(), 192, 192, TOKENS), 17.26);
    takes(&architecture::unet(&unet(), 192, 128, TOKENS), 10.68);
}

#[test]
fn the_control_net_takes_what_was_counted_by_hand() {
    takes(&architecture::control_net(&unet(), 128, 128, TOKENS), 3.02);
    takes(&architecture::control_net(&unet(), 192, 192, TOKENS), 7.70);
    takes(&architecture::control_net(&unet(), 192, 128, TOKENS), 4.77);
}

#[test]
fn the_decoder_takes_what_was_counted_by_hand() {
    takes(&architecture::vae_decoder(&vae(), 128, 128), 10.5);
    takes(&architecture::vae_decoder(&vae(), 192, 192), 25.1);
    takes(&architecture::vae_decoder(&vae(), 192, 128), 16.1);
}

/// Names and shapes of all weights of SDXL, as diffusers and transformers have them.
#[test]
fn the_layers_have_the_weights_of_the_published_model() {
    let file =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tests/golden/full_size_names.json");
    let all: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let configs = Configs::full();
    let clip = |config| -> ClipTextConfig { Configs::read(config).unwrap() };
    let picture =
        [architecture::vae_encoder(&vae(), 64, 64), architecture::vae_decoder(&vae(), 64, 64)].concat();
    for (part, layers) in [
        ("unet", architecture::unet(&unet(), 64, 64, TOKENS)),
        ("vae", picture),
        ("text_encoder", architecture::clip(&clip(&configs.text_encoder), false)),
        ("text_encoder_2", architecture::clip(&clip(&configs.text_encoder_2), true)),
    ] {
        let expected: BTreeMap<String, Vec<usize>> =
            serde_json::from_value(all["sdxl"][part].clone()).unwrap();
        let walked: Vec<_> = layers.iter().flat_map(Layer::weights).collect();
        let count = walked.len();
        let walked: BTreeMap<String, Vec<usize>> = walked.into_iter().collect();
        assert_eq!(walked.len(), count, "{part}: a weight comes twice");
        let other: Vec<_> =
            expected.iter().filter(|(name, shape)| walked.get(*name) != Some(*shape)).take(3).collect();
        assert!(other.is_empty(), "{part}: {other:?}");
        assert_eq!(walked.len(), expected.len(), "{part} has weights that the model has not");
    }
}

fn of(values: &[f32]) -> Tensor {
    Tensor::from_slice(values, values.len(), &Device::Cpu).unwrap()
}

#[test]
fn an_error_is_relative_to_the_whole_and_no_number_is_no_likeness() {
    let expected = of(&[3.0, 4.0]);
    assert_eq!(likeness::relative_error(&expected, &expected).unwrap(), 0.0);
    assert!((likeness::relative_error(&of(&[3.0, 4.5]), &expected).unwrap() - 0.1).abs() < 1e-9);
    for broken in [&[3.0, f32::NAN][..], &[f32::INFINITY, 4.0], &[3.0]] {
        assert_eq!(likeness::relative_error(&of(broken), &expected).unwrap(), f64::INFINITY);
    }
    assert_eq!(likeness::not_numbers(&likeness::floats(&of(&[1.0, f32::NAN])).unwrap()), 1);
}

#[test]
fn psnr_is_that_of_the_mean_square() {
    assert_eq!(likeness::psnr(&[7, 9], &[7, 9]), f64::INFINITY);
    assert!((likeness::psnr(&[0, 10], &[0, 0]) - 10.0 * (255f64.powi(2) / 50.0).log10()).abs() < 1e-9);
    assert_eq!(likeness::psnr(&[1], &[1, 2]), 0.0);
}

#[test]
fn random_numbers_have_the_deviation_asked_for_and_differ_by_stream() {
    let (a, b) = (random::stream(1, "a"), random::stream(1, "b"));
    let draw = |stream| likeness::floats(&random::tensor(&[3, 100_000], stream, 2.0).unwrap()).unwrap();
    let values = draw(a);
    let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / values.len() as f64;
    let variance = values.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / values.len() as f64;
    // Of 300,000 numbers: some six standard errors.
    assert!(mean.abs() < 0.02, "{mean}");
    assert!((variance.sqrt() - 2.0).abs() < 0.02, "{variance}");
    assert_eq!(values, draw(a));
    assert_ne!(values, draw(b));
    assert_ne!(random::stream(1, "a"), random::stream(2, "a"));
}
