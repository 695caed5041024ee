//! The same networks from a single file with ldm/sgm names and from a diffusers folder, against the reference.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests fail by panicking and say what they measured"
)]

mod support;

use candle_core::{DType, Device};
use darkroom_models::adapter::Adapters;
use darkroom_models::checkpoint::{Checkpoint, Layout, ModelKind};
use darkroom_models::clip::{ClipTextEncoder, HiddenLayer};
use darkroom_models::unet::{UNet2DConditionModel, UNetInput};
use darkroom_models::vae::AutoencoderKl;
use support::{Cases, REFERENCE_TOLERANCE, assert_close, golden};

fn open(name: &str, kind: ModelKind, layout: Layout) -> Checkpoint {
    let checkpoint = Checkpoint::open(&golden(name), &Device::Cpu).unwrap();
    assert_eq!((checkpoint.kind, checkpoint.layout), (kind, layout), "{name}");
    assert!(checkpoint.stray.is_empty(), "{name}: {:?}", checkpoint.stray);
    checkpoint
}

fn unet_equals_diffusers(checkpoint: &Checkpoint, model: &str) {
    let part = &checkpoint.unet;
    let unet = UNet2DConditionModel::load(&part.config, &part.weights).unwrap();
    part.weights.finish().unwrap();
    let cases = Cases::open(&format!("unet_{model}.safetensors"));
    let (pooled, size_ids) = (cases.find("batch.pooled"), cases.find("batch.size_ids"));
    let input = UNetInput {
        latent: &cases.get("batch.latent"),
        timesteps: &cases.get("batch.timesteps"),
        context: &cases.get("batch.context"),
        context_lengths: None,
        pooled: pooled.as_ref(),
        size_ids: size_ids.as_ref(),
        adapters: Adapters::none(),
    };
    let output = unet.forward(&input).unwrap();
    assert_close(&checkpoint.origin, &output, &cases.get("batch.output"), REFERENCE_TOLERANCE);
}

fn vae_equals_diffusers(checkpoint: &Checkpoint, model: &str) {
    let part = &checkpoint.vae;
    let vae = AutoencoderKl::load(&part.config, &part.weights).unwrap();
    part.weights.finish().unwrap();
    let cases = Cases::open(&format!("vae_{model}.safetensors"));
    let decoded = vae.decode(&cases.get("latent")).unwrap();
    assert_close(&checkpoint.origin, &decoded, &cases.get("decoded"), REFERENCE_TOLERANCE);
    let encoded = vae.encode(&cases.get("image")).unwrap();
    assert_close(&checkpoint.origin, &encoded, &cases.get("encoded"), REFERENCE_TOLERANCE);
}

fn text_encoders_equal_transformers(checkpoint: &Checkpoint) {
    let second = checkpoint.clip_g.as_ref().map(|part| (part, "clip_g.safetensors"));
    for (part, cases) in [(&checkpoint.clip_l, "clip_l.safetensors")].into_iter().chain(second) {
        let encoder = ClipTextEncoder::load(&part.config, &part.weights).unwrap();
        part.weights.finish().unwrap();
        let cases = Cases::open(cases);
        let tokens = cases.get("tokens").to_dtype(DType::U32).unwrap().to_vec2::<u32>().unwrap();
        let encoding = encoder.encode(&tokens, HiddenLayer::Skip(2)).unwrap();
        assert_close(&checkpoint.origin, &encoding.hidden, &cases.get("skip.2"), REFERENCE_TOLERANCE);
        if let Some(pooled) = &encoding.pooled {
            assert_close(&checkpoint.origin, pooled, &cases.get("pooled"), REFERENCE_TOLERANCE);
        }
    }
}

fn equals_the_reference(name: &str, model: &str, kind: ModelKind, layout: Layout) {
    let checkpoint = open(name, kind, layout);
    unet_equals_diffusers(&checkpoint, model);
    vae_equals_diffusers(&checkpoint, model);
    text_encoders_equal_transformers(&checkpoint);
}

#[test]
fn an_sdxl_single_file_equals_the_reference() {
    equals_the_reference("sdxl.safetensors", "sdxl", ModelKind::Sdxl, Layout::Ldm);
}

#[test]
fn an_sdxl_diffusers_folder_equals_the_reference() {
    equals_the_reference("sdxl", "sdxl", ModelKind::Sdxl, Layout::DiffusersFolder);
}

#[test]
fn an_sd15_single_file_equals_the_reference() {
    equals_the_reference("sd15.safetensors", "sd15", ModelKind::Sd15, Layout::Ldm);
}

#[test]
fn an_sd15_diffusers_folder_equals_the_reference() {
    equals_the_reference("sd15", "sd15", ModelKind::Sd15, Layout::DiffusersFolder);
}
