//! Names of what workflows save, as ComfyUI's `get_save_image_path` gives them: `prefix_00001_.png`, one above the
//! highest that is there. Files appear whole, and two that are saved at once never get the same name.

use std::io::Write;
use std::path::{Path, PathBuf};

use jiff::Zoned;
use serde_json::{Value as Json, json};

use super::{FileError, FileType, Folders, NameError, make_below, name, put, unfinished};

/// Names that are tried before a save is given up: others that save to the same prefix take some.
const MOST_TRIES: usize = 100_000;

/// A prefix with its place and the number that is free next.
#[derive(Debug)]
pub struct Numbered {
    kind: FileType,
    folder: PathBuf,
    subfolder: String,
    prefix: String,
    counter: u64,
}

/// A file that was saved, as `ui` lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedFile {
    /// Its name.
    pub filename: String,
    /// Its folder below the one of its kind; empty for that one itself.
    pub subfolder: String,
    /// Which.
    pub kind: FileType,
}

impl SavedFile {
    /// `{"filename": …, "subfolder": …, "type": …}`.
    pub fn to_json(&self) -> Json {
        json!({"filename": self.filename, "subfolder": self.subfolder, "type": self.kind.name()})
    }
}

impl Folders {
    /// Where pictures of `width` × `height` with this prefix go. The prefix may have folders, which are made, and
    /// `%width%`, `%height%`, `%year%`, `%month%`, `%day%`, `%hour%`, `%minute%` and `%second%`. A backslash counts as
    /// a slash, so that prefixes of workflows made on Windows do as they do there.
    ///
    /// # Errors
    /// A prefix that leads outside or cannot be a file's name; what the system said.
    pub fn numbered(
        &self,
        kind: FileType,
        prefix: &str,
        width: usize,
        height: usize,
    ) -> Result<Numbered, FileError> {
        let mut numbered = self.fresh(kind, &with_variables(prefix, width, height, &Zoned::now()))?;
        numbered.counter = highest(&numbered.folder, &numbered.prefix)? + 1;
        Ok(numbered)
    }

    /// The same for a prefix that is new, so that no number is taken.
    ///
    /// # Errors
    /// As [`Self::numbered`].
    pub fn fresh(&self, kind: FileType, prefix: &str) -> Result<Numbered, FileError> {
        let prefix = prefix.replace('\\', "/");
        if prefix.starts_with('/') {
            return Err(NameError::Outside.into());
        }
        // As Python's `normpath`: `a/../b` is `b`, by the text alone, before any folder is looked at.
        let mut parts: Vec<&str> = Vec::new();
        for part in prefix.split('/').filter(|part| !part.is_empty() && *part != ".") {
            if part == ".." {
                parts.pop().ok_or(NameError::Outside)?;
            } else {
                parts.push(part);
            }
        }
        // The prefix alone may be empty, as in ComfyUI, and may end in a dot: the number follows.
        let prefix = parts.pop().unwrap_or(".").to_owned();
        name::check_part(&numbered_name(&prefix, 1, "png"))?;
        let subfolder = parts.join("/");
        let parts = name::folder_parts(&subfolder)?;
        if parts.is_empty() {
            // Drive letters stand at the start of the whole name.
            name::folder_parts(&numbered_name(&prefix, 1, "png"))?;
        }
        let folder = make_below(self.of(kind), &parts)?;
        Ok(Numbered { kind, folder, subfolder, prefix, counter: 1 })
    }
}

impl Numbered {
    /// Writes the next file: number `index` of its batch, for `%batch_num%`.
    ///
    /// # Errors
    /// What the system said; no free name.
    pub fn save(&mut self, index: usize, extension: &str, bytes: &[u8]) -> Result<SavedFile, FileError> {
        let prefix = self.prefix.replace("%batch_num%", &index.to_string());
        let mut file = unfinished(&self.folder)?;
        file.write_all(bytes)?;
        let mut file = file.into_temp_path();
        for _ in 0..MOST_TRIES {
            let filename = numbered_name(&prefix, self.counter, extension);
            name::check_part(&filename)?;
            self.counter = self.counter.checked_add(1).ok_or(FileError::Taken)?;
            match put(file, &self.folder.join(&filename))? {
                None => {
                    return Ok(SavedFile { filename, subfolder: self.subfolder.clone(), kind: self.kind });
                }
                Some(back) => file = back,
            }
        }
        Err(FileError::Taken)
    }
}

fn numbered_name(prefix: &str, counter: u64, extension: &str) -> String {
    format!("{prefix}_{counter:05}_.{extension}")
}

fn with_variables(prefix: &str, width: usize, height: usize, now: &Zoned) -> String {
    if !prefix.contains('%') {
        return prefix.to_owned();
    }
    let values = [
        ("%width%", width.to_string()),
        ("%height%", height.to_string()),
        ("%year%", now.year().to_string()),
        ("%month%", format!("{:02}", now.month())),
        ("%day%", format!("{:02}", now.day())),
        ("%hour%", format!("{:02}", now.hour())),
        ("%minute%", format!("{:02}", now.minute())),
        ("%second%", format!("{:02}", now.second())),
    ];
    values.iter().fold(prefix.to_owned(), |text, (name, value)| text.replace(name, value))
}

