//! cuDNN's library, looked for and loaded at run time: a machine without it works, with kernels of our own.

use std::ffi::{CStr, OsStr, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::os::unix::{Library as Loaded, RTLD_GLOBAL, RTLD_LAZY, RTLD_LOCAL, RTLD_NOW};

/// A handle of cuDNN's, or a descriptor.
pub(crate) type Opaque = *mut c_void;
/// What every call gives back; 0 is success.
pub(crate) type Status = c_int;

/// The variable that names the library by an absolute path, or forbids it with `off`.
pub const CUDNN_VARIABLE: &str = "DARKROOM_CUDNN";

/// The oldest version whose graphs are built here.
const OLDEST: usize = 90_000;
/// The first version that these calls were not written for.
const TOO_NEW: usize = 100_000;

/// Names that the loader's own search path is asked for.
const NAMES: [&str; 2] = ["libcudnn.so.9", "libcudnn.so"];

/// Starts of the names of what cuDNN itself opens by name, and finds only if it was opened before or lies on the
/// loader's path; in the order in which they need each other.
const NEEDED: [&str; 4] = ["libcublasLt.so.", "libcublas.so.", "libnvrtc-builtins.so.", "libnvrtc.so."];

/// The functions of cuDNN that are used here, and where they are from.
#[derive(Debug)]
pub(crate) struct Library {
    path: PathBuf,
    version: usize,
    pub(crate) get_error_string: unsafe extern "C" fn(Status) -> *const c_char,
    pub(crate) get_last_error_string: unsafe extern "C" fn(*mut c_char, usize),
    pub(crate) create: unsafe extern "C" fn(*mut Opaque) -> Status,
    pub(crate) set_stream: unsafe extern "C" fn(Opaque, *mut c_void) -> Status,
    pub(crate) create_descriptor: unsafe extern "C" fn(u32, *mut Opaque) -> Status,
    pub(crate) destroy_descriptor: unsafe extern "C" fn(Opaque) -> Status,
    pub(crate) set_attribute: unsafe extern "C" fn(Opaque, u32, u32, i64, *const c_void) -> Status,
    pub(crate) get_attribute: unsafe extern "C" fn(Opaque, u32, u32, i64, *mut i64, *mut c_void) -> Status,
    pub(crate) finalize: unsafe extern "C" fn(Opaque) -> Status,
    pub(crate) execute: unsafe extern "C" fn(Opaque, Opaque, Opaque) -> Status,
    /// Never closed: the library has threads and state of its own.
    _loaded: Loaded,
}

/// Why there is no cuDNN.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum CudnnMissing {
    /// It is not wanted.
    #[error("cuDNN is switched off ({CUDNN_VARIABLE}=off)")]
    Off,
    /// No library could be opened.
    #[error("no cuDNN 9 was found (set {CUDNN_VARIABLE} to the absolute path of libcudnn.so.9): {}", tried.join("; "))]
    NotFound {
        /// What was tried, and what the loader said.
        tried: Vec<String>,
    },
}

impl Library {
    /// The library; looked for once a process.
    pub(crate) fn get() -> Result<&'static Self, &'static CudnnMissing> {
        static LIBRARY: OnceLock<Result<Library, CudnnMissing>> = OnceLock::new();
        let wish = || std::env::var_os(CUDNN_VARIABLE).filter(|value| !value.is_empty());
        LIBRARY.get_or_init(|| Self::find(wish().as_deref())).as_ref()
    }

    /// Where it was found; a bare name if the loader knew it.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Its version: 91900 is 9.19.0.
    pub(crate) fn version(&self) -> usize {
        self.version
    }

    fn find(wish: Option<&OsStr>) -> Result<Self, CudnnMissing> {
        if wish.is_some_and(|wish| wish == "off") {
            return Err(CudnnMissing::Off);
        }
        let mut tried = Vec::new();
        for candidate in candidates(wish, &loaded_folders()) {
            match Self::open(&candidate) {
                Ok(library) => return Ok(library),
                Err(why) => tried.push(format!("{}: {why}", candidate.display())),
            }
        }
        Err(CudnnMissing::NotFound { tried })
    }

