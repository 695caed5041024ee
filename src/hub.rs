//! Models by reference, `org/name`: the files that a pipeline needs, downloaded once from the Hugging Face Hub
//! into its usual cache (`HF_HOME`, else `~/.cache/huggingface`), and found there again without a network.

use std::path::PathBuf;

use hf_hub::api::sync::{ApiBuilder, ApiRepo};
use hf_hub::{Cache, Repo};

/// Parts of a diffusers folder that hold weights.
const PARTS: [&str; 4] = ["text_encoder", "text_encoder_2", "unet", "vae"];
/// Small files of a diffusers folder that loading reads where they exist.
const CONFIGS: [&str; 2] = ["model_index.json", "scheduler/scheduler_config.json"];

/// Why a model could not be had from the hub.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// The hub did not answer or refused, and the cache does not have the model.
    #[error("{model}: not in the local cache, and the Hugging Face Hub cannot be asked: {reason}")]
    Unreachable {
        /// The reference.
        model: String,
        /// What went wrong.
        reason: String,
    },
    /// A file could not be downloaded.
    #[error("{model}: cannot download {file}: {reason}")]
    Download {
        /// The reference.
        model: String,
        /// The file in the repository.
        file: String,
        /// What went wrong.
        reason: String,
    },
    /// The repository holds nothing that can be loaded.
    #[error("{model}: {reason}")]
    NoModel {
        /// The reference.
        model: String,
        /// What is there instead.
        reason: String,
    },
}

/// Whether `text` reads as `org/name`.
pub fn is_reference(text: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && part.len() <= 96
            && !part.starts_with('.')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    text.split_once('/').is_some_and(|(org, name)| part(org) && part(name))
}

/// The local folder (diffusers layout) or file of the model `reference`, downloaded where it is not cached.
pub fn fetch(reference: &str, show_progress: bool) -> Result<PathBuf, HubError> {
    let cached = Cache::from_env().repo(Repo::model(reference.to_owned()));
    let unreachable = |reason: String| HubError::Unreachable { model: reference.to_owned(), reason };
    let api = ApiBuilder::from_env()
        .with_progress(show_progress)
        .with_user_agent("darkroom", env!("CARGO_PKG_VERSION"))
        .build()
        .map_err(|e| unreachable(e.to_string()))?;
    let repo = api.model(reference.to_owned());
    let listed = match repo.info() {
        Ok(info) => info.siblings.into_iter().map(|sibling| sibling.rfilename).collect::<Vec<_>>(),
        Err(e) => {
            // A diffusers folder that was downloaded before is whole: its index is fetched last.
            let index = cached.get("model_index.json").ok_or_else(|| unreachable(e.to_string()))?;
            tracing::warn!(reference, error = %e, "the hub cannot be asked; using the cached copy");
            return Ok(index.parent().map(PathBuf::from).unwrap_or(index));
        }
    };
    let wanted =
        needed(&listed).map_err(|reason| HubError::NoModel { model: reference.to_owned(), reason })?;
    let mut last = PathBuf::new();
    for file in &wanted {
        last = download(&repo, reference, file)?;
    }
    let is_folder = last.file_name().is_some_and(|name| name == "model_index.json");
    Ok(if is_folder { last.parent().map(PathBuf::from).unwrap_or(last) } else { last })
}

fn download(repo: &ApiRepo, model: &str, file: &str) -> Result<PathBuf, HubError> {
    repo.get(file).map_err(|e| HubError::Download {
        model: model.to_owned(),
        file: file.to_owned(),
        reason: e.to_string(),
    })
}

/// Which of a repository's `files` a pipeline needs: a diffusers folder's configs and weights (the half-precision
/// ones where they exist; `model_index.json` last), else the one single-file checkpoint. The reason when neither
/// is there.
fn needed(files: &[String]) -> Result<Vec<String>, String> {
    let has = |name: &str| files.iter().any(|file| file == name);
    if has("model_index.json") {
        return needed_of_folder(files);
    }
    let mut checkpoints =
        files.iter().filter(|file| file.ends_with(".safetensors") && !file.contains(['/', '\\']));
    match (checkpoints.next(), checkpoints.count()) {
        (Some(only), 0) => Ok(vec![only.clone()]),
        (Some(_), more) => Err(format!(
            "the repository has {} .safetensors files and no model_index.json; download the one you want and \
             pass its path",
            more + 1
        )),
        (None, _) => Err("the repository has neither model_index.json nor a .safetensors file".to_owned()),
    }
}

fn needed_of_folder(files: &[String]) -> Result<Vec<String>, String> {
    let has = |name: &str| files.iter().any(|file| file == name);
    if has("transformer/config.json") {
        return needed_of_qwen_image(files);
    }
    let mut wanted = Vec::new();
    for part in PARTS {
        let config = format!("{part}/config.json");
        if !has(&config) {
            if part == "text_encoder_2" {
                continue; // SD 1.5 has one text encoder
            }
            return Err(format!(
                "the repository has no {config}; only SD 1.5, SDXL and Qwen-Image pipelines are read"
            ));
        }
        wanted.push(config);
        let stem = if part.starts_with("text") { "model" } else { "diffusion_pytorch_model" };
        let single = [format!("{part}/{stem}.fp16.safetensors"), format!("{part}/{stem}.safetensors")];
        let Some(weights) = single.into_iter().find(|file| has(file)) else {
            return Err(format!("the repository has no {part}/{stem}.safetensors"));
        };
        wanted.push(weights);
    }
    wanted.extend(CONFIGS.iter().rev().filter(|file| has(file)).map(|file| (*file).to_owned()));
    Ok(wanted)
}

