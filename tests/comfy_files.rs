//! ComfyUI's routes about files on the real server: uploads, views, the front end's own files and settings, and the
//! front end itself.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod server;

use std::io::Cursor;
use std::path::Path;

use image::{ImageFormat, Rgba, RgbaImage};
use reqwest::{Method, Response};
use serde_json::{Value, json};
use server::{Server, data};
use tempfile::TempDir;

struct Comfy {
    server: Server,
    folder: TempDir,
}

impl Comfy {
    fn start(more: &[&str]) -> Self {
        let folder = data();
        let server = Server::start(folder.path(), more);
        Self { server, folder }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join("comfy").join(name)
    }

    async fn ask(&self, method: Method, path: &str, body: impl Into<reqwest::Body>) -> Response {
        let url = format!("{}{path}", self.server.url);
        self.server.client.request(method, url).body(body).send().await.unwrap()
    }

    async fn get(&self, path: &str) -> Response {
        self.ask(Method::GET, path, "").await
    }

    async fn status(&self, method: Method, path: &str, body: &str) -> u16 {
        self.ask(method, path, body.to_owned()).await.status().as_u16()
    }

    async fn json(&self, path: &str) -> Value {
        let response = self.get(path).await;
        assert_eq!(response.status(), 200, "{path}");
        response.json().await.unwrap()
    }

    async fn upload(&self, route: &str, name: &str, bytes: Vec<u8>, fields: &[(&str, &str)]) -> (u16, Value) {
        let (kind, body) = form(name, bytes, fields);
        let url = format!("{}{route}", self.server.url);
        let request = self.server.client.post(url).header("content-type", kind).body(body);
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        let text = response.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }
}

/// A form with a file: its media type and its bytes.
fn form(name: &str, bytes: Vec<u8>, fields: &[(&str, &str)]) -> (&'static str, Vec<u8>) {
    let mut body = Vec::new();
    for (name, value) in fields {
        let head =
            format!("--darkroom\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n");
        body.extend(head.into_bytes());
    }
    let name = name.replace('\\', "\\\\");
    let head = format!(
        "--darkroom\r\nContent-Disposition: form-data; name=\"image\"; filename=\"{name}\"\r\n\
         Content-Type: image/png\r\n\r\n"
    );
    body.extend(head.into_bytes());
    body.extend(bytes);
    body.extend(b"\r\n--darkroom--\r\n");
    ("multipart/form-data; boundary=darkroom", body)
}

fn png(picture: &RgbaImage) -> Vec<u8> {
    let mut bytes = Vec::new();
    picture.write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png).unwrap();
    bytes
}

fn picture(alpha: u8) -> RgbaImage {
    RgbaImage::from_fn(32, 16, |x, y| Rgba([x as u8 * 8, y as u8 * 16, 77, alpha]))
}

fn files_below(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries.map(|entry| if entry.path().is_dir() { files_below(&entry.path()) } else { 1 }).sum()
}

#[tokio::test]
async fn an_upload_is_kept_once_numbered_or_replaced_and_can_be_viewed() {
    let comfy = Comfy::start(&[]);
    let (one, other) = (png(&picture(255)), png(&picture(9)));
    let upload = async |bytes: &[u8], fields: &[(&str, &str)]| {
        comfy.upload("/upload/image", "test..png", bytes.to_vec(), fields).await
    };
    let answer = |name: &str| (200, json!({"name": name, "subfolder": "a/b", "type": "input"}));
    let place = [("subfolder", "a/b")];
    assert_eq!(upload(&one, &place).await, answer("test..png"));
    assert_eq!(upload(&one, &place).await, answer("test..png"));
    assert_eq!(upload(&other, &place).await, answer("test. (1).png"));
    assert_eq!(upload(&other, &place).await, answer("test. (1).png"));
    assert_eq!(upload(&other, &[place[0], ("overwrite", "true")]).await, answer("test..png"));
    let (status, body) = comfy.upload("/api/upload/image", "x.png", one.clone(), &[("type", "temp")]).await;
    assert_eq!((status, &body["type"]), (200, &json!("temp")));

    let response = comfy.get("/view?filename=test..png&type=input&subfolder=a/b").await;
    assert_eq!(response.headers()["content-type"], "image/png");
    assert_eq!(response.headers()["content-disposition"], "filename=\"test..png\"");
    assert_eq!(response.bytes().await.unwrap(), other);
    let response = comfy.get("/api/view?filename=x.png%20%5Btemp%5D").await;
    assert_eq!(response.bytes().await.unwrap(), one);
    assert_eq!(comfy.get("/view?filename=x.png").await.status(), 404);
    assert_eq!(comfy.get("/view").await.status(), 404);
    assert_eq!(comfy.get("/view?filename=").await.status(), 400);
    assert_eq!(comfy.get("/view?filename=x.png&type=nonsense").await.status(), 400);
    assert_eq!(files_below(&comfy.path("input")), 2);
    assert_eq!(files_below(&comfy.path("temp")), 1);
}

