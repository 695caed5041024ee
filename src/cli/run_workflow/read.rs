//! Workflows from files: JSON in API format, a request body of `POST /prompt`, or the text chunks of a PNG.

use std::io::{Read, Write};
use std::path::Path;

use super::CommandError;
use crate::picture::read_text_chunks;
use crate::workflow::graph::GraphError;
use crate::workflow::{Graph, Ordered};

/// Most bytes of a workflow, or of a picture that carries one.
const MOST_BYTES: u64 = 256 << 20;
/// What every PNG begins with.
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";

/// A workflow and what goes with it.
pub(super) struct SourceFile {
    /// Its nodes.
    pub(super) graph: Graph,
    /// What pictures carry beside it: the front end's own form of the workflow.
    pub(super) extra_pnginfo: Option<Ordered>,
}

/// Reads what `path` names; `-` is standard input.
pub(super) fn workflow(path: &Path) -> Result<SourceFile, CommandError> {
    let name = path.display().to_string();
    let cannot = |e: std::io::Error| {
        CommandError::failure(format!("{name}: cannot read the workflow: {e}"), "check the path")
    };
    let mut bytes = Vec::new();
    if path.as_os_str() == "-" {
        std::io::stdin().take(MOST_BYTES + 1).read_to_end(&mut bytes).map_err(cannot)?;
    } else {
        let file = std::fs::File::open(path).map_err(cannot)?;
        file.take(MOST_BYTES + 1).read_to_end(&mut bytes).map_err(cannot)?;
    }
    if bytes.len() as u64 > MOST_BYTES {
        return Err(CommandError::usage(
            format!("{name}: larger than {} MiB", MOST_BYTES >> 20),
            "a workflow is a small file; check the path",
        ));
    }
    if bytes.starts_with(PNG) { of_png(&name, &bytes) } else { of_json(&name, &bytes) }
}

fn of_json(name: &str, bytes: &[u8]) -> Result<SourceFile, CommandError> {
    let graph = Graph::parse(bytes).map_err(|error| bad(name, &error))?;
    let body: Option<Ordered> = serde_json::from_slice(bytes).ok();
    let extra = body.as_ref().and_then(|body| body.get("extra_data")?.get("extra_pnginfo"));
    // A node may be called so.
    let extra = extra.filter(|_| !graph.contains("extra_data"));
    Ok(SourceFile { extra_pnginfo: extra.cloned(), graph })
}

fn of_png(name: &str, bytes: &[u8]) -> Result<SourceFile, CommandError> {
    // The reader of chunks takes a file; standard input is none.
    let mut file = tempfile::NamedTempFile::new().map_err(CommandError::plain)?;
    file.write_all(bytes).map_err(CommandError::plain)?;
    let chunks = read_text_chunks(file.path()).map_err(|error| {
        let message = error.to_string().replace(&file.path().display().to_string(), name);
        CommandError::failure(message, "the picture is damaged; use another")
    })?;
    let mut prompt = None;
    let mut extra = Vec::new();
    for chunk in chunks {
        if chunk.keyword == "prompt" {
            prompt = Some(chunk.text);
        } else if let Ok(json) = serde_json::from_str::<Ordered>(&chunk.text) {
            extra.push((chunk.keyword, json));
        }
    }
    let Some(prompt) = prompt else {
        return Err(CommandError::usage(
            format!("{name}: the picture carries no workflow (no text chunk `prompt`)"),
            "use a PNG as ComfyUI or Darkroom wrote it; most sites take the workflow out",
        ));
    };
    let graph = Graph::parse(prompt.as_bytes()).map_err(|error| bad(name, &error))?;
    let extra = (!extra.is_empty()).then(|| Ordered::Object(extra.into_iter().collect()));
    Ok(SourceFile { graph, extra_pnginfo: extra })
}

fn bad(name: &str, error: &GraphError) -> CommandError {
    CommandError::Usage { message: format!("{name}: {error}"), fix: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::picture::{TextChunk, encode_png};

    fn read(bytes: &[u8]) -> Result<SourceFile, CommandError> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        workflow(file.path())
    }

    #[test]
    fn a_picture_is_read_as_the_workflow_it_carries() {
        let chunk = |keyword: &str, text: &str| TextChunk { keyword: keyword.into(), text: text.into() };
        let chunks = [
            chunk("parameters", "a fox\nSteps: 20"),
            chunk("prompt", r#"{"3": {"class_type": "A", "inputs": {}}}"#),
            chunk("workflow", r#"{"nodes": []}"#),
        ];
        let source = read(&encode_png(1, 1, &[0, 0, 0], &chunks).unwrap()).unwrap();
        assert_eq!(source.graph.class("3"), "A");
        let extra = serde_json::to_string(&source.extra_pnginfo.unwrap()).unwrap();
        assert_eq!(extra, r#"{"workflow":{"nodes":[]}}"#);
        let bare = read(&encode_png(1, 1, &[0, 0, 0], &[]).unwrap()).err().unwrap();
        assert!(bare.to_string().contains("carries no workflow"), "{bare}");
    }

    #[test]
    fn a_request_body_is_read_with_what_pictures_carry() {
        let body =
            br#"{"prompt": {"3": {"class_type": "A"}}, "extra_data": {"extra_pnginfo": {"workflow": 1}}}"#;
        let source = read(body).unwrap();
        assert!(source.graph.contains("3") && source.extra_pnginfo.is_some());
        let front_end = read(br#"{"nodes": [], "links": [], "version": 0.4}"#).err().unwrap();
        assert!(front_end.to_string().contains("Export (API)"), "{front_end}");
    }
}
