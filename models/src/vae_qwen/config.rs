//! The autoencoder's shape and the statistics of its latents, read from diffusers' `AutoencoderKLQwenImage`
//! `config.json` (or from tensor shapes, which `detect` does). The network is built from it.

use candle_core::{Tensor, bail};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::fields::{ConfigError, Fields, wrong};

/// Most resolution levels of an autoencoder.
const MAX_LEVELS: usize = 8;
/// Widest channel count accepted.
const MAX_WIDTH: usize = 65_536;
/// Most channels of a latent.
const MAX_LATENT: usize = 256;
/// Most residual blocks of a level.
const MAX_RES_BLOCKS: usize = 16;

/// Of Qwen-Image's latents, by channel.
const LATENTS_MEAN: [f64; 16] = [
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, 0.5517, -0.3632,
    -0.1922, -0.9497, 0.2503, -0.2921,
];
const LATENTS_STD: [f64; 16] = [
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579, 1.6382,
    1.1253, 2.8251, 1.9160,
];

/// The shape of an `AutoencoderKLQwenImage` for pictures of 3 channels, with attention in its middle blocks alone.
/// [`Default`] is Qwen-Image's.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "Map<String, Value>")]
pub struct QwenVaeConfig {
    /// Channels that `dim_mult` multiplies (96).
    pub base_dim: usize,
    /// Channels of the latent (16).
    pub z_dim: usize,
    /// Width of each encoder level over `base_dim`, full resolution first; the decoder's are the same in reverse.
    pub dim_mult: Vec<usize>,
    /// Residual blocks of each encoder level; a decoder level has one more.
    pub num_res_blocks: usize,
    /// Between which encoder levels the video is shortened too: there is a `time_conv`, which pictures do not need.
    pub temperal_downsample: Vec<bool>,
    /// Mean of each latent channel.
    pub latents_mean: Vec<f64>,
    /// Standard deviation of each latent channel.
    pub latents_std: Vec<f64>,
}

impl Default for QwenVaeConfig {
    fn default() -> Self {
        Self {
            base_dim: 96,
            z_dim: LATENTS_MEAN.len(),
            dim_mult: vec![1, 2, 4, 4],
            num_res_blocks: 2,
            temperal_downsample: vec![false, true, true],
            latents_mean: LATENTS_MEAN.to_vec(),
            latents_std: LATENTS_STD.to_vec(),
        }
    }
}

impl QwenVaeConfig {
    /// Channels of pictures.
    pub const PICTURE_CHANNELS: usize = 3;

    /// Pixels of a latent cell's side: every level but the last halves the picture.
    pub fn downscale(&self) -> usize {
        1 << self.dim_mult.len().saturating_sub(1).min(MAX_LEVELS)
    }

    /// Channels of each encoder level.
    pub(super) fn widths(&self) -> Vec<usize> {
        self.dim_mult.iter().map(|times| times.saturating_mul(self.base_dim)).collect()
    }

