//! Weight files: what is read from good ones, and what is said about bad ones.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a helper fails as its test does"
)]

#[path = "support/safetensors_bytes.rs"]
mod safetensors_bytes;

use std::collections::BTreeMap;

use candle_core::{DType, Device};
use darkroom_models::weights::{Stored, Transform, WeightFile, Weights, WeightsError};
use half::{bf16, f16};
use safetensors_bytes::{f32s, file_of, i64s, open, with_header};

fn refusal(bytes: &[u8]) -> String {
    open(bytes).unwrap_err().to_string()
}

#[test]
fn tensors_come_in_their_stored_type() {
    let halves: Vec<u8> = [1.5f32, -2.0].iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
    let brains: Vec<u8> = [1.5f32, -2.0].iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
    let bytes = file_of(
        &[
            ("half", "F16", &[2], halves),
            ("brain", "BF16", &[1, 2], brains),
            ("single", "F32", &[2, 1], f32s(&[1.5, -2.0])),
            ("none", "F32", &[0, 3], vec![]),
            ("scalar", "F32", &[], f32s(&[7.0])),
        ],
        &[("format", "pt")],
    );
    let file = open(&bytes).unwrap();
    assert_eq!(file.header().metadata["format"], "pt");
    for (name, dtype, shape) in [
        ("half", DType::F16, vec![2]),
        ("brain", DType::BF16, vec![1, 2]),
        ("single", DType::F32, vec![2, 1]),
    ] {
        let tensor = file.tensor(name, &Device::Cpu).unwrap();
        assert_eq!((tensor.dtype(), tensor.dims()), (dtype, shape.as_slice()));
        let values: Vec<f32> = tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(values, [1.5, -2.0]);
    }
    assert_eq!(file.tensor("none", &Device::Cpu).unwrap().dims(), [0, 3]);
    assert_eq!(file.tensor("scalar", &Device::Cpu).unwrap().to_scalar::<f32>().unwrap(), 7.0);
}

