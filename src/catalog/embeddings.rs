//! Embeddings (textual inversion) that prompts name, in the folder `embeddings` of the models folder. A name only ever
//! picks one of the files that lie there; it never becomes a path.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use darkroom_models::clip::Embedding;
use darkroom_pipelines::prompt::EmbeddingSource;

use super::{Catalog, DEPTH, MOST};

/// Below the models folder.
const FOLDER: &str = "embeddings";
/// What is read.
const READ: &str = ".safetensors";
/// What ComfyUI reads as well, and in what order.
const EXTENSIONS: [&str; 4] = ["", READ, ".pt", ".bin"];

impl Catalog {
    /// What prompts may name; `None` without a models folder.
    pub fn embeddings(&self) -> Option<Arc<dyn EmbeddingSource>> {
        let folder = self.folder.as_ref()?.join(FOLDER);
        Some(Arc::new(Embeddings { folder }))
    }
}

/// A folder of embeddings. It is looked through whenever a prompt names one, so files may come and go.
#[derive(Debug)]
struct Embeddings {
    folder: PathBuf,
}

impl EmbeddingSource for Embeddings {
    fn find(&self, name: &str) -> Result<Option<Arc<Embedding>>, String> {
        let mut files = Vec::new();
        look(&self.folder, "", DEPTH, &mut files);
        // ComfyUI goes through the folders in no certain order; here the outermost count first, then by name.
        files.sort_by(|(a, _), (b, _)| {
            a.matches('/').count().cmp(&b.matches('/').count()).then_with(|| a.cmp(b))
        });
        let named = |listed: &str, extension: &str| {
            let start = listed.strip_suffix(extension).and_then(|start| start.strip_suffix(name));
            start.is_some_and(|folder| folder.is_empty() || folder.ends_with('/'))
        };
        let called = |listed: &str| EXTENSIONS.iter().any(|extension| named(listed, extension));
        if name.is_empty() {
            return Ok(None);
        }
        let Some((listed, path)) = files.into_iter().find(|(listed, _)| called(listed)) else {
            return Ok(None);
        };
        if !listed.to_ascii_lowercase().ends_with(READ) {
            return Err(format!("{listed} may hold code; only {READ} files are read: convert it"));
        }
        match Embedding::read(&path) {
            Ok(embedding) => Ok(Some(Arc::new(embedding))),
            Err(error) => Err(super::without_path(&error.to_string(), &path, &listed)),
        }
    }
}

/// Files below `folder` with their folders. Links are followed, as for models.
fn look(folder: &Path, prefix: &str, depth: usize, found: &mut Vec<(String, PathBuf)>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        if found.len() >= MOST {
            return;
        }
        let Ok(name) = entry.file_name().into_string() else { continue };
        let path = entry.path();
        if name.starts_with('.') {
            continue;
        }
        if path.is_dir() {
            if depth > 0 {
                look(&path, &format!("{prefix}{name}/"), depth - 1, found);
            }
        } else if EXTENSIONS[1..].iter().any(|known| name.to_ascii_lowercase().ends_with(known)) {
            found.push((format!("{prefix}{name}"), path));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::fs;

    use candle_core::{Device, Tensor};

    use super::*;

    /// An embedding whose only value tells it from others.
    fn save(path: &Path, value: f32) {
        let tensor = Tensor::new(&[[value]], &Device::Cpu).unwrap();
        candle_core::safetensors::save(&HashMap::from([("emb_params", tensor)]), path).unwrap();
    }

    #[test]
    fn a_name_picks_a_file_of_the_folder_and_nothing_else() {
        let models = tempfile::TempDir::new().unwrap();
        let folder = models.path().join(FOLDER);
        fs::create_dir_all(folder.join("sdxl/deep")).unwrap();
        save(&folder.join("bad.safetensors"), 1.0);
        save(&folder.join("sdxl/bad.safetensors"), 2.0);
        save(&folder.join("sdxl/deep/v1.5.safetensors"), 3.0);
        save(&models.path().join("secret.safetensors"), 4.0);
        fs::write(folder.join("old.pt"), b"pickle").unwrap();
        fs::write(folder.join("broken.safetensors"), b"no").unwrap();
        let catalog = Catalog::open(Some(models.path()), None).unwrap();
        let source = catalog.embeddings().unwrap();
        let value = |name: &str| source.find(name).unwrap().map(|found| found.vectors("clip_l")[0][0]);
        for (name, expected) in [
            ("bad", Some(1.0)),
            ("bad.safetensors", Some(1.0)),
            ("sdxl/bad", Some(2.0)),
            ("v1.5", Some(3.0)),
            ("deep/v1.5.safetensors", Some(3.0)),
            ("v1", None),
            ("ad", None),
            ("", None),
            ("../secret", None),
            ("../secret.safetensors", None),
            ("../embeddings/bad", None),
            ("/bad", None),
            ("sdxl/../bad", None),
        ] {
            assert_eq!(value(name), expected, "{name}");
        }
        assert!(source.find("old").unwrap_err().contains("convert"));
        let broken = source.find("broken").unwrap_err();
        assert!(broken.starts_with("broken.safetensors: "), "{broken}");
        assert!(Catalog::open(None, None).unwrap().embeddings().is_none());
    }
}