/// The highest number after `prefix_` in a folder, whatever follows it; 0 where there is none.
fn highest(folder: &Path, prefix: &str) -> std::io::Result<u64> {
    let mut highest = 0;
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name();
        let rest = name.to_str().and_then(|name| name.strip_prefix(prefix)?.strip_prefix('_'));
        let number = rest.and_then(|rest| rest.split('_').next()?.parse::<u64>().ok());
        // So that there is always a next one.
        highest = highest.max(number.filter(|number| *number < u64::MAX / 2).unwrap_or(0));
    }
    Ok(highest)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use tempfile::TempDir;

    use super::*;

    fn folders() -> (TempDir, Folders) {
        let base = TempDir::new().unwrap();
        let folders = Folders::below(base.path(), None);
        folders.create().unwrap();
        (base, folders)
    }

    fn save(folders: &Folders, prefix: &str) -> Result<SavedFile, FileError> {
        folders.numbered(FileType::Output, prefix, 640, 480)?.save(0, "png", b"x")
    }

    #[test]
    fn numbers_go_on_above_the_highest_of_the_prefix_whatever_its_extension() {
        let (_base, folders) = folders();
        assert_eq!(save(&folders, "ComfyUI").unwrap().filename, "ComfyUI_00001_.png");
        for name in
            ["ComfyUI_00041_.webp", "ComfyUIx_00099_.png", "ComfyUI_x_.png", "ComfyUI_18446744073709551615_"]
        {
            std::fs::write(folders.output.join(name), b"kept").unwrap();
        }
        assert_eq!(save(&folders, "ComfyUI").unwrap().filename, "ComfyUI_00042_.png");
        // As in ComfyUI, the number is the last of neither prefix nor folder, but what follows the prefix.
        std::fs::write(folders.output.join("a_7.txt"), b"").unwrap();
        assert_eq!(save(&folders, "a").unwrap().filename, "a_00001_.png");
        std::fs::write(folders.output.join("a_123456_b.txt"), b"").unwrap();
        assert_eq!(save(&folders, "a").unwrap().filename, "a_123457_.png");
    }

    #[test]
    fn a_prefix_may_have_folders_and_variables() {
        let (_base, folders) = folders();
        let saved = save(&folders, "x/%width%x%height%/./p").unwrap();
        assert_eq!((&*saved.subfolder, &*saved.filename), ("x/640x480", "p_00001_.png"));
        assert!(folders.output.join("x/640x480/p_00001_.png").is_file());
        assert_eq!(saved.to_json()["type"], "output");
        let saved = save(&folders, "portraits\\p").unwrap();
        assert_eq!(saved.subfolder, "portraits");
        let now: Zoned = "2025-03-04T05:06:07[UTC]".parse().unwrap();
        let named = with_variables("%year%-%month%-%day% %hour%.%minute%.%second% %x%", 1, 2, &now);
        assert_eq!(named, "2025-03-04 05.06.07 %x%");
    }

    #[test]
    fn pictures_of_a_batch_are_numbered_on_and_may_say_their_place() {
        let (_base, folders) = folders();
        let mut numbered = folders.numbered(FileType::Output, "b%batch_num%", 1, 1).unwrap();
        let names: Vec<String> =
            (0..2).map(|index| numbered.save(index, "png", b"").unwrap().filename).collect();
        assert_eq!(names, ["b0_00001_.png", "b1_00002_.png"]);
    }

    #[test]
    fn no_prefix_saves_outside() {
        let (base, folders) = folders();
        let long = "x".repeat(300);
        for prefix in
            ["../x", "..", "a/../../x", "/abs", "C:\\x", "\\\\host\\x", "c:x", "a\0b", "nul/x", "a./x", &long]
        {
            assert!(matches!(save(&folders, prefix), Err(FileError::Name(_))), "{prefix:?}");
        }
        let top: Vec<_> =
            std::fs::read_dir(base.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(top.len(), 4, "{top:?}");
        assert_eq!(folders.list(FileType::Output), Vec::<String>::new());
        assert_eq!(save(&folders, "test..png").unwrap().filename, "test..png_00001_.png");
        assert_eq!(save(&folders, "").unwrap().filename, "._00001_.png");
    }

    #[cfg(unix)]
    #[test]
    fn a_link_does_not_lead_outside() {
        let (base, folders) = folders();
        std::os::unix::fs::symlink(base.path(), folders.output.join("out")).unwrap();
        assert!(matches!(save(&folders, "out/x"), Err(FileError::Outside)));
        assert!(matches!(save(&folders, "out/new/x"), Err(FileError::Outside)));
        assert!(!base.path().join("new").exists());
    }

    #[test]
    fn files_saved_at_once_never_replace_each_other() {
        let (_base, folders) = folders();
        let names: Vec<String> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|thread: u8| {
                    let folders = &folders;
                    scope.spawn(move || {
                        let mut numbered = folders.numbered(FileType::Output, "p", 1, 1).unwrap();
                        let save = |index| numbered.save(index, "png", &[thread]).unwrap().filename;
                        (0..20).map(save).collect::<Vec<_>>()
                    })
                })
                .collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(names.iter().collect::<HashSet<_>>().len(), 160);
        assert_eq!(folders.list(FileType::Output).len(), 160);
    }
}
