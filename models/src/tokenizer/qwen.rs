//! Qwen's tokenizer: text to ids, equal to the `Qwen2Tokenizer` of transformers.
//!
//! A folder or file brings vocabulary, merges and the tokens that are recognised in text as they stand
//! (`<|im_start|>`); what happens around them is Qwen's alone: NFC, the split into words, byte-level BPE.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as Splitters;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer};

use super::folder::{Merge, Model, checked, malformed, merge_lines, parse, read};
use super::{TokenizerError, internal};

/// Words: English contractions, runs of letters with one sign or space before them, single digits, runs of signs with a
/// space before and line ends behind them, line ends with the white space before them, other white space but for the
/// last one before a word.
const WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// What every one of Qwen's tokenizers has.
const SPECIALS: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
/// Most tokens beside the vocabulary; Qwen's has 26.
const MAX_ADDED: usize = 4096;

#[derive(Deserialize)]
struct TokenizerJson {
    model: Model,
    #[serde(default)]
    added_tokens: Vec<Numbered>,
}

#[derive(Deserialize)]
struct Numbered {
    id: u32,
    #[serde(flatten)]
    token: Added,
}

/// What `tokenizer_config.json` says of added tokens, by id.
#[derive(Default, Deserialize)]
struct TokenizerConfig {
    #[serde(default)]
    added_tokens_decoder: HashMap<String, Added>,
}

/// A token that is found in text before the text is split into words.
#[derive(Deserialize)]
struct Added {
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    normalized: Option<bool>,
    #[serde(default)]
    special: bool,
}

impl From<Added> for AddedToken {
    fn from(added: Added) -> Self {
        Self::from(added.content, added.special)
            .single_word(added.single_word)
            .lstrip(added.lstrip)
            .rstrip(added.rstrip)
            .normalized(added.normalized.unwrap_or(!added.special))
    }
}

/// Qwen2's and Qwen2.5's byte-pair tokenizer. Cheap to share, safe to use from many threads.
pub struct QwenTokenizer {
    tokenizer: Tokenizer,
    ids: usize,
}

impl QwenTokenizer {
    /// The tokenizer of a folder (`tokenizer/` of a diffusers folder): its `tokenizer.json` if there is one, else
    /// `vocab.json` and `merges.txt` with `tokenizer_config.json` or `added_tokens.json`.
    ///
    /// # Errors
    /// Names the file that is missing, unreadable, or not a vocabulary of Qwen's.
    pub fn from_folder(folder: &Path) -> Result<Self, TokenizerError> {
        let whole = folder.join("tokenizer.json");
        if whole.is_file() {
            return Self::from_file(&whole);
        }
        let (vocabulary, merges) = (folder.join("vocab.json"), folder.join("merges.txt"));
        if !vocabulary.is_file() || !merges.is_file() {
            return Err(TokenizerError::Missing { folder: folder.display().to_string() });
        }
        let (from, added) = added(folder)?;
        let vocab: HashMap<String, u32> = parse(&vocabulary, &read(&vocabulary)?)?;
        Self::build(&merges, &from.unwrap_or(vocabulary), vocab, merge_lines(&merges)?, added)
    }

    /// The tokenizer of a `tokenizer.json`, of which vocabulary, merges and added tokens are read.
    ///
    /// # Errors
    /// When it cannot be read, or is not a vocabulary of Qwen's.
    pub fn from_file(path: &Path) -> Result<Self, TokenizerError> {
        let json: TokenizerJson = parse(path, &read(path)?)?;
        let added = unique(path, json.added_tokens.into_iter().map(|Numbered { id, token }| (id, token)))?;
        Self::build(path, path, json.model.vocab, json.model.merges, added)
    }

