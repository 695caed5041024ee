//! cuBLASLt on one card: its handle, and the plans of the products that were formed there.
//!
//! Below [`super`], which knows tensors; here are addresses only.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use candle_core::{CudaDevice, Error, Result};
use cudarc::cublaslt::{result, sys};
use cudarc::driver::sys::{CUdevice_attribute, CUstreamCaptureStatus};
use cudarc::driver::{CudaStream, DevicePtr};

use super::plan::{Algorithm, Plan, Problem, Scales};
use super::tune;

/// The most workspace that NVIDIA recommends, on Hopper and later and before.
const WORKSPACE_BYTES: usize = 32 << 20;
const OLDER_WORKSPACE_BYTES: usize = 4 << 20;

/// Plans kept for a card. A network at one size and batch has about thirty.
const MOST_PLANS: usize = 1024;

/// Where the operands of one product lie.
#[derive(Debug, Clone, Copy)]
pub(super) struct Addresses {
    /// `[n, k]`
    pub(super) weight: u64,
    /// `[m, k]`
    pub(super) x: u64,
    /// `[n]`, where the problem has a bias.
    pub(super) bias: u64,
    /// `[m, n]`, where the problem adds; it may be `y`.
    pub(super) residual: u64,
    /// `[m, n]`
    pub(super) y: u64,
    /// Of the weight and of `x`, where the problem has them.
    pub(super) scales: [u64; 2],
}

/// One card's cuBLASLt.
pub(super) struct Library {
    handle: sys::cublasLtHandle_t,
    /// The most workspace that an algorithm may want.
    workspace: usize,
    /// `None`: cuBLASLt has nothing for it.
    plans: HashMap<Problem, Option<Plan>>,
}

// SAFETY: what the pointers stand for belongs to this value alone, is used under its lock, and is bound to no thread.
unsafe impl Send for Library {}

impl Drop for Library {
    fn drop(&mut self) {
        self.plans.clear();
        // SAFETY: the handle was created, and nothing uses it any more.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

/// A card's number and its library.
type Known = (usize, Arc<Mutex<Library>>);

/// The library of `device`'s card, whose context is made this thread's.
pub(super) fn of(device: &CudaDevice) -> Result<Arc<Mutex<Library>>> {
    static ALL: OnceLock<Mutex<Vec<Known>>> = OnceLock::new();
    let stream = device.cuda_stream();
    let context = stream.context();
    context.bind_to_thread().map_err(Error::wrap)?;
    let mut all = ALL.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, library)) = all.iter().find(|(known, _)| *known == context.ordinal()) {
        return Ok(Arc::clone(library));
    }
    let major = context
        .attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)
        .map_err(Error::wrap)?;
    let workspace = if major >= 9 { WORKSPACE_BYTES } else { OLDER_WORKSPACE_BYTES };
    let handle = result::create_handle().map_err(Error::wrap)?;
    let library = Arc::new(Mutex::new(Library { handle, workspace, plans: HashMap::new() }));
    all.push((context.ordinal(), Arc::clone(&library)));
    Ok(library)
}

impl Library {
    /// Whether it is known that cuBLASLt has nothing for this.
    pub(super) fn refused(&self, problem: &Problem) -> bool {
        matches!(self.plans.get(problem), Some(None))
    }

    /// Whether cuBLASLt has an algorithm for this.
    pub(super) fn offers(&self, problem: &Problem) -> Result<bool> {
        Ok(Plan::find(self.handle, problem, self.workspace)?.is_some())
    }

    /// Queues the product in `stream`. `false`: cuBLASLt has nothing for it.
    ///
    /// # Safety
    /// At the addresses lies memory of the device of the sizes and types that the problem says, aligned as it says,
    /// and it stays until the stream has come past this product.
    pub(super) unsafe fn multiply(
        &mut self,
        stream: &Arc<CudaStream>,
        problem: &Problem,
        at: Addresses,
    ) -> Result<bool> {
        if !self.plans.contains_key(problem) {
            // SAFETY: as the caller promises.
            unsafe { self.prepare(stream, problem, at) }?;
        }
        let Some(Some(plan)) = self.plans.get(problem) else { return Ok(false) };
        // SAFETY: as the caller promises.
        unsafe { Call { handle: self.handle, stream }.run(problem, plan, &plan.algorithm, at) }?;
        Ok(true)
    }

    /// Makes the plan of `problem`, timed on `at`'s operands where timing is on.
    ///
    /// # Safety
    /// As [`Library::multiply`].
    unsafe fn prepare(&mut self, stream: &Arc<CudaStream>, problem: &Problem, at: Addresses) -> Result<()> {
        if self.plans.len() >= MOST_PLANS {
            self.plans.clear();
        }
        let mut found = Plan::find(self.handle, problem, self.workspace)?;
        if let Some((plan, others)) = &mut found
            && !others.is_empty()
            && !is_capturing(stream)?
        {
            let call = Call { handle: self.handle, stream };
            // SAFETY: as the caller promises; nothing is being captured.
            plan.algorithm = unsafe { tune::fastest(&call, problem, plan, others, at) }?;
        }
        self.plans.insert(*problem, found.map(|(plan, _)| plan));
        Ok(())
    }
}

/// Where products are queued.
pub(super) struct Call<'a> {
    handle: sys::cublasLtHandle_t,
    pub(super) stream: &'a Arc<CudaStream>,
}

impl Call<'_> {
    /// Queues `plan` with `algorithm`. What workspace it wants is taken from the stream's memory for this call: a graph
    /// then owns its own, and is not disturbed by what runs beside it.
    ///
    /// # Safety
    /// As [`Library::multiply`]; the algorithm is one that the heuristic gave for this plan.
    pub(super) unsafe fn run(
        &self,
        problem: &Problem,
        plan: &Plan,
        algorithm: &Algorithm,
        at: Addresses,
    ) -> Result<()> {
        let workspace = (algorithm.workspace > 0)
            // SAFETY: cuBLASLt writes what it reads there.
            .then(|| unsafe { self.stream.alloc::<u8>(algorithm.workspace) }.map_err(Error::wrap))
            .transpose()?;
        let place = workspace.as_ref().map_or(0, |workspace| workspace.device_ptr(self.stream).0);
        if problem.bias {
            plan.operation.set(super::plan::BIAS_POINTER, &at.bias)?;
        }
        if problem.scales != Scales::None {
            plan.operation.set(super::plan::A_SCALE_POINTER, &at.scales[0])?;
            plan.operation.set(super::plan::B_SCALE_POINTER, &at.scales[1])?;
        }
        let (alpha, beta) = (1f32, if problem.adds { 1f32 } else { 0.0 });
        let read = |address: u64| address as *const c_void;
        // Without a summand it is not read, but must be a place all the same.
        let residual = if problem.adds { at.residual } else { at.y };
        // SAFETY: descriptors and handle live; the rest is the caller's promise.
        unsafe {
            result::matmul(
                self.handle,
                plan.operation.0,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                read(at.weight),
                plan.weight.0,
                read(at.x),
                plan.x.0,
                read(residual),
                plan.y.0,
                at.y as *mut c_void,
                plan.y.0,
                &raw const algorithm.algorithm,
                place as *mut c_void,
                algorithm.workspace,
                self.stream.cu_stream().cast(),
            )
        }
        .map_err(|error| Error::msg(format!("cuBLASLt: {problem:?}: {error}")))
    }
}

fn is_capturing(stream: &CudaStream) -> Result<bool> {
    let status = stream.capture_status().map_err(Error::wrap)?;
    Ok(status != CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
}
