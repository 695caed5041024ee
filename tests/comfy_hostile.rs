//! ComfyUI's server against people who mean harm: names that lead outside, graphs and numbers that are too large or none
//! at all, uploads that are slow, cut or too large, files that are not what they say. Asked of the real program, which
//! has to go on serving with bounded memory, and must not find a mistake of its own.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]
#![allow(clippy::print_stdout, reason = "what was measured is shown with --nocapture")]

mod comfy;
mod server;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use comfy::{Field, form};
use image::{ImageFormat, RgbImage};
use reqwest::Method;
use serde_json::{Map, Value, json};
use server::{PATIENCE, Server, data};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What only the files outside have in them.
const CANARY: &str = "canary-5f1c7e";
/// Most bytes of an upload.
const UPLOAD: usize = 100 << 20;
/// What an upload may cost while it arrives.
const UPLOAD_GROWTH: u64 = 48 << 20;
/// What a hostile prompt may cost, with the history of it.
const PROMPT_GROWTH: u64 = 1 << 30;

/// A server, its folders, and a place beside them that is none of its business.
struct Target {
    server: Server,
    base: TempDir,
}

impl std::ops::Deref for Target {
    type Target = Server;
    fn deref(&self) -> &Server {
        &self.server
    }
}

fn png() -> Vec<u8> {
    let mut bytes = Vec::new();
    RgbImage::from_pixel(16, 8, [7, 8, 9].into())
        .write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png)
        .unwrap();
    bytes
}

/// A file of weights with one tensor and a word in its header.
fn weights() -> Vec<u8> {
    let header = json!({
        "__metadata__": {"word": CANARY},
        "latent_tensor": {"dtype": "F32", "shape": [1, 4, 1, 1], "data_offsets": [0, 16]},
    });
    let mut text = header.to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    [&(text.len() as u64).to_le_bytes()[..], &text, &[0; 16]].concat()
}

impl Target {
    fn start(more: &[&str]) -> Self {
        let base = data();
        let at = |name: &str| base.path().join(name);
        std::fs::create_dir_all(at("outside")).unwrap();
        let picture = [&png()[..], CANARY.as_bytes()].concat();
        for (name, bytes) in [
            ("canary.png", &picture),
            ("canary.json", &format!("{{\"{CANARY}\": 1}}").into_bytes()),
            ("canary.latent", &weights()),
            ("canary.safetensors", &weights()),
        ] {
            std::fs::write(at("outside").join(name), bytes).unwrap();
        }
        for folder in ["input", "output", "temp", "user/default", "models"] {
            std::fs::create_dir_all(at("work").join(folder)).unwrap();
            if folder != "models" {
                std::os::unix::fs::symlink(at("outside"), at("work").join(folder).join("link")).unwrap();
            }
        }
        for folder in ["checkpoints", "loras", "vae", "controlnet", "upscale_models", "text_encoders"] {
            std::fs::create_dir_all(at("work/models").join(folder)).unwrap();
        }
        for (folder, name) in
            [("input", "canary.png"), ("input", "canary.latent"), ("user/default", "canary.json")]
        {
            let link = at("work").join(folder).join(name.replace("canary", "leak"));
            std::os::unix::fs::symlink(at("outside").join(name), link).unwrap();
        }
        let mut flags: Vec<std::ffi::OsString> = Vec::new();
        for (flag, name) in [
            ("--models-dir", "models"),
            ("--comfy-input-dir", "input"),
            ("--comfy-output-dir", "output"),
            ("--comfy-temp-dir", "temp"),
            ("--comfy-user-dir", "user"),
        ] {
            flags.push(flag.into());
            flags.push(at("work").join(name).into());
        }
        flags.extend(more.iter().map(Into::into));
        let log = File::create(at("log")).unwrap();
        let server = Server::start_logging_to(&at("work/data"), flags, log.into());
        Self { server, base }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.base.path().join(name)
    }

    /// Everything outside the server's folders, with its bytes.
    fn outside(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        for entry in std::fs::read_dir(self.base.path()).unwrap() {
            let path = entry.unwrap().path();
            if !path.ends_with("work") && !path.ends_with("log") {
                let files = if path.is_dir() { server::files(&path) } else { vec![path] };
                found.extend(files.into_iter().map(|file| (file.clone(), std::fs::read(file).unwrap())));
            }
        }
        found
    }

    /// Files in the server's folders of files.
    fn kept(&self) -> usize {
        fn below(folder: &Path) -> usize {
            let entries = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
            entries
                .map(|entry| if entry.file_type().unwrap().is_dir() { below(&entry.path()) } else { 1 })
                .sum()
        }
        ["input", "output", "temp", "user"].iter().map(|name| below(&self.path("work").join(name))).sum()
    }

