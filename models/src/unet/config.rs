//! The UNet's shape, read from diffusers' `UNet2DConditionModel` `config.json` (or from tensor shapes, which
//! `checkpoint` does). The network is built from it.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::fields::{ConfigError, Fields, unsupported};

/// Most resolution levels of a UNet.
const MAX_BLOCKS: usize = 8;
/// Widest channel count or embedding accepted: well above every published UNet, and far from overflow.
const MAX_WIDTH: usize = 65_536;
/// Most residual layers of a block.
const MAX_LAYERS: usize = 16;
/// Most transformer layers in one attention block.
const MAX_TRANSFORMER_LAYERS: usize = 64;

/// The shape of a conditional UNet: Stable Diffusion 1.5, SDXL, and relatives with the same block types.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "Map<String, Value>")]
pub struct UNetConfig {
    /// Channels of the latent that goes in (4).
    pub in_channels: usize,
    /// Channels that come out (4).
    pub out_channels: usize,
    /// Channels of each level, highest resolution first.
    pub block_out_channels: Vec<usize>,
    /// Residual layers of each down block; an up block has one more.
    pub layers_per_block: usize,
    /// Transformer layers of each attention block, per down block; 0 is a block without attention. The up
    /// blocks are the same in reverse.
    pub transformer_layers: Vec<usize>,
    /// Transformer layers of the middle block's attention: at least 1 in a UNet. A ControlNet may have a middle of
    /// one residual block alone (0).
    pub mid_transformer_layers: usize,
    /// Attention heads of each level; the middle block has the last level's.
    pub attention_heads: Vec<usize>,
    /// Width of the context that cross-attention looks at.
    pub cross_attention_dim: usize,
    /// Groups of every group norm.
    pub norm_num_groups: usize,
    /// Epsilon of the residual blocks' and the last group norm (the attention blocks' own norm has 1e-6).
    pub norm_eps: f64,
    /// Whether the attention blocks' `proj_in` and `proj_out` are linear (SDXL, weight `[out, in]`) rather
    /// than 1×1 convolutions (SD 1.5, weight `[out, in, 1, 1]`).
    pub use_linear_projection: bool,
    /// SDXL's second conditioning: pooled text and size ids. `None` in SD 1.5.
    pub addition: Option<AdditionConfig>,
}

/// The `text_time` conditioning of SDXL (`add_embedding`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdditionConfig {
    /// Width of the sinusoidal embedding of each size id (256).
    pub time_embed_dim: usize,
    /// Width of the projection's input: pooled text plus `time_embed_dim` per size id (2816).
    pub projection_input_dim: usize,
}

impl UNetConfig {
    /// Width of the time embedding: four times the first level's channels.
    pub fn time_embed_dim(&self) -> usize {
        self.block_out_channels.first().copied().unwrap_or(0) * 4
    }

    /// Fails when the numbers do not fit together (channels that heads or groups do not divide, and so on).
    pub fn validate(&self) -> Result<(), ConfigError> {
        let blocks = self.block_out_channels.len();
        let contradiction = |reason: String| Err(ConfigError::Contradiction { reason });
        if blocks == 0 || self.transformer_layers.len() != blocks || self.attention_heads.len() != blocks {
            return contradiction(format!(
                "{blocks} levels, but transformer layers for {} and heads for {}",
                self.transformer_layers.len(),
                self.attention_heads.len()
            ));
        }
        if self.mid_transformer_layers == 0 || self.norm_num_groups == 0 {
            return contradiction("mid_transformer_layers and norm_num_groups must be at least 1".into());
        }
        for (channels, heads) in self.block_out_channels.iter().zip(&self.attention_heads) {
            if *heads == 0 || channels % heads != 0 {
                return contradiction(format!("{channels} channels cannot be split into {heads} heads"));
            }
            if channels % self.norm_num_groups != 0 {
                return contradiction(format!(
                    "{channels} channels cannot be split into {} norm groups",
                    self.norm_num_groups
                ));
            }
        }
        if let Some(addition) = &self.addition
            && addition.projection_input_dim <= addition.time_embed_dim * SIZE_IDS
        {
            return contradiction(format!(
                "projection_class_embeddings_input_dim {} leaves no room for pooled text beside {SIZE_IDS} × {}",
                addition.projection_input_dim, addition.time_embed_dim
            ));
        }
        Ok(())
    }
}

