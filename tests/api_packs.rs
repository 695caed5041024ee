//! Character packs, scenes, the expression bank and webhooks, asked of the real program with the built-in model.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod server;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use hmac::{Hmac, KeyInit, Mac};
use reqwest::Method;
use serde_json::{Value, json};
use server::{PATIENCE, Server, answer, create_key, data, long, refused, shared, small};
use sha2::Sha256;
use tokio::sync::mpsc;

const PROTOTYPES: &str = "/v1/character-packs/prototypes";
const EXPRESSIONS: &str = "/v1/character-packs/expressions";
const BODIES: &str = "/v1/character-packs/full-body";
const OUTFITS: &str = "/v1/character-packs/outfit-change";
const SCENES: &str = "/v1/scenes/generate";

fn pack(name: &str, tags: &[&str]) -> Value {
    json!({
        "character_id": name, "character_prompt": "1girl, blonde hair", "expression_tags": tags,
        "art_style": "anime", "resolution": "64x64",
    })
}

/// The value of a sample, 0 if it is not there.
async fn metric(server: &Server, sample: &str) -> f64 {
    let text = server.get("/metrics").await.text().await.unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' ')?.parse().ok());
    value.unwrap_or(0.0)
}

#[tokio::test]
async fn prototypes_are_variants_of_one_character() {
    let server = shared(&[]);
    let body = json!({
        "character_design": {
            "gender": "female", "hair_color": "blonde", "hair_length": "long", "eye_color": "blue", "zodiac": "leo",
        },
        "art_style": "anime", "variant_count": 2, "resolution": "72x64", "seed": 5, "priority": "priority",
    });
    let (status, accepted) = answer(server.post(PROTOTYPES, &body).await).await;
    assert_eq!((status, accepted["status"].as_str()), (200, Some("queued")), "{accepted}");
    for name in ["estimated_time_seconds", "webhook_url"] {
        assert!(accepted.get(name).is_some(), "{accepted}");
    }
    assert!(accepted.get("expression_count").is_none(), "{accepted}");
    let id = accepted["task_id"].as_str().unwrap();
    assert!(id.starts_with("proto_"), "{id}");
    let task = server.completed(id).await;
    assert_eq!((task["kind"].as_str(), task["priority"].as_str()), (Some("prototypes"), Some("priority")));
    let images = task["images"].as_array().unwrap();
    assert_eq!(images.len(), 2);
    for (index, image) in images.iter().enumerate() {
        assert_eq!(image["seed"], 5 + index as u64);
        assert_eq!(image["label"], format!("variant_{}", index + 1));
        assert_eq!((image["width"].as_u64(), image["height"].as_u64()), (Some(72), Some(64)));
        let prompt = image["prompt"].as_str().unwrap();
        for part in ["blonde hair", "long hair", "blue eyes", "leo", "anime style"] {
            assert!(prompt.contains(part), "'{part}' is not in {prompt}");
        }
    }
    let one = json!({"character_design": {"hair_color": "blonde"}, "resolution": "64x64"});
    let id = server.submit(PROTOTYPES, &one).await;
    assert_eq!(
        server.json(&format!("/v1/tasks/{id}")).await["image_count"],
        4,
        "four where none are asked for"
    );
    for (wrong, field) in [
        (json!({"character_design": {}}), "character_design"),
        (json!({"character_design": {"hair_color": "red"}, "variant_count": 0}), "variant_count"),
        (json!({"character_design": {"hair_color": "red"}, "art_style": "anme"}), "art_style"),
        (json!({"character_design": {"hair_color": "red"}, "resolution": "big"}), "resolution"),
        (json!({"character_design": {"hair_color": {}}}), "character_design.hair_color"),
    ] {
        let error = refused(server.post(PROTOTYPES, &wrong).await, 422, "invalid_value").await;
        assert_eq!(error["field"], field, "{error}");
    }
}

