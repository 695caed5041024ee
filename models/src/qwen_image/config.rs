//! The denoiser's shape, read from diffusers' `QwenImageTransformer2DModel` `config.json`. The network is built from it.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::fields::{ConfigError, Fields, wrong};

/// Widest layer accepted: well above every published transformer, and far from overflow.
const MAX_WIDTH: usize = 65_536;
/// Most blocks accepted.
const MAX_LAYERS: usize = 256;
/// Largest side of a patch accepted.
const MAX_PATCH: usize = 16;

/// The shape of Qwen-Image's transformer.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Map<String, Value>")]
pub struct QwenImageConfig {
    /// Cells of the latent on each side of a token (2).
    pub patch_size: usize,
    /// Numbers of a token: the latent's channels times the cells of a patch (64).
    pub in_channels: usize,
    /// Channels of the latent (16).
    pub out_channels: usize,
    /// Transformer blocks (60).
    pub num_layers: usize,
    /// Width of an attention head (128).
    pub attention_head_dim: usize,
    /// Attention heads (24).
    pub num_attention_heads: usize,
    /// Width of the context (3584).
    pub joint_attention_dim: usize,
    /// How many numbers of a head turn with the picture's number, the row and the column (16, 56, 56).
    pub axes_dims_rope: [usize; 3],
}

impl Default for QwenImageConfig {
    /// The published model of 20 billion weights.
    fn default() -> Self {
        Self {
            patch_size: 2,
            in_channels: 64,
            out_channels: 16,
            num_layers: 60,
            attention_head_dim: 128,
            num_attention_heads: 24,
            joint_attention_dim: 3584,
            axes_dims_rope: [16, 56, 56],
        }
    }
}

impl QwenImageConfig {
    /// Channels of the latent that goes in, and of what comes out.
    pub fn latent_channels(&self) -> usize {
        self.out_channels
    }

    /// Width of both streams.
    pub fn inner_dim(&self) -> usize {
        self.attention_head_dim.saturating_mul(self.num_attention_heads)
    }

    /// Fails when a number is zero or absurd, or numbers do not fit together.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let contradiction = |reason: String| Err(ConfigError::Contradiction { reason });
        for (field, size, most) in [
            ("patch_size", self.patch_size, MAX_PATCH),
            ("in_channels", self.in_channels, MAX_WIDTH),
            ("out_channels", self.out_channels, MAX_WIDTH),
            ("num_layers", self.num_layers, MAX_LAYERS),
            ("attention_head_dim", self.attention_head_dim, MAX_WIDTH),
            ("num_attention_heads", self.num_attention_heads, MAX_WIDTH),
            ("joint_attention_dim", self.joint_attention_dim, MAX_WIDTH),
        ] {
            if !(1..=most).contains(&size) {
                return Err(wrong(field, &json!(size), format!("a whole number from 1 to {most}")));
            }
        }
        if self.inner_dim() > MAX_WIDTH {
            return contradiction(format!(
                "{} heads of {} are wider than {MAX_WIDTH}",
                self.num_attention_heads, self.attention_head_dim
            ));
        }
        if self.in_channels != self.patch_size * self.patch_size * self.out_channels {
            return contradiction(format!(
                "in_channels {} is not the {} × {} cells of a patch times out_channels {}",
                self.in_channels, self.patch_size, self.patch_size, self.out_channels
            ));
        }
        let axes = self.axes_dims_rope;
        let sum = axes.iter().try_fold(0usize, |sum, axis| sum.checked_add(*axis));
        if axes.iter().any(|axis| *axis == 0 || axis % 2 != 0) || sum != Some(self.attention_head_dim) {
            return contradiction(format!(
                "axes_dims_rope {axes:?} are not three even numbers that make attention_head_dim {}",
                self.attention_head_dim
            ));
        }
        Ok(())
    }
}

impl TryFrom<Map<String, Value>> for QwenImageConfig {
    type Error = ConfigError;

