//! Kernels from their sources: compiled by NVRTC for the card that is there, kept on disk, loaded once a process.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use candle_core::{CudaDevice, Error, Result};
use cudarc::driver::{CudaContext, CudaFunction, CudaModule};
use cudarc::nvrtc::{Ptx, result as nvrtc, sys};

/// What all sources begin with.
const PRELUDE: &str = include_str!("../../cuda/prelude.cuh");

/// A file of `kernels/cuda`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Source {
    /// Its name, for messages and for the cache.
    pub(crate) name: &'static str,
    /// Its text, without the prelude.
    pub(crate) text: &'static str,
}

/// Why a kernel is not there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompileError {
    /// The compiler refused it.
    #[error("{source_name}.cu does not compile for {arch}: {log}")]
    Refused {
        /// Which file.
        source_name: &'static str,
        /// For which card.
        arch: String,
        /// What the compiler says.
        log: String,
    },
    /// The compiler failed, or there is none.
    #[error("NVRTC, which compiles kernels for the card, failed: {0}")]
    Compiler(String),
}

static CACHE_FOLDER: OnceLock<PathBuf> = OnceLock::new();

/// Where compiled kernels are kept: `folder`, from the first call on. Without a call `$XDG_CACHE_HOME/darkroom`, or
/// `~/.cache/darkroom`. A folder that cannot be written costs a few seconds at every start and nothing else.
pub fn set_cache_folder(folder: &Path) {
    let _ = CACHE_FOLDER.set(folder.to_owned());
}

/// The folder of [`set_cache_folder`].
pub(crate) fn cache_folder() -> Option<&'static Path> {
    if let Some(folder) = CACHE_FOLDER.get() {
        return Some(folder);
    }
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let folder = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(CACHE_FOLDER.get_or_init(|| folder.join("darkroom")))
}

/// What a module is: its source and what was defined for it (`T=bf16`).
type Key = (usize, Source, Vec<String>);

/// Modules of every device, and the functions that were looked up.
#[derive(Default)]
struct Loaded {
    modules: HashMap<Key, Arc<CudaModule>>,
    functions: HashMap<(Key, &'static str), CudaFunction>,
}

/// A function of `source`, compiled with `defines` (`NAME=VALUE`).
pub(crate) fn function(
    device: &CudaDevice,
    source: Source,
    defines: &[String],
    name: &'static str,
) -> Result<CudaFunction> {
    static LOADED: OnceLock<Mutex<Loaded>> = OnceLock::new();
    let stream = device.cuda_stream();
    let context = stream.context();
    let key = (context.ordinal(), source, defines.to_vec());
    let mut loaded = LOADED.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    let key = (key, name);
    if let Some(function) = loaded.functions.get(&key) {
        return Ok(function.clone());
    }
    let module = match loaded.modules.get(&key.0) {
        Some(module) => Arc::clone(module),
        None => {
            let module = load(context, source, defines)?;
            loaded.modules.insert(key.0.clone(), Arc::clone(&module));
            module
        }
    };
    let function = module.load_function(name).map_err(Error::wrap)?;
    loaded.functions.insert(key, function.clone());
    Ok(function)
}

fn load(context: &Arc<CudaContext>, source: Source, defines: &[String]) -> Result<Arc<CudaModule>> {
    let (major, minor) = context.compute_capability().map_err(Error::wrap)?;
    // Hopper's own instructions are in a target of their own.
    let arch = format!("sm_{major}{minor}{}", if (major, minor) == (9, 0) { "a" } else { "" });
    let cubin = cubin(source, defines, &arch).map_err(Error::wrap)?;
    context.load_module(Ptx::from_binary(cubin)).map_err(Error::wrap)
}

/// Machine code for `arch`, from disk if it was made before.
fn cubin(source: Source, defines: &[String], arch: &str) -> std::result::Result<Vec<u8>, CompileError> {
    let version = nvrtc_version()?;
    // Everything that the machine code depends on; it stands in the file too, so that no hash is believed.
    let identity = format!("{version} {arch} {defines:?}\n{PRELUDE}\n{}", source.text);
    let file = cache_folder().map(|folder| {
        let mut hasher = DefaultHasher::new();
        identity.hash(&mut hasher);
        folder.join("kernels").join(format!("{}-{arch}-{:016x}.cubin", source.name, hasher.finish()))
    });
    if let Some(kept) = file.as_deref().and_then(|file| read(file, &identity)) {
        return Ok(kept);
    }
    let made = compile(source, defines, arch)?;
    if let Some(file) = file {
        // A cache that cannot be written is no reason to fail.
        let _ = write(&file, &identity, &made);
    }
    Ok(made)
}

fn read(file: &Path, identity: &str) -> Option<Vec<u8>> {
    let bytes = std::fs::read(file).ok()?;
    Some(bytes.strip_prefix(identity.as_bytes())?.strip_prefix(b"\0")?.to_vec())
}

/// Written beside and then renamed: other processes read whole files.
fn write(file: &Path, identity: &str, cubin: &[u8]) -> std::io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let unfinished = file.with_extension(format!("{}.new", std::process::id()));
    let written = std::fs::File::create(&unfinished).and_then(|mut to| {
        to.write_all(identity.as_bytes())?;
        to.write_all(b"\0")?;
        to.write_all(cubin)
    });
    written.and_then(|()| std::fs::rename(&unfinished, file)).inspect_err(|_| {
        let _ = std::fs::remove_file(&unfinished);
    })
}