#[tokio::test]
async fn a_pack_has_each_expression_once_by_its_name() {
    let server = shared(&[]);
    let tags = ["neutral_resting", "smile_gentle", "smirk_confident"];
    let (status, accepted) = answer(server.post(EXPRESSIONS, &pack("ann", &tags)).await).await;
    assert_eq!((status, accepted["expression_count"].as_u64()), (200, Some(3)), "{accepted}");
    let id = accepted["task_id"].as_str().unwrap();
    assert!(id.starts_with("expr_"), "{id}");
    let task = server.completed(id).await;
    let images = task["images"].as_array().unwrap();
    let labels: Vec<&str> = images.iter().map(|image| image["label"].as_str().unwrap()).collect();
    assert_eq!(labels, tags);
    for image in images {
        assert!(image["prompt"].as_str().unwrap().starts_with("1girl, blonde hair, "), "{image}");
        assert_eq!((&image["seed"], &image["cached"]), (&images[0]["seed"], &json!(false)));
    }
    let mut seeded = pack("ann", &["sad"]);
    seeded["seed"] = 77.into();
    let seeded = server.submit(EXPRESSIONS, &seeded).await;
    assert_eq!(server.completed(&seeded).await["images"][0]["seed"], 77);

    let many = vec!["sad"; 25];
    for (wrong, field) in [
        (pack("ann", &["smile_gentel"]), "expression_tags[0]"),
        (pack("ann", &[]), "expression_tags"),
        (pack("ann", &many), "expression_tags"),
        (pack("a\nb", &["sad"]), "character_id"),
    ] {
        let error = refused(server.post(EXPRESSIONS, &wrong).await, 422, "invalid_value").await;
        assert_eq!(error["field"], field, "{error}");
    }
}

#[tokio::test]
async fn the_bank_answers_at_once_without_a_step_until_it_is_told_to_forget() {
    let folder = data();
    let server = Server::start(folder.path(), [""; 0]);
    let steps = "darkroom_step_batch_size_sum";
    let body = pack("mia", &["sad", "angry"]);
    let first = server.submit(EXPRESSIONS, &body).await;
    let first = server.completed(&first).await;
    let made = metric(&server, steps).await;
    assert!(made > 0.0, "{made}");

    let (status, accepted) = answer(server.post(EXPRESSIONS, &body).await).await;
    assert_eq!((status, accepted["status"].as_str()), (200, Some("completed")), "{accepted}");
    assert_eq!(accepted["estimated_time_seconds"], 0);
    let second = server.json(&format!("/v1/tasks/{}", accepted["task_id"].as_str().unwrap())).await;
    for index in [0, 1] {
        assert_eq!(second["images"][index]["cached"], true, "{second}");
        assert_eq!(server.picture(&second, index).await, server.picture(&first, index).await);
    }
    assert_eq!((second["progress"].as_f64(), second["usage"]["steps"].as_u64()), (Some(1.0), Some(0)));
    assert_eq!(metric(&server, steps).await, made, "a hit touched the device");
    assert_eq!(metric(&server, "darkroom_cache_hits_total{cache=\"bank\"}").await, 2.0);

    // A pack that the bank has in part is drawn in part.
    let third = server.submit(EXPRESSIONS, &pack("mia", &["sad", "laugh"])).await;
    let third = server.completed(&third).await;
    let cached: Vec<bool> =
        third["images"].as_array().unwrap().iter().map(|image| image["cached"].as_bool().unwrap()).collect();
    assert_eq!(cached, [true, false]);

    let mut anew = body.clone();
    anew["bypass_cache"] = true.into();
    let anew = server.submit(EXPRESSIONS, &anew).await;
    let anew = server.completed(&anew).await;
    assert_eq!((&anew["images"][0]["cached"], &anew["images"][1]["cached"]), (&json!(false), &json!(false)));

    let other = server.submit(EXPRESSIONS, &pack("tom", &["sad"])).await;
    assert_eq!(server.completed(&other).await["images"][0]["cached"], false, "another character's is no hit");
    let forget = |query: &str| server.request(Method::DELETE, &format!("/v1/expression-bank{query}")).send();
    let (status, forgotten) = answer(forget("?character=mia").await.unwrap()).await;
    assert_eq!((status, forgotten), (200, json!({"removed": 3})));
    let again = server.submit(EXPRESSIONS, &body).await;
    assert_eq!(server.completed(&again).await["images"][0]["cached"], false);
    let tom = server.submit(EXPRESSIONS, &pack("tom", &["sad"])).await;
    assert_eq!(server.completed(&tom).await["images"][0]["cached"], true);
    assert_eq!(answer(forget("").await.unwrap()).await.1, json!({"removed": 3}));
    assert_eq!(answer(forget("").await.unwrap()).await.1, json!({"removed": 0}));
    // What was handed out stays.
    assert!(server.picture(&second, 0).await.starts_with(b"\x89PNG"));
}