/// The same of Qwen-Image, whose networks are in several files each: an index names them.
fn needed_of_qwen_image(files: &[String]) -> Result<Vec<String>, String> {
    let has = |name: &str| files.iter().any(|file| file == name);
    let within = |part: &str| -> Vec<String> {
        files.iter().filter(|file| file.starts_with(&format!("{part}/"))).cloned().collect()
    };
    let mut wanted = Vec::new();
    for (part, stem) in [
        ("text_encoder", "model"),
        ("transformer", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
    ] {
        let config = format!("{part}/config.json");
        if !has(&config) {
            return Err(format!("the repository has no {config}"));
        }
        wanted.push(config);
        let (whole, index) =
            (format!("{part}/{stem}.safetensors"), format!("{part}/{stem}.safetensors.index.json"));
        if has(&whole) {
            wanted.push(whole);
        } else if has(&index) {
            wanted.push(index);
            let shard = format!("{part}/{stem}-");
            wanted.extend(
                within(part)
                    .into_iter()
                    .filter(|file| file.starts_with(&shard) && file.ends_with(".safetensors")),
            );
        } else {
            return Err(format!("the repository has no {whole}, whole or in parts"));
        }
    }
    let tokenizer: Vec<String> = within("tokenizer")
        .into_iter()
        .filter(|file| file.ends_with(".json") || file.ends_with(".txt"))
        .collect();
    if tokenizer.is_empty() {
        return Err("the repository has no tokenizer/".to_owned());
    }
    wanted.extend(tokenizer);
    wanted.extend(CONFIGS.iter().rev().filter(|file| has(file)).map(|file| (*file).to_owned()));
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn references_are_told_from_paths() {
        for yes in ["stabilityai/stable-diffusion-xl-base-1.0", "a/b"] {
            assert!(is_reference(yes), "{yes}");
        }
        for no in ["model.safetensors", "./a/b", "/a/b", "a/b/c", "../a", "a/..", "a b/c", "", "/", "a/"] {
            assert!(!is_reference(no), "{no}");
        }
    }

    #[test]
    fn of_a_diffusers_folder_only_the_half_precision_weights_and_configs_are_needed() {
        let wanted = needed(&files(&[
            "model_index.json",
            "README.md",
            "sd_xl_base_1.0.safetensors",
            "scheduler/scheduler_config.json",
            "text_encoder/config.json",
            "text_encoder/model.safetensors",
            "text_encoder/model.fp16.safetensors",
            "text_encoder_2/config.json",
            "text_encoder_2/model.safetensors",
            "unet/config.json",
            "unet/diffusion_pytorch_model.safetensors",
            "unet/diffusion_pytorch_model.bin",
            "vae/config.json",
            "vae/diffusion_pytorch_model.fp16.safetensors",
            "vae_decoder/model.onnx",
        ]))
        .unwrap();
        assert_eq!(
            wanted,
            [
                "text_encoder/config.json",
                "text_encoder/model.fp16.safetensors",
                "text_encoder_2/config.json",
                "text_encoder_2/model.safetensors",
                "unet/config.json",
                "unet/diffusion_pytorch_model.safetensors",
                "vae/config.json",
                "vae/diffusion_pytorch_model.fp16.safetensors",
                "scheduler/scheduler_config.json",
                "model_index.json",
            ]
        );
    }

    #[test]
    fn a_repository_of_one_checkpoint_gives_that_file() {
        assert_eq!(needed(&files(&["README.md", "m.safetensors"])).unwrap(), ["m.safetensors"]);
    }

    #[test]
    fn what_cannot_be_loaded_is_said() {
        assert!(needed(&files(&["a.safetensors", "b.safetensors"])).unwrap_err().contains("2 .safetensors"));
        assert!(needed(&files(&["pytorch_model.bin"])).unwrap_err().contains("neither"));
        assert!(needed(&files(&["../../evil.safetensors"])).unwrap_err().contains("neither"));
        let transformer =
            files(&["model_index.json", "text_encoder/config.json", "text_encoder/model.safetensors"]);
        assert!(needed(&transformer).unwrap_err().contains("unet/config.json"));
    }

    #[test]
    fn of_qwen_image_every_shard_and_the_tokenizer_are_needed_and_the_index_of_the_model_comes_last() {
        let mut there = vec![
            "README.md",
            "model_index.json",
            "scheduler/scheduler_config.json",
            "text_encoder/config.json",
            "text_encoder/model-00001-of-00002.safetensors",
            "text_encoder/model-00002-of-00002.safetensors",
            "text_encoder/model.safetensors.index.json",
            "tokenizer/merges.txt",
            "tokenizer/vocab.json",
            "tokenizer/chat_template.jinja",
            "transformer/config.json",
            "transformer/diffusion_pytorch_model-00001-of-00001.safetensors",
            "transformer/diffusion_pytorch_model.safetensors.index.json",
            "vae/config.json",
            "vae/diffusion_pytorch_model.safetensors",
        ];
        let wanted = needed(&files(&there)).unwrap();
        assert_eq!(wanted.last().map(String::as_str), Some("model_index.json"));
        let mut names: Vec<&str> = wanted.iter().map(String::as_str).collect();
        names.sort_unstable();
        let mut expected = there.clone();
        expected.retain(|name| !matches!(*name, "README.md" | "tokenizer/chat_template.jinja"));
        assert_eq!(names, expected);
        there.retain(|name| !name.starts_with("tokenizer/"));
        assert!(needed(&files(&there)).unwrap_err().contains("tokenizer"));
    }
}
