//! The other dialects and what machines and people read of a server: OpenAI's images, the simple route, probes,
//! metrics, the API's description and the page.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod metrics_names;
mod server;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use metrics_names::METRICS;
use reqwest::Method;
use serde_json::{Value, json};
use server::{Server, answer, create_key, data, long, refused, shared, small};

const OPENAI: &str = "/v1/images/generations";
const SIMPLE: &str = "/api/v1/images/generate";

/// A refusal in OpenAI's shape; its `error`.
async fn refused_as_openai(response: reqwest::Response, status: u16, code: &str) -> Value {
    let (got, body) = answer(response).await;
    assert_eq!((got, body["error"]["code"].as_str()), (status, Some(code)), "{body}");
    let mut names: Vec<&String> = body["error"].as_object().unwrap().keys().collect();
    names.sort();
    assert_eq!(names, ["code", "message", "param", "type"], "{body}");
    body["error"].clone()
}

#[tokio::test]
async fn openais_clients_get_pictures_in_the_answer() {
    let server = shared(&[]);
    let body = json!({
        "prompt": "1girl, blonde hair", "model": "tiny-sdxl", "n": 2, "size": "72x64", "response_format": "b64_json",
        "steps": 2, "seed": 7, "quality": "hd", "style": "vivid", "user": "someone",
    });
    let (status, answered) = answer(server.post(OPENAI, &body).await).await;
    assert_eq!(status, 200, "{answered}");
    assert!(answered["created"].as_i64().unwrap() > 1_700_000_000);
    assert_eq!((answered["size"].as_str(), answered["output_format"].as_str()), (Some("72x64"), Some("png")));
    let pictures = answered["data"].as_array().unwrap();
    assert_eq!(pictures.len(), 2);
    for (index, picture) in pictures.iter().enumerate() {
        let bytes = STANDARD.decode(picture["b64_json"].as_str().unwrap()).unwrap();
        let decoded = image::load_from_memory(&bytes).unwrap();
        assert_eq!((decoded.width(), decoded.height()), (72, 64));
        assert_eq!((picture["seed"].as_u64(), picture.get("url")), (Some(7 + index as u64), None));
    }
}

#[tokio::test]
async fn openais_addresses_open_without_a_key_and_only_as_they_were_signed() {
    let folder = data();
    let secret = create_key(folder.path(), "one", &[]);
    let server = Server::start(folder.path(), [""; 0]).with_key(&secret);
    let body = json!({
        "prompt": "1girl", "size": "64x64", "steps": 2, "output_format": "webp", "output_compression": 80,
    });
    let (status, answered) = answer(server.post(OPENAI, &body).await).await;
    assert_eq!(status, 200, "{answered}");
    let url = answered["data"][0]["url"].as_str().unwrap();
    assert!(url.starts_with(&server.url), "{url}");
    let anyone = |url: String| server.client.get(url).send();
    let picture = anyone(url.to_owned()).await.unwrap();
    assert_eq!(
        (picture.status().as_u16(), &picture.headers()["content-type"]),
        (200, &"image/webp".parse().unwrap())
    );
    let (path, query) = url.split_once('?').unwrap();
    refused(anyone(path.to_owned()).await.unwrap(), 401, "unauthorized").await;
    let last = if query.ends_with('0') { '1' } else { '0' };
    let forged = format!("{}{last}", &url[..url.len() - 1]);
    refused(anyone(forged).await.unwrap(), 403, "forbidden").await;
    let later = url.replace("expires=1", "expires=2");
    assert_ne!(later, url);
    refused(anyone(later).await.unwrap(), 403, "forbidden").await;
    let tasks = server.json("/v1/tasks").await;
    let task = tasks["tasks"][0]["task_id"].as_str().unwrap();
    let other = format!("{}/v1/tasks/{task}?{query}", server.url);
    refused(anyone(other).await.unwrap(), 401, "unauthorized").await;
    refused_as_openai(
        server.client.post(format!("{}{OPENAI}", server.url)).json(&body).send().await.unwrap(),
        401,
        "invalid_api_key",
    )
    .await;
}

