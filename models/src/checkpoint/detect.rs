//! Network configs read off tensor shapes, for single files. What shapes do not show (norm groups, heads, the
//! size ids' width) comes from a config in the file's metadata, else from the values that every published
//! model of the kind has.

mod qwen_image;
mod qwen_vl;

use std::collections::BTreeMap;

use super::{CheckpointError, ModelKind, Part};
use crate::clip::{ClipTextConfig, HiddenAct};
use crate::unet::{AdditionConfig, SIZE_IDS, UNetConfig};
use crate::vae::VaeConfig;
use crate::weights::{Header, Stored};

pub(super) use qwen_image::{qwen_image, vae_qwen};
pub(super) use qwen_vl::qwen_vl;

/// A part's tensors by canonical name.
pub(super) struct Tensors<'a> {
    pub(super) origin: &'a str,
    pub(super) part: Part,
    pub(super) tensors: &'a BTreeMap<String, Stored>,
}

impl Tensors<'_> {
    fn undetectable(&self, reason: impl Into<String>) -> CheckpointError {
        CheckpointError::Undetectable {
            origin: self.origin.to_owned(),
            part: self.part,
            reason: reason.into(),
        }
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.tensors.get(name)?.shape()
    }

    fn need<const RANK: usize>(&self, name: &str) -> Result<[usize; RANK], CheckpointError> {
        let shape = self.shape(name).ok_or_else(|| self.undetectable(format!("it has no '{name}'")))?;
        <[usize; RANK]>::try_from(shape.as_slice())
            .map_err(|_| self.undetectable(format!("'{name}' has shape {shape:?}, not {RANK} dimensions")))
    }

    /// How many of `name(0)`, `name(1)`, … there are before the first gap.
    fn count(&self, name: impl Fn(usize) -> String) -> usize {
        (0..).take_while(|index| self.tensors.contains_key(&name(*index))).count()
    }

    fn config_error(&self, reason: impl Into<String>) -> CheckpointError {
        CheckpointError::Config { origin: self.origin.to_owned(), part: self.part, reason: reason.into() }
    }

    /// The config that the file's metadata holds under one of the keys for this part.
    fn metadata<C: serde::de::DeserializeOwned>(
        &self,
        header: &Header,
        key: &str,
    ) -> Result<Option<C>, CheckpointError> {
        let text =
            [key.to_owned(), format!("tiny.{key}")].into_iter().find_map(|key| header.metadata.get(&key));
        text.map(|text| serde_json::from_str(text).map_err(|e| self.config_error(e.to_string()))).transpose()
    }

    /// Fails when metadata says another shape than the tensors have.
    fn agree<T: PartialEq + std::fmt::Debug>(
        &self,
        field: &str,
        metadata: &T,
        tensors: &T,
    ) -> Result<(), CheckpointError> {
        if metadata == tensors {
            return Ok(());
        }
        Err(self.config_error(format!("the metadata says {field} {metadata:?}, the tensors say {tensors:?}")))
    }
}

/// What a config that passed no check lacks, said so that its reader can mend it.
fn with_hint(error: impl std::fmt::Display, key: &str) -> String {
    format!(
        "{error}; heads and norm groups cannot be read off tensors: for an unusual model, store diffusers' \
         config.json as the metadata entry '{key}'"
    )
}

/// The UNet's config. `pooled` is the width of the pooled text, where a second text encoder tells it.
pub(super) fn unet(
    tensors: &Tensors<'_>,
    header: &Header,
    kind: ModelKind,
    pooled: Option<usize>,
) -> Result<UNetConfig, CheckpointError> {
    const KEY: &str = "unet_config";
    let detected = unet_shape(tensors, kind, pooled)?;
    let Some(said) = tensors.metadata::<UNetConfig>(header, KEY)? else {
        detected.validate().map_err(|e| tensors.config_error(with_hint(e, KEY)))?;
        return Ok(detected);
    };
    tensors.agree("in_channels", &said.in_channels, &detected.in_channels)?;
    tensors.agree("out_channels", &said.out_channels, &detected.out_channels)?;
    tensors.agree("block_out_channels", &said.block_out_channels, &detected.block_out_channels)?;
    tensors.agree("layers_per_block", &said.layers_per_block, &detected.layers_per_block)?;
    tensors.agree("transformer layers", &said.transformer_layers, &detected.transformer_layers)?;
    tensors.agree(
        "transformer layers of the middle block",
        &said.mid_transformer_layers,
        &detected.mid_transformer_layers,
    )?;
    tensors.agree("cross_attention_dim", &said.cross_attention_dim, &detected.cross_attention_dim)?;
    tensors.agree("use_linear_projection", &said.use_linear_projection, &detected.use_linear_projection)?;
    let projection = |config: &UNetConfig| config.addition.as_ref().map(|a| a.projection_input_dim);
    tensors.agree("projection_class_embeddings_input_dim", &projection(&said), &projection(&detected))?;
    Ok(said)
}

