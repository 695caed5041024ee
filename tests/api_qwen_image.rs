//! Qwen-Image over HTTP, from ComfyUI's folder of models with small networks in it: the simple route that is made for
//! it, `/v1`, and SDXL beside it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod server;

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use server::{Server, answer, data, refused};

const SIMPLE: &str = "/api/v1/images/generate";

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/tests/golden/qwen_image/models")
}

fn start(data: &Path) -> Server {
    Server::start(data, [Path::new("--models-dir"), &models()])
}

/// Pixels of a picture in a file.
fn pixels(bytes: &[u8]) -> Vec<u8> {
    image::load_from_memory(bytes).unwrap().to_rgb8().into_raw()
}

fn of_data_url(url: &Value) -> Vec<u8> {
    let encoded = url.as_str().unwrap().strip_prefix("data:image/png;base64,").unwrap();
    STANDARD.decode(encoded).unwrap()
}

async fn drawn(server: &Server, body: &Value) -> Vec<u8> {
    let task = server.submit("/v1/images", body).await;
    let state = server.completed(&task).await;
    server.picture(&state, 0).await
}

#[tokio::test]
async fn the_simple_route_draws_with_qwen_image_and_its_lora_for_four_steps() {
    let folder = data();
    let server = start(folder.path());
    let body = json!({"prompt": "a cat", "width": 64, "height": 96, "seed": 5});
    let (status, answered) = answer(server.post(SIMPLE, &body).await).await;
    assert_eq!(status, 200, "{answered}");
    assert_eq!(
        (answered["model"].as_str(), answered["width"].as_u64(), answered["height"].as_u64()),
        (Some("tiny_qwen_image"), Some(64), Some(96))
    );
    let simple = of_data_url(&answered["image_url"]);
    let lora = json!([{"id": "tiny_qwen_image_lightning_4steps", "strength": 1.0, "text_strength": 0.0}]);
    let full = json!({
        "prompt": "a cat", "width": 64, "height": 96, "seed": 5, "model": "tiny_qwen_image", "steps": 4, "cfg": 1.0,
        "loras": lora, "shift": 3.0,
    });
    assert_eq!(pixels(&simple), pixels(&drawn(&server, &full).await));
    let mut plain = full.clone();
    plain.as_object_mut().unwrap().remove("loras");
    assert_ne!(pixels(&simple), pixels(&drawn(&server, &plain).await));

    // Guidance is what such a LoRA does without.
    let body = json!({"prompt": "a cat", "width": 64, "height": 64, "seed": 5, "guidance_scale": 3.0,
        "num_inference_steps": 3, "negative_prompt": "blurry"});
    let (status, answered) = answer(server.post(SIMPLE, &body).await).await;
    assert_eq!(status, 200, "{answered}");
    let guided = json!({"prompt": "a cat", "width": 64, "height": 64, "seed": 5, "model": "tiny_qwen_image",
        "steps": 3, "cfg": 3.0, "negative_prompt": "blurry"});
    assert_eq!(pixels(&of_data_url(&answered["image_url"])), pixels(&drawn(&server, &guided).await));

    let listed = server.json("/api/v1/images/models").await;
    let own = listed["models"].as_array().unwrap().iter().find(|model| model["id"] == "tiny_qwen_image");
    assert_eq!(
        (own.unwrap()["type"].as_str(), own.unwrap()["initialized"].as_bool()),
        (Some("qwen_image"), Some(true))
    );
}

#[tokio::test]
async fn pictures_of_both_families_are_drawn_at_once_and_carry_workflows_of_their_own() {
    let folder = data();
    let server = start(folder.path());
    let bodies = [
        json!({"prompt": "1girl", "width": 64, "height": 64, "steps": 4, "seed": 1, "model": "tiny-sdxl"}),
        json!({"prompt": "a (cat:1.2", "width": 64, "height": 64, "steps": 4, "seed": 1, "model": "tiny_qwen_image"}),
        json!({"prompt": "a cat", "width": 64, "height": 64, "steps": 4, "seed": 1, "cfg": 1,
            "model": "tiny_qwen_image_fp8_e4m3fn_scaled", "shift": "dynamic"}),
    ];
    let mut tasks = Vec::new();
    for body in &bodies {
        tasks.push(server.submit("/v1/images", body).await);
    }
    let loaders = ["CheckpointLoaderSimple", "UNETLoader", "UNETLoader"];
    for (task, loader) in tasks.iter().zip(loaders) {
        let state = server.completed(task).await;
        let picture = server.picture(&state, 0).await;
        let file = folder.path().join("picture.png");
        std::fs::write(&file, &picture).unwrap();
        let texts = darkroom::picture::read_text_chunks(&file).unwrap();
        let prompt = texts.iter().find(|chunk| chunk.keyword == "prompt").unwrap();
        let graph: Value = serde_json::from_str(&prompt.text).unwrap();
        assert_eq!(graph["1"]["class_type"], loader, "{graph}");
    }
}

#[tokio::test]
async fn what_qwen_image_cannot_do_is_refused_before_it_is_queued() {
    let folder = data();
    let server = start(folder.path());
    for (more, field) in [
        (json!({"clip_skip": 2}), "clip_skip"),
        (json!({"speed": {"step_cache": {"cache_interval": 3}}}), "speed.step_cache"),
        (json!({"shift": 0.0}), "shift"),
        (json!({"shift": 1000.0}), "shift"),
        (json!({"loras": [{"id": "tinychan"}]}), "loras[0].id"),
        (json!({"model": "tiny-sdxl", "shift": 3.0}), "shift"),
        (json!({"model": "tiny-sdxl", "loras": [{"id": "tiny_qwen_image_lightning_4steps"}]}), "loras[0].id"),
    ] {
        let mut body =
            json!({"prompt": "a", "model": "tiny_qwen_image", "width": 64, "height": 64, "steps": 2});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let error = refused(server.post("/v1/images", &body).await, 422, "invalid_value").await;
        assert_eq!(error["field"].as_str(), Some(field), "{body} {error}");
    }
    let wrong = json!({"prompt": "a", "model": "tiny_qwen_image", "shift": "far"});
    let (status, _) = answer(server.post("/v1/images", &wrong).await).await;
    assert!((400..=422).contains(&status), "{status}");
}
