//! LoRAs and ControlNets that cannot be used: damaged, of other models, or no such thing. A client is told which file
//! and what to do, before anything is drawn where the header tells; the server goes on.

use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::server::{Server, answer, data, refused, small};
use crate::weights::{Weights, write};
use crate::{EXPRESSIONS, IMAGES, alike, data_url, disc, picture, png};

const SD15_KEYS: &str = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k";

/// A models folder with one of each.
fn models() -> TempDir {
    let folder = data();
    let path = folder.path();
    let good = Weights::shipped("lora-tinychan.safetensors").file();
    Weights::empty()
        .with(&format!("{SD15_KEYS}.lora_down.weight"), &[4, 768])
        .with(&format!("{SD15_KEYS}.lora_up.weight"), &[320, 4])
        .write(path, "loras/for_sd15.safetensors");
    Weights::empty()
        .with("transformer.single_transformer_blocks.3.attn.to_q.lora_A.weight", &[4, 64])
        .with("transformer.single_transformer_blocks.3.attn.to_q.lora_B.weight", &[64, 4])
        .write(path, "loras/for_flux.safetensors");
    // SDXL's own width, where the built-in model has another.
    Weights::empty()
        .with("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_down.weight", &[4, 2048])
        .with("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_up.weight", &[640, 4])
        .write(path, "loras/for_large_sdxl.safetensors");
    write(path, "loras/truncated.safetensors", &good[..good.len() / 2]);
    write(path, "loras/short.safetensors", &good[..5]);
    write(path, "loras/empty.safetensors", b"");
    // What Python's pickle begins with, in a zip archive and bare.
    write(
        path,
        "loras/zip.safetensors",
        b"PK\x03\x04\x00\x00\x08\x08\x00\x00archive/data.pkl\x80\x02}q\x00.",
    );
    write(path, "loras/pickle.safetensors", b"\x80\x02}q\x00(X\x05\x00\x00\x00helloq\x01K\x01u.");
    write(path, "loras/html.safetensors", b"<!DOCTYPE html><html><body>Please log in</body></html>");
    write(path, "loras/huge_header.safetensors", &[&u64::MAX.to_le_bytes()[..], b"{}"].concat());
    Weights::shipped("tiny-canny.safetensors").write(path, "loras/a_controlnet.safetensors");
    write(path, "loras/good.safetensors", &good);
    Weights::shipped("lora-tinychan.safetensors").with_nan("lora_A").write(path, "loras/nan.safetensors");
    Weights::shipped("lora-tinychan.safetensors")
        .with("unet.some_block.7.lora_A.weight", &[4, 96])
        .with("unet.some_block.7.lora_B.weight", &[96, 4])
        .with("note", &[1])
        .write(path, "loras/partly.safetensors");
    Weights::empty()
        .with("unet.some_block.7.lora_A.weight", &[4, 96])
        .with("unet.some_block.7.lora_B.weight", &[96, 4])
        .write(path, "loras/nothing_fits.safetensors");

    let hint = ("controlnet_cond_embedding.conv_in.weight", [16, 3, 3, 3]);
    Weights::empty()
        .with(hint.0, &hint.1)
        .with("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight", &[320, 768])
        .write(path, "controlnet/canny_for_sd15.safetensors");
    Weights::empty()
        .with(hint.0, &hint.1)
        .with("add_embedding.linear_1.weight", &[8, 8])
        .with("task_embedding", &[6, 320])
        .write(path, "controlnet/union.safetensors");
    let control = Weights::shipped("tiny-canny.safetensors").file();
    write(path, "controlnet/canny_truncated.safetensors", &control[..control.len() - 1000]);
    write(path, "controlnet/a_lora.safetensors", &good);
    folder
}

fn with_lora(id: &str) -> Value {
    let mut body = small(1);
    body["loras"] = json!([{"id": id}]);
    body
}

fn with_control(id: &str) -> Value {
    let mut body = small(1);
    let image = data_url(&png(&disc(64, [0; 3], [255; 3])));
    body["controls"] = json!([{"id": id, "image": image}]);
    body
}

fn start(data: &Path, models: &Path) -> Server {
    Server::start(data, [std::ffi::OsStr::new("--models-dir"), models.as_os_str()])
}

/// Asserts that a message names the file, shows no folder, and says what to do, in itself or in a hint.
#[track_caller]
fn assert_helpful(error: &Value, file: &str, models: &Path) {
    let message = error["message"].as_str().unwrap();
    assert!(message.contains(file), "it does not name {file}: {error}");
    assert!(!error.to_string().contains(models.to_str().unwrap()), "{error}");
    let advice = format!("{message} {}", error["hint"].as_str().unwrap_or_default());
    assert!(
        ["pick", "get it again", "choose"].iter().any(|word| advice.contains(word)),
        "it does not say what to do: {error}"
    );
}

