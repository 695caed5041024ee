//! Cards: which there are, opening one, streams beside its first, memory.

use std::sync::{Mutex, PoisonError};

use candle_core::backend::BackendDevice;
use candle_core::cuda_backend::DeviceId;
use candle_core::cuda_backend::WrapErr;
use candle_core::{CudaDevice, Device, Result, Tensor};
use cudarc::driver::sys::{self, CUmemPool_attribute};
use cudarc::driver::{CudaContext, CudaEvent, DriverError, result};
use cudarc::{cublaslt, nvrtc};

use crate::device::{Card, DeviceError, Library};

pub(crate) fn cards() -> std::result::Result<Vec<Card>, DeviceError> {
    let no_card = |error: DriverError| DeviceError::NoCard(explained(error));
    result::init().map_err(no_card)?;
    let count = usize::try_from(CudaContext::device_count().map_err(no_card)?).unwrap_or(0);
    if count == 0 {
        return Err(DeviceError::NoCard("the driver knows of none".into()));
    }
    (0..count).map(|number| card(number).map_err(|e| failed(number, &explained(e)))).collect()
}

fn card(number: usize) -> std::result::Result<Card, DriverError> {
    let context = CudaContext::new(number)?;
    Ok(Card {
        number,
        name: context.name()?,
        capability: context.compute_capability()?,
        memory: context.total_mem()? as u64,
        free: context.mem_get_info().ok().map(|(free, _)| free as u64),
    })
}

/// What the driver says, in words where it has some.
fn explained(error: DriverError) -> String {
    match error.error_string() {
        Ok(text) => text.to_string_lossy().into_owned(),
        // Without a driver there is nobody to explain.
        Err(_) => match error.0 {
            sys::CUresult::CUDA_ERROR_STUB_LIBRARY => "no CUDA driver is installed".to_owned(),
            other => format!("{other:?}"),
        },
    }
}

fn failed(number: usize, reason: &impl ToString) -> DeviceError {
    DeviceError::Failed { number, reason: reason.to_string() }
}

pub(crate) fn open(number: usize) -> std::result::Result<Device, DeviceError> {
    let cards = cards()?;
    if number >= cards.len() {
        return Err(DeviceError::NoSuchCard { number, count: cards.len() });
    }
    // A stream of its own: the default one waits for all others.
    let device = CudaDevice::new_with_stream(number).map_err(|e| failed(number, &e))?;
    // SAFETY: tensors stay on the stream of their device, and go to another by `moved` alone, which orders both.
    unsafe { device.disable_event_tracking() };
    keep_freed_memory(&device).map_err(|e| failed(number, &explained(e)))?;
    Ok(Device::Cuda(device))
}

/// Lets the card's pool keep what is freed: by default it goes back to the driver at every synchronisation, and taking
/// it again costs milliseconds.
fn keep_freed_memory(device: &CudaDevice) -> std::result::Result<(), DriverError> {
    let stream = device.cuda_stream();
    if !stream.context().has_async_alloc() {
        return Ok(());
    }
    let pool = pool(device)?;
    let mut threshold = u64::MAX;
    // SAFETY: the attribute is a 64-bit number, which the driver copies.
    unsafe {
        sys::cuMemPoolSetAttribute(
            pool,
            CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
            (&raw mut threshold).cast(),
        )
    }
    .result()
}

fn pool(device: &CudaDevice) -> std::result::Result<sys::CUmemoryPool, DriverError> {
    let stream = device.cuda_stream();
    let mut pool = std::ptr::null_mut();
    // SAFETY: a valid place to write the pool to; the device was opened.
    unsafe { sys::cuDeviceGetDefaultMemPool(&raw mut pool, stream.context().cu_device()) }.result()?;
    Ok(pool)
}

/// One for each device, made when it is first asked for: every one has library handles of its own.
pub(crate) fn beside(device: &CudaDevice) -> Result<Device> {
    static BESIDE: Mutex<Vec<(DeviceId, Device)>> = Mutex::new(Vec::new());
    let mut known = BESIDE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, beside)) = known.iter().find(|(id, _)| *id == device.id()) {
        return Ok(beside.clone());
    }
    let ordinal = device.cuda_stream().context().ordinal();
    let beside = CudaDevice::new_with_stream(ordinal)?;
    // SAFETY: as in `open`.
    unsafe { beside.disable_event_tracking() };
    let beside = Device::Cuda(beside);
    known.push((device.id(), beside.clone()));
    Ok(beside)
}

