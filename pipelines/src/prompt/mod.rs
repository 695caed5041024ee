//! From a prompt's text to rows of 77 token ids with weights, by ComfyUI's rules.
//!
//! [`parse`] reads the syntax (weights in parentheses, escapes) into [`Segment`]s, [`chunk`] makes the rows that
//! one text encoder wants, [`check_weights`] refuses weights no picture survives. Encoding the rows comes after.
//!
//! The reference is ComfyUI's `comfy/sd1_clip.py`. Only `( )` and `:` have meaning: `[ ]`, `BREAK` and `AND` are
//! plain text. Differences are deliberate and few: nesting has no depth limit, lengths do. Embeddings (textual
//! inversion) come from an [`EmbeddingSource`].

mod chunk;
mod embedding;
mod float;
mod parse;

use darkroom_models::tokenizer::TokenizerError;

pub use chunk::{
    CHUNK_LEN, CHUNK_ROOM, CLIP_G_PAD, CLIP_L_PAD, GivenToken, TokenChunk, TokenChunks, chunk,
    chunk_with_embeddings,
};
pub use embedding::{EMBEDDING_MARK, EmbeddingSource, EncoderEmbeddings};
pub use parse::{Segment, check_length, check_weights, parse};

/// How long a prompt may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PromptLimits {
    /// The most characters (Unicode scalar values) of a text.
    pub characters: usize,
    /// The most rows of 77 ids that a text may need; at least 1.
    pub chunks: usize,
}

impl Default for PromptLimits {
    /// Far more than people write: 65,536 characters and 64 rows (4,800 tokens).
    fn default() -> Self {
        Self { characters: 65_536, chunks: 64 }
    }
}

/// Why a prompt is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PromptError {
    /// The text has too many characters.
    #[error("the prompt has {characters} characters, but {limit} is the most: shorten it")]
    TooLong {
        /// How many it has.
        characters: usize,
        /// The most allowed.
        limit: usize,
    },
    /// The text has too many tokens.
    #[error("the prompt has {tokens} tokens, more than fit into {limit} rows of {CHUNK_ROOM}: shorten it")]
    TooManyTokens {
        /// How many it has, without start, end and padding.
        tokens: usize,
        /// The most rows allowed.
        limit: usize,
    },
    /// A weight is not a finite number.
    #[error(
        "the weight of '{text}' is {weight}, which would spoil the whole picture: give a finite number, as in (text:1.2)"
    )]
    Weight {
        /// The beginning of the segment.
        text: String,
        /// Its weight.
        weight: f64,
    },
    /// The tokenizer failed.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

/// What a prompt asks for and does not get; the picture is drawn all the same, so say it to the user.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PromptWarning {
    /// `embedding:name` is left out, as ComfyUI does with an embedding it does not find.
    EmbeddingIgnored {
        /// The name.
        name: String,
    },
    /// An embedding that is there and cannot be used is left out.
    EmbeddingUnreadable {
        /// The name.
        name: String,
        /// Why.
        reason: String,
    },
    /// An embedding for other text encoders is left out for this one.
    EmbeddingWidth {
        /// The name.
        name: String,
        /// Values of its vectors.
        width: usize,
        /// Values that the encoder takes.
        takes: usize,
    },
}

impl std::fmt::Display for PromptWarning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::EmbeddingIgnored { name } => {
                write!(
                    f,
                    "embedding:{name} does not exist and is ignored: put it into the folder 'embeddings' of the models \
                     folder, as a .safetensors file"
                )
            }
            Self::EmbeddingUnreadable { name, reason } => {
                write!(f, "embedding:{name} cannot be used and is ignored: {reason}")
            }
            Self::EmbeddingWidth { name, width, takes } => write!(
                f,
                "embedding:{name} is ignored for one text encoder: its vectors have {width} values, where {takes} are \
                 taken"
            ),
        }
    }
}
