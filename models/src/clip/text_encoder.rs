//! The text encoder: embeddings, layers, final norm and the pooled projection.

use candle_core::{DType, Device, Tensor, bail};

use super::ClipTextConfig;
use super::layer::EncoderLayer;
use crate::adapter::Adapters;
use crate::layers::{LayerNorm, Linear};
use crate::weights::{Weights, WeightsError};

/// Which hidden state conditions the UNet ("CLIP skip").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HiddenLayer {
    /// The last layer's, with the final layer norm: SD 1.5's default.
    Final,
    /// The n-th layer from the end, without the final layer norm: `Skip(1)` is the last one, `Skip(2)`, the
    /// penultimate, is SDXL's default. Beyond the first layer it means [`HiddenLayer::Final`], as in ComfyUI.
    Skip(usize),
    /// The same layer with the final layer norm applied to it: CLIP skip of SD 1.5.
    SkipNormed(usize),
}

/// A vector that stands in a row in place of a token's own (textual inversion). The id at its place counts for nothing,
/// and must not be the end token.
#[derive(Debug, Clone, Copy)]
pub struct GivenVector<'a> {
    /// Which row of the batch.
    pub row: usize,
    /// Which place in the row.
    pub position: usize,
    /// As wide as the encoder.
    pub vector: &'a [f32],
}

/// What [`ClipTextEncoder::encode`] returns.
#[derive(Debug, Clone)]
pub struct ClipEncoding {
    /// `[b, n, width]`.
    pub hidden: Tensor,
    /// `[b, projection_dim]`, of encoders that have a text projection.
    pub pooled: Option<Tensor>,
}

/// A CLIP text encoder; transformers' `CLIPTextModel` and `CLIPTextModelWithProjection`.
#[derive(Debug, Clone)]
pub struct ClipTextEncoder {
    config: ClipTextConfig,
    device: Device,
    tokens: Tensor,
    positions: Tensor,
    layers: Vec<EncoderLayer>,
    final_norm: LayerNorm,
    projection: Option<Linear>,
}

impl ClipTextEncoder {
    /// Takes the encoder's tensors under transformers' names, with or without the `text_model.` prefix (which
    /// transformers 5 no longer writes for encoders without projection).
    pub fn load(config: &ClipTextConfig, weights: &Weights) -> Result<Self, WeightsError> {
        config.validate().map_err(candle_core::Error::wrap)?;
        let prefixed = weights.scope("text_model");
        let bare =
            !prefixed.contains("final_layer_norm.weight") && weights.contains("final_layer_norm.weight");
        let model = if bare { weights.clone() } else { prefixed };
        let embeddings = model.scope("embeddings");
        let width = config.hidden_size;
        Ok(Self {
            config: config.clone(),
            device: weights.device().clone(),
            tokens: embeddings.take("token_embedding.weight", &[config.vocab_size, width])?,
            positions: embeddings
                .take("position_embedding.weight", &[config.max_position_embeddings, width])?
                .to_dtype(DType::F32)?,
            layers: (0..config.num_hidden_layers)
                .map(|i| EncoderLayer::load(config, &model.scope("encoder.layers").scope(i)))
                .collect::<Result<_, _>>()?,
            final_norm: LayerNorm::load(&model.scope("final_layer_norm"), width, config.layer_norm_eps)?,
            projection: config
                .projection_dim
                .map(|dim| Linear::load_without_bias(&weights.scope("text_projection"), width, dim))
                .transpose()?,
        })
    }

    /// What the encoder was built from.
    pub fn config(&self) -> &ClipTextConfig {
        &self.config
    }

    /// Encodes a batch of prompt chunks: rows of equal length, at most `max_position_embeddings` ids each, all
    /// below `vocab_size`.
    ///
    /// The pooled vector is the final layer norm of the last layer at the row's first end token, times the text
    /// projection, whichever `layer` is asked for; a row without an end token is an error then.
    pub fn encode(&self, tokens: &[Vec<u32>], layer: HiddenLayer) -> candle_core::Result<ClipEncoding> {
        self.encode_with(tokens, &[], layer, Adapters::none())
    }

