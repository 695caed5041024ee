//! A CLIP text encoder's shape, read from transformers' `CLIPTextConfig` `config.json` (or from tensor shapes,
//! which `checkpoint` does). The network is built from it.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::fields::{ConfigError, Fields, unsupported};

/// Widest layer accepted.
const MAX_WIDTH: usize = 65_536;
/// Largest vocabulary accepted.
const MAX_VOCABULARY: usize = 1 << 20;

/// The activation between the two linear layers of a CLIP block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HiddenAct {
    /// `x · sigmoid(1.702 x)`: OpenAI's CLIP-L.
    QuickGelu,
    /// The exact (erf) GELU: OpenCLIP's bigG.
    Gelu,
}

/// The shape of a CLIP text encoder.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "Map<String, Value>")]
pub struct ClipTextConfig {
    /// Rows of the token table (49,408).
    pub vocab_size: usize,
    /// Width of the hidden state (768; bigG 1280).
    pub hidden_size: usize,
    /// Width between the two linear layers of a block.
    pub intermediate_size: usize,
    /// Transformer blocks (12; bigG 32).
    pub num_hidden_layers: usize,
    /// Heads of each attention; they divide `hidden_size`.
    pub num_attention_heads: usize,
    /// Tokens of a chunk (77).
    pub max_position_embeddings: usize,
    /// The blocks' activation.
    pub hidden_act: HiddenAct,
    /// Epsilon of every layer norm.
    pub layer_norm_eps: f64,
    /// Width of the projected pooled output; `None` for encoders without a projection (`CLIPTextModel`).
    pub projection_dim: Option<usize>,
    /// The token that starts a chunk (49,406).
    pub bos_token_id: u32,
    /// The token that ends a prompt (49,407), where the pooled output is read.
    pub eos_token_id: u32,
}

impl ClipTextConfig {
    /// Fails when the numbers do not fit together.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.num_attention_heads == 0 || !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            return Err(ConfigError::Contradiction {
                reason: format!(
                    "hidden_size {} cannot be split into {} heads",
                    self.hidden_size, self.num_attention_heads
                ),
            });
        }
        for (field, id) in [("bos_token_id", self.bos_token_id), ("eos_token_id", self.eos_token_id)] {
            if id as usize >= self.vocab_size {
                return Err(ConfigError::Contradiction {
                    reason: format!("{field} {id} is not within the {} tokens", self.vocab_size),
                });
            }
        }
        Ok(())
    }
}

impl TryFrom<Map<String, Value>> for ClipTextConfig {
    type Error = ConfigError;

    fn try_from(object: Map<String, Value>) -> Result<Self, ConfigError> {
        let fields = Fields::new(object);
        match fields.text("model_type")? {
            None | Some("clip_text_model") => {}
            Some(other) => return Err(unsupported("model_type", &json!(other), "\"clip_text_model\"")),
        }
        // `projection_dim` is written for every CLIPTextModel; only the other class has the layer.
        let projected = match fields.get("architectures") {
            None => false,
            Some(value) => match value.as_array().map(Vec::as_slice) {
                Some([one]) if one == "CLIPTextModel" => false,
                Some([one]) if one == "CLIPTextModelWithProjection" => true,
                _ => {
                    return Err(unsupported(
                        "architectures",
                        value,
                        "CLIPTextModel, CLIPTextModelWithProjection",
                    ));
                }
            },
        };
        let projection_dim = fields.size("projection_dim", 512, MAX_WIDTH)?;
        let vocab_size = fields.size("vocab_size", 49_408, MAX_VOCABULARY)?;
        let last_token = u32::try_from(vocab_size - 1).unwrap_or(u32::MAX);
        // Configs written before the field meant anything say 2; transformers then pools at the highest token,
        // which is the end token.
        let eos_token_id = match fields.get("eos_token_id") {
            None => last_token,
            Some(value) if *value == json!(2) => last_token,
            Some(_) => token(&fields, "eos_token_id", last_token)?,
        };
        let config = Self {
            hidden_size: fields.size("hidden_size", 512, MAX_WIDTH)?,
            intermediate_size: fields.size("intermediate_size", 2048, MAX_WIDTH)?,
            num_hidden_layers: fields.size("num_hidden_layers", 12, 256)?,
            num_attention_heads: fields.size("num_attention_heads", 8, 1024)?,
            max_position_embeddings: fields.size("max_position_embeddings", 77, 4096)?,
            hidden_act: match fields.text("hidden_act")? {
                None | Some("quick_gelu") => HiddenAct::QuickGelu,
                Some("gelu") => HiddenAct::Gelu,
                Some(other) => {
                    return Err(unsupported("hidden_act", &json!(other), "\"quick_gelu\", \"gelu\""));
                }
            },
            layer_norm_eps: fields.positive("layer_norm_eps", 1e-5)?,
            projection_dim: projected.then_some(projection_dim),
            bos_token_id: token(&fields, "bos_token_id", last_token.saturating_sub(1))?,
            eos_token_id,
            vocab_size,
        };
        config.validate()?;
        Ok(config)
    }
}

fn token(fields: &Fields, field: &'static str, default: u32) -> Result<u32, ConfigError> {
    let Some(value) = fields.get(field) else { return Ok(default) };
    value
        .as_u64()
        .and_then(|id| u32::try_from(id).ok())
        .ok_or_else(|| crate::fields::wrong(field, value, "a token number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clip_ls_config_has_no_projection_although_it_names_a_width() {
        let config: ClipTextConfig = serde_json::from_value(json!({
            "architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "hidden_size": 768,
            "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12,
            "projection_dim": 768, "bos_token_id": 0, "eos_token_id": 2, "hidden_act": "quick_gelu",
            "vocab_size": 49408,
        }))
        .unwrap();
        assert_eq!(config.projection_dim, None);
        assert_eq!(config.eos_token_id, 49_407);
        assert_eq!(config.hidden_act, HiddenAct::QuickGelu);
    }

    #[test]
    fn bigg_projects_and_uses_the_exact_gelu() {
        let config: ClipTextConfig = serde_json::from_value(json!({
            "architectures": ["CLIPTextModelWithProjection"], "hidden_size": 1280,
            "intermediate_size": 5120, "num_attention_heads": 20, "num_hidden_layers": 32,
            "projection_dim": 1280, "hidden_act": "gelu", "eos_token_id": 49407,
        }))
        .unwrap();
        assert_eq!(config.projection_dim, Some(1280));
        assert_eq!(config.hidden_act, HiddenAct::Gelu);
        assert_eq!(config.bos_token_id, 49_406);
    }

    #[test]
    fn what_the_encoder_cannot_be_is_named_in_the_error() {
        for (field, value) in [
            ("model_type", json!("t5")),
            ("architectures", json!(["T5EncoderModel"])),
            ("hidden_act", json!("relu")),
            ("num_attention_heads", json!(7)),
            ("eos_token_id", json!(50_000)),
            ("num_hidden_layers", json!(1e9)),
        ] {
            let mut config = json!({});
            config[field] = value.clone();
            let error = serde_json::from_value::<ClipTextConfig>(config).unwrap_err().to_string();
            assert!(
                error.contains(field) || error.contains("contradicts itself"),
                "{field} = {value}: {error}"
            );
        }
    }
}