#[tokio::test]
async fn each_key_has_a_bank_of_its_own() {
    let folder = data();
    let (one, two) = (create_key(folder.path(), "one", &[]), create_key(folder.path(), "two", &[]));
    let mut server = Server::start(folder.path(), [""; 0]).with_key(&one);
    let id = server.submit(EXPRESSIONS, &pack("mia", &["sad"])).await;
    server.completed(&id).await;
    server = server.with_key(&two);
    let id = server.submit(EXPRESSIONS, &pack("mia", &["sad"])).await;
    assert_eq!(server.completed(&id).await["images"][0]["cached"], false);
    let (_, forgotten) = answer(server.delete("/v1/expression-bank").await).await;
    assert_eq!(forgotten["removed"], 1, "only its own");
    server = server.with_key(&one);
    let id = server.submit(EXPRESSIONS, &pack("mia", &["sad"])).await;
    assert_eq!(server.completed(&id).await["images"][0]["cached"], true);
}

#[tokio::test]
async fn a_scene_is_one_picture_of_description_angle_mood_and_style() {
    let server = shared(&[]);
    let body = json!({
        "scene_description": "no humans, scenery, beach", "camera_angle": "low_angle", "mood": "auto",
        "art_style": "anime", "resolution": "96x64", "seed": 9,
    });
    let (status, accepted) = answer(server.post(SCENES, &body).await).await;
    assert_eq!((status, accepted["status"].as_str()), (200, Some("queued")), "{accepted}");
    let id = accepted["task_id"].as_str().unwrap();
    assert!(id.starts_with("scene_"), "{id}");
    let task = server.completed(id).await;
    let image = &task["images"][0];
    assert_eq!(image["prompt"], "no humans, scenery, beach, from below, low angle, anime style");
    let size = ["width", "height", "seed"].map(|name| image[name].as_u64().unwrap());
    assert_eq!((size, task["image_count"].as_u64()), ([96, 64, 9], Some(1)));
    for (wrong, field) in [
        (json!({"scene_description": " "}), "scene_description"),
        (json!({"scene_description": "a", "resolution": "96"}), "resolution"),
        (json!({"scene_description": "a", "callback_webhook": "ftp://example.com"}), "callback_webhook"),
        (json!({}), "scene_description"),
    ] {
        let error = refused(server.post(SCENES, &wrong).await, 422, "invalid_value").await;
        assert_eq!(error["field"], field, "{error}");
    }
}

/// A white PNG of this size, as base64.
fn white(width: u32, height: u32) -> String {
    let mut png = std::io::Cursor::new(Vec::new());
    let picture = image::RgbImage::from_pixel(width, height, image::Rgb([255, 255, 255]));
    picture.write_to(&mut png, image::ImageFormat::Png).unwrap();
    base64::Engine::encode(&base64::engine::general_purpose::STANDARD, png.into_inner())
}

