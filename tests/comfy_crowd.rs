//! Many clients of ComfyUI's API at once, with the built-in model: their prompts are denoised together, each hears of its
//! own alone and in ComfyUI's order, and every picture is the one that is drawn alone.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]
#![allow(clippy::print_stdout, reason = "what was measured is shown with --nocapture")]

mod server;

use std::collections::HashMap;
use std::time::Instant;

use futures_util::StreamExt;
use futures_util::future::join_all;
use serde_json::{Value, json};
use server::{PATIENCE, Server, data};
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::Message;

const CLIENTS: usize = 8;
const PROMPTS_EACH: usize = 4;
/// Largest difference of 8-bit values between a picture drawn among others and the same drawn alone.
const TOLERANCE: u8 = 1;

/// A picture of 64 pixels a side; seeds differ, and with them prompts, steps, samplers and guidance.
fn workflow(seed: usize) -> Value {
    let hair = ["blonde", "black", "pink", "brown"][seed % 4];
    let sampler = ["euler", "dpmpp_2m", "euler_ancestral", "heun"][seed / 4 % 4];
    json!({
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "tiny-sdxl.safetensors"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": format!("1girl, {hair} hair")}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "blurry"}},
        "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "5": {"class_type": "KSampler", "inputs": {
            "model": ["1", 0], "seed": seed, "steps": 12 + seed % 3, "cfg": 5.0 + (seed % 2) as f64,
            "sampler_name": sampler, "scheduler": "karras", "positive": ["2", 0], "negative": ["3", 0],
            "latent_image": ["4", 0], "denoise": 1.0}},
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
        "7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": format!("crowd/{seed}")}},
    })
}

/// The message's type, its prompt and its node.
type Heard = (String, Option<String>, Option<String>);

/// Sends prompts as one client and listens until all have ended.
async fn client(server: &Server, name: &str, seeds: Vec<usize>) -> (Vec<String>, Vec<Heard>) {
    let address = format!("{}/ws?clientId={name}", server.url.replacen("http", "ws", 1));
    let (mut socket, _) = connect_async(address).await.unwrap();
    let mut ids = Vec::new();
    for seed in seeds {
        let body = json!({"prompt": workflow(seed), "client_id": name});
        let answer: Value = server.post("/prompt", &body).await.json().await.unwrap();
        ids.push(answer["prompt_id"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned());
    }
    let mut heard = Vec::new();
    let mut left = ids.len();
    while left > 0 {
        let next = tokio::time::timeout(PATIENCE, socket.next()).await.unwrap();
        let Message::Text(text) = next.unwrap().unwrap() else { continue };
        let message: Value = serde_json::from_str(&text).unwrap();
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let data = &message["data"];
        let kind = message["type"].as_str().unwrap().to_owned();
        if kind == "executing" && data["node"].is_null() {
            left -= 1;
        }
        heard.push((kind, text(&data["prompt_id"]), text(&data["node"])));
    }
    (ids, heard)
}

async fn picture(server: &Server, id: &str) -> image::RgbImage {
    let history = server.json(&format!("/history/{id}")).await;
    let entry = &history[id];
    assert_eq!(entry["status"]["status_str"], "success", "{}", entry["status"]);
    let file = &entry["outputs"]["7"]["images"][0];
    let text = |name: &str| file[name].as_str().unwrap().to_owned();
    let path =
        format!("/view?filename={}&subfolder={}&type={}", text("filename"), text("subfolder"), text("type"));
    let response = server.get(&path).await;
    assert_eq!(response.status(), 200, "{path}");
    image::load_from_memory(&response.bytes().await.unwrap()).unwrap().to_rgb8()
}

/// The mean number of samples in a step batch so far, and how many batches there were.
async fn batches(server: &Server) -> (f64, f64) {
    let text = server.get("/metrics").await.text().await.unwrap();
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
        line.unwrap_or_else(|| panic!("no {name}")).parse::<f64>().unwrap()
    };
    let count = value("darkroom_step_batch_size_count");
    (value("darkroom_step_batch_size_sum") / count.max(1.0), count)
}

