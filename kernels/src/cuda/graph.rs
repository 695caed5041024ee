//! Computations recorded as CUDA graphs: hundreds of launches become one.
//!
//! Recording goes on in a stream of its own (the recorder's), so that what other threads hand to the device meanwhile is
//! not recorded with it; the graph is then launched in the device's stream. The computation must therefore take all
//! that it computes with from its inputs, and touch what lies on the device itself (weights) by kernels alone that are
//! launched where their activations are: those of this crate.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda_backend::{DeviceId, WrapErr};
use candle_core::{CudaDevice, Device, Error, Result, Tensor};
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaGraph, CudaStream, result};

use super::device::moved;
use super::launch::{self, Dense};

/// A recorded computation with the memory that it reads from and writes to.
pub(crate) struct Recording {
    graph: CudaGraph,
    inputs: Vec<Dense>,
    output: Dense,
    stream: Arc<CudaStream>,
    recorder: Arc<CudaStream>,
}

// SAFETY: a graph may be used from any thread, by one at a time: `replay` takes it exclusively.
unsafe impl Send for Recording {}

impl Drop for Recording {
    fn drop(&mut self) {
        // Its memory is freed in the recorder's stream, after the last launch in the device's.
        let _ = self.recorder.join(&self.stream);
    }
}

/// The device that `device`'s computations are recorded on.
fn recorder(device: &CudaDevice) -> Result<CudaDevice> {
    static RECORDERS: Mutex<Vec<(DeviceId, CudaDevice)>> = Mutex::new(Vec::new());
    let mut known = RECORDERS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, recorder)) = known.iter().find(|(id, _)| *id == device.id()) {
        return Ok(recorder.clone());
    }
    let recorder = CudaDevice::new_with_stream(device.cuda_stream().context().ordinal())?;
    // SAFETY: as for every device here: streams are ordered by hand.
    unsafe { recorder.disable_event_tracking() };
    known.push((device.id(), recorder.clone()));
    Ok(recorder)
}

/// Runs `run` over copies of `inputs` once to see that it can, and once to record it. Gives the recording and what the
/// first run gave.
///
/// # Errors
/// When `run` fails or does something that no graph can hold, such as reading a value back.
pub(crate) fn record(
    device: &CudaDevice,
    inputs: &[&Tensor],
    run: &dyn Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<(Recording, Tensor)> {
    let recorder = recorder(device)?;
    // Small tables that candle uploads (strides of views) are kept, so that the recording finds them on the device.
    let _kept = recorder.enable_cuda_graph_htod_cache();
    let (stream, recording) = (device.cuda_stream(), recorder.cuda_stream());
    let copies = inputs
        .iter()
        .map(|input| Dense::of(&moved(input, device, &recorder)?))
        .collect::<Result<Vec<_>>>()?;
    let tensors: Vec<Tensor> = copies.iter().map(|copy| copy.tensor().clone()).collect();
    let first = run(&tensors)?.contiguous()?;
    let output = Dense::unset(first.shape(), first.dtype(), &Device::Cuda(recorder.clone()))?;
    let first = moved(&first, &recorder, device)?;
    recording.synchronize().w()?;
    recording.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).w()?;
    // What is made in here is freed in here too: the graph owns its memory.
    let recorded = run(&tensors).and_then(|made| copy(&Dense::of(&made)?, &output, &recording));
    let ended =
        recording.end_capture(CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH).w();
    recorded?;
    let graph = ended?.ok_or_else(|| Error::msg("nothing was recorded"))?;
    stream.join(&recording).w()?;
    Ok((Recording { graph, inputs: copies, output, stream, recorder: recording }, first))
}

impl Recording {
    /// Bytes of its inputs' and its output's copies.
    pub(crate) fn bytes(&self) -> usize {
        let of = |tensor: &Tensor| tensor.elem_count() * tensor.dtype().size_in_bytes();
        self.inputs.iter().chain([&self.output]).map(|dense| of(dense.tensor())).sum()
    }

    /// The recorded computation over other inputs of the same shapes and types.
    pub(crate) fn replay(&mut self, inputs: &[&Tensor], device: &CudaDevice) -> Result<Tensor> {
        for (to, from) in self.inputs.iter().zip(inputs) {
            copy(&Dense::of(from)?, to, &self.stream)?;
        }
        // SAFETY: the graph was instantiated and is used by this call alone.
        unsafe { result::graph::launch(self.graph.cu_graph_exec(), self.stream.cu_stream()) }.w()?;
        let (shape, dtype) = (self.output.tensor().shape(), self.output.tensor().dtype());
        let output = Dense::unset(shape, dtype, &Device::Cuda(device.clone()))?;
        copy(&self.output, &output, &self.stream)?;
        Ok(output.into_tensor())
    }
}

/// Copies all of `from` to `to`, which has the same size, in `stream`.
fn copy(from: &Dense, to: &Dense, stream: &CudaStream) -> Result<()> {
    let bytes = |of: &Dense| of.tensor().elem_count() * of.tensor().dtype().size_in_bytes();
    if bytes(from) != bytes(to) {
        candle_core::bail!("a recording was given {} bytes for {}", bytes(from), bytes(to));
    }
    launch::copy(from.address(), to.address(), bytes(from), stream)
}
