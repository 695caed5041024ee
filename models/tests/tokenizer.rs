//! CLIP's tokenizer against transformers', and vocabulary files that nobody should trust.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

use darkroom_models::tokenizer::{ClipTokenizer, TokenizerError};
use proptest::prelude::*;
use serde_json::json;

/// A vocabulary of nine tokens that knows `ab`.
fn vocabulary() -> serde_json::Value {
    json!({
        "a": 0, "b": 1, "a</w>": 2, "b</w>": 3, "ab</w>": 4, "<|startoftext|>": 5, "<|endoftext|>": 6, "ab": 7,
        "abab</w>": 8,
    })
}

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

fn whole(vocab: &serde_json::Value, merges: &serde_json::Value) -> String {
    json!({"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": vocab, "merges": merges}})
        .to_string()
}

fn refusal(files: &[(&str, &str)]) -> String {
    let folder = folder(files);
    let error = ClipTokenizer::from_folder(folder.path()).unwrap_err();
    assert!(error.to_string().contains(&folder.path().display().to_string()), "{error}");
    error.to_string()
}

#[test]
fn every_text_has_the_ids_that_transformers_gives_it() {
    #[derive(serde::Deserialize)]
    struct Golden {
        texts: Vec<(String, Vec<u32>)>,
    }
    let golden: Golden = serde_json::from_str(include_str!("data/clip_tokens.json")).unwrap();
    assert!(golden.texts.len() > 400);
    let tokenizer = ClipTokenizer::standard().unwrap();
    for (text, ids) in golden.texts {
        assert_eq!(tokenizer.encode(&text).unwrap(), ids, "{text:?}");
    }
}

#[test]
fn a_folder_with_vocab_and_merges_is_read() {
    let files = [
        ("vocab.json", &*vocabulary().to_string()),
        ("merges.txt", "#version: 0.2\na b</w>\na b\nab ab</w>\n"),
    ];
    let tokenizer = ClipTokenizer::from_folder(folder(&files).path()).unwrap();
    assert_eq!((tokenizer.id_count(), tokenizer.start_id(), tokenizer.end_id()), (9, 5, 6));
    assert_eq!(tokenizer.encode("AB abab ba").unwrap(), [4, 8, 1, 2]);
}

#[test]
fn a_folder_with_tokenizer_json_is_read_in_both_spellings_of_merges() {
    for merges in
        [json!(["a b</w>", "a b", "ab ab</w>"]), json!([["a", "b</w>"], ["a", "b"], ["ab", "ab</w>"]])]
    {
        let files =
            [("tokenizer.json", &*whole(&vocabulary(), &merges)), ("vocab.json", "damaged, but not needed")];
        let tokenizer = ClipTokenizer::from_folder(folder(&files).path()).unwrap();
        assert_eq!(tokenizer.encode("ab abab").unwrap(), [4, 8]);
    }
}

#[test]
fn letters_that_a_vocabulary_lacks_become_its_end_id() {
    let files = [("vocab.json", &*vocabulary().to_string()), ("merges.txt", "")];
    let tokenizer = ClipTokenizer::from_folder(folder(&files).path()).unwrap();
    assert_eq!(tokenizer.encode("axb").unwrap(), [0, 6, 3]);
}

#[test]
fn a_folder_without_a_vocabulary_is_named() {
    assert!(refusal(&[]).contains("vocab.json"));
    assert!(refusal(&[("vocab.json", "{}")]).contains("merges.txt"));
    let gone = Path::new("no such folder");
    assert!(
        matches!(ClipTokenizer::from_folder(gone), Err(TokenizerError::Missing { folder }) if folder == "no such folder")
    );
}

#[test]
fn damaged_vocabularies_are_named_with_what_is_wrong() {
    let vocab = vocabulary().to_string();
    let with = |key: &str, id: serde_json::Value| {
        let mut vocab = vocabulary();
        vocab[key] = id;
        vocab.to_string()
    };
    let without_end = vocab.replace("<|endoftext|>", "<|end|>");
    let cases = [
        (&*vocab, "a", "'a', is not two tokens"),
        (&vocab, "a c", "'a' and 'c'"),
        // Both parts are known, but not what they make; the library would write beyond its buffer's end.
        (&vocab, "<|startoftext|> <|endoftext|>", "does not join"),
        (&with("a", json!(9)), "", "has id 9, but there are 9 tokens"),
        (&with("a", json!(u32::MAX)), "", "4294967295"),
        (&with("a", json!(-1)), "", "vocab.json"),
        (&with("a", json!(1)), "", "id 1 stands for more than one token"),
        (&without_end, "", "'<|endoftext|>' is missing"),
        ("", "", "vocab.json"),
        ("[]", "", "vocab.json"),
        ("{}", "", "is missing"),
        ("{\"a\"", "", "vocab.json"),
    ];
    for (vocab, merges, expected) in cases {
        let message = refusal(&[("vocab.json", vocab), ("merges.txt", merges)]);
        assert!(message.contains(expected), "{message}");
    }
    let deep = "[".repeat(100_000);
    for text in ["", "{}", "null", "{\"model\":{\"vocab\":{},\"merges\":[1]}}", &deep] {
        assert!(refusal(&[("tokenizer.json", text)]).contains("tokenizer.json"));
    }
}

#[test]
fn a_vocabulary_that_is_not_utf8_is_refused() {
    let folder = folder(&[("merges.txt", "")]);
    fs::write(folder.path().join("vocab.json"), b"{\"\xff\": 0}").unwrap();
    assert!(matches!(ClipTokenizer::from_folder(folder.path()), Err(TokenizerError::Malformed { .. })));
}

proptest! {
    #[test]
    fn any_text_has_ids_within_the_vocabulary(text in any::<String>()) {
        let tokenizer = ClipTokenizer::standard().unwrap();
        let ids = tokenizer.encode(&text).unwrap();
        prop_assert!(ids.iter().all(|&id| (id as usize) < tokenizer.id_count()));
    }

    #[test]
    fn any_tokenizer_json_is_read_or_refused(
        tokens in prop::collection::hash_map("[ab<]{1,4}", 0_u32..8, 0..8),
        merges in prop::collection::vec("[ab<]{0,3} ?[ab<]{0,3}", 0..6),
    ) {
        let mut vocab = json!(tokens);
        vocab["<|startoftext|>"] = json!(tokens.len());
        vocab["<|endoftext|>"] = json!(tokens.len() + 1);
        let folder = folder(&[("tokenizer.json", &whole(&vocab, &json!(merges)))]);
        if let Ok(tokenizer) = ClipTokenizer::from_folder(folder.path()) {
            tokenizer.encode("aab<").unwrap();
        }
    }
}
