//! Files that clients send, kept under the names that ComfyUI's `/upload/image` gives them.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::Path;

use tempfile::NamedTempFile;

use super::{FileError, FileType, Folders, find_below, make_below, name, put, unfinished};

/// Names that are tried before a file is refused.
const MOST_TRIES: usize = 10_000;
/// Bytes that are compared at once.
const COMPARED: usize = 1 << 16;

/// What happens where there is a file of the name already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It is replaced.
    Replace,
    /// It stays if it has the same bytes; else the new one is called `name (1).png`, and so on.
    Reuse,
    /// It stays, and the new one is called `name (1).png`, and so on.
    Rename,
}

impl Folders {
    /// A file to write what a client sends into; [`Self::keep`] gives it its name.
    ///
    /// # Errors
    /// What the system said.
    pub fn incoming(&self) -> io::Result<NamedTempFile> {
        std::fs::create_dir_all(&self.temp)?;
        unfinished(&self.temp)
    }

    /// Keeps a finished file as `filename` in a subfolder of `kind`, and says what it is called now.
    ///
    /// # Errors
    /// A name that is refused, a link that leads outside, what the system said.
    pub fn keep(
        &self,
        file: NamedTempFile,
        kind: FileType,
        subfolder: &str,
        filename: &str,
        taken: Taken,
    ) -> Result<String, FileError> {
        let parts = name::file_parts(filename)?;
        let mut folders = name::folder_parts(subfolder)?;
        folders.extend(&parts[..parts.len() - 1]);
        let folder = make_below(self.of(kind), &folders)?;
        let file = beside(file, &folder)?;
        if taken == Taken::Replace {
            let path = folder.join(parts[parts.len() - 1]);
            if path.is_dir() {
                return Err(FileError::NotAFile);
            }
            file.persist(path).map_err(|error| error.error)?;
            return Ok(filename.to_owned());
        }
        let mut own = file.reopen()?;
        let mut file = file.into_temp_path();
        let (stem, extension) = split(filename);
        let mut tried = filename.to_owned();
        for number in 1..=MOST_TRIES {
            let parts = name::file_parts(&tried)?;
            let last = parts[parts.len() - 1];
            match put(file, &folder.join(last))? {
                None => return Ok(tried),
                Some(back) => file = back,
            }
            if taken == Taken::Reuse
                && let Ok(there) = find_below(&folder, last)
                && is_same(&mut own, &there)?
            {
                return Ok(tried);
            }
            tried = format!("{stem} ({number}){extension}");
        }
        Err(FileError::Taken)
    }
}

/// The file where it can be renamed into `folder` without being copied; copied there if that is on another disk.
fn beside(mut file: NamedTempFile, folder: &Path) -> Result<NamedTempFile, FileError> {
    if is_on_disk_of(&file, folder)? {
        return Ok(file);
    }
    let mut there = unfinished(folder)?;
    file.rewind()?;
    io::copy(file.as_file_mut(), there.as_file_mut())?;
    Ok(there)
}

#[cfg(unix)]
fn is_on_disk_of(file: &NamedTempFile, folder: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    Ok(file.as_file().metadata()?.dev() == std::fs::metadata(folder)?.dev())
}

#[cfg(not(unix))]
fn is_on_disk_of(_: &NamedTempFile, _: &Path) -> io::Result<bool> {
    Ok(false)
}

/// Python's `os.path.splitext`: dots at the start are no extension.
fn split(name: &str) -> (&str, &str) {
    let start = name.rfind('/').map_or(0, |at| at + 1);
    let file = &name[start..];
    let dots = file.len() - file.trim_start_matches('.').len();
    match file[dots..].rfind('.') {
        Some(at) => name.split_at(start + dots + at),
        None => (name, ""),
    }
}

fn is_same(own: &mut File, there: &Path) -> io::Result<bool> {
    let mut there = File::open(there)?;
    own.rewind()?;
    let mut left = own.metadata()?.len();
    if there.metadata()?.len() != left {
        return Ok(false);
    }
    let (mut one, mut other) = (vec![0; COMPARED], vec![0; COMPARED]);
    while left > 0 {
        let length = COMPARED.min(usize::try_from(left).unwrap_or(COMPARED));
        own.read_exact(&mut one[..length])?;
        // It may have been cut meanwhile.
        if there.read_exact(&mut other[..length]).is_err() || one[..length] != other[..length] {
            return Ok(false);
        }
        left -= length as u64;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use tempfile::TempDir;

    use super::*;

    fn keep(folders: &Folders, bytes: &[u8], name: &str, taken: Taken) -> Result<String, FileError> {
        let mut file = folders.incoming().unwrap();
        file.write_all(bytes).unwrap();
        folders.keep(file, FileType::Input, "sub", name, taken)
    }

    fn folders() -> (TempDir, Folders) {
        let base = TempDir::new().unwrap();
        let folders = Folders::below(base.path(), None);
        folders.create().unwrap();
        (base, folders)
    }

    #[test]
    fn the_same_bytes_are_kept_once_and_others_get_a_number() {
        let (_base, folders) = folders();
        let big = vec![7; COMPARED * 2 + 5];
        assert_eq!(keep(&folders, &big, "a.b.png", Taken::Reuse).unwrap(), "a.b.png");
        assert_eq!(keep(&folders, &big, "a.b.png", Taken::Reuse).unwrap(), "a.b.png");
        let mut other = big.clone();
        *other.last_mut().unwrap() = 8;
        assert_eq!(keep(&folders, &other, "a.b.png", Taken::Reuse).unwrap(), "a.b (1).png");
        assert_eq!(keep(&folders, &other, "a.b.png", Taken::Reuse).unwrap(), "a.b (1).png");
        assert_eq!(keep(&folders, &other, "a.b.png", Taken::Rename).unwrap(), "a.b (2).png");
        assert_eq!(keep(&folders, b"new", "a.b.png", Taken::Replace).unwrap(), "a.b.png");
        assert_eq!(std::fs::read(folders.input.join("sub/a.b.png")).unwrap(), b"new");
        assert_eq!(std::fs::read_dir(folders.input.join("sub")).unwrap().count(), 3);
        assert_eq!(std::fs::read_dir(&folders.temp).unwrap().count(), 0);
    }

    #[test]
    fn a_name_is_split_as_python_does() {
        for (name, expected) in [
            ("a.png", ("a", ".png")),
            (".png", (".png", "")),
            ("..a.png", ("..a", ".png")),
            ("a", ("a", "")),
            ("x.y/a", ("x.y/a", "")),
            ("test..png", ("test.", ".png")),
        ] {
            assert_eq!(split(name), expected);
        }
    }

    #[test]
    fn a_refused_name_leaves_nothing_behind() {
        let (base, folders) = folders();
        for name in ["../x.png", "/x.png", "a\\b", "", "..", "x\0", "con.png", "a/"] {
            assert!(matches!(keep(&folders, b"", name, Taken::Replace), Err(FileError::Name(_))), "{name}");
        }
        std::fs::create_dir_all(folders.input.join("sub/folder")).unwrap();
        assert!(keep(&folders, b"", "folder", Taken::Replace).is_err());
        let file = folders.incoming().unwrap();
        assert!(folders.keep(file, FileType::Input, "../..", "x", Taken::Replace).is_err());
        assert_eq!(std::fs::read_dir(&folders.temp).unwrap().count(), 0);
        assert_eq!(std::fs::read_dir(base.path()).unwrap().count(), 4);
    }
}
