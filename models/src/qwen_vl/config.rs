//! The text encoder's shape, read from the `config.json` of transformers' `Qwen2_5_VLForConditionalGeneration` (or from
//! tensor shapes, which `checkpoint` does). The network is built from it.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::fields::{ConfigError, Fields, unsupported, wrong};

/// Widest hidden state accepted.
const MAX_WIDTH: usize = 65_536;
/// Widest feed-forward part accepted.
const MAX_INTERMEDIATE: usize = 1 << 18;
/// Largest vocabulary accepted.
const MAX_VOCABULARY: usize = 1 << 20;
/// Most layers accepted.
const MAX_LAYERS: usize = 256;
/// Most heads accepted.
const MAX_HEADS: usize = 1024;
/// What `model_type` says of the whole model and of its text part.
const MODEL_TYPES: [&str; 2] = ["qwen2_5_vl", "qwen2_5_vl_text"];

/// The shape of Qwen2.5-VL's language model.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "Map<String, Value>")]
pub struct QwenVlTextConfig {
    /// Rows of the token table (152,064).
    pub vocab_size: usize,
    /// Width of the hidden state (3584).
    pub hidden_size: usize,
    /// Width between the linear layers of the feed-forward part (18,944).
    pub intermediate_size: usize,
    /// Transformer layers (28).
    pub num_hidden_layers: usize,
    /// Heads of the queries (28); they divide `hidden_size`.
    pub num_attention_heads: usize,
    /// Heads of keys and values (4), each of which serves as many heads of the queries as any other.
    pub num_key_value_heads: usize,
    /// Epsilon of every norm.
    pub rms_norm_eps: f64,
    /// Base of the rotary embedding's wavelengths.
    pub rope_theta: f64,
}

impl Default for QwenVlTextConfig {
    /// Qwen2.5-VL-7B's, which Qwen-Image uses.
    fn default() -> Self {
        Self {
            vocab_size: 152_064,
            hidden_size: 3584,
            intermediate_size: 18_944,
            num_hidden_layers: 28,
            num_attention_heads: 28,
            num_key_value_heads: 4,
            rms_norm_eps: 1e-6,
            rope_theta: 1e6,
        }
    }
}

impl QwenVlTextConfig {
    /// Channels of a head (128).
    pub fn head_dim(&self) -> usize {
        self.hidden_size.checked_div(self.num_attention_heads).unwrap_or(0)
    }

    /// Channels of all keys, or of all values (512).
    pub fn key_value_width(&self) -> usize {
        self.head_dim() * self.num_key_value_heads
    }

    /// Fails when the numbers do not fit together.
    pub fn validate(&self) -> Result<(), ConfigError> {
        for (field, size, max) in [
            ("vocab_size", self.vocab_size, MAX_VOCABULARY),
            ("hidden_size", self.hidden_size, MAX_WIDTH),
            ("intermediate_size", self.intermediate_size, MAX_INTERMEDIATE),
            ("num_hidden_layers", self.num_hidden_layers, MAX_LAYERS),
            ("num_attention_heads", self.num_attention_heads, MAX_HEADS),
            ("num_key_value_heads", self.num_key_value_heads, MAX_HEADS),
        ] {
            if !(1..=max).contains(&size) {
                return Err(wrong(field, &json!(size), format!("a whole number from 1 to {max}")));
            }
        }
        for (field, number) in [("rms_norm_eps", self.rms_norm_eps), ("rope_theta", self.rope_theta)] {
            if !number.is_finite() || number <= 0.0 {
                return Err(wrong(field, &json!(number), "a number above 0"));
            }
        }
        let Self { hidden_size, num_attention_heads: heads, num_key_value_heads: shared, .. } = self;
        let contradiction = |reason| Err(ConfigError::Contradiction { reason });
        if !hidden_size.is_multiple_of(*heads) || !self.head_dim().is_multiple_of(2) {
            return contradiction(format!(
                "hidden_size {hidden_size} cannot be split into {heads} heads of an even width"
            ));
        }
        if !heads.is_multiple_of(*shared) {
            return contradiction(format!("{heads} heads cannot share {shared} heads of keys and values"));
        }
        Ok(())
    }
}

