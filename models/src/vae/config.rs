//! The autoencoder's shape, read from diffusers' `AutoencoderKL` `config.json` (or from tensor shapes, which
//! `checkpoint` does). The network is built from it.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::fields::{ConfigError, Fields, unsupported};

/// Most resolution levels of an autoencoder.
const MAX_BLOCKS: usize = 8;
/// Widest channel count accepted.
const MAX_WIDTH: usize = 65_536;

/// The shape of an `AutoencoderKL` with one attention layer in its middle blocks.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "Map<String, Value>")]
pub struct VaeConfig {
    /// Channels of the picture that goes in (3).
    pub in_channels: usize,
    /// Channels of the picture that comes out (3).
    pub out_channels: usize,
    /// Channels of the latent (4).
    pub latent_channels: usize,
    /// Channels of each encoder level, full resolution first; the decoder's are the same in reverse.
    pub block_out_channels: Vec<usize>,
    /// Residual layers of each encoder level; a decoder level has one more.
    pub layers_per_block: usize,
    /// Groups of every group norm (epsilon 1e-6 everywhere).
    pub norm_num_groups: usize,
    /// What a latent is multiplied by before the UNet sees it (SDXL 0.13025, SD 1.5 0.18215).
    pub scaling_factor: f64,
}

impl VaeConfig {
    /// Pixels of a latent cell's side: every level but the last halves the picture.
    pub fn downscale(&self) -> usize {
        1 << self.block_out_channels.len().saturating_sub(1).min(MAX_BLOCKS)
    }

    /// Fails when the numbers do not fit together.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let groups = self.norm_num_groups;
        if groups == 0 || self.block_out_channels.is_empty() {
            return Err(ConfigError::Contradiction { reason: "no norm groups, or no levels".into() });
        }
        match self.block_out_channels.iter().find(|channels| *channels % groups != 0) {
            None => Ok(()),
            Some(channels) => Err(ConfigError::Contradiction {
                reason: format!("{channels} channels cannot be split into {groups} norm groups"),
            }),
        }
    }
}

impl TryFrom<Map<String, Value>> for VaeConfig {
    type Error = ConfigError;

    fn try_from(object: Map<String, Value>) -> Result<Self, ConfigError> {
        let fields = Fields::new(object);
        for absent in ["shift_factor", "latents_mean", "latents_std"] {
            fields.require_absent(absent)?;
        }
        for (field, only) in [
            ("_class_name", json!("AutoencoderKL")),
            ("act_fn", json!("silu")),
            ("use_quant_conv", json!(true)),
            ("use_post_quant_conv", json!(true)),
            ("mid_block_add_attention", json!(true)),
        ] {
            fields.require(field, &only)?;
        }
        let block_out_channels = fields.sizes("block_out_channels", &[64], MAX_WIDTH, MAX_BLOCKS)?;
        for (field, only) in
            [("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")]
        {
            let types = fields.names(field, &[only], MAX_BLOCKS)?;
            if let Some(other) = types.iter().find(|name| *name != only) {
                return Err(unsupported(field, &json!(other), only));
            }
            if types.len() != block_out_channels.len() {
                return Err(ConfigError::Contradiction {
                    reason: format!(
                        "{field} has {} entries, block_out_channels has {}",
                        types.len(),
                        block_out_channels.len()
                    ),
                });
            }
        }
        let config = Self {
            in_channels: fields.size("in_channels", 3, 64)?,
            out_channels: fields.size("out_channels", 3, 64)?,
            latent_channels: fields.size("latent_channels", 4, 256)?,
            block_out_channels,
            layers_per_block: fields.size("layers_per_block", 1, 16)?,
            norm_num_groups: fields.size("norm_num_groups", 32, 1024)?,
            scaling_factor: fields.positive("scaling_factor", 0.18215)?,
        };
        config.validate()?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sdxl() -> Value {
        json!({
            "_class_name": "AutoencoderKL",
            "block_out_channels": [128, 256, 512, 512],
            "down_block_types": vec!["DownEncoderBlock2D"; 4],
            "up_block_types": vec!["UpDecoderBlock2D"; 4],
            "layers_per_block": 2,
            "scaling_factor": 0.13025,
            "force_upcast": true,
            "shift_factor": null,
        })
    }

    #[test]
    fn sdxls_config_gives_its_shape() {
        let config: VaeConfig = serde_json::from_value(sdxl()).unwrap();
        assert_eq!(config.block_out_channels, [128, 256, 512, 512]);
        assert_eq!(config.downscale(), 8);
        assert_eq!(config.scaling_factor, 0.13025);
        assert_eq!((config.latent_channels, config.norm_num_groups), (4, 32));
    }

    #[test]
    fn options_that_make_another_network_are_named_in_the_error() {
        for (field, value) in [
            ("shift_factor", json!(0.1159)),
            ("use_quant_conv", json!(false)),
            ("_class_name", json!("AutoencoderTiny")),
            ("down_block_types", json!(vec!["AttnDownEncoderBlock2D"; 4])),
            ("scaling_factor", json!("NaN")),
            ("norm_num_groups", json!(48)),
            ("up_block_types", json!(["UpDecoderBlock2D"])),
        ] {
            let mut config = sdxl();
            config[field] = value.clone();
            let error = serde_json::from_value::<VaeConfig>(config).unwrap_err().to_string();
            assert!(
                error.contains(field) || error.contains("contradicts itself"),
                "{field} = {value}: {error}"
            );
        }
    }
}
