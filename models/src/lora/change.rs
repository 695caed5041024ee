//! What a LoRA does to one layer, and the arithmetic of it: in `f32`, in ComfyUI's order (`weight_adapter/*.py`),
//! so that plain LoRAs merge to the same bits.

use candle_core::{DType, Tensor};

/// What a LoRA does to one layer.
#[derive(Debug, Clone, Default)]
pub struct Patch {
    pub(super) weight: Option<Change>,
    /// Added to the bias.
    pub(super) bias: Option<Tensor>,
    /// The canonical shape of the weight that it was bound to; empty for a layer without.
    pub(super) shape: Vec<usize>,
}

/// What happens to a weight.
#[derive(Debug, Clone)]
pub(super) enum Change {
    /// `up · down`.
    LowRank {
        /// `[rank, in]`, of a convolution `[rank, height, width, in]`.
        down: Tensor,
        /// `[out, rank]`.
        up: Tensor,
        /// Alpha over rank.
        scale: f64,
        dora: Option<Dora>,
    },
    /// LoHa: the elementwise product of two products.
    Hadamard { first: Product, second: Product, scale: f64, dora: Option<Dora> },
    /// LoKr: the Kronecker product of two matrices.
    Kronecker { first: Factor, second: Factor, scale: f64, dora: Option<Dora> },
    /// Added as it is; as many elements as the weight, in the canonical order.
    Difference(Tensor),
    /// Put in the weight's place; as [`Change::Difference`].
    Set(Tensor),
}

/// DoRA: every row or column of the changed weight is scaled to a learned norm.
#[derive(Debug, Clone)]
pub(super) struct Dora {
    /// One number a row (output) or a column (input).
    pub(super) magnitudes: Tensor,
    /// What the magnitudes belong to.
    pub(super) axis: Axis,
}

/// See [`Dora`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Axis {
    /// Outputs, over the base's norms: ComfyUI's form.
    OutputOfBase,
    /// Outputs, over the changed weight's norms: PEFT's form.
    OutputOfSum,
    /// Inputs, over the changed weight's norms.
    Input,
}

/// A product of two matrices, with a core in between or without.
#[derive(Debug, Clone)]
pub(super) struct Product {
    /// `[out, rank]`, with a core `[rank, out]`.
    pub(super) a: Tensor,
    /// `[rank, in]`.
    pub(super) b: Tensor,
    /// `[rank, rank, height, width]`.
    pub(super) core: Option<Tensor>,
}

/// A factor of a Kronecker product.
#[derive(Debug, Clone)]
pub(super) enum Factor {
    Whole(Tensor),
    Product(Product),
}

type Result<T> = candle_core::Result<T>;

fn single(x: &Tensor) -> Result<Tensor> {
    x.to_dtype(DType::F32)
}

/// `[a, b, ..] -> [a, b · ..]` in `f32`.
fn matrix(x: &Tensor) -> Result<Tensor> {
    single(&x.flatten_from(1)?)
}

impl Product {
    /// `[out, in · taps]`, the input before the taps.
    fn multiply(&self) -> Result<Tensor> {
        let (a, b) = (matrix(&self.a)?, matrix(&self.b)?);
        let Some(core) = &self.core else { return a.matmul(&b) };
        let (_, ranks, height, width) = core.dims4()?;
        let taps = height * width;
        let (out, inputs) = (a.dim(1)?, b.dim(1)?);
        // [out, first rank] · [first rank, second rank · taps], then the second rank with the input.
        let half = a.t()?.matmul(&matrix(core)?)?.reshape((out, ranks, taps))?;
        let half = half.permute((0, 2, 1))?.reshape((out * taps, ranks))?;
        let whole = half.matmul(&b)?.reshape((out, taps, inputs))?;
        whole.permute((0, 2, 1))?.reshape((out, inputs * taps))
    }

    fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        [&self.a, &self.b].into_iter().chain(&self.core)
    }
}

impl Factor {
    fn multiply(&self) -> Result<Tensor> {
        match self {
            Self::Whole(whole) => matrix(whole),
            Self::Product(product) => product.multiply(),
        }
    }

    fn tensors(&self) -> Box<dyn Iterator<Item = &Tensor> + '_> {
        match self {
            Self::Whole(whole) => Box::new(std::iter::once(whole)),
            Self::Product(product) => Box::new(product.tensors()),
        }
    }
}

/// The Kronecker product of `[a, b]` and `[c, d]`: `[a · c, b · d]`. Where the second factor is a convolution its
/// taps are the innermost part of `d`.
fn kronecker(first: &Tensor, second: &Tensor) -> Result<Tensor> {
    let ((a, b), (c, d)) = (first.dims2()?, second.dims2()?);
    let product = first.reshape((a, 1, b, 1))?.broadcast_mul(&second.reshape((1, c, 1, d))?)?;
    product.reshape((a * c, b * d))
}