    /// Fails when the numbers do not fit together, or are beyond what any such network has.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let contradiction = |reason: String| Err(ConfigError::Contradiction { reason });
        let levels = self.dim_mult.len();
        if self.base_dim == 0 || !(1..=MAX_LEVELS).contains(&levels) {
            return contradiction(format!("{levels} levels of {} channels", self.base_dim));
        }
        for (level, width) in self.widths().into_iter().enumerate() {
            if !(1..=MAX_WIDTH).contains(&width) {
                return contradiction(format!("{width} channels at level {level}"));
            }
            if level > 0 && !width.is_multiple_of(2) {
                return contradiction(format!("{width} channels at level {level} cannot be halved"));
            }
        }
        if !(1..=MAX_RES_BLOCKS).contains(&self.num_res_blocks) {
            return contradiction(format!("num_res_blocks is {}", self.num_res_blocks));
        }
        if self.temperal_downsample.len() + 1 != levels {
            return contradiction(format!(
                "temperal_downsample has {} entries for {levels} levels",
                self.temperal_downsample.len()
            ));
        }
        let (means, deviations) = (self.latents_mean.len(), self.latents_std.len());
        if !(1..=MAX_LATENT).contains(&self.z_dim) || means != self.z_dim || deviations != self.z_dim {
            return contradiction(format!(
                "z_dim is {}, latents_mean has {means} entries, latents_std {deviations}",
                self.z_dim
            ));
        }
        // As they are used: in single precision.
        let usable = self.latents_mean.iter().all(|mean| (*mean as f32).is_finite())
            && self.latents_std.iter().all(|std| (*std as f32).is_finite() && (*std as f32) > 0.0);
        if !usable {
            return contradiction("latents_mean must be finite, latents_std finite and above 0".into());
        }
        Ok(())
    }

    /// A latent `[.., z_dim, h, w]` from the autoencoder's own units to those that the diffusion network works in:
    /// `(latent − mean) / std`, by channel.
    ///
    /// # Errors
    /// When it has another shape.
    pub fn to_network(&self, latent: &Tensor) -> candle_core::Result<Tensor> {
        let [mean, std] = self.statistics(latent)?;
        latent.broadcast_sub(&mean)?.broadcast_div(&std)
    }

    /// The way back from [`Self::to_network`]: `latent · std + mean`.
    ///
    /// # Errors
    /// When it has another shape.
    pub fn from_network(&self, latent: &Tensor) -> candle_core::Result<Tensor> {
        let [mean, std] = self.statistics(latent)?;
        latent.broadcast_mul(&std)?.broadcast_add(&mean)
    }

    /// Mean and deviation, `[z_dim, 1, 1]`, as `latent` takes them.
    fn statistics(&self, latent: &Tensor) -> candle_core::Result<[Tensor; 2]> {
        match latent.dims() {
            [.., channels, _, _] if *channels == self.z_dim => {}
            other => bail!("VAE: a latent has shape {other:?}, but [.., {}, h, w] is needed", self.z_dim),
        }
        let column = |values: &[f64]| {
            let values: Vec<f32> = values.iter().map(|value| *value as f32).collect();
            Tensor::from_vec(values, (self.z_dim, 1, 1), latent.device())?.to_dtype(latent.dtype())
        };
        Ok([column(&self.latents_mean)?, column(&self.latents_std)?])
    }
}

impl TryFrom<Map<String, Value>> for QwenVaeConfig {
    type Error = ConfigError;

    fn try_from(object: Map<String, Value>) -> Result<Self, ConfigError> {
        let fields = Fields::new(object);
        for (field, only) in [
            ("_class_name", json!("AutoencoderKLQwenImage")),
            ("attn_scales", json!([])),
            ("input_channels", json!(Self::PICTURE_CHANNELS)),
        ] {
            fields.require(field, &only)?;
        }
        let default = Self::default();
        let config = Self {
            base_dim: fields.size("base_dim", default.base_dim, MAX_WIDTH)?,
            z_dim: fields.size("z_dim", default.z_dim, MAX_LATENT)?,
            dim_mult: fields.sizes("dim_mult", &default.dim_mult, MAX_WIDTH, MAX_LEVELS)?,
            num_res_blocks: fields.size("num_res_blocks", default.num_res_blocks, MAX_RES_BLOCKS)?,
            temperal_downsample: list(
                &fields,
                "temperal_downsample",
                default.temperal_downsample,
                MAX_LEVELS,
                "true or false",
                Value::as_bool,
            )?,
            latents_mean: numbers(&fields, "latents_mean", default.latents_mean)?,
            latents_std: numbers(&fields, "latents_std", default.latents_std)?,
        };
        config.validate()?;
        Ok(config)
    }
}

fn numbers(fields: &Fields, field: &'static str, default: Vec<f64>) -> Result<Vec<f64>, ConfigError> {
    list(fields, field, default, MAX_LATENT, "numbers", Value::as_f64)
}

