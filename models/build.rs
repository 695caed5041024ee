//! Writes CLIP's list of merges to `$OUT_DIR/clip_merges.bin`, for `src/tokenizer/standard.rs`.
//!
//! The list comes from the package `instant-clip-tokenizer`, which carries OpenAI's
//! `bpe_simple_vocab_16e6.txt` but shows it only through encoding and decoding. Ids are in rank order: 256
//! bytes, the same 256 at the end of a word, then one id a merge, then the two specials. So every merge can be
//! had back: decode each id to its bytes, then run BPE over these bytes with the merges found so far; what is
//! left are the two parts of this merge. Doing it here keeps the package and its 3 MB list out of the binary.

use std::collections::HashMap;
use std::error::Error;

use instant_clip_tokenizer::{Token, Tokenizer};

/// Ids of single bytes, and where the same bytes at the end of a word begin.
const BYTES: u16 = 256;
/// The first id that is a merge.
const FIRST_MERGE: u16 = 2 * BYTES;
/// `<|startoftext|>`; the merges end before it.
const START: u16 = 49_406;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    let tokenizer = Tokenizer::new();
    if tokenizer.start_of_text().to_u16() != START {
        return Err("instant-clip-tokenizer no longer carries CLIP's vocabulary of 49408 ids".into());
    }
    let mut merged: HashMap<(u16, u16), u16> = HashMap::new();
    let mut file = Vec::new();
    for id in FIRST_MERGE..START {
        let (bytes, ends_word) = spelling(&tokenizer, id)?;
        let mut parts: Vec<u16> = bytes.into_iter().map(byte_id).collect();
        if let Some(last) = parts.last_mut().filter(|_| ends_word) {
            *last += BYTES;
        }
        while let Some((at, to)) = best_merge(&parts, &merged) {
            parts.splice(at..at + 2, [to]);
        }
        let [left, right] = parts[..] else {
            return Err(format!("CLIP token {id} is not a merge of two earlier ones: {parts:?}").into());
        };
        merged.insert((left, right), id);
        file.extend([left.to_le_bytes(), right.to_le_bytes()].concat());
    }
    let out = std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?;
    std::fs::write(std::path::Path::new(&out).join("clip_merges.bin"), file)?;
    Ok(())
}

/// The leftmost pair of the lowest rank.
fn best_merge(parts: &[u16], merged: &HashMap<(u16, u16), u16>) -> Option<(usize, u16)> {
    let pairs = parts.windows(2).enumerate();
    let found = pairs.filter_map(|(at, pair)| Some((at, *merged.get(&(pair[0], pair[1]))?)));
    found.min_by_key(|&(at, to)| (to, at))
}

/// The id of a byte inside a word: printable Latin-1 first, in order, then the rest.
fn byte_id(byte: u8) -> u16 {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let before = |same: bool| (0..byte).filter(|&b| printable(b) == same).count();
    let all_printable = (0..=u8::MAX).filter(|&b| printable(b)).count();
    let id = if printable(byte) { before(true) } else { all_printable + before(false) };
    id as u16
}

/// The bytes of a token, and whether it ends a word.
///
/// Decoding shows bytes that are no whole UTF-8 as U+FFFD. Such a token is decoded again between bytes that
/// complete it: lead bytes that allow any continuation, and continuations that suit any lead.
fn spelling(tokenizer: &Tokenizer, id: u16) -> Result<(Vec<u8>, bool), Box<dyn Error>> {
    const BEFORE: [&[u8]; 4] = [b"", &[0xC3], &[0xE1], &[0xF1]];
    const AFTER: [&[u8]; 7] =
        [b"", &[0x80], &[0xBF], &[0x80, 0x80], &[0xBF, 0xBF], &[0x80, 0x80, 0x80], &[0xBF, 0xBF, 0xBF]];
    for before in BEFORE {
        for after in AFTER {
            let framed =
                before.iter().map(|&b| byte_id(b)).chain([id]).chain(after.iter().map(|&b| byte_id(b)));
            let tokens: Option<Vec<Token>> = framed.map(|id| Token::from_u16(id, tokenizer)).collect();
            let text = tokenizer.decode(tokens.ok_or("an id beyond the vocabulary")?);
            if text.contains(char::REPLACEMENT_CHARACTER) {
                continue;
            }
            return Ok(split_end(&text.as_bytes()[before.len()..text.len() - after.len()]));
        }
    }
    // Left over are the few tokens that spell U+FFFD itself; were it not so, the caller's check would fail.
    let token = Token::from_u16(id, tokenizer).ok_or("an id beyond the vocabulary")?;
    Ok(split_end(tokenizer.decode([token]).as_bytes()))
}

/// The end of a word is decoded as a space, and no merge has a space of its own.
fn split_end(word: &[u8]) -> (Vec<u8>, bool) {
    match word.strip_suffix(b" ") {
        Some(word) => (word.to_vec(), true),
        None => (word.to_vec(), false),
    }
}