/// A point in a device's work.
#[derive(Debug)]
pub(crate) struct Mark(CudaEvent);

pub(crate) fn mark(device: &CudaDevice) -> Result<Mark> {
    Ok(Mark(device.cuda_stream().record_event(None).w()?))
}

impl Mark {
    pub(crate) fn wait(&self) -> Result<()> {
        self.0.synchronize().w()
    }
}

pub(crate) fn moved(x: &Tensor, from: &CudaDevice, to: &CudaDevice) -> Result<Tensor> {
    let (source, target) = (from.cuda_stream(), to.cuda_stream());
    let x = x.contiguous()?;
    target.join(&source).w()?;
    let copy = x.to_device(&Device::Cuda(to.clone()))?;
    // What `x` lies in may be freed, and written anew, on its own stream.
    source.join(&target).w()?;
    Ok(copy)
}

pub(crate) fn memory(device: &CudaDevice) -> Option<(u64, u64)> {
    let (free, total) = device.cuda_stream().context().mem_get_info().ok()?;
    Some((free as u64 + unused(device).unwrap_or(0), total as u64))
}

/// Bytes that the pool holds and nobody uses.
fn unused(device: &CudaDevice) -> Option<u64> {
    let pool = pool(device).ok()?;
    let read = |attribute| {
        let mut value = 0u64;
        // SAFETY: the attribute is a 64-bit number.
        unsafe { sys::cuMemPoolGetAttribute(pool, attribute, (&raw mut value).cast()) }.result().ok()?;
        Some(value)
    };
    let reserved = read(CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?;
    Some(reserved.saturating_sub(read(CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?))
}

pub(crate) fn trim(device: &CudaDevice) {
    // Frees are ordered in the stream: what it has not reached is still in use.
    if device.synchronize().is_err() {
        return;
    }
    if let Ok(pool) = pool(device) {
        // SAFETY: the pool is the device's own.
        let _ = unsafe { sys::cuMemPoolTrimTo(pool, 0) };
    }
    // SAFETY: what graphs hold that can still be launched stays.
    let _ = unsafe { sys::cuDeviceGraphMemTrim(device.cuda_stream().context().cu_device()) };
}

pub(crate) fn capability(device: &CudaDevice) -> Option<(i32, i32)> {
    device.cuda_stream().context().compute_capability().ok()
}

pub(crate) fn says_out_of_memory(error: &(dyn std::error::Error + 'static)) -> bool {
    error
        .downcast_ref::<DriverError>()
        .is_some_and(|error| error.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)
}

pub(crate) fn libraries() -> Vec<Library> {
    let mut driver = 0;
    // SAFETY: a valid place to write the version to.
    let answer = unsafe { sys::cuDriverGetVersion(&raw mut driver) }.result();
    let driver = answer.map(|()| format!("CUDA {}.{}", driver / 1000, driver % 1000 / 10)).map_err(explained);
    let (mut major, mut minor) = (0, 0);
    // SAFETY: valid places to write the version to.
    let answer = unsafe { nvrtc::sys::nvrtcVersion(&raw mut major, &raw mut minor) }.result();
    let compiler = answer.map(|()| format!("{major}.{minor}")).map_err(|error| format!("{error:?}"));
    let dotted = |version: usize| format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100);
    // SAFETY: it takes nothing; 0 stands for a library that is not there.
    let blas = match unsafe { cublaslt::sys::cublasLtGetVersion() } {
        version @ 10_000.. => Ok(dotted(version)),
        _ => Err("not found".to_owned()),
    };
    let cudnn = super::cudnn::cudnn().map(|found| dotted(found.version)).map_err(ToString::to_string);
    vec![
        Library { name: "CUDA driver", version: driver, optional: false },
        Library { name: "NVRTC", version: compiler, optional: false },
        Library { name: "cuBLASLt", version: blas, optional: false },
        Library { name: "cuDNN", version: cudnn, optional: true },
    ]
}
