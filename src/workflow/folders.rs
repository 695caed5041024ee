//! The folders that workflows read and write: `input`, `output`, `temp`, `user`, and those of models. Names come from
//! prompts and requests; none becomes a path before it has been checked here, and none leads out of its folder through
//! a link in it.

mod keep;
mod models;
mod name;
mod numbered;

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use tempfile::{NamedTempFile, TempPath};

use super::interface::Choices;

pub use keep::Taken;
pub use name::NameError;
pub use numbered::{Numbered, SavedFile};

/// Most files of a folder that are listed.
const MOST_LISTED: usize = 100_000;
/// Extensions of pictures that can be loaded.
const PICTURES: [&str; 7] = ["png", "jpg", "jpeg", "jpe", "webp", "gif", "bmp"];

/// Which of the three folders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileType {
    /// What is loaded.
    Input,
    /// What is kept.
    Output,
    /// What is only shown.
    Temp,
}

impl FileType {
    /// ComfyUI's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Output => "output",
            Self::Temp => "temp",
        }
    }

    /// The one of this name.
    pub fn of_name(name: &str) -> Option<Self> {
        [Self::Input, Self::Output, Self::Temp].into_iter().find(|kind| kind.name() == name)
    }
}

/// Where they are.
#[derive(Debug, Clone)]
pub struct Folders {
    /// What is loaded.
    pub input: PathBuf,
    /// What is kept.
    pub output: PathBuf,
    /// What is only shown.
    pub temp: PathBuf,
    /// Workflows and settings of the front end.
    pub user: PathBuf,
    /// Models, laid out as ComfyUI's.
    pub models: Option<PathBuf>,
}

/// Why a file cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// Its name is refused.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A link leads out of the folder.
    #[error("it lies outside its folder")]
    Outside,
    /// There is none.
    #[error("there is no such file")]
    Missing,
    /// A folder, a pipe, a device.
    #[error("it is no regular file")]
    NotAFile,
    /// It is larger than may be read.
    #[error("the file has {bytes} bytes; the limit is {limit}")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// What may be read.
        limit: u64,
    },
    /// Every name that it could have is taken.
    #[error("every name of this prefix is taken: choose another")]
    Taken,
    /// What the system said.
    #[error(transparent)]
    Io(io::Error),
}

impl From<io::Error> for FileError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Self::Missing,
            _ => Self::Io(error),
        }
    }
}

impl Folders {
    /// Those below `base`, called as ComfyUI calls them.
    pub fn below(base: &Path, models: Option<PathBuf>) -> Self {
        let folder = |name| base.join(name);
        Self {
            input: folder("input"),
            output: folder("output"),
            temp: folder("temp"),
            user: folder("user"),
            models,
        }
    }

    /// Makes the folders that are not there.
    ///
    /// # Errors
    /// What the system said, with the folder.
    pub fn create(&self) -> io::Result<()> {
        for folder in [&self.input, &self.output, &self.temp, &self.user] {
            std::fs::create_dir_all(folder)
                .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", folder.display())))?;
        }
        Ok(())
    }

