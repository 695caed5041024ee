//! Segments to rows of 77 token ids with weights, as one text encoder wants them.

use std::sync::Arc;

use darkroom_models::tokenizer::ClipTokenizer;

use super::embedding::{EncoderEmbeddings, Piece, pieces};
use super::{PromptError, PromptLimits, PromptWarning, Segment};

/// Ids of a row: start, up to [`CHUNK_ROOM`] tokens, end, padding.
pub const CHUNK_LEN: usize = 77;
/// Tokens of a prompt that a row holds.
pub const CHUNK_ROOM: usize = CHUNK_LEN - 2;
/// CLIP-L is padded with `<|endoftext|>`.
pub const CLIP_L_PAD: u32 = 49_407;
/// OpenCLIP bigG is padded with id 0.
pub const CLIP_G_PAD: u32 = 0;
/// A group of at least so many tokens is cut where a row is full; a shorter one moves to the next row whole.
const LONG_GROUP: usize = 8;

/// One row for a text encoder.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenChunk {
    /// Start, tokens, end, padding.
    pub ids: [u32; CHUNK_LEN],
    /// The weight of each id; 1.0 for start, end and padding. `f64`, as ComfyUI compares and keeps them.
    pub weights: [f64; CHUNK_LEN],
    /// Vectors of embeddings, rising by place; the id there counts for nothing.
    pub given: Vec<GivenToken>,
}

/// A token that is a vector.
#[derive(Clone, Debug, PartialEq)]
pub struct GivenToken {
    /// Its place in the row.
    pub position: usize,
    /// As wide as the text encoder.
    pub vector: Arc<[f32]>,
}

impl TokenChunk {
    /// Whether any weight is not 1.
    pub fn is_weighted(&self) -> bool {
        self.weights.iter().any(|&weight| weight != 1.0)
    }
}

/// The rows of one prompt for one text encoder.
///
/// To encode: run all rows, and if [`TokenChunks::is_weighted`] also [`TokenChunks::empty`], as one batch. Where a
/// weight `w` is not 1, the hidden state is `(z - z_empty) * w + z_empty` with `z_empty` at the same position.
/// Rows are then joined along tokens: `[1, 77 * rows, channels]`.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenChunks {
    /// At least one; an empty prompt has one of start, end and padding.
    pub chunks: Vec<TokenChunk>,
    /// The row of the empty prompt.
    pub empty: [u32; CHUNK_LEN],
    /// What is left out of the prompt.
    pub warnings: Vec<PromptWarning>,
}

impl TokenChunks {
    /// Whether any weight is not 1, so that the row of the empty prompt is needed.
    pub fn is_weighted(&self) -> bool {
        self.chunks.iter().any(TokenChunk::is_weighted)
    }
}

/// Tokenises segments and lays them out in rows.
///
/// A segment is one group of tokens, or several where embeddings are taken out of it. A group that does not fit
/// in the rest of a row is cut at the 75th token if it has 8 tokens or more, else it moves to the next row.
/// `pad` is [`CLIP_L_PAD`] or [`CLIP_G_PAD`]. No embedding is known.
///
/// # Errors
/// [`PromptError::TooManyTokens`] beyond `limits.chunks` rows.
pub fn chunk(
    segments: &[Segment],
    tokenizer: &ClipTokenizer,
    pad: u32,
    limits: &PromptLimits,
) -> Result<TokenChunks, PromptError> {
    chunk_with_embeddings(segments, tokenizer, pad, limits, &EncoderEmbeddings::NONE)
}

