//! Expression packs: one character, many expressions, drawn as one batch.
//!
//! Every picture of a pack shares its seed, so that the noise decides the character once and only the
//! expression's tags differ.

use serde::{Deserialize, Serialize};

use crate::request::ImageRequest;

/// A facial expression that a model can draw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expression {
    /// The name that clients ask for: `smile_gentle`.
    pub name: String,
    /// A few words for people: `Gentle smile`.
    pub label: String,
    /// The prompt tags that draw it: `gentle smile`.
    pub tags: String,
}

/// One request an expression: `base` with the character's tags and the expression's tags as its prompt.
pub fn expression_requests(
    base: &ImageRequest,
    character: &str,
    expressions: &[Expression],
) -> Vec<ImageRequest> {
    let character = character.trim().trim_end_matches(',');
    expressions
        .iter()
        .map(|expression| ImageRequest {
            prompt: [character, expression.tags.as_str()]
                .into_iter()
                .filter(|part| !part.is_empty())
                .collect::<Vec<_>>()
                .join(", "),
            ..base.clone()
        })
        .collect()
}
