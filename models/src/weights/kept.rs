//! What a network took from its weights: shared handles to its tensors under canonical names, from which a variant
//! of it can be built that differs in some tensors and shares all others.

use std::collections::{BTreeMap, HashMap};

use super::Weights;
use crate::arithmetic::{Arithmetic, Computed};
use candle_core::{DType, Device, Tensor};
use darkroom_kernels::Fp8Weight;

/// The order of a kept tensor's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeptOrder {
    /// As the canonical tensor's.
    Canonical,
    /// A convolution's weight, channels last: `[out, height, width, in]`.
    ChannelsLast,
}

/// A tensor as its network holds it: the very bytes of the file (matrices of networks that compute in another type:
/// rounded to that), in the order that the network wants.
#[derive(Debug, Clone)]
pub struct KeptTensor {
    /// In its stored type, or the network's. Of a matrix in 8 bits: what was rounded, in the host's memory, or the codes
    /// of the file (`u8`) where it is stored so.
    pub tensor: Tensor,
    /// What the network holds instead, where that is in 8 bits.
    pub(super) eight_bit: Option<Fp8Weight>,
    /// Whether it is only there by shape: the network reads it from the file each time.
    pub(super) streamed: bool,
    /// The order of its elements.
    pub order: KeptOrder,
}

impl KeptTensor {
    /// The canonical tensor's shape: a convolution's is `[out, in, height, width]`.
    pub fn shape(&self) -> Vec<usize> {
        match (self.order, self.tensor.dims()) {
            (KeptOrder::ChannelsLast, [out, height, width, inputs]) => vec![*out, *inputs, *height, *width],
            (_, dims) => dims.to_vec(),
        }
    }

    /// Whether the network holds it in 8 bits.
    pub fn is_eight_bit(&self) -> bool {
        self.eight_bit.is_some()
    }

    /// What it holds, for those who change it: as it is kept, of codes of the file the numbers that they stand for (`f32`, in
    /// the host's memory). `None` where its content is only in the file.
    ///
    /// # Errors
    /// When codes cannot be read from their device.
    pub fn content(&self) -> candle_core::Result<Option<Tensor>> {
        match &self.eight_bit {
            _ if self.streamed => Ok(None),
            Some(weight) if self.is_stored_eight_bit() => {
                Ok(Some(weight.widened()?.reshape(self.tensor.dims())?))
            }
            _ => Ok(Some(self.tensor.clone())),
        }
    }

    /// Whether it was in 8 bits in the file already.
    pub fn is_stored_eight_bit(&self) -> bool {
        self.eight_bit.is_some() && self.tensor.dtype() == DType::U8
    }

    /// Bytes that the network holds.
    pub fn bytes(&self) -> u64 {
        if let Some(weight) = &self.eight_bit {
            return weight.bytes();
        }
        (self.tensor.elem_count() * self.tensor.dtype().size_in_bytes()) as u64
    }
}

/// All tensors that a network took.
#[derive(Debug, Clone)]
pub struct Kept {
    pub(super) origin: String,
    pub(super) device: Device,
    pub(super) arithmetic: Arithmetic,
    pub(super) tensors: BTreeMap<String, KeptTensor>,
    /// Whether some of the tensors are only there by shape: their network reads them from the file each time.
    pub(super) streamed: bool,
}

impl Kept {
    /// Of a network that is not there.
    pub fn none(origin: &str, device: &Device) -> Self {
        Self {
            origin: origin.to_owned(),
            device: device.clone(),
            arithmetic: Arithmetic::default(),
            tensors: BTreeMap::new(),
            streamed: false,
        }
    }

    /// Whether there are no tensors.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// The tensor `name` (`down_blocks.0.resnets.0.conv1.weight`).
    pub fn get(&self, name: &str) -> Option<&KeptTensor> {
        self.tensors.get(name)
    }

    /// Every tensor with its name, in the names' order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &KeptTensor)> {
        self.tensors.iter().map(|(name, kept)| (name.as_str(), kept))
    }

    /// Where the tensors are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The type that the network's activations have, and what is added to its weights beside them.
    pub fn activations(&self) -> DType {
        self.arithmetic.activations
    }

    /// Whether any tensor was in 8 bits in the file already: LoRAs cannot be merged into it.
    pub fn is_stored_eight_bit(&self) -> bool {
        self.tensors.values().any(KeptTensor::is_stored_eight_bit)
    }

    /// Whether the network reads some of its tensors from the file each time: those have a shape here and no content.
    pub fn is_streamed(&self) -> bool {
        self.streamed
    }

    /// What the network's products are formed in.
    pub fn computed(&self) -> Computed {
        self.arithmetic.computed()
    }

    /// The file or folder that they came from.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Weights for the same network with `replaced` (canonical name → tensor in the kept one's order) in place of
    /// its own; the rest is shared.
    pub fn with_replaced(&self, replaced: HashMap<String, Tensor>) -> Weights {
        let mut tensors = self.tensors.clone();
        for (name, tensor) in replaced {
            if let Some(kept) = tensors.get_mut(&name) {
                kept.tensor = tensor;
                kept.eight_bit = None;
                kept.streamed = false;
            }
        }
        Weights::from_kept(Self { tensors, ..self.clone() })
    }
}
