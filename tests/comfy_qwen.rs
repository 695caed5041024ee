//! Recorded workflows of Qwen-Image give ComfyUI's files, and what cannot be drawn with it is refused in words that help.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod comfy;
#[path = "comfy/replay.rs"]
mod replay;
mod server;

use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use candle_core::{DType, Device, Tensor};
use comfy::{Comfy, copy_all};
use replay::Recording;
use reqwest::Method;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

const MODEL: &str = "tiny_qwen_image.safetensors";
const TEXT: &str = "tiny_qwen_vl.safetensors";
const VAE: &str = "tiny_qwen_image_vae.safetensors";

/// Latents, ‖ours − theirs‖ / ‖theirs‖: seen are 3.3e-6 at most, but for those below.
const LATENTS: f64 = 1e-5;
const LOOSER: [(&str, f64); 3] = [
    // Its weights are differences of nearly equal numbers: the last bit of a logarithm is 7e-4 of one of them.
    ("samplers_uni_pc", 3e-3),
    // The network is told 1,000 times its noise level, and takes sines of up to a million.
    ("shifts_ModelSamplingSD3", 1e-2),
    // ComfyUI rounds weights to eight bits again, by chance up or down, once a LoRA is added to them: by that it is 1.1e-2
    // off itself without rounding. Darkroom keeps LoRAs beside the weights.
    ("eight_bits_lightning", 2e-2),
];

fn models_of_qwen() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/tests/golden/qwen_image/models")
}

/// Lays Qwen-Image's files beside the others, as the recording's were.
fn place_qwen(models: &Path) {
    copy_all(&models_of_qwen(), models);
    for (file, made) in [
        (
            "diffusion_models/tiny_qwen_image_fp8_e4m3fn_scaled",
            "diffusion_models/tiny_qwen_image_fp8_rounded",
        ),
        ("text_encoders/tiny_qwen_vl_fp8_scaled", "text_encoders/tiny_qwen_vl_fp8_rounded"),
    ] {
        let [file, made] = [file, made].map(|name| models.join(format!("{name}.safetensors")));
        std::fs::write(made, with_rounded_biases(&std::fs::read(file).unwrap())).unwrap();
    }
}

/// A file in which biases are values of eight bits. ComfyUI makes them so as it reads files of scaled weights; Darkroom
/// keeps what the file has.
fn with_rounded_biases(bytes: &[u8]) -> Vec<u8> {
    let file = SafeTensors::deserialize(bytes).unwrap();
    let (_, header) = SafeTensors::read_metadata(bytes).unwrap();
    let mut tensors = Vec::new();
    for (name, view) in file.tensors() {
        let mut bytes = view.data().to_vec();
        if name.ends_with(".bias") {
            let bias = Tensor::from_raw_buffer(&bytes, DType::BF16, view.shape(), &Device::Cpu).unwrap();
            let rounded = bias.to_dtype(DType::F32).unwrap().to_dtype(DType::F8E4M3).unwrap();
            let rounded = rounded.to_dtype(DType::F32).unwrap().to_dtype(DType::BF16).unwrap();
            let values = rounded.flatten_all().unwrap().to_vec1::<half::bf16>().unwrap();
            bytes = values.into_iter().flat_map(half::bf16::to_le_bytes).collect();
        }
        tensors.push((name, view.dtype(), view.shape().to_vec(), bytes));
    }
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize(views, header.metadata().clone()).unwrap()
}

/// One server for all tests of this file; it ends with the last test that holds it.
fn shared() -> Arc<Comfy> {
    static RUNNING: Mutex<Weak<Comfy>> = Mutex::new(Weak::new());
    let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(server) = running.upgrade() {
        return server;
    }
    let mut comfy = Comfy::start_with(true, place_qwen);
    comfy.server.client = server::lone_client();
    let comfy = Arc::new(comfy);
    *running = Arc::downgrade(&comfy);
    comfy
}

fn recording() -> &'static Recording {
    static READ: OnceLock<Recording> = OnceLock::new();
    READ.get_or_init(|| Recording::read("comfyui_qwen", LATENTS, &LOOSER))
}

replay::workflows! {
    lightning lora_strengths guided plain_guidance own_shift shifts batch odd_sizes prompts
    eight_bits eight_bits_lightning
    samplers samplers_noise schedulers custom_sampler two_stages
    img2img img2img_odd_size inpaint differential hires tiles areas after_sdxl
}

