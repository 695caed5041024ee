//! Requests that are too large, broken, or about things that are not the client's.

use base64::Engine;
use serde_json::{Value, json};

use crate::raw::{Raw, post_head};
use crate::refusal;
use crate::server::{Server, data, small};

const BODY_LIMIT: usize = 1 << 20;

fn start(data: &std::path::Path) -> Server {
    Server::start(data, ["--limits-body-bytes", "1MiB", "--limits-source-pixels", "1000000"])
}

/// After all that, an ordinary request is served.
async fn still_serves(server: &Server) {
    server.completed(&server.submit("/v1/images", &small(1)).await).await;
}

async fn post_text(server: &Server, body: String) -> (u16, Value) {
    let request =
        server.request(reqwest::Method::POST, "/v1/images").header("content-type", "application/json");
    refusal(request.body(body).send().await.unwrap()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_over_the_limit_are_refused_whether_or_not_their_length_is_declared() {
    let data = data();
    let server = start(data.path());
    let declared = Raw::sending(&server, post_head(BODY_LIMIT + 1).as_bytes()).await.rest_or_some().await;
    assert!(declared.starts_with("HTTP/1.1 413 "), "{declared}");
    assert!(declared.contains("payload_too_large"), "{declared}");

    let head = post_head(0).replace("content-length: 0", "transfer-encoding: chunked");
    let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
    let mut chunked = head;
    for _ in 0..=BODY_LIMIT / 0x10000 {
        chunked.push_str(&chunk);
    }
    let said = Raw::sending(&server, chunked.as_bytes()).await.rest_or_some().await;
    assert!(said.starts_with("HTTP/1.1 413 "), "{said}");
    still_serves(&server).await;
}

impl Raw {
    /// What the server says to a request that it need not read to its end.
    async fn rest_or_some(mut self) -> String {
        self.some().await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_without_end_are_refused() {
    let data = data();
    let server = start(data.path());
    let long_line = format!("GET /health HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "x".repeat(1 << 20));
    let many_lines = format!("GET /health HTTP/1.1\r\nhost: a\r\n{}\r\n", "x: y\r\n".repeat(10_000));
    let long_path = format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "x".repeat(1 << 20));
    for head in [long_line, many_lines, long_path] {
        let said = Raw::sending(&server, head.as_bytes()).await.rest().await;
        let fine = said.is_empty() || said.starts_with("HTTP/1.1 431 ") || said.starts_with("HTTP/1.1 414 ");
        assert!(fine, "{}: {said}", &head[..40]);
    }
    still_serves(&server).await;
}

/// A PNG that says it has so many pixels a side, and holds next to none.
fn bomb(side: u32) -> String {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, side, side);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header().unwrap();
    writer.write_chunk(png::chunk::IDAT, &[0x78, 0x9c, 0x63, 0, 0, 0, 1, 0, 1]).unwrap();
    drop(writer);
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn pictures_of_absurd_size_are_refused_before_they_are_unpacked() {
    let data = data();
    let server = start(data.path());
    let before = server.resident_bytes();
    for side in [60_000, 1_000_000, i32::MAX as u32] {
        for field in ["init_image", "mask"] {
            let mut body = small(1);
            body["init_image"] = bomb(16).into();
            body[field] = bomb(side).into();
            let (status, error) = refusal(server.post("/v1/images", &body).await).await;
            assert!([413, 422].contains(&status), "{side} {field}: {status} {error}");
        }
    }
    let grown = server.resident_bytes().saturating_sub(before);
    assert!(grown < 64 << 20, "refusing them took {grown} bytes");
    let (status, error) = refusal(
        server.post("/v1/images", &json!({"prompt": "a", "width": 1 << 20, "height": 1 << 20})).await,
    )
    .await;
    assert_eq!((status, error["field"].as_str().is_some()), (422, true), "{error}");
    still_serves(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_a_request_is_refused_with_what_is_wrong() {
    let data = data();
    let server = start(data.path());
    let nested = |levels: usize| format!("{{\"prompt\": {}{}}}", "[".repeat(levels), "]".repeat(levels));
    let field = |name: &str, value: &str| format!("{{\"prompt\": \"a\", \"{name}\": {value}}}");
    let cases: Vec<(String, &[u16])> = vec![
        (format!("{{\"prompt\": \"{}\"}}", "a ".repeat(500_000)), &[422]),
        (format!("{{\"prompt\": \"{}\"}}", "(".repeat(10_000)), &[422]),
        (nested(100_000), &[400, 422]),
        (nested(10), &[422]),
        ("{\"prompt\": \"a".into(), &[400]),
        (String::new(), &[400]),
        ("null".into(), &[422]),
        ("[]".into(), &[422]),
        ("{\"prompt\": \"a\"} trailing".into(), &[400]),
        ("{\"prompt\": \"\u{0}\"}".into(), &[400]),
        ("{\"prompt\": \"\\ud800\"}".into(), &[400, 422]),
        (field("prompt", "\"b\""), &[400, 422]),
        (field("width", "\"64\""), &[422]),
        (field("width", "64.5"), &[422]),
        (field("width", "-64"), &[422]),
        (field("width", "99999999999999999999999"), &[400, 422]),
        (field("steps", "0"), &[422]),
        (field("steps", "true"), &[422]),
        (field("steps", "4294967296"), &[422]),
        (field("seed", "-1"), &[422]),
        (field("seed", "18446744073709551616"), &[422]),
        (field("count", "4294967295"), &[422]),
        (field("cfg", "NaN"), &[400]),
        (field("cfg", "1e400"), &[400, 422]),
        (field("cfg", "1e300"), &[422]),
        (field("cfg", "-1"), &[422]),
        (field("denoise", "1e308"), &[422]),
        (field("priority", "\"now\""), &[422]),
        (field("format", "\"exe\""), &[422]),
        (field("sampler", "\"../euler\""), &[422]),
        (field("webhook_url", "\"file:///etc/passwd\""), &[422]),
        (field("init_image", "\"file:///etc/passwd\""), &[422]),
        (field("init_image", "\"/etc/passwd\""), &[422]),
        (field("there_is_no_such", "1"), &[422]),
    ];
    for (body, expected) in cases {
        let shown: String = body.chars().take(80).collect();
        let (status, error) = post_text(&server, body).await;
        assert!(expected.contains(&status), "{shown}: {status} {error}");
        let told = error["message"].as_str().unwrap();
        assert!(!told.is_empty() && told.len() < 2000, "{shown}: {} characters are told", told.len());
    }
    still_serves(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_paths_name_nothing() {
    let data = data();
    let server = start(data.path());
    let escapes = [
        "..%2f..%2f..%2fetc%2fpasswd",
        "%2e%2e%2fdarkroom.db",
        "darkroom.db",
        "webhook-secret",
        "%00",
        "img_%00",
    ];
    for id in escapes.into_iter().map(str::to_owned).chain([".".repeat(5000), "ä".into(), "a".repeat(5000)])
    {
        for folder in ["tasks", "images"] {
            let path = format!("/v1/{folder}/{id}");
            // By hand: clients tidy such paths up.
            let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
            let said = Raw::sending(&server, request.as_bytes()).await.rest().await;
            let fine = ["HTTP/1.1 404 ", "HTTP/1.1 400 "].iter().any(|status| said.starts_with(status));
            assert!(fine, "{}: {said}", &path[..path.len().min(60)]);
        }
    }
    for path in
        ["/v1/images/../../etc/passwd", "/../../../etc/passwd", "//etc/passwd", "/v1/images/..\\..\\a"]
    {
        let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        let said = Raw::sending(&server, request.as_bytes()).await.rest().await;
        assert!(said.starts_with("HTTP/1.1 404 ") || said.starts_with("HTTP/1.1 400 "), "{path}: {said}");
    }
    for model in [
        "../../etc/passwd",
        "/etc/passwd",
        "checkpoints/../../x",
        "C:\\windows",
        "..",
        "",
        "a\u{0}b",
        "file:///x",
    ] {
        let mut body = small(1);
        body["model"] = model.into();
        let (status, error) = refusal(server.post("/v1/images", &body).await).await;
        assert_eq!((status, error["field"].as_str()), (404, Some("model")), "{model}: {error}");
    }
    still_serves(&server).await;
}
