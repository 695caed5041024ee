//! DINOv2 (Oquab et al. 2023): a vision transformer whose layers scale what they add.

use candle_core::{DType, Result, Tensor, bail};
use darkroom_kernels::{Activation, AttentionMask, Conv2dGeometry, Padding, attention};

use super::DepthConfig;
use crate::adapter::Adapters;
use crate::layers::{Conv2d, Interpolation, LayerNorm, Linear, TwoLayerMlp, resize};
use crate::weights::{Weights, WeightsError};

const EPS: f64 = 1e-6;
/// What the authors add to a size in patches before they scale positions to it, so that it is not rounded down. It
/// moves the samples a little, and the network was trained so.
const POSITION_OFFSET: f64 = 0.1;

/// The transformer, from pixels to the outputs of the layers that the head uses.
#[derive(Debug, Clone)]
pub(super) struct VisionTransformer {
    patches: Conv2d,
    patch: usize,
    /// `[1, 1, width]`, its position included.
    class: Tensor,
    /// `[1, side, side, width]`.
    positions: Tensor,
    layers: Vec<Layer>,
    taps: Vec<usize>,
    norm: LayerNorm,
}

impl VisionTransformer {
    /// Takes `backbone`.
    pub(super) fn load(weights: &Weights, config: &DepthConfig) -> std::result::Result<Self, WeightsError> {
        let (width, side) = (config.width, config.positions);
        let embeddings = weights.scope("embeddings");
        let geometry = Conv2dGeometry { stride: config.patch, padding: Padding::all(0) };
        let table =
            embeddings.take("position_embeddings", &[1, side * side + 1, width])?.to_dtype(DType::F32)?;
        let class = embeddings.take("cls_token", &[1, 1, width])?.to_dtype(DType::F32)?;
        Ok(Self {
            patches: Conv2d::load_with(
                &embeddings.scope("patch_embeddings.projection"),
                3,
                width,
                config.patch,
                geometry,
            )?,
            patch: config.patch,
            class: (class + table.narrow(1, 0, 1)?)?,
            positions: table.narrow(1, 1, side * side)?.reshape((1, side, side, width))?,
            layers: (0..config.layers)
                .map(|i| Layer::load(&weights.scope(format!("encoder.layer.{i}")), config))
                .collect::<std::result::Result<_, _>>()?,
            taps: config.taps.to_vec(),
            norm: LayerNorm::load(&weights.scope("layernorm"), width, EPS)?,
        })
    }

    /// `x: [b, h, w, 3]`, sides multiples of the patch; gives `[b, h / patch, w / patch, width]` for each tap.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Vec<Tensor>> {
        let (batch, h, w, _) = x.dims4()?;
        if h % self.patch != 0 || w % self.patch != 0 {
            bail!("a picture of {w}×{h} is not a whole number of patches of {}", self.patch);
        }
        let patches = self.patches.forward(x, Adapters::none())?;
        let (_, rows, columns, width) = patches.dims4()?;
        let patches = patches.broadcast_add(&self.positions_for(rows, columns)?)?;
        let patches = patches.reshape((batch, rows * columns, width))?;
        let class = self.class.broadcast_as((batch, 1, width))?;
        let mut x = Tensor::cat(&[&class, &patches], 1)?;
        let mut taps = Vec::with_capacity(self.taps.len());
        for (i, layer) in self.layers.iter().enumerate() {
            x = layer.forward(x)?;
            if self.taps.contains(&i) {
                let patches = self.norm.forward(&x, Adapters::none())?.narrow(1, 1, rows * columns)?;
                taps.push(patches.reshape((batch, rows, columns, width))?);
            }
        }
        Ok(taps)
    }

    fn positions_for(&self, rows: usize, columns: usize) -> Result<Tensor> {
        let (_, side, _, _) = self.positions.dims4()?;
        if rows == side && columns == side {
            return Ok(self.positions.clone());
        }
        let scales = [rows, columns].map(|n| side as f64 / (n as f64 + POSITION_OFFSET));
        resize(&self.positions, rows, columns, Interpolation::BicubicAt(scales))
    }
}

#[derive(Debug, Clone)]
struct Layer {
    norm1: LayerNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    /// `[width]`.
    scale1: Tensor,
    norm2: LayerNorm,
    mlp: TwoLayerMlp,
    /// `[width]`.
    scale2: Tensor,
    heads: usize,
}

impl Layer {
    fn load(weights: &Weights, config: &DepthConfig) -> std::result::Result<Self, WeightsError> {
        let width = config.width;
        let square = |name| Linear::load(&weights.scope(name), width, width);
        let scale = |name| -> std::result::Result<Tensor, WeightsError> {
            Ok(weights.scope(name).take("lambda1", &[width])?.to_dtype(DType::F32)?)
        };
        Ok(Self {
            norm1: LayerNorm::load(&weights.scope("norm1"), width, EPS)?,
            query: square("attention.attention.query")?,
            key: square("attention.attention.key")?,
            value: square("attention.attention.value")?,
            out: square("attention.output.dense")?,
            scale1: scale("layer_scale1")?,
            norm2: LayerNorm::load(&weights.scope("norm2"), width, EPS)?,
            mlp: TwoLayerMlp {
                first: Linear::load(&weights.scope("mlp.fc1"), width, config.feed_forward)?,
                activation: Activation::Gelu,
                second: Linear::load(&weights.scope("mlp.fc2"), config.feed_forward, width)?,
            },
            scale2: scale("layer_scale2")?,
            heads: config.heads,
        })
    }

    /// `[b, tokens, width]`, the same shape out.
    fn forward(&self, x: Tensor) -> Result<Tensor> {
        let none = Adapters::none();
        let h = self.norm1.forward(&x, none)?;
        let q = self.query.forward(&h, none)?;
        let k = self.key.forward(&h, none)?;
        let v = self.value.forward(&h, none)?;
        let h = self.out.forward(&attention(&q, &k, &v, self.heads, &AttentionMask::None)?, none)?;
        let x = (x + h.broadcast_mul(&self.scale1)?)?;
        let h = self.mlp.forward(&self.norm2.forward(&x, none)?, none)?;
        x + h.broadcast_mul(&self.scale2)?
    }
}