/// Absent fields mean what they mean to transformers, which leaves out of the files that it writes what has its default:
/// the 72B's numbers.
impl TryFrom<Map<String, Value>> for QwenVlTextConfig {
    type Error = ConfigError;

    fn try_from(mut object: Map<String, Value>) -> Result<Self, ConfigError> {
        check_type(&object)?;
        // Newer files keep the language model's fields apart; older ones have them beside the vision tower's.
        let object = match object.remove("text_config") {
            None | Some(Value::Null) => object,
            Some(Value::Object(text)) => {
                check_type(&text)?;
                text
            }
            Some(other) => return Err(wrong("text_config", &other, "an object")),
        };
        let rope_theta = rope_theta(&object)?;
        let no_sharing = object.get("num_key_value_heads").is_some_and(Value::is_null);
        let fields = Fields::new(object);
        fields.require("hidden_act", &json!("silu"))?;
        fields.require("use_sliding_window", &json!(false))?;
        if let Some(types) = fields.get("layer_types") {
            let whole = types.as_array().is_some_and(|list| list.iter().all(|kind| kind == "full_attention"));
            if !whole {
                return Err(unsupported("layer_types", types, "\"full_attention\""));
            }
        }
        let num_attention_heads = fields.size("num_attention_heads", 64, MAX_HEADS)?;
        let shared = if no_sharing { num_attention_heads } else { 8 };
        let config = Self {
            vocab_size: fields.size("vocab_size", 152_064, MAX_VOCABULARY)?,
            hidden_size: fields.size("hidden_size", 8192, MAX_WIDTH)?,
            intermediate_size: fields.size("intermediate_size", 29_568, MAX_INTERMEDIATE)?,
            num_hidden_layers: fields.size("num_hidden_layers", 80, MAX_LAYERS)?,
            num_attention_heads,
            num_key_value_heads: fields.size("num_key_value_heads", shared, MAX_HEADS)?,
            rms_norm_eps: fields.positive("rms_norm_eps", 1e-5)?,
            rope_theta,
        };
        config.validate()?;
        if fields.get("head_dim").is_some_and(|dim| *dim != json!(config.head_dim())) {
            return Err(ConfigError::Contradiction {
                reason: format!("head_dim is not hidden_size by heads, {}", config.head_dim()),
            });
        }
        Ok(config)
    }
}

fn check_type(object: &Map<String, Value>) -> Result<(), ConfigError> {
    match object.get("model_type") {
        None | Some(Value::Null) => Ok(()),
        Some(kind) if MODEL_TYPES.iter().any(|known| kind == known) => Ok(()),
        Some(kind) => Err(unsupported("model_type", kind, MODEL_TYPES.join(", "))),
    }
}