#[tokio::test]
async fn a_view_can_be_a_preview_or_a_channel_and_never_runs_in_a_browser() {
    let comfy = Comfy::start(&[]);
    std::fs::create_dir_all(comfy.path("output")).unwrap();
    std::fs::write(comfy.path("output/p.png"), png(&picture(100))).unwrap();
    let view = async |query: &str| {
        let response = comfy.get(&format!("/view?filename=p.png&{query}")).await;
        assert_eq!(response.status(), 200, "{query}");
        let mime = response.headers()["content-type"].to_str().unwrap().to_owned();
        (mime, image::load_from_memory(&response.bytes().await.unwrap()).unwrap())
    };
    let (mime, preview) = view("preview=webp;50").await;
    assert_eq!((&*mime, preview.width(), preview.color().has_alpha()), ("image/webp", 32, true));
    let (mime, preview) = view("preview=jpeg;80").await;
    assert_eq!((&*mime, preview.color().has_alpha()), ("image/jpeg", false));
    assert_eq!(view("preview=jpeg&channel=a").await.0, "image/webp");
    let (mime, colours) = view("channel=rgb").await;
    assert_eq!((&*mime, colours.color().has_alpha()), ("image/png", false));
    assert_eq!(colours.into_rgb8().get_pixel(3, 5).0, [24, 80, 77]);
    let (_, alpha) = view("channel=a").await;
    assert_eq!(alpha.into_rgba8().get_pixel(3, 5).0, [0, 0, 0, 100]);
    for (name, mime) in [
        ("a.html", "application/octet-stream"),
        ("b.js", "application/octet-stream"),
        ("c.txt", "text/plain"),
    ] {
        std::fs::write(comfy.path("output").join(name), b"<script>").unwrap();
        let response = comfy.get(&format!("/view?filename={name}")).await;
        assert_eq!(response.headers()["content-type"], mime);
        assert_eq!(response.headers()["x-content-type-options"], "nosniff");
    }
    assert_eq!(comfy.get("/view?filename=c.txt&preview=webp").await.status(), 400);
    assert_eq!(comfy.json("/internal/files/output").await.as_array().unwrap().len(), 4);
    let response = comfy.get("/internal/files/models").await;
    assert_eq!(response.status(), 400);
    assert_eq!(response.json::<Value>().await.unwrap(), json!({"error": "Invalid directory type"}));
}

