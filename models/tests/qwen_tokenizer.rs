//! Qwen's tokenizer and prompt template against transformers', and vocabulary files that nobody should trust.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use darkroom_models::qwen_vl::prompt_ids;
use darkroom_models::tokenizer::{QwenTokenizer, TokenizerError};
use proptest::prelude::*;
use serde_json::{Value, json};

#[derive(serde::Deserialize)]
struct Text {
    text: String,
    ids: Vec<u32>,
}

#[derive(serde::Deserialize)]
struct Asked {
    text: String,
    ids: Vec<u32>,
    drop: usize,
    diffusers_drop: usize,
}

#[derive(serde::Deserialize)]
struct Golden {
    vocab_size: usize,
    specials: BTreeMap<String, u32>,
    texts: Vec<Text>,
    prompts: Vec<Asked>,
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn expected() -> Golden {
    serde_json::from_str(&fs::read_to_string(golden("qwen_tokens.json")).unwrap()).unwrap()
}

/// The tiny vocabulary, as `tokenizer.json` and as the files of older folders.
fn folders() -> [PathBuf; 2] {
    [golden("qwen_image/tokenizer"), golden("qwen_tokenizer_files")]
}

fn tokenizer() -> QwenTokenizer {
    QwenTokenizer::from_folder(&folders()[0]).unwrap()
}

#[test]
fn every_text_has_the_ids_that_transformers_gives_it() {
    let golden = expected();
    assert!(golden.texts.len() > 80);
    for folder in folders() {
        let tokenizer = QwenTokenizer::from_folder(&folder).unwrap();
        assert_eq!(tokenizer.vocab_size(), golden.vocab_size);
        for Text { text, ids } in &golden.texts {
            assert_eq!(&tokenizer.encode(text).unwrap(), ids, "{text:?} in {}", folder.display());
        }
        for (token, id) in &golden.specials {
            assert_eq!(tokenizer.id(token), Some(*id));
            assert_eq!(tokenizer.encode(token).unwrap(), [*id], "{token}");
        }
        assert_eq!(tokenizer.id("<|no such token|>"), None);
    }
}

#[test]
fn a_tokenizer_json_is_read_by_itself_and_in_both_spellings_of_merges() {
    let file = folders()[0].join("tokenizer.json");
    let mut json: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    let line = |pair: &Value| format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap());
    let lines: Vec<String> = json["model"]["merges"].as_array().unwrap().iter().map(line).collect();
    json["model"]["merges"] = json!(lines);
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("other.json");
    fs::write(&other, json.to_string()).unwrap();
    for file in [file, other] {
        let tokenizer = QwenTokenizer::from_file(&file).unwrap();
        for Text { text, ids } in expected().texts {
            assert_eq!(tokenizer.encode(&text).unwrap(), ids);
        }
    }
}

#[test]
fn prompts_have_transformers_ids_and_lose_what_comfyui_drops() {
    let (tokenizer, golden) = (tokenizer(), expected());
    for Asked { text, ids, drop, diffusers_drop } in golden.prompts {
        let prompt = prompt_ids(&tokenizer, &text, usize::MAX).unwrap();
        assert_eq!((&prompt.ids, prompt.drop), (&ids, drop), "{text:?}");
        assert!(prompt.drop < prompt.ids.len());
        // diffusers has no conversations of the user's own, and always drops what stands before an empty prompt.
        let own = text.starts_with("<|im_start|>");
        let joined = text.trim_start_matches(' ').starts_with('\n');
        if !own && !joined {
            assert_eq!(drop, diffusers_drop, "{text:?}");
        }
        if text == "\na cat" {
            assert_eq!(drop + 3, diffusers_drop, "two line ends are one token, so the turn stays");
        }
        for most in [1, 5, 1024] {
            let cut = prompt_ids(&tokenizer, &text, most).unwrap();
            assert_eq!(cut.drop, drop);
            assert_eq!(cut.ids, ids[..ids.len().min(drop + most)]);
        }
    }
    assert_eq!(prompt_ids(&tokenizer, "a cat", 0).unwrap(), prompt_ids(&tokenizer, "a cat", 1).unwrap());
}

/// A folder of the older files, one of them changed.
fn changed(name: &str, text: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["vocab.json", "merges.txt", "tokenizer_config.json"] {
        fs::copy(folders()[1].join(file), folder.path().join(file)).unwrap();
    }
    fs::write(folder.path().join(name), text).unwrap();
    folder
}