    async fn ask(&self, method: Method, path: &str, body: impl Into<reqwest::Body>) -> (u16, String) {
        let response = self.request(method, path).body(body).send().await.unwrap();
        let status = response.status().as_u16();
        (status, String::from_utf8_lossy(&response.bytes().await.unwrap()).into_owned())
    }

    async fn upload(&self, route: &str, fields: &[(&str, Field<'_>)]) -> (u16, String) {
        let (kind, body) = form(fields);
        let response =
            self.request(Method::POST, route).header("Content-Type", kind).body(body).send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    async fn ended(&self, id: &str) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = self.json(&format!("/history/{id}")).await;
            if let Some(entry) = found.get(id) {
                return entry.clone();
            }
            assert!(Instant::now() < deadline, "{id} does not end");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Sends a prompt as text and says how it went.
    async fn prompt(&self, what: &str, body: impl Into<reqwest::Body>) -> Fate {
        let (status, text) = self.ask(Method::POST, "/prompt", body).await;
        let answer: Value =
            serde_json::from_str(&text).unwrap_or_else(|_| panic!("{what}: {status} {}", start(&text)));
        if status != 200 {
            assert!((400..500).contains(&status) || status == 503, "{what}: {status} {}", start(&text));
            for member in ["type", "message", "details"] {
                assert!(answer["error"][member].is_string(), "{what}: {}", start(&text));
            }
            assert!(answer["node_errors"].is_object(), "{what}: {}", start(&text));
            return Fate::Refused(status, answer);
        }
        let entry = self.ended(answer["prompt_id"].as_str().unwrap()).await;
        if entry["status"]["status_str"] == "success" {
            return Fate::Made(entry);
        }
        let messages = entry["status"]["messages"].as_array().unwrap();
        let error = messages.iter().find(|message| message[0] == "execution_error");
        let error = error.unwrap_or_else(|| panic!("{what}: {}", start(&entry.to_string())))[1].clone();
        assert!(error["node_id"].as_str().is_some_and(|id| !id.is_empty()), "{what}: {error}");
        let message = error["exception_message"].as_str().unwrap();
        assert!(!message.trim().is_empty() && !message.contains("mistake of its own"), "{what}: {message}");
        Fate::Failed(error)
    }

    async fn nodes(&self, what: &str, nodes: &Value) -> Fate {
        self.prompt(what, json!({"prompt": nodes}).to_string()).await
    }

    /// After all that, a prompt is run, and the log tells of no mistake.
    async fn still_serves(&self) {
        let fate = self.nodes("the last", &shown(&json!(8), &json!(8), 1)).await;
        assert!(matches!(fate, Fate::Made(_)), "{fate:?}");
        let log = std::fs::read_to_string(self.path("log")).unwrap();
        let mistakes: Vec<&str> =
            log.lines().filter(|line| line.contains("panic") || line.contains("ERROR")).collect();
        assert!(mistakes.is_empty(), "{mistakes:?}");
    }
}

/// What became of a prompt.
#[derive(Debug)]
enum Fate {
    Made(Value),
    Failed(Value),
    Refused(u16, Value),
}

impl Fate {
    /// What the client is told of a prompt that was not made.
    #[track_caller]
    fn told(&self, what: &str) -> String {
        match self {
            Self::Made(entry) => panic!("{what} was made: {}", start(&entry.to_string())),
            Self::Failed(error) => error["exception_message"].to_string(),
            Self::Refused(_, answer) => answer.to_string(),
        }
    }
}

/// As much as a person reads.
fn start(text: &str) -> String {
    text.chars().take(600).collect()
}

/// A picture that is made and shown.
fn shown(width: &Value, height: &Value, batch: usize) -> Value {
    json!({
        "1": {"class_type": "EmptyImage",
              "inputs": {"width": width, "height": height, "batch_size": batch, "color": 1}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    })
}

/// Names that lead to `canary.EXTENSION`, or to where no file may be.
fn tricks(target: &Target, extension: &str) -> Vec<String> {
    let outside = target.path("outside");
    let canary = format!("canary.{extension}");
    vec![
        format!("../../outside/{canary}"),
        format!("../../../outside/{canary}"),
        format!("./../../outside/{canary}"),
        format!("a/../../../outside/{canary}"),
        format!("..\\..\\outside\\{canary}"),
        format!("../../outside/{canary} [output]"),
        outside.join(&canary).to_str().unwrap().to_owned(),
        format!("/{}", outside.join(&canary).display()),
        format!("C:\\outside\\{canary}"),
        format!("c:{canary}"),
        format!("\\\\host\\outside\\{canary}"),
        format!("link/{canary}"),
        format!("....//....//outside/{canary}"),
        format!("../../outside/{canary}\0.{extension}"),
        "\0".to_owned(),
        format!("nul.{extension}"),
        format!("COM1.{extension}/x"),
        "..".to_owned(),
        format!("{}.{extension}", "x".repeat(300)),
        "a/".repeat(600) + "x",
        "y".repeat(1 << 20),
    ]
}

fn quoted(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_name_in_a_workflow_leads_outside() {
    let target = Target::start(&[]);
    let before = target.outside();
    let readers = [
        ("LoadImage", "image", "png"),
        ("LoadImageMask", "image", "png"),
        ("LoadImageOutput", "image", "png"),
        ("LoadLatent", "latent", "latent"),
        ("CheckpointLoaderSimple", "ckpt_name", "safetensors"),
        ("UNETLoader", "unet_name", "safetensors"),
        ("CLIPLoader", "clip_name", "safetensors"),
        ("VAELoader", "vae_name", "safetensors"),
        ("ControlNetLoader", "control_net_name", "safetensors"),
        ("LoraLoaderModelOnly", "lora_name", "safetensors"),
        ("UpscaleModelLoader", "model_name", "safetensors"),
        ("UltralyticsDetectorProvider", "model_name", "safetensors"),
    ];
    for (class, input, extension) in readers {
        let known = target.json(&format!("/object_info/{class}")).await;
        assert!(known[class].is_object(), "{class}");
        let mut names = tricks(&target, extension);
        names.push(format!("leak.{extension}"));
        for name in names {
            let what = format!("{class} {:?}", start(&name));
            let nodes = json!({
                "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "tiny-sdxl.safetensors"}},
                "2": {"class_type": class, "inputs": {
                    input: name, "channel": "red", "weight_dtype": "default", "type": "stable_diffusion",
                    "model": ["1", 0], "strength_model": 1.0}},
                "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 0]}},
            });
            let fate = target.nodes(&what, &nodes).await;
            let told = fate.told(&what);
            assert!(!told.contains(CANARY), "{what}: {told}");
            match &fate {
                Fate::Refused(_, answer) => assert!(answer["node_errors"]["2"].is_object(), "{what}: {told}"),
                fate => {
                    assert!(matches!(fate, Fate::Failed(error) if error["node_id"] == "2"), "{what}: {told}");
                }
            }
        }
    }
    for list in ["/object_info", "/experiment/models", "/models/checkpoints", "/internal/files/input"] {
        let (_, text) = target.ask(Method::GET, list, "").await;
        assert!(!text.contains("canary") && !text.contains(target.base.path().to_str().unwrap()), "{list}");
    }
    assert!(before == target.outside());
    target.still_serves().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_prefix_of_a_saved_file_leads_outside() {
    let target = Target::start(&[]);
    let before = target.outside();
    let save = |class: &str, prefix: &str| {
        let latent = class == "SaveLatent";
        let source = if latent { "EmptyLatentImage" } else { "EmptyImage" };
        json!({
            "1": {"class_type": source, "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": 1}},
            "2": {"class_type": class, "inputs": {
                if latent { "samples" } else { "images" }: ["1", 0], "filename_prefix": prefix, "fps": 6.0,
                "lossless": true, "quality": 80, "method": "default"}},
        })
    };
    for class in ["SaveImage", "SaveLatent", "SaveAnimatedWEBP"] {
        for prefix in tricks(&target, "png") {
            // A space and a bracket are as good as other characters in what is written, so that is one of the others.
            let what = format!("{class} {:?}", start(&prefix));
            let told = target.nodes(&what, &save(class, &prefix)).await.told(&what);
            assert!(!told.contains(CANARY), "{what}: {told}");
        }
        for prefix in ["test..png", "a/b/../c", "%2e%2e/%2e%2e/x", "..x", "d/..e"] {
            let fate = target.nodes(prefix, &save(class, prefix)).await;
            assert!(matches!(fate, Fate::Made(_)), "{class} {prefix}: {fate:?}");
        }
    }
    assert!(before == target.outside());
    for saved in ["test..png_00001_.png", "a/c_00001_.png", "test..png_00001_.latent", "a/c_00001_.webp"] {
        let exists = target.path("work/output").join(saved).exists();
        let later = target.path("work/output").join(saved.replace("00001", "00003")).exists()
            || target.path("work/output").join(saved.replace("00001", "00002")).exists();
        assert!(exists || later, "{saved}");
    }
    target.still_serves().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_name_in_an_address_or_a_form_leads_outside() {
    let target = Target::start(&[]);
    let before = target.outside();
    let kept = target.kept();
    let mut names = tricks(&target, "png");
    names.retain(|name| name.len() < 4000);
    names.extend(tricks(&target, "safetensors").into_iter().filter(|name| name.contains("canary")));
    for name in &names {
        let once = quoted(name);
        let twice = quoted(&once);
        let dots = name.bytes().all(|byte| byte == b'.');
        let once = if dots { twice.clone() } else { once };
        for path in [
            format!("/view?filename={twice}"),
            format!("/view?filename=canary.png&subfolder={twice}&type=output"),
            format!("/view?filename={once}&type=temp&channel=rgb"),
            format!("/view_metadata/checkpoints?filename={once}"),
            format!("/view_metadata/{once}?filename=canary.safetensors"),
            format!("/models/{once}"),
            format!("/experiment/models/{once}"),
            format!("/experiment/models/preview/checkpoints/0/{once}"),
            format!("/experiment/models/preview/{once}/0/canary.png"),
            format!("/internal/files/{once}"),
            format!("/v2/userdata?path={once}"),
            format!("/userdata?dir={once}&recurse=true"),
            format!("/object_info/{once}"),
            format!("/history/{once}"),
        ] {
            let (status, text) = target.ask(Method::GET, &path, "").await;
            let nothing = status == 200 && ["{}", "[]"].contains(&text.trim());
            assert!((400..500).contains(&status) || nothing, "{path}: {status} {}", start(&text));
            assert!(!text.contains(CANARY), "{path}: {text}");
        }
        // Names of settings are no names of files: whatever they are, they are kept inside.
        let (status, _) = target.ask(Method::POST, &format!("/settings/{once}"), "1").await;
        assert!(status == 200 || (400..500).contains(&status), "{name:?}: {status}");
        let (status, _) = target.ask(Method::GET, &format!("/settings/{once}"), "").await;
        assert!(status == 200 || (400..500).contains(&status), "{name:?}: {status}");
        for (to, from) in [(name.as_str(), "x"), ("x", name.as_str())] {
            let path = format!("/userdata/{}/move/{}", quoted(&quoted(from)), quoted(&quoted(to)));
            let (status, text) = target.ask(Method::POST, &path, "").await;
            assert!((400..500).contains(&status), "{path}: {status} {text}");
        }
        let picture = png();
        let plain = !name.contains(['\0', '\\', '"']);
        for original in [
            json!({"filename": name, "type": "output"}),
            json!({"filename": "canary.png", "subfolder": name, "type": "input"}),
            json!({"filename": "canary.png", "type": name}),
        ] {
            let original = original.to_string();
            let fields =
                [("image", Field::File("m.png", &picture)), ("original_ref", Field::Text(&original))];
            let (status, text) = target.upload("/upload/mask", &fields).await;
            assert!((400..500).contains(&status), "{original}: {status} {text}");
        }
        let fields = [("image", Field::File("x.png", &picture)), ("subfolder", Field::Text(name))];
        let (status, text) = target.upload("/upload/image", &fields).await;
        assert!((400..500).contains(&status), "{name:?}: {status} {text}");
        if plain && !name.starts_with("../../outside/canary.png [") {
            let (status, text) =
                target.upload("/upload/image", &[("image", Field::File(name, &picture))]).await;
            assert!((400..500).contains(&status), "{name:?}: {status} {text}");
        }
    }
    assert!(before == target.outside());
    // Nothing came but the settings.
    assert!(target.kept() <= kept + 1, "{} files", target.kept());
    target.still_serves().await;
}

/// Sends the head of an upload and so many bytes of its file.
async fn begin(target: &Target, length: usize, sent: usize) -> TcpStream {
    let mut stream = TcpStream::connect(target.url.strip_prefix("http://").unwrap()).await.unwrap();
    let head = format!(
        "POST /upload/image HTTP/1.1\r\nhost: a\r\ncontent-type: multipart/form-data; boundary=edge\r\n\
         content-length: {length}\r\n\r\n--edge\r\nContent-Disposition: form-data; name=\"image\"; \
         filename=\"slow.png\"\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    for _ in 0..sent / 4096 {
        stream.write_all(&[7; 4096]).await.unwrap();
    }
    stream
}

async fn until(what: &str, ask: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !ask() {
        assert!(Instant::now() < deadline, "{what} does not come");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_cost_disk_and_not_memory_and_what_is_cut_leaves_nothing() {
    let target = Target::start(&["--server-body-timeout", "10"]);
    target.still_serves().await;
    let kept = target.kept();
    let before = target.resident_bytes();
    let exactly = |bytes: usize| {
        let empty = form(&[("image", Field::File("large.png", &[]))]).1.len();
        form(&[("image", Field::File("large.png", &vec![7; bytes - empty]))])
    };
    for (bytes, expected) in [(UPLOAD + 1, 413), (UPLOAD, 200)] {
        let (kind, body) = exactly(bytes);
        assert_eq!(body.len(), bytes);
        let sent = target
            .request(Method::POST, "/upload/image")
            .header("Content-Type", kind)
            .body(body)
            .send()
            .await;
        let status = sent.unwrap().status().as_u16();
        assert_eq!(status, expected, "{bytes} bytes");
        assert_eq!(target.kept(), kept + usize::from(expected == 200), "after {bytes} bytes");
    }
    let mut cut = Vec::new();
    for _ in 0..16 {
        cut.push(begin(&target, UPLOAD, 1 << 20).await);
    }
    let growth = target.resident_bytes().saturating_sub(before);
    println!("uploads: {} KiB more", growth >> 10);
    assert!(growth < UPLOAD_GROWTH, "{growth} bytes");
    // Half of them go away, half say nothing more.
    let silent = cut.split_off(8);
    drop(cut);
    until("the end of what was cut", || target.kept() == kept + 1).await;
    for mut stream in silent {
        let mut said = String::new();
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_string(&mut said)).await.unwrap();
        assert!(!said.contains(" 200 "), "{said}");
    }
    std::fs::remove_file(target.path("work/input/large.png")).unwrap();
    assert_eq!(target.kept(), kept);
    // One that is slow, and comes to its end.
    let tail = b"\r\n--edge--\r\n";
    let head =
        "--edge\r\nContent-Disposition: form-data; name=\"image\"; filename=\"slow.png\"\r\n\r\n".len();
    let mut slow = begin(&target, head + 50 * 100 + tail.len(), 0).await;
    for _ in 0..50 {
        slow.write_all(&[7; 100]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    target.json("/prompt").await;
    slow.write_all(tail).await.unwrap();
    let mut said = vec![0; 12];
    slow.read_exact(&mut said).await.unwrap();
    assert_eq!(said, b"HTTP/1.1 200");
    assert_eq!(std::fs::metadata(target.path("work/input/slow.png")).unwrap().len(), 5000);
    target.still_serves().await;
}

/// A picture that goes through so many nodes.
fn chain(length: usize) -> Value {
    let mut nodes = Map::new();
    for index in 0..length {
        let node = match index {
            0 => {
                json!({"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 3}})
            }
            _ => json!({"class_type": "ImageInvert", "inputs": {"image": [(index - 1).to_string(), 0]}}),
        };
        nodes.insert(index.to_string(), node);
    }
    let last = (length - 1).to_string();
    nodes.insert("show".into(), json!({"class_type": "PreviewImage", "inputs": {"images": [last, 0]}}));
    nodes.into()
}

#[tokio::test(flavor = "multi_thread")]
async fn graphs_without_measure_cost_bounded_memory() {
    let target = Target::start(&[]);
    target.still_serves().await;
    let before = target.resident_bytes();
    let bounded = |what: &str, began: Instant| {
        let growth = target.resident_bytes().saturating_sub(before);
        println!("{what}: {} MiB more, {:?}", growth >> 20, began.elapsed());
        assert!(growth < PROMPT_GROWTH, "{what}: {growth} bytes");
    };
    let began = Instant::now();
    let fate = target.nodes("chain", &chain(10_000)).await;
    assert!(matches!(fate, Fate::Made(_)), "{}", fate.told("chain"));
    bounded("a chain of 10,000", began);

    let began = Instant::now();
    let mut ring = chain(10_000);
    ring["0"] = json!({"class_type": "ImageInvert", "inputs": {"image": ["9999", 0]}});
    let Fate::Refused(400, answer) = target.nodes("ring", &ring).await else { panic!("a ring ran") };
    assert_eq!(answer["error"]["extra_info"]["cycle"].as_array().unwrap().len(), 10_000);
    let own = json!({"1": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}});
    target.nodes("own", &own).await.told("own");
    bounded("rings", began);

    let began = Instant::now();
    let strangers = (0..60_000).map(|index| (index.to_string(), json!({"class_type": format!("No{index}")})));
    let strangers = Value::Object(strangers.collect());
    target.nodes("strangers", &strangers).await.told("strangers");
    bounded("60,000 unknown classes", began);

    let began = Instant::now();
    let faulty =
        (0..60_000).map(|index| (index.to_string(), json!({"class_type": "SaveImage", "inputs": {}})));
    let faulty = Value::Object(faulty.collect());
    let told = target.nodes("faulty", &faulty).await.told("faulty");
    assert!(told.len() < 64 << 20, "{} bytes", told.len());
    bounded("60,000 faulty outputs", began);

    let began = Instant::now();
    let many =
        (0..=100_000).map(|index| (index.to_string(), json!({"class_type": "PreviewImage", "inputs": {}})));
    let many = Value::Object(many.collect());
    let told = target.nodes("many", &many).await.told("many");
    assert!(told.contains("100000"), "{}", start(&told));
    bounded("100,001 nodes", began);

    let began = Instant::now();
    // Doubled again and again, each text and each batch as often as there are nodes.
    let mut text = Map::new();
    text.insert(
        "0".into(),
        json!({"class_type": "StringConcatenate",
        "inputs": {"string_a": "0123456789", "string_b": "0123456789", "delimiter": ""}}),
    );
    for index in 1..60 {
        let from = json!([(index - 1).to_string(), 0]);
        text.insert(
            index.to_string(),
            json!({"class_type": "StringConcatenate",
            "inputs": {"string_a": from, "string_b": from, "delimiter": ""}}),
        );
    }
    text.insert("show".into(), json!({"class_type": "PreviewAny", "inputs": {"source": ["59", 0]}}));
    let told = target.nodes("doubling", &text.into()).await.told("doubling");
    assert!(told.contains("MiB"), "{told}");
    bounded("a text doubled sixty times", began);
    target.still_serves().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn json_without_measure_is_refused() {
    let target = Target::start(&[]);
    let prompt = |seed: &str| {
        format!(
            r#"{{"prompt": {{"1": {{"class_type": "EmptyImage", "inputs": {{"width": 8, "height": 8, "batch_size": 1, "color": {seed}}}}}, "2": {{"class_type": "PreviewImage", "inputs": {{"images": ["1", 0]}}}}}}}}"#
        )
    };
    assert!(matches!(target.prompt("good", prompt("1")).await, Fate::Made(_)));
    let long = "9".repeat(400);
    for bad in [
        "NaN",
        "Infinity",
        "-Infinity",
        "1e999",
        "-1e400",
        &long,
        "nan",
        "0x10",
        "1_0",
        "+1",
        ".5",
        "1.",
        "--1",
        "18446744073709551616",
        "-1",
        "\"1e400\"",
        "\"nan\"",
        "\"NaN\"",
        "\"inf\"",
        "\"\"",
        "null",
        "[]",
        "[1]",
        "{}",
        "[[1], 0]",
        "[\"1\", 0]",
        "[\"1\", 1e300]",
        "[\"1\", -9223372036854775808]",
        "[null, null]",
        "{\"__value__\": [\"1\", 0]}",
        "{\"__value__\": {\"__value__\": 1}}",
        "\"\\u0000\"",
        "\"\\ud800\"",
        "2147483648",
    ] {
        target.prompt(bad, prompt(bad)).await.told(bad);
    }
    for depth in [100, 127, 1000, 1_000_000] {
        let (open, close) = ("[".repeat(depth), "]".repeat(depth));
        target.prompt("lists", prompt(&format!("{open}{close}"))).await.told("lists in lists");
        let text = format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
        target.prompt("objects", prompt(&text)).await.told("objects in objects");
    }
    // The last of two counts, as in Python.
    let twice = prompt("1, \"color\": \"x\"");
    assert!(target.prompt("twice", twice).await.told("twice").contains("color"));
    assert!(matches!(target.prompt("twice", prompt("\"x\", \"color\": 2")).await, Fate::Made(_)));
    // It is not even waited for.
    let mut huge = TcpStream::connect(target.url.strip_prefix("http://").unwrap()).await.unwrap();
    let head = format!("POST /prompt HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n{{", 33 << 20);
    huge.write_all(head.as_bytes()).await.unwrap();
    let mut said = vec![0; 12];
    tokio::time::timeout(PATIENCE, huge.read_exact(&mut said)).await.unwrap().unwrap();
    assert_eq!(said, b"HTTP/1.1 413");
    for body in [
        "",
        "[]",
        "null",
        "{\"prompt\": 5}",
        "{\"prompt\": {\"1\": 5}}",
        "{\"prompt\": {\"\": null}}",
        "\u{feff}{}",
        "{\"prompt\": {}, \"number\": \"nan\"}",
        "{\"prompt\": {}, \"number\": 1e999}",
        "{\"prompt\": {}, \"extra_data\": 1}",
        "{\"prompt\": {}, \"partial_execution_targets\": 1}",
        "{\"prompt\": [\"1\"]}",
        "{\"prompt\": \"\\u0000\"}",
    ] {
        target.prompt(body, body.to_owned()).await.told(body);
    }
    target.prompt("not UTF-8", vec![b'{', b'"', 0xff, b'"', b'}']).await.told("not UTF-8");
    target.still_serves().await;
}

/// A whole picture of the built-in model, small.
fn whole() -> Value {
    json!({
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "tiny-sdxl.safetensors"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "1girl"}},
        "3": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "4": {"class_type": "KSampler", "inputs": {
            "model": ["1", 0], "seed": 1, "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal",
            "positive": ["2", 0], "negative": ["2", 0], "latent_image": ["3", 0], "denoise": 1.0}},
        "5": {"class_type": "VAEDecode", "inputs": {"samples": ["4", 0], "vae": ["1", 2]}},
        "6": {"class_type": "PreviewImage", "inputs": {"images": ["5", 0]}},
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn values_beyond_measure_are_refused_by_name_before_they_cost_anything() {
    let target = Target::start(&[]);
    assert!(matches!(target.nodes("whole", &whole()).await, Fate::Made(_)));
    let before = target.resident_bytes();
    let long = "x".repeat(1 << 20);
    let cases = [
        ("4", "seed", json!(1.8446744073709552e19)),
        ("4", "seed", json!(-1)),
        ("4", "seed", json!("18446744073709551616")),
        ("4", "seed", json!("1e400")),
        ("4", "seed", json!("-0x1")),
        ("4", "seed", json!(1e300)),
        ("4", "seed", json!("9".repeat(100_000))),
        ("4", "steps", json!(1_000_000)),
        ("4", "steps", json!(0)),
        ("4", "cfg", json!("NaN")),
        ("4", "cfg", json!("inf")),
        ("4", "cfg", json!("-1e400")),
        ("4", "cfg", json!(1e308)),
        ("4", "denoise", json!("nan")),
        ("4", "denoise", json!(-1)),
        ("4", "sampler_name", json!(long)),
        ("4", "scheduler", json!({"a": 1})),
        ("4", "sampler_name", json!(["1", 0])),
        ("4", "model", json!(["4", 0])),
        ("4", "model", json!("model")),
        ("4", "positive", json!([])),
        ("4", "latent_image", json!(["6", 0])),
        ("4", "steps", json!([1, 2, 3])),
        ("3", "width", json!(2_147_483_648_u64)),
        ("3", "width", json!(-64)),
        ("3", "height", json!([64])),
        ("3", "batch_size", json!(4097)),
        ("1", "ckpt_name", json!(long)),
        ("1", "ckpt_name", json!(["1", 0])),
        ("2", "text", json!("1girl, ".repeat(3 << 20))),
        ("2", "text", json!("(".repeat(1 << 20))),
        ("2", "text", json!(["2", 0])),
    ];
    for (node, input, value) in cases {
        let what = format!("{node}.{input} {}", start(&value.to_string()));
        let mut nodes = whole();
        nodes[node]["inputs"][input] = value;
        let fate = target.nodes(&what, &nodes).await;
        let told = fate.told(&what);
        // A cycle has no errors of nodes: ComfyUI has none either.
        let cycle = told.contains("\"cycle\"");
        let by_name = match &fate {
            Fate::Refused(_, answer) => !answer["node_errors"].as_object().unwrap().is_empty(),
            fate => matches!(fate, Fate::Failed(error) if error["node_id"].is_string()),
        };
        assert!(by_name || cycle, "{what}: {}", start(&told));
    }
    let mut class = whole();
    class["5"]["class_type"] = json!(long);
    target.nodes("a class of 1 MB", &class).await.told("a class of 1 MB");
    class["5"]["class_type"] = json!(["VAEDecode"]);
    target.nodes("a list of classes", &class).await.told("a list of classes");
    let mut dtype = whole();
    dtype["1"] = json!({"class_type": "UNETLoader", "inputs": {"unet_name": "x", "weight_dtype": "int512"}});
    target.nodes("an unknown dtype", &dtype).await.told("an unknown dtype");

    // In range each, and together more than there is.
    let mut latent = whole();
    latent["3"]["inputs"] = json!({"width": 16384, "height": 16384, "batch_size": 4096});
    for (what, nodes) in [("pictures", shown(&json!(16384), &json!(16384), 4096)), ("latents", latent)] {
        let Fate::Failed(error) = target.nodes(what, &nodes).await else {
            panic!("{what} were made or refused")
        };
        assert_eq!(error["node_id"], if what == "pictures" { "1" } else { "3" }, "{error}");
    }
    let growth = target.resident_bytes().saturating_sub(before);
    println!("values beyond measure: {} MiB more", growth >> 20);
    assert!(growth < PROMPT_GROWTH, "{growth} bytes");

    // Names of prompts and clients are any text, or refused.
    for id in ["\u{0}\r\n\u{1b}[2J", "../../x", "\u{202e}x", "", "😀", "<script>"] {
        let body = json!({"prompt": shown(&json!(8), &json!(8), 1), "prompt_id": id, "client_id": id});
        let (status, text) = target.ask(Method::POST, "/prompt", body.to_string()).await;
        assert!(status == 200 || status == 400, "{id:?}: {status} {text}");
        let (status, _) = target.ask(Method::GET, &format!("/history/{}", quoted(id)), "").await;
        assert!(status == 200 || (400..500).contains(&status), "{id:?}: {status}");
    }
    for (member, id) in
        [("prompt_id", json!(long)), ("client_id", json!(long)), ("client_id", json!({"a": [1]}))]
    {
        let mut body = json!({"prompt": shown(&json!(8), &json!(8), 1)});
        body[member] = id;
        target.prompt(member, body.to_string()).await;
    }
    target.still_serves().await;
}

/// A picture that says it has so many pixels a side, and holds next to none.
fn bomb(side: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, side, side);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header().unwrap();
    writer.write_chunk(png::chunk::IDAT, &[0x78, 0x9c, 0x63, 0, 0, 0, 1, 0, 1]).unwrap();
    drop(writer);
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_not_what_they_say_fail_the_prompt_that_names_them() {
    let target = Target::start(&[]);
    target.still_serves().await;
    let before = target.resident_bytes();
    let pictures = [
        ("bomb.png", bomb(60_000)),
        ("large.png", bomb(16_384)),
        ("cut.png", png()[..60].to_vec()),
        ("text.png", b"no picture".to_vec()),
        ("none.png", Vec::new()),
        ("bad.webp", b"RIFF\xff\xff\xff\xffWEBPVP8 \xff\xff\xff\xff".to_vec()),
    ];
    for (name, bytes) in pictures {
        std::fs::write(target.path("work/input").join(name), bytes).unwrap();
        for class in ["LoadImage", "LoadImageMask"] {
            let nodes = json!({
                "7": {"class_type": class, "inputs": {"image": name, "channel": "red"}},
                "8": {"class_type": "PreviewAny", "inputs": {"source": ["7", 0]}},
            });
            let Fate::Failed(error) = target.nodes(name, &nodes).await else {
                panic!("{class} {name} did not fail")
            };
            assert_eq!(
                (&error["node_id"], &error["node_type"]),
                (&json!("7"), &json!(class)),
                "{name}: {error}"
            );
            assert!(error["exception_message"].as_str().unwrap().contains(name), "{name}: {error}");
        }
        let (status, _) =
            target.ask(Method::GET, &format!("/view?filename={name}&type=input&preview=webp"), "").await;
        assert_eq!(status, 400, "{name}");
    }
    let huge = [&u64::MAX.to_le_bytes()[..], b"{}"].concat();
    let cut = weights()[..40].to_vec();
    let claims = {
        let header = br#"{"a": {"dtype": "F32", "shape": [1099511627776, 16], "data_offsets": [0, 16]}}"#;
        [&(header.len() as u64).to_le_bytes()[..], header, &[0; 16]].concat()
    };
    let deep = {
        let header = "[".repeat(100_000);
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()
    };
    for (name, bytes) in [
        ("huge", huge),
        ("cut", cut),
        ("claims", claims),
        ("deep", deep),
        ("other", weights()),
        ("none", Vec::new()),
    ] {
        let name = format!("bad-{name}.safetensors");
        for (folder, class, input) in [
            ("checkpoints", "CheckpointLoaderSimple", "ckpt_name"),
            ("loras", "LoraLoader", "lora_name"),
            ("upscale_models", "UpscaleModelLoader", "model_name"),
            ("controlnet", "ControlNetLoader", "control_net_name"),
            ("vae", "VAELoader", "vae_name"),
        ] {
            std::fs::write(target.path("work/models").join(folder).join(&name), &bytes).unwrap();
            let mut nodes = whole();
            let loader = json!({"class_type": class, "inputs": {
                input: name, "strength_model": 1.0, "strength_clip": 1.0, "model": ["1", 0], "clip": ["1", 1]}});
            nodes["7"] = loader;
            match folder {
                "checkpoints" => nodes["5"]["inputs"]["vae"] = json!(["7", 2]),
                "loras" => nodes["4"]["inputs"]["model"] = json!(["7", 0]),
                "vae" => nodes["5"]["inputs"]["vae"] = json!(["7", 0]),
                "upscale_models" => {
                    nodes["8"] = json!({"class_type": "ImageUpscaleWithModel",
                        "inputs": {"upscale_model": ["7", 0], "image": ["5", 0]}});
                    nodes["6"]["inputs"]["images"] = json!(["8", 0]);
                }
                _ => {
                    nodes["8"] = json!({"class_type": "ControlNetApply", "inputs": {
                        "conditioning": ["2", 0], "control_net": ["7", 0], "image": ["9", 0], "strength": 1.0}});
                    nodes["9"] = shown(&json!(64), &json!(64), 1)["1"].clone();
                    nodes["4"]["inputs"]["positive"] = json!(["8", 0]);
                }
            }
            let what = format!("{class} {name}");
            let fate = target.nodes(&what, &nodes).await;
            let told = fate.told(&what);
            assert!(told.contains(&name), "{what}: {}", start(&told));
            if let Fate::Refused(_, answer) = &fate {
                assert!(answer["node_errors"]["7"].is_object(), "{what}: {told}");
            }
            let path = format!("/view_metadata/{folder}?filename={name}");
            let (status, _) = target.ask(Method::GET, &path, "").await;
            assert!(status == 404 || (status == 200 && name.contains("other")), "{path}: {status}");
        }
    }
    assert!(matches!(target.nodes("whole", &whole()).await, Fate::Made(_)));
    let growth = target.resident_bytes().saturating_sub(before);
    println!("broken files: {} MiB more", growth >> 20);
    assert!(growth < PROMPT_GROWTH, "{growth} bytes");
    target.still_serves().await;
}
