//! What clients ask before they send anything: which nodes there are, what the machine and the server are like.

use std::collections::HashMap;
use std::path::Path;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use darkroom_models::device::DeviceName;
use serde::Serialize;
use serde_json::{Value, json};

use super::{ComfyParts, frontend, json as json_answer, json_text};
use crate::config::ComfyConfig;
use crate::engine::OpenDevice;
use crate::http::app::App;
use crate::http::error::ApiError;
use crate::http::extract::Name;
use crate::workflow::ordered::Ordered;

/// The version of ComfyUI whose API this is.
const COMFYUI: &str = "0.3.64";
/// What that version asks of its front end and its templates.
const FRONT_END: &str = "1.27.10";
const TEMPLATES: &str = "0.1.95";
/// Scripts of extensions that are listed.
const MOST_SCRIPTS: usize = 10_000;
/// Levels of folders that are looked through for them.
const DEPTH: usize = 8;

/// What the server can do.
#[derive(Debug, Serialize)]
pub(super) struct Features {
    supports_preview_metadata: bool,
    max_upload_size: usize,
}

impl Features {
    pub(super) fn new(config: &ComfyConfig) -> Self {
        Self { supports_preview_metadata: true, max_upload_size: config.max_upload_bytes }
    }
}

/// Runs work that looks at the disk beside the server's own threads.
pub(super) async fn looked<T: Send + 'static>(
    comfy: &ComfyParts,
    look: impl FnOnce(&ComfyParts) -> T + Send + 'static,
) -> Result<T, ApiError> {
    let comfy = comfy.clone();
    let looked = tokio::task::spawn_blocking(move || look(&comfy)).await;
    looked.map_err(|error| ApiError::internal(&format!("looking at files failed: {error}")))
}

/// Describes all nodes.
#[utoipa::path(
    get,
    path = "/object_info",
    tag = super::TAG,
    responses((status = 200, body = Object, description = "What each node takes and gives, by class"))
)]
pub(super) async fn nodes(State(app): State<App>) -> Result<Response, ApiError> {
    let for_front_end = app.config.comfy.frontend.is_some();
    let info = looked(app.comfy()?, move |comfy| {
        let mut info = described(comfy, None);
        if for_front_end {
            frontend::add_expected(&mut info);
        }
        serde_json::to_vec(&in_order(info)).unwrap_or_default()
    });
    Ok(json_text(StatusCode::OK, info.await?))
}

/// Describes a node; an empty object if there is none of this class.
#[utoipa::path(
    get,
    path = "/object_info/{node_class}",
    tag = super::TAG,
    params(("node_class" = String, Path, description = "The node's class")),
    responses((status = 200, body = Object, description = "As `/object_info`, with one node or none"))
)]
pub(super) async fn node(State(app): State<App>, Name(class): Name) -> Result<Response, ApiError> {
    let info = looked(app.comfy()?, move |comfy| in_order(described(comfy, Some(&class))));
    Ok(json_answer(&info.await?))
}

/// Darkroom's own nodes, and those that only the ComfyUI behind it has. Blocks.
fn described(comfy: &ComfyParts, class: Option<&str>) -> Value {
    let mut info = comfy.workflows.object_info(class);
    let theirs = comfy.upstream.as_ref().and_then(|upstream| upstream.nodes());
    if let (Some(own), Some(theirs)) = (info.as_object_mut(), theirs.as_deref().and_then(Value::as_object)) {
        for (name, node) in theirs.iter().filter(|(name, _)| class.is_none_or(|class| class == *name)) {
            own.entry(name.clone()).or_insert_with(|| node.clone());
        }
    }
    info
}

/// Nodes with their inputs in the order of `input_order`. Clients that make functions of nodes, or read the values of
/// widgets by place, go by the order of the inputs themselves.
fn in_order(info: Value) -> Ordered {
    let mut info = Ordered::from(info);
    let Ordered::Object(nodes) = &mut info else { return info };
    for node in nodes.values_mut() {
        let Ordered::Object(members) = node else { continue };
        let order = members.get("input_order").and_then(Ordered::as_object).cloned().unwrap_or_default();
        let Some(Ordered::Object(sections)) = members.get_mut("input") else { continue };
        for (section, inputs) in sections {
            let (Some(Ordered::Array(names)), Ordered::Object(inputs)) = (order.get(section), inputs) else {
                continue;
            };
            let places: HashMap<&str, usize> = names
                .iter()
                .filter_map(Ordered::as_str)
                .enumerate()
                .map(|(place, name)| (name, place))
                .collect();
            inputs.sort_by_cached_key(|name, _| places.get(name.as_str()).copied().unwrap_or(usize::MAX));
        }
    }
    info
}

/// Tells what the machine and the server are like.
#[utoipa::path(
    get,
    path = "/system_stats",
    tag = super::TAG,
    responses((status = 200, body = Object, description = "`{\"system\": {…}, \"devices\": […]}`"))
)]
pub(super) async fn system(State(app): State<App>) -> Result<Response, ApiError> {
    let memory = Memory::of(&tokio::fs::read_to_string("/proc/meminfo").await.unwrap_or_default());
    let devices: Vec<Value> =
        app.service.devices().iter().map(|device| device_json(device, &memory)).collect();
    Ok(json_answer(&json!({
        "system": {
            // Python's `os.name`.
            "os": if cfg!(windows) { "nt" } else { "posix" },
            "ram_total": memory.total,
            "ram_free": memory.free,
            "comfyui_version": COMFYUI,
            "required_frontend_version": FRONT_END,
            "installed_templates_version": TEMPLATES,
            "required_templates_version": TEMPLATES,
            // There is no Python: what draws stands in its place.
            "python_version": concat!("Darkroom ", env!("CARGO_PKG_VERSION")),
            "pytorch_version": "candle",
            "embedded_python": false,
            "argv": ["darkroom", "serve"],
        },
        "devices": devices,
    })))
}

