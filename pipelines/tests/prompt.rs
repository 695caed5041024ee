//! Prompts against what ComfyUI recorded, and against texts that nobody should send.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use darkroom_models::clip::Embedding;
use darkroom_models::tokenizer::ClipTokenizer;
use darkroom_pipelines::prompt::{
    CHUNK_LEN, CHUNK_ROOM, CLIP_G_PAD, CLIP_L_PAD, EmbeddingSource, EncoderEmbeddings, PromptError,
    PromptLimits, PromptWarning, Segment, TokenChunk, TokenChunks, check_weights, chunk,
    chunk_with_embeddings, parse,
};
use proptest::prelude::*;
use serde::Deserialize;

const ANY_LENGTH: PromptLimits = PromptLimits { characters: usize::MAX, chunks: 64 };

/// From text to rows, as the pipeline goes.
fn tokenize(
    text: &str,
    tokenizer: &ClipTokenizer,
    pad: u32,
    limits: &PromptLimits,
) -> Result<TokenChunks, PromptError> {
    chunk(&parse(text, limits)?, tokenizer, pad, limits)
}

#[derive(Deserialize)]
struct Recording {
    prompts: Vec<RecordedPrompt>,
}

#[derive(Deserialize)]
struct RecordedPrompt {
    text: String,
    parsed: Vec<(String, f64)>,
    l: Vec<Vec<u32>>,
    g: Vec<Vec<u32>>,
    /// Per row, runs of equal weights.
    weights: Vec<Vec<(f64, usize)>>,
}

fn recording() -> Vec<RecordedPrompt> {
    let recording: Recording = serde_json::from_str(include_str!("data/comfyui_prompts.json")).unwrap();
    assert!(recording.prompts.len() > 40);
    recording.prompts
}

fn segments(text: &str) -> Vec<(String, f64)> {
    parse(text, &ANY_LENGTH).unwrap().into_iter().map(|segment| (segment.text, segment.weight)).collect()
}

fn segment(text: &str, weight: f64) -> Segment {
    Segment { text: text.to_owned(), weight }
}

/// The tokens of a row that holds no special ids of the text's own.
fn tokens_of<'a>(row: &'a TokenChunk, tokenizer: &ClipTokenizer) -> &'a [u32] {
    let end = row.ids.iter().position(|&id| id == tokenizer.end_id()).unwrap();
    &row.ids[1..end]
}

#[test]
fn segments_and_weights_are_comfyuis() {
    for prompt in recording() {
        assert_eq!(segments(&prompt.text), prompt.parsed, "{:?}", prompt.text);
    }
}

#[test]
fn ids_and_weights_of_both_encoders_are_comfyuis() {
    let tokenizer = ClipTokenizer::standard().unwrap();
    // The recording was made without a folder of embeddings, where ComfyUI leaves the word in the text.
    for prompt in recording().iter().filter(|prompt| !prompt.text.contains("embedding:")) {
        for (pad, ids) in [(CLIP_L_PAD, &prompt.l), (CLIP_G_PAD, &prompt.g)] {
            let found = tokenize(&prompt.text, &tokenizer, pad, &ANY_LENGTH).unwrap();
            let found_ids: Vec<Vec<u32>> = found.chunks.iter().map(|row| row.ids.to_vec()).collect();
            assert_eq!(&found_ids, ids, "ids padded with {pad} of {:?}", prompt.text);
            for (row, runs) in found.chunks.iter().zip(&prompt.weights) {
                let weights: Vec<f64> = runs.iter().flat_map(|&(w, run)| vec![w; run]).collect();
                assert_eq!(row.weights.as_slice(), weights, "weights of {:?}", prompt.text);
            }
            let weighted = prompt.weights.iter().flatten().any(|&(weight, _)| weight != 1.0);
            assert_eq!(found.is_weighted(), weighted, "{:?}", prompt.text);
        }
    }
}

#[test]
fn weights_multiply_inwards_until_a_number_replaces_them() {
    let once = 1.1;
    let twice = 1.1 * 1.1;
    let cases: [(&str, &[(&str, f64)]); 8] = [
        ("((a))", &[("a", twice)]),
        ("(a (b) c)", &[("a ", once), ("b", twice), (" c", once)]),
        ("((a:2) b:3)", &[("a", 2.0), (" b", 3.0)]),
        ("((a) b:2)", &[("a", 2.0 * 1.1), (" b", 2.0)]),
        ("(((a:2):3):4)", &[("a", 2.0)]),
        ("((a:2)) b", &[("a", 2.0), (" b", 1.0)]),
        ("(a: 1_0)(b:-1e-1)", &[("a", 10.0), ("b", -0.1)]),
        ("(a:(b:2))", &[("a:", once), ("b", 2.0)]),
    ];
    for (text, expected) in cases {
        let expected: Vec<_> = expected.iter().map(|&(text, weight)| (text.to_owned(), weight)).collect();
        assert_eq!(segments(text), expected, "{text:?}");
    }
}