    /// Removes what lies in `temp`, as ComfyUI does when it starts. What cannot be removed stays.
    pub fn clear_temp(&self) {
        let Ok(entries) = std::fs::read_dir(&self.temp) else { return };
        for entry in entries.flatten() {
            let path = entry.path();
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let removed =
                if is_folder { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            if let Err(error) = removed {
                tracing::warn!(file = %path.display(), %error, "a temporary file stays");
            }
        }
    }

    /// The folder itself.
    pub fn of(&self, kind: FileType) -> &Path {
        match kind {
            FileType::Input => &self.input,
            FileType::Output => &self.output,
            FileType::Temp => &self.temp,
        }
    }

    /// The regular file that `name` is in a folder: its path, with every link followed.
    ///
    /// # Errors
    /// A name that is refused, a link that leads outside, no such file.
    pub fn find(&self, kind: FileType, name: &str) -> Result<PathBuf, FileError> {
        find_below(self.of(kind), name)
    }

    /// The file that an annotated name (`a.png [output]`) is; without an annotation, one in `input`.
    ///
    /// # Errors
    /// As [`Self::find`].
    pub fn find_annotated(&self, name: &str) -> Result<PathBuf, FileError> {
        let (name, kind) = annotated(name);
        self.find(kind.unwrap_or(FileType::Input), name)
    }

    /// The bytes of a file, at most `limit`.
    ///
    /// # Errors
    /// As [`Self::find`], and a file that is larger.
    pub fn read_annotated(&self, name: &str, limit: u64) -> Result<Vec<u8>, FileError> {
        let file = File::open(self.find_annotated(name)?)?;
        let metadata = file.metadata()?;
        let too_large = |bytes| FileError::TooLarge { bytes, limit };
        if !metadata.is_file() {
            return Err(FileError::NotAFile);
        }
        if metadata.len() > limit {
            return Err(too_large(metadata.len()));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0));
        // It may have grown since.
        file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > limit { Err(too_large(bytes.len() as u64)) } else { Ok(bytes) }
    }

    /// The folder `subfolder` of one of the three, made where it is not there.
    ///
    /// # Errors
    /// A name that is refused, a link that leads outside, what the system said.
    pub fn subfolder(&self, kind: FileType, subfolder: &str) -> Result<PathBuf, FileError> {
        make_below(self.of(kind), &name::folder_parts(subfolder)?)
    }

    /// Names of the files in a folder, not in its subfolders, sorted.
    pub fn list(&self, kind: FileType) -> Vec<String> {
        let mut names: Vec<String> = self.files(kind).map(|(name, _)| name).collect();
        names.sort();
        names
    }

    /// The same, those that changed last first.
    pub fn list_newest(&self, kind: FileType) -> Vec<String> {
        let mut files: Vec<(String, Option<SystemTime>)> =
            self.files(kind).map(|(name, metadata)| (name, metadata.modified().ok())).collect();
        files.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        files.into_iter().map(|(name, _)| name).collect()
    }

    fn files(&self, kind: FileType) -> impl Iterator<Item = (String, std::fs::Metadata)> {
        let entries = std::fs::read_dir(self.of(kind)).into_iter().flatten().flatten();
        let named = entries.filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            // Follows links.
            let metadata = std::fs::metadata(entry.path()).ok()?;
            (metadata.is_file() && !name.starts_with(name::UNFINISHED)).then_some((name, metadata))
        });
        named.take(MOST_LISTED)
    }

    /// What a list of an interface offers.
    pub fn choices(&self, choices: &Choices) -> Vec<String> {
        let inputs = |keep: &dyn Fn(&str) -> bool| {
            self.list(FileType::Input).into_iter().filter(|name| keep(name)).collect()
        };
        match choices {
            Choices::Fixed(names) => names.clone(),
            Choices::Models { folder, also } => {
                let files = self.model_files(folder).unwrap_or_default();
                also.iter().map(|name| (*name).to_owned()).chain(files).collect()
            }
            Choices::InputFiles => self.list(FileType::Input),
            Choices::InputPictures => inputs(&is_picture),
            Choices::InputLatents => inputs(&|name| name.ends_with(".latent")),
            Choices::Remote => Vec::new(),
        }
    }
}

/// A name without its annotation, and the folder that the annotation says (ComfyUI's `annotated_filepath`).
pub fn annotated(name: &str) -> (&str, Option<FileType>) {
    for kind in [FileType::Output, FileType::Input, FileType::Temp] {
        let plain = name.strip_suffix(']').and_then(|name| name.strip_suffix(kind.name()));
        if let Some(plain) = plain.and_then(|name| name.strip_suffix('[')) {
            // The character before the bracket goes as well; it is a space.
            let end = plain.char_indices().next_back().map_or(0, |(at, _)| at);
            return (&plain[..end], Some(kind));
        }
    }
    (name, None)
}

