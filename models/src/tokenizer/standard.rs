//! The vocabulary that OpenAI trained and every CLIP since has kept, from the merges that `build.rs` wrote.

use std::sync::{Arc, OnceLock};

use tokenizers::models::bpe::Vocab;

use super::{ClipTokenizer, END, START, TokenizerError, internal};

/// Two little-endian `u16` ids a merge, in rank order; the merge's own id is 512 + its rank.
static MERGES: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/clip_merges.bin"));

pub(super) fn shared() -> Result<Arc<ClipTokenizer>, TokenizerError> {
    static SHARED: OnceLock<Arc<ClipTokenizer>> = OnceLock::new();
    if let Some(ready) = SHARED.get() {
        return Ok(ready.clone());
    }
    let built = Arc::new(build()?);
    Ok(SHARED.get_or_init(|| built).clone())
}

fn build() -> Result<ClipTokenizer, TokenizerError> {
    let mut tokens: Vec<String> = byte_letters().map(String::from).collect();
    tokens.extend(byte_letters().map(|letter| format!("{letter}</w>")));
    let mut merges = Vec::with_capacity(MERGES.len() / 4);
    for pair in MERGES.chunks_exact(4) {
        let part = |low, high| tokens.get(usize::from(u16::from_le_bytes([low, high]))).cloned();
        let (Some(left), Some(right)) = (part(pair[0], pair[1]), part(pair[2], pair[3])) else {
            return Err(TokenizerError::Internal { reason: "a merge names a later token".to_owned() });
        };
        tokens.push(format!("{left}{right}"));
        merges.push((left, right));
    }
    tokens.extend([START.to_owned(), END.to_owned()]);
    let end = tokens.len() as u32 - 1;
    let vocabulary: Vocab = tokens.into_iter().zip(0..).collect();
    ClipTokenizer::build(vocabulary, merges, end - 1, end).map_err(internal)
}

/// The letters that byte-level BPE writes bytes with, in the order of their ids: printable Latin-1 as itself,
/// then the others in order, from U+0100.
fn byte_letters() -> impl Iterator<Item = char> {
    let printable = ('!'..='~').chain('\u{A1}'..='\u{AC}').chain('\u{AE}'..='\u{FF}');
    printable.chain('\u{100}'..='\u{143}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_its_own_letter() {
        let letters: std::collections::HashSet<char> = byte_letters().collect();
        assert_eq!((byte_letters().count(), letters.len()), (256, 256));
    }

    #[test]
    fn the_merges_are_openais() {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/data/clip_tokens.json")).unwrap();
        let fnv1a = MERGES.iter().fold(0xCBF2_9CE4_8422_2325_u64, |hash, &byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3)
        });
        assert_eq!(golden["merges_fnv1a"], format!("{fnv1a:016x}"));
    }

    #[test]
    fn the_vocabulary_has_clips_size_and_specials_at_its_end() {
        let tokenizer = shared().unwrap();
        assert_eq!(
            (tokenizer.id_count(), tokenizer.start_id(), tokenizer.end_id()),
            (49_408, 49_406, 49_407)
        );
    }

    #[test]
    fn the_tokenizer_is_built_once() {
        assert!(Arc::ptr_eq(&shared().unwrap(), &shared().unwrap()));
    }
}
