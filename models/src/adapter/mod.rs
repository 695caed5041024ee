//! Changes to single layers of a network that apply to some rows of a batch only: how pictures with different LoRAs
//! are drawn by one network call. The base's product is computed once for all rows; low-rank changes are added to the
//! rows that want them (S-LoRA, Sheng et al. 2023), other changes replace the layer for those rows.
//!
//! Between [`crate::lora`], which makes adapters, and the layers, which apply them.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{Tensor, bail};

use crate::identity::Identity;

/// What changes in one layer.
#[derive(Debug, Clone)]
pub enum LayerAdapter {
    /// `y + up · (down · x)`.
    LowRank {
        /// `[rank, in]`, of a convolution `[rank, height, width, in]`; in the type of the network's activations.
        down: Tensor,
        /// `[out, rank]`, strengths and scales included; in the same type.
        up: Tensor,
    },
    /// The layer with other weights; what is `None` stays.
    Replaced {
        /// In the order and type of the layer's own.
        weight: Option<Tensor>,
        /// `[out]`, in the type of the network's activations.
        bias: Option<Tensor>,
    },
}

impl LayerAdapter {
    fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let (first, second) = match self {
            Self::LowRank { down, up } => (Some(down), Some(up)),
            Self::Replaced { weight, bias } => (weight.as_ref(), bias.as_ref()),
        };
        first.into_iter().chain(second)
    }
}

/// What changes in one network: layers by canonical name (`down_blocks.1.attentions.0.proj_in`).
#[derive(Debug, Clone)]
pub struct NetworkAdapter {
    layers: HashMap<String, LayerAdapter>,
    identity: Identity,
}

impl Default for NetworkAdapter {
    fn default() -> Self {
        Self::new(HashMap::new())
    }
}

impl NetworkAdapter {
    /// Of these layers.
    pub fn new(layers: HashMap<String, LayerAdapter>) -> Self {
        Self { layers, identity: Identity::fresh() }
    }

    /// The change to one layer.
    pub fn get(&self, layer: &str) -> Option<&LayerAdapter> {
        self.layers.get(layer)
    }

    /// How many layers change.
    pub fn len(&self) -> usize {
        self.layers.len()
    }

    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    /// Bytes of its tensors.
    pub fn bytes(&self) -> u64 {
        let tensors = self.layers.values().flat_map(LayerAdapter::tensors);
        tensors.map(|tensor| (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64).sum()
    }
}

/// Which rows of a batch have which adapter.
#[derive(Debug, Clone, Default)]
pub struct Adapters {
    groups: Vec<(Range<usize>, Arc<NetworkAdapter>)>,
}

impl Adapters {
    /// No row has one.
    pub fn none() -> &'static Self {
        static NONE: Adapters = Adapters { groups: Vec::new() };
        &NONE
    }

    /// Groups of rows that do not overlap, each with its adapter.
    pub fn new(groups: Vec<(Range<usize>, Arc<NetworkAdapter>)>) -> Self {
        let changes =
            |(rows, adapter): &(Range<usize>, Arc<NetworkAdapter>)| !rows.is_empty() && !adapter.is_empty();
        Self { groups: groups.into_iter().filter(changes).collect() }
    }

    /// Whether no row has one.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Which rows have which, told apart by their weights.
    pub(crate) fn identities(&self) -> Vec<(Range<usize>, Identity)> {
        self.groups.iter().map(|(rows, adapter)| (rows.clone(), adapter.identity)).collect()
    }

    /// One adapter for all of `rows` rows.
    pub fn all(adapter: Arc<NetworkAdapter>, rows: usize) -> Self {
        Self::new(vec![(0..rows, adapter)])
    }

    /// Whether any row has a change of `layer`.
    pub(crate) fn change(&self, layer: &str) -> bool {
        self.at(layer).next().is_some()
    }

    /// The rows that change in one layer, and how.
    fn at<'a>(&'a self, layer: &'a str) -> impl Iterator<Item = (&'a Range<usize>, &'a LayerAdapter)> {
        self.groups.iter().filter_map(move |(rows, adapter)| Some((rows, adapter.get(layer)?)))
    }

    /// Changes `y`, which `layer` made of `x` and added `residual` to, in the rows that want it. `replace(x, weight, bias)`
    /// is what the layer does; `None` stands for its own weight or bias. `add(y, factors)` adds low-rank changes to `y` in
    /// place. All tensors have a batch's rows as first dimension.
    pub(crate) fn apply(
        &self,
        layer: &str,
        x: &Tensor,
        y: Tensor,
        residual: Option<&Tensor>,
        replace: impl Fn(&Tensor, Option<&Tensor>, Option<&Tensor>) -> candle_core::Result<Tensor>,
        add: impl FnOnce(&Tensor, &[Factors<'_>]) -> candle_core::Result<()>,
    ) -> candle_core::Result<Tensor> {
        let mut factors = Vec::new();
        for (rows, change) in self.at(layer) {
            if rows.end > x.dim(0)? {
                bail!("adapter for rows {rows:?} of a batch of {}", x.dim(0)?);
            }
            match change {
                LayerAdapter::LowRank { down, up } => factors.push(Factors { rows, down, up }),
                LayerAdapter::Replaced { weight, bias } => {
                    let part = |tensor: &Tensor| tensor.narrow(0, rows.start, rows.len());
                    let mut replaced = replace(&part(x)?, weight.as_ref(), bias.as_ref())?;
                    if let Some(residual) = residual {
                        replaced = (replaced + part(residual)?)?;
                    }
                    y.slice_set(&replaced.contiguous()?, 0, rows.start)?;
                }
            }
        }
        if !factors.is_empty() {
            add(&y, &factors)?;
        }
        Ok(y)
    }
}

/// A low-rank change of some rows.
pub(crate) struct Factors<'a> {
    /// Which.
    pub(crate) rows: &'a Range<usize>,
    /// `[rank, in]`, of a convolution `[rank, height, width, in]`.
    pub(crate) down: &'a Tensor,
    /// `[out, rank]`
    pub(crate) up: &'a Tensor,
}
