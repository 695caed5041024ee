//! cuDNN through its backend API: graphs of operations, fused by the library, as plans that are kept.
//!
//! The operations of [`crate::cuda`] ask [`plan()`] for a graph by a key and get nothing where there is no cuDNN, or where
//! cuDNN does not run that graph; then a kernel of our own does it. One handle a card; runs go to the stream of the device that
//! asks. The library is looked for at run time and
//! linked nowhere ([`cudnn`]).

mod descriptor;
mod files;
mod graph;
mod library;
mod names;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use candle_core::{CudaDevice, DType, Device, Error};
use cudarc::driver::CudaContext;

pub use descriptor::CudnnError;
pub(crate) use descriptor::{Descriptor, Draft, Result};
#[cfg(test)]
pub(crate) use graph::without_a_card;
pub(crate) use graph::{Plan, Target, TensorSpec, pointwise};
pub use library::{CUDNN_VARIABLE, CudnnMissing};
pub(crate) use library::{Library, Opaque};
pub(crate) use names::{Attribute, Code, Kind};

use super::compile::cache_folder;
use super::launch::Dense;

/// The most memory that a plan may use beside its arguments. The engines that are fast here need little or none.
pub(crate) const MOST_WORKSPACE: usize = 128 << 20;
/// The most plans of all cards together: each is of one shape, and holds some megabytes at most.
const MOST_PLANS: usize = 2048;
/// The most refusals that are remembered for [`cudnn_refusals`].
const MOST_REFUSALS: usize = 256;

/// The cuDNN that is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cudnn {
    /// Where it was found; a bare name if the loader knew it.
    pub path: &'static Path,
    /// Its version: 91900 is 9.19.0.
    pub version: usize,
}

/// The cuDNN that is used, or why there is none.
///
/// # Errors
/// When no library was found, or it is switched off.
pub fn cudnn() -> std::result::Result<Cudnn, &'static CudnnMissing> {
    Library::get().map(|library| Cudnn { path: library.path(), version: library.version() })
}

/// Graphs that cuDNN was asked for and did not take, with the reason: what runs on kernels of our own instead. At
/// most 256 are remembered.
pub fn cudnn_refusals() -> Vec<String> {
    state().refusals.clone()
}

/// Remembers for [`cudnn_refusals`] that a plan was made and did not run.
pub(crate) fn note_failure(key: &str, why: &impl std::fmt::Display) {
    state().refuse(format!("{key}: {why}"));
}

/// cuDNN on one card.
#[derive(Debug)]
struct Handle {
    raw: Opaque,
    /// The stream that runs go to.
    stream: usize,
}

// SAFETY: cuDNN ties a handle to no thread; it has one user at a time.
unsafe impl Send for Handle {}

/// A plan, `None` where cuDNN does not run the graph, and the turn of its last use.
type Kept = (Option<Arc<Plan>>, u64);

#[derive(Default)]
struct State {
    /// By ordinal; never destroyed. `None` where it could not be made.
    handles: HashMap<usize, Option<Arc<Mutex<Handle>>>>,
    /// By ordinal and key.
    plans: HashMap<(usize, String), Kept>,
    turn: u64,
    refusals: Vec<String>,
}

fn state() -> MutexGuard<'static, State> {
    static STATE: OnceLock<Mutex<State>> = OnceLock::new();
    STATE.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn refuse(&mut self, what: String) {
        if self.refusals.len() < MOST_REFUSALS && !self.refusals.contains(&what) {
            self.refusals.push(what);
        }
    }

    fn handle(&mut self, library: &'static Library, context: &CudaContext) -> Option<Arc<Mutex<Handle>>> {
        let ordinal = context.ordinal();
        if let Some(known) = self.handles.get(&ordinal) {
            return known.clone();
        }
        let made = make_handle(library, context);
        let handle = match made {
            Ok(handle) => Some(Arc::new(Mutex::new(handle))),
            Err(why) => {
                self.refuse(format!("all of card {ordinal}: {why}"));
                None
            }
        };
        self.handles.insert(ordinal, handle.clone());
        handle
    }

    /// Forgets the plan that was used longest ago, if there are too many.
    fn make_room(&mut self) {
        if self.plans.len() < MOST_PLANS {
            return;
        }
        let oldest = self.plans.iter().min_by_key(|(_, (_, turn))| *turn).map(|(key, _)| key.clone());
        if let Some(oldest) = oldest {
            self.plans.remove(&oldest);
        }
    }
}

fn make_handle(library: &'static Library, context: &CudaContext) -> std::result::Result<Handle, String> {
    context.bind_to_thread().map_err(|error| error.to_string())?;
    let mut raw = std::ptr::null_mut();
    // SAFETY: a valid place to write the handle to; the card's context is current.
    let status = unsafe { (library.create)(&raw mut raw) };
    descriptor::check(library, status, || "cudnnCreate".into()).map_err(|error| error.to_string())?;
    Ok(Handle { raw, stream: 0 })
}