#[tokio::test]
async fn thirty_two_prompts_of_eight_clients_are_denoised_together_and_come_out_as_alone() {
    let (crowded, alone) = (data(), data());
    let server = Server::start(crowded.path(), Vec::<&str>::new());
    // The model is there before anyone counts.
    client(&server, "first", vec![1000]).await;
    let started = Instant::now();
    let clients = (0..CLIENTS).map(|c| {
        let seeds: Vec<usize> = (0..PROMPTS_EACH).map(|p| c * PROMPTS_EACH + p).collect();
        let server = &server;
        async move { (seeds.clone(), client(server, &format!("client-{c}"), seeds).await) }
    });
    let done = join_all(clients).await;
    let together = started.elapsed();
    let (mean, count) = batches(&server).await;
    assert!(mean > 4.0, "{mean:.2} samples a step batch, in {count} batches");

    let mut ids: HashMap<usize, String> = HashMap::new();
    for (seeds, (own, heard)) in done {
        let of_prompts: Vec<&Heard> = heard.iter().filter(|(.., prompt, _)| prompt.is_some()).collect();
        let stranger = of_prompts.iter().find(|(_, prompt, _)| !own.contains(prompt.as_ref().unwrap()));
        assert!(stranger.is_none(), "a client heard of another's prompt: {stranger:?}");
        let mut order: Vec<&str> =
            of_prompts.iter().map(|(_, prompt, _)| prompt.as_deref().unwrap()).collect();
        order.dedup();
        assert_eq!(order, own, "prompts were told of in another order, or through each other");
        for id in &own {
            let told = of_prompts.iter().filter(|(_, prompt, _)| prompt.as_ref() == Some(id));
            let kinds: Vec<&str> = told.clone().map(|(kind, ..)| kind.as_str()).collect();
            assert_eq!(kinds[..2], ["execution_start", "execution_cached"], "{kinds:?}");
            assert_eq!(kinds[kinds.len() - 2..], ["execution_success", "executing"], "{kinds:?}");
            let nodes: Vec<&str> = told
                .filter(|(kind, ..)| kind == "executing")
                .filter_map(|(.., node)| node.as_deref())
                .collect();
            let mut sorted = nodes.clone();
            sorted.sort_unstable();
            sorted.dedup();
            assert_eq!(sorted.len(), nodes.len(), "a node was told of twice: {nodes:?}");
            assert!(nodes.contains(&"5") && nodes.contains(&"7"), "{nodes:?}");
        }
        ids.extend(seeds.into_iter().zip(own));
    }

    let quiet = Server::start(alone.path(), Vec::<&str>::new());
    client(&quiet, "first", vec![1000]).await;
    let started = Instant::now();
    let mut by_itself = HashMap::new();
    for seed in 0..CLIENTS * PROMPTS_EACH {
        let (own, _) = client(&quiet, "alone", vec![seed]).await;
        by_itself.insert(seed, own[0].clone());
    }
    let one_by_one = started.elapsed();
    let (alone_mean, _) = batches(&quiet).await;
    assert!(alone_mean < 1.01, "{alone_mean} samples a step batch when alone");
    println!(
        "32 prompts of 8 clients: {:.2} s, {mean:.1} samples a step batch; one at a time: {:.2} s; ratio {:.2}",
        together.as_secs_f64(),
        one_by_one.as_secs_f64(),
        one_by_one.as_secs_f64() / together.as_secs_f64()
    );
    for (seed, id) in &ids {
        let (crowded, alone) = (picture(&server, id).await, picture(&quiet, &by_itself[seed]).await);
        assert_eq!(crowded.dimensions(), (64, 64));
        let differences = crowded.as_raw().iter().zip(alone.as_raw()).map(|(a, b)| a.abs_diff(*b));
        let worst = differences.max().unwrap();
        assert!(worst <= TOLERANCE, "seed {seed}: {worst} levels from the picture drawn alone");
    }
}