#[tokio::test]
async fn a_lora_and_templates_guide_a_pack_and_the_task_says_so() {
    let server = shared(&[]);
    let loras = server.json("/v1/loras").await;
    let tinychan = loras["loras"].as_array().unwrap().iter().find(|lora| lora["id"] == "tinychan").unwrap();
    assert_eq!((&tinychan["family"], &tinychan["trigger_words"][0]), (&json!("sdxl"), &json!("tinychan")));
    let controls = server.json("/v1/controlnets").await;
    assert_eq!(controls["controlnets"][0]["type"], "canny", "{controls}");
    let sets = server.json("/v1/templates").await;
    let picture = server.get(sets["sets"][0]["templates"][0]["url"].as_str().unwrap()).await;
    assert_eq!(picture.headers()["content-type"], "image/png");

    let body = json!({
        "character_lora_id": "tinychan", "lora_strength": 0.8, "expression_tags": ["sad", "wink"],
        "resolution": "64x64", "template_set": "short",
    });
    let id = server.submit(EXPRESSIONS, &body).await;
    let task = server.completed(&id).await;
    for image in task["images"].as_array().unwrap() {
        assert!(image["prompt"].as_str().unwrap().starts_with("tinychan, "), "{image}");
        assert_eq!(
            (&image["loras"][0]["id"], image["loras"][0]["strength"].as_f64()),
            (&json!("tinychan"), Some(0.8))
        );
        assert_eq!(image["controls"][0]["preprocess"], "opencv_canny", "{image}");
        assert_eq!(image["controls"][0]["strength"].as_f64(), Some(0.8));
    }
    let (_, again) = answer(server.post(EXPRESSIONS, &body).await).await;
    assert_eq!(again["status"], "completed", "the bank knows them: {again}");
    let mut other = body.clone();
    other["template_set"] = "default".into();
    let (_, other) = answer(server.post(EXPRESSIONS, &other).await).await;
    assert_eq!(other["status"], "queued", "other templates, other pictures: {other}");

    let mut unknown = body.clone();
    unknown["character_lora_id"] = "tinychn".into();
    let error = refused(server.post(EXPRESSIONS, &unknown).await, 404, "not_found").await;
    assert_eq!(error["field"], "character_lora_id");
    assert!(error["hint"].as_str().unwrap().contains("tinychan"), "{error}");
    let mut missing = body.clone();
    missing["template_set"] = "none such".into();
    let error = refused(server.post(EXPRESSIONS, &missing).await, 422, "invalid_value").await;
    assert_eq!(error["field"], "template_set");
}

#[tokio::test]
async fn an_outfit_changes_over_a_picture_and_what_cannot_be_meant_is_refused() {
    let server = shared(&[]);
    let body = json!({
        "base_image_url": white(70, 64), "new_outfit_prompt": "red shirt", "character_lora_id": "tinychan", "seed": 3,
    });
    let (status, accepted) = answer(server.post(OUTFITS, &body).await).await;
    assert_eq!((status, accepted["status"].as_str()), (200, Some("queued")), "{accepted}");
    let id = accepted["task_id"].as_str().unwrap();
    assert!(id.starts_with("outfit_"), "{id}");
    let image = &server.completed(id).await["images"][0];
    assert_eq!((image["width"].as_u64(), image["height"].as_u64()), (Some(64), Some(64)));
    assert_eq!((image["denoise"].as_f64(), image["from_image"].as_bool()), (Some(0.4), Some(true)));
    assert_eq!(image["controls"].as_array().unwrap().len(), 1, "its outlines are kept: {image}");
    for (name, value, field) in [
        ("denoise_strength", json!(7), "denoise_strength"),
        ("mask", json!(white(64, 64)), "mask"),
        ("base_image_url", json!("no picture"), "base_image_url"),
        ("new_outfit_prompt", json!(""), "new_outfit_prompt"),
        ("resolution", json!("1x1"), "resolution"),
    ] {
        let mut wrong = body.clone();
        wrong[name] = value;
        let error = refused(server.post(OUTFITS, &wrong).await, 422, "invalid_value").await;
        assert_eq!(error["field"], field, "{error}");
    }
}