    /// The same, with `given` vectors in place of some tokens' and changes to some rows' layers.
    ///
    /// The place of a row's end token is counted as ComfyUI counts it: tokens up to it, and all given vectors.
    pub fn encode_with(
        &self,
        tokens: &[Vec<u32>],
        given: &[GivenVector<'_>],
        layer: HiddenLayer,
        adapters: &Adapters,
    ) -> candle_core::Result<ClipEncoding> {
        let length = self.checked_length(tokens)?;
        let (wanted, normed) = self.resolve(layer)?;
        let total = self.layers.len();
        // Layers after the wanted one serve the pooled vector alone.
        let last = if self.projection.is_some() { total } else { wanted };
        let mut x = self.embed(tokens, given, length)?;
        let mut hidden = x.clone();
        for (i, layer) in self.layers[..last].iter().enumerate() {
            x = layer.forward(&x, adapters)?;
            if i + 1 == wanted {
                hidden = x.clone();
            }
        }
        if normed {
            hidden = self.final_norm.forward(&hidden, adapters)?;
        }
        let pooled = match &self.projection {
            Some(projection) => {
                let finished = self.final_norm.forward(&x, adapters)?;
                Some(self.pool(tokens, given, &finished, projection, adapters)?)
            }
            None => None,
        };
        Ok(ClipEncoding { hidden, pooled })
    }

    /// The number of layers to run for the hidden state, and whether it is normed.
    fn resolve(&self, layer: HiddenLayer) -> candle_core::Result<(usize, bool)> {
        let total = self.layers.len();
        let (n, normed) = match layer {
            HiddenLayer::Final => return Ok((total, true)),
            HiddenLayer::Skip(n) => (n, false),
            HiddenLayer::SkipNormed(n) => (n, true),
        };
        match n {
            0 => bail!("text encoder: hidden layers count from 1, the last one; got 0"),
            n if n > total => Ok((total, true)),
            n => Ok((total - n + 1, normed)),
        }
    }

    fn checked_length(&self, tokens: &[Vec<u32>]) -> candle_core::Result<usize> {
        let Some(first) = tokens.first() else { bail!("text encoder: no prompts in the batch") };
        let (length, most) = (first.len(), self.config.max_position_embeddings);
        if length == 0 || length > most {
            bail!("text encoder: {length} tokens in a prompt chunk; 1 to {most} are possible");
        }
        for (i, row) in tokens.iter().enumerate() {
            if row.len() != length {
                bail!("text encoder: prompt chunk {i} has {} tokens, the first one has {length}", row.len());
            }
            if let Some(id) = row.iter().find(|&&id| id as usize >= self.config.vocab_size) {
                bail!("text encoder: token {id} is beyond the vocabulary of {}", self.config.vocab_size);
            }
        }
        Ok(length)
    }

    fn embed(
        &self,
        tokens: &[Vec<u32>],
        given: &[GivenVector<'_>],
        length: usize,
    ) -> candle_core::Result<Tensor> {
        let places = tokens.len() * length;
        let ids = Tensor::from_vec(tokens.concat(), places, &self.device)?;
        let mut x = self.tokens.index_select(&ids, 0)?.to_dtype(DType::F32)?;
        if !given.is_empty() {
            let width = self.config.hidden_size;
            let mut from: Vec<u32> = (0..places as u32).collect();
            let mut vectors = Vec::with_capacity(given.len() * width);
            for (index, GivenVector { row, position, vector }) in given.iter().enumerate() {
                if *row >= tokens.len() || *position >= length || vector.len() != width {
                    bail!(
                        "text encoder: a vector of {} values for place {position} of prompt chunk {row}; it has \
                         {length} places, and takes {width} values",
                        vector.len()
                    );
                }
                from[row * length + position] = (places + index) as u32;
                vectors.extend_from_slice(vector);
            }
            let vectors = Tensor::from_vec(vectors, (given.len(), width), &self.device)?;
            x = Tensor::cat(&[x, vectors], 0)?.index_select(&Tensor::new(from, &self.device)?, 0)?;
        }
        x.reshape((tokens.len(), length, self.config.hidden_size))?
            .broadcast_add(&self.positions.narrow(0, 0, length)?)
    }

    fn pool(
        &self,
        tokens: &[Vec<u32>],
        given: &[GivenVector<'_>],
        finished: &Tensor,
        projection: &Linear,
        adapters: &Adapters,
    ) -> candle_core::Result<Tensor> {
        let end = self.config.eos_token_id;
        let mut rows = Vec::with_capacity(tokens.len());
        for (i, row) in tokens.iter().enumerate() {
            let Some(position) = row.iter().position(|&id| id == end) else {
                bail!("text encoder: prompt chunk {i} has no end token ({end}) to pool at");
            };
            let later = given.iter().filter(|vector| vector.row == i && vector.position > position).count();
            rows.push(finished.get(i)?.narrow(0, position + later, 1)?);
        }
        projection.forward(&Tensor::cat(&rows, 0)?, adapters)
    }
}