    fn open(path: &Path) -> Result<Self, String> {
        if path.is_absolute() {
            if !path.is_file() {
                return Err("no such file".into());
            }
            preload_beside(path);
        }
        // SAFETY: the initialisers of NVIDIA's library are trusted.
        let loaded =
            unsafe { Loaded::open(Some(path), RTLD_NOW | RTLD_LOCAL) }.map_err(|error| error.to_string())?;
        macro_rules! symbol {
            ($name:literal) => {
                // SAFETY: the type is that of cuDNN 9's headers.
                *unsafe { loaded.get($name.as_bytes()) }.map_err(|error| format!("{}: {error}", $name))?
            };
        }
        let version: unsafe extern "C" fn() -> usize = symbol!("cudnnGetVersion");
        // SAFETY: takes nothing and only reads a constant.
        let version = unsafe { version() };
        if !(OLDEST..TOO_NEW).contains(&version) {
            return Err(format!("its version is {version}, not one of cuDNN 9"));
        }
        Ok(Self {
            path: path.to_owned(),
            version,
            get_error_string: symbol!("cudnnGetErrorString"),
            get_last_error_string: symbol!("cudnnGetLastErrorString"),
            create: symbol!("cudnnCreate"),
            set_stream: symbol!("cudnnSetStream"),
            create_descriptor: symbol!("cudnnBackendCreateDescriptor"),
            destroy_descriptor: symbol!("cudnnBackendDestroyDescriptor"),
            set_attribute: symbol!("cudnnBackendSetAttribute"),
            get_attribute: symbol!("cudnnBackendGetAttribute"),
            finalize: symbol!("cudnnBackendFinalize"),
            execute: symbol!("cudnnBackendExecute"),
            _loaded: loaded,
        })
    }

    /// What a status means, and what the library says about the last failure of this thread.
    pub(crate) fn explain(&self, status: Status) -> String {
        // SAFETY: a constant C string for every number.
        let name = unsafe { (self.get_error_string)(status) };
        let mut message = [0u8; 1024];
        // SAFETY: the buffer has the size that is said, and is ended by a zero.
        unsafe { (self.get_last_error_string)(message.as_mut_ptr().cast(), message.len()) };
        let message = CStr::from_bytes_until_nul(&message).map(CStr::to_string_lossy).unwrap_or_default();
        let name = if name.is_null() {
            "an unknown status".into()
        } else {
            // SAFETY: as above.
            unsafe { CStr::from_ptr(name) }.to_string_lossy()
        };
        if message.trim().is_empty() {
            format!("{name} ({status})")
        } else {
            format!("{name} ({status}): {}", message.trim())
        }
    }
}

/// Where to look, in order: only the wished path if there is one, else the loader's search path, else beside CUDA's
/// other libraries, where Python packages have it.
fn candidates(wish: Option<&OsStr>, folders: &[PathBuf]) -> Vec<PathBuf> {
    if let Some(wish) = wish {
        return vec![PathBuf::from(wish)];
    }
    let mut candidates: Vec<PathBuf> = NAMES.iter().map(PathBuf::from).collect();
    for folder in folders {
        let siblings = [
            Some(folder.clone()),
            // site-packages/nvidia/{cu13,cublas,…}/lib beside site-packages/nvidia/cudnn/lib
            folder.parent().and_then(Path::parent).map(|nvidia| nvidia.join("cudnn/lib")),
        ];
        for path in siblings.into_iter().flatten().map(|folder| folder.join(NAMES[0])) {
            if path.is_absolute() && !candidates.contains(&path) {
                candidates.push(path);
            }
        }
    }
    candidates
}

/// Folders of CUDA's libraries that this process has loaded.
fn loaded_folders() -> Vec<PathBuf> {
    // A system without this file is searched by names alone.
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    folders_in(&maps)
}

