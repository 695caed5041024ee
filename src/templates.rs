//! Template pictures, which keep a pack's pictures in place: sets of pictures named after expressions. Some are built
//! in; a folder has more (`SET/EXPRESSION.png`). Only names that were found by looking are ever opened, so no request
//! can name a path. Plain files: what is done with them is elsewhere.

use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Most sets of a folder, and most pictures of a set.
const MOST: usize = 1000;

type BuiltIn = (&'static str, &'static [(&'static str, &'static [u8])]);

macro_rules! built_in {
    ($set:literal) => {
        built_in!($set: "angry", "blush_embarrassed", "crying", "laugh", "neutral_resting", "sad", "scared", "sleepy",
            "smile_gentle", "smirk_confident", "surprised", "wink")
    };
    ($set:literal: $($name:literal),+) => {
        ($set, &[$(
            ($name, include_bytes!(concat!("../assets/templates/", $set, "/", $name, ".png")) as &[u8]),
        )+])
    };
}

/// The sets that are compiled in; `assets/templates/README.md` says what they show.
static BUILT_IN: &[BuiltIn] = &[built_in!("default"), built_in!("short")];

/// The sets there are.
#[derive(Debug, Clone, Default)]
pub struct Templates {
    folder: Option<PathBuf>,
}

/// A set of templates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateSet {
    /// What requests call it.
    pub name: String,
    /// Whether it is compiled in.
    pub built_in: bool,
    /// Names of its pictures, sorted.
    pub pictures: Vec<String>,
}

/// Why a template could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// The folder is not one.
    #[error("template folder {}: {source}", .folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// No set of that name.
    #[error("there is no template set '{name}'; there are: {known}")]
    NoSet {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// The set has no picture of that name.
    #[error("the template set '{set}' has no picture '{name}'; it has: {known}")]
    NoPicture {
        /// The set.
        set: String,
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// The file could not be read.
    #[error("template '{name}' of the set '{set}': {message}")]
    Unreadable {
        /// The set.
        set: String,
        /// The picture.
        name: String,
        /// Why.
        message: String,
    },
}

impl Templates {
    /// The built-in sets, and those in `folder`. A set there replaces a built-in one of the same name.
    pub fn open(folder: Option<&Path>) -> Result<Self, TemplateError> {
        if let Some(folder) = folder {
            std::fs::read_dir(folder)
                .map_err(|source| TemplateError::Folder { folder: folder.to_owned(), source })?;
        }
        Ok(Self { folder: folder.map(Path::to_owned) })
    }

    /// All sets by name. Looks at the disk.
    pub fn sets(&self) -> Vec<TemplateSet> {
        let mut sets = self.folder.as_deref().map(found).unwrap_or_default();
        for (name, pictures) in BUILT_IN {
            if !sets.iter().any(|set| set.name == *name) {
                let mut pictures: Vec<String> = pictures.iter().map(|(name, _)| (*name).to_owned()).collect();
                pictures.sort();
                sets.push(TemplateSet { name: (*name).to_owned(), built_in: true, pictures });
            }
        }
        sets.sort_by(|a, b| a.name.cmp(&b.name));
        sets
    }

    /// One set.
    pub fn set(&self, name: &str) -> Result<TemplateSet, TemplateError> {
        let sets = self.sets();
        match sets.iter().find(|set| set.name == name) {
            Some(set) => Ok(set.clone()),
            None => {
                let known: Vec<String> = sets.into_iter().map(|set| set.name).collect();
                let known = listed(&known);
                Err(TemplateError::NoSet { name: shown(name), known })
            }
        }
    }

    /// A picture's file, of at most `most` bytes.
    pub fn read(
        &self,
        set: &TemplateSet,
        name: &str,
        most: usize,
    ) -> Result<Cow<'static, [u8]>, TemplateError> {
        if !set.pictures.iter().any(|known| known == name) {
            let known = listed(&set.pictures);
            return Err(TemplateError::NoPicture { set: set.name.clone(), name: shown(name), known });
        }
        let unreadable = |message: String| TemplateError::Unreadable {
            set: set.name.clone(),
            name: name.to_owned(),
            message,
        };
        if set.built_in {
            let picture = BUILT_IN
                .iter()
                .find(|(known, _)| *known == set.name)
                .and_then(|(_, pictures)| pictures.iter().find(|(known, _)| *known == name));
            return match picture {
                Some((_, bytes)) => Ok(Cow::Borrowed(bytes)),
                None => Err(unreadable("it is not built in".into())),
            };
        }
        let Some(folder) = &self.folder else { return Err(unreadable("there is no folder".into())) };
        let path = folder.join(&set.name).join(format!("{name}.png"));
        let mut bytes = Vec::new();
        let file = File::open(&path).map_err(|error| unreadable(error.to_string()))?;
        let limit = (most as u64).saturating_add(1);
        file.take(limit).read_to_end(&mut bytes).map_err(|error| unreadable(error.to_string()))?;
        if bytes.len() > most {
            return Err(unreadable(format!("the file has more than {most} bytes")));
        }
        Ok(Cow::Owned(bytes))
    }
}