/// Beside the other fields in older files, among the rotary embedding's parameters in newer ones. For text alone
/// "mrope", which counts time, height and width apart, is the plain embedding: all three are the token's place.
fn rope_theta(object: &Map<String, Value>) -> Result<f64, ConfigError> {
    const FIELD: &str = "rope_theta";
    let mut theta = object.get(FIELD).filter(|value| !value.is_null()).cloned();
    for (field, value) in ["rope_parameters", "rope_scaling"].map(|field| (field, object.get(field))) {
        let parameters = match value {
            None | Some(Value::Null) => continue,
            Some(Value::Object(parameters)) => parameters,
            Some(other) => return Err(wrong(field, other, "an object")),
        };
        for key in ["rope_type", "type"] {
            match parameters.get(key) {
                None | Some(Value::Null) => {}
                Some(kind) if kind == "default" || kind == "mrope" => {}
                Some(kind) => return Err(unsupported(field, kind, "\"default\", \"mrope\"")),
            }
        }
        theta = parameters.get(FIELD).filter(|value| !value.is_null()).cloned().or(theta);
    }
    let only: Map<String, Value> = theta.map(|theta| (FIELD.to_owned(), theta)).into_iter().collect();
    Fields::new(only).positive(FIELD, 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(value: Value) -> Result<QwenVlTextConfig, serde_json::Error> {
        serde_json::from_value(value)
    }

    fn fields_of_7b() -> Value {
        json!({
            "model_type": "qwen2_5_vl", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
            "num_attention_heads": 28, "num_key_value_heads": 4, "rms_norm_eps": 1e-6, "vocab_size": 152064,
            "hidden_act": "silu", "use_sliding_window": false, "sliding_window": 32768, "max_window_layers": 28,
        })
    }

    #[test]
    fn old_and_new_files_say_the_7b_is_the_default() {
        let mut old = fields_of_7b();
        old["rope_theta"] = json!(1_000_000.0);
        old["rope_scaling"] = json!({"type": "mrope", "mrope_section": [16, 24, 24]});
        old["vision_config"] = json!({"hidden_size": 1280});
        assert_eq!(parsed(old.clone()).unwrap(), QwenVlTextConfig::default());

        let mut text = fields_of_7b();
        text["model_type"] = json!("qwen2_5_vl_text");
        text["rope_parameters"] =
            json!({"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]});
        text["layer_types"] = json!(vec!["full_attention"; 28]);
        let new = json!({"model_type": "qwen2_5_vl", "text_config": text, "hidden_size": 1});
        assert_eq!(parsed(new).unwrap(), QwenVlTextConfig::default());
    }

    #[test]
    fn what_a_file_leaves_out_has_the_references_default() {
        let config = parsed(json!({})).unwrap();
        assert_eq!((config.hidden_size, config.num_hidden_layers, config.rms_norm_eps), (8192, 80, 1e-5));
        assert_eq!(config.num_key_value_heads, 8);
        assert_eq!(parsed(json!({"num_key_value_heads": null})).unwrap().num_key_value_heads, 64);
        assert_eq!(config.rope_theta, 1e6);
        let theta = json!({"rope_theta": 5.0, "rope_parameters": {"rope_theta": 7.0}});
        assert_eq!(parsed(theta).unwrap().rope_theta, 7.0);
    }

    #[test]
    fn what_the_encoder_cannot_be_is_named_in_the_error() {
        for (field, value) in [
            ("model_type", json!("qwen3_vl")),
            ("text_config", json!([])),
            ("text_config", json!({"model_type": "llama"})),
            ("hidden_act", json!("gelu")),
            ("use_sliding_window", json!(true)),
            ("layer_types", json!(["full_attention", "sliding_attention"])),
            ("layer_types", json!("full_attention")),
            ("rope_scaling", json!({"type": "yarn"})),
            ("rope_parameters", json!({"rope_type": "linear"})),
            ("rope_parameters", json!(4)),
            ("rope_theta", json!(0)),
            ("rms_norm_eps", json!(-1e-6)),
            ("num_hidden_layers", json!(1e9)),
            ("num_hidden_layers", json!(0)),
            ("hidden_size", json!(-8)),
            ("vocab_size", json!("many")),
            ("num_attention_heads", json!(7)),
            ("num_attention_heads", json!(8192)),
            ("num_key_value_heads", json!(5)),
            ("head_dim", json!(64)),
        ] {
            let mut config = json!({});
            config[field] = value.clone();
            let error = parsed(config).unwrap_err().to_string();
            let named = error.contains(field) || error.contains("model_type");
            assert!(named || error.contains("contradicts itself"), "{field} = {value}: {error}");
        }
    }

    #[test]
    fn a_config_made_by_hand_is_checked_too() {
        let default = QwenVlTextConfig::default;
        for config in [
            QwenVlTextConfig { num_attention_heads: 0, ..default() },
            QwenVlTextConfig { num_key_value_heads: 0, ..default() },
            QwenVlTextConfig { hidden_size: usize::MAX, ..default() },
            QwenVlTextConfig { num_attention_heads: 512, num_key_value_heads: 512, ..default() },
            QwenVlTextConfig { rope_theta: f64::NAN, ..default() },
            QwenVlTextConfig { rms_norm_eps: f64::INFINITY, ..default() },
        ] {
            assert!(config.validate().is_err(), "{config:?}");
        }
        assert_eq!(default().validate(), Ok(()));
        assert_eq!((default().head_dim(), default().key_value_width()), (128, 512));
    }
}