#[tokio::test]
async fn a_full_body_follows_a_pose_and_says_what_was_left_out() {
    let server = shared(&[]);
    let poses = server.json("/v1/poses").await;
    let pose = &poses["poses"][0];
    let skeleton = server.get(pose["url"].as_str().unwrap()).await;
    assert_eq!(skeleton.headers()["content-type"], "image/png");
    let body = |pose: Value| json!({"character_design": {"hair_color": "red"}, "outfit_prompt": "hat", "resolution": "64x96", "pose_data": pose});
    let preset = body(json!({"source": "preset", "pose_id": pose["id"]}));
    let (status, accepted) = answer(server.post(BODIES, &preset).await).await;
    assert_eq!(status, 200, "{accepted}");
    let warnings = accepted["warnings"].as_array().unwrap();
    assert!(warnings.iter().any(|warning| warning.as_str().unwrap().starts_with("depth: ")), "{accepted}");
    let id = accepted["task_id"].as_str().unwrap();
    assert!(id.starts_with("fullbody_"), "{id}");
    let image = &server.completed(id).await["images"][0];
    assert_eq!(image["prompt"], "red hair, hat, full body");
    assert_eq!(image["controls"].as_array().unwrap().len(), 1, "{image}");
    for (pose, status, field) in [
        (json!({"source": "preset", "pose_id": "no such pose"}), 404, "pose_data.pose_id"),
        (json!({"source": "preset"}), 422, "pose_data.pose_id"),
        (json!({"source": "custom_json"}), 422, "pose_data.pose_json"),
        (
            json!({"source": "custom_json", "pose_json": {"joints": {"nose": ["NaN", 0.5]}}}),
            422,
            "pose_data.pose_json",
        ),
        (json!({"source": "custom_3d"}), 422, "pose_data.pose_image"),
        (json!({"source": "custom_3d", "pose_image": "no picture"}), 422, "pose_data.pose_image"),
    ] {
        let (got, error) = answer(server.post(BODIES, &body(pose)).await).await;
        assert_eq!((got, error["error"]["field"].as_str()), (status, Some(field)), "{error}");
    }
    let text = r#"{"character_prompt": "x", "pose_data": {"source": "custom_json", "pose_json": {"joints": {"nose": [NaN, 0.5]}}}}"#;
    let request = server.request(Method::POST, BODIES).header("content-type", "application/json").body(text);
    refused(request.send().await.unwrap(), 400, "malformed_request").await;
}

#[tokio::test]
async fn stickers_are_cut_out() {
    let server = shared(&[]);
    let body = json!({
        "character_prompt": "1girl, green hair", "expression_tags": ["sad"], "resolution": "64x64", "format": "webp",
    });
    let (_, accepted) = answer(server.post("/v1/character-packs/stickers", &body).await).await;
    assert_eq!(accepted["expression_count"], 1, "{accepted}");
    let id = accepted["task_id"].as_str().unwrap();
    assert!(id.starts_with("sticker_"), "{id}");
    let task = server.completed(id).await;
    let image = &task["images"][0];
    assert_eq!((&image["background"], &image["format"]), (&json!("key"), &json!("webp")));
    assert!(!image["prompt"].as_str().unwrap().contains("green background"), "{image}");
    let picture = image::load_from_memory(&server.picture(&task, 0).await).unwrap();
    assert!(picture.color().has_alpha());
}

type Delivery = (HeaderMap, Bytes);