#[test]
fn parentheses_without_partner_are_plain_text_unless_the_text_ends_in_one() {
    let cases: [(&str, &[(&str, f64)]); 7] = [
        ("(a", &[("(a", 1.0)]),
        ("a) (b)", &[("a) (b)", 1.0)]),
        ("a)((b)", &[("a)(", 1.0), ("b", 1.1)]),
        ("(a (b)", &[("a ", 1.1), ("(b", 1.1)]),
        ("((a:2)", &[("(a", 2.0)]),
        ("(a) (b", &[("a", 1.1), (" ", 1.0), ("(b", 1.0)]),
        ("\\(a\\) (b\\)", &[("(a) ", 1.0), ("(b)", 1.0)]),
    ];
    for (text, expected) in cases {
        let expected: Vec<_> = expected.iter().map(|&(text, weight)| (text.to_owned(), weight)).collect();
        assert_eq!(segments(text), expected, "{text:?}");
    }
}

#[test]
fn a_weight_that_is_no_finite_number_is_refused_with_its_text() {
    for (text, named) in [
        ("a (sunset:inf)", "sunset"),
        ("(fog:nan)", "fog"),
        ("(x:-1e999)", "x"),
        ("(beyond f32:1e39)", "beyond"),
    ] {
        let error = check_weights(&parse(text, &ANY_LENGTH).unwrap()).unwrap_err();
        assert!(matches!(error, PromptError::Weight { .. }) && error.to_string().contains(named), "{error}");
    }
    check_weights(&parse("a (b:1e38) (c:-2) (d:0)", &ANY_LENGTH).unwrap()).unwrap();
}

#[test]
fn a_long_group_is_cut_at_the_end_of_a_row_and_a_short_one_moves_whole() {
    let tokenizer = ClipTokenizer::standard().unwrap();
    let cat = tokenizer.encode("cat").unwrap()[0];
    let dog = tokenizer.encode("dog").unwrap()[0];
    let rows = |cats: usize, dogs: usize| {
        let segments = [segment(&"cat ".repeat(cats), 1.0), segment(&"dog ".repeat(dogs), 1.2)];
        let rows = chunk(&segments, &tokenizer, CLIP_L_PAD, &ANY_LENGTH).unwrap();
        let rows = rows.chunks.iter().map(|row| {
            let tokens = tokens_of(row, &tokenizer);
            let count = |id: u32| tokens.iter().filter(|&&token| token == id).count();
            (count(cat), count(dog))
        });
        rows.collect::<Vec<_>>()
    };
    assert_eq!(rows(75, 0), [(75, 0)]);
    assert_eq!(rows(76, 0), [(75, 0), (1, 0)]);
    assert_eq!(rows(70, 5), [(70, 5)]);
    assert_eq!(rows(70, 7), [(70, 0), (0, 7)]);
    assert_eq!(rows(70, 8), [(70, 5), (0, 3)]);
    assert_eq!(rows(75, 7), [(75, 0), (0, 7)]);
    assert_eq!(rows(75, 8), [(75, 0), (0, 8)]);
    assert_eq!(rows(7, 151), [(7, 68), (0, 75), (0, 8)]);
}

#[test]
fn an_embedding_is_left_out_with_a_warning_that_names_it() {
    let tokenizer = ClipTokenizer::standard().unwrap();
    let rows = tokenize("a cat embedding:easynegative <3", &tokenizer, CLIP_L_PAD, &ANY_LENGTH).unwrap();
    assert_eq!(rows.warnings, [PromptWarning::EmbeddingIgnored { name: "easynegative".to_owned() }]);
    assert!(rows.warnings[0].to_string().contains("easynegative"));
    assert_eq!(tokens_of(&rows.chunks[0], &tokenizer), tokenizer.encode("a cat <3").unwrap());
}

/// An embedding of three vectors of two values, and one of nine of one value.
#[derive(Debug)]
struct Two {
    three: Arc<Embedding>,
    nine: Arc<Embedding>,
}

impl Two {
    fn new() -> Self {
        let made = |rows: usize, width: usize| {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("made.safetensors");
            let tensor = Tensor::arange(0f32, (rows * width) as f32, &Device::Cpu).unwrap();
            let tensors = HashMap::from([("emb_params", tensor.reshape((rows, width)).unwrap())]);
            candle_core::safetensors::save(&tensors, &path).unwrap();
            Arc::new(Embedding::read(&path).unwrap())
        };
        Self { three: made(3, 2), nine: made(9, 1) }
    }
}

