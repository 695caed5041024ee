//! `darkroom inspect`: what a weight file, a model folder or a picture is, from its header alone.

use std::io::Read;
use std::path::Path;

use candle_core::Device;
use darkroom_models::checkpoint;
use darkroom_pipelines::{LoadOptions, MemoryPlan};
use serde_json::json;

use super::args::InspectArgs;
use super::error::CommandError;
use super::print_result;
use crate::catalog::{self, Opened};
use crate::picture::{TextChunk, read_text_chunks};

const PNG_SIGNATURE: &[u8; 8] = b"\x89PNG\r\n\x1a\n";
/// Most characters of a text chunk that are shown without `--json`.
const MAX_SHOWN: usize = 4000;

pub(super) fn run(args: &InspectArgs) -> Result<(), CommandError> {
    if args.plan {
        return plan(args);
    }
    if is_png(&args.file) {
        return picture(args);
    }
    let found = checkpoint::inspect(&args.file).map_err(|e| {
        CommandError::failure(
            e,
            "inspect reads .safetensors files, diffusers folders and PNGs; download a damaged file again",
        )
    })?;
    if args.json {
        return print_result(&serde_json::to_string_pretty(&found).map_err(CommandError::plain)?);
    }
    print_result(printable(&found.to_string()).trim_end())
}

/// Where Qwen-Image's networks would go on a card.
fn plan(args: &InspectArgs) -> Result<(), CommandError> {
    let opened = catalog::qwen_image::open_at(&args.file, None, &Device::Cpu).map_err(|e| {
        CommandError::failure(
            e,
            "a plan is of a whole Qwen-Image: its folder, or its file in diffusion_models/",
        )
    })?;
    let Opened::QwenImage(parts) = opened else {
        return Err(CommandError::usage(
            "--plan is for Qwen-Image",
            "Stable Diffusion's networks are always held whole",
        ));
    };
    let options = LoadOptions { budget: Some(args.memory), ..LoadOptions::default() };
    let plan = MemoryPlan::for_card(&parts, &options);
    if args.json {
        let mut said = serde_json::to_value(plan).map_err(CommandError::plain)?;
        said["resident_bytes"] = json!(plan.resident_bytes());
        said["peak_bytes"] = json!(plan.peak_bytes());
        return print_result(&serde_json::to_string_pretty(&said).map_err(CommandError::plain)?);
    }
    print_result(&format!("{}:\n{plan}", printable(&parts.origin)))
}

fn is_png(path: &Path) -> bool {
    let mut start = [0; 8];
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut start));
    read.is_ok() && &start == PNG_SIGNATURE
}

/// What a PNG says about how it was made.
fn picture(args: &InspectArgs) -> Result<(), CommandError> {
    let chunks = read_text_chunks(&args.file)
        .map_err(|e| CommandError::failure(e, "make or download the file again"))?;
    if args.json {
        let texts: serde_json::Map<_, _> =
            chunks.into_iter().map(|TextChunk { keyword, text }| (keyword, text.into())).collect();
        let found = json!({ "kind": "png", "text": texts });
        return print_result(&serde_json::to_string_pretty(&found).map_err(CommandError::plain)?);
    }
    if chunks.is_empty() {
        return print_result("a PNG that does not say how it was made");
    }
    for TextChunk { keyword, text } in &chunks {
        let shown: String = text.chars().take(MAX_SHOWN).collect();
        let more = if shown.len() < text.len() { " …" } else { "" };
        print_result(&format!("{}:\n{}{more}\n", printable(keyword), printable(&shown)))?;
    }
    Ok(())
}

/// A file's text without control characters, which could command the terminal.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || *c == '\n').collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_files_cannot_command_the_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\nc\u{7}\r"), "a[2Jb\nc");
    }
}
