//! One safetensors file: validated once, mapped, tensors copied out one at a time.
//!
//! A tensor's mapped pages are given back to the system as soon as they are copied, so that loading a whole
//! checkpoint holds its weights once, not twice.

use std::fs::File;
use std::ops::Range;
use std::path::Path;

use candle_core::{Device, Tensor};
use darkroom_kernels::number_of_e4m3;
use half::vec::HalfBitsVecExt;
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::Dtype;

use super::copy::{self, Element, Order};
use super::header::{self, Storage};
use super::{Header, StoredType, TensorInfo, WeightsError, sparse};

const F32_EXPONENT: u32 = 0x7f80_0000;
const F16_EXPONENT: u32 = 0x7c00;
const BF16_EXPONENT: u32 = 0x7f80;
const F8E4M3_NAN: u32 = 0x7f;

/// Bytes on either side of a page that Linux maps along with it (`fault_around_bytes`' default).
#[cfg(unix)]
const AROUND: usize = 64 << 10;

enum Bytes {
    Mapped(Mmap),
    Static(&'static [u8]),
}

impl Bytes {
    fn all(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Static(bytes) => bytes,
        }
    }

    /// Tells the system that `range` will not be read soon.
    fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Self::Mapped(map) = self
            && !range.is_empty()
        {
            // A fault maps the pages around it as well, so those go too: whoever still needs one faults again.
            let start = range.start.saturating_sub(AROUND);
            let end = range.end.saturating_add(AROUND).min(map.len());
            // SAFETY: dropping the pages of a shared, read-only file mapping changes nothing that can be read:
            // the next access faults them in again from the file.
            let advised =
                unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start) };
            if let Err(error) = advised {
                tracing::debug!(%error, "cannot release mapped pages");
            }
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}

/// A safetensors file, open for reading.
pub struct WeightFile {
    name: String,
    header: Header,
    bytes: Bytes,
    data_start: usize,
}

impl std::fmt::Debug for WeightFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WeightFile")
            .field("name", &self.name)
            .field("tensors", &self.header.tensors.len())
            .finish_non_exhaustive()
    }
}