/// The sets of a folder: folders with PNG files in them.
fn found(folder: &Path) -> Vec<TemplateSet> {
    let mut sets: Vec<TemplateSet> = names(folder, Path::is_dir)
        .into_iter()
        .map(|name| {
            let pictures = names(&folder.join(&name), Path::is_file);
            let mut pictures: Vec<String> =
                pictures.iter().filter_map(|name| name.strip_suffix(".png")).map(str::to_owned).collect();
            pictures.sort();
            TemplateSet { name, built_in: false, pictures }
        })
        .collect();
    sets.retain(|set| !set.pictures.is_empty());
    sets
}

fn names(folder: &Path, fits: impl Fn(&Path) -> bool) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.flatten().map(|entry| entry.path()).filter(|path| fits(path));
    let names = paths.filter_map(|path| path.file_name()?.to_str().map(str::to_owned));
    names.filter(|name| !name.starts_with('.')).take(MOST).collect()
}

fn listed(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// A client's own text, not at any length.
fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(80).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::TempDir::new().unwrap();
        for (path, bytes) in [
            ("mine/angry.png", &b"angry"[..]),
            ("mine/sad.png", b"sad"),
            ("mine/notes.txt", b"no"),
            ("mine/.hidden.png", b"no"),
            ("empty/readme", b"no"),
            ("loose.png", b"no"),
        ] {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        folder
    }

    #[test]
    fn a_folders_sets_are_its_folders_with_pictures() {
        let folder = folder();
        let templates = Templates::open(Some(folder.path())).unwrap();
        let mine = templates.set("mine").unwrap();
        assert_eq!((mine.pictures.join(","), mine.built_in), ("angry,sad".to_owned(), false));
        assert_eq!(templates.read(&mine, "sad", 100).unwrap(), &b"sad"[..]);
        assert!(templates.set("empty").is_err());
    }

    #[test]
    fn what_is_missing_is_named_with_what_there_is() {
        let folder = folder();
        let templates = Templates::open(Some(folder.path())).unwrap();
        let error = templates.set("his").unwrap_err().to_string();
        assert!(error.contains("'his'") && error.contains("mine"), "{error}");
        let mine = templates.set("mine").unwrap();
        let error = templates.read(&mine, "wink", 100).unwrap_err().to_string();
        assert!(
            error.contains("'wink'") && error.contains("'mine'") && error.contains("angry, sad"),
            "{error}"
        );
        assert!(templates.read(&mine, "angry", 3).unwrap_err().to_string().contains("more than 3 bytes"));
        assert!(Templates::open(Some(&folder.path().join("loose.png"))).is_err());
    }

    #[test]
    fn no_name_leads_out_of_the_folder() {
        let folder = folder();
        let templates = Templates::open(Some(&folder.path().join("mine"))).unwrap();
        for name in ["..", ".", "", "../mine", "/etc"] {
            assert!(templates.set(name).is_err(), "{name}");
        }
        let templates = Templates::open(Some(folder.path())).unwrap();
        let mine = templates.set("mine").unwrap();
        for name in ["../loose", ".hidden", "notes.txt", "/etc/passwd", ""] {
            assert!(templates.read(&mine, name, 100).is_err(), "{name}");
        }
    }

    #[test]
    fn every_built_in_set_has_a_picture_for_every_expression() {
        let expressions = crate::expressions::Vocabulary::embedded().unwrap().expressions;
        let templates = Templates::default();
        assert_eq!(templates.sets().len(), 2);
        for set in templates.sets() {
            for expression in &expressions {
                let bytes = templates.read(&set, &expression.name, 1 << 20).unwrap();
                assert!(bytes.starts_with(b"\x89PNG"), "{} {}", set.name, expression.name);
            }
        }
    }
}
