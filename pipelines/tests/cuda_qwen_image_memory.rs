//! What Qwen-Image takes of a CUDA card's memory against what it says, held and streamed, and on a card that is too small
//! for it. A test binary of its own, with one test, so that nothing else is counted: with the feature `cuda` only, and a
//! card or the emulator (`scripts/cuda/test`).

#![cfg(feature = "cuda")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test that cannot go on fails; it says what it measured"
)]

#[path = "support/card.rs"]
mod card;
#[path = "support/qwen_image.rs"]
mod qwen_image;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::cuda_backend::cudarc::driver::sys;
use candle_core::{DType, Device, Tensor};
use card::card;
use darkroom_models::checkpoint::QwenImageParts;
use darkroom_models::weights::WeightFile;
use darkroom_models::{ComputeType, device};
use darkroom_pipelines::{ImageRequest, LoadOptions, MemoryPlan, Pipeline, Placement, Sample};
use qwen_image::{folder, golden, request};

const LAYERS: usize = 4;
const HEADS: usize = 2;
const INNER: usize = HEADS * 128;
/// Of the golden text encoder.
const CONTEXT: usize = 32;
/// The transformer with its matrices rounded to 8 bits.
const EIGHT_BITS: &str = "eight_bits.safetensors";
/// Set in the process that has a small card: the folder of the model.
const ON_A_SMALL_CARD: &str = "DARKROOM_TEST_SMALL_CARD";

/// The golden model with a transformer of 10 million numbers, 19 MB in 16 bits, in `folder`.
fn write_transformer(folder: &Path) {
    let mut tensors = HashMap::new();
    let mut add = |name: String, shape: &[usize]| {
        // Products keep about the size of what they are made of.
        let spread = if shape.len() == 2 { (shape[1] as f64).powf(-0.5) } else { 0.3 };
        let tensor = Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap();
        tensors.insert(name, (tensor * spread).unwrap().to_dtype(DType::F16).unwrap());
    };
    let mut linear = |name: &str, outputs: usize, inputs: usize| {
        add(format!("{name}.weight"), &[outputs, inputs]);
        add(format!("{name}.bias"), &[outputs]);
    };
    linear("time_text_embed.timestep_embedder.linear_1", INNER, 256);
    linear("time_text_embed.timestep_embedder.linear_2", INNER, INNER);
    linear("img_in", INNER, 64);
    linear("txt_in", INNER, CONTEXT);
    linear("norm_out.linear", 2 * INNER, INNER);
    linear("proj_out", 64, INNER);
    for layer in 0..LAYERS {
        let mut linear = |name: &str, outputs: usize, inputs: usize| {
            linear(&format!("transformer_blocks.{layer}.{name}"), outputs, inputs);
        };
        for name in
            ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
        {
            linear(&format!("attn.{name}"), INNER, INNER);
        }
        for stream in ["img", "txt"] {
            linear(&format!("{stream}_mod.1"), 6 * INNER, INNER);
            linear(&format!("{stream}_mlp.net.0.proj"), 4 * INNER, INNER);
            linear(&format!("{stream}_mlp.net.2"), INNER, 4 * INNER);
        }
    }
    add("txt_norm.weight".into(), &[CONTEXT]);
    for layer in 0..LAYERS {
        for name in ["norm_q", "norm_k", "norm_added_q", "norm_added_k"] {
            add(format!("transformer_blocks.{layer}.attn.{name}.weight"), &[INNER / HEADS]);
        }
    }
    let config = serde_json::json!({
        "_class_name": "QwenImageTransformer2DModel",
        "attention_head_dim": INNER / HEADS,
        "axes_dims_rope": [16, 56, 56],
        "guidance_embeds": false,
        "in_channels": 64,
        "joint_attention_dim": CONTEXT,
        "num_attention_heads": HEADS,
        "num_layers": LAYERS,
        "out_channels": 16,
        "patch_size": 2,
    });
    std::fs::create_dir(folder.join("transformer")).unwrap();
    std::fs::write(folder.join("transformer/config.json"), config.to_string()).unwrap();
    let file = folder.join("transformer/diffusion_pytorch_model.safetensors");
    candle_core::safetensors::save(&tensors, file).unwrap();
    for tensor in tensors.values_mut().filter(|tensor| tensor.rank() == 2) {
        *tensor = tensor.to_dtype(DType::F8E4M3).unwrap();
    }
    candle_core::safetensors::save(&tensors, folder.join(EIGHT_BITS)).unwrap();
    std::fs::copy(golden("diffusers/model_index.json"), folder.join("model_index.json")).unwrap();
}

