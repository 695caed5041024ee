//! Devices by name, and what is known of the machine's: the only place where one is opened.
//!
//! A build without the feature `cuda` knows the CPU alone and says so when it is asked for more.

use std::fmt;
use std::str::FromStr;

use candle_core::{Device, Result, Tensor};

/// Where to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeviceName {
    /// The first CUDA card if one answers, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// A CUDA card by its number.
    Cuda(usize),
}

/// A text that names no device.
#[derive(Debug, thiserror::Error)]
#[error("'{0}' is no device: `auto`, `cpu`, `cuda` and `cuda:0`, `cuda:1`, … are")]
pub struct NoSuchName(String);

impl FromStr for DeviceName {
    type Err = NoSuchName;

    fn from_str(text: &str) -> std::result::Result<Self, NoSuchName> {
        match text.split_once(':') {
            None if text == "auto" => Ok(Self::Auto),
            None if text == "cpu" => Ok(Self::Cpu),
            None if text == "cuda" => Ok(Self::Cuda(0)),
            Some(("cuda", number)) => number.parse().map(Self::Cuda).map_err(|_| NoSuchName(text.to_owned())),
            _ => Err(NoSuchName(text.to_owned())),
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

/// Why a card cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The program was built without CUDA.
    #[error("this program was built without CUDA (`cargo build --features cuda` builds it in)")]
    NotBuilt,
    /// There is no driver, or no card.
    #[error("no CUDA card answers: {0}")]
    NoCard(String),
    /// There are cards, but not this one.
    #[error("there is no card cuda:{number}: the machine has {count}, numbered from 0")]
    NoSuchCard {
        /// Which was asked for.
        number: usize,
        /// How many there are.
        count: usize,
    },
    /// The card is there and does not work.
    #[error("the card cuda:{number} cannot be used: {reason}")]
    Failed {
        /// Which.
        number: usize,
        /// What the driver or a library says.
        reason: String,
    },
}

/// A CUDA card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// Its number.
    pub number: usize,
    /// What it calls itself.
    pub name: String,
    /// Compute capability: 8.0 is Ampere, 8.9 Ada, 9.0 Hopper.
    pub capability: (i32, i32),
    /// Bytes of memory in all.
    pub memory: u64,
    /// Bytes that nobody has; `None` where the driver does not say.
    pub free: Option<u64>,
}

/// A library that CUDA paths use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Library {
    /// `CUDA driver`, `NVRTC`, `cuBLASLt`, `cuDNN`.
    pub name: &'static str,
    /// Its version, or why it cannot be used.
    pub version: std::result::Result<String, String>,
    /// Whether there is another way without it.
    pub optional: bool,
}

/// The machine's cards.
///
/// # Errors
/// When the program was built without CUDA, or no driver or card answers.
pub fn cards() -> std::result::Result<Vec<Card>, DeviceError> {
    #[cfg(feature = "cuda")]
    return crate::cuda::device::cards();
    #[cfg(not(feature = "cuda"))]
    Err(DeviceError::NotBuilt)
}

/// The libraries that CUDA paths use; none where the program was built without CUDA.
pub fn libraries() -> Vec<Library> {
    #[cfg(feature = "cuda")]
    return crate::cuda::device::libraries();
    #[cfg(not(feature = "cuda"))]
    Vec::new()
}

/// Opens a device. [`DeviceName::Auto`] always gives one: where it is the CPU though the program was built with CUDA,
/// the second value says why.
///
/// # Errors
/// When a card is asked for that cannot be used.
pub fn open(name: DeviceName) -> std::result::Result<(Device, Option<DeviceError>), DeviceError> {
    match name {
        DeviceName::Cpu => Ok((Device::Cpu, None)),
        DeviceName::Cuda(number) => Ok((open_card(number)?, None)),
        DeviceName::Auto => match open_card(0) {
            Ok(device) => Ok((device, None)),
            Err(DeviceError::NotBuilt) => Ok((Device::Cpu, None)),
            Err(reason) => Ok((Device::Cpu, Some(reason))),
        },
    }
}

fn open_card(number: usize) -> std::result::Result<Device, DeviceError> {
    #[cfg(feature = "cuda")]
    return crate::cuda::device::open(number);
    #[cfg(not(feature = "cuda"))]
    {
        let _ = number;
        Err(DeviceError::NotBuilt)
    }
}

