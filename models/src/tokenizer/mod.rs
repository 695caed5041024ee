//! Tokenizers: text to ids. CLIP's, equal to the `CLIPTokenizer` of transformers, and Qwen's ([`QwenTokenizer`]).
//!
//! CLIP's vocabulary is the standard one ([`ClipTokenizer::standard`], compiled in) or the one that a diffusers
//! folder brings ([`ClipTokenizer::from_folder`]). What happens around it is CLIP's alone, whatever a folder
//! says: NFC, folding of white space, lower case, the split into words, byte-level BPE with `</w>`. Start, end
//! and padding are not added here; that is the prompt's chunking (`darkroom-pipelines`).

mod folder;
mod qwen;
mod standard;

use std::path::Path;
use std::sync::Arc;

pub use qwen::QwenTokenizer;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence as Normalizers, replace::ReplacePattern};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as Splitters;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer};

const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";
/// Words: the specials, English contractions, runs of letters, single digits, runs of anything else.
const WORDS: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// What is wrong with a tokenizer's files.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The folder has no vocabulary.
    #[error(
        "{folder}: neither tokenizer.json nor vocab.json with merges.txt is there (CLIP's standard tokenizer needs none)"
    )]
    Missing {
        /// Where it was looked for.
        folder: String,
    },
    /// A file could not be read.
    #[error("{file}: cannot read: {source}")]
    Io {
        /// The file.
        file: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is larger than any vocabulary.
    #[error("{file}: larger than {limit} bytes, so it is no vocabulary")]
    TooLarge {
        /// The file.
        file: String,
        /// The most that is read.
        limit: u64,
    },
    /// A file is not a vocabulary, or another tokenizer's.
    #[error("{file}: not this tokenizer's vocabulary: {reason}")]
    Malformed {
        /// The file.
        file: String,
        /// What is wrong, and where.
        reason: String,
    },
    /// The tokenizer could not be built, or could not encode a text.
    #[error("tokenizer: {reason}")]
    Internal {
        /// What the library said.
        reason: String,
    },
}

/// CLIP's byte-pair tokenizer. Cheap to share, safe to use from many threads.
pub struct ClipTokenizer {
    tokenizer: Tokenizer,
    start: u32,
    end: u32,
    ids: usize,
}

impl ClipTokenizer {
    /// The standard vocabulary of 49,408 ids that CLIP-L and OpenCLIP bigG share; needs no file.
    ///
    /// It is built at the first call (some fifty milliseconds) and shared from then on.
    ///
    /// # Errors
    /// [`TokenizerError::Internal`] if the library refuses the compiled-in vocabulary, which tests rule out.
    pub fn standard() -> Result<Arc<Self>, TokenizerError> {
        standard::shared()
    }

    /// The tokenizer of a diffusers folder (`tokenizer/`, `tokenizer_2/`): its `tokenizer.json` if there is
    /// one, else `vocab.json` with `merges.txt`. Of `tokenizer.json` only vocabulary and merges are read.
    ///
    /// # Errors
    /// Names the file that is missing, unreadable, or not a CLIP vocabulary.
    pub fn from_folder(folder: &Path) -> Result<Self, TokenizerError> {
        folder::load(folder)
    }

    /// The caller has checked that every merge joins two tokens to a third.
    fn build(vocabulary: Vocab, merges: Merges, start: u32, end: u32) -> tokenizers::Result<Self> {
        let ids = vocabulary.len();
        let model = BPE::builder()
            .vocab_and_merges(vocabulary, merges)
            .unk_token(END.to_owned())
            .continuing_subword_prefix(String::new())
            .end_of_word_suffix("</w>".to_owned())
            // The library keeps its word cache per thread and never frees it.
            .cache_capacity(0)
            .build()?;
        let mut tokenizer = Tokenizer::new(model);
        tokenizer.with_normalizer(Some(Normalizers::new(vec![
            NFC.into(),
            Replace::new(ReplacePattern::Regex(r"\s+".to_owned()), " ")?.into(),
            Lowercase.into(),
        ])))?;
        let words = SplitPattern::Regex(WORDS.to_owned());
        tokenizer.with_pre_tokenizer(Some(Splitters::new(vec![
            Split::new(words, SplitDelimiterBehavior::Removed, true)?.into(),
            ByteLevel::new(false, true, true).into(),
        ])));
        // As ComfyUI's copy of the tokenizer has them: the start is also found in other case, the end is not.
        tokenizer.add_special_tokens([
            AddedToken::from(START, true).normalized(true),
            AddedToken::from(END, true).normalized(false),
        ])?;
        Ok(Self { tokenizer, start, end, ids })
    }

    /// The ids of a text, without start, end or padding. An empty text has none.
    ///
    /// `<|startoftext|>` and `<|endoftext|>` in the text become their ids, as in transformers.
    ///
    /// # Errors
    /// [`TokenizerError::Internal`] if the library fails, which no text is known to cause.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self.tokenizer.encode_fast(text, false).map_err(internal)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The id of `<|startoftext|>`; 49406 in the standard vocabulary.
    pub fn start_id(&self) -> u32 {
        self.start
    }

    /// The id of `<|endoftext|>`; 49407 in the standard vocabulary.
    pub fn end_id(&self) -> u32 {
        self.end
    }

    /// How many ids there are: [`ClipTokenizer::encode`] gives `0..id_count`. A text encoder needs as many
    /// rows in its token embedding.
    pub fn id_count(&self) -> usize {
        self.ids
    }
}

impl std::fmt::Debug for ClipTokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClipTokenizer").field("ids", &self.ids).finish_non_exhaustive()
    }
}

#[allow(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
fn internal(source: tokenizers::Error) -> TokenizerError {
    TokenizerError::Internal { reason: source.to_string() }
}