impl EmbeddingSource for Two {
    fn find(&self, name: &str) -> Result<Option<Arc<Embedding>>, String> {
        match name {
            "three" => Ok(Some(self.three.clone())),
            "nine" => Ok(Some(self.nine.clone())),
            "broken" => Err("it is cut".into()),
            _ => Ok(None),
        }
    }
}

#[test]
fn embeddings_stand_in_rows_as_groups_of_vectors() {
    let tokenizer = ClipTokenizer::standard().unwrap();
    let source = Two::new();
    let read = |text: &str, width: usize| {
        let embeddings = EncoderEmbeddings { source: Some(&source), key: "clip_l", width };
        let segments = parse(text, &ANY_LENGTH).unwrap();
        chunk_with_embeddings(&segments, &tokenizer, CLIP_L_PAD, &ANY_LENGTH, &embeddings).unwrap()
    };
    let ids = |text: &str| tokenizer.encode(text).unwrap();
    let places = |row: &TokenChunk| row.given.iter().map(|token| token.position).collect::<Vec<_>>();

    let rows = read("a (cat embedding:three, dog:1.5)", 2);
    let row = &rows.chunks[0];
    assert_eq!(places(row), [3, 4, 5]);
    assert_eq!(*row.given[1].vector, [2.0, 3.0]);
    assert_eq!(row.ids[6..8], ids(", dog"));
    assert_eq!(row.weights[1..9], [1.0, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5, 1.0]);
    assert!(rows.warnings.is_empty(), "{:?}", rows.warnings);

    // A group of nine is cut where a row is full, one of three moves whole.
    let rows = read(&format!("{} embedding:nine", "cat ".repeat(70)), 1);
    assert_eq!(
        rows.chunks.iter().map(places).collect::<Vec<_>>(),
        [vec![71, 72, 73, 74, 75], vec![1, 2, 3, 4]]
    );
    let rows = read(&format!("{} embedding:three", "cat ".repeat(74)), 2);
    assert_eq!(rows.chunks.iter().map(places).collect::<Vec<_>>(), [vec![], vec![1, 2, 3]]);

    // Vectors of another width leave their places, not their weights.
    let rows = read("(embedding:three cat:1.5) dog", 1);
    let row = &rows.chunks[0];
    assert!(row.given.is_empty());
    assert_eq!(row.ids[1..3], [ids("cat"), ids("dog")].concat());
    assert_eq!(row.ids[3..], rows.empty[1..75]);
    assert_eq!(row.weights[1..6], [1.5, 1.5, 1.5, 1.5, 1.0]);
    let said: Vec<String> = rows.warnings.iter().map(ToString::to_string).collect();
    assert!(said.len() == 1 && said[0].contains("three") && said[0].contains("2 values"), "{said:?}");

    let rows = read("cat embedding:broken embedding:none", 1);
    let said: Vec<String> = rows.warnings.iter().map(ToString::to_string).collect();
    assert!(
        said.len() == 2 && said[0].contains("it is cut") && said[1].contains("does not exist"),
        "{said:?}"
    );
    assert_eq!(tokens_of(&rows.chunks[0], &tokenizer), ids("cat"));
}

#[test]
fn the_empty_prompt_is_the_empty_row() {
    let tokenizer = ClipTokenizer::standard().unwrap();
    for pad in [CLIP_L_PAD, CLIP_G_PAD] {
        for text in ["", " ", "()", "(())", "\n\t", "( :2)"] {
            let rows = tokenize(text, &tokenizer, pad, &ANY_LENGTH).unwrap();
            assert_eq!(rows.chunks.len(), 1, "{text:?}");
            assert_eq!(rows.chunks[0].ids, rows.empty, "{text:?}");
            assert!(!rows.is_weighted(), "{text:?}");
        }
    }
    let empty = |pad| tokenize("", &tokenizer, pad, &ANY_LENGTH).unwrap().empty;
    assert_eq!(empty(CLIP_L_PAD)[..3], [49_406, 49_407, 49_407]);
    assert_eq!(empty(CLIP_G_PAD)[..3], [49_406, 49_407, 0]);
}

#[test]
fn a_prompt_beyond_its_characters_is_refused_by_characters_not_bytes() {
    let limits = PromptLimits { characters: 50, ..PromptLimits::default() };
    assert!(parse(&"é".repeat(50), &limits).is_ok());
    let error = parse(&"é".repeat(51), &limits).unwrap_err();
    assert!(matches!(error, PromptError::TooLong { characters: 51, limit: 50 }), "{error}");
}

