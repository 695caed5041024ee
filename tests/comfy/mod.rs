//! What the tests against recordings of ComfyUI share (`tests/data/comfyui`, made by
//! `scripts/golden/comfyui_server.py`): the real server with the recordings' models and input files, prompts sent as
//! they were sent then, and JSON compared without what a machine or a moment decides.
#![allow(dead_code, reason = "each test file uses its own part of this")]

use std::path::{Path, PathBuf};
use std::time::Instant;

use reqwest::{Method, Response};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::server::{PATIENCE, Server, data};

/// Members that differ from one moment or machine to the next; only that they are there is compared.
const OF_THE_MOMENT: [&str; 4] = ["timestamp", "modified", "created", "traceback"];
/// Explanations, which are in each program's own words.
const PROSE: [&str; 3] = ["tooltip", "output_tooltips", "description"];
/// Models that are compiled in, and stand in lists beside those of the folder.
const BUILT_IN: [&str; 4] =
    ["tiny-sdxl.safetensors", "tiny-canny.safetensors", "tinychan.safetensors", "tinyvio.safetensors"];
/// Lists whose order comes from a Python set, or does not matter.
const SETS: [&str; 4] = ["executed", "current_outputs", "dependent_outputs", "nodes"];

fn recorded_path(name: &str) -> PathBuf {
    data_of_tests("comfyui").join(name)
}

fn data_of_tests(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(folder)
}

/// A recorded file.
pub(crate) fn recorded_bytes(name: &str) -> Vec<u8> {
    recorded_bytes_of("comfyui", name)
}

