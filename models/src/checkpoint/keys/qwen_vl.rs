//! Names of Qwen2.5-VL's tensors, as transformers of different ages and ComfyUI write them: the language model's with or
//! without its own prefix, beside the vision tower and the head that predicts tokens.

use super::indexed;

/// What a tensor of a Qwen2.5-VL file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum QwenVlKey {
    /// The language model's, by its canonical name: `model.embed_tokens…`, `model.layers.N…`, `model.norm…`.
    Text(String),
    /// The vision tower's.
    Visual,
    /// No weight of either: the head, which an encoder does without, and buffers.
    Ignored,
    /// Nothing that belongs to such a model.
    Unknown,
}

/// Where ComfyUI keeps the model: in whole checkpoints, and in files that were saved from its text encoder.
const FOREIGN: [&str; 3] = ["text_encoders.", "qwen25_7b.", "transformer."];
/// A layer's modules that have weights.
const MODULES: [&str; 9] = [
    "input_layernorm.",
    "post_attention_layernorm.",
    "self_attn.q_proj.",
    "self_attn.k_proj.",
    "self_attn.v_proj.",
    "self_attn.o_proj.",
    "mlp.gate_proj.",
    "mlp.up_proj.",
    "mlp.down_proj.",
];

/// What is stored as `name`.
pub(crate) fn qwen_vl(name: &str) -> QwenVlKey {
    let name = FOREIGN.iter().fold(name, |name, prefix| name.strip_prefix(prefix).unwrap_or(name));
    if matches!(name, "scaled_fp8" | "logit_scale") || name.starts_with("lm_head.") {
        return QwenVlKey::Ignored;
    }
    let model = name.strip_prefix("model.").unwrap_or(name);
    if model.starts_with("visual.") {
        return QwenVlKey::Visual;
    }
    let text = model.strip_prefix("language_model.").unwrap_or(model);
    let text = text.strip_prefix("model.").unwrap_or(text);
    if text.ends_with("rotary_emb.inv_freq") {
        return QwenVlKey::Ignored;
    }
    let module = match text.strip_prefix("layers.") {
        Some(rest) => indexed(rest).and_then(|(_, rest)| after_any(rest, &MODULES)),
        None => after_any(text, &["embed_tokens.", "norm."]),
    };
    // Weights, biases, and what 8-bit files keep beside them: one more segment.
    match module {
        Some(kind) if !kind.is_empty() && !kind.contains('.') => QwenVlKey::Text(format!("model.{text}")),
        _ => QwenVlKey::Unknown,
    }
}

fn after_any<'a>(name: &'a str, prefixes: &[&str]) -> Option<&'a str> {
    prefixes.iter().find_map(|prefix| name.strip_prefix(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(name: &str) -> QwenVlKey {
        QwenVlKey::Text(name.to_owned())
    }

    #[test]
    fn every_spelling_of_the_language_models_names_has_one_meaning() {
        let prefixes = [
            "",
            "model.",
            "model.language_model.",
            "language_model.",
            "language_model.model.",
            "qwen25_7b.transformer.model.",
            "text_encoders.qwen25_7b.transformer.model.",
        ];
        for prefix in prefixes {
            for name in [
                "embed_tokens.weight",
                "norm.weight",
                "layers.0.input_layernorm.weight",
                "layers.27.self_attn.q_proj.bias",
                "layers.3.mlp.down_proj.scale_weight",
            ] {
                assert_eq!(qwen_vl(&format!("{prefix}{name}")), text(&format!("model.{name}")), "{prefix}");
            }
        }
    }

    #[test]
    fn what_is_not_the_language_models_is_told_apart() {
        for name in [
            "visual.patch_embed.proj.weight",
            "model.visual.merger.ln_q.weight",
            "visual.blocks.0.norm1.weight",
        ] {
            assert_eq!(qwen_vl(name), QwenVlKey::Visual);
            assert_eq!(qwen_vl(&format!("text_encoders.qwen25_7b.transformer.{name}")), QwenVlKey::Visual);
        }
        for name in [
            "lm_head.weight",
            "scaled_fp8",
            "qwen25_7b.logit_scale",
            "model.layers.0.self_attn.rotary_emb.inv_freq",
        ] {
            assert_eq!(qwen_vl(name), QwenVlKey::Ignored, "{name}");
        }
        for name in [
            "",
            "model.",
            "norm.",
            "layers.0.",
            "layers.00.input_layernorm.weight",
            "layers.x.input_layernorm.weight",
            "layers.0.mlp.gate_proj",
            "layers.0.mlp.gate_proj.a.b",
            "layers.0.self_attn.q_norm.weight",
            "encoder.layers.0.self_attn.q_proj.weight",
            "transformer_blocks.0.attn.to_q.weight",
        ] {
            assert_eq!(qwen_vl(name), QwenVlKey::Unknown, "{name}");
        }
    }
}