#[tokio::test]
async fn openais_clients_are_refused_in_openais_words() {
    let server = shared(&[]);
    for (more, status, code, param) in [
        (json!({"n": 11}), 400, "invalid_value", Some("n")),
        (json!({"size": "big"}), 400, "invalid_value", Some("size")),
        (json!({"size": "65x64"}), 400, "invalid_value", Some("size")),
        (json!({"model": "dall-e-3"}), 404, "model_not_found", Some("model")),
        (json!({"stream": true}), 400, "invalid_value", Some("stream")),
        (json!({"background": "transparent"}), 400, "invalid_value", Some("background")),
        (json!({"output_compression": 101}), 400, "invalid_value", Some("output_compression")),
        (json!({"propmt": "x"}), 400, "invalid_value", Some("propmt")),
    ] {
        let mut body = json!({"prompt": "1girl", "steps": 2});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let error = refused_as_openai(server.post(OPENAI, &body).await, status, code).await;
        assert_eq!(error["param"].as_str(), param, "{error}");
        assert_eq!(error["type"], "invalid_request_error");
    }
    let text = server.request(Method::POST, OPENAI).header("content-type", "application/json").body("{");
    refused_as_openai(text.send().await.unwrap(), 400, "malformed_request").await;
    refused_as_openai(server.get(OPENAI).await, 405, "method_not_allowed").await;
}

#[tokio::test]
async fn the_list_of_models_is_openais_with_our_own_fields() {
    let server = shared(&[]);
    let list = server.json("/v1/models").await;
    assert_eq!(list["object"], "list");
    let models = list["data"].as_array().unwrap();
    let model = models.iter().find(|model| model["id"] == "tiny-sdxl").unwrap();
    assert_eq!((model["object"].as_str(), model["owned_by"].as_str()), (Some("model"), Some("darkroom")));
    assert!(model["created"].as_i64().is_some() && model["bytes"].as_u64().unwrap() > 0, "{model}");
    assert_eq!((model["family"].as_str(), model["is_default"].as_bool()), (Some("sdxl"), Some(true)));
    assert_eq!(server.json("/v1/models/tiny-sdxl").await["id"], "tiny-sdxl");
    let error = refused(server.get("/v1/models/tiny-sdx").await, 404, "not_found").await;
    assert_eq!(error["hint"], "did you mean tiny-sdxl?");
}

#[tokio::test]
async fn the_simple_route_answers_with_the_picture_itself() {
    let server = shared(&[]);
    let body = json!({
        "prompt": "1girl, blonde hair", "negative_prompt": "hat", "width": 72, "height": 64,
        "num_inference_steps": 2, "guidance_scale": 1.0, "seed": 7,
    });
    let (status, answered) = answer(server.post(SIMPLE, &body).await).await;
    assert_eq!(status, 200, "{answered}");
    let encoded = answered["image_url"].as_str().unwrap().strip_prefix("data:image/png;base64,").unwrap();
    let picture = image::load_from_memory(&STANDARD.decode(encoded).unwrap()).unwrap();
    assert_eq!((picture.width(), picture.height()), (72, 64));
    let told = ["width", "height", "seed"].map(|name| answered[name].as_u64().unwrap());
    assert_eq!((told, answered["model"].as_str()), ([72, 64, 7], Some("tiny-sdxl")));
    for (more, field) in [
        (json!({"prompt": "é".repeat(1001)}), "prompt"),
        (json!({"width": 2056}), "width"),
        (json!({"num_inference_steps": 0}), "num_inference_steps"),
        (json!({"guidance_scale": -1}), "guidance_scale"),
        (json!({"steps": 3}), "steps"),
    ] {
        let mut wrong = body.clone();
        wrong.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        assert_eq!(refused(server.post(SIMPLE, &wrong).await, 422, "invalid_value").await["field"], field);
    }
    for path in ["/api/v1/models", "/api/v1/images/models"] {
        let list = server.json(path).await;
        let model =
            list["models"].as_array().unwrap().iter().find(|model| model["id"] == "tiny-sdxl").unwrap();
        assert_eq!((model["name"].as_str(), model["type"].as_str()), (Some("tiny-sdxl"), Some("sdxl")));
        assert_eq!(
            (model["default"].as_bool(), model["initialized"].as_bool()),
            (Some(true), Some(true)),
            "{list}"
        );
    }
}

