//! The header of a safetensors file: what is stored, where, in which type and shape.

use std::collections::BTreeMap;
use std::ops::Range;

/// Element types that safetensors files of this field use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoredType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    BF16,
    /// Anything else that safetensors knows: kept for inspection, never computed with.
    Other(safetensors::Dtype),
}

/// One tensor's entry in the header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Element type.
    pub dtype: StoredType,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Where its bytes lie in the file's data section.
    pub range: Range<usize>,
}

/// All entries, by stored name, and the free-form metadata.
#[derive(Debug, Clone, Default)]
pub struct Header {
    /// Every tensor.
    pub tensors: BTreeMap<String, TensorInfo>,
    /// `__metadata__`.
    pub metadata: BTreeMap<String, String>,
}