#[tokio::test]
async fn a_masks_transparency_goes_into_the_original_with_its_texts() {
    let comfy = Comfy::start(&[]);
    std::fs::create_dir_all(comfy.path("output/sub")).unwrap();
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 2, 1);
    encoder.set_color(png::ColorType::Rgb);
    encoder.add_text_chunk("prompt".into(), "{}".into()).unwrap();
    encoder.write_header().unwrap().write_image_data(&[1, 2, 3, 4, 5, 6]).unwrap();
    std::fs::write(comfy.path("output/sub/o.png"), &bytes).unwrap();
    let mask = png(&RgbaImage::from_fn(2, 1, |x, _| Rgba([9, 9, 9, x as u8 * 50])));
    let upload = async |mask: &[u8], original: Value| {
        let fields = [("original_ref", original.to_string())];
        let fields = fields.each_ref().map(|(name, value)| (*name, &**value));
        comfy.upload("/upload/mask", "m.png", mask.to_vec(), &fields).await
    };
    let original = json!({"filename": "o.png", "subfolder": "sub", "type": "output"});
    assert_eq!(upload(&mask, original.clone()).await.0, 200);
    let kept = std::fs::read(comfy.path("input/m.png")).unwrap();
    let pixels = image::load_from_memory(&kept).unwrap().into_rgba8();
    assert_eq!(pixels.into_raw(), [1, 2, 3, 0, 4, 5, 6, 50]);
    let reader = png::Decoder::new(Cursor::new(&kept)).read_info().unwrap();
    assert_eq!(reader.info().uncompressed_latin1_text[0].text, "{}");
    assert_eq!(upload(&mask, original.clone()).await.1["name"], "m (1).png");
    assert_eq!(upload(&mask, json!({"filename": "none.png"})).await.0, 404);
    assert_eq!(upload(&mask, json!({"filename": "../../x.png"})).await.0, 403);
    assert_eq!(upload(&mask, json!({"filename": "o.png", "subfolder": "..", "type": "output"})).await.0, 403);
    assert_eq!(upload(&mask, json!("o.png")).await.0, 400);
    assert_eq!(upload(b"no picture", original.clone()).await.0, 400);
    assert_eq!(upload(&png(&picture(1)), original).await.0, 400);
}

#[tokio::test]
async fn no_name_of_any_route_leads_outside() {
    let comfy = Comfy::start(&[]);
    let secret = comfy.folder.path().join("secret.png");
    std::fs::write(&secret, png(&picture(255))).unwrap();
    std::fs::create_dir_all(comfy.path("output")).unwrap();
    std::fs::create_dir_all(comfy.path("user/default")).unwrap();
    #[cfg(unix)]
    for link in ["output/link.png", "user/default/link.png"] {
        std::os::unix::fs::symlink(&secret, comfy.path(link)).unwrap();
    }
    let before = files_below(comfy.folder.path());
    let tricks = [
        "../../secret.png",
        "..\\..\\secret.png",
        "/etc/passwd",
        "C:\\Windows\\win.ini",
        "\\\\host\\share\\x.png",
        "a\0.png",
        "NUL",
        "con.png",
        "x.",
        "..",
        ".",
        "link.png",
    ];
    let quote = |text: &str| text.bytes().map(|byte| format!("%{byte:02X}")).collect::<String>();
    for trick in tricks {
        // Clients take dots away that stand alone in a path, however they are quoted; twice they leave them.
        let dots = trick.bytes().all(|byte| byte == b'.');
        let quoted = if dots { quote(&quote(trick)) } else { quote(trick) };
        for path in [
            format!("/view?filename={quoted}"),
            format!("/view?filename=secret.png&subfolder={quoted}"),
            format!("/view?filename={quoted}%20%5Boutput%5D&preview=webp"),
            format!("/userdata/{quoted}"),
            format!("/userdata/{}", quote(&quoted)),
            format!("/userdata?dir={quoted}"),
            format!("/v2/userdata?path={quoted}/.."),
            format!("/api/userdata/{quoted}"),
        ] {
            let status = comfy.get(&path).await.status().as_u16();
            let listed = path.contains("userdata?") && trick == "." && status == 200;
            assert!((400..500).contains(&status) || listed, "{path}: {status}");
        }
        if trick != "link.png" {
            let status = comfy.status(Method::POST, &format!("/userdata/{quoted}"), "x").await;
            assert!((400..500).contains(&status), "POST {trick:?}: {status}");
            for fields in [vec![], vec![("subfolder", trick)]] {
                let name = if fields.is_empty() { trick } else { "x.png" };
                // Of `.` the same folder is meant.
                if trick == "." && !fields.is_empty() {
                    continue;
                }
                let (status, body) = comfy.upload("/upload/image", name, vec![1], &fields).await;
                assert!((400..500).contains(&status), "upload {trick:?} {fields:?}: {status} {body}");
            }
        }
        let status = comfy.status(Method::DELETE, &format!("/userdata/{quoted}"), "").await;
        assert!((400..500).contains(&status), "DELETE {trick:?}: {status}");
    }
    assert_eq!(comfy.status(Method::POST, "/userdata/a.json", "{}").await, 200);
    let moved = comfy.status(Method::POST, "/userdata/a.json/move/..%2F..%2Fb.json", "").await;
    assert_eq!(moved, 403);
    assert_eq!(files_below(comfy.folder.path()), before + 1);
    assert!(secret.exists());
}