#[tokio::test]
async fn each_loader_lists_the_files_of_its_folder() {
    let comfy = shared();
    for (class, input, file) in [
        ("UNETLoader", "unet_name", MODEL),
        ("CLIPLoader", "clip_name", TEXT),
        ("VAELoader", "vae_name", VAE),
        ("LoraLoaderModelOnly", "lora_name", "tiny_qwen_image_lightning_4steps.safetensors"),
    ] {
        let info = comfy.json(&format!("/object_info/{class}")).await;
        let listed = info[class]["input"]["required"][input][0].as_array().unwrap();
        assert!(listed.contains(&file.into()), "{class}: {listed:?}");
        // A tokenizer lies beside the text encoder, and is no model.
        assert!(
            !listed.iter().any(|name| name.as_str().unwrap().contains("tokenizer")),
            "{class}: {listed:?}"
        );
    }
    let info = comfy.json("/object_info/CLIPLoader").await;
    let types = info["CLIPLoader"]["input"]["required"]["type"][0].as_array().unwrap();
    assert!(types.contains(&"qwen_image".into()), "{types:?}");
}

/// A workflow of a few nodes that draws and saves.
fn drawing() -> Value {
    json!({
        "model": {"class_type": "UNETLoader", "inputs": {"unet_name": MODEL, "weight_dtype": "default"}},
        "clip": {"class_type": "CLIPLoader", "inputs": {"clip_name": TEXT, "type": "qwen_image"}},
        "vae": {"class_type": "VAELoader", "inputs": {"vae_name": VAE}},
        "positive": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["clip", 0], "text": "a photo of a cat"}},
        "negative": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["clip", 0], "text": ""}},
        "empty": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "drawn": {"class_type": "KSampler", "inputs": {
            "model": ["model", 0], "positive": ["positive", 0], "negative": ["negative", 0],
            "latent_image": ["empty", 0], "seed": 1, "steps": 1, "cfg": 1.0, "sampler_name": "euler",
            "scheduler": "simple", "denoise": 1.0,
        }},
        "decoded": {"class_type": "VAEDecode", "inputs": {"samples": ["drawn", 0], "vae": ["vae", 0]}},
        "saved": {"class_type": "SaveImage", "inputs": {"images": ["decoded", 0], "filename_prefix": "refused"}},
    })
}

/// Runs a workflow; the id of the node that failed and what it said.
async fn failure(comfy: &Comfy, prompt: &Value) -> (String, String) {
    let response = comfy.send(Method::POST, "/prompt", &json!({ "prompt": prompt }).to_string()).await;
    let (status, posted) = server::answer(response).await;
    assert_eq!(status, 200, "{posted}");
    let entry = comfy.finished(posted["prompt_id"].as_str().unwrap()).await;
    assert_eq!(entry["status"]["status_str"], "error", "{entry}");
    let last = entry["status"]["messages"].as_array().unwrap().last().unwrap()[1].clone();
    ["node_id", "exception_message"].map(|key| last[key].as_str().unwrap().to_owned()).into()
}

async fn draws(comfy: &Comfy) {
    let response = comfy.send(Method::POST, "/prompt", &json!({ "prompt": drawing() }).to_string()).await;
    let (status, posted) = server::answer(response).await;
    assert_eq!(status, 200, "{posted}");
    let entry = comfy.finished(posted["prompt_id"].as_str().unwrap()).await;
    assert_eq!(entry["status"]["status_str"], "success", "{entry}");
}

#[tokio::test]
async fn text_of_another_family_is_refused_by_both_widths() {
    let comfy = shared();
    let mut prompt = drawing();
    prompt["clip"] = json!({"class_type": "DualCLIPLoader", "inputs": {
        "clip_name1": "clip_l_tiny.safetensors", "clip_name2": "clip_g_tiny.safetensors", "type": "sdxl",
    }});
    // The rows of the checkpoint's token tables that are kept are those of the recorded prompts.
    prompt["positive"]["inputs"]["text"] = json!("a photo of a red cube on a table");
    let (node, message) = failure(&comfy, &prompt).await;
    println!("{node}: {message}");
    assert_eq!(node, "drawn");
    assert!(message.contains("128") && message.contains("32"), "{message}");
    draws(&comfy).await;
}