/// The plan for the graph that `key` names on `device`, whose operations `build` makes if nobody did before. `key`
/// says everything that the graph depends on. `None`: cuDNN is not there, or does not run it ([`cudnn_refusals`]).
pub(crate) fn plan(
    device: &CudaDevice,
    key: &str,
    build: impl FnOnce(&'static Library) -> Result<Vec<Arc<Descriptor>>>,
) -> Option<Arc<Plan>> {
    let library = Library::get().ok()?;
    let stream = device.cuda_stream();
    let context = stream.context();
    let mut state = state();
    state.turn += 1;
    let turn = state.turn;
    let place = (context.ordinal(), key.to_owned());
    if let Some((plan, used)) = state.plans.get_mut(&place) {
        *used = turn;
        return plan.clone();
    }
    let handle = state.handle(library, context)?;
    let handle = handle.lock().unwrap_or_else(PoisonError::into_inner);
    let found = find(library, &handle, context, key, build);
    let plan = match found {
        Ok(plan) => Some(Arc::new(plan)),
        Err(why) => {
            state.refuse(why.to_string());
            None
        }
    };
    state.make_room();
    state.plans.insert(place, (plan.clone(), turn));
    plan
}

/// From disk, or by asking cuDNN.
fn find(
    library: &'static Library,
    handle: &Handle,
    context: &CudaContext,
    key: &str,
    build: impl FnOnce(&'static Library) -> Result<Vec<Arc<Descriptor>>>,
) -> Result<Plan> {
    let whole = format!("cudnn {} | {} | {key}", library.version(), card(context));
    let file = cache_folder().map(|folder| files::path(&folder.join("cudnn"), &whole));
    if let Some(json) = file.as_deref().and_then(|file| files::read(file, &whole)) {
        // A plan that the library no longer reads is looked for again.
        if let Ok(plan) = Plan::from_json(library, Target::Handle(handle.raw), &json)
            && plan.workspace() <= MOST_WORKSPACE
        {
            return Ok(plan);
        }
    }
    let operations = build(library)?;
    let plan = Plan::search(library, Target::Handle(handle.raw), &operations, MOST_WORKSPACE, key)?;
    if let (Some(file), Ok(Some(json))) = (file, plan.json()) {
        // A cache that cannot be written is no reason to fail.
        let _ = files::write(&file, &whole, &json);
    }
    Ok(plan)
}

/// What a plan depends on, of the card. What cannot be asked is the same every time.
fn card(context: &CudaContext) -> String {
    use cudarc::driver::sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT as PROCESSORS;
    let name = context.name().unwrap_or_default();
    let (major, minor) = context.compute_capability().unwrap_or_default();
    let processors = context.attribute(PROCESSORS).unwrap_or_default();
    let mut driver = 0;
    // SAFETY: a valid place to write a number to; it stays 0 where the call fails.
    unsafe { cudarc::driver::sys::cuDriverGetVersion(&raw mut driver) };
    format!("{name}, {major}.{minor}, {processors} processors, driver {driver}")
}

/// Starts a run of `plan` on `device`'s stream. Its workspace comes from the stream's pool and goes back to it.
///
/// # Safety
/// `arguments` are all tensors of the graph that are not virtual, by uid, each an address of memory of its size, at a
/// multiple of its alignment, that is used on this stream only.
pub(crate) unsafe fn run(
    device: &CudaDevice,
    plan: &Plan,
    arguments: &[(i64, u64)],
) -> candle_core::Result<()> {
    let missing = || Error::msg("cuDNN has no handle for this card");
    let library = Library::get().map_err(Error::wrap)?;
    let stream = device.cuda_stream();
    let handle = state().handle(library, stream.context()).ok_or_else(missing)?;
    let workspace = match plan.workspace() {
        0 => None,
        bytes => Some(Dense::unset(bytes, DType::U8, &Device::Cuda(device.clone()))?),
    };
    let mut handle = handle.lock().unwrap_or_else(PoisonError::into_inner);
    stream.context().bind_to_thread().map_err(Error::wrap)?;
    let raw = stream.cu_stream();
    if handle.stream != raw as usize || raw.is_null() {
        // SAFETY: handle and stream are alive.
        let status = unsafe { (library.set_stream)(handle.raw, raw.cast()) };
        descriptor::check(library, status, || "cudnnSetStream".into()).map_err(Error::wrap)?;
        handle.stream = raw as usize;
    }
    let address = workspace.as_ref().map_or(0, Dense::address);
    // SAFETY: the caller's promise; the workspace has the size that the plan says, and is freed in stream order.
    unsafe { plan.run(library, handle.raw, arguments, address) }.map_err(Error::wrap)
}