fn is_picture(name: &str) -> bool {
    let extension = name.rsplit('.').next().unwrap_or_default();
    PICTURES.iter().any(|known| known.eq_ignore_ascii_case(extension))
}

/// The regular file `name` below `root`, with every link followed.
///
/// # Errors
/// A name that is refused, a link that leads outside, no such file.
pub fn find_below(root: &Path, name: &str) -> Result<PathBuf, FileError> {
    let parts = name::file_parts(name)?;
    let root = root.canonicalize()?;
    let path = root.join(parts.iter().collect::<PathBuf>()).canonicalize()?;
    if !path.starts_with(&root) {
        return Err(FileError::Outside);
    }
    if std::fs::metadata(&path)?.is_file() { Ok(path) } else { Err(FileError::NotAFile) }
}

/// The folder `name` below `root`, if it is there; `root` itself for an empty name.
///
/// # Errors
/// A name that is refused, a link that leads outside, no such folder.
pub fn find_folder_below(root: &Path, name: &str) -> Result<PathBuf, FileError> {
    let parts = name::folder_parts(name)?;
    let root = root.canonicalize()?;
    let path = root.join(parts.iter().collect::<PathBuf>()).canonicalize()?;
    if !path.starts_with(&root) {
        return Err(FileError::Outside);
    }
    if path.is_dir() { Ok(path) } else { Err(FileError::Missing) }
}

/// Where a file called `name` goes below `root`; its folders are made where they are not there. Whether there is
/// a file already is left open.
///
/// # Errors
/// A name that is refused, a link that leads outside, what the system said.
pub fn place_below(root: &Path, name: &str) -> Result<PathBuf, FileError> {
    let parts = name::file_parts(name)?;
    let Some((file, folders)) = parts.split_last() else { return Err(NameError::Empty.into()) };
    Ok(make_below(root, folders)?.join(file))
}

/// Walks down from `root`, making what is not there, and never through a link that leads out of it.
fn make_below(root: &Path, parts: &[&str]) -> Result<PathBuf, FileError> {
    std::fs::create_dir_all(root)?;
    let root = root.canonicalize()?;
    let mut folder = root.clone();
    for part in parts {
        let next = folder.join(part);
        match std::fs::create_dir(&next) {
            Ok(()) => folder = next,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                folder = next.canonicalize()?;
                if !folder.starts_with(&root) {
                    return Err(FileError::Outside);
                }
                if !folder.is_dir() {
                    return Err(FileError::NotAFile);
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(folder)
}

/// An unfinished file in `folder`, which has to be there: no list shows it, and no name opens it.
///
/// # Errors
/// What the system said.
pub fn unfinished(folder: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(name::UNFINISHED);
    #[cfg(unix)]
    {
        // Temporary files are private; a result has the permissions of any new file (the umask applies).
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(folder)
}

/// Writes a whole file, in place of what is there.
///
/// # Errors
/// What the system said.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = unfinished(folder)?;
    file.write_all(bytes)?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// Writes a file whole under a name that is free; whether it was.
pub fn write_new(path: &Path, bytes: &[u8]) -> Result<bool, FileError> {
    let mut file = unfinished(path.parent().unwrap_or(Path::new(".")))?;
    file.write_all(bytes)?;
    Ok(put(file.into_temp_path(), path)?.is_none())
}

/// Gives a finished file its name; `None` where there is one already, and the file to try another name with.
pub(super) fn put(file: TempPath, path: &Path) -> Result<Option<TempPath>, FileError> {
    match file.persist_noclobber(path) {
        Ok(()) => Ok(None),
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Ok(Some(error.path)),
        Err(error) => Err(error.error.into()),
    }
}

#[cfg(test)]
mod tests;