#[tokio::test]
async fn a_server_says_that_it_lives_and_serves() {
    let server = shared(&[]);
    let health = server.json("/health").await;
    assert_eq!(
        (health["status"].as_str(), health["version"].as_str()),
        (Some("ok"), Some(env!("CARGO_PKG_VERSION")))
    );
    let image = &health["models"]["image"];
    assert_eq!(image["name"], "tiny-sdxl");
    assert_eq!((image["type"].as_str(), image["device"].as_str()), (Some("sdxl"), Some("cpu")));
    assert!(image["framework"].is_string() && image["initialized"].is_boolean());
    assert_eq!(server.json("/ready").await, json!({"status": "ready"}));
    let queue = server.json("/v1/queue").await;
    assert_eq!(queue["capacity"], 1000);
    let queued = &queue["queued"];
    let sum: u64 = ["standard", "priority", "urgent"].iter().map(|name| queued[name].as_u64().unwrap()).sum();
    assert_eq!(queued["total"], sum);
    let expressions = server.json("/v1/expressions").await;
    let expressions = expressions["expressions"].as_array().unwrap();
    assert!(expressions.iter().any(|known| known["name"] == "smile_gentle" && known["tags"].is_string()));
}

/// The samples of a scrape: whole lines.
async fn metrics(server: &Server) -> String {
    let response = server.get("/metrics").await;
    assert!(response.headers()["content-type"].to_str().unwrap().starts_with("application/openmetrics-text"));
    response.text().await.unwrap()
}