/// SDXL's size ids: original height and width, crop top and left, target height and width.
pub const SIZE_IDS: usize = 6;

impl TryFrom<Map<String, Value>> for UNetConfig {
    type Error = ConfigError;

    fn try_from(object: Map<String, Value>) -> Result<Self, ConfigError> {
        let fields = Fields::new(object);
        reject_other_networks(&fields)?;
        let block_out_channels =
            fields.sizes("block_out_channels", &[320, 640, 1280, 1280], MAX_WIDTH, MAX_BLOCKS)?;
        let blocks = block_out_channels.len();
        let attention = attention_blocks(&fields, blocks)?;
        let layers = fields.per_block("transformer_layers_per_block", 1, MAX_TRANSFORMER_LAYERS, blocks)?;
        let layers_per_block = one_for_all(&fields, "layers_per_block", 2, MAX_LAYERS, blocks)?;
        let cross_attention_dim = one_for_all(&fields, "cross_attention_dim", 1280, MAX_WIDTH, blocks)?;
        let addition = match fields.text("addition_embed_type")? {
            None => None,
            Some("text_time") => Some(AdditionConfig {
                time_embed_dim: fields.size("addition_time_embed_dim", 256, MAX_WIDTH)?,
                projection_input_dim: fields.size(
                    "projection_class_embeddings_input_dim",
                    2816,
                    MAX_WIDTH,
                )?,
            }),
            Some(other) => {
                return Err(unsupported("addition_embed_type", &json!(other), "null or \"text_time\""));
            }
        };
        let config = Self {
            in_channels: fields.size("in_channels", 4, 64)?,
            out_channels: fields.size("out_channels", 4, 64)?,
            layers_per_block,
            mid_transformer_layers: layers.last().copied().unwrap_or(1),
            transformer_layers: layers
                .into_iter()
                .zip(attention)
                .map(|(layers, attention)| if attention { layers } else { 0 })
                .collect(),
            // diffusers' field is named after the head's width but holds the number of heads.
            attention_heads: fields.per_block("attention_head_dim", 8, 1024, blocks)?,
            cross_attention_dim,
            norm_num_groups: fields.size("norm_num_groups", 32, 1024)?,
            norm_eps: fields.positive("norm_eps", 1e-5)?,
            use_linear_projection: fields.flag("use_linear_projection", false)?,
            addition,
            block_out_channels,
        };
        config.validate()?;
        Ok(config)
    }
}

/// Fails on every option that would make another network than ours.
fn reject_other_networks(fields: &Fields) -> Result<(), ConfigError> {
    for absent in [
        "num_attention_heads",
        "class_embed_type",
        "num_class_embeds",
        "encoder_hid_dim",
        "encoder_hid_dim_type",
        "time_embedding_dim",
        "time_embedding_act_fn",
        "timestep_post_act",
        "time_cond_proj_dim",
        "cross_attention_norm",
        "reverse_transformer_layers_per_block",
    ] {
        fields.require_absent(absent)?;
    }
    for flag in [
        "center_input_sample",
        "only_cross_attention",
        "dual_cross_attention",
        "resnet_skip_time_act",
        "class_embeddings_concat",
        "mid_block_only_cross_attention",
    ] {
        fields.require(flag, &json!(false))?;
    }
    for (field, only) in [
        ("_class_name", json!("UNet2DConditionModel")),
        ("mid_block_type", json!("UNetMidBlock2DCrossAttn")),
        ("act_fn", json!("silu")),
        ("attention_type", json!("default")),
        ("resnet_time_scale_shift", json!("default")),
        ("time_embedding_type", json!("positional")),
        ("flip_sin_to_cos", json!(true)),
        ("freq_shift", json!(0)),
        ("downsample_padding", json!(1)),
        ("mid_block_scale_factor", json!(1)),
        ("resnet_out_scale_factor", json!(1)),
        ("conv_in_kernel", json!(3)),
        ("conv_out_kernel", json!(3)),
    ] {
        fields.require(field, &only)?;
    }
    Ok(())
}

