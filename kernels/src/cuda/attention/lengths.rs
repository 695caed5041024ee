//! Lengths of sequences in a card's memory, where a captured graph can read them for as long as the process lives.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};

use candle_core::{CudaDevice, Device, Error, Result, Tensor};
use cudarc::driver::sys::CUstreamCaptureStatus;

use crate::cuda::launch::Dense;

/// The most lists that are kept, of all streams together: they are never freed, since a graph may read them.
const MOST_LISTS: usize = 1024;
/// The longest list.
const MOST_ROWS: usize = 1024;

/// Lists by their stream and what they hold: on that stream only is a copy done before what comes next.
type Kept = HashMap<(usize, Vec<usize>), Dense>;

/// Where `lengths` lie on `device` as 32-bit numbers, one after another. `None` where they are not there yet and cannot
/// be brought: while a graph is captured, or where too many others are kept.
pub(super) fn address(device: &CudaDevice, lengths: &[usize]) -> Result<Option<u64>> {
    static KEPT: OnceLock<Mutex<Kept>> = OnceLock::new();
    let stream = device.cuda_stream();
    let key = (stream.cu_stream() as usize, lengths.to_vec());
    let mut kept = KEPT.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(list) = kept.get(&key) {
        return Ok(Some(list.address()));
    }
    let is_captured =
        stream.capture_status().map_err(Error::wrap)? != CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
    if is_captured || kept.len() >= MOST_LISTS || lengths.len() > MOST_ROWS {
        return Ok(None);
    }
    let numbers: Vec<i32> = lengths
        .iter()
        .map(|&x| i32::try_from(x))
        .collect::<std::result::Result<_, _>>()
        .map_err(Error::wrap)?;
    let list = Tensor::from_vec(numbers, lengths.len(), &Device::Cuda(device.clone()))?;
    let list = Dense::of(&list)?;
    let address = list.address();
    kept.insert(key, list);
    Ok(Some(address))
}
