//! Vocabularies from a diffusers folder. The files are a stranger's: everything is checked before the BPE
//! library, which trusts its input, sees it.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;
use tokenizers::models::bpe::{Merges, Vocab};

use super::{ClipTokenizer, END, START, TokenizerError, internal};

/// The standard `tokenizer.json` has 2 MB.
const MAX_BYTES: u64 = 64 << 20;

#[derive(Deserialize)]
struct TokenizerJson {
    model: Model,
}

#[derive(Deserialize)]
pub(super) struct Model {
    pub(super) vocab: HashMap<String, u32>,
    pub(super) merges: Vec<Merge>,
}

/// Older files write a merge as `"a b"`, newer ones as `["a", "b"]`.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Merge {
    Line(String),
    Pair(String, String),
}

pub(super) fn load(folder: &Path) -> Result<ClipTokenizer, TokenizerError> {
    let whole = folder.join("tokenizer.json");
    if whole.is_file() {
        let json: TokenizerJson = parse(&whole, &read(&whole)?)?;
        return build(&whole, json.model.vocab, json.model.merges);
    }
    let (vocabulary, merges) = (folder.join("vocab.json"), folder.join("merges.txt"));
    if !vocabulary.is_file() || !merges.is_file() {
        return Err(TokenizerError::Missing { folder: folder.display().to_string() });
    }
    build(&merges, parse(&vocabulary, &read(&vocabulary)?)?, merge_lines(&merges)?)
}

/// A `merges.txt`, in the order of rank.
pub(super) fn merge_lines(path: &Path) -> Result<Vec<Merge>, TokenizerError> {
    let lines = read(path)?;
    let lines = lines.lines().filter(|line| !line.is_empty() && !line.starts_with("#version"));
    Ok(lines.map(|line| Merge::Line(line.to_owned())).collect())
}

pub(super) fn read(path: &Path) -> Result<String, TokenizerError> {
    let file = path.display().to_string();
    let mut bytes = Vec::new();
    let opened = File::open(path).and_then(|opened| opened.take(MAX_BYTES + 1).read_to_end(&mut bytes));
    if let Err(source) = opened {
        return Err(TokenizerError::Io { file, source });
    }
    if bytes.len() as u64 > MAX_BYTES {
        return Err(TokenizerError::TooLarge { file, limit: MAX_BYTES });
    }
    String::from_utf8(bytes).map_err(|error| malformed(path, error.utf8_error().to_string()))
}

pub(super) fn parse<'a, T: Deserialize<'a>>(path: &Path, text: &'a str) -> Result<T, TokenizerError> {
    serde_json::from_str(text).map_err(|error| malformed(path, error.to_string()))
}

pub(super) fn malformed(path: &Path, reason: String) -> TokenizerError {
    TokenizerError::Malformed { file: path.display().to_string(), reason }
}

fn build(
    path: &Path,
    vocabulary: HashMap<String, u32>,
    merges: Vec<Merge>,
) -> Result<ClipTokenizer, TokenizerError> {
    let special = |token: &str| {
        let id = vocabulary.get(token).copied();
        id.ok_or_else(|| malformed(path, format!("the token '{token}' is missing")))
    };
    let (start, end) = (special(START)?, special(END)?);
    let (vocabulary, merges) = checked(path, vocabulary, merges)?;
    ClipTokenizer::build(vocabulary, merges, start, end).map_err(internal)
}

/// The same, if the ids are those from 0 on, each once, and every merge joins two tokens to a third.
pub(super) fn checked(
    path: &Path,
    vocabulary: HashMap<String, u32>,
    merges: Vec<Merge>,
) -> Result<(Vocab, Merges), TokenizerError> {
    let mut seen = vec![false; vocabulary.len()];
    for (token, &id) in &vocabulary {
        match seen.get_mut(id as usize) {
            Some(seen) if !*seen => *seen = true,
            Some(_) => return Err(malformed(path, format!("id {id} stands for more than one token"))),
            None => {
                let ids = vocabulary.len();
                return Err(malformed(
                    path,
                    format!("token '{token}' has id {id}, but there are {ids} tokens"),
                ));
            }
        }
    }
    let mut pairs = Vec::with_capacity(merges.len());
    for (rank, merge) in merges.into_iter().enumerate() {
        let (left, right) = match merge {
            Merge::Pair(left, right) => (left, right),
            Merge::Line(line) => match line.split_once(' ') {
                Some((left, right)) => (left.to_owned(), right.to_owned()),
                None => return Err(malformed(path, format!("merge {rank}, '{line}', is not two tokens"))),
            },
        };
        let known = |token: &str| vocabulary.contains_key(token);
        if !known(&left) || !known(&right) || !known(&format!("{left}{right}")) {
            let reason = format!("merge {rank}, '{left}' and '{right}', does not join two tokens to a third");
            return Err(malformed(path, reason));
        }
        pairs.push((left, right));
    }
    Ok((vocabulary.into_iter().collect(), pairs))
}