fn unet_shape(
    tensors: &Tensors<'_>,
    kind: ModelKind,
    pooled: Option<usize>,
) -> Result<UNetConfig, CheckpointError> {
    let [_, in_channels, _, _] = tensors.need("conv_in.weight")?;
    let [out_channels, _, _, _] = tensors.need("conv_out.weight")?;
    let conv1 = |level: usize, layer: usize| format!("down_blocks.{level}.resnets.{layer}.conv1.weight");
    let levels = tensors.count(|level| conv1(level, 0));
    let layers_per_block = tensors.count(|layer| conv1(0, layer));
    let mut block_out_channels = Vec::with_capacity(levels);
    let mut transformer_layers = Vec::with_capacity(levels);
    for level in 0..levels {
        let [channels, _, _, _] = tensors.need(&conv1(level, 0))?;
        block_out_channels.push(channels);
        let depth = |layer: usize| {
            tensors.count(|index| {
                format!("down_blocks.{level}.attentions.{layer}.transformer_blocks.{index}.attn1.to_q.weight")
            })
        };
        let depths: Vec<usize> = (0..layers_per_block).map(depth).collect();
        match depths.first() {
            Some(first) if depths.iter().all(|depth| depth == first) => transformer_layers.push(*first),
            _ => {
                return Err(tensors.undetectable(format!(
                    "the layers of level {level} have {depths:?} transformer layers; they must be alike"
                )));
            }
        }
    }
    let attention = "mid_block.attentions.0";
    let mid_transformer_layers =
        tensors.count(|index| format!("{attention}.transformer_blocks.{index}.attn1.to_q.weight"));
    let [_, cross_attention_dim] =
        tensors.need(&format!("{attention}.transformer_blocks.0.attn2.to_k.weight"))?;
    let use_linear_projection =
        tensors.shape(&format!("{attention}.proj_in.weight")).is_some_and(|shape| shape.len() == 2);
    let addition = if tensors.tensors.contains_key("add_embedding.linear_1.weight") {
        let [_, projection_input_dim] = tensors.need("add_embedding.linear_1.weight")?;
        let time_embed_dim = match pooled.and_then(|pooled| projection_input_dim.checked_sub(pooled)) {
            Some(rest) if rest > 0 && rest.is_multiple_of(SIZE_IDS) => rest / SIZE_IDS,
            _ => 256,
        };
        Some(AdditionConfig { time_embed_dim, projection_input_dim })
    } else {
        None
    };
    let attention_heads = block_out_channels
        .iter()
        .zip(&transformer_layers)
        .map(|(channels, layers)| match kind {
            // A level without attention has heads in name only.
            _ if *layers == 0 => 1,
            ModelKind::Sd15 => 8,
            _ => (channels / 64).max(1),
        })
        .collect::<Vec<_>>();
    // The middle block has the last level's heads even where that level itself has no attention.
    let mut attention_heads = attention_heads;
    if let (Some(last), Some(channels)) = (attention_heads.last_mut(), block_out_channels.last()) {
        *last = if kind == ModelKind::Sd15 { 8 } else { (channels / 64).max(1) };
    }
    Ok(UNetConfig {
        in_channels,
        out_channels,
        block_out_channels,
        layers_per_block,
        transformer_layers,
        mid_transformer_layers,
        attention_heads,
        cross_attention_dim,
        norm_num_groups: 32,
        norm_eps: 1e-5,
        use_linear_projection,
        addition,
    })
}

