//! Files of models, by ComfyUI's names of their folders. What cannot be loaded is not listed, and only what is listed
//! has a path.

use std::path::{Path, PathBuf};

use super::Folders;
use crate::catalog::AuxiliaryKind;
use crate::embedded;
use crate::expressions::Vocabulary;

/// Levels of folders that are looked through.
const DEPTH: usize = 8;
/// Most files of a folder that are listed.
const MOST: usize = 10_000;
/// The format of weights that is loaded.
const WEIGHTS: &str = ".safetensors";

/// A folder of models: ComfyUI's name, folders below the models folder, and which files count.
struct ModelFolder {
    name: &'static str,
    below: &'static [&'static str],
    extension: Option<&'static str>,
}

const fn weights(name: &'static str, below: &'static [&'static str]) -> ModelFolder {
    ModelFolder { name, below, extension: Some(WEIGHTS) }
}

/// In ComfyUI's order, then those of extensions.
const FOLDERS: &[ModelFolder] = &[
    weights("checkpoints", &["checkpoints"]),
    ModelFolder { name: "configs", below: &["configs"], extension: Some(".yaml") },
    weights("loras", &["loras"]),
    weights("vae", &["vae"]),
    weights("text_encoders", &["text_encoders", "clip"]),
    weights("diffusion_models", &["unet", "diffusion_models"]),
    weights("clip_vision", &["clip_vision"]),
    weights("style_models", &["style_models"]),
    weights("embeddings", &["embeddings"]),
    // Folders, not files: none is listed.
    ModelFolder { name: "diffusers", below: &["diffusers"], extension: None },
    weights("vae_approx", &["vae_approx"]),
    weights("controlnet", &["controlnet", "t2i_adapter"]),
    weights("gligen", &["gligen"]),
    weights("upscale_models", &["upscale_models"]),
    ModelFolder { name: "custom_nodes", below: &[], extension: None },
    weights("hypernetworks", &["hypernetworks"]),
    weights("photomaker", &["photomaker"]),
    weights("classifiers", &["classifiers"]),
    weights("model_patches", &["model_patches"]),
    weights("audio_encoders", &["audio_encoders"]),
    weights("ultralytics_bbox", &["ultralytics/bbox"]),
    weights("ultralytics_segm", &["ultralytics/segm"]),
    weights("ultralytics", &["ultralytics"]),
];

fn folder(name: &str) -> Option<&'static ModelFolder> {
    let name = match name {
        "unet" => "diffusion_models",
        "clip" => "text_encoders",
        name => name,
    };
    FOLDERS.iter().find(|folder| folder.name == name)
}

impl Folders {
    /// ComfyUI's names of all folders of models.
    pub fn model_folders() -> impl Iterator<Item = &'static str> {
        FOLDERS.iter().map(|folder| folder.name)
    }

    /// Where the files of a folder of models lie, in the order in which they are looked for; `None` for an unknown
    /// folder.
    pub fn model_paths(&self, name: &str) -> Option<Vec<PathBuf>> {
        let folder = folder(name)?;
        Some(
            self.models
                .iter()
                .flat_map(|models| folder.below.iter().map(|below| models.join(below)))
                .collect(),
        )
    }

    /// Names of the files of a folder of models, with their folders, sorted; then what is built in. `None` for an
    /// unknown folder.
    pub fn model_files(&self, name: &str) -> Option<Vec<String>> {
        let mut names: Vec<String> = self.found(name)?.into_iter().map(|(name, _)| name).collect();
        names.sort();
        names.dedup();
        for built_in in built_in(name) {
            if !names.contains(&built_in) {
                names.push(built_in);
            }
        }
        Some(names)
    }

    /// The file that a folder of models lists under this name; `None` where it lists none, or one that is built in.
    pub fn model_file(&self, folder: &str, name: &str) -> Option<PathBuf> {
        self.found(folder)?.into_iter().find(|(listed, _)| listed == name).map(|(_, path)| path)
    }

    /// Names and paths; where two have one name, the one that counts is first.
    fn found(&self, name: &str) -> Option<Vec<(String, PathBuf)>> {
        let mut found = Vec::new();
        if let Some(extension) = folder(name)?.extension {
            for root in self.model_paths(name)? {
                look(&root, "", DEPTH, extension, &mut found);
            }
        }
        Some(found)
    }
}