#[tokio::test]
async fn every_metric_of_the_dashboard_is_in_a_real_scrape_with_its_labels() {
    let folder = data();
    let server = Server::start(
        folder.path(),
        [
            "--outbound-allow-networks",
            "127.0.0.1/32",
            "--queue-max-tasks",
            "1",
            "--outbound-webhook-attempts",
            "1",
        ],
    );
    // One of everything that is counted: a picture, a webhook, a refusal, a look into the caches.
    let pack = json!({"character_prompt": "1girl", "expression_tags": ["sad"], "resolution": "64x64",
                      "webhook_url": "http://127.0.0.1:9/"});
    let id = server.submit("/v1/character-packs/expressions", &pack).await;
    server.completed(&id).await;
    let workflow = json!({"prompt": {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}}});
    assert_eq!(server.post("/prompt", &workflow).await.status(), 200);
    let again = server.submit("/v1/character-packs/expressions", &pack).await;
    server.completed(&again).await;
    let busy = server.submit("/v1/images", &long(1)).await;
    refused(server.post("/v1/images", &small(1)).await, 429, "queue_full").await;
    server.delete(&format!("/v1/tasks/{busy}")).await;
    let deadline = std::time::Instant::now() + server::PATIENCE;
    let text = loop {
        let text = metrics(&server).await;
        if text.contains("\ndarkroom_webhook_deliveries_total{") {
            break text;
        }
        assert!(std::time::Instant::now() < deadline, "no webhook was tried: {text}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    };
    let mut missing = Vec::new();
    for (name, histogram, labels) in METRICS {
        let sample = if histogram { format!("{name}_count") } else { name.to_owned() };
        let line = text
            .lines()
            .find(|line| line.strip_prefix(sample.as_str()).is_some_and(|rest| rest.starts_with(['{', ' '])));
        let whole = line.is_some_and(|line| labels.iter().all(|label| line.contains(&format!("{label}=\""))));
        if !whole {
            missing.push(name);
        }
    }
    assert!(missing.is_empty(), "not in the scrape: {missing:?}\n{text}");
    for line in [
        "darkroom_images_total{model=\"tiny-sdxl\",outcome=\"completed\"} 1",
        "darkroom_images_total{model=\"tiny-sdxl\",outcome=\"cached\"} 1",
        "darkroom_cache_hits_total{cache=\"bank\"} 1",
        "darkroom_refusals_total{reason=\"queue_full\"} 1",
        "darkroom_http_requests_total{method=\"POST\",route=\"/v1/images\",status=\"429\"} 1",
    ] {
        assert!(text.lines().any(|known| known == line), "'{line}' is not in the scrape:\n{text}");
    }
    assert!(text.ends_with("# EOF\n"));
}

#[tokio::test]
async fn the_description_covers_the_routes_that_are_served() {
    let server = shared(&[]);
    let document = server.json("/openapi.json").await;
    let paths = document["paths"].as_object().unwrap();
    assert!(document["openapi"].as_str().unwrap().starts_with("3."));
    for (path, item) in paths {
        let real = path.replace("{file}", "app.js").replace("{id}", "x");
        let comfyui = item.as_object().unwrap().values().any(|operation| operation["tags"][0] == "comfyui");
        for method in [Method::GET, Method::POST, Method::DELETE, Method::PUT, Method::PATCH] {
            let described = item.get(method.as_str().to_lowercase()).is_some();
            let request = server.request(method.clone(), &real);
            let status =
                request.header("content-type", "text/plain").body("x").send().await.unwrap().status();
            // Where ComfyUI has no route to read from, there is nothing.
            let refusal = if comfyui && method == Method::GET { 404 } else { 405 };
            assert!(described || status == refusal, "{method} {path}: {status}");
            assert!(!described || status != 405, "{method} {path}: {status}");
            assert!(!status.is_server_error(), "{method} {path}: {status}");
        }
    }
    for path in ["/v1/images", "/v1/images/batch", "/v1/tasks/ws", "/metrics", OPENAI, SIMPLE] {
        assert!(paths.contains_key(path), "{path} is not described");
    }
    refused(server.get("/v1/nothing").await, 404, "not_found").await;
}

#[tokio::test]
async fn the_page_and_the_documentation_load_with_everything_they_name() {
    let server = shared(&[]);
    for (page, folder) in [("/", ""), ("/docs/", "/docs/")] {
        let response = server.get(page).await;
        assert_eq!(response.status(), 200, "{page}");
        assert!(response.headers()["content-type"].to_str().unwrap().starts_with("text/html"));
        assert!(response.headers().contains_key("content-security-policy"));
        let html = response.text().await.unwrap();
        let mut named = 0;
        for attribute in ["src=\"", "href=\""] {
            for part in html.split(attribute).skip(1) {
                let address = part.split('"').next().unwrap();
                if address.is_empty() || address.starts_with(['#', 'h']) || address.starts_with("data:") {
                    continue;
                }
                let path = match address.strip_prefix("./") {
                    Some(rest) => format!("{folder}{rest}"),
                    None if address.starts_with('/') => address.to_owned(),
                    None => format!("{}{address}", if folder.is_empty() { "/" } else { folder }),
                };
                let file = server.get(&path).await;
                assert_eq!(file.status(), 200, "{page} names {path}");
                assert!(!file.bytes().await.unwrap().is_empty());
                named += 1;
            }
        }
        assert!(named >= 2, "{page} names {named} files");
    }
    let style = server.get("/assets/style.css").await;
    let etag = style.headers()["etag"].clone();
    let known =
        server.request(Method::GET, "/assets/style.css").header("if-none-match", etag).send().await.unwrap();
    assert_eq!(known.status(), 304);
    refused(server.get("/assets/none.js").await, 404, "not_found").await;
}

#[tokio::test]
async fn a_model_is_brought_onto_the_device_and_off_it_but_not_while_it_draws() {
    let folder = data();
    let server = Server::start(folder.path(), [""; 0]);
    let change =
        |action: &str| server.request(Method::POST, &format!("/v1/models/tiny-sdxl/{action}")).send();
    let (status, model) = answer(change("load").await.unwrap()).await;
    assert_eq!((status, model["state"].as_str()), (200, Some("resident")), "{model}");
    assert!(model["resident_bytes"].as_u64().unwrap() > 0);
    assert_eq!(answer(change("load").await.unwrap()).await.0, 200, "loading twice is fine");

    let busy = server.submit("/v1/images", &long(1)).await;
    let deadline = std::time::Instant::now() + server::PATIENCE;
    while server.json(&format!("/v1/tasks/{busy}")).await["status"] == "queued" {
        assert!(std::time::Instant::now() < deadline);
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    refused(change("unload").await.unwrap(), 409, "conflict").await;
    server.delete(&format!("/v1/tasks/{busy}")).await;
    // It leaves the device within one step.
    let unloaded = loop {
        let (status, model) = answer(change("unload").await.unwrap()).await;
        if status == 200 {
            break model;
        }
        assert!(status == 409 && std::time::Instant::now() < deadline, "{status} {model}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    assert_eq!((unloaded["state"].as_str(), unloaded["resident_bytes"].as_u64()), (Some("on_disk"), Some(0)));
    assert_eq!(server.json("/health").await["models"]["image"]["initialized"], false);
    let id = server.submit("/v1/images", &small(1)).await;
    server.completed(&id).await;
    assert_eq!(server.json("/v1/models/tiny-sdxl").await["state"], "resident");
    refused(server.request(Method::POST, "/v1/models/none/load").send().await.unwrap(), 404, "not_found")
        .await;
}
