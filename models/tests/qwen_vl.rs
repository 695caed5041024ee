//! Qwen2.5-VL's language model and its tokenizer against transformers, and files that nobody should trust.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests fail by panicking and say what they measured"
)]

mod support;

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use darkroom_models::qwen_vl::{MAX_TOKENS, QwenVlTextConfig, QwenVlTextEncoder};
use darkroom_models::weights::{WeightFile, Weights};
use support::{BATCH_TOLERANCE, Cases, REFERENCE_TOLERANCE, assert_close, folder};

fn opened() -> (QwenVlTextConfig, Weights) {
    folder("qwen_image/text_encoder")
}

fn encoder() -> QwenVlTextEncoder {
    let (config, weights) = opened();
    QwenVlTextEncoder::load(&config, &weights).unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<Vec<u32>> {
    tensor.to_dtype(DType::U32).unwrap().to_vec2().unwrap()
}

/// The reference's rows without their padding.
fn rows(cases: &Cases) -> Vec<Vec<u32>> {
    let lengths = cases.get("lengths").to_dtype(DType::U32).unwrap().to_vec1::<u32>().unwrap();
    let tokens = numbers(&cases.get("tokens"));
    tokens.iter().zip(lengths).map(|(row, length)| row[..length as usize].to_vec()).collect()
}

/// What a row's own tokens came to.
fn own(hidden: &Tensor, row: usize, length: usize) -> Tensor {
    hidden.get(row).unwrap().narrow(0, 0, length).unwrap()
}

#[test]
fn equals_transformers_at_every_token_of_a_masked_batch() {
    let (encoder, cases) = (encoder(), Cases::open("qwen_vl.safetensors"));
    let (rows, expected) = (rows(&cases), cases.get("hidden"));
    assert!(rows.iter().any(|row| row.len() > 300) && rows.iter().any(|row| row.len() == 1));
    let hidden = encoder.encode(&rows).unwrap();
    assert_eq!((hidden.dims(), hidden.dtype()), (expected.dims(), DType::F32));
    for (i, row) in rows.iter().enumerate() {
        let (actual, expected) = (own(&hidden, i, row.len()), own(&expected, i, row.len()));
        assert_close(&format!("row {i} of {} tokens", row.len()), &actual, &expected, REFERENCE_TOLERANCE);
        // The same by the largest difference over the largest value.
        let largest =
            |x: &Tensor| x.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
        let worst = largest(&(&actual - &expected).unwrap()) / largest(&expected);
        println!("row {i}: largest difference {worst:.1e}");
        assert!(worst <= REFERENCE_TOLERANCE, "row {i}: {worst:e}");
    }
}

#[test]
fn a_prompt_in_a_batch_is_encoded_as_it_is_alone() {
    let (encoder, rows) = (encoder(), rows(&Cases::open("qwen_vl.safetensors")));
    let together = encoder.encode(&rows).unwrap();
    for (i, row) in rows.iter().enumerate() {
        let alone = encoder.encode(std::slice::from_ref(row)).unwrap();
        assert_eq!(alone.dims(), [1, row.len(), encoder.config().hidden_size]);
        let alone = own(&alone, 0, row.len());
        assert_close(&format!("row {i}"), &own(&together, i, row.len()), &alone, BATCH_TOLERANCE);
    }
}

#[test]
fn what_follows_a_token_is_never_seen() {
    let encoder = encoder();
    let row: Vec<u32> = (0..40).map(|i| i * 7 % 300).collect();
    let mut other = row.clone();
    other[25..].fill(3);
    let hidden = encoder.encode(&[row, other]).unwrap();
    assert_close("before the change", &own(&hidden, 0, 25), &own(&hidden, 1, 25), 0.0);
    let after = support::relative_error(&own(&hidden, 0, 40), &own(&hidden, 1, 40));
    assert!(after > 0.1, "what was changed is seen: {after}");
}

#[test]
fn a_tokens_place_counts() {
    let encoder = encoder();
    let hidden = encoder.encode(&[vec![5, 6, 7, 8], vec![6, 5, 7, 8]]).unwrap();
    let last = |row: usize| hidden.get(row).unwrap().narrow(0, 3, 1).unwrap();
    let apart = support::relative_error(&last(0), &last(1));
    assert!(apart > 1e-3, "{apart}");
}

#[test]
fn streamed_weights_give_the_same_to_the_bit() {
    let rows = rows(&Cases::open("qwen_vl.safetensors"));
    let (config, weights) = opened();
    let streamed = QwenVlTextEncoder::load(&config, &weights.streaming()).unwrap();
    let held = encoder();
    assert!(format!("{streamed:?}").contains("3 streamed blocks"));
    for _ in 0..2 {
        let (theirs, ours) = (held.encode(&rows).unwrap(), streamed.encode(&rows).unwrap());
        let bits =
            |x: Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits);
        assert!(bits(theirs).eq(bits(ours)));
    }
}

