//! Every refusal that the API promises, with its status and its body; keys and what they may see; other sites' pages.
//! Asked of the real program.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod server;

use std::time::{Duration, Instant};

use reqwest::header::HeaderMap;
use reqwest::{Method, Response};
use serde_json::{Value, json};
use server::{PATIENCE, Server, answer, create_key, data, long, program, refused, shared, small, terminate};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Everything that is wrong with a request, one line each: method, path, content type, body, status, type, field.
type Line = (&'static str, &'static str, &'static str, &'static str, u16, &'static str, Option<&'static str>);

const JSON: &str = "application/json";

const TABLE: &[Line] = &[
    ("POST", "/v1/images", JSON, "", 400, "malformed_request", None),
    ("POST", "/v1/images", JSON, "{\"prompt\": ", 400, "malformed_request", None),
    ("POST", "/v1/images", JSON, "{\"prompt\": \"a\"} x", 400, "malformed_request", None),
    ("POST", "/v1/images", JSON, "\u{fffd}", 400, "malformed_request", None),
    ("POST", "/v1/images?wait=perhaps", JSON, "{\"prompt\": \"a\"}", 400, "malformed_request", None),
    ("GET", "/v1/tasks?limit=-1", "", "", 400, "malformed_request", None),
    ("GET", "/v1/tasks/ws", "", "", 400, "malformed_request", None),
    ("GET", "/v1/nothing", "", "", 404, "not_found", None),
    ("GET", "/v1/tasks/img_1", "", "", 404, "not_found", None),
    ("GET", "/v1/tasks/img_1/events", "", "", 404, "not_found", None),
    ("DELETE", "/v1/tasks/img_1", "", "", 404, "not_found", None),
    ("GET", "/v1/images/img_1_0", "", "", 404, "not_found", None),
    ("GET", "/v1/models/none", "", "", 404, "not_found", Some("model")),
    ("POST", "/v1/models/none/load", "", "", 404, "not_found", Some("model")),
    ("POST", "/v1/models/none/unload", "", "", 404, "not_found", Some("model")),
    ("POST", "/v1/images", JSON, "{\"prompt\": \"a\", \"model\": \"none\"}", 404, "not_found", Some("model")),
    ("GET", "/v1/images", "", "", 405, "method_not_allowed", None),
    ("PUT", "/v1/tasks/img_1", JSON, "{}", 405, "method_not_allowed", None),
    ("POST", "/health", JSON, "{}", 405, "method_not_allowed", None),
    ("POST", "/v1/images", "", "{\"prompt\": \"a\"}", 415, "unsupported_media_type", None),
    ("POST", "/v1/images", "text/plain", "{\"prompt\": \"a\"}", 415, "unsupported_media_type", None),
    ("POST", "/v1/images", JSON, "[]", 422, "invalid_value", None),
    ("POST", "/v1/images", JSON, "{}", 422, "invalid_value", Some("prompt")),
    ("POST", "/v1/images", JSON, "{\"prompt\": 5}", 422, "invalid_value", Some("prompt")),
    ("POST", "/v1/images", JSON, "{\"prompt\": \"(a:inf)\"}", 422, "invalid_value", Some("prompt")),
    ("POST", "/v1/images", JSON, "{\"prompt\": \"a\", \"stepss\": 2}", 422, "invalid_value", Some("stepss")),
];

/// Values out of range of `POST /v1/images`, each of its field.
fn out_of_range() -> Vec<(&'static str, Value)> {
    vec![
        ("prompt", json!("cat ".repeat(5_100))),
        ("negative_prompt", json!("(a:1e39)")),
        ("width", json!(0)),
        ("width", json!(65)),
        ("width", json!(4104)),
        ("width", json!(-64)),
        ("height", json!(8)),
        ("height", json!(64.5)),
        ("steps", json!(0)),
        ("steps", json!(151)),
        ("cfg", json!(-1)),
        ("cfg", json!(101)),
        ("sampler", json!("eulr")),
        ("scheduler", json!("kerras")),
        ("seed", json!(-1)),
        ("seed", json!("one")),
        ("count", json!(0)),
        ("count", json!(101)),
        ("clip_skip", json!(33)),
        ("clip_skip", json!(0)),
        ("denoise", json!(2)),
        ("format", json!("gif")),
        ("quality", json!(101)),
        ("quality", json!(50)),
        ("priority", json!("soon")),
        ("webhook_url", json!("http://127.0.0.1/")),
    ]
}