/// Which levels have attention; the up blocks must mirror the down blocks.
fn attention_blocks(fields: &Fields, blocks: usize) -> Result<Vec<bool>, ConfigError> {
    let cross = |name: &str, plain: &str, attended: &str, field| match name {
        name if name == plain => Ok(false),
        name if name == attended => Ok(true),
        other => Err(unsupported(field, &json!(other), format!("{plain}, {attended}"))),
    };
    let down: Vec<bool> = fields
        .names(
            "down_block_types",
            &["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
            MAX_BLOCKS,
        )?
        .iter()
        .map(|name| cross(name, "DownBlock2D", "CrossAttnDownBlock2D", "down_block_types"))
        .collect::<Result<_, _>>()?;
    let up: Vec<bool> = fields
        .names(
            "up_block_types",
            &["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
            MAX_BLOCKS,
        )?
        .iter()
        .map(|name| cross(name, "UpBlock2D", "CrossAttnUpBlock2D", "up_block_types"))
        .collect::<Result<_, _>>()?;
    if down.len() != blocks || !down.iter().eq(up.iter().rev()) {
        return Err(ConfigError::Contradiction {
            reason: format!(
                "down_block_types and up_block_types must mirror each other and have {blocks} entries, as \
                 block_out_channels has"
            ),
        });
    }
    Ok(down)
}

/// A field that diffusers allows per block and that here must be the same for all.
fn one_for_all(
    fields: &Fields,
    field: &'static str,
    default: usize,
    max: usize,
    blocks: usize,
) -> Result<usize, ConfigError> {
    let all = fields.per_block(field, default, max, blocks)?;
    match all.first() {
        Some(first) if all.iter().all(|size| size == first) => Ok(*first),
        _ => Err(unsupported(field, &json!(all), "the same number for every block")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sdxl() -> Value {
        json!({
            "_class_name": "UNet2DConditionModel",
            "block_out_channels": [320, 640, 1280],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "transformer_layers_per_block": [1, 2, 10],
            "attention_head_dim": [5, 10, 20],
            "cross_attention_dim": 2048,
            "use_linear_projection": true,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
            "mid_block_scale_factor": 1.0,
            "num_attention_heads": null,
        })
    }

    #[test]
    fn sdxls_config_gives_its_shape() {
        let config: UNetConfig = serde_json::from_value(sdxl()).unwrap();
        assert_eq!(config.transformer_layers, [0, 2, 10]);
        assert_eq!(config.mid_transformer_layers, 10);
        assert_eq!(config.attention_heads, [5, 10, 20]);
        assert_eq!(config.norm_num_groups, 32);
        assert_eq!(config.time_embed_dim(), 1280);
        assert_eq!(config.addition, Some(AdditionConfig { time_embed_dim: 256, projection_input_dim: 2816 }));
    }

    #[test]
    fn an_empty_config_is_diffusers_default_which_is_nearly_sd15() {
        let config: UNetConfig = serde_json::from_value(json!({ "cross_attention_dim": 768 })).unwrap();
        assert_eq!(config.block_out_channels, [320, 640, 1280, 1280]);
        assert_eq!(config.transformer_layers, [1, 1, 1, 0]);
        assert_eq!(config.mid_transformer_layers, 1);
        assert_eq!(config.attention_heads, [8; 4]);
        assert_eq!(config.addition, None);
        assert!(!config.use_linear_projection);
    }

    #[test]
    fn options_that_make_another_network_are_named_in_the_error() {
        for (field, value) in [
            ("class_embed_type", json!("timestep")),
            ("act_fn", json!("gelu")),
            ("down_block_types", json!(["KDownBlock2D"])),
            ("dual_cross_attention", json!(true)),
            ("addition_embed_type", json!("image")),
            ("transformer_layers_per_block", json!([1, [1, 2], 3])),
            ("attention_head_dim", json!([3, 10, 20])),
            ("norm_num_groups", json!(0)),
            ("block_out_channels", json!([320, 640, 1u64 << 60])),
            ("block_out_channels", json!([320, 640])),
            ("projection_class_embeddings_input_dim", json!(6 * 256)),
        ] {
            let mut config = sdxl();
            config[field] = value.clone();
            let error = serde_json::from_value::<UNetConfig>(config).unwrap_err().to_string();
            assert!(
                error.contains(field) || error.contains("contradicts itself"),
                "{field} = {value}: {error}"
            );
        }
    }
}