/// A list of at most `longest` values of one kind.
fn list<T>(
    fields: &Fields,
    field: &'static str,
    default: Vec<T>,
    longest: usize,
    kind: &str,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<Vec<T>, ConfigError> {
    let Some(value) = fields.get(field) else { return Ok(default) };
    let entries = value.as_array().filter(|entries| entries.len() <= longest);
    entries
        .and_then(|entries| entries.iter().map(read).collect())
        .ok_or_else(|| wrong(field, value, format!("a list of at most {longest} ({kind})")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published() -> Value {
        json!({
            "_class_name": "AutoencoderKLQwenImage",
            "_diffusers_version": "0.34.0.dev0",
            "attn_scales": [],
            "base_dim": 96,
            "dim_mult": [1, 2, 4, 4],
            "dropout": 0.0,
            "latents_mean": LATENTS_MEAN,
            "latents_std": LATENTS_STD,
            "num_res_blocks": 2,
            "temperal_downsample": [false, true, true],
            "z_dim": 16
        })
    }

    #[test]
    fn qwen_images_config_is_the_default() {
        let config: QwenVaeConfig = serde_json::from_value(published()).unwrap();
        assert_eq!(config, QwenVaeConfig::default());
        assert_eq!(config, serde_json::from_value(json!({})).unwrap());
        assert_eq!(config.downscale(), 8);
        assert_eq!(config.widths(), [96, 192, 384, 384]);
    }

    #[test]
    fn options_that_make_another_network_are_named_in_the_error() {
        for (field, value) in [
            ("_class_name", json!("AutoencoderKLWan")),
            ("attn_scales", json!([0.5])),
            ("input_channels", json!(4)),
            ("base_dim", json!(0)),
            ("base_dim", json!(1u64 << 40)),
            ("dim_mult", json!([1, 2, 4, 65536])),
            ("dim_mult", json!([])),
            ("dim_mult", json!([1, 2, 4])),
            ("num_res_blocks", json!(1000)),
            ("temperal_downsample", json!([0, 1, 1])),
            ("temperal_downsample", json!([false, true])),
            ("latents_mean", json!([0.0])),
            ("latents_std", json!(vec![0.0; 16])),
            ("latents_std", json!(vec![1e-60; 16])),
            ("latents_mean", json!(vec![1e60; 16])),
            ("z_dim", json!(4)),
        ] {
            let mut config = published();
            config[field] = value.clone();
            let error = serde_json::from_value::<QwenVaeConfig>(config).unwrap_err().to_string();
            assert!(
                error.contains(field) || error.contains("contradicts itself"),
                "{field} = {value}: {error}"
            );
        }
        let odd = QwenVaeConfig { base_dim: 3, dim_mult: vec![1, 1, 1, 1], ..QwenVaeConfig::default() };
        assert!(odd.validate().unwrap_err().to_string().contains("halved"));
    }

    #[test]
    fn latents_go_to_the_diffusion_networks_units_and_back() {
        /// Two roundings of values up to about 10.
        const TOLERANCE: f32 = 1e-5;
        let config = QwenVaeConfig::default();
        let latent = Tensor::randn(0f32, 3., (2, 16, 3, 5), &candle_core::Device::Cpu).unwrap();
        let scaled = config.to_network(&latent).unwrap();
        let at = |x: &Tensor| x.get(1).unwrap().get(2).unwrap().get(0).unwrap().to_vec1::<f32>().unwrap()[4];
        assert!((at(&scaled) - (at(&latent) + 0.9113) / 2.3275).abs() < TOLERANCE);
        let back = config.from_network(&scaled).unwrap();
        let difference = (back - &latent).unwrap().abs().unwrap().flatten_all().unwrap();
        assert!(difference.max(0).unwrap().to_scalar::<f32>().unwrap() < TOLERANCE);
        assert!(config.to_network(&latent.narrow(1, 0, 4).unwrap()).is_err());
        assert!(config.from_network(&latent.flatten_all().unwrap()).is_err());
        assert_eq!(config.to_network(&latent.get(0).unwrap()).unwrap().dims(), [16, 3, 5]);
    }
}