#[tokio::test]
async fn the_front_ends_files_are_kept_listed_moved_and_deleted() {
    let comfy = Comfy::start(&[]);
    assert_eq!(comfy.json("/users").await, json!({"storage": "server", "migrated": false}));
    assert_eq!(comfy.get("/userdata?dir=workflows").await.status(), 404);
    assert_eq!(comfy.get("/userdata").await.status(), 400);
    let post = async |path: &str, body: &str| {
        let response = comfy.ask(Method::POST, path, body.to_owned()).await;
        (response.status().as_u16(), response.json::<Value>().await.unwrap_or_default())
    };
    assert_eq!(post("/api/userdata/workflows%2Fa%20b.json", "{}").await, (200, json!("workflows/a b.json")));
    assert_eq!(post("/userdata/workflows%2Fdeep%2Fc.json", "[1]").await.0, 200);
    let (status, info) = post("/userdata/workflows%252Fd.json?full_info=true", "xyz").await;
    assert_eq!((status, &info["path"], &info["size"]), (200, &json!("workflows/d.json"), &json!(3)));
    assert!(info["modified"].as_f64().unwrap() > 1.7e9 && info["created"].as_f64().unwrap() > 1.7e9);
    assert_eq!(comfy.status(Method::POST, "/userdata/workflows%2Fd.json?overwrite=false", "new").await, 409);
    assert_eq!(comfy.get("/userdata/workflows%2Fd.json").await.text().await.unwrap(), "xyz");
    assert_eq!(comfy.json("/users").await["migrated"], true);

    assert_eq!(comfy.json("/userdata?dir=workflows").await, json!(["a b.json", "d.json"]));
    assert_eq!(
        comfy.json("/userdata?dir=workflows&recurse=true&split=true").await,
        json!([["a b.json", "a b.json"], ["d.json", "d.json"], ["deep/c.json", "deep", "c.json"]])
    );
    let full = comfy.json("/userdata?dir=workflows&recurse=true&split=false&full_info=true").await;
    assert_eq!(full[2]["path"], "deep/c.json");
    let all = comfy.json("/v2/userdata").await;
    let names: Vec<_> = all.as_array().unwrap().iter().map(|entry| entry["path"].as_str().unwrap()).collect();
    let expected =
        ["workflows/deep", "workflows", "workflows/a b.json", "workflows/deep/c.json", "workflows/d.json"];
    assert_eq!(names, expected);
    assert_eq!(comfy.json("/v2/userdata?path=workflows%2Fdeep").await.as_array().unwrap().len(), 1);
    assert_eq!(comfy.get("/v2/userdata?path=nothing").await.status(), 404);

    assert_eq!(
        post("/userdata/workflows%2Fd.json/move/workflows%2Fe.json", "").await,
        (200, json!("workflows/e.json"))
    );
    let again = "/userdata/workflows%2Fe.json/move/workflows%2Fa%20b.json?overwrite=false";
    assert_eq!(comfy.status(Method::POST, again, "").await, 409);
    assert_eq!(comfy.status(Method::POST, "/userdata/none/move/x", "").await, 404);
    assert_eq!(comfy.status(Method::DELETE, "/userdata/workflows%2Fe.json", "").await, 204);
    assert_eq!(comfy.status(Method::DELETE, "/userdata/workflows%2Fe.json", "").await, 404);
}