fn refusal(name: &str, text: &str) -> String {
    let folder = changed(name, text);
    let error = QwenTokenizer::from_folder(folder.path()).unwrap_err().to_string();
    assert!(error.contains(&folder.path().display().to_string()), "{error}");
    error
}

fn json_of(name: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(folders()[1].join(name)).unwrap()).unwrap()
}

#[test]
fn added_tokens_may_stand_in_a_list_of_their_own() {
    let list = json!(expected().specials);
    let folder = changed("added_tokens.json", &list.to_string());
    for config in [Some("{}"), None] {
        let file = folder.path().join("tokenizer_config.json");
        match config {
            Some(text) => fs::write(file, text).unwrap(),
            None => fs::remove_file(file).unwrap(),
        }
        let tokenizer = QwenTokenizer::from_folder(folder.path()).unwrap();
        for Text { text, ids } in expected().texts {
            assert_eq!(tokenizer.encode(&text).unwrap(), ids, "{text:?}");
        }
    }
}

#[test]
fn a_folder_without_a_vocabulary_is_named() {
    let folder = changed("vocab.json", "{}");
    fs::remove_file(folder.path().join("merges.txt")).unwrap();
    assert!(matches!(QwenTokenizer::from_folder(folder.path()), Err(TokenizerError::Missing { .. })));
    let gone = Path::new("no such folder");
    assert!(matches!(QwenTokenizer::from_folder(gone), Err(TokenizerError::Missing { .. })));
    let error = QwenTokenizer::from_file(&gone.join("tokenizer.json")).unwrap_err();
    assert!(matches!(error, TokenizerError::Io { .. }), "{error}");
}

#[test]
fn damaged_vocabularies_are_named_with_what_is_wrong() {
    let vocab = |change: &dyn Fn(&mut Value)| {
        let mut vocab = json_of("vocab.json");
        change(&mut vocab);
        vocab.to_string()
    };
    let config = |id: &str, content: &str| {
        let mut config = json_of("tokenizer_config.json");
        config["added_tokens_decoder"][id] = json!({ "content": content });
        config.to_string()
    };
    let end = expected().specials["<|endoftext|>"];
    for (file, text, part) in [
        ("vocab.json", "{\"a\"".to_owned(), "vocab.json"),
        ("vocab.json", "[".repeat(100_000), "vocab.json"),
        ("vocab.json", vocab(&|v| v["!"] = json!(9999)), "has id 9999"),
        ("vocab.json", vocab(&|v| v["!"] = json!(1)), "more than one token"),
        ("vocab.json", vocab(&|v| drop(v.as_object_mut().unwrap().remove("Ġ"))), "'Ġ'"),
        ("merges.txt", "a".to_owned(), "'a', is not two tokens"),
        ("merges.txt", "Ġ 猫猫".to_owned(), "does not join"),
        ("tokenizer_config.json", "{}".to_owned(), "'<|endoftext|>' is missing"),
        ("tokenizer_config.json", "[]".to_owned(), "tokenizer_config.json"),
        ("tokenizer_config.json", config("x", "y"), "'x' is not"),
        ("tokenizer_config.json", config("-1", "y"), "'-1' is not"),
        ("tokenizer_config.json", config("4000000000", "y"), "cannot have id 4000000000"),
        ("tokenizer_config.json", config("3", "y"), "cannot have id 3"),
        ("tokenizer_config.json", config("9999", ""), "is empty"),
        ("tokenizer_config.json", config(&end.to_string(), "<y>"), "is missing"),
        ("tokenizer.json", "{}".to_owned(), "tokenizer.json"),
    ] {
        let error = refusal(file, &text);
        assert!(error.contains(part), "{file}: {error}");
    }
    let mut many = json!({});
    for id in 0..5000 {
        many["added_tokens_decoder"][id.to_string()] = json!({ "content": format!("<{id}>") });
    }
    assert!(refusal("tokenizer_config.json", &many.to_string()).contains("more than 4096"));
}

proptest! {
    #[test]
    fn any_text_has_ids_within_the_vocabulary_that_say_it_whole(text in any::<String>()) {
        let tokenizer = tokenizer();
        let ids = tokenizer.encode(&text).unwrap();
        prop_assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
        prop_assert_eq!(ids.is_empty(), text.is_empty());
        let prompt = prompt_ids(&tokenizer, &text, 1024).unwrap();
        prop_assert!(prompt.drop < prompt.ids.len() && prompt.ids.len() <= prompt.drop + 1024);
    }
}
