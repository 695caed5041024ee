//! The two ways to apply a stack of LoRAs: changed weights, or an adapter that changes some rows of a batch.

use std::collections::{BTreeSet, HashMap};

use candle_core::{DType, Tensor};

use super::blocks::{self, LowRank};
use super::change::Change;
use super::{LoraError, LoraPart, Patch};
use crate::adapter::{LayerAdapter, NetworkAdapter};
use crate::weights::{Kept, KeptOrder, KeptTensor};

/// A stack: what each LoRA changes in one network, and how strongly; 0 changes nothing.
type Stack<'a> = [(&'a LoraPart, f64)];

/// Which type merged weights have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MergedType {
    Stored,
    Full,
}

impl MergedType {
    fn of(self, base: &Kept, stored: &Tensor) -> DType {
        match self {
            Self::Stored => stored.dtype(),
            // Norms' and biases, which layers hold so.
            Self::Full if stored.rank() == 1 => DType::F32,
            // What the network computes in: more would be rounded at every step.
            Self::Full => base.activations(),
        }
    }
}

/// The weights that `stack` changes in `base`, for [`Kept::with_replaced`]: computed in `f32` from the base's own
/// bytes, one LoRA after the other, and rounded once to the stored type, as ComfyUI does. Works tensor by tensor:
/// beside what it returns it holds a few `f32` copies of one tensor.
///
/// # Errors
/// When a strength is no number, the LoRA is bound to another model, or the base's weights are streamed or stored in 8 bits.
pub fn merge(base: &Kept, stack: &Stack<'_>) -> Result<HashMap<String, Tensor>, LoraError> {
    merge_to(base, stack, MergedType::Stored)
}

/// The same without the rounding, in `f32` whatever the stored type (on GPUs in the type that the network computes in):
/// what is drawn with these weights equals what [`adapter`]s draw.
///
/// # Errors
/// As [`merge`]; weights that are stored in 8 bits are widened.
pub fn merge_unrounded(base: &Kept, stack: &Stack<'_>) -> Result<HashMap<String, Tensor>, LoraError> {
    merge_to(base, stack, MergedType::Full)
}

fn merge_to(
    base: &Kept,
    stack: &Stack<'_>,
    merged_type: MergedType,
) -> Result<HashMap<String, Tensor>, LoraError> {
    let stack = active(stack)?;
    let mut merged = HashMap::new();
    for layer in changed_layers(&stack) {
        let patches = patches(&stack, layer);
        let weight = format!("{layer}.weight");
        if let Some(tensor) = merged_weight(base, layer, &weight, &patches, merged_type)? {
            merged.insert(weight, tensor);
        }
        let bias = format!("{layer}.bias");
        if let Some(tensor) = merged_bias(base, layer, &bias, &patches, merged_type)? {
            merged.insert(bias, tensor);
        }
    }
    Ok(merged)
}

/// The same changes for single rows of a batch. Low-rank changes of one layer become one pair of factors, whose
/// ranks add up; any other change brings the layer's merged weight.
///
/// # Errors
/// As [`merge`]; of streamed weights only for changes that are not low-rank, and not of weights in 8 bits.
pub fn adapter(base: &Kept, stack: &Stack<'_>) -> Result<NetworkAdapter, LoraError> {
    let stack = active(stack)?;
    let mut layers = HashMap::new();
    for layer in changed_layers(&stack) {
        let patches = patches(&stack, layer);
        let change = match concatenated(&patches, base.activations())? {
            Some(change) => change,
            None => replaced(base, layer, &patches)?,
        };
        layers.insert(layer.to_owned(), change);
    }
    Ok(NetworkAdapter::new(layers))
}

/// The stack without what has no strength.
fn active<'a>(stack: &Stack<'a>) -> Result<Vec<(&'a LoraPart, f64)>, LoraError> {
    if let Some((_, strength)) = stack.iter().find(|(_, strength)| !strength.is_finite()) {
        return Err(LoraError::Strength { strength: *strength });
    }
    Ok(stack.iter().copied().filter(|(_, strength)| *strength != 0.0).collect())
}

fn changed_layers<'a>(stack: &Stack<'a>) -> BTreeSet<&'a str> {
    stack.iter().flat_map(|(part, _)| part.layers()).collect()
}

fn patches<'a>(stack: &Stack<'a>, layer: &str) -> Vec<(&'a Patch, f64)> {
    stack.iter().filter_map(|(part, strength)| Some((part.get(layer)?, *strength))).collect()
}

fn other_model(base: &Kept, layer: &str) -> LoraError {
    LoraError::OtherModel { layer: layer.to_owned(), model: base.origin().to_owned() }
}