#[tokio::test]
async fn settings_last_and_are_changed_one_by_one() {
    let folder = data();
    let client = server::client();
    let first = Server::start(folder.path(), [""; 0]);
    let post = async |url: &str, path: &str, body: Value| {
        client.post(format!("{url}{path}")).body(body.to_string()).send().await.unwrap().status().as_u16()
    };
    let get = async |url: &str, path: &str| -> Value {
        client.get(format!("{url}{path}")).send().await.unwrap().json().await.unwrap()
    };
    assert_eq!(get(&first.url, "/settings").await, json!({}));
    assert_eq!(post(&first.url, "/api/settings/Comfy.TutorialCompleted", json!(true)).await, 200);
    assert_eq!(post(&first.url, "/settings", json!({"a": {"b": 1}, "c": "d"})).await, 200);
    assert_eq!(post(&first.url, "/settings", json!([1])).await, 400);
    assert_eq!(get(&first.url, "/settings/a").await, json!({"b": 1}));
    assert_eq!(get(&first.url, "/settings/none").await, json!(null));
    let url = first.url.clone();
    let many: Vec<_> =
        (0..8).map(|index| post(&url, "/settings", json!({format!("n{index}"): index}))).collect();
    for done in many {
        assert_eq!(done.await, 200);
    }
    drop(first);
    let second = Server::start(folder.path(), [""; 0]);
    let settings = get(&second.url, "/api/settings").await;
    assert_eq!(settings.as_object().unwrap().len(), 11);
    assert_eq!(settings["Comfy.TutorialCompleted"], true);
    let file = std::fs::read_to_string(folder.path().join("comfy/user/default/comfy.settings.json")).unwrap();
    assert!(file.contains("    \"Comfy.TutorialCompleted\": true"), "{file}");
}

#[tokio::test]
async fn a_name_can_be_added_once() {
    let comfy = Comfy::start(&[]);
    let add = async |body: &str| {
        let response = comfy.ask(Method::POST, "/users", body.to_owned()).await;
        (response.status().as_u16(), response.json::<Value>().await.unwrap_or_default())
    };
    let (status, id) = add(r#"{"username": "Ann & Bo"}"#).await;
    assert_eq!(status, 200);
    assert!(id.as_str().unwrap().starts_with("Ann-Bo_"), "{id}");
    assert_eq!(add(r#"{"username": "Ann & Bo"}"#).await, (400, json!({"error": "Duplicate username."})));
    assert_eq!(add(r#"{"username": "default"}"#).await.0, 400);
    assert_eq!(add("{}").await.0, 400);
    assert_eq!(add("no").await.0, 400);
}

#[tokio::test]
async fn an_upload_beyond_the_limit_is_refused_and_leaves_nothing() {
    let comfy = Comfy::start(&["--comfy-max-upload-bytes", "1MiB"]);
    let (status, _) = comfy.upload("/upload/image", "a.png", vec![7; 900 << 10], &[]).await;
    assert_eq!(status, 200);
    let (status, _) = comfy.upload("/upload/image", "b.png", vec![7; 2 << 20], &[]).await;
    assert_eq!(status, 413);
    let status = comfy.ask(Method::POST, "/userdata/big", vec![7; 2 << 20]).await.status().as_u16();
    assert_eq!(status, 413);
    let long = "x".repeat(100 << 10);
    let (status, _) = comfy.upload("/upload/image", "c.png", vec![7], &[("subfolder", &long)]).await;
    assert_eq!(status, 400);
    assert_eq!(comfy.status(Method::POST, "/upload/image", "no form").await, 400);
    assert_eq!(files_below(&comfy.path("input")), 1);
    assert_eq!(files_below(&comfy.path("temp")), 0);
    assert_eq!(files_below(&comfy.path("user")), 0);
}

#[tokio::test]
async fn the_front_end_lies_over_the_page_which_moves() {
    let front = data();
    std::fs::create_dir_all(front.path().join("assets/lib")).unwrap();
    std::fs::write(front.path().join("index.html"), "the front end").unwrap();
    std::fs::write(front.path().join("assets/lib/x.mjs"), "export {}").unwrap();
    let comfy = Comfy::start(&["--comfy-frontend", front.path().to_str().unwrap()]);
    let response = comfy.get("/").await;
    assert_eq!(response.headers()["cache-control"], "no-cache");
    assert_eq!(response.text().await.unwrap(), "the front end");
    let response = comfy.get("/assets/lib/x.mjs").await;
    assert_eq!(response.headers()["content-type"], "text/javascript; charset=utf-8");
    let page = comfy.get("/darkroom").await.text().await.unwrap();
    assert!(page.contains("<title>Darkroom</title>"));
    assert_eq!(comfy.get("/assets/app.js").await.status(), 200);
    assert_eq!(comfy.get("/assets/none.js").await.status(), 404);
    assert_eq!(comfy.get("/user.css").await.status(), 404);
    assert_eq!(comfy.get("/api/userdata/user.css").await.status(), 404);
    assert_eq!(comfy.get("/health").await.status(), 200);
}
