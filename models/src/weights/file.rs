//! One safetensors file: validated once, mapped, tensors copied out one at a time.

use std::fs::File;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use memmap2::Mmap;

use super::{Header, StoredType, TensorInfo, WeightsError};

enum Bytes {
    Mapped(Mmap),
    Static(&'static [u8]),
}

/// A safetensors file, open for reading.
pub struct WeightFile {
    name: String,
    header: Header,
    bytes: Bytes,
    data_start: usize,
}

impl WeightFile {
    /// Opens and validates the file at `path`.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let name = path.display().to_string();
        let io = |source| WeightsError::Io { file: name.clone(), source };
        let file = File::open(path).map_err(io)?;
        // SAFETY: the mapping is read-only; a file truncated by somebody else while it is mapped is a fault of
        // that program that no reader of mapped files can rule out.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        Self::new(name.clone(), Bytes::Mapped(map))
    }

    /// Validates a file that is compiled into the program.
    pub fn from_static(name: &str, bytes: &'static [u8]) -> Result<Self, WeightsError> {
        Self::new(name.to_owned(), Bytes::Static(bytes))
    }

    fn new(name: String, bytes: Bytes) -> Result<Self, WeightsError> {
        let all: &[u8] = match &bytes {
            Bytes::Mapped(map) => map,
            Bytes::Static(bytes) => bytes,
        };
        let (size, metadata) = safetensors::SafeTensors::read_metadata(all)
            .map_err(|e| WeightsError::Malformed { file: name.clone(), reason: e.to_string() })?;
        let tensors = metadata
            .tensors()
            .into_iter()
            .map(|(name, info)| {
                let dtype = match info.dtype {
                    safetensors::Dtype::F32 => StoredType::F32,
                    safetensors::Dtype::F16 => StoredType::F16,
                    safetensors::Dtype::BF16 => StoredType::BF16,
                    other => StoredType::Other(other),
                };
                let range = info.data_offsets.0..info.data_offsets.1;
                (name, TensorInfo { dtype, shape: info.shape.clone(), range })
            })
            .collect();
        let metadata = metadata.metadata().clone().unwrap_or_default().into_iter().collect();
        Ok(Self { name, header: Header { tensors, metadata }, bytes, data_start: size + 8 })
    }

    /// The path or name that errors speak of.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the file holds.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// A copy of the tensor stored as `name`, in its stored type.
    pub fn tensor(&self, name: &str, device: &Device) -> Result<Tensor, WeightsError> {
        let info = self
            .header
            .tensors
            .get(name)
            .ok_or_else(|| WeightsError::Missing { file: self.name.clone(), name: name.to_owned() })?;
        let dtype = match info.dtype {
            StoredType::F32 => DType::F32,
            StoredType::F16 => DType::F16,
            StoredType::BF16 => DType::BF16,
            StoredType::Other(other) => {
                return Err(WeightsError::Type {
                    file: self.name.clone(),
                    name: name.to_owned(),
                    found: format!("{other:?}"),
                });
            }
        };
        let all: &[u8] = match &self.bytes {
            Bytes::Mapped(map) => map,
            Bytes::Static(bytes) => bytes,
        };
        let raw = &all[self.data_start + info.range.start..self.data_start + info.range.end];
        Ok(Tensor::from_raw_buffer(raw, dtype, &info.shape, device)?)
    }
}
