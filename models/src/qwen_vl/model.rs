//! The text encoder: token table, layers, final norm.

use candle_core::{DType, Device, Tensor, bail};

use super::QwenVlTextConfig;
use super::attention::Angles;
use super::layer::{DecoderLayer, norm};
use crate::adapter::Adapters;
use crate::layers::{Blocks, RmsNorm};
use crate::weights::{Rows, Weights, WeightsError};

/// Most tokens of a row; eight times what Qwen-Image reads of a prompt.
pub const MAX_TOKENS: usize = 8192;

/// Qwen2.5-VL's language model without the head that predicts tokens; transformers' `Qwen2_5_VLTextModel`.
#[derive(Debug, Clone)]
pub struct QwenVlTextEncoder {
    config: QwenVlTextConfig,
    device: Device,
    activations: DType,
    tokens: Rows,
    layers: Blocks<DecoderLayer>,
    final_norm: RmsNorm,
}

impl QwenVlTextEncoder {
    /// Takes the encoder's tensors: `model.embed_tokens.weight`, `model.layers.N…` and `model.norm.weight`. Of weights
    /// that are [streamed](Weights::streaming) the layers, and the table's rows, are read when their turn comes.
    pub fn load(config: &QwenVlTextConfig, weights: &Weights) -> Result<Self, WeightsError> {
        config.validate().map_err(candle_core::Error::wrap)?;
        let model = weights.scope("model");
        let shape = [config.vocab_size, config.hidden_size];
        let layer = {
            let config = config.clone();
            move |weights: &Weights| DecoderLayer::load(&config, weights)
        };
        Ok(Self {
            config: config.clone(),
            device: weights.device().clone(),
            activations: weights.activations(),
            tokens: model.scope("embed_tokens").take_rows("weight", shape)?,
            layers: Blocks::load(&model.scope("layers"), config.num_hidden_layers, layer)?,
            final_norm: norm(config, &model.scope("norm"))?,
        })
    }

    /// What the encoder was built from.
    pub fn config(&self) -> &QwenVlTextConfig {
        &self.config
    }

    /// What the encoder computes in.
    pub(super) fn activations(&self) -> DType {
        self.activations
    }

    /// The last layer's hidden state after the final norm, `[b, longest, hidden]` in `f32`, of rows of 1 to
    /// [`MAX_TOKENS`] ids below `vocab_size`. What lies behind a row's own length means nothing, and changes nothing
    /// before it: no token sees a later one.
    pub fn encode(&self, rows: &[Vec<u32>]) -> candle_core::Result<Tensor> {
        let longest = self.checked_length(rows)?;
        let mut ids = Vec::with_capacity(rows.len() * longest);
        for row in rows {
            ids.extend_from_slice(row);
            // Any token will do behind a row's end.
            ids.resize(ids.len() + longest - row.len(), row[0]);
        }
        let shape = (rows.len(), longest, self.config.hidden_size);
        let mut x = self.tokens.select(&ids, &self.device)?.to_dtype(self.activations)?.reshape(shape)?;
        let (angles, adapters) = (Angles::new(&self.config, longest, &self.device)?, Adapters::none());
        self.layers.try_for_each(|_, layer| {
            x = layer.forward(&x, &angles, adapters)?;
            Ok(())
        })?;
        self.final_norm.forward(&x, adapters)?.to_dtype(DType::F32)
    }

    fn checked_length(&self, rows: &[Vec<u32>]) -> candle_core::Result<usize> {
        let Some(longest) = rows.iter().map(Vec::len).max() else {
            bail!("text encoder: no prompts in the batch")
        };
        for (i, row) in rows.iter().enumerate() {
            if row.is_empty() || row.len() > MAX_TOKENS {
                bail!("text encoder: prompt {i} has {} tokens; 1 to {MAX_TOKENS} are possible", row.len());
            }
            if let Some(id) = row.iter().find(|&&id| id as usize >= self.config.vocab_size) {
                bail!(
                    "text encoder: token {id} of prompt {i} is beyond the vocabulary of {}",
                    self.config.vocab_size
                );
            }
        }
        Ok(longest)
    }
}