/// A file of the recording in this folder of `tests/data`.
pub(crate) fn recorded_bytes_of(folder: &str, name: &str) -> Vec<u8> {
    let path = data_of_tests(folder).join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A recorded file of JSON.
pub(crate) fn recorded(name: &str) -> Value {
    serde_json::from_slice(&recorded_bytes(name)).unwrap()
}

/// A server with ComfyUI's face, and its folders.
pub(crate) struct Comfy {
    pub(crate) server: Server,
    _folder: TempDir,
}

impl std::ops::Deref for Comfy {
    type Target = Server;
    fn deref(&self) -> &Server {
        &self.server
    }
}

impl Comfy {
    /// Starts one with the recordings' models, and with their input files or an empty input folder.
    pub(crate) fn start(inputs: bool) -> Self {
        Self::start_with(inputs, |_| ())
    }

    /// The same with more in its models folder.
    pub(crate) fn start_with(inputs: bool, place_more: impl FnOnce(&Path)) -> Self {
        let folder = data();
        let at = |name: &str| folder.path().join(name);
        place_models(&at("models"));
        place_more(&at("models"));
        std::fs::create_dir(at("input")).unwrap();
        if inputs {
            copy_all(&recorded_path("input"), &at("input"));
        }
        let mut flags = Vec::new();
        for (flag, name) in [
            ("--models-dir", "models"),
            ("--comfy-input-dir", "input"),
            ("--comfy-output-dir", "output"),
            ("--comfy-temp-dir", "temp"),
            ("--comfy-user-dir", "user"),
        ] {
            flags.push(flag.into());
            flags.push(at(name).into_os_string());
        }
        let server = Server::start(&at("data"), flags);
        Self { server, _folder: folder }
    }

    /// Sends JSON as it is written.
    pub(crate) async fn send(&self, method: Method, path: &str, text: &str) -> Response {
        let request = self.request(method, path).header("Content-Type", "application/json");
        request.body(text.to_owned()).send().await.unwrap()
    }

    /// Uploads a file to the input folder.
    pub(crate) async fn upload(&self, name: &str, bytes: &[u8]) {
        let (kind, body) = form(&[("image", Field::File(name, bytes)), ("overwrite", Field::Text("true"))]);
        let request = self.request(Method::POST, "/upload/image").header("Content-Type", kind).body(body);
        assert_eq!(request.send().await.unwrap().status(), 200);
    }

    /// Waits for a prompt's history; its entry.
    pub(crate) async fn finished(&self, prompt: &str) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = self.json(&format!("/history/{prompt}")).await;
            if let Some(entry) = found.get(prompt) {
                return entry.clone();
            }
            assert!(Instant::now() < deadline, "{prompt} did not end");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
}

/// A field of a form.
pub(crate) enum Field<'a> {
    Text(&'a str),
    File(&'a str, &'a [u8]),
}

/// A form's content type and body.
pub(crate) fn form(fields: &[(&str, Field<'_>)]) -> (&'static str, Vec<u8>) {
    let mut body = Vec::new();
    for (name, field) in fields {
        body.extend_from_slice(b"--edge\r\n");
        body.extend_from_slice(format!("Content-Disposition: form-data; name=\"{name}\"").as_bytes());
        match field {
            Field::Text(text) => body.extend_from_slice(format!("\r\n\r\n{text}\r\n").as_bytes()),
            Field::File(file, bytes) => {
                let head = format!("; filename=\"{file}\"\r\nContent-Type: application/octet-stream\r\n\r\n");
                body.extend_from_slice(head.as_bytes());
                body.extend_from_slice(bytes);
                body.extend_from_slice(b"\r\n");
            }
        }
    }
    body.extend_from_slice(b"--edge--\r\n");
    ("multipart/form-data; boundary=edge", body)
}

pub(crate) fn copy_all(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_all(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

/// Lays a models folder out as the recordings' was. The large files are those of the pipelines' tests.
fn place_models(models: &Path) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/tests/golden/comfyui");
    copy_all(&recorded_path("models"), models);
    for (theirs, ours) in [
        ("checkpoints/sdxl_tiny", "sdxl-tiny"),
        ("controlnet/controlnet_tiny", "controlnet-tiny"),
        ("loras/lora_tiny", "lora-kohya"),
        ("loras/lora_tiny_diffusers", "lora-diffusers"),
    ] {
        let target = models.join(format!("{theirs}.safetensors"));
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::fs::copy(golden.join(format!("{ours}.safetensors")), target).unwrap();
    }
    let checkpoint = std::fs::read(golden.join("sdxl-tiny.safetensors")).unwrap();
    for (file, prefix) in [
        ("diffusion_models/unet_tiny", "model.diffusion_model."),
        ("text_encoders/clip_l_tiny", "conditioner.embedders.0.transformer."),
        ("text_encoders/clip_g_tiny", "conditioner.embedders.1.model."),
        ("vae/vae_tiny", "first_stage_model."),
    ] {
        let target = models.join(format!("{file}.safetensors"));
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::fs::write(target, part(&checkpoint, prefix)).unwrap();
    }
}

/// The tensors of a safetensors file whose names begin so, without that beginning, as a file of their own. Token
/// tables are stored as their few rows that are not zero; metadata says so by their names.
fn part(file: &[u8], prefix: &str) -> Vec<u8> {
    let (length, rest) = file.split_at(8);
    let (header, tensors) = rest.split_at(u64::from_le_bytes(length.try_into().unwrap()).try_into().unwrap());
    let header: Map<String, Value> = serde_json::from_slice(header).unwrap();
    let begin = |entry: &Value| usize::try_from(entry["data_offsets"][0].as_u64().unwrap()).unwrap();
    let end = |entry: &Value| usize::try_from(entry["data_offsets"][1].as_u64().unwrap()).unwrap();
    let mut kept: Vec<(&str, &Value)> = header
        .iter()
        .filter(|(name, _)| *name != "__metadata__")
        .filter_map(|(name, entry)| Some((name.strip_prefix(prefix)?, entry)))
        .collect();
    kept.sort_by_key(|(_, entry)| begin(entry));
    let mut made = Map::new();
    let mut bytes = Vec::new();
    for (name, entry) in kept {
        let mut moved = entry.clone();
        let from = bytes.len();
        bytes.extend_from_slice(&tensors[begin(entry)..end(entry)]);
        moved["data_offsets"] = json!([from, bytes.len()]);
        made.insert(name.to_owned(), moved);
    }
    let mut metadata = Map::new();
    for (key, text) in header["__metadata__"].as_object().unwrap() {
        if let Some(name) = key.strip_prefix("darkroom.sparse.").and_then(|name| name.strip_prefix(prefix)) {
            metadata.insert(format!("darkroom.sparse.{name}"), text.clone());
        }
    }
    if !metadata.is_empty() {
        made.insert("__metadata__".to_owned(), metadata.into());
    }
    let mut text = serde_json::to_vec(&made).unwrap();
    text.resize(text.len().next_multiple_of(8), b' ');
    let length = u64::try_from(text.len()).unwrap().to_le_bytes();
    [&length[..], &text, &bytes].concat()
}

/// The same JSON without what the moment decides, explanations and built-in models; with sets in order.
pub(crate) fn settled(value: &Value) -> Value {
    match value {
        Value::Object(members) => members
            .iter()
            .filter(|(name, _)| !PROSE.contains(&name.as_str()))
            .map(|(name, inner)| {
                let mut inner = settled(inner);
                if OF_THE_MOMENT.contains(&name.as_str()) {
                    inner = kind(&inner).into();
                } else if SETS.contains(&name.as_str())
                    && let Value::Array(items) = &mut inner
                {
                    items.sort_by_key(Value::to_string);
                }
                (name.clone(), inner)
            })
            .collect(),
        Value::Array(items) => {
            let built_in = |item: &&Value| item.as_str().is_some_and(|text| BUILT_IN.contains(&text));
            let mut items: Vec<_> = items.iter().filter(|item| !built_in(item)).map(settled).collect();
            // An input's options, of which only an explanation was there.
            items.pop_if(|last| *last == json!({}));
            items.into()
        }
        Value::String(text) => without_built_in(&without_chance(text)).into(),
        other => other.clone(),
    }
}

/// A list of models as Python prints it, without those that are compiled in.
fn without_built_in(text: &str) -> String {
    let mut text = text.to_owned();
    for name in BUILT_IN {
        text = text.replace(&format!(", '{name}'"), "").replace(&format!("'{name}', "), "");
    }
    text
}

/// Five letters of a temporary file's name are drawn by chance.
fn without_chance(text: &str) -> String {
    match text.strip_prefix("ComfyUI_temp_") {
        Some(rest) if rest.len() > 5 && rest.bytes().take(5).all(|letter| letter.is_ascii_lowercase()) => {
            format!("ComfyUI_temp_?????{}", &rest[5..])
        }
        _ => text.to_owned(),
    }
}

/// What kind of JSON it is.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Where two values differ first, for a reader; `None` if nowhere. Numbers are compared as numbers.
pub(crate) fn difference(path: &str, theirs: &Value, ours: &Value) -> Option<String> {
    match (theirs, ours) {
        (Value::Object(left), Value::Object(right)) => {
            for (name, inner) in left {
                let path = format!("{path}.{name}");
                let Some(other) = right.get(name) else {
                    return Some(format!("{path} is missing, was {inner}"));
                };
                if let Some(found) = difference(&path, inner, other) {
                    return Some(found);
                }
            }
            right
                .keys()
                .find(|name| !left.contains_key(*name))
                .map(|name| format!("{path}.{name} is too much"))
        }
        (Value::Array(left), Value::Array(right)) if left.len() == right.len() => left
            .iter()
            .zip(right)
            .enumerate()
            .find_map(|(index, (inner, other))| difference(&format!("{path}[{index}]"), inner, other)),
        (Value::Number(left), Value::Number(right)) if left.as_f64() == right.as_f64() => None,
        _ if theirs == ours => None,
        _ => Some(format!("{path}: theirs {theirs}, ours {ours}")),
    }
}

/// Ends a test that has compared many things: says all that was found.
#[track_caller]
pub(crate) fn none_differ(found: &[String]) {
    assert!(found.is_empty(), "{} differ:\n{}", found.len(), found.join("\n"));
}