fn content(base: &Kept, layer: &str, kept: &KeptTensor) -> Result<Tensor, LoraError> {
    let streamed = || LoraError::Streamed { layer: layer.to_owned(), model: base.origin().to_owned() };
    kept.content()?.ok_or_else(streamed)
}

/// The layer's weight after all changes; `None` when none changes it.
fn merged_weight(
    base: &Kept,
    layer: &str,
    name: &str,
    patches: &[(&Patch, f64)],
    merged_type: MergedType,
) -> Result<Option<Tensor>, LoraError> {
    let changes: Vec<(&Change, f64)> =
        patches.iter().filter_map(|(patch, strength)| Some((patch.weight.as_ref()?, *strength))).collect();
    if changes.is_empty() {
        return Ok(None);
    }
    let kept = base.get(name).ok_or_else(|| other_model(base, layer))?;
    if patches.iter().any(|(patch, _)| patch.weight.is_some() && patch.shape != kept.shape()) {
        return Err(other_model(base, layer));
    }
    if merged_type == MergedType::Stored && kept.is_stored_eight_bit() {
        return Err(LoraError::EightBit { layer: layer.to_owned(), model: base.origin().to_owned() });
    }
    let merged_type = merged_type.of(base, &kept.tensor);
    // What is held in 8 bits lies in the host's memory as it was before.
    let stored = content(base, layer, kept)?.to_device(base.device())?;
    if let Some(low_rank) = all_low_rank(&changes)? {
        let merged = blocks::merged(&stored, &low_rank, merged_type)?;
        if merged.is_some() {
            return Ok(merged);
        }
    }
    let channels_last = kept.order == KeptOrder::ChannelsLast;
    let mut weight = stored.to_dtype(DType::F32)?;
    for (change, strength) in changes {
        weight = change.apply(&weight, channels_last, strength)?;
    }
    Ok(Some(weight.to_dtype(merged_type)?))
}

/// The changes as factors, if all of them are plainly low-rank.
fn all_low_rank(changes: &[(&Change, f64)]) -> Result<Option<Vec<LowRank>>, LoraError> {
    let mut low_rank = Vec::with_capacity(changes.len());
    for (change, strength) in changes {
        let Change::LowRank { down, up, scale, dora: None } = change else { return Ok(None) };
        low_rank.push(LowRank {
            down: down.flatten_from(1)?.to_dtype(DType::F32)?,
            up: up.to_dtype(DType::F32)?,
            scale: strength * scale,
        });
    }
    Ok(Some(low_rank))
}

fn merged_bias(
    base: &Kept,
    layer: &str,
    name: &str,
    patches: &[(&Patch, f64)],
    merged_type: MergedType,
) -> Result<Option<Tensor>, LoraError> {
    let mut changes = patches.iter().filter_map(|(patch, strength)| Some((patch.bias.as_ref()?, *strength)));
    let Some(first) = changes.next() else { return Ok(None) };
    let kept = base.get(name).ok_or_else(|| other_model(base, layer))?;
    let mut bias = content(base, layer, kept)?.to_dtype(DType::F32)?;
    for (change, strength) in std::iter::once(first).chain(changes) {
        if change.dims() != bias.dims() {
            return Err(other_model(base, layer));
        }
        bias = (bias + change.to_dtype(DType::F32)?.affine(strength, 0.0)?)?;
    }
    Ok(Some(bias.to_dtype(merged_type.of(base, &kept.tensor))?))
}

/// One pair of factors of type `dtype` for all of `patches`; `None` when one of them is anything but low-rank.
fn concatenated(patches: &[(&Patch, f64)], dtype: DType) -> Result<Option<LayerAdapter>, LoraError> {
    let mut downs = Vec::with_capacity(patches.len());
    let mut ups = Vec::with_capacity(patches.len());
    for (patch, strength) in patches {
        let Some((down, up, scale)) = patch.low_rank() else { return Ok(None) };
        downs.push(down.to_dtype(DType::F32)?);
        ups.push(up.to_dtype(DType::F32)?.affine(strength * scale, 0.0)?);
    }
    let (down, up) = (Tensor::cat(&downs, 0)?.to_dtype(dtype)?, Tensor::cat(&ups, 1)?.to_dtype(dtype)?);
    Ok(Some(LayerAdapter::LowRank { down: down.contiguous()?, up: up.contiguous()? }))
}

/// The layer with its merged weight and bias, both unrounded.
fn replaced(base: &Kept, layer: &str, patches: &[(&Patch, f64)]) -> Result<LayerAdapter, LoraError> {
    let weight = merged_weight(base, layer, &format!("{layer}.weight"), patches, MergedType::Full)?;
    let bias = merged_bias(base, layer, &format!("{layer}.bias"), patches, MergedType::Full)?;
    Ok(LayerAdapter::Replaced { weight, bias })
}
