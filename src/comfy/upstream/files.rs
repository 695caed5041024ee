//! Pictures on their way to another ComfyUI and back: what a prompt names of the input folder is uploaded; what it
//! saved there is written to Darkroom's own folders, under its name or, where that is taken, another.

use std::path::Path;

use serde_json::Value as Json;

use super::link::{Link, LinkError};
use crate::workflow::folders::{annotated, find_below, place_below, write_new};
use crate::workflow::{FileType, Folders, Ordered};

/// Most files of one prompt.
const MOST_FILES: usize = 256;
/// Largest file that is uploaded.
const MOST_BYTES: u64 = 256 << 20;

/// Uploads the files of the folders that inputs of `prompt` name, each once.
pub(super) async fn upload_inputs(link: &Link, folders: &Folders, prompt: &Ordered) -> Result<(), LinkError> {
    let mut names: Vec<&str> = Vec::new();
    for (_, node) in prompt.as_object().into_iter().flatten() {
        for (_, value) in node.get("inputs").and_then(Ordered::as_object).into_iter().flatten() {
            if let Some(name) = value.as_str()
                && !names.contains(&name)
                && names.len() < MOST_FILES
            {
                names.push(name);
            }
        }
    }
    for name in names {
        let (plain, kind) = annotated(name);
        let kind = kind.unwrap_or(FileType::Input);
        // Most texts are no names of files.
        let Ok(path) = find_below(folders.of(kind), plain) else { continue };
        let small = tokio::fs::metadata(&path).await.is_ok_and(|m| m.is_file() && m.len() <= MOST_BYTES);
        if !small {
            continue;
        }
        let Ok(bytes) = tokio::fs::read(&path).await else { continue };
        let (subfolder, file) = plain.rsplit_once('/').unwrap_or(("", plain));
        link.upload(file, subfolder, bytes).await?;
    }
    Ok(())
}

/// Fetches every file that a node's output names, and writes into `output` where each is now.
pub(super) async fn fetch_outputs(link: &Link, folders: &Folders, output: &mut Json) {
    let lists = output.as_object_mut().into_iter().flatten().filter_map(|(_, list)| list.as_array_mut());
    for file in lists.flatten().take(MOST_FILES) {
        let text = |name: &str| file[name].as_str().unwrap_or_default().to_owned();
        let (name, subfolder, kind) = (text("filename"), text("subfolder"), text("type"));
        let Some(folder) = FileType::of_name(&kind).filter(|_| !name.is_empty()) else { continue };
        let query = [("filename", &name), ("subfolder", &subfolder), ("type", &kind)];
        let query: String = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(query).finish();
        let bytes = match link.bytes(&format!("/view?{query}")).await {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::warn!(%error, name, "what the ComfyUI behind this server saved cannot be fetched");
                continue;
            }
        };
        let root = folders.of(folder).to_owned();
        let kept = tokio::task::spawn_blocking(move || keep(&root, &subfolder, &name, &bytes)).await;
        match kept {
            Ok(Ok(name)) => file["filename"] = name.into(),
            Ok(Err(error)) => tracing::warn!(error, "what the ComfyUI behind this server saved is not kept"),
            Err(_) => tracing::error!("keeping a file ended in a panic"),
        }
    }
}

/// Writes a file whole and never over another; its name.
fn keep(root: &Path, subfolder: &str, name: &str, bytes: &[u8]) -> Result<String, String> {
    let (stem, extension) = match name.rsplit_once('.') {
        Some((stem, extension)) => (stem.to_owned(), format!(".{extension}")),
        None => (name.to_owned(), String::new()),
    };
    for attempt in 0..10_000 {
        let name = match attempt {
            0 => name.to_owned(),
            n => format!("{stem} ({n}){extension}"),
        };
        let inside = if subfolder.is_empty() { name.clone() } else { format!("{subfolder}/{name}") };
        let path = place_below(root, &inside).map_err(|error| error.to_string())?;
        match write_new(&path, bytes).map_err(|error| error.to_string())? {
            true => return Ok(name),
            false => continue,
        }
    }
    Err(format!("'{name}': every name like it is taken"))
}
