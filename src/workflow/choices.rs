//! The names behind lists of choices: files of model folders as ComfyUI lists them, what is built in, files of the
//! input folder. Folders are read again only when one of them has changed.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use super::folders::Folders;
use super::interface::Choices;
use crate::catalog::{AuxiliaryKind, Catalog};

/// Files that hold weights, as ComfyUI's `supported_pt_extensions`.
const WEIGHTS: [&str; 8] = ["ckpt", "pt", "pt2", "bin", "pth", "safetensors", "pkl", "sft"];
/// Pictures, by the extensions that Python's `mimetypes` knows them under.
const PICTURES: [&str; 14] =
    ["png", "jpg", "jpeg", "jpe", "webp", "gif", "bmp", "tif", "tiff", "ico", "ppm", "pgm", "pbm", "avif"];
/// Most files that are listed of a folder.
const MOST_FILES: usize = 20_000;
/// Levels of folders that are looked through.
const DEPTH: usize = 8;

/// Remembers what folders hold.
#[derive(Debug, Default)]
pub struct FileLists {
    known: Mutex<HashMap<PathBuf, Listing>>,
}

/// What a folder held, and when each folder in it had changed last.
#[derive(Debug, Clone, Default)]
struct Listing {
    files: Vec<String>,
    folders: Vec<(PathBuf, Option<SystemTime>)>,
}

impl FileLists {
    /// The names behind a list of choices.
    pub fn names(&self, choices: &Choices, folders: &Folders, catalog: &Catalog) -> Vec<String> {
        match choices {
            Choices::Fixed(names) => names.clone(),
            Choices::InputFiles => self.pictures(&folders.input),
            Choices::Models { folder, also } => {
                let mut names: Vec<String> = also.iter().map(|name| (*name).to_owned()).collect();
                names.extend(self.models(folder, folders, catalog));
                names
            }
        }
    }

    /// Files of a folder of models by ComfyUI's name of it, sorted, with their folders; then what is built in or lies
    /// elsewhere in the models folder.
    pub fn models(&self, folder: &str, folders: &Folders, catalog: &Catalog) -> Vec<String> {
        let mut names = Vec::new();
        if let Some(models) = &folders.models {
            for path in places(folder) {
                names.extend(self.below(&models.join(path), DEPTH));
            }
        }
        names.retain(|name| has_extension(name, &WEIGHTS));
        names.sort();
        names.dedup();
        let others: Vec<String> = match folder {
            "checkpoints" => catalog.list().iter().map(crate::catalog::Entry::file_name).collect(),
            "loras" => built_in(catalog, AuxiliaryKind::Lora),
            "controlnet" => built_in(catalog, AuxiliaryKind::ControlNet),
            _ => Vec::new(),
        };
        for name in others {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }

    /// Pictures of a folder itself, sorted.
    fn pictures(&self, folder: &Path) -> Vec<String> {
        let mut names = self.below(folder, 0);
        names.retain(|name| has_extension(name, &PICTURES));
        names.sort();
        names
    }

    /// All files below a folder.
    fn below(&self, folder: &Path, depth: usize) -> Vec<String> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(listing) = known.get(folder)
            && listing.folders.iter().all(|(path, changed)| modified(path) == *changed)
        {
            return listing.files.clone();
        }
        let mut listing = Listing::default();
        look(folder, "", depth, &mut listing);
        let files = listing.files.clone();
        known.insert(folder.to_owned(), listing);
        files
    }
}

fn built_in(catalog: &Catalog, kind: AuxiliaryKind) -> Vec<String> {
    let all = catalog.auxiliaries(kind);
    all.iter().filter(|entry| entry.is_built_in()).map(crate::catalog::AuxiliaryEntry::file_name).collect()
}

/// Where ComfyUI keeps the files of a folder, below the models folder.
fn places(folder: &str) -> Vec<&str> {
    match folder {
        "unet" | "diffusion_models" => vec!["unet", "diffusion_models"],
        "clip" | "text_encoders" => vec!["text_encoders", "clip"],
        "controlnet" => vec!["controlnet", "t2i_adapter"],
        other => vec![other],
    }
}

fn has_extension(name: &str, extensions: &[&str]) -> bool {
    let extension = Path::new(name).extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    extensions.iter().any(|known| known.eq_ignore_ascii_case(extension))
}

fn modified(folder: &Path) -> Option<SystemTime> {
    std::fs::metadata(folder).ok()?.modified().ok()
}

/// Links are followed, as people use them to share models between programs.
fn look(folder: &Path, prefix: &str, depth: usize, listing: &mut Listing) {
    listing.folders.push((folder.to_owned(), modified(folder)));
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        if listing.files.len() >= MOST_FILES {
            return;
        }
        let path = entry.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if path.is_dir() {
            if depth > 0 && name != ".git" {
                look(&path, &format!("{prefix}{name}/"), depth - 1, listing);
            }
        } else if path.is_file() {
            listing.files.push(format!("{prefix}{name}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn folders(root: &Path) -> Folders {
        let under = |name: &str| root.join(name);
        Folders {
            input: under("input"),
            output: under("output"),
            temp: under("temp"),
            user: under("user"),
            models: Some(under("models")),
        }
    }

    #[test]
    fn files_are_listed_as_comfyui_sorts_them_and_what_is_built_in_comes_last() {
        let root = tempfile::TempDir::new().unwrap();
        let folders = folders(root.path());
        let loras = root.path().join("models/loras");
        fs::create_dir_all(loras.join("style/.git")).unwrap();
        for name in ["b.safetensors", "Z.pt", "a.txt", "style/x.safetensors", "style/.git/y.pt"] {
            fs::write(loras.join(name), b"").unwrap();
        }
        let catalog = Catalog::open(Some(&root.path().join("models")), None).unwrap();
        let lists = FileLists::default();
        let choices = Choices::Models { folder: "loras", also: &["None"] };
        let names = lists.names(&choices, &folders, &catalog);
        assert_eq!(
            names,
            [
                "None",
                "Z.pt",
                "b.safetensors",
                "style/x.safetensors",
                "tinychan.safetensors",
                "tinyvio.safetensors"
            ]
        );
        let checkpoints =
            lists.names(&Choices::Models { folder: "checkpoints", also: &[] }, &folders, &catalog);
        assert_eq!(checkpoints, ["tiny-sdxl.safetensors"]);
    }

    #[test]
    fn only_pictures_of_the_input_folder_itself_can_be_chosen_and_new_ones_appear() {
        let root = tempfile::TempDir::new().unwrap();
        let folders = folders(root.path());
        fs::create_dir_all(folders.input.join("sub")).unwrap();
        fs::create_dir_all(root.path().join("models")).unwrap();
        for name in ["b.PNG", "a.jpg", "notes.txt", "sub/c.png"] {
            fs::write(folders.input.join(name), b"").unwrap();
        }
        let catalog = Catalog::open(None, None).unwrap();
        let lists = FileLists::default();
        assert_eq!(lists.names(&Choices::InputFiles, &folders, &catalog), ["a.jpg", "b.PNG"]);
        fs::write(folders.input.join("0.webp"), b"").unwrap();
        // Folders whose time stands still between two writes are told apart by setting it.
        let folder = fs::File::open(&folders.input).unwrap();
        folder.set_modified(SystemTime::now() + std::time::Duration::from_secs(2)).unwrap();
        assert_eq!(lists.names(&Choices::InputFiles, &folders, &catalog), ["0.webp", "a.jpg", "b.PNG"]);
    }
}