impl WeightFile {
    /// Opens and validates the file at `path`. Reads the header only.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let name = path.display().to_string();
        let io = |source| WeightsError::Io { file: name.clone(), source };
        // Asked before opening: opening a pipe would wait for its writer.
        let found = std::fs::metadata(path).map_err(io)?;
        if !found.is_file() {
            let (found, hint) = if found.is_dir() {
                (
                    "a folder",
                    "pass a file in it, or a folder with model_index.json where a model is asked for",
                )
            } else {
                ("neither a file nor a folder", "pass a regular file")
            };
            return Err(WeightsError::Foreign { file: name, found, hint });
        }
        let file = File::open(path).map_err(io)?;
        if file.metadata().map_err(io)?.len() == 0 {
            return Self::new(name, Bytes::Static(&[]));
        }
        // SAFETY: the mapping is read-only; a file truncated by somebody else while it is mapped is a fault of
        // that program that no reader of mapped files can rule out.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        Self::new(name, Bytes::Mapped(map))
    }

    /// Validates a file that is compiled into the program.
    pub fn from_static(name: &str, bytes: &'static [u8]) -> Result<Self, WeightsError> {
        Self::new(name.to_owned(), Bytes::Static(bytes))
    }

    fn new(name: String, bytes: Bytes) -> Result<Self, WeightsError> {
        let all = bytes.all();
        let (mut header, data_start) = header::parse(&name, all)?;
        sparse::fold(&mut header, all.get(data_start..).unwrap_or_default())
            .map_err(|reason| WeightsError::Malformed { file: name.clone(), reason })?;
        Ok(Self { name, header, bytes, data_start })
    }

    /// The path or name that errors speak of.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the file holds.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The size of the file in bytes.
    pub fn size(&self) -> usize {
        self.bytes.all().len()
    }

    /// A copy of the tensor stored as `name`, in its stored type.
    ///
    /// # Errors
    /// When it is missing, not of a floating type that networks compute with, or holds NaN or infinity.
    pub fn tensor(&self, name: &str, device: &Device) -> Result<Tensor, WeightsError> {
        let info = self.info(name)?;
        self.read(name, info, None, Order::Stored, &info.shape, device)
    }

    /// The only element of the tensor stored as `name`: settings such as a LoRA's alpha, which are stored in any
    /// number type.
    ///
    /// # Errors
    /// When it is missing, has more or fewer elements than one, is no number or not finite.
    pub fn scalar(&self, name: &str) -> Result<f64, WeightsError> {
        let info = self.info(name)?;
        if info.elements() != 1 {
            return Err(WeightsError::Shape {
                file: self.name.clone(),
                name: name.to_owned(),
                found: info.shape.clone(),
                expected: Vec::new(),
            });
        }
        let Storage::Dense(range) = &info.storage else { return Ok(0.0) };
        let bytes = self.bytes.all().get(self.data_start + range.start..self.data_start + range.end);
        let value = scalar(info.dtype, bytes.unwrap_or_default()).ok_or_else(|| WeightsError::Type {
            file: self.name.clone(),
            name: name.to_owned(),
            found: info.dtype.to_string(),
        })?;
        if !value.is_finite() {
            return Err(WeightsError::NotFinite { file: self.name.clone(), name: name.to_owned(), index: 0 });
        }
        Ok(value)
    }

    pub(super) fn info(&self, name: &str) -> Result<&TensorInfo, WeightsError> {
        self.header
            .tensors
            .get(name)
            .ok_or_else(|| WeightsError::Missing { file: self.name.clone(), name: name.to_owned() })
    }

    /// The tensor `name`, described by `info`, or some of its rows, in `order` and with `shape`. The caller
    /// answers for rows, order and shape fitting `info`.
    pub(super) fn read(
        &self,
        name: &str,
        info: &TensorInfo,
        rows: Option<Range<usize>>,
        order: Order,
        shape: &[usize],
        device: &Device,
    ) -> Result<Tensor, WeightsError> {
        let tensor = match info.dtype {
            StoredType::F32 => {
                let values = self.elements::<f32>(name, info, rows, order, F32_EXPONENT)?;
                Tensor::from_vec(values, shape, device)
            }
            StoredType::F16 => {
                let bits = self.elements::<u16>(name, info, rows, order, F16_EXPONENT)?;
                Tensor::from_vec(bits.reinterpret_into::<f16>(), shape, device)
            }
            StoredType::BF16 => {
                let bits = self.elements::<u16>(name, info, rows, order, BF16_EXPONENT)?;
                Tensor::from_vec(bits.reinterpret_into::<bf16>(), shape, device)
            }
            StoredType::F8E4M3 => {
                let codes = self.elements::<u8>(name, info, rows, order, F8E4M3_NAN)?;
                let wide = codes.into_iter().map(|code| bf16::from_f32(number_of_e4m3(code)));
                Tensor::from_vec(wide.collect::<Vec<_>>(), shape, device)
            }
            other => {
                return Err(WeightsError::Type {
                    file: self.name.clone(),
                    name: name.to_owned(),
                    found: other.to_string(),
                });
            }
        };
        Ok(tensor?)
    }

    /// The codes of a tensor that is stored as `F8E4M3`, of `u8`. The caller answers for that and as for [`Self::read`].
    pub(super) fn read_codes(
        &self,
        name: &str,
        info: &TensorInfo,
        rows: Option<Range<usize>>,
        order: Order,
        shape: &[usize],
        device: &Device,
    ) -> Result<Tensor, WeightsError> {
        let codes = self.elements::<u8>(name, info, rows, order, F8E4M3_NAN)?;
        Ok(Tensor::from_vec(codes, shape, device)?)
    }

    fn elements<E: Element>(
        &self,
        name: &str,
        info: &TensorInfo,
        rows: Option<Range<usize>>,
        order: Order,
        exponent: u32,
    ) -> Result<Vec<E>, WeightsError> {
        let all = self.bytes.all();
        let not_finite =
            |index| WeightsError::NotFinite { file: self.name.clone(), name: name.to_owned(), index };
        // Elements of one row, of which `rows` selects some.
        let row = info.shape.iter().skip(1).product::<usize>();
        match &info.storage {
            Storage::Dense(range) => {
                let mut range = self.data_start + range.start..self.data_start + range.end;
                let mut first = 0;
                if let Some(rows) = rows {
                    first = rows.start * row;
                    range = range.start + first * E::BYTES..range.start + rows.end * row * E::BYTES;
                }
                let start = range.start;
                let copied =
                    copy::copy(all.get(range.clone()).unwrap_or_default(), exponent, order, |done| {
                        self.bytes.release(start + done.start..start + done.end);
                    });
                // Once more: a piece's last faults may have mapped pages of its neighbour, copied before it.
                self.bytes.release(range);
                copied.map_err(|index| not_finite(first + index))
            }
            Storage::SparseRows { rows: numbers, values } => {
                let data = all.get(self.data_start..).unwrap_or_default();
                let table = expand::<E>(data, info, numbers, values, row, exponent).map_err(not_finite)?;
                let selected = rows.unwrap_or(0..info.elements() / row.max(1));
                let selected = selected.start * row..selected.end * row;
                let selected = table.get(selected).unwrap_or_default();
                if order == Order::Stored && selected.len() == info.elements() {
                    return Ok(table);
                }
                Ok(copy::reorder(selected, order))
            }
        }
    }
}

/// A number of type `dtype` stored as `bytes`.
fn scalar(dtype: StoredType, bytes: &[u8]) -> Option<f64> {
    Some(match dtype {
        StoredType::F32 => f32::from_le_bytes(*bytes.first_chunk()?).into(),
        StoredType::F16 => f16::from_le_bytes(*bytes.first_chunk()?).into(),
        StoredType::BF16 => bf16::from_le_bytes(*bytes.first_chunk()?).into(),
        StoredType::I64 => i64::from_le_bytes(*bytes.first_chunk()?) as f64,
        StoredType::Other(Dtype::F64) => f64::from_le_bytes(*bytes.first_chunk()?),
        StoredType::Other(Dtype::I32) => i32::from_le_bytes(*bytes.first_chunk()?).into(),
        _ => return None,
    })
}

/// The whole table of which only the rows `numbers` are stored.
fn expand<E: Element>(
    data: &[u8],
    info: &TensorInfo,
    numbers: &Range<usize>,
    values: &Range<usize>,
    row: usize,
    exponent: u32,
) -> Result<Vec<E>, usize> {
    let mut table = vec![E::default(); info.elements()];
    let values = data.get(values.clone()).unwrap_or_default();
    let stored = values.chunks_exact((row * E::BYTES).max(1));
    for (number, bytes) in sparse::row_numbers(data, numbers).zip(stored) {
        // In range and in order: checked when the file was opened.
        let start = usize::try_from(number).unwrap_or(0) * row;
        if let Some(target) = table.get_mut(start..start + row)
            && let Some(index) = copy::stored(bytes, target, exponent)
        {
            return Err(start + index);
        }
    }
    Ok(table)
}