/// The emulated card's memory can be chosen, and its libraries take none.
fn is_emulated() -> bool {
    std::env::var_os("DARKROOM_EMULATED_GPU").is_some()
}

/// Bytes of the card that no estimate counts: small things fill a grain of 512 bytes each, and libraries have workspaces.
/// At full size the engine leaves more to it.
fn beside() -> u64 {
    if is_emulated() { 1 << 19 } else { 64 << 20 }
}

fn parts(made: &Path, eight_bits: bool) -> QwenImageParts {
    let QwenImageParts { transformer, .. } = match eight_bits {
        false => QwenImageParts::open(made, card()).unwrap(),
        true => {
            let file = WeightFile::open(&made.join(EIGHT_BITS)).unwrap();
            QwenImageParts::from_file(&file.into(), card()).unwrap()
        }
    };
    QwenImageParts { transformer, ..folder(card()) }
}

fn pool() -> sys::CUmemoryPool {
    let mut pool = std::ptr::null_mut();
    // SAFETY: a valid place to write the pool to; the card was opened.
    unsafe { sys::cuDeviceGetDefaultMemPool(&raw mut pool, 0) }.result().unwrap();
    pool
}

/// Bytes of the card that are in use, and most that were since [`count_anew`].
fn used() -> (u64, u64) {
    card().synchronize().unwrap();
    let read = |attribute| {
        let mut value = 0u64;
        // SAFETY: the attribute is a 64-bit number.
        unsafe { sys::cuMemPoolGetAttribute(pool(), attribute, (&raw mut value).cast()) }.result().unwrap();
        value
    };
    use sys::CUmemPool_attribute as Attribute;
    (read(Attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT), read(Attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH))
}

fn count_anew() {
    card().synchronize().unwrap();
    let mut none = 0u64;
    let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
    // SAFETY: the attribute is a 64-bit number, of which 0 alone may be written.
    unsafe { sys::cuMemPoolSetAttribute(pool(), attribute, (&raw mut none).cast()) }.result().unwrap();
}

fn step(pipeline: &Pipeline, samples: &mut [Sample]) {
    pipeline.step(&mut samples.iter_mut().collect::<Vec<_>>()).unwrap();
}

/// A budget with which all blocks are streamed.
fn tight(parts: &QwenImageParts, compute_type: ComputeType) -> LoadOptions {
    let whole = MemoryPlan::of(parts, card(), &compute_type.into());
    let stays = whole.resident_bytes() - whole.transformer.blocks - whole.text_encoder.blocks;
    LoadOptions { compute_type, budget: Some(stays + whole.step_bytes + whole.transformer.largest_block) }
}