#[tokio::test]
async fn text_of_qwen_is_refused_by_sdxl() {
    let comfy = shared();
    let mut prompt = drawing();
    prompt["model"] = json!({"class_type": "UNETLoader", "inputs": {"unet_name": "unet_tiny.safetensors", "weight_dtype": "default"}});
    let (node, message) = failure(&comfy, &prompt).await;
    println!("{node}: {message}");
    assert_eq!(node, "drawn");
    assert!(message.contains("128") && message.contains("32"), "{message}");
    draws(&comfy).await;
}

#[tokio::test]
async fn what_is_for_a_unet_is_refused_by_name() {
    let comfy = shared();
    let mut prompt = drawing();
    prompt["patched"] = json!({"class_type": "FreeU_V2", "inputs": {
        "model": ["model", 0], "b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2,
    }});
    prompt["drawn"]["inputs"]["model"] = json!(["patched", 0]);
    let (node, message) = failure(&comfy, &prompt).await;
    println!("{node}: {message}");
    assert!(message.contains("free_u") && message.contains("Qwen-Image"), "{message}");

    let mut prompt = drawing();
    prompt["net"] = json!({"class_type": "ControlNetLoader", "inputs": {"control_net_name": "controlnet_tiny.safetensors"}});
    prompt["image"] = json!({"class_type": "LoadImage", "inputs": {"image": "photo.png"}});
    prompt["steered"] = json!({"class_type": "ControlNetApplyAdvanced", "inputs": {
        "positive": ["positive", 0], "negative": ["negative", 0], "control_net": ["net", 0], "image": ["image", 0],
        "strength": 1.0, "start_percent": 0.0, "end_percent": 1.0,
    }});
    prompt["drawn"]["inputs"]["positive"] = json!(["steered", 0]);
    let (node, message) = failure(&comfy, &prompt).await;
    println!("{node}: {message}");
    assert!(message.contains("ControlNet") && message.contains("Qwen-Image"), "{message}");
    draws(&comfy).await;
}

#[tokio::test]
async fn a_vae_of_another_family_is_refused_with_what_to_load_instead() {
    let comfy = shared();
    let mut prompt = drawing();
    prompt["vae"]["inputs"]["vae_name"] = json!("vae_tiny.safetensors");
    let (node, message) = failure(&comfy, &prompt).await;
    println!("{node}: {message}");
    assert_eq!(node, "decoded");
    assert!(message.contains("16 channels") && message.contains("VAE"), "{message}");

    // And the other way round: a picture that another family's VAE has encoded.
    let mut prompt = drawing();
    prompt["vae"]["inputs"]["vae_name"] = json!("vae_tiny.safetensors");
    prompt["image"] = json!({"class_type": "LoadImage", "inputs": {"image": "photo.png"}});
    prompt["empty"] =
        json!({"class_type": "VAEEncode", "inputs": {"pixels": ["image", 0], "vae": ["vae", 0]}});
    let (node, message) = failure(&comfy, &prompt).await;
    println!("{node}: {message}");
    assert_eq!(node, "drawn");
    assert!(message.contains("4 channels") && message.contains("VAE"), "{message}");
    draws(&comfy).await;
}

#[tokio::test]
async fn a_lora_of_another_family_is_refused() {
    let comfy = shared();
    let mut prompt = drawing();
    prompt["patched"] = json!({"class_type": "LoraLoaderModelOnly", "inputs": {
        "model": ["model", 0], "lora_name": "lora_tiny.safetensors", "strength_model": 1.0,
    }});
    prompt["drawn"]["inputs"]["model"] = json!(["patched", 0]);
    let (node, message) = failure(&comfy, &prompt).await;
    println!("{node}: {message}");
    assert!(message.contains("lora_tiny"), "{message}");
    draws(&comfy).await;
}

#[tokio::test]
async fn a_text_encoder_without_its_tokenizer_says_which_file_to_put_beside_it() {
    let comfy = Comfy::start_with(true, |models| {
        place_qwen(models);
        std::fs::remove_file(models.join("text_encoders/tokenizer.json")).unwrap();
    });
    let (node, message) = failure(&comfy, &drawing()).await;
    println!("{node}: {message}");
    assert!(["positive", "negative"].contains(&&*node), "{node}");
    assert!(message.contains("tokenizer.json") && message.contains("tiny_qwen_vl"), "{message}");
}