fn failed(error: impl std::fmt::Debug) -> CompileError {
    CompileError::Compiler(format!("{error:?}"))
}

fn nvrtc_version() -> std::result::Result<String, CompileError> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: both are valid places to write a number to.
    unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) }.result().map_err(failed)?;
    Ok(format!("nvrtc {major}.{minor}"))
}

/// A program of NVRTC's, destroyed in the end.
struct Program(sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: it was created, and is destroyed once.
        let _ = unsafe { sys::nvrtcDestroyProgram(&raw mut self.0) };
    }
}

fn compile(source: Source, defines: &[String], arch: &str) -> std::result::Result<Vec<u8>, CompileError> {
    // Not as options: a `T` of the command line would be one in the prelude's and the compiler's own templates too.
    let defined: String =
        defines.iter().map(|define| format!("#define {}\n", define.replacen('=', " ", 1))).collect();
    let text = format!("{PRELUDE}\n{defined}#line 1 \"{}.cu\"\n{}", source.name, source.text);
    let text = CString::new(text).map_err(failed)?;
    let options = vec![format!("--gpu-architecture={arch}"), "--std=c++17".into(), "--fmad=true".into()];
    let program = Program(nvrtc::create_program(&text, Some(c"darkroom.cu")).map_err(failed)?);
    // SAFETY: the program is there until the end of this function.
    if let Err(error) = unsafe { nvrtc::compile_program(program.0, &options) } {
        // SAFETY: as above; the log is a C string.
        let log = unsafe { nvrtc::get_program_log(program.0) }.map_err(|_| failed(error))?;
        return Err(CompileError::Refused {
            source_name: source.name,
            arch: arch.into(),
            log: text_of(&log),
        });
    }
    let mut size = 0;
    // SAFETY: a valid place to write the size to.
    unsafe { sys::nvrtcGetCUBINSize(program.0, &raw mut size) }.result().map_err(failed)?;
    let mut cubin = vec![0u8; size];
    // SAFETY: the buffer has the size that was asked for.
    unsafe { sys::nvrtcGetCUBIN(program.0, cubin.as_mut_ptr().cast()) }.result().map_err(failed)?;
    Ok(cubin)
}

fn text_of(log: &[c_char]) -> String {
    let bytes: Vec<u8> = log.iter().map(|c| c.to_ne_bytes()[0]).collect();
    let text = CStr::from_bytes_until_nul(&bytes).map(CStr::to_string_lossy).unwrap_or_default();
    text.trim().to_owned()
}