/// A device as torch names it, with the card's memory or the machine's.
fn device_json(device: &OpenDevice, machine: &Memory) -> Value {
    let (free, total) = device.memory().unwrap_or((machine.free, machine.total));
    let (name, kind, index) = match device.name {
        DeviceName::Cuda(number) => {
            let card = device.card.as_deref().unwrap_or("CUDA");
            (format!("cuda:{number} {card}"), "cuda", json!(number))
        }
        _ => ("cpu".to_owned(), "cpu", Value::Null),
    };
    json!({
        "name": name,
        "type": kind,
        "index": index,
        "vram_total": total,
        "vram_free": free,
        "torch_vram_total": total,
        "torch_vram_free": free,
    })
}

/// Bytes; 0 where the system does not say.
#[derive(Debug, Default, PartialEq, Eq)]
struct Memory {
    total: u64,
    free: u64,
}

impl Memory {
    /// Of `/proc/meminfo`.
    fn of(text: &str) -> Self {
        let bytes = |name: &str| -> Option<u64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
            kib.checked_mul(1024)
        };
        Self {
            total: bytes("MemTotal:").unwrap_or_default(),
            free: bytes("MemAvailable:").unwrap_or_default(),
        }
    }
}

/// Tells what the server can do.
#[utoipa::path(
    get,
    path = "/features",
    tag = super::TAG,
    responses((
        status = 200,
        body = Object,
        description = "`{\"supports_preview_metadata\": true, \"max_upload_size\": 104857600}`"
    ))
)]
pub(super) async fn features(State(app): State<App>) -> Response {
    json_answer(&Features::new(&app.config.comfy))
}

/// Lists the scripts of the front end's extensions.
#[utoipa::path(
    get,
    path = "/extensions",
    tag = super::TAG,
    responses((status = 200, body = Vec<String>, description = "Their paths: `/extensions/….js`"))
)]
pub(super) async fn extensions(State(app): State<App>) -> Result<Response, ApiError> {
    let Some(frontend) = app.config.comfy.frontend.clone() else {
        return Ok(json_answer(&Vec::<String>::new()));
    };
    let scripts = looked(app.comfy()?, move |_| {
        let mut found = Vec::new();
        scripts(&frontend.join("extensions"), "/extensions", DEPTH, &mut found);
        found.sort();
        found
    });
    Ok(json_answer(&scripts.await?))
}

fn scripts(folder: &Path, prefix: &str, depth: usize, found: &mut Vec<String>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        if found.len() >= MOST_SCRIPTS {
            return;
        }
        let Ok(name) = entry.file_name().into_string() else { continue };
        let path = format!("{prefix}/{name}");
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && depth > 0 => scripts(&entry.path(), &path, depth - 1, found),
            Ok(kind) if kind.is_file() && name.ends_with(".js") => found.push(path),
            _ => {}
        }
    }
}

/// Lists example workflows of extensions: there are none.
#[utoipa::path(
    get,
    path = "/workflow_templates",
    tag = super::TAG,
    responses((status = 200, body = Object, description = "`{}`"))
)]
pub(super) async fn templates() -> Response {
    json_answer(&json!({}))
}

/// Lists translations of extensions: there are none.
#[utoipa::path(
    get,
    path = "/i18n",
    tag = super::TAG,
    responses((status = 200, body = Object, description = "`{}`"))
)]
pub(super) async fn translations() -> Response {
    json_answer(&json!({}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_what_the_system_says() {
        let text = "MemTotal:       16384 kB\nMemFree:  1 kB\nMemAvailable:   8192 kB\n";
        assert_eq!(Memory::of(text), Memory { total: 16 << 20, free: 8 << 20 });
        assert_eq!(Memory::of("MemTotal: x"), Memory::default());
    }

    #[test]
    fn inputs_come_in_the_order_of_their_node() {
        let info = in_order(json!({"Save": {
            "input": {"required": {"a": ["INT"], "z": ["IMAGE"], "m": ["STRING"]}, "hidden": {"b": "B", "a": "A"}},
            "input_order": {"required": ["z", "m"], "hidden": ["b", "a"]},
        }, "Odd": {"input": 3}}));
        let text = serde_json::to_string(&info).unwrap();
        assert!(text.contains(r#""required":{"z":["IMAGE"],"m":["STRING"],"a":["INT"]}"#), "{text}");
        assert!(text.contains(r#""hidden":{"b":"B","a":"A"}"#), "{text}");
        assert!(text.contains(r#""Odd":{"input":3}"#), "{text}");
    }

    #[test]
    fn scripts_are_listed_by_the_paths_that_they_are_served_at() {
        let folder = tempfile::TempDir::new().unwrap();
        let core = folder.path().join("core");
        std::fs::create_dir(&core).unwrap();
        std::fs::write(core.join("a.js"), "").unwrap();
        std::fs::write(core.join("a.css"), "").unwrap();
        let mut found = Vec::new();
        scripts(folder.path(), "/extensions", DEPTH, &mut found);
        assert_eq!(found, ["/extensions/core/a.js"]);
    }
}