#[test]
fn only_the_vision_tower_and_the_head_are_left() {
    for streamed in [false, true] {
        let (config, weights) = opened();
        let view = if streamed { weights.streaming() } else { weights.clone() };
        QwenVlTextEncoder::load(&config, &view).unwrap();
        let left = weights.names();
        assert!(left.iter().any(|name| name.starts_with("visual.")), "{left:?}");
        assert!(left.iter().all(|name| name.starts_with("visual.") || name == "lm_head.weight"), "{left:?}");
    }
}

#[test]
fn weights_of_another_shape_are_refused() {
    for streamed in [false, true] {
        for (wrong, name) in [
            (QwenVlTextConfig { vocab_size: 423, ..opened().0 }, "model.embed_tokens.weight"),
            (QwenVlTextConfig { intermediate_size: 90, ..opened().0 }, "mlp.gate_proj.weight"),
            (QwenVlTextConfig { num_key_value_heads: 4, ..opened().0 }, "self_attn.k_proj.weight"),
            (QwenVlTextConfig { num_hidden_layers: 4, ..opened().0 }, "model.layers.3."),
        ] {
            let weights = opened().1;
            let view = if streamed { weights.streaming() } else { weights };
            let error = QwenVlTextEncoder::load(&wrong, &view).unwrap_err().to_string();
            assert!(error.contains(name), "{name}: {error}");
        }
    }
}

#[test]
fn a_damaged_token_is_found_when_it_is_looked_up() {
    let path = support::golden("qwen_image/text_encoder/model.safetensors");
    let mut bytes = std::fs::read(path).unwrap();
    let header = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    let names: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let table = names["model.embed_tokens.weight"]["data_offsets"][0].as_u64().unwrap() as usize;
    let (config, _) = opened();
    // The last number of row 7, in f16.
    let place = 8 + header + table + 8 * config.hidden_size * 2 - 2;
    bytes[place..place + 2].copy_from_slice(&0x7e00_u16.to_le_bytes());
    let folder = tempfile::tempdir().unwrap();
    let damaged = folder.path().join("damaged.safetensors");
    std::fs::write(&damaged, bytes).unwrap();
    let weights = || Weights::from_file(Arc::new(WeightFile::open(&damaged).unwrap()), &Device::Cpu);

    let streamed = QwenVlTextEncoder::load(&config, &weights().streaming()).unwrap();
    streamed.encode(&[vec![6, 8]]).unwrap();
    let at_lookup = streamed.encode(&[vec![6, 7, 8]]).unwrap_err().to_string();
    let at_loading = QwenVlTextEncoder::load(&config, &weights()).unwrap_err().to_string();
    for error in [at_lookup, at_loading] {
        assert!(error.contains("model.embed_tokens.weight") && error.contains("NaN"), "{error}");
        assert!(error.contains(&(8 * config.hidden_size - 1).to_string()), "{error}");
    }
}

#[test]
fn a_config_that_makes_no_sense_is_refused_before_anything_is_read() {
    let (config, weights) = opened();
    for wrong in [
        QwenVlTextConfig { num_attention_heads: 0, ..config.clone() },
        QwenVlTextConfig { num_attention_heads: 32, num_key_value_heads: 32, ..config.clone() },
        QwenVlTextConfig { num_key_value_heads: 3, ..config.clone() },
        QwenVlTextConfig { num_hidden_layers: usize::MAX, ..config.clone() },
        QwenVlTextConfig { rope_theta: f64::NAN, ..config },
    ] {
        let before = weights.names();
        QwenVlTextEncoder::load(&wrong, &weights).unwrap_err();
        assert_eq!(weights.names(), before);
    }
}

#[test]
fn rows_that_cannot_be_encoded_are_refused() {
    let encoder = encoder();
    let vocabulary = encoder.config().vocab_size as u32;
    for (rows, part) in [
        (vec![], "no prompts"),
        (vec![vec![1], vec![]], "prompt 1 has 0 tokens"),
        (vec![vec![1; MAX_TOKENS + 1]], "8193 tokens"),
        (vec![vec![1], vec![1, vocabulary]], "token 422 of prompt 1"),
        (vec![vec![u32::MAX]], "beyond the vocabulary"),
    ] {
        let error = encoder.encode(&rows).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    encoder.encode(&[vec![vocabulary - 1]]).unwrap();
}

#[test]
fn memory_grows_with_rows_and_tokens_and_never_wraps() {
    let encoder = encoder();
    let one = encoder.encode_bytes(1, 1);
    assert!(one >= 3 * 88 * 4);
    assert_eq!(encoder.encode_bytes(3, 50), 150 * one);
    assert_eq!(encoder.encode_bytes(usize::MAX, usize::MAX), usize::MAX);
}
