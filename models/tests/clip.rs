//! The text encoders against transformers.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests fail by panicking and say what they measured"
)]

mod support;

use candle_core::Tensor;
use darkroom_models::adapter::Adapters;
use darkroom_models::clip::{ClipTextConfig, ClipTextEncoder, GivenVector, HiddenLayer};
use support::{BATCH_TOLERANCE, Cases, REFERENCE_TOLERANCE, assert_close, folder};

fn encoder(name: &str) -> ClipTextEncoder {
    let (config, weights) = folder::<ClipTextConfig>(name);
    let encoder = ClipTextEncoder::load(&config, &weights).unwrap();
    weights.finish().unwrap();
    encoder
}

fn tokens(cases: &Cases) -> Vec<Vec<u32>> {
    let tokens = cases.get("tokens").to_dtype(candle_core::DType::I64).unwrap();
    tokens
        .to_vec2::<i64>()
        .unwrap()
        .into_iter()
        .map(|row| row.iter().map(|&id| id as u32).collect())
        .collect()
}

fn equals_transformers(name: &str, cases: &str) {
    let (encoder, cases) = (encoder(name), Cases::open(cases));
    let tokens = tokens(&cases);
    let check = |what: &str, actual: &Tensor, expected: &str| {
        assert_close(&format!("{name}: {what}"), actual, &cases.get(expected), REFERENCE_TOLERANCE);
    };
    let last = encoder.encode(&tokens, HiddenLayer::Final).unwrap();
    check("final", &last.hidden, "final");
    let layers = encoder.config().num_hidden_layers;
    for n in 1..=layers {
        let skipped = encoder.encode(&tokens, HiddenLayer::Skip(n)).unwrap();
        check(&format!("skip {n}"), &skipped.hidden, &format!("skip.{n}"));
        assert_eq!(skipped.pooled.is_some(), encoder.config().projection_dim.is_some());
        if let Some(pooled) = &skipped.pooled {
            check("pooled", pooled, "pooled");
        }
    }
    let beyond = encoder.encode(&tokens, HiddenLayer::Skip(layers + 1)).unwrap();
    check("skip beyond the first layer", &beyond.hidden, "final");
    let normed = encoder.encode(&tokens, HiddenLayer::SkipNormed(1)).unwrap();
    check("last layer, normed", &normed.hidden, "final");

    let short = encoder.encode(&[tokens[1][..9].to_vec()], HiddenLayer::Final).unwrap();
    check("short chunk", &short.hidden, "short.final");
    if let Some(pooled) = &short.pooled {
        check("short chunk pooled", pooled, "short.pooled");
    }
}

#[test]
fn clip_l_equals_transformers_at_every_layer() {
    equals_transformers("sdxl/text_encoder", "clip_l.safetensors");
}

#[test]
fn clip_g_equals_transformers_at_every_layer_and_pooled() {
    equals_transformers("sdxl/text_encoder_2", "clip_g.safetensors");
}

#[test]
fn a_batched_chunk_equals_the_chunk_alone() {
    let (encoder, cases) = (encoder("sdxl/text_encoder_2"), Cases::open("clip_g.safetensors"));
    let tokens = tokens(&cases);
    let batched = encoder.encode(&tokens, HiddenLayer::Skip(2)).unwrap();
    for (i, row) in tokens.iter().enumerate() {
        let alone = encoder.encode(std::slice::from_ref(row), HiddenLayer::Skip(2)).unwrap();
        let hidden = batched.hidden.narrow(0, i, 1).unwrap();
        assert_close("hidden", &hidden, &alone.hidden, BATCH_TOLERANCE);
        let pooled = batched.pooled.as_ref().unwrap().narrow(0, i, 1).unwrap();
        assert_close("pooled", &pooled, alone.pooled.as_ref().unwrap(), BATCH_TOLERANCE);
    }
}

#[test]
fn a_given_vector_stands_for_the_token_that_has_it() {
    let (config, weights) = folder::<ClipTextConfig>("sdxl/text_encoder_2");
    let name = "text_model.embeddings.token_embedding.weight";
    let table = weights.take(name, &[config.vocab_size, config.hidden_size]).unwrap();
    let table = table.to_dtype(candle_core::DType::F32).unwrap().to_vec2::<f32>().unwrap();
    let (encoder, cases) = (encoder("sdxl/text_encoder_2"), Cases::open("clip_g.safetensors"));
    let whole = tokens(&cases);
    let mut holed = whole.clone();
    let mut given = Vec::new();
    for (row, position) in [(1, 2), (1, 3), (0, 1)] {
        let vector = &table[whole[row][position] as usize];
        given.push(GivenVector { row, position, vector });
        holed[row][position] = 0;
    }
    let theirs = encoder.encode(&whole, HiddenLayer::Skip(2)).unwrap();
    let ours = encoder.encode_with(&holed, &given, HiddenLayer::Skip(2), Adapters::none()).unwrap();
    assert_close("hidden", &ours.hidden, &theirs.hidden, BATCH_TOLERANCE);
    assert_close("pooled", &ours.pooled.unwrap(), &theirs.pooled.unwrap(), BATCH_TOLERANCE);

    for (row, position, width) in [(9, 0, config.hidden_size), (0, 99, config.hidden_size), (0, 1, 3)] {
        let vector = vec![0.0; width];
        let wrong = [GivenVector { row, position, vector: &vector }];
        let error = encoder.encode_with(&whole, &wrong, HiddenLayer::Final, Adapters::none()).unwrap_err();
        assert!(error.to_string().contains("a vector of"), "{error}");
    }
}

#[test]
fn a_skipped_layer_can_be_normed() {
    let (encoder, cases) = (encoder("sdxl/text_encoder"), Cases::open("clip_l.safetensors"));
    let normed = encoder.encode(&tokens(&cases), HiddenLayer::SkipNormed(2)).unwrap().hidden;
    let plain = cases.get("skip.2");
    assert!(support::relative_error(&normed, &plain) > 0.1, "the norm changes the hidden state");
    // A layer norm with scale near 1 and shift near 0 leaves rows with mean near 0 and variance near 1.
    let rows = normed.flatten_to(1).unwrap();
    let spread = rows.sqr().unwrap().mean(1).unwrap().to_vec1::<f32>().unwrap();
    assert!(spread.iter().all(|s| (0.5..2.0).contains(s)), "{spread:?}");
}

#[test]
fn bad_tokens_are_refused() {
    let encoder = encoder("sdxl/text_encoder_2");
    let refused = |tokens: &[Vec<u32>], layer, part: &str| {
        let error = encoder.encode(tokens, layer).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    };
    let end = encoder.config().eos_token_id;
    refused(&[], HiddenLayer::Final, "no prompts");
    refused(&[vec![]], HiddenLayer::Final, "0 tokens");
    refused(&[vec![end; 78]], HiddenLayer::Final, "78 tokens");
    refused(&[vec![end; 4], vec![end; 5]], HiddenLayer::Final, "chunk 1 has 5 tokens");
    refused(&[vec![end + 1]], HiddenLayer::Final, "beyond the vocabulary");
    refused(&[vec![1, 2, 3]], HiddenLayer::Final, "no end token");
    refused(&[vec![end]], HiddenLayer::Skip(0), "count from 1");
}