/// What is compiled in, as a folder of models lists it.
fn built_in(name: &str) -> Vec<String> {
    let auxiliaries = |kind| embedded::auxiliaries(kind).iter().map(|(id, _)| (*id).to_owned()).collect();
    let ids: Vec<String> = match folder(name).map(|folder| folder.name) {
        Some("checkpoints") => Vocabulary::embedded().into_iter().map(|words| words.model).collect(),
        Some("loras") => auxiliaries(AuxiliaryKind::Lora),
        Some("controlnet") => auxiliaries(AuxiliaryKind::ControlNet),
        Some("ultralytics_bbox") => auxiliaries(AuxiliaryKind::Detector),
        _ => Vec::new(),
    };
    ids.into_iter().map(|id| id + WEIGHTS).collect()
}

/// Files below `folder`. Links are followed as people use them to share models between programs; what they lead to is
/// still only what someone put there.
fn look(folder: &Path, prefix: &str, depth: usize, extension: &str, found: &mut Vec<(String, PathBuf)>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        if found.len() >= MOST {
            return;
        }
        let Ok(name) = entry.file_name().into_string() else { continue };
        if name.starts_with('.') {
            continue;
        }
        let path = entry.path();
        let kind = entry.file_type().ok();
        let is_folder = if kind.is_some_and(|kind| kind.is_symlink()) {
            path.is_dir()
        } else {
            kind.is_some_and(|kind| kind.is_dir())
        };
        if is_folder {
            if depth > 0 {
                look(&path, &format!("{prefix}{name}/"), depth - 1, extension, found);
            }
        } else if name.to_ascii_lowercase().ends_with(extension) && path.is_file() {
            found.push((format!("{prefix}{name}"), path));
        }
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn files_are_listed_with_their_folders_and_what_is_built_in_comes_last() {
        let base = TempDir::new().unwrap();
        let models = base.path().join("models");
        for file in [
            "checkpoints/z.safetensors",
            "checkpoints/sdxl/a.safetensors",
            "checkpoints/old.ckpt",
            "checkpoints/.hidden.safetensors",
            "clip/l.safetensors",
            "text_encoders/g.safetensors",
            "ultralytics/bbox/face.safetensors",
        ] {
            let path = models.join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, b"").unwrap();
        }
        let folders = Folders::below(base.path(), Some(models.clone()));
        let list = |name| folders.model_files(name).unwrap();
        assert_eq!(list("checkpoints"), ["sdxl/a.safetensors", "z.safetensors", "tiny-sdxl.safetensors"]);
        assert_eq!(list("clip"), ["g.safetensors", "l.safetensors"]);
        assert_eq!(list("text_encoders"), list("clip"));
        assert_eq!(list("ultralytics_bbox"), ["face.safetensors"]);
        assert_eq!(list("ultralytics"), ["bbox/face.safetensors"]);
        assert_eq!(list("vae"), Vec::<String>::new());
        assert_eq!(folders.model_files("nonsense"), None);
        let path = folders.model_file("checkpoints", "sdxl/a.safetensors").unwrap();
        assert_eq!(path, models.join("checkpoints/sdxl/a.safetensors"));
        for name in ["../text_encoders/g.safetensors", "old.ckpt", "/etc/passwd", "", ".hidden.safetensors"] {
            assert_eq!(folders.model_file("checkpoints", name), None, "{name}");
        }
    }

    #[test]
    fn without_a_models_folder_there_is_what_is_built_in() {
        let folders = Folders::below(Path::new("nowhere"), None);
        assert_eq!(folders.model_files("checkpoints").unwrap(), ["tiny-sdxl.safetensors"]);
        assert!(folders.model_files("loras").unwrap().contains(&"tinychan.safetensors".to_owned()));
        assert_eq!(folders.model_files("upscale_models").unwrap(), Vec::<String>::new());
    }
}
