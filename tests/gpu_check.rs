//! What `benches/gpu_check` counts and makes: the layers of the networks, walked from their configs.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

#[path = "../benches/gpu_check/architecture.rs"]
#[allow(dead_code, reason = "the bench uses more of it")]
mod architecture;
#[path = "../benches/gpu_check/configs.rs"]
#[allow(dead_code, reason = "the bench uses more of it")]
mod configs;

use std::collections::BTreeMap;

use architecture::{Layer, flops};
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