/// Takes webhooks on the loopback; the first attempts are refused.
async fn receiver(refusals: usize) -> (String, mpsc::UnboundedReceiver<Delivery>) {
    let (sender, deliveries) = mpsc::unbounded_channel();
    let count = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let handler = move |headers: HeaderMap, body: Bytes| {
        let (sender, count) = (sender.clone(), count.clone());
        async move {
            let _ = sender.send((headers, body));
            let attempt = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            if attempt < refusals { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK }
        }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let app = Router::new().route("/hook", post(handler));
    tokio::spawn(async move { axum::serve(listener, app).await });
    (url, deliveries)
}

async fn next(deliveries: &mut mpsc::UnboundedReceiver<Delivery>) -> Delivery {
    tokio::time::timeout(PATIENCE, deliveries.recv()).await.unwrap().unwrap()
}

/// Checks the signature as docs/webhooks.md tells receivers to.
#[track_caller]
fn assert_genuine(secret: &str, (headers, body): &Delivery) {
    let signature = headers["darkroom-signature"].to_str().unwrap();
    let (time, code) = signature.strip_prefix("t=").unwrap().split_once(",v1=").unwrap();
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(time.as_bytes());
    mac.update(b".");
    mac.update(body);
    assert_eq!(hex::encode(mac.finalize().into_bytes()), code);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert!(now.abs_diff(time.parse().unwrap()) <= 300, "{time}");
}

#[tokio::test]
async fn a_webhook_tells_the_whole_task_signed_and_again_until_it_is_taken() {
    let folder = data();
    let secret = "a secret of sixteen characters or more";
    let flags = ["--outbound-allow-networks", "127.0.0.1/32", "--outbound-webhook-secret", secret];
    let server = Server::start(folder.path(), flags);
    let (url, mut deliveries) = receiver(1).await;
    let mut body = small(1);
    body["webhook_url"] = url.clone().into();
    let id = server.submit("/v1/images", &body).await;
    let task = server.completed(&id).await;
    assert_eq!(task["webhook_url"], url);
    let refused_once = next(&mut deliveries).await;
    let taken = next(&mut deliveries).await;
    assert_eq!(refused_once.0["darkroom-delivery"], taken.0["darkroom-delivery"]);
    for delivery in [&refused_once, &taken] {
        assert_genuine(secret, delivery);
        assert_eq!(delivery.0["darkroom-event"], "task.completed");
        assert_eq!(delivery.0["content-type"], "application/json");
        let told: Value = serde_json::from_slice(&delivery.1).unwrap();
        for name in ["task_id", "status", "progress", "images", "usage"] {
            assert_eq!(told[name], task[name], "{name}");
        }
    }

    let mut body = long(1);
    body["webhook_url"] = url.into();
    let cancelled = server.submit("/v1/images", &body).await;
    server.delete(&format!("/v1/tasks/{cancelled}")).await;
    let delivery = next(&mut deliveries).await;
    assert_genuine(secret, &delivery);
    assert_eq!(delivery.0["darkroom-event"], "task.cancelled");
    assert_ne!(delivery.0["darkroom-delivery"], taken.0["darkroom-delivery"]);
    let nothing_more = tokio::time::timeout(Duration::from_secs(2), deliveries.recv()).await;
    assert!(nothing_more.is_err(), "a delivery that was taken came again");
}

#[tokio::test]
async fn every_kind_of_task_tells_its_webhook_with_the_secret_that_the_server_drew() {
    let folder = data();
    let server = Server::start(folder.path(), ["--outbound-allow-networks", "127.0.0.1/32"]);
    let (url, mut deliveries) = receiver(0).await;
    let secret = std::fs::read_to_string(folder.path().join("webhook-secret")).unwrap();
    let requests = [
        (PROTOTYPES, "webhook_url", json!({"character_design": {"hair_color": "red"}, "variant_count": 1})),
        (EXPRESSIONS, "webhook_url", json!({"character_prompt": "1girl", "expression_tags": ["sad"]})),
        // The bank has this one: it is told all the same.
        (EXPRESSIONS, "webhook_url", json!({"character_prompt": "1girl", "expression_tags": ["sad"]})),
        (SCENES, "callback_webhook", json!({"scene_description": "a beach"})),
    ];
    for (route, field, mut body) in requests {
        body["resolution"] = "64x64".into();
        body[field] = url.clone().into();
        let (_, accepted) = answer(server.post(route, &body).await).await;
        assert_eq!(accepted["webhook_url"], url, "{route}: {accepted}");
        let delivery = next(&mut deliveries).await;
        assert_genuine(secret.trim(), &delivery);
        let told: Value = serde_json::from_slice(&delivery.1).unwrap();
        assert_eq!((&told["task_id"], &told["status"]), (&accepted["task_id"], &json!("completed")));
    }
}

#[tokio::test]
async fn webhooks_to_private_addresses_are_refused_unless_they_are_allowed() {
    let server = shared(&[]);
    for url in [
        "http://127.0.0.1:9/",
        "http://localhost/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://10.0.0.1/",
        "http://169.254.169.254/latest",
        "http://0.0.0.0/",
        "ftp://example.com/",
        "file:///etc/passwd",
        "no address",
    ] {
        let mut body = small(1);
        body["webhook_url"] = url.into();
        let error = refused(server.post("/v1/images", &body).await, 422, "invalid_value").await;
        assert_eq!(error["field"], "webhook_url", "{url}");
    }
}