#[test]
fn what_is_allocated_is_within_what_was_said_and_a_card_too_small_for_the_model_draws_with_it() {
    if let Some(made) = std::env::var_os(ON_A_SMALL_CARD) {
        return draw_on_a_small_card(&PathBuf::from(made));
    }
    let made = tempfile::tempdir().unwrap();
    write_transformer(made.path());
    let parts = |eight_bits| parts(made.path(), eight_bits);
    let side = 256;
    let cells = side / 8;
    for (stored, eight_bits, compute_type) in [
        ("f16", false, ComputeType::Bf16),
        ("f16", false, ComputeType::Fp8),
        ("8 bits", true, ComputeType::Bf16),
        ("8 bits", true, ComputeType::Fp8),
    ] {
        for options in [compute_type.into(), tight(&parts(eight_bits), compute_type)] {
            // Weights can be taken once.
            let parts = parts(eight_bits);
            let (before, _) = used();
            let plan = MemoryPlan::of(&parts, card(), &options);
            let pipeline = Pipeline::load_qwen_image(&parts, card(), options).unwrap();
            let said = format!("{stored} in {compute_type:?}, {}", plan.transformer.placement);
            let held = used().0 - before;
            println!("{said}: {held} bytes held, {} said", plan.resident_bytes());
            assert_eq!(pipeline.weight_bytes(), plan.resident_bytes());
            assert!(held <= plan.resident_bytes() + beside(), "{said}");
            // Kernels over time, of which an autoencoder of pictures keeps a third, are counted whole: much only where
            // little else stays.
            let least = if plan.transformer.placement == Placement::Resident { 9 } else { 7 };
            assert!(held >= plan.resident_bytes() * least / 10, "{said}");

            // Emulated steps take seconds each.
            let short = eight_bits || compute_type == ComputeType::Fp8;
            for guided in if short { &[true][..] } else { &[false, true] } {
                let guided = *guided;
                let cfg = if guided { 3.0 } else { 1.0 };
                let request = ImageRequest { cfg, ..request("a cat", (side, side), 1) };
                let mut samples = pipeline.prepare(&[request]).unwrap();
                step(&pipeline, &mut samples); // what is kept for the next time is there after the first
                let (now, _) = used();
                count_anew();
                step(&pipeline, &mut samples);
                let took = used().1 - now;
                let rows = if guided { 2 } else { 1 };
                let estimate =
                    pipeline.step_bytes(rows, cells, cells) as u64 + plan.transformer.passing_bytes();
                println!("{said}, {rows} rows: {took} bytes, {estimate} estimated");
                assert!(
                    took <= estimate + beside(),
                    "{said}, {rows} rows: {took} bytes, {estimate} estimated"
                );
                assert!(took >= estimate / 3, "{said}, {rows} rows: {took} bytes, {estimate} estimated");
            }
        }
    }
    // Not on a real card, whose memory is what it is.
    if is_emulated() {
        let parts = parts(false);
        let options = tight(&parts, ComputeType::Bf16);
        let plan = MemoryPlan::of(&parts, card(), &options);
        let network = parts.transformer.as_ref().unwrap();
        let activations = network.config.forward_bytes(DType::BF16, 2, (cells, cells), 512) as u64;
        let streamed = plan.resident_bytes() + plan.transformer.passing_bytes() + activations;
        let card = streamed + beside();
        assert!(card < plan.transformer.bytes, "{card} bytes hold all of it");
        let run = std::process::Command::new(std::env::current_exe().unwrap())
            .arg("--nocapture")
            .env(ON_A_SMALL_CARD, made.path())
            .env("DARKROOM_EMULATED_VRAM", card.to_string())
            .output()
            .unwrap();
        println!("{}", String::from_utf8_lossy(&run.stdout));
        let said = String::from_utf8_lossy(&run.stderr);
        assert!(run.status.success(), "{}", said.chars().take(2000).collect::<String>());
    }
}

fn draw_on_a_small_card(made: &Path) {
    let parts = || parts(made, false);
    let free = || device::memory(card()).unwrap().0;
    println!("a card with {} bytes", free());
    let whole = Pipeline::load_qwen_image(&parts(), card(), ComputeType::Bf16);
    assert!(whole.err().unwrap().to_string().contains("OUT_OF_MEMORY"), "it has room for all of the model");
    let pipeline = Pipeline::load_qwen_image(&parts(), card(), tight(&parts(), ComputeType::Bf16)).unwrap();
    let request = ImageRequest { cfg: 3.0, steps: 1, ..request("a cat", (256, 256), 1) };
    let mut samples = pipeline.prepare(&[request]).unwrap();
    step(&pipeline, &mut samples);
    let picture = pipeline.decode(&[samples[0].latent().unwrap()]).unwrap().remove(0);
    assert!(picture.data().iter().all(|value| value.is_finite()));
    println!("{} bytes are free", free());
}
