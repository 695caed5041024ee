//! Weight files and the named views that networks load from.
//!
//! [`WeightFile`] is one safetensors file, validated and mapped. [`Weights`] is what a network sees: tensors
//! under the reference library's (diffusers', transformers') names, wherever and however they are stored.

mod copy;
mod file;
mod foreign;
mod header;
mod kept;
mod matrix;
mod rows;
pub mod sparse;
mod stored;
mod view;

pub use file::WeightFile;
pub use header::{Header, MAX_HEADER_BYTES, MAX_RANK, MAX_TENSORS, Storage, StoredType, TensorInfo};
pub use kept::{Kept, KeptOrder, KeptTensor};
pub use matrix::Matrix;
pub(crate) use rows::Rows;
pub(crate) use stored::is_scale;
pub use stored::{Stored, Transform};
pub use view::Weights;

/// What is wrong with a weight file or with what it holds.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// The file could not be opened or mapped.
    #[error("{file}: cannot read: {source}")]
    Io {
        /// The file.
        file: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not a whole, well-formed safetensors file.
    #[error("{file}: not a valid safetensors file: {reason}")]
    Malformed {
        /// The file.
        file: String,
        /// What is wrong, and where.
        reason: String,
    },
    /// It is recognisably something else than a safetensors file.
    #[error("{file}: this is {found}: {hint}")]
    Foreign {
        /// The file.
        file: String,
        /// What it is.
        found: &'static str,
        /// What to do about it.
        hint: &'static str,
    },
    /// A tensor that the network needs is not there.
    #[error("{file}: tensor '{name}' is missing")]
    Missing {
        /// Where it was looked for.
        file: String,
        /// The stored name if known, else the canonical one.
        name: String,
    },
    /// A tensor has another shape than the network needs.
    #[error("{file}: tensor '{name}' has shape {found:?}, but {expected:?} is needed")]
    Shape {
        /// Where it is.
        file: String,
        /// Its stored name.
        name: String,
        /// The shape in the file.
        found: Vec<usize>,
        /// The shape that the network needs.
        expected: Vec<usize>,
    },
    /// A tensor is stored in a type that no network computes with.
    #[error("{file}: tensor '{name}' is stored as {found}; f32, f16, bf16 or f8_e4m3 is needed")]
    Type {
        /// Where it is.
        file: String,
        /// Its stored name.
        name: String,
        /// The type in the file.
        found: String,
    },
    /// A tensor holds NaN or infinity.
    #[error(
        "{file}: tensor '{name}' holds NaN or infinite values (first at element {index}): the file is damaged, get it \
         again"
    )]
    NotFinite {
        /// Where it is.
        file: String,
        /// Its stored name.
        name: String,
        /// Index of the first such element.
        index: usize,
    },
    /// A variant of a network was to be built from weights that the network reads from the file each time.
    #[error(
        "{file}: tensor '{name}' is not in memory, but read whenever it is needed: nothing can be built from it"
    )]
    Streamed {
        /// The file.
        file: String,
        /// The canonical name.
        name: String,
    },
    /// Tensors are left that belong to no part of the network.
    #[error("{file}: {count} tensors fit nowhere in the network, first '{first}'")]
    Unexpected {
        /// Where they are.
        file: String,
        /// How many.
        count: usize,
        /// The first one's stored name.
        first: String,
    },
    /// candle could not build the tensor.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}
