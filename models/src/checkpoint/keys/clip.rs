//! The text encoders' names: OpenCLIP's (`transformer.resblocks.N.attn.in_proj_weight`, packed q, k, v) and
//! transformers' with or without its `text_model.` prefix.

use super::{Mapped, indexed, joined};
use crate::weights::Transform;

/// Tensors in a text encoder's scope that are no weights.
pub(crate) fn is_clip_buffer(name: &str) -> bool {
    matches!(name.rsplit('.').next(), Some("position_ids" | "logit_scale" | "attn_mask"))
}

/// The canonical names of what is stored as `name`: three for a packed projection, else one. `rows` is the
/// stored tensor's first dimension.
pub(crate) fn clip(name: &str, rows: usize) -> Vec<Mapped> {
    if let Some(mapped) = open_clip(name, rows) {
        return mapped;
    }
    let name = name.strip_prefix("text_model.").unwrap_or(name);
    let transformers = ["embeddings.", "encoder.layers.", "final_layer_norm."];
    if transformers.iter().any(|start| name.starts_with(start)) {
        return vec![joined("text_model.".into(), name)];
    }
    Vec::new()
}

fn open_clip(name: &str, rows: usize) -> Option<Vec<Mapped>> {
    match name {
        "positional_embedding" => {
            return Some(vec![joined("text_model.embeddings.position_embedding.weight".into(), "")]);
        }
        // Stored as the right factor of x @ P; a linear layer holds the transpose.
        "text_projection" => return Some(vec![("text_projection.weight".into(), Transform::Transpose)]),
        "text_projection.weight" => return Some(vec![joined(name.into(), "")]),
        _ => {}
    }
    for (ours, canonical) in [
        ("token_embedding.", "text_model.embeddings.token_embedding."),
        ("ln_final.", "text_model.final_layer_norm."),
    ] {
        if let Some(rest) = name.strip_prefix(ours) {
            return Some(vec![joined(canonical.into(), rest)]);
        }
    }
    let (layer, rest) = indexed(name.strip_prefix("transformer.resblocks.")?)?;
    let block = format!("text_model.encoder.layers.{layer}.");
    if let Some(kind) = rest.strip_prefix("attn.in_proj_") {
        let len = rows / 3;
        if !rows.is_multiple_of(3) || !matches!(kind, "weight" | "bias") {
            return None;
        }
        let part = |(number, name): (usize, &str)| {
            (format!("{block}self_attn.{name}.{kind}"), Transform::Rows { start: number * len, len })
        };
        return Some(["q_proj", "k_proj", "v_proj"].into_iter().enumerate().map(part).collect());
    }
    for (ours, canonical) in [
        ("attn.out_proj.", "self_attn.out_proj."),
        ("ln_1.", "layer_norm1."),
        ("ln_2.", "layer_norm2."),
        ("mlp.c_fc.", "mlp.fc1."),
        ("mlp.c_proj.", "mlp.fc2."),
    ] {
        if let Some(rest) = rest.strip_prefix(ours) {
            return Some(vec![joined(format!("{block}{canonical}"), rest)]);
        }
    }
    None
}