#[tokio::test]
async fn what_the_header_tells_is_refused_before_anything_is_drawn() {
    let (folder, models) = (data(), models());
    let server = start(folder.path(), models.path());
    for (lora, told) in [
        ("for_sd15", "sd15"),
        ("for_flux", "flux"),
        ("for_large_sdxl", "2048"),
        ("truncated", ""),
        ("short", ""),
        ("empty", ""),
        ("zip", ""),
        ("pickle", ""),
        ("html", ""),
        ("huge_header", ""),
        ("a_controlnet", "not a LoRA"),
    ] {
        let error = refused(server.post(IMAGES, &with_lora(lora)).await, 422, "invalid_value").await;
        assert_eq!(error["field"], "loras[0].id", "{error}");
        assert!(error["message"].as_str().unwrap().contains(told), "{error}");
        assert_helpful(&error, lora, models.path());
        let pack = json!({"character_lora_id": lora, "expression_tags": ["sad"], "resolution": "64x64"});
        let error = refused(server.post(EXPRESSIONS, &pack).await, 422, "invalid_value").await;
        assert_eq!(error["field"], "character_lora_id", "{error}");
    }
    for (control, told) in
        [("canny_for_sd15", "sd15"), ("union", "union"), ("canny_truncated", ""), ("a_lora", "no ControlNet")]
    {
        let error = refused(server.post(IMAGES, &with_control(control)).await, 422, "invalid_value").await;
        assert_eq!(error["field"], "controls[0].id", "{error}");
        assert!(error["message"].as_str().unwrap().contains(told), "{error}");
        assert_helpful(&error, control, models.path());
    }
    assert_eq!(server.json("/v1/tasks").await["tasks"], json!([]), "a refused request left a task");

    let listed = server.json("/v1/loras").await;
    for lora in listed["loras"].as_array().unwrap() {
        let id = lora["id"].as_str().unwrap();
        let unusable =
            ["truncated", "short", "empty", "zip", "pickle", "html", "huge_header", "a_controlnet"]
                .contains(&id);
        assert_eq!(lora["problem"].is_string(), unusable, "{lora}");
    }
    let good = server.completed(&server.submit(IMAGES, &with_lora("good")).await).await;
    assert!(good["images"][0].get("warnings").is_none(), "{good}");
    // A type takes the ControlNet that fits.
    let mut any = with_control("");
    any["controls"][0].as_object_mut().unwrap().remove("id");
    any["controls"][0]["type"] = "canny".into();
    let task = server.completed(&server.submit(IMAGES, &any).await).await;
    assert_eq!(task["images"][0]["controls"][0]["id"], "tiny-canny");
}

#[tokio::test]
async fn what_only_drawing_finds_fails_the_task_alone_and_in_words() {
    let (folder, models) = (data(), models());
    let server = start(folder.path(), models.path());
    let neighbour = server.submit(IMAGES, &with_lora("good")).await;
    for (lora, told) in [("nan", "NaN"), ("nothing_fits", "fits a layer")] {
        let (status, accepted) = answer(server.post(IMAGES, &with_lora(lora)).await).await;
        assert_eq!(status, 200, "{accepted}");
        let task = server.finished(accepted["task_id"].as_str().unwrap()).await;
        assert_eq!(
            (&task["status"], &task["error"]["type"]),
            (&json!("failed"), &json!("invalid_request")),
            "{task}"
        );
        assert!(task["error"]["message"].as_str().unwrap().contains(told), "{task}");
        assert_helpful(&task["error"], lora, models.path());
    }
    server.completed(&neighbour).await;
    let partly = server.completed(&server.submit(IMAGES, &with_lora("partly")).await).await;
    let warning = partly["images"][0]["warnings"][0].as_str().unwrap();
    for part in ["3 keys", "'partly'", "'note'"] {
        assert!(warning.contains(part), "{warning}");
    }
    let good = server.completed(&server.submit(IMAGES, &with_lora("good")).await).await;
    let (partly, good) = (picture(&server, &partly, 0).await, picture(&server, &good, 0).await);
    assert!(alike(&partly, &good), "what fits nothing changes nothing");
}

#[tokio::test]
async fn a_file_that_is_replaced_is_read_again() {
    let (folder, models) = (data(), data());
    write(models.path(), "loras/mia.safetensors", b"half of a download");
    let server = start(folder.path(), models.path());
    refused(server.post(IMAGES, &with_lora("mia")).await, 422, "invalid_value").await;
    let mut drawn = Vec::new();
    let pack = json!({"character_lora_id": "mia", "expression_tags": ["sad"], "resolution": "64x64"});
    for file in ["lora-tinychan.safetensors", "lora-tinyvio.safetensors"] {
        Weights::shipped(file).write(models.path(), "loras/mia.safetensors");
        let expression = server.completed(&server.submit(EXPRESSIONS, &pack).await).await;
        assert_eq!(expression["images"][0]["cached"], false, "the bank has it of the old file");
        let task = server.completed(&server.submit(IMAGES, &with_lora("mia")).await).await;
        drawn.push(picture(&server, &task, 0).await);
    }
    assert!(!alike(&drawn[0], &drawn[1]), "the old file was drawn with");
    std::fs::remove_file(models.path().join("loras/mia.safetensors")).unwrap();
    refused(server.post(IMAGES, &with_lora("mia")).await, 404, "not_found").await;
}
