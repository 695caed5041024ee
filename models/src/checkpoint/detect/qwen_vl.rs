//! The shape of Qwen2.5-VL's language model, read off its tensors.

use super::{Tensors, with_hint};
use crate::checkpoint::CheckpointError;
use crate::qwen_vl::QwenVlTextConfig;
use crate::weights::Header;

/// The metadata entry that may hold transformers' `config.json`.
const KEY: &str = "text_encoder_config";
/// Channels of a head, of every published model.
const HEAD_DIM: usize = 128;

/// The language model's config. Heads cannot be seen in tensors: without metadata they have 128 channels.
pub(in crate::checkpoint) fn qwen_vl(
    tensors: &Tensors<'_>,
    header: &Header,
) -> Result<QwenVlTextConfig, CheckpointError> {
    let [vocab_size, hidden_size] = tensors.need("model.embed_tokens.weight")?;
    let [intermediate_size, _] = tensors.need("model.layers.0.mlp.gate_proj.weight")?;
    let [key_value_width, _] = tensors.need("model.layers.0.self_attn.k_proj.weight")?;
    let num_hidden_layers = tensors.count(|layer| format!("model.layers.{layer}.self_attn.q_proj.weight"));
    let Some(said) = tensors.metadata::<QwenVlTextConfig>(header, KEY)? else {
        if !hidden_size.is_multiple_of(HEAD_DIM) || !key_value_width.is_multiple_of(HEAD_DIM) {
            let reason = format!(
                "{hidden_size} channels of queries and {key_value_width} of keys are no heads of {HEAD_DIM} channels; \
                 store transformers' config.json as the metadata entry '{KEY}'"
            );
            return Err(tensors.undetectable(reason));
        }
        let detected = QwenVlTextConfig {
            vocab_size,
            hidden_size,
            intermediate_size,
            num_hidden_layers,
            num_attention_heads: hidden_size / HEAD_DIM,
            num_key_value_heads: key_value_width / HEAD_DIM,
            ..QwenVlTextConfig::default()
        };
        detected.validate().map_err(|e| tensors.config_error(with_hint(e, KEY)))?;
        return Ok(detected);
    };
    tensors.agree("vocab_size", &said.vocab_size, &vocab_size)?;
    tensors.agree("hidden_size", &said.hidden_size, &hidden_size)?;
    tensors.agree("intermediate_size", &said.intermediate_size, &intermediate_size)?;
    tensors.agree("num_hidden_layers", &said.num_hidden_layers, &num_hidden_layers)?;
    tensors.agree("width of the keys", &said.key_value_width(), &key_value_width)?;
    Ok(said)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Write;
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::checkpoint::Part;
    use crate::weights::{Stored, Transform, WeightFile};

    /// A file of tensors that are all zeros; kept while the result is.
    fn file(
        tensors: &[(&str, [usize; 2])],
        config: Option<&str>,
    ) -> (tempfile::NamedTempFile, Arc<WeightFile>) {
        let mut header = serde_json::Map::new();
        if let Some(config) = config {
            header.insert("__metadata__".into(), json!({ KEY: config }));
        }
        let mut end = 0;
        for (name, shape) in tensors {
            let start = end;
            end += shape[0] * shape[1] * 2;
            header.insert(
                (*name).into(),
                json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}),
            );
        }
        let header = serde_json::to_vec(&header).unwrap();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
        file.write_all(&header).unwrap();
        file.as_file().set_len((8 + header.len() + end) as u64).unwrap();
        let opened = Arc::new(WeightFile::open(file.path()).unwrap());
        (file, opened)
    }

    fn detected(
        tensors: &[(&str, [usize; 2])],
        config: Option<&str>,
    ) -> Result<QwenVlTextConfig, CheckpointError> {
        let (_kept, file) = file(tensors, config);
        let stored =
            |name: &&str| Stored { file: file.clone(), name: (*name).to_owned(), transform: Transform::None };
        let by_name: BTreeMap<String, Stored> =
            tensors.iter().map(|(name, _)| ((*name).to_owned(), stored(name))).collect();
        // The part is only named in errors.
        qwen_vl(&Tensors { origin: "file", part: Part::ClipL, tensors: &by_name }, file.header())
    }

    fn shapes(vocabulary: usize, width: usize, keys: usize, wide: usize) -> [(&'static str, [usize; 2]); 5] {
        [
            ("model.embed_tokens.weight", [vocabulary, width]),
            ("model.layers.0.mlp.gate_proj.weight", [wide, width]),
            ("model.layers.0.self_attn.k_proj.weight", [keys, width]),
            ("model.layers.0.self_attn.q_proj.weight", [width, width]),
            ("model.layers.1.self_attn.q_proj.weight", [width, width]),
        ]
    }

    #[test]
    fn heads_of_128_channels_are_assumed() {
        let found = detected(&shapes(152_064, 3584, 512, 18_944), None).unwrap();
        assert_eq!(found, QwenVlTextConfig { num_hidden_layers: 2, ..QwenVlTextConfig::default() });
    }

    #[test]
    fn a_small_model_needs_its_config_in_the_metadata() {
        let small = shapes(40, 32, 16, 88);
        let error = detected(&small, None).unwrap_err().to_string();
        assert!(error.contains(KEY), "{error}");
        let config = json!({
            "vocab_size": 40, "hidden_size": 32, "intermediate_size": 88, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 1e4,
        });
        let found = detected(&small, Some(&config.to_string())).unwrap();
        assert_eq!((found.num_attention_heads, found.num_key_value_heads, found.rope_theta), (4, 2, 1e4));
        for field in
            ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_key_value_heads"]
        {
            let mut other = config.clone();
            other[field] = json!(if field == "num_key_value_heads" { 4 } else { 64 });
            let error = detected(&small, Some(&other.to_string())).unwrap_err().to_string();
            assert!(error.contains("the metadata says"), "{field}: {error}");
        }
        assert!(detected(&small, Some("{")).is_err());
    }

    #[test]
    fn a_file_without_the_models_tensors_is_refused() {
        let whole = shapes(152_064, 3584, 512, 18_944);
        for missing in 0..3 {
            let rest: Vec<_> =
                whole.iter().enumerate().filter(|(i, _)| *i != missing).map(|(_, t)| *t).collect();
            let error = detected(&rest, None).unwrap_err().to_string();
            assert!(error.contains(whole[missing].0), "{error}");
        }
        // Keys wider than the queries.
        assert!(detected(&shapes(40, 128, 256, 88), None).is_err());
    }
}