#[test]
fn a_prompt_beyond_its_rows_is_refused_with_its_number_of_tokens() {
    let tokenizer = ClipTokenizer::standard().unwrap();
    let limits = PromptLimits { chunks: 2, ..PromptLimits::default() };
    let words = |count: usize| tokenize(&"word ".repeat(count), &tokenizer, CLIP_G_PAD, &limits);
    assert_eq!(words(2 * CHUNK_ROOM).unwrap().chunks.len(), 2);
    let error = words(2 * CHUNK_ROOM + 1).unwrap_err();
    assert!(matches!(error, PromptError::TooManyTokens { tokens: 151, limit: 2 }), "{error}");
    assert!(words(10 * CHUNK_ROOM).unwrap_err().to_string().contains("750"));
}

#[test]
fn a_million_parentheses_are_read_without_recursion() {
    const N: usize = 1_000_000;
    let nested = format!("{}a{}", "(".repeat(N / 2), ")".repeat(N / 2));
    assert_eq!(segments(&nested), [("a".to_owned(), f64::INFINITY)]);
    let pairs = segments(&"(a)".repeat(N / 3));
    assert!(pairs.len() == N / 3 && pairs.iter().all(|pair| *pair == ("a".to_owned(), 1.1)));
    for (text, pieces) in [
        ("(".repeat(N), 1),
        (")".repeat(N), 1),
        ("()".repeat(N / 2), 0),
        (")(".repeat(N / 2), 1),
        (format!("{}a{}", "(".repeat(N / 2), ")".repeat(N / 2 - 1)), 1),
        (format!("{}{}", "(".repeat(N / 2), ":1)".repeat(N / 6)), 1),
        (format!("{}{}", "(".repeat(N / 2), "a)".repeat(N / 4)), 1),
        ("(:".repeat(N / 2), 1),
        (format!("({}:{})", "a".repeat(10), "1".repeat(N)), 1),
    ] {
        assert_eq!(segments(&text).len(), pieces, "{}...", &text[..4]);
    }
}

#[test]
fn a_million_characters_are_counted_and_refused() {
    const N: usize = 1_000_000;
    let tokenizer = ClipTokenizer::standard().unwrap();
    for (text, count) in [("a ".repeat(N / 2), N / 2), ("(a)".repeat(N / 3), N / 3)] {
        match tokenize(&text, &tokenizer, CLIP_L_PAD, &ANY_LENGTH) {
            Err(PromptError::TooManyTokens { tokens, limit: 64 }) => assert_eq!(tokens, count),
            other => panic!("{other:?}"),
        }
    }
    let blank = tokenize(&" ".repeat(N), &tokenizer, CLIP_L_PAD, &ANY_LENGTH).unwrap();
    assert_eq!(blank.chunks.len(), 1);
}

proptest! {
    #[test]
    fn no_text_panics_and_every_row_is_framed(text in any::<String>(), pad in prop::sample::select(vec![CLIP_L_PAD, CLIP_G_PAD])) {
        let tokenizer = ClipTokenizer::standard().unwrap();
        let segments = parse(&text, &ANY_LENGTH).unwrap();
        let rows = chunk(&segments, &tokenizer, pad, &ANY_LENGTH).unwrap();
        for row in &rows.chunks {
            prop_assert_eq!(row.ids[0], tokenizer.start_id());
            prop_assert!(row.ids[1..].contains(&tokenizer.end_id()));
            prop_assert_eq!(row.weights[0], 1.0);
            prop_assert_eq!(row.ids.len(), CHUNK_LEN);
        }
    }

    #[test]
    fn rows_hold_the_tokens_of_the_segments_in_order_with_their_weights(
        groups in prop::collection::vec((0_usize..100, 1_u8..20), 0..12),
    ) {
        let tokenizer = ClipTokenizer::standard().unwrap();
        let segments: Vec<_> = groups
            .iter()
            .enumerate()
            .map(|(n, &(words, weight))| segment(&format!("w{n} ").repeat(words), f64::from(weight) / 10.0))
            .collect();
        let mut expected = Vec::new();
        for Segment { text, weight } in &segments {
            expected.extend(tokenizer.encode(text).unwrap().into_iter().map(|id| (id, *weight)));
        }
        let rows = chunk(&segments, &tokenizer, CLIP_G_PAD, &ANY_LENGTH).unwrap();
        let mut found = Vec::new();
        for row in &rows.chunks {
            let tokens = tokens_of(row, &tokenizer);
            found.extend(tokens.iter().copied().zip(row.weights[1..].iter().copied()));
            // Behind the tokens there are the end and padding, of weight 1.
            let (end, padding) = row.ids[tokens.len() + 1..].split_first().unwrap();
            prop_assert_eq!(*end, tokenizer.end_id());
            prop_assert!(padding.iter().all(|&id| id == 0));
            prop_assert!(row.weights[tokens.len() + 1..].iter().all(|&weight| weight == 1.0));
        }
        prop_assert_eq!(found, expected);
    }
}
