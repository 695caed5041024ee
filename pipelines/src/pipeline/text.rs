//! Prompts as ComfyUI's text nodes give them: outside a request, and with a text of its own for each encoder.

use std::sync::Arc;

use darkroom_models::checkpoint::Part;
use darkroom_models::clip::ClipTextEncoder;

use super::{Pipeline, PromptText};
use crate::PipelineError;
use crate::conditioning::{self, Conditioning};
use crate::lora::LoraSet;
use crate::prompt::{
    self, CHUNK_LEN, CLIP_G_PAD, CLIP_L_PAD, EncoderEmbeddings, PromptLimits, Segment, TokenChunk,
    TokenChunks,
};
use crate::text_encoders::TextEncoders;

impl PromptText {
    /// Whether it may name embeddings, which come from files that may change.
    pub fn names_embeddings(&self) -> bool {
        self.text.contains(prompt::EMBEDDING_MARK)
    }
}

impl Pipeline {
    /// A prompt to encode. `clip_skip` counts as [`crate::ImageRequest::clip_skip`] does; of `loras` only what they
    /// change in the text encoders matters.
    pub fn prompt_text(&self, text: &str, clip_skip: Option<usize>, loras: Option<&LoraSet>) -> PromptText {
        PromptText {
            layer: self.hidden_layer(clip_skip),
            loras: loras.filter(|set| set.changes_text()).map(|set| Arc::clone(set.name())),
            text: text.to_owned(),
        }
    }

    /// A prompt with a text for CLIP-L and one for CLIP-G (`CLIPTextEncodeSDXL`). The shorter one is filled up with
    /// rows of the empty prompt.
    ///
    /// # Errors
    /// The model has one text encoder, or a text cannot be encoded.
    pub fn encode_pair(
        &self,
        text_l: &str,
        text_g: &str,
        clip_skip: Option<usize>,
        loras: Option<&Arc<LoraSet>>,
    ) -> Result<Conditioning, PipelineError> {
        let Some(clip_g) = self.text.clip_g() else {
            return Err(PipelineError::Request {
                field: "clip",
                message: "has one text encoder; a text for each of two needs an SDXL model".into(),
            });
        };
        let clip_l = self.text.clip_l().ok_or_else(|| self.missing(Part::ClipL))?;
        let mut l = self.rows(("text_l", &parse("text_l", text_l, &self.limits.prompt)?), clip_l, Side::L)?;
        let mut g = self.rows(("text_g", &parse("text_g", text_g, &self.limits.prompt)?), clip_g, Side::G)?;
        let longest = l.chunks.len().max(g.chunks.len());
        for rows in [&mut l, &mut g] {
            let empty = TokenChunk { ids: rows.empty, weights: [1.0; CHUNK_LEN], given: Vec::new() };
            rows.chunks.resize(longest, empty);
        }
        let layer = self.hidden_layer(clip_skip);
        let loras = loras.filter(|set| set.changes_text());
        let l = conditioning::encode_prompts(clip_l, &[l], layer, loras.map(|set| &set.clip_l))?;
        let g = conditioning::encode_prompts(clip_g, &[g], layer, loras.map(|set| &set.clip_g))?;
        let (Some(l), Some(g)) = (l.first(), g.first()) else {
            return Err(PipelineError::Request {
                field: "clip",
                message: "gave nothing for the prompt".into(),
            });
        };
        Ok(conditioning::join(l, g)?.on(self.device())?)
    }

    /// The rows of a prompt for one encoder.
    pub(super) fn rows(
        &self,
        (field, segments): (&'static str, &[Segment]),
        encoder: &ClipTextEncoder,
        side: Side,
    ) -> Result<TokenChunks, PipelineError> {
        let (pad, key) = match side {
            Side::L => (CLIP_L_PAD, "clip_l"),
            Side::G => (CLIP_G_PAD, "clip_g"),
        };
        let TextEncoders::Clip { tokenizer, .. } = &self.text else {
            return Err(self.missing(Part::ClipL));
        };
        let source = self.embeddings.as_deref();
        let embeddings = EncoderEmbeddings { source, key, width: encoder.config().hidden_size };
        let limits = &self.limits.prompt;
        let rows = prompt::chunk_with_embeddings(segments, tokenizer, pad, limits, &embeddings)
            .map_err(|source| PipelineError::Prompt { field, source })?;
        for warning in &rows.warnings {
            tracing::warn!("{warning}");
        }
        Ok(rows)
    }
}

/// Which text encoder.
#[derive(Debug, Clone, Copy)]
pub(super) enum Side {
    /// CLIP-L.
    L,
    /// OpenCLIP bigG.
    G,
}

/// A prompt's segments, their weights checked.
pub(super) fn parse(
    field: &'static str,
    text: &str,
    limits: &PromptLimits,
) -> Result<Vec<Segment>, PipelineError> {
    let refuse = |source| PipelineError::Prompt { field, source };
    let segments = prompt::parse(text, limits).map_err(refuse)?;
    prompt::check_weights(&segments).map_err(refuse)?;
    Ok(segments)
}