/// The autoencoder's config.
pub(super) fn vae(
    tensors: &Tensors<'_>,
    header: &Header,
    kind: ModelKind,
) -> Result<VaeConfig, CheckpointError> {
    const KEY: &str = "vae_config";
    let conv1 =
        |level: usize, layer: usize| format!("encoder.down_blocks.{level}.resnets.{layer}.conv1.weight");
    let [_, in_channels, _, _] = tensors.need("encoder.conv_in.weight")?;
    let [out_channels, _, _, _] = tensors.need("decoder.conv_out.weight")?;
    let [_, latent_channels, _, _] = tensors.need("decoder.conv_in.weight")?;
    let levels = tensors.count(|level| conv1(level, 0));
    let block_out_channels = (0..levels)
        .map(|level| tensors.need::<4>(&conv1(level, 0)).map(|[channels, ..]| channels))
        .collect::<Result<Vec<_>, _>>()?;
    let detected = VaeConfig {
        in_channels,
        out_channels,
        latent_channels,
        block_out_channels,
        layers_per_block: tensors.count(|layer| conv1(0, layer)),
        norm_num_groups: 32,
        scaling_factor: if kind == ModelKind::Sdxl { 0.13025 } else { 0.18215 },
    };
    let Some(said) = tensors.metadata::<VaeConfig>(header, KEY)? else {
        detected.validate().map_err(|e| tensors.config_error(with_hint(e, KEY)))?;
        return Ok(detected);
    };
    tensors.agree("in_channels", &said.in_channels, &detected.in_channels)?;
    tensors.agree("out_channels", &said.out_channels, &detected.out_channels)?;
    tensors.agree("latent_channels", &said.latent_channels, &detected.latent_channels)?;
    tensors.agree("block_out_channels", &said.block_out_channels, &detected.block_out_channels)?;
    tensors.agree("layers_per_block", &said.layers_per_block, &detected.layers_per_block)?;
    Ok(said)
}

/// A text encoder's config. Its projection is counted only for OpenCLIP bigG: what CLIP-L may carry is unused.
pub(super) fn clip(
    tensors: &Tensors<'_>,
    header: &Header,
    key: &str,
) -> Result<ClipTextConfig, CheckpointError> {
    let [vocab_size, hidden_size] = tensors.need("text_model.embeddings.token_embedding.weight")?;
    let [max_position_embeddings, _] = tensors.need("text_model.embeddings.position_embedding.weight")?;
    let [intermediate_size, _] = tensors.need("text_model.encoder.layers.0.mlp.fc1.weight")?;
    let second = tensors.part == Part::ClipG;
    let projection_dim = if second {
        let [width, _] = tensors.need("text_projection.weight")?;
        Some(width)
    } else {
        None
    };
    let last_token = u32::try_from(vocab_size.saturating_sub(1)).unwrap_or(u32::MAX);
    let detected = ClipTextConfig {
        vocab_size,
        hidden_size,
        intermediate_size,
        num_hidden_layers: tensors
            .count(|layer| format!("text_model.encoder.layers.{layer}.self_attn.q_proj.weight")),
        num_attention_heads: (hidden_size / 64).max(1),
        max_position_embeddings,
        hidden_act: if second { HiddenAct::Gelu } else { HiddenAct::QuickGelu },
        layer_norm_eps: 1e-5,
        projection_dim,
        bos_token_id: last_token.saturating_sub(1),
        eos_token_id: last_token,
    };
    let Some(said) = tensors.metadata::<ClipTextConfig>(header, key)? else {
        detected.validate().map_err(|e| tensors.config_error(with_hint(e, key)))?;
        return Ok(detected);
    };
    tensors.agree("vocab_size", &said.vocab_size, &detected.vocab_size)?;
    tensors.agree("hidden_size", &said.hidden_size, &detected.hidden_size)?;
    tensors.agree("intermediate_size", &said.intermediate_size, &detected.intermediate_size)?;
    tensors.agree("num_hidden_layers", &said.num_hidden_layers, &detected.num_hidden_layers)?;
    tensors.agree(
        "max_position_embeddings",
        &said.max_position_embeddings,
        &detected.max_position_embeddings,
    )?;
    Ok(ClipTextConfig { projection_dim, ..said })
}
