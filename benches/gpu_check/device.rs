//! The device that everything is measured on: where it is, its clock, its memory.

use std::time::Instant;

use candle_core::{DType, Device};
use darkroom_models::device;
use serde_json::{Value, json};

use crate::Outcome;

/// A device by its name.
pub(crate) struct Target {
    pub(crate) name: String,
    pub(crate) device: Device,
}

impl Target {
    /// `cpu`, or `cuda:0`.
    pub(crate) fn open(name: &str) -> Outcome<Self> {
        let (device, _) = device::open(name.parse()?)?;
        Ok(Self { name: name.to_owned(), device })
    }

    pub(crate) fn is_cuda(&self) -> bool {
        self.device.is_cuda()
    }

    /// Types of activations that networks may have here.
    pub(crate) fn types(&self) -> &'static [DType] {
        if self.is_cuda() { &[DType::BF16, DType::F16, DType::F32] } else { &[DType::F32] }
    }

    /// A moment in the device's work.
    pub(crate) fn mark(&self) -> Outcome<Mark> {
        #[cfg(feature = "cuda")]
        if let Device::Cuda(cuda) = &self.device {
            use candle_core::cuda_backend::cudarc::driver::sys::CUevent_flags;
            let flags = Some(CUevent_flags::CU_EVENT_DEFAULT);
            return Ok(Mark::Event(cuda.cuda_stream().record_event(flags)?));
        }
        Ok(Mark::Clock(Instant::now()))
    }

    /// Waits until everything that was asked of it is done.
    pub(crate) fn wait(&self) -> Outcome<()> {
        Ok(self.device.synchronize()?)
    }

    /// Begins to look for the most memory in use.
    pub(crate) fn forget_peak(&self) {
        #[cfg(feature = "cuda")]
        cuda::forget_peak(&self.device);
    }

    /// The most bytes in use since [`Self::forget_peak`], as MiB: of tensors (`used`), of the pools that they come from
    /// (`reserved`), recorded graphs included (`graphs`), and now of the whole card, by all programs (`card`).
    pub(crate) fn peak_mib(&self) -> Value {
        #[cfg(feature = "cuda")]
        if self.is_cuda() {
            return cuda::peak_mib(&self.device);
        }
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap_or_default();
        let kib = line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok());
        json!({"process": kib.map(|kib| kib >> 10)})
    }
}

/// A moment, on the device's clock or the machine's.
pub(crate) enum Mark {
    Clock(Instant),
    #[cfg(feature = "cuda")]
    Event(candle_core::cuda_backend::cudarc::driver::CudaEvent),
}

impl Mark {
    /// Seconds from here to `end`. Waits for the device to come that far.
    pub(crate) fn seconds_to(&self, end: &Self) -> Outcome<f64> {
        match (self, end) {
            (Self::Clock(begin), Self::Clock(end)) => Ok(end.duration_since(*begin).as_secs_f64()),
            #[cfg(feature = "cuda")]
            (Self::Event(begin), Self::Event(end)) => Ok(f64::from(begin.elapsed_ms(end)?) / 1e3),
            #[cfg(feature = "cuda")]
            _ => Err("moments of two clocks".into()),
        }
    }
}

#[cfg(feature = "cuda")]
pub(crate) mod cuda {
    //! What only the driver tells.

    use candle_core::Device;
    use candle_core::cuda_backend::cudarc::driver::sys::{
        self, CUgraphMem_attribute_enum as OfGraphs, CUmemPool_attribute_enum as OfPool,
    };
    use serde_json::{Value, json};

    /// The pool that tensors come from.
    fn pool(device: &Device) -> Option<sys::CUmemoryPool> {
        let Device::Cuda(device) = device else { return None };
        let stream = device.cuda_stream();
        let context = stream.context();
        context.bind_to_thread().ok()?;
        let mut pool = std::ptr::null_mut();
        // SAFETY: a valid place for the handle, and a device that there is.
        unsafe { sys::cuDeviceGetMemPool(&raw mut pool, context.cu_device()) }.result().ok()?;
        Some(pool)
    }

    fn get(pool: sys::CUmemoryPool, attribute: OfPool) -> Option<u64> {
        let mut value = 0u64;
        // SAFETY: these attributes are 64-bit numbers.
        unsafe { sys::cuMemPoolGetAttribute(pool, attribute, (&raw mut value).cast()) }.result().ok()?;
        Some(value)
    }

    /// The same of the memory of recorded graphs, which is not the pool's.
    fn of_graphs(device: &Device, attribute: OfGraphs) -> Option<u64> {
        let Device::Cuda(device) = device else { return None };
        let stream = device.cuda_stream();
        let mut value = 0u64;
        let place = (&raw mut value).cast();
        // SAFETY: these attributes are 64-bit numbers.
        unsafe { sys::cuDeviceGetGraphMemAttribute(stream.context().cu_device(), attribute, place) }
            .result()
            .ok()?;
        Some(value)
    }

    pub(super) fn forget_peak(device: &Device) {
        let Some(pool) = pool(device) else { return };
        if let Device::Cuda(device) = device {
            let stream = device.cuda_stream();
            let mut zero = 0u64;
            for attribute in
                [OfGraphs::CU_GRAPH_MEM_ATTR_USED_MEM_HIGH, OfGraphs::CU_GRAPH_MEM_ATTR_RESERVED_MEM_HIGH]
            {
                let place = (&raw mut zero).cast();
                // SAFETY: these attributes are 64-bit numbers and may be set to zero.
                let _ = unsafe {
                    sys::cuDeviceSetGraphMemAttribute(stream.context().cu_device(), attribute, place)
                };
            }
        }
        for attribute in [OfPool::CU_MEMPOOL_ATTR_USED_MEM_HIGH, OfPool::CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH] {
            let mut zero = 0u64;
            // SAFETY: these attributes are 64-bit numbers and may be set to zero.
            let _ = unsafe { sys::cuMemPoolSetAttribute(pool, attribute, (&raw mut zero).cast()) };
        }
    }

    pub(super) fn peak_mib(device: &Device) -> Value {
        let high = |attribute, graphs| {
            let of_pool = pool(device).and_then(|pool| get(pool, attribute))?;
            Some((of_pool + of_graphs(device, graphs).unwrap_or(0)) >> 20)
        };
        let reserved = OfGraphs::CU_GRAPH_MEM_ATTR_RESERVED_MEM_HIGH;
        let card = match device {
            Device::Cuda(device) => device.cuda_stream().context().mem_get_info().ok(),
            _ => None,
        };
        json!({
            "used": high(OfPool::CU_MEMPOOL_ATTR_USED_MEM_HIGH, OfGraphs::CU_GRAPH_MEM_ATTR_USED_MEM_HIGH),
            "reserved": high(OfPool::CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH, reserved),
            "graphs": of_graphs(device, reserved).map(|bytes| bytes >> 20),
            "card": card.map(|(free, total)| (total - free) >> 20),
        })
    }
}