fn folders_in(maps: &str) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for path in maps.lines().filter_map(|line| line.find('/').map(|at| Path::new(&line[at..]))) {
        let Some(name) = path.file_name().and_then(OsStr::to_str) else { continue };
        let Some(folder) = path.parent() else { continue };
        if NEEDED.iter().any(|start| name.starts_with(start)) && !folders.iter().any(|known| known == folder)
        {
            folders.push(folder.to_owned());
        }
    }
    folders
}

/// Opens what cuDNN will open by name, from beside a cuDNN that was found by path, unless the process has it.
fn preload_beside(cudnn: &Path) {
    let Some(folder) = cudnn.parent() else { return };
    let nvidia = folder.parent().and_then(Path::parent);
    let inside = |name: &str| nvidia.map(|nvidia| nvidia.join(name).join("lib"));
    let folders = [Some(folder.to_owned()), inside("cu13"), inside("cublas"), inside("cuda_nvrtc")];
    let files: Vec<PathBuf> = folders.iter().flatten().flat_map(|folder| files_of(folder)).collect();
    for start in NEEDED {
        let name = |file: &PathBuf| file.file_name().and_then(OsStr::to_str).map(str::to_owned);
        let mut named = files.iter().filter_map(|file| Some((file, name(file)?)));
        let Some((file, name)) = named.find(|(_, name)| name.starts_with(start)) else { continue };
        // SAFETY: asks only whether the process has it.
        if unsafe { Loaded::open(Some(name), RTLD_LAZY | RTLD_NOLOAD) }.is_ok() {
            continue;
        }
        // SAFETY: the initialisers of NVIDIA's libraries are trusted.
        if let Ok(opened) = unsafe { Loaded::open(Some(file), RTLD_NOW | RTLD_GLOBAL) } {
            // Stays open as long as cuDNN, which is never closed.
            std::mem::forget(opened);
        }
    }
}

/// The files of a folder, newest versions first.
fn files_of(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.sort_by(|a, b| b.cmp(a));
    files
}

/// glibc's and musl's flag: give the library only if the process has it already.
const RTLD_NOLOAD: c_int = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_not_there_is_an_error_that_says_where_it_was_looked_for() {
        let error = Library::find(Some(OsStr::new("/no/such/libcudnn.so.9"))).unwrap_err().to_string();
        assert!(
            error.contains("/no/such/libcudnn.so.9: no such file") && error.contains(CUDNN_VARIABLE),
            "{error}"
        );
        assert!(matches!(Library::find(Some(OsStr::new("off"))), Err(CudnnMissing::Off)));
    }

    #[test]
    fn a_library_that_is_not_cudnn_is_refused() {
        let error = Library::find(Some(OsStr::new("libc.so.6"))).unwrap_err().to_string();
        assert!(error.contains("cudnnGetVersion"), "{error}");
    }

    #[test]
    fn pythons_packages_are_searched_beside_the_libraries_that_are_loaded() {
        let maps = "7f00-7f01 r-xp 00000000 00:00 0\n\
            7f01-7f02 r-xp 00000000 08:01 5 /py/site-packages/nvidia/cu13/lib/libnvrtc.so.13\n\
            7f02-7f03 r-xp 00000000 08:01 5 /py/site-packages/nvidia/cu13/lib/libnvrtc.so.13\n\
            7f03-7f04 r-xp 00000000 08:01 6 /usr/lib/libc.so.6\n";
        let folders = folders_in(maps);
        assert_eq!(folders, [PathBuf::from("/py/site-packages/nvidia/cu13/lib")]);
        let candidates = candidates(None, &folders);
        assert_eq!(candidates[0], PathBuf::from("libcudnn.so.9"));
        assert!(
            candidates.contains(&"/py/site-packages/nvidia/cudnn/lib/libcudnn.so.9".into()),
            "{candidates:?}"
        );
    }
}