/// A canonical tensor in the order and shape of `weight`, which may be a convolution's with channels last.
fn ordered(canonical: &Tensor, weight: &Tensor, channels_last: bool) -> Result<Tensor> {
    match (channels_last, weight.dims()) {
        (true, [out, height, width, inputs]) => {
            canonical.reshape((*out, *inputs, *height, *width))?.permute((0, 2, 3, 1))?.contiguous()
        }
        (_, dims) => canonical.reshape(dims),
    }
}

impl Dora {
    /// `weight` changed by `difference`, scaled to the learned norms, as far as `strength` says.
    fn apply(
        &self,
        weight: &Tensor,
        difference: &Tensor,
        channels_last: bool,
        strength: f64,
    ) -> Result<Tensor> {
        let changed = (weight + difference)?;
        let rank = changed.rank();
        // Inputs are the last dimension of what is kept channels last, else the second one.
        let input = if channels_last { rank - 1 } else { 1 };
        let (kept, normed) = match self.axis {
            Axis::OutputOfBase => (0, weight),
            Axis::OutputOfSum => (0, &changed),
            Axis::Input => (input, &changed),
        };
        let others: Vec<usize> = (0..rank).filter(|dim| *dim != kept).collect();
        let norms = normed.sqr()?.sum_keepdim(others)?.sqrt()?;
        // PEFT divides by the norm itself; ComfyUI keeps away from zero.
        let norms = match self.axis {
            Axis::OutputOfSum => norms,
            _ => norms.affine(1.0, f64::from(f32::EPSILON))?,
        };
        let magnitudes = single(&self.magnitudes)?.reshape(norms.dims())?;
        let scaled = changed.broadcast_mul(&magnitudes.div(&norms)?)?;
        if strength == 1.0 {
            return Ok(scaled);
        }
        weight + (scaled - weight)?.affine(strength, 0.0)?
    }
}

impl Change {
    /// The `f32` weight after the change, at `strength`. `channels_last` says how the weight is kept.
    pub(super) fn apply(&self, weight: &Tensor, channels_last: bool, strength: f64) -> Result<Tensor> {
        let (difference, scale, dora) = match self {
            Self::LowRank { down, up, scale, dora } => {
                let product = matrix(up)?.matmul(&matrix(down)?)?.reshape(weight.dims())?;
                (product, *scale, dora)
            }
            Self::Hadamard { first, second, scale, dora } => {
                let product = (first.multiply()? * second.multiply()?)?;
                (ordered(&product, weight, channels_last)?, *scale, dora)
            }
            Self::Kronecker { first, second, scale, dora } => {
                let product = kronecker(&first.multiply()?, &second.multiply()?)?;
                (ordered(&product, weight, channels_last)?, *scale, dora)
            }
            Self::Difference(difference) => {
                (ordered(&single(difference)?, weight, channels_last)?, 1.0, &None)
            }
            Self::Set(set) => return ordered(&single(set)?, weight, channels_last),
        };
        match dora {
            None => weight + difference.affine(strength * scale, 0.0)?,
            Some(dora) => dora.apply(weight, &difference.affine(scale, 0.0)?, channels_last, strength),
        }
    }

    fn tensors(&self) -> Box<dyn Iterator<Item = &Tensor> + '_> {
        let magnitudes = |dora| Option::<&Dora>::map(dora, |dora| &dora.magnitudes);
        match self {
            Self::LowRank { down, up, dora, .. } => {
                Box::new([down, up].into_iter().chain(magnitudes(dora.as_ref())))
            }
            Self::Hadamard { first, second, dora, .. } => {
                Box::new(first.tensors().chain(second.tensors()).chain(magnitudes(dora.as_ref())))
            }
            Self::Kronecker { first, second, dora, .. } => {
                Box::new(first.tensors().chain(second.tensors()).chain(magnitudes(dora.as_ref())))
            }
            Self::Difference(tensor) | Self::Set(tensor) => Box::new(std::iter::once(tensor)),
        }
    }
}

impl Patch {
    /// Bytes of its tensors.
    pub fn bytes(&self) -> u64 {
        let tensors = self.weight.iter().flat_map(Change::tensors).chain(&self.bias);
        tensors.map(|tensor| (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64).sum()
    }

    /// Factors and scale of a change that is low-rank and nothing else.
    pub(super) fn low_rank(&self) -> Option<(&Tensor, &Tensor, f64)> {
        match (&self.weight, &self.bias) {
            (Some(Change::LowRank { down, up, scale, dora: None }), None) => Some((down, up, *scale)),
            _ => None,
        }
    }
}
