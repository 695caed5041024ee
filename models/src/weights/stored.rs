//! Where a canonical tensor is stored, and what has to be done to get it: reordering, some rows of it, the scale of weights
//! in eight bits. Below the views that networks load from.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use darkroom_kernels::Fp8Weight;

use super::copy::Order;
use super::header::StoredType;
use super::kept::KeptTensor;
use super::{TensorInfo, WeightFile, WeightsError};

/// What to do with a stored tensor to get the canonical one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transform {
    /// Nothing.
    None,
    /// `[a, b] -> [b, a]`.
    Transpose,
    /// Rows `start .. start + len` of the first dimension (packed q, k, v projections).
    Rows {
        /// First row.
        start: usize,
        /// Number of rows.
        len: usize,
    },
    /// `[out, in, 1, 1] -> [out, in]`: a 1×1 convolution used as a linear layer. `[out, in]` stays.
    Squeeze,
}

/// Where a canonical tensor is stored.
#[derive(Debug, Clone)]
pub struct Stored {
    /// The file that holds it.
    pub file: Arc<WeightFile>,
    /// Its name there.
    pub name: String,
    /// How to make it canonical.
    pub transform: Transform,
}

impl Stored {
    /// The canonical tensor's shape; `None` when the tensor is missing or its shape does not allow the
    /// transform.
    pub fn shape(&self) -> Option<Vec<usize>> {
        let shape = &self.file.info(&self.name).ok()?.shape;
        match (&self.transform, shape.as_slice()) {
            (Transform::None, _) => Some(shape.clone()),
            (Transform::Transpose, [rows, columns]) => Some(vec![*columns, *rows]),
            (Transform::Rows { start, len }, [rows, rest @ ..]) if start.checked_add(*len)? <= *rows => {
                Some(std::iter::once(len).chain(rest).copied().collect())
            }
            (Transform::Squeeze, [out, input] | [out, input, 1, 1]) => Some(vec![*out, *input]),
            _ => None,
        }
    }

    /// In the stored type; in `bf16` of what is stored in 8 bits without a scale, in `f32` with one.
    pub(super) fn read(
        &self,
        info: &TensorInfo,
        shape: &[usize],
        device: &Device,
    ) -> Result<Tensor, WeightsError> {
        let (rows, order) = self.selection(info);
        let tensor = self.file.read(&self.name, info, rows, order, shape, device)?;
        match self.scale(info)? {
            Some(scale) => Ok(tensor.to_dtype(DType::F32)?.affine(scale.into(), 0.0)?),
            None => Ok(tensor),
        }
    }

    /// A matrix that is stored in 8 bits, as it is.
    pub(super) fn read_eight_bit(
        &self,
        info: &TensorInfo,
        shape: &[usize],
        device: &Device,
    ) -> Result<Fp8Weight, WeightsError> {
        let (rows, order) = self.selection(info);
        let codes = self.file.read_codes(&self.name, info, rows, order, shape, device)?;
        let scale = self.scale(info)?.unwrap_or(1.0);
        Ok(Fp8Weight::from_codes(codes.flatten_from(1)?, scale)?)
    }

    fn selection(&self, info: &TensorInfo) -> (Option<Range<usize>>, Order) {
        match (&self.transform, info.shape.as_slice()) {
            (Transform::Transpose, [rows, columns]) => {
                (None, Order::Transposed { rows: *rows, columns: *columns })
            }
            (Transform::Rows { start, len }, _) => (Some(*start..start + len), Order::Stored),
            _ => (None, Order::Stored),
        }
    }

    /// What numbers that are stored in 8 bits are multiplied by, where the file says so.
    fn scale(&self, info: &TensorInfo) -> Result<Option<f32>, WeightsError> {
        if info.dtype != StoredType::F8E4M3 {
            return Ok(None);
        }
        let tensors = &self.file.header().tensors;
        let named = SCALES.iter().find_map(|scale| {
            let layer = self.name.strip_suffix("weight")?;
            tensors.get_key_value(&format!("{layer}{scale}"))
        });
        named.map(|(name, _)| Ok(self.file.scalar(name)? as f32)).transpose()
    }
}

/// What the scale of `weight` is called beside it: in files for ComfyUI, before and after its format had a name.
const SCALES: [&str; 2] = ["scale_weight", "weight_scale"];

/// Whether a stored name is that of a scale or of a mark of weights in 8 bits, which belong to other tensors.
pub(crate) fn is_scale(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    SCALES.contains(&last) || matches!(last, "scale_input" | "input_scale" | "scaled_fp8" | "comfy_quant")
}

/// A tensor that nothing took yet.
#[derive(Clone)]
pub(super) enum Source {
    Stored(Stored),
    Kept(KeptTensor),
}

impl Source {
    pub(super) fn shape(&self) -> Option<Vec<usize>> {
        match self {
            Self::Stored(stored) => stored.shape(),
            Self::Kept(kept) => Some(kept.shape()),
        }
    }

    /// `None` for types that no network computes with.
    pub(super) fn dtype(&self) -> Option<DType> {
        match self {
            Self::Stored(stored) => match stored.file.info(&stored.name).ok()?.dtype {
                StoredType::F32 => Some(DType::F32),
                StoredType::F16 => Some(DType::F16),
                // Numbers of 8 bits are widened to this without loss.
                StoredType::BF16 | StoredType::F8E4M3 => Some(DType::BF16),
                _ => None,
            },
            Self::Kept(kept) => Some(kept.tensor.dtype()),
        }
    }

    /// Whether its codes come from the file.
    pub(super) fn is_stored_eight_bit(&self) -> bool {
        match self {
            Self::Stored(_) => self.is_eight_bit_matrix(),
            Self::Kept(kept) => kept.is_stored_eight_bit(),
        }
    }

    /// Whether it is a matrix that is stored in 8 bits.
    pub(super) fn is_eight_bit_matrix(&self) -> bool {
        match self {
            Self::Stored(stored) => {
                stored.file.info(&stored.name).is_ok_and(|info| info.dtype == StoredType::F8E4M3)
                    && stored.shape().is_some_and(|shape| matches!(shape[..], [_, _] | [_, _, 1, 1]))
            }
            Self::Kept(kept) => kept.is_eight_bit(),
        }
    }

    pub(super) fn bytes(&self) -> Option<u64> {
        match self {
            Self::Stored(stored) => {
                let elements: usize = stored.shape()?.iter().product();
                let bits = stored.file.info(&stored.name).ok()?.dtype.bits() as u64;
                Some((elements as u64).saturating_mul(bits) / 8)
            }
            Self::Kept(kept) => Some(kept.bytes()),
        }
    }
}