/// The same card with a stream of its own, on which work goes on beside `device`'s; the CPU itself. Tensors go from one
/// to the other by [`moved`] alone.
///
/// # Errors
/// When the card has no further stream.
pub fn beside(device: &Device) -> Result<Device> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(cuda) = device {
        return crate::cuda::device::beside(cuda);
    }
    Ok(device.clone())
}

/// `x` on `device`, ordered after what is under way on `x`'s device. Between streams of one card nothing waits on the
/// host.
///
/// # Errors
/// When there is no memory for it.
pub fn moved(x: &Tensor, device: &Device) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let (Device::Cuda(from), Device::Cuda(to)) = (x.device(), device)
        && from.id() != to.id()
    {
        return crate::cuda::device::moved(x, from, to);
    }
    x.to_device(device)
}

/// A point in a device's work: what was handed to it before is done once [`Mark::wait`] returns.
#[derive(Debug)]
pub struct Mark {
    #[cfg(feature = "cuda")]
    inner: Option<crate::cuda::device::Mark>,
}

/// Marks the end of what was handed to `device` so far. A CPU has done all of it already.
///
/// # Errors
/// When the device fails.
pub fn mark(device: &Device) -> Result<Mark> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(cuda) = device {
        return Ok(Mark { inner: Some(crate::cuda::device::mark(cuda)?) });
    }
    let _ = device;
    Ok(Mark {
        #[cfg(feature = "cuda")]
        inner: None,
    })
}

impl Mark {
    /// Returns when the device has come so far.
    ///
    /// # Errors
    /// When the device fails, also in what was handed to it before.
    pub fn wait(&self) -> Result<()> {
        #[cfg(feature = "cuda")]
        if let Some(mark) = &self.inner {
            return mark.wait();
        }
        Ok(())
    }
}

/// Bytes of memory of `device` that are free, and in all; `None` for the CPU.
pub fn memory(device: &Device) -> Option<(u64, u64)> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(cuda) = device {
        return crate::cuda::device::memory(cuda);
    }
    let _ = device;
    None
}

/// Gives the memory that a device's pool holds and nobody uses back to the card.
pub fn trim(device: &Device) {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(cuda) = device {
        crate::cuda::device::trim(cuda);
    }
    let _ = device;
}

/// Whether `device` multiplies `bf16` matrices in hardware: cards from Ampere (8.0) on.
pub fn multiplies_bf16(device: &Device) -> bool {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(cuda) = device {
        return crate::cuda::device::capability(cuda).is_some_and(|capability| capability >= (8, 0));
    }
    let _ = device;
    false
}

/// Whether an error says that a device's memory is full.
pub fn is_out_of_memory(error: &candle_core::Error) -> bool {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        #[cfg(feature = "cuda")]
        if crate::cuda::device::says_out_of_memory(error) {
            return true;
        }
        if error.to_string().contains("CUDA_ERROR_OUT_OF_MEMORY") {
            return true;
        }
        source = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_names() {
        for (text, name) in [
            ("auto", DeviceName::Auto),
            ("cpu", DeviceName::Cpu),
            ("cuda", DeviceName::Cuda(0)),
            ("cuda:3", DeviceName::Cuda(3)),
        ] {
            assert_eq!(text.parse::<DeviceName>().unwrap(), name);
        }
        for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "cpu:0", "CUDA:0"] {
            assert!(text.parse::<DeviceName>().unwrap_err().to_string().contains("cuda:0"), "{text}");
        }
    }

    #[test]
    fn the_cpu_is_always_there() {
        assert!(open(DeviceName::Cpu).unwrap().0.is_cpu());
        open(DeviceName::Auto).unwrap();
        assert!(memory(&Device::Cpu).is_none());
        assert!(!multiplies_bf16(&Device::Cpu));
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn without_cuda_a_card_is_refused_and_the_cpu_taken_silently() {
        assert_eq!(open(DeviceName::Cuda(0)).unwrap_err(), DeviceError::NotBuilt);
        let (device, reason) = open(DeviceName::Auto).unwrap();
        assert!(device.is_cpu() && reason.is_none());
    }
}
