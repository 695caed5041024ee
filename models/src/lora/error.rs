//! What can be wrong with a LoRA, alone or for a model.

use super::Family;
use crate::weights::WeightsError;

/// Why a LoRA cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoraError {
    /// Its file is unreadable or damaged, or a tensor is of a type that nothing computes with.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The file holds nothing that a LoRA is made of.
    #[error(
        "{file}: this is not a LoRA (none of its {tensors} tensors has a LoRA's name, first '{first}'): pick a \
         LoRA file"
    )]
    NotALora {
        /// The file.
        file: String,
        /// How many tensors it has.
        tensors: usize,
        /// The first one's name.
        first: String,
    },
    /// It is of a kind that is not supported.
    #[error(
        "{file}: tensor '{tensor}' belongs to {kind}, which is not supported: use a LoRA, LoHa or LoKr file"
    )]
    Unsupported {
        /// The file.
        file: String,
        /// One of the tensors.
        tensor: String,
        /// What it is.
        kind: &'static str,
    },
    /// It was made for another kind of model.
    #[error("{file}: this is a LoRA for {family}, but '{model}' is {wanted}: pick one made for {wanted}")]
    Family {
        /// The file.
        file: String,
        /// What it was made for.
        family: Family,
        /// The model it was to change.
        model: String,
        /// What that model is.
        wanted: Family,
    },
    /// Not one of its tensors fits a layer of the model.
    #[error(
        "{file}: none of its {modules} modules fits a layer of '{model}', first '{first}': pick a LoRA made for \
         {wanted}"
    )]
    NothingFits {
        /// The file.
        file: String,
        /// How many modules it has.
        modules: usize,
        /// The first one's name.
        first: Box<str>,
        /// The model it was to change.
        model: Box<str>,
        /// What that model is.
        wanted: Family,
    },
    /// A tensor has a shape that does not fit the layer that it changes.
    #[error(
        "{file}: tensor '{tensor}' has shape {found:?}, which does not fit layer '{layer}' of shape \
         {expected:?}: pick a LoRA made for this model"
    )]
    Shape {
        /// The file.
        file: String,
        /// The tensor.
        tensor: Box<str>,
        /// Its shape.
        found: Box<[usize]>,
        /// The layer that it should change.
        layer: Box<str>,
        /// That layer's shape.
        expected: Box<[usize]>,
    },
    /// Two tensors that are multiplied have different ranks.
    #[error(
        "{file}: '{first}' of shape {first_shape:?} and '{second}' of shape {second_shape:?} do not have the \
         same rank: the file is damaged, get it again"
    )]
    Rank {
        /// The file.
        file: String,
        /// One tensor.
        first: Box<str>,
        /// Its shape.
        first_shape: Box<[usize]>,
        /// The other.
        second: Box<str>,
        /// Its shape.
        second_shape: Box<[usize]>,
    },
    /// A tensor lacks the one that it goes with.
    #[error("{file}: module '{module}' has no {missing}: the file is incomplete, get it again")]
    Incomplete {
        /// The file.
        file: String,
        /// The module's stored name.
        module: String,
        /// What is missing.
        missing: &'static str,
    },
    /// Two tensors say the same thing.
    #[error("{file}: '{first}' and '{second}' both change the same layer in the same way: use one of them")]
    Twice {
        /// The file.
        file: String,
        /// One stored name.
        first: String,
        /// The other.
        second: String,
    },
    /// A strength is NaN or infinite.
    #[error("a LoRA's strength is {strength}: pass a number")]
    Strength {
        /// It.
        strength: f64,
    },
    /// A LoRA that is bound to one model is applied to another.
    #[error("layer '{layer}' of a LoRA does not fit '{model}': bind the LoRA to this model first")]
    OtherModel {
        /// The layer.
        layer: String,
        /// The model.
        model: String,
    },
    /// The change of a layer wants the layer's own weight, which is not in memory.
    #[error(
        "layer '{layer}' of '{model}' is read from its file whenever it is needed, and only plain LoRAs change such a \
         layer: leave this one out (DoRA, LoHa, LoKr, differences), or give the model more memory"
    )]
    Streamed {
        /// The layer.
        layer: String,
        /// The model.
        model: String,
    },
    /// A layer that is stored in 8 bits would have to be rounded to them anew.
    #[error(
        "layer '{layer}' of '{model}' is stored in 8 bits, which merging would round anew: apply the LoRA beside it"
    )]
    EightBit {
        /// The layer.
        layer: String,
        /// The model.
        model: String,
    },
    /// candle could not compute.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}