    fn try_from(object: Map<String, Value>) -> Result<Self, ConfigError> {
        // Here `null` is not the default.
        let as_in_channels = object.get("out_channels") == Some(&Value::Null);
        let fields = Fields::new(object);
        fields.require("_class_name", &json!("QwenImageTransformer2DModel"))?;
        for flag in ["guidance_embeds", "zero_cond_t", "use_additional_t_cond", "use_layer3d_rope"] {
            fields.require(flag, &json!(false))?;
        }
        let published = Self::default();
        let axes = fields.sizes("axes_dims_rope", &published.axes_dims_rope, MAX_WIDTH, 3)?;
        let axes_dims_rope = axes
            .try_into()
            .map_err(|axes: Vec<usize>| wrong("axes_dims_rope", &json!(axes), "a list of 3 numbers"))?;
        let size = |field, default| fields.size(field, default, MAX_WIDTH);
        let in_channels = size("in_channels", published.in_channels)?;
        let config = Self {
            patch_size: fields.size("patch_size", published.patch_size, MAX_PATCH)?,
            in_channels,
            out_channels: match as_in_channels {
                true => in_channels,
                false => size("out_channels", published.out_channels)?,
            },
            num_layers: fields.size("num_layers", published.num_layers, MAX_LAYERS)?,
            attention_head_dim: size("attention_head_dim", published.attention_head_dim)?,
            num_attention_heads: size("num_attention_heads", published.num_attention_heads)?,
            joint_attention_dim: size("joint_attention_dim", published.joint_attention_dim)?,
            axes_dims_rope,
        };
        config.validate()?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published() -> Value {
        json!({
            "_class_name": "QwenImageTransformer2DModel",
            "_diffusers_version": "0.35.0.dev0",
            "attention_head_dim": 128,
            "axes_dims_rope": [16, 56, 56],
            "guidance_embeds": false,
            "in_channels": 64,
            "joint_attention_dim": 3584,
            "num_attention_heads": 24,
            "num_layers": 60,
            "out_channels": 16,
            "patch_size": 2,
            "pooled_projection_dim": 768,
        })
    }

    #[test]
    fn the_published_config_and_an_empty_one_are_the_default() {
        let read = |value| serde_json::from_value::<QwenImageConfig>(value).unwrap();
        assert_eq!(read(published()), QwenImageConfig::default());
        assert_eq!(read(json!({})), QwenImageConfig::default());
        assert_eq!(QwenImageConfig::default().inner_dim(), 3072);
        assert_eq!(QwenImageConfig::default().latent_channels(), 16);
        QwenImageConfig::default().validate().unwrap();
    }

    #[test]
    fn what_cannot_be_honoured_is_named_in_the_error() {
        for (field, value) in [
            ("_class_name", json!("FluxTransformer2DModel")),
            ("guidance_embeds", json!(true)),
            ("zero_cond_t", json!(true)),
            ("use_additional_t_cond", json!(true)),
            ("use_layer3d_rope", json!(true)),
            ("num_layers", json!(0)),
            ("num_layers", json!(100_000)),
            ("num_layers", json!(-1)),
            ("num_layers", json!("60")),
            ("patch_size", json!(0)),
            ("patch_size", json!(1)),
            ("in_channels", json!(1u64 << 60)),
            ("in_channels", json!(63)),
            ("out_channels", json!(null)),
            ("out_channels", json!(17)),
            ("attention_head_dim", json!(127)),
            ("num_attention_heads", json!(65_536)),
            ("joint_attention_dim", json!(0)),
            ("axes_dims_rope", json!([16, 56])),
            ("axes_dims_rope", json!([15, 57, 56])),
            ("axes_dims_rope", json!([16, 56, 58])),
            ("axes_dims_rope", json!([16, 56, 0])),
            ("axes_dims_rope", json!([16, 56, 56, 2])),
            ("axes_dims_rope", json!(128)),
        ] {
            let mut config = published();
            config[field] = value.clone();
            let error = serde_json::from_value::<QwenImageConfig>(config).unwrap_err().to_string();
            assert!(
                error.contains(field) || error.contains("contradicts itself"),
                "{field} = {value}: {error}"
            );
        }
    }

    #[test]
    fn numbers_that_were_set_by_hand_are_checked_too() {
        let changes: [fn(&mut QwenImageConfig); 4] = [
            |config| config.patch_size = usize::MAX,
            |config| config.num_layers = 0,
            |config| config.num_attention_heads = usize::MAX,
            |config| config.axes_dims_rope = [usize::MAX - 1, 2, 128],
        ];
        for change in changes {
            let mut config = QwenImageConfig::default();
            change(&mut config);
            assert!(config.validate().is_err(), "{config:?}");
        }
    }
}