/// The same with embeddings: the vectors of one are a group. Vectors that are not as wide as the encoder take their
/// room while rows are laid out, and are left out of them then: what follows moves up, its weights do not.
///
/// # Errors
/// As [`chunk`].
pub fn chunk_with_embeddings(
    segments: &[Segment],
    tokenizer: &ClipTokenizer,
    pad: u32,
    limits: &PromptLimits,
    embeddings: &EncoderEmbeddings<'_>,
) -> Result<TokenChunks, PromptError> {
    let mut rows = Rows::new(tokenizer, pad);
    let mut warnings = Vec::new();
    let mut tokens = 0;
    for Segment { text, weight } in segments {
        for piece in pieces(text, embeddings, &mut warnings) {
            let group: Vec<Token> = match piece {
                Piece::Text(text) => tokenizer.encode(&text)?.into_iter().map(Token::Id).collect(),
                Piece::Vectors(name, vectors) => {
                    let takes = embeddings.width;
                    if let Some(wrong) = vectors.iter().find(|vector| vector.len() != takes) {
                        warnings.push(PromptWarning::EmbeddingWidth { name, width: wrong.len(), takes });
                    }
                    vectors.into_iter().map(Token::Vector).collect()
                }
            };
            tokens += group.len();
            // Beyond the limit the tokens are only counted, for the error.
            if rows.count() <= limits.chunks.max(1) {
                rows.add(&group, *weight, limits.chunks);
            }
        }
    }
    if rows.count() > limits.chunks.max(1) {
        return Err(PromptError::TooManyTokens { tokens, limit: limits.chunks });
    }
    let empty = Rows::new(tokenizer, pad).open.ids;
    let mut chunks = rows.finish();
    for chunk in &mut chunks {
        leave_out(chunk, embeddings.width, pad);
    }
    Ok(TokenChunks { chunks, empty, warnings })
}

/// Takes vectors of another width out of a row.
fn leave_out(chunk: &mut TokenChunk, width: usize, pad: u32) {
    if chunk.given.iter().all(|token| token.vector.len() == width) {
        return;
    }
    let (mut ids, mut given) = ([pad; CHUNK_LEN], Vec::new());
    let mut old = std::mem::take(&mut chunk.given).into_iter().peekable();
    let mut filled = 0;
    for (position, id) in chunk.ids.into_iter().enumerate() {
        if let Some(GivenToken { vector, .. }) = old.next_if(|token| token.position == position) {
            if vector.len() != width {
                continue;
            }
            given.push(GivenToken { position: filled, vector });
        }
        ids[filled] = id;
        filled += 1;
    }
    (chunk.ids, chunk.given) = (ids, given);
}

/// One of a group.
#[derive(Clone)]
enum Token {
    Id(u32),
    Vector(Arc<[f32]>),
}

impl Token {
    /// The id in the row. A vector's is no id that means anything to an encoder's pooling.
    fn id(&self) -> u32 {
        if let Self::Id(id) = self { *id } else { 0 }
    }
}

struct Rows {
    full: Vec<TokenChunk>,
    /// The row being filled. Its end is already in place, behind `filled`, and moves as tokens come.
    open: TokenChunk,
    /// Ids of the open row up to its end, start included.
    filled: usize,
    fresh: TokenChunk,
    end: u32,
}

impl Rows {
    fn new(tokenizer: &ClipTokenizer, pad: u32) -> Self {
        let mut ids = [pad; CHUNK_LEN];
        ids[0] = tokenizer.start_id();
        ids[1] = tokenizer.end_id();
        let fresh = TokenChunk { ids, weights: [1.0; CHUNK_LEN], given: Vec::new() };
        Self { full: Vec::new(), open: fresh.clone(), filled: 1, fresh, end: tokenizer.end_id() }
    }

    fn count(&self) -> usize {
        self.full.len() + 1
    }

    /// Adds a group; stops when there are more rows than `limit`.
    fn add(&mut self, group: &[Token], weight: f64, limit: usize) {
        let long = group.len() >= LONG_GROUP;
        let mut rest = group;
        while !rest.is_empty() && self.count() <= limit.max(1) {
            let room = CHUNK_LEN - 1 - self.filled;
            let fits = rest.len() <= room;
            let (now, later) = match (fits, long) {
                (true, _) => (rest, &[][..]),
                (false, true) => rest.split_at(room),
                (false, false) => (&[][..], rest),
            };
            let filled = self.filled + now.len();
            for (position, token) in (self.filled..).zip(now) {
                self.open.ids[position] = token.id();
                if let Token::Vector(vector) = token {
                    self.open.given.push(GivenToken { position, vector: Arc::clone(vector) });
                }
            }
            self.open.weights[self.filled..filled].fill(weight);
            self.open.ids[filled] = self.end;
            self.filled = filled;
            rest = later;
            if !fits {
                self.full.push(std::mem::replace(&mut self.open, self.fresh.clone()));
                self.filled = 1;
            }
        }
    }

    fn finish(mut self) -> Vec<TokenChunk> {
        self.full.push(self.open);
        self.full
    }
}
