//! Guided pictures of several clients at once, taken back while their LoRA loads, and through a crash.

use std::time::{Duration, Instant};

use image::RgbaImage;
use serde_json::{Value, json};

use crate::server::{PATIENCE, Server, create_key, data};
use crate::weights::Weights;
use crate::{EXPRESSIONS, IMAGES, alike, batches_over, data_url, disc, distance, metric, picture, png};

/// Four pictures with LoRAs, a ControlNet, or none of them.
fn four(loras: &Value, control: bool, steps: u32) -> Value {
    let mut body = json!({"prompt": "1girl, smile", "width": 64, "height": 64, "steps": steps, "seed": 20, "count": 4, "loras": loras});
    if control {
        let image = data_url(&png(&disc(64, [0; 3], [255; 3])));
        body["controls"] = json!([{"type": "canny", "image": image, "strength": 0.7}]);
    }
    body
}

async fn pictures(server: &Server, task: &Value) -> Vec<RgbaImage> {
    let mut all = Vec::new();
    for index in 0..task["images"].as_array().unwrap().len() {
        all.push(picture(server, task, index).await);
    }
    all
}

#[tokio::test]
async fn clients_with_different_loras_share_step_batches_and_get_what_they_get_alone() {
    let folder = data();
    let (one, two) = (create_key(folder.path(), "one", &[]), create_key(folder.path(), "two", &[]));
    let mut server = Server::start(folder.path(), [""; 0]);
    let orders = [
        (&one, four(&json!([{"id": "tinychan"}]), false, 25)),
        (&two, four(&json!([{"id": "tinyvio", "strength": 0.7}]), true, 22)),
        (&one, four(&json!([{"id": "tinychan", "strength": 0.5}, {"id": "tinyvio"}]), false, 20)),
        (&two, four(&json!([]), false, 24)),
    ];
    let mut together = Vec::new();
    for (key, body) in &orders {
        server = server.with_key(key);
        together.push(server.submit(IMAGES, body).await);
    }
    let mut drawn = Vec::new();
    for (task, (key, _)) in together.iter().zip(&orders) {
        server = server.with_key(key);
        let task = server.completed(task).await;
        drawn.push(pictures(&server, &task).await);
    }
    assert!(batches_over(&server, "12.0").await > 0.0, "they were never in one batch");
    let adapters = "darkroom_lora_steps_total{way=\"adapters\"}";
    assert!(metric(&server, adapters).await > 0.0, "rows of one batch had LoRAs of their own");
    for (together, (key, body)) in drawn.iter().zip(&orders) {
        server = server.with_key(key);
        let task = server.completed(&server.submit(IMAGES, body).await).await;
        for (one, other) in pictures(&server, &task).await.iter().zip(together) {
            assert!(alike(one, other), "{body}: {}", distance(one, other));
        }
    }
    // Alone for a while, a set of LoRAs goes into the weights.
    let merged = "darkroom_lora_steps_total{way=\"merged\"}";
    assert!(metric(&server, merged).await > 0.0, "nothing was merged");
}

#[tokio::test]
async fn a_task_that_is_taken_back_while_its_lora_loads_leaves_nothing_behind() {
    const COUNT: usize = 12;
    let (folder, models) = (data(), data());
    for number in 0..COUNT {
        let name = format!("loras/copy_{number}.safetensors");
        Weights::shipped("lora-tinyvio.safetensors").write(models.path(), &name);
    }
    let flags = [std::ffi::OsStr::new("--models-dir"), models.path().as_os_str()];
    let server = Server::start(folder.path(), flags);
    let body = |number: usize| four(&json!([{"id": format!("copy_{number}")}]), true, 150);
    let mut cancelled = Vec::new();
    for number in 0..COUNT {
        let task = server.submit(IMAGES, &body(number)).await;
        assert_eq!(server.delete(&format!("/v1/tasks/{task}")).await.status(), 200);
        cancelled.push(task);
    }
    for task in cancelled {
        let task = server.finished(&task).await;
        assert_eq!((&task["status"], &task["images"]), (&json!("cancelled"), &json!([])), "{task}");
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        let queue = server.json("/v1/queue").await;
        if (&queue["queued"]["total"], &queue["processing"]) == (&json!(0), &json!(0)) {
            break;
        }
        assert!(Instant::now() < deadline, "something is left: {queue}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let next = server.submit(IMAGES, &four(&json!([{"id": "copy_0"}]), true, 2)).await;
    server.completed(&next).await;
}

fn pack() -> Value {
    json!({
        "character_lora_id": "tinychan", "loras": [{"id": "tinyvio", "strength": 0.4}], "seed": 31,
        "expression_tags": ["sad", "wink", "angry", "laugh"], "resolution": "64x64", "lora_strength": 0.9,
    })
}

#[tokio::test]
async fn a_guided_pack_that_a_crash_interrupts_is_finished_with_the_same_pictures() {
    let calm = data();
    let server = Server::start(calm.path(), [""; 0]);
    let whole = server.completed(&server.submit(EXPRESSIONS, &pack()).await).await;
    let expected = pictures(&server, &whole).await;
    drop(server);

    let folder = data();
    let server = Server::start(folder.path(), ["--max-batch", "2"]);
    let task = server.submit(EXPRESSIONS, &pack()).await;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let state = server.json(&format!("/v1/tasks/{task}")).await;
        assert_ne!(state["status"], "completed", "it was done before it could be disturbed");
        // Some pictures are drawn, some are not.
        if !state["images_completed"].as_array().unwrap().is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "{state}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    server.kill();
    let server = Server::start(folder.path(), [""; 0]);
    let finished = server.completed(&task).await;
    assert_eq!(finished["images"].as_array().unwrap().len(), 4);
    for (index, (one, other)) in pictures(&server, &finished).await.iter().zip(&expected).enumerate() {
        let (image, before) = (&finished["images"][index], &whole["images"][index]);
        for field in ["index", "seed", "label", "prompt", "loras", "controls"] {
            assert_eq!(image[field], before[field], "{field}");
        }
        assert!(alike(one, other), "picture {index}: {}", distance(one, other));
    }
}