/// Seconds after which to come back.
fn retry_after(headers: &HeaderMap) -> u64 {
    headers["retry-after"].to_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn what_is_wrong_is_refused_with_its_status_type_and_field() {
    let server = shared(&[]);
    for (method, path, mime, body, status, kind, field) in TABLE {
        let mut request = server.request(method.parse().unwrap(), path).body(*body);
        if !mime.is_empty() {
            request = request.header("content-type", *mime);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.headers().contains_key("allow"), *status == 405, "{method} {path}");
        let error = refused(response, *status, kind).await;
        assert_eq!(error["field"].as_str(), *field, "{method} {path} {body}: {error}");
    }
    for (field, value) in out_of_range() {
        let mut body = small(1);
        body[field] = value.clone();
        let response = server.post("/v1/images", &body).await;
        let error = refused(response, 422, "invalid_value").await;
        assert_eq!(error["field"], field, "{field}: {value}: {error}");
    }
    let listed = server.json("/v1/tasks").await;
    assert_eq!(listed["tasks"], json!([]), "a refused request left a task");
}

#[tokio::test]
async fn what_is_too_large_or_too_slow_is_refused() {
    let folder = data();
    let flags =
        ["--limits-body-bytes", "20KiB", "--limits-source-bytes", "1KiB", "--server-body-timeout", "0.5"];
    let server = Server::start(folder.path(), flags);
    let mut body = small(1);
    body["init_image"] = "A".repeat(2048).into();
    let error = refused(server.post("/v1/images", &body).await, 413, "payload_too_large").await;
    assert_eq!(error["field"], "init_image");
    body["init_image"] = "A".repeat(30_000).into();
    refused(server.post("/v1/images", &body).await, 413, "payload_too_large").await;

    let address = server.url.strip_prefix("http://").unwrap();
    let mut slow = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = "POST /v1/images HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{";
    slow.write_all(head.as_bytes()).await.unwrap();
    let mut told = String::new();
    tokio::time::timeout(PATIENCE, slow.read_to_string(&mut told)).await.unwrap().unwrap();
    assert!(told.starts_with("HTTP/1.1 408 "), "{told}");
    let body: Value = serde_json::from_str(told.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(body["error"]["type"], "request_timeout", "{body}");
    assert!(body["error"]["message"].is_string());
}

#[tokio::test]
async fn a_full_queue_still_answers_repeats_and_packs_that_the_bank_has() {
    let folder = data();
    let server = Server::start(folder.path(), ["--queue-max-tasks", "1"]);
    let pack = json!({"character_prompt": "1girl", "expression_tags": ["sad"], "resolution": "64x64"});
    let path = "/v1/character-packs/expressions";
    server.completed(&server.submit(path, &pack).await).await;
    let repeat =
        || server.request(Method::POST, "/v1/images").header("Idempotency-Key", "k").json(&long(1)).send();
    let (_, first) = answer(repeat().await.unwrap()).await;
    refused(server.post("/v1/images", &small(1)).await, 429, "queue_full").await;
    let (status, again) = answer(repeat().await.unwrap()).await;
    assert_eq!((status, &again["task_id"]), (200, &first["task_id"]), "{again}");
    let (status, known) = answer(server.post(path, &pack).await).await;
    assert_eq!((status, &known["status"]), (200, &json!("completed")), "{known}");
    refused(server.post("/v1/images", &small(1)).await, 429, "queue_full").await;
    server.delete(&format!("/v1/tasks/{}", first["task_id"].as_str().unwrap())).await;
}

#[tokio::test]
async fn a_full_queue_says_when_to_come_back() {
    let folder = data();
    let server = Server::start(folder.path(), ["--queue-max-tasks", "2"]);
    let (one, two) =
        (server.submit("/v1/images", &long(1)).await, server.submit("/v1/images", &long(2)).await);
    for (path, body) in [
        ("/v1/images", small(1)),
        ("/v1/images/batch", json!({"requests": [small(1)]})),
        ("/v1/scenes/generate", json!({"scene_description": "a beach", "resolution": "64x64"})),
        ("/v1/character-packs/prototypes", json!({"character_design": {"hair_color": "red"}})),
        ("/v1/character-packs/expressions", json!({"character_prompt": "1girl", "expression_tags": ["sad"]})),
        ("/api/v1/images/generate", json!({"prompt": "a"})),
    ] {
        let response = server.post(path, &body).await;
        assert!(retry_after(response.headers()) >= 1, "{path}");
        refused(response, 429, "queue_full").await;
    }
    let response = server.post("/v1/images/generations", &json!({"prompt": "a"})).await;
    assert!(retry_after(response.headers()) >= 1);
    let (status, body) = answer(response).await;
    assert_eq!((status, &body["error"]["code"]), (429, &json!("rate_limit_exceeded")), "{body}");
    server.delete(&format!("/v1/tasks/{one}")).await;
    let fits = json!({"requests": [small(1), small(2)]});
    refused(server.post("/v1/images/batch", &fits).await, 429, "queue_full").await;
    let next = server.submit("/v1/images", &small(1)).await;
    server.completed(&next).await;
    server.delete(&format!("/v1/tasks/{two}")).await;
}

#[tokio::test]
async fn a_stopping_server_finishes_what_runs_and_takes_nothing_new() {
    let folder = data();
    let server = Server::start(folder.path(), [""; 0]);
    let running = server.submit("/v1/images", &long(1)).await;
    terminate(server.pid());
    let deadline = Instant::now() + PATIENCE;
    while server.get("/ready").await.status() == 200 {
        assert!(Instant::now() < deadline, "it does not stop");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let response = server.get("/ready").await;
    assert!(retry_after(response.headers()) >= 1);
    refused(response, 503, "draining").await;
    let response = server.post("/v1/images", &small(1)).await;
    assert!(retry_after(response.headers()) >= 1);
    refused(response, 503, "draining").await;
    assert_eq!(server.json("/health").await["status"], "ok", "it lives until the end");
    server.delete(&format!("/v1/tasks/{running}")).await;
    assert_eq!(server.exited(), Some(0));
}

#[tokio::test]
async fn without_a_known_key_nothing_is_shown() {
    let folder = data();
    let secret = create_key(folder.path(), "one", &[]);
    let server = Server::start(folder.path(), [""; 0]);
    for (method, path) in [
        (Method::POST, "/v1/images"),
        (Method::POST, "/v1/images/batch"),
        (Method::POST, "/v1/character-packs/prototypes"),
        (Method::POST, "/v1/character-packs/expressions"),
        (Method::POST, "/v1/scenes/generate"),
        (Method::POST, "/api/v1/images/generate"),
        (Method::GET, "/v1/tasks"),
        (Method::GET, "/v1/tasks/x"),
        (Method::DELETE, "/v1/tasks/x"),
        (Method::GET, "/v1/tasks/x/events"),
        (Method::GET, "/v1/images/018f0000000070008000000000000000"),
        (Method::GET, "/v1/models"),
        (Method::GET, "/v1/models/tiny-sdxl"),
        (Method::POST, "/v1/models/tiny-sdxl/load"),
        (Method::GET, "/v1/queue"),
        (Method::GET, "/v1/expressions"),
        (Method::DELETE, "/v1/expression-bank"),
        (Method::GET, "/api/v1/models"),
        (Method::GET, "/api/v1/images/models"),
    ] {
        for wrong in [None, Some("Bearer dk_wrong"), Some("Basic b25lOnR3bw=="), Some("Bearer ")] {
            let mut request = server.request(method.clone(), path);
            if let Some(wrong) = wrong {
                request = request.header("authorization", wrong);
            }
            let response = request.send().await.unwrap();
            assert_eq!(response.status(), 401, "{method} {path} {wrong:?}");
            assert!(response.headers()["www-authenticate"].to_str().unwrap().starts_with("Bearer"));
            refused(response, 401, "unauthorized").await;
        }
    }
    for open in ["/", "/assets/app.js", "/health", "/ready", "/openapi.json", "/docs/", "/metrics"] {
        assert_eq!(server.get(open).await.status(), 200, "{open}");
    }
    for (name, value) in [
        ("authorization", format!("Bearer {secret}")),
        ("authorization", format!("bearer {secret}")),
        ("x-api-key", secret.clone()),
    ] {
        let response = server.request(Method::GET, "/v1/tasks").header(name, value).send().await.unwrap();
        assert_eq!(response.status(), 200, "{name}");
    }
}

#[tokio::test]
async fn no_key_sees_anything_of_anothers() {
    let folder = data();
    let (one, two) = (create_key(folder.path(), "one", &[]), create_key(folder.path(), "two", &["--admin"]));
    let mut server = Server::start(folder.path(), [""; 0]).with_key(&one);
    let id = server.submit("/v1/images", &small(1)).await;
    let task = server.completed(&id).await;
    let url = task["images"][0]["url"].as_str().unwrap().to_owned();
    let keyed = server.request(Method::POST, "/v1/images").header("idempotency-key", "k").json(&small(1));
    let (_, first) = answer(keyed.send().await.unwrap()).await;

    server = server.with_key(&two);
    for path in
        [format!("/v1/tasks/{id}"), format!("/v1/tasks/{id}/events"), url.clone(), format!("{url}?width=16")]
    {
        refused(server.get(&path).await, 404, "not_found").await;
    }
    refused(server.delete(&format!("/v1/tasks/{id}")).await, 404, "not_found").await;
    assert_eq!(server.json("/v1/tasks").await["tasks"], json!([]));
    let keyed = server.request(Method::POST, "/v1/images").header("idempotency-key", "k").json(&small(2));
    let (status, second) = answer(keyed.send().await.unwrap()).await;
    assert_eq!(status, 200, "another's idempotency key is no conflict: {second}");
    assert_ne!(second["task_id"], first["task_id"]);
    server = server.with_key(&one);
    assert_eq!(server.picture(&task, 0).await.len(), task["images"][0]["bytes"].as_u64().unwrap() as usize);
}

#[tokio::test]
async fn models_are_an_admins_and_a_revoked_key_ends() {
    let folder = data();
    let (plain, admin) =
        (create_key(folder.path(), "plain", &[]), create_key(folder.path(), "boss", &["--admin"]));
    let mut server = Server::start(folder.path(), [""; 0]).with_key(&plain);
    for action in ["load", "unload"] {
        let response =
            server.request(Method::POST, &format!("/v1/models/tiny-sdxl/{action}")).send().await.unwrap();
        refused(response, 403, "forbidden").await;
    }
    server = server.with_key(&admin);
    let response = server.request(Method::POST, "/v1/models/tiny-sdxl/load").send().await.unwrap();
    assert_eq!(answer(response).await.0, 200);

    server = server.with_key(&plain);
    assert_eq!(server.get("/v1/tasks").await.status(), 200);
    let revoked =
        program().args(["keys", "revoke", "plain", "--data-dir"]).arg(folder.path()).output().unwrap();
    assert!(revoked.status.success(), "{}", String::from_utf8_lossy(&revoked.stderr));
    let deadline = Instant::now() + PATIENCE;
    let response = loop {
        let response = server.get("/v1/tasks").await;
        if response.status() != 200 {
            break response;
        }
        assert!(Instant::now() < deadline, "a revoked key still opens");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    refused(response, 401, "unauthorized").await;
}

#[tokio::test]
async fn each_key_has_its_own_share_of_requests_and_of_the_queue() {
    let folder = data();
    let few = create_key(folder.path(), "few", &["--requests-per-minute", "2"]);
    let one_task = create_key(folder.path(), "one-task", &["--max-tasks", "1"]);
    let mut server = Server::start(folder.path(), [""; 0]).with_key(&few);
    for _ in 0..2 {
        assert_eq!(server.get("/v1/queue").await.status(), 200);
    }
    let response = server.get("/v1/queue").await;
    assert!((1..=60).contains(&retry_after(response.headers())));
    refused(response, 429, "rate_limited").await;

    server = server.with_key(&one_task);
    let running = server.submit("/v1/images", &long(1)).await;
    let response = server.post("/v1/images", &small(1)).await;
    assert!(retry_after(response.headers()) >= 1);
    refused(response, 429, "queue_full").await;
    let metrics = server.get("/metrics").await.text().await.unwrap();
    assert!(metrics.contains("\ndarkroom_refusals_total{reason=\"rate_limited\"} 1\n"), "{metrics}");
    server.delete(&format!("/v1/tasks/{running}")).await;
}

#[tokio::test]
async fn only_pages_of_listed_origins_may_call() {
    let folder = data();
    let server = Server::start(folder.path(), ["--server-cors-origins", "https://app.example.com"]);
    let from = |method: Method, origin: &'static str| {
        let request = server.request(method, "/v1/images").header("origin", origin);
        let asked = request
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization,content-type,idempotency-key");
        async move { asked.send().await.unwrap() }
    };
    let allowed = |response: &Response| {
        response.headers().get("access-control-allow-origin").map(|value| value.to_str().unwrap().to_owned())
    };
    let listed = from(Method::OPTIONS, "https://app.example.com").await;
    assert!(listed.status().is_success());
    assert_eq!(allowed(&listed).as_deref(), Some("https://app.example.com"));
    let methods = listed.headers()["access-control-allow-methods"].to_str().unwrap();
    assert!(["GET", "POST", "DELETE"].iter().all(|method| methods.contains(method)), "{methods}");
    let headers = listed.headers()["access-control-allow-headers"].to_str().unwrap().to_lowercase();
    assert!(["authorization", "content-type", "idempotency-key"].iter().all(|name| headers.contains(name)));
    for other in ["https://evil.example.com", "http://app.example.com", "null"] {
        let refused = from(Method::OPTIONS, other).await;
        assert_eq!(allowed(&refused), None, "{other}");
    }
    let called = server
        .request(Method::GET, "/v1/queue")
        .header("origin", "https://app.example.com")
        .send()
        .await
        .unwrap();
    assert_eq!(allowed(&called).as_deref(), Some("https://app.example.com"));
    assert!(
        called.headers()["access-control-expose-headers"]
            .to_str()
            .unwrap()
            .to_lowercase()
            .contains("retry-after")
    );
}
