//! The whole network: embeddings, blocks, output.

use candle_core::{D, DType, Result, Tensor};
use darkroom_kernels::{Activation, modulated_layer_norm};

use super::attention::Joint;
use super::block::{LAYER_NORM_EPS, Streams, TransformerBlock};
use super::embedding::TimestepEmbedding;
use super::pack::{pack, unpack};
use super::rope::RotaryTables;
use super::{QwenImageConfig, QwenImageInput};
use crate::layers::{Blocks, Linear, RmsNorm};
use crate::weights::{Weights, WeightsError};

/// Of the norm of the context.
const RMS_NORM_EPS: f64 = 1e-6;

/// diffusers' `QwenImageTransformer2DModel`, for the configs that [`QwenImageConfig`] can express.
#[derive(Debug, Clone)]
pub struct QwenImageTransformer2DModel {
    config: QwenImageConfig,
    time: TimestepEmbedding,
    image_in: Linear,
    text_norm: RmsNorm,
    text_in: Linear,
    blocks: Blocks<TransformerBlock>,
    modulation_out: Linear,
    image_out: Linear,
    tables: RotaryTables,
    activations: DType,
}

impl QwenImageTransformer2DModel {
    /// Takes all of the network's tensors under diffusers' names, which are ComfyUI's too. Of a
    /// [streamed](Weights::streaming) network the blocks stay in their file.
    ///
    /// # Errors
    /// When the config is refused, or a tensor is missing or has another shape.
    pub fn load(config: &QwenImageConfig, weights: &Weights) -> std::result::Result<Self, WeightsError> {
        config.validate().map_err(candle_core::Error::wrap)?;
        let (inner, heads, context) =
            (config.inner_dim(), config.num_attention_heads, config.joint_attention_dim);
        let linear = |name, inputs, outputs| Linear::load(&weights.scope(name), inputs, outputs);
        let norm = weights.scope("txt_norm");
        Ok(Self {
            config: config.clone(),
            time: TimestepEmbedding::load(&weights.scope("time_text_embed"), inner)?,
            image_in: linear("img_in", config.in_channels, inner)?,
            text_norm: RmsNorm::load(&norm, "weight", context, RMS_NORM_EPS, Activation::Identity)?,
            text_in: linear("txt_in", context, inner)?,
            blocks: Blocks::load(&weights.scope("transformer_blocks"), config.num_layers, move |weights| {
                TransformerBlock::load(weights, inner, heads)
            })?,
            modulation_out: linear("norm_out.linear", inner, 2 * inner)?,
            image_out: linear("proj_out", inner, config.in_channels)?,
            tables: RotaryTables::new(config.axes_dims_rope, weights.device()),
            activations: weights.activations(),
        })
    }

    /// What the network was built from.
    pub fn config(&self) -> &QwenImageConfig {
        &self.config
    }

    /// The type of the activations between the blocks. Inputs and outputs are `f32`.
    pub fn activations(&self) -> DType {
        self.activations
    }

    /// Every row's velocity, `[b, 16, h, w]` in `f32`. Rows do not influence each other.
    ///
    /// # Errors
    /// When shapes do not fit, or a streamed block cannot be read.
    pub fn forward(&self, input: &QwenImageInput<'_>) -> Result<Tensor> {
        let places = input.check(&self.config)?;
        let (adapters, mask) = (input.adapters, input.mask(&places)?);
        let joint = Joint {
            time: self.time.forward(input.timesteps, adapters)?,
            table: self.tables.get(places)?,
            mask,
            adapters,
        };
        let mut x = self.enter(input)?;
        self.blocks.try_for_each(|_, block| block.forward(&mut x, &joint))?;
        // References, and text, have no output.
        let patch = self.config.patch_size;
        let (_, _, height, width) = input.latent.dims4()?;
        let own = height.div_ceil(patch) * width.div_ceil(patch);
        let image = x.image.narrow(1, 0, own)?;
        drop(x);
        let modulation = self.modulation_out.forward(&joint.time, adapters)?.chunk(2, D::Minus1)?;
        // Here the scale comes first.
        let image = modulated_layer_norm(&image, &modulation[1], &modulation[0], LAYER_NORM_EPS)?;
        let velocity = self.image_out.forward(&image, adapters)?.to_dtype(DType::F32)?;
        unpack(&velocity, height, width, patch)
    }

    /// The tokens of the latent, of the references behind it, and of the text.
    fn enter(&self, input: &QwenImageInput<'_>) -> Result<Streams> {
        let mut pictures = vec![pack(input.latent, self.config.patch_size)?];
        for reference in input.references {
            let tokens = pack(reference, self.config.patch_size)?;
            pictures.push(tokens.to_dtype(input.latent.dtype())?);
        }
        let pictures = if pictures.len() == 1 { pictures.swap_remove(0) } else { Tensor::cat(&pictures, 1)? };
        let image = self.image_in.forward(&pictures.to_dtype(self.activations)?, input.adapters)?;
        let context = input.context.to_dtype(self.activations)?;
        let text = self.text_norm.forward(&context, input.adapters)?;
        Ok(Streams { image, text: self.text_in.forward(&text, input.adapters)? })
    }
}