    /// `path` and `added_path` are what is at fault if the vocabulary is, or the added tokens are.
    fn build(
        path: &Path,
        added_path: &Path,
        vocab: HashMap<String, u32>,
        merges: Vec<Merge>,
        added: BTreeMap<u32, Added>,
    ) -> Result<Self, TokenizerError> {
        let missing =
            ByteLevel::alphabet().into_iter().find(|letter| !vocab.contains_key(&letter.to_string()));
        if let Some(letter) = missing {
            return Err(malformed(
                path,
                format!("the token '{letter}', which stands for a byte, is missing"),
            ));
        }
        let (vocab, merges) = checked(path, vocab, merges)?;
        let known = vocab.len();
        let model = BPE::builder()
            .vocab_and_merges(vocab, merges)
            // The library keeps its word cache per thread and never frees it.
            .cache_capacity(0)
            .build()
            .map_err(internal)?;
        let mut tokenizer = Tokenizer::new(model);
        tokenizer.with_normalizer(Some(NFC)).map_err(internal)?;
        let words = SplitPattern::Regex(WORDS.to_owned());
        tokenizer.with_pre_tokenizer(Some(Splitters::new(vec![
            Split::new(words, SplitDelimiterBehavior::Isolated, false).map_err(internal)?.into(),
            ByteLevel::new(false, true, false).into(),
        ])));
        let expected: Vec<(u32, String)> =
            added.iter().map(|(&id, token)| (id, token.content.clone())).collect();
        tokenizer.add_tokens(added.into_values().map(Into::<AddedToken>::into)).map_err(internal)?;
        // The library numbers them itself: those that the vocabulary lacks one after another.
        for (id, token) in &expected {
            if tokenizer.token_to_id(token) != Some(*id) {
                let reason = format!("the added token '{token}' cannot have id {id} beside {known} others");
                return Err(malformed(added_path, reason));
            }
        }
        for token in SPECIALS {
            if !expected.iter().any(|(_, known)| known == token) {
                return Err(malformed(added_path, format!("the token '{token}' is missing")));
            }
        }
        Ok(Self { ids: tokenizer.get_vocab_size(true), tokenizer })
    }

    /// The ids of a text. Tokens such as `<|im_start|>` in the text become their ids; nothing else is added. An empty
    /// text has none.
    ///
    /// # Errors
    /// [`TokenizerError::Internal`] if the library fails, which no text is known to cause.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self.tokenizer.encode_fast(text, false).map_err(internal)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The id of a token as vocabularies write it (`<|endoftext|>`, `Ġthe`).
    pub fn id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// How many ids there are: [`QwenTokenizer::encode`] gives `0..vocab_size`. A text encoder needs at least as many
    /// rows in its token table; Qwen's has 396 more.
    pub fn vocab_size(&self) -> usize {
        self.ids
    }
}

impl std::fmt::Debug for QwenTokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QwenTokenizer").field("ids", &self.ids).finish_non_exhaustive()
    }
}

/// The added tokens of a folder without `tokenizer.json`, by id, and the file that has them.
fn added(folder: &Path) -> Result<(Option<PathBuf>, BTreeMap<u32, Added>), TokenizerError> {
    let config = folder.join("tokenizer_config.json");
    if config.is_file() {
        let json: TokenizerConfig = parse(&config, &read(&config)?)?;
        let mut numbered = Vec::with_capacity(json.added_tokens_decoder.len());
        for (id, token) in json.added_tokens_decoder {
            let id =
                id.parse().map_err(|_| malformed(&config, format!("'{id}' is not an added token's id")))?;
            numbered.push((id, token));
        }
        if !numbered.is_empty() {
            let added = unique(&config, numbered)?;
            return Ok((Some(config), added));
        }
    }
    let list = folder.join("added_tokens.json");
    if !list.is_file() {
        return Ok((config.is_file().then_some(config), BTreeMap::new()));
    }
    let json: HashMap<String, u32> = parse(&list, &read(&list)?)?;
    let whole = |content| Added {
        content,
        single_word: false,
        lstrip: false,
        rstrip: false,
        normalized: Some(false),
        special: true,
    };
    let added = unique(&list, json.into_iter().map(|(content, id)| (id, whole(content))))?;
    Ok((Some(list), added))
}

/// By id, if no two have one id or one content.
fn unique(
    path: &Path,
    numbered: impl IntoIterator<Item = (u32, Added)>,
) -> Result<BTreeMap<u32, Added>, TokenizerError> {
    let mut by_id = BTreeMap::new();
    for (id, token) in numbered {
        if token.content.is_empty() {
            return Err(malformed(path, format!("the added token with id {id} is empty")));
        }
        if let Some(Added { content, .. }) = by_id.insert(id, token) {
            return Err(malformed(path, format!("id {id} stands for '{content}' and another added token")));
        }
        if by_id.len() > MAX_ADDED {
            return Err(malformed(path, format!("more than {MAX_ADDED} added tokens")));
        }
    }
    Ok(by_id)
}