#[test]
fn every_damage_is_named_with_what_and_where() {
    let entry = |shape: &str, from: u64, to: u64| {
        format!(r#"{{"dtype":"F32","shape":{shape},"data_offsets":[{from},{to}]}}"#)
    };
    let one = |shape: &str, from, to| format!(r#"{{"a":{}}}"#, entry(shape, from, to));
    let two = |first: (u64, u64), second: (u64, u64)| {
        format!(r#"{{"a":{},"b":{}}}"#, entry("[2]", first.0, first.1), entry("[2]", second.0, second.1))
    };
    let good = file_of(&[("a", "F32", &[2], f32s(&[1.0, 2.0]))], &[]);
    let mut too_long = good.clone();
    too_long[..8].copy_from_slice(&200_000_000u64.to_le_bytes());
    let mut not_utf8 = good.clone();
    not_utf8[10] = 0xff;
    let ranks = format!("[{}]", ["1"; 9].join(","));
    let cases: Vec<(Vec<u8>, &[&str])> = vec![
        (vec![], &["empty (0 bytes)"]),
        (vec![1, 2, 3], &["only 3 bytes"]),
        (good[..20].to_vec(), &["truncated"]),
        (good[..good.len() - 1].to_vec(), &["'a'", "truncated"]),
        (too_long, &["200000000", "limit"]),
        (not_utf8, &["UTF-8", "byte 10"]),
        (with_header("{", &[]), &["header cannot be understood"]),
        (with_header("{} x", &[]), &["header cannot be understood"]),
        (with_header(&one("[2]", 0, 8), &[0; 9]), &["1 bytes after the last tensor"]),
        (with_header(&one("[3]", 0, 8), &[0; 8]), &["'a'", "needs 12 bytes", "has 8"]),
        (with_header(&one("[2]", 8, 0), &[0; 8]), &["'a'", "ends before it begins"]),
        (with_header(&one("[9223372036854775807, 8]", 0, 8), &[0; 8]), &["'a'", "impossibly large"]),
        (with_header(&one("[0, 9223372036854775807, 8]", 0, 0), &[]), &["'a'", "impossibly large"]),
        (with_header(&one("[-1]", 0, 8), &[0; 8]), &["'a'"]),
        (with_header(&one("[2.5]", 0, 8), &[0; 8]), &["'a'"]),
        (with_header(&one(&ranks, 0, 4), &[0; 4]), &["'a'", "more than 8 dimensions"]),
        (with_header(&one("\"2\"", 0, 8), &[0; 8]), &["'a'", "list of at most 8 dimensions"]),
        (with_header(&two((0, 8), (4, 12)), &[0; 12]), &["'b'", "overlaps"]),
        (with_header(&two((0, 8), (12, 20)), &[0; 20]), &["4 bytes before tensor 'b'"]),
        (with_header(&two((0, 8), (0, 8)), &[0; 8]), &["'b'", "overlaps"]),
        (
            with_header(&format!(r#"{{"a":{0},"a":{0}}}"#, entry("[2]", 0, 8)), &[0; 8]),
            &["two tensors are named 'a'"],
        ),
        (
            with_header(r#"{"a":{"dtype":"F128","shape":[1],"data_offsets":[0,16]}}"#, &[0; 16]),
            &["'a'", "F128"],
        ),
        (with_header(r#"{"a":{"dtype":"F32","shape":[1]}}"#, &[]), &["'a'", "data_offsets"]),
        (with_header(r#"{"__metadata__":{"a":1}}"#, &[]), &["__metadata__"]),
        (with_header(r#"{"__metadata__":{},"__metadata__":{}}"#, &[]), &["two __metadata__"]),
        (with_header(&format!("{{\"a\":{}", "[".repeat(100_000)), &[]), &["header cannot be understood"]),
        (
            with_header(&format!(r#"{{"a":{{"x":{}"#, "{\"x\":".repeat(100_000)), &[]),
            &["header cannot be understood"],
        ),
    ];
    for (bytes, expected) in cases {
        let error = refusal(&bytes);
        assert!(error.starts_with("t.safetensors: "), "{error}");
        assert!(expected.iter().all(|part| error.contains(part)), "{error}\n  lacks one of {expected:?}");
        assert!(error.len() < 1000, "{error}");
    }
}

#[test]
fn ranges_may_stand_in_any_order_in_the_header() {
    let header = r#"{"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]},
        "a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}   "#;
    let file = open(&with_header(header, &f32s(&[1.0, 2.0]))).unwrap();
    assert_eq!(file.tensor("b", &Device::Cpu).unwrap().to_vec1::<f32>().unwrap(), [2.0]);
}

#[test]
fn other_kinds_of_files_are_recognised_and_the_fix_is_named() {
    let padded = |start: &[u8]| [start, &[b' '; 64]].concat();
    for (bytes, found, hint) in [
        (padded(b"PK\x03\x04\x00\x00\x08\x08\x00\x00\x00"), "pickle", "convert it to safetensors"),
        (padded(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."), "pickle", "convert it to safetensors"),
        (
            padded(b"version https://git-lfs.github.com/spec/v1\noid sha256:"),
            "Git LFS pointer, not the weights",
            "git lfs pull",
        ),
        (padded(b"\n<!DOCTYPE html><html>"), "web page", "download it again"),
        (padded(b"GGUF\x03\x00\x00\x00\x10\x00"), "GGUF", "safetensors"),
        (padded(b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR"), "picture", "safetensors"),
        (padded(b"{\"error\": \"not found\"}"), "JSON", "safetensors"),
    ] {
        let error = refusal(&bytes);
        assert!(error.contains(found) && error.contains(hint), "{error}");
    }
}

#[test]
fn what_is_no_regular_file_is_refused_before_it_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    let error = WeightFile::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("a folder"), "{error}");
    let error = WeightFile::open(&folder.path().join("none")).unwrap_err().to_string();
    assert!(error.contains("cannot read"), "{error}");
    let empty = folder.path().join("empty.safetensors");
    std::fs::write(&empty, []).unwrap();
    let error = WeightFile::open(&empty).unwrap_err().to_string();
    assert!(error.contains("empty.safetensors") && error.contains("0 bytes"), "{error}");
    #[cfg(unix)]
    {
        let error = WeightFile::open(std::path::Path::new("/dev/null")).unwrap_err().to_string();
        assert!(error.contains("neither a file nor a folder"), "{error}");
    }
}

#[test]
fn nan_and_infinity_are_found_by_name_and_index_in_every_type() {
    let mut singles = vec![0.5; 100];
    singles[41] = f32::NAN;
    let mut halves = [f16::MAX; 100];
    halves[42] = f16::INFINITY;
    let mut brains = [bf16::MIN; 100];
    brains[43] = bf16::NEG_INFINITY;
    let bytes = file_of(
        &[
            ("single", "F32", &[10, 10], f32s(&singles)),
            ("half", "F16", &[10, 10], halves.iter().flat_map(|v| v.to_le_bytes()).collect()),
            ("brain", "BF16", &[10, 10], brains.iter().flat_map(|v| v.to_le_bytes()).collect()),
        ],
        &[],
    );
    let file = open(&bytes).unwrap();
    for (name, index) in [("single", 41), ("half", 42), ("brain", 43)] {
        match file.tensor(name, &Device::Cpu) {
            Err(WeightsError::NotFinite { name: found, index: at, .. }) => {
                assert_eq!((found.as_str(), at), (name, index));
            }
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn integers_and_numbers_of_five_exponent_bits_can_be_looked_at_but_not_loaded() {
    let bytes = file_of(&[("a", "F8_E5M2", &[2], vec![1, 2]), ("b", "I64", &[1], vec![0; 8])], &[]);
    let file = open(&bytes).unwrap();
    for (name, dtype) in [("a", "f8_e5m2"), ("b", "i64")] {
        assert_eq!(file.header().tensors[name].dtype.to_string(), dtype);
        let error = file.tensor(name, &Device::Cpu).unwrap_err().to_string();
        assert!(error.contains(dtype) && error.contains(name), "{error}");
    }
}

fn view(bytes: &[u8], name: &str, transform: Transform) -> Weights {
    let stored = Stored { file: open(bytes).unwrap(), name: name.into(), transform };
    Weights::new("t.safetensors", BTreeMap::from([("part.x".to_owned(), stored)]), &Device::Cpu)
}

#[test]
fn transforms_give_what_candle_gives() {
    let values: Vec<f32> = (0..24).map(|i| i as f32).collect();
    let matrix = file_of(&[("m", "F32", &[6, 4], f32s(&values))], &[]);
    let whole = open(&matrix).unwrap().tensor("m", &Device::Cpu).unwrap();
    let taken = |transform, shape: &[usize]| {
        view(&matrix, "m", transform).scope("part").take("x", shape).unwrap().to_vec2::<f32>().unwrap()
    };
    assert_eq!(taken(Transform::None, &[6, 4]), whole.to_vec2::<f32>().unwrap());
    assert_eq!(taken(Transform::Transpose, &[4, 6]), whole.t().unwrap().to_vec2::<f32>().unwrap());
    assert_eq!(
        taken(Transform::Rows { start: 2, len: 2 }, &[2, 4]),
        whole.narrow(0, 2, 2).unwrap().to_vec2::<f32>().unwrap()
    );
    let conv = file_of(&[("c", "F32", &[6, 4, 1, 1], f32s(&values))], &[]);
    let squeezed = view(&conv, "c", Transform::Squeeze).scope("part").take("x", &[6, 4]).unwrap();
    assert_eq!(squeezed.to_vec2::<f32>().unwrap(), whole.to_vec2::<f32>().unwrap());
}

#[test]
fn rows_that_are_not_taken_are_not_read() {
    let mut values = vec![1.0; 24];
    values[20] = f32::NAN;
    let bytes = file_of(&[("m", "F32", &[6, 4], f32s(&values))], &[]);
    let taken = |start| view(&bytes, "m", Transform::Rows { start, len: 2 }).scope("part").take("x", &[2, 4]);
    assert!(taken(2).is_ok());
    assert!(matches!(taken(4), Err(WeightsError::NotFinite { index: 20, .. })));
}

#[test]
fn convolutions_can_be_taken_channels_last() {
    let values: Vec<f32> = (0..2 * 3 * 2 * 2).map(|i| i as f32).collect();
    let bytes = file_of(&[("c", "F32", &[2, 3, 2, 2], f32s(&values))], &[]);
    let taken = view(&bytes, "c", Transform::None).scope("part").take_conv("x", [2, 3, 2, 2]).unwrap();
    let expected = open(&bytes).unwrap().tensor("c", &Device::Cpu).unwrap().permute((0, 2, 3, 1)).unwrap();
    assert_eq!(taken.dims(), [2, 2, 2, 3]);
    let flat = |t: &candle_core::Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(flat(&taken), flat(&expected.contiguous().unwrap()));
}

#[test]
fn a_wrong_shape_names_the_tensor_and_both_shapes() {
    let bytes = file_of(&[("stored.m", "F32", &[6, 4], vec![0; 96])], &[]);
    for transform in [Transform::None, Transform::Squeeze, Transform::Rows { start: 5, len: 2 }] {
        let error =
            view(&bytes, "stored.m", transform).scope("part").take("x", &[2, 4]).unwrap_err().to_string();
        assert!(["stored.m", "[6, 4]", "[2, 4]"].iter().all(|part| error.contains(part)), "{error}");
    }
}

#[test]
fn a_scope_ends_at_a_dot() {
    let stored = |file: &std::sync::Arc<WeightFile>| Stored {
        file: file.clone(),
        name: "a".into(),
        transform: Transform::None,
    };
    let file = open(&file_of(&[("a", "F32", &[1], f32s(&[1.0]))], &[])).unwrap();
    let names = ["block.1.x", "block.10.x"];
    let tensors = names.map(|name| (name.to_owned(), stored(&file))).into();
    let weights = Weights::new("t", tensors, &Device::Cpu);
    let block = weights.scope("block").scope(1);
    assert_eq!(block.names(), ["x"]);
    assert!(block.finish().is_err());
    block.take("x", &[1]).unwrap();
    block.finish().unwrap();
    assert!(matches!(weights.finish(), Err(WeightsError::Unexpected { count: 1, .. })));
    assert!(matches!(block.take("x", &[1]), Err(WeightsError::Missing { .. })));
}

const TABLE: &str = "darkroom.sparse.table";

fn sparse(rows: &[i64], values: &[f32], width: usize, shape: &str) -> Vec<u8> {
    let count = rows.len();
    file_of(
        &[
            ("table.sparse_rows", "I64", &[count], i64s(rows)),
            ("table.sparse_values", "F32", &[count, width], f32s(values)),
        ],
        &[(TABLE, shape)],
    )
}

#[test]
fn a_sparse_table_is_one_tensor_with_zeros_between_its_rows() {
    let file = open(&sparse(&[1, 3], &[1.0, 2.0, 3.0, 4.0], 2, "5,2")).unwrap();
    assert_eq!(file.header().tensors.keys().collect::<Vec<_>>(), ["table"]);
    assert!(file.header().metadata.is_empty());
    let table = file.tensor("table", &Device::Cpu).unwrap();
    let expected = [[0.0, 0.0], [1.0, 2.0], [0.0, 0.0], [3.0, 4.0], [0.0, 0.0]];
    assert_eq!(table.to_vec2::<f32>().unwrap(), expected);
    for (transform, shape) in [(Transform::Transpose, [2, 5]), (Transform::Rows { start: 2, len: 2 }, [2, 2])]
    {
        let bytes = sparse(&[1, 3], &[1.0, 2.0, 3.0, 4.0], 2, "5,2");
        let taken = view(&bytes, "table", transform.clone()).scope("part").take("x", &shape).unwrap();
        let expected = match transform {
            Transform::Transpose => table.t().unwrap(),
            _ => table.narrow(0, 2, 2).unwrap(),
        };
        assert_eq!(taken.to_vec2::<f32>().unwrap(), expected.to_vec2::<f32>().unwrap());
    }
    let empty = open(&sparse(&[], &[], 2, "5,2")).unwrap().tensor("table", &Device::Cpu).unwrap();
    assert_eq!(empty.to_vec2::<f32>().unwrap(), [[0.0; 2]; 5]);
}

#[test]
fn bad_sparse_tables_are_refused_when_the_file_is_opened() {
    let values = [1.0, 2.0, 3.0, 4.0];
    for (bytes, expected) in [
        (sparse(&[3, 1], &values, 2, "5,2"), "row number 1 is out of order"),
        (sparse(&[3, 3], &values, 2, "5,2"), "row number 3"),
        (sparse(&[1, 5], &values, 2, "5,2"), "row number 5"),
        (sparse(&[-1, 1], &values, 2, "5,2"), "row number -1"),
        (sparse(&[1, 3], &values, 2, "5,3"), "[2, 3]"),
        (sparse(&[1, 3], &values, 2, "five"), "\"rows,width\""),
        (sparse(&[1, 3], &values, 2, "33554433,2"), "larger than the limit"),
        (sparse(&[1, 3], &values, 2, "9223372036854775807,2"), "larger than the limit"),
        (file_of(&[], &[(TABLE, "5,2")]), "'table.sparse_rows' is missing"),
        (
            file_of(
                &[
                    ("table", "F32", &[1], f32s(&[1.0])),
                    ("table.sparse_rows", "I64", &[0], vec![]),
                    ("table.sparse_values", "F32", &[0, 2], vec![]),
                ],
                &[(TABLE, "5,2")],
            ),
            "stored whole as well",
        ),
    ] {
        let error = refusal(&bytes);
        assert!(error.contains("sparse table 'table'") && error.contains(expected), "{error}");
    }
    let error = open(&sparse(&[1, 3], &[1.0, 2.0, f32::NAN, 4.0], 2, "5,2"))
        .unwrap()
        .tensor("table", &Device::Cpu)
        .unwrap_err();
    assert!(matches!(error, WeightsError::NotFinite { index: 6, .. }), "{error}");
}
