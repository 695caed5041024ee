//! Safetensors files made by hand, so that tests can break them where they like.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use darkroom_models::weights::{WeightFile, WeightsError};

/// A header and data as a file's bytes.
pub(crate) fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(data);
    bytes
}

fn describe(header: &mut serde_json::Map<String, serde_json::Value>, metadata: &[(&str, &str)]) {
    if !metadata.is_empty() {
        let entries: std::collections::BTreeMap<_, _> = metadata.iter().copied().collect();
        header.insert("__metadata__".into(), serde_json::json!(entries));
    }
}

/// One tensor to write: name, type as safetensors calls it, shape, bytes.
pub(crate) type Entry<'a> = (&'a str, &'a str, &'a [usize], Vec<u8>);

/// A well-formed file.
pub(crate) fn file_of(tensors: &[Entry<'_>], metadata: &[(&str, &str)]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    describe(&mut header, metadata);
    let mut data = Vec::new();
    for (name, dtype, shape, bytes) in tensors {
        let range = [data.len(), data.len() + bytes.len()];
        data.extend_from_slice(bytes);
        header.insert(
            name.to_string(),
            serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": range }),
        );
    }
    with_header(&serde_json::Value::Object(header).to_string(), &data)
}

/// A file of the right size whose tensors are all zeros that no disk space is spent on.
pub(crate) fn hollow(
    path: &Path,
    tensors: impl IntoIterator<Item = (String, Vec<usize>)>,
    metadata: &[(&str, &str)],
) -> PathBuf {
    let mut header = serde_json::Map::new();
    describe(&mut header, metadata);
    let mut end = 0usize;
    for (name, shape) in tensors {
        let start = end;
        end += shape.iter().product::<usize>() * 2;
        let entry = serde_json::json!({ "dtype": "F16", "shape": shape, "data_offsets": [start, end] });
        header.insert(name, entry);
    }
    let bytes = with_header(&serde_json::Value::Object(header).to_string(), &[]);
    std::fs::write(path, &bytes).unwrap();
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.set_len((bytes.len() + end) as u64).unwrap();
    path.to_owned()
}

/// Opens `bytes` as a file named `t.safetensors`.
pub(crate) fn open(bytes: &[u8]) -> Result<Arc<WeightFile>, WeightsError> {
    // Leaked: what is compiled into the program lives as long. Tests are small and short.
    WeightFile::from_static("t.safetensors", Box::leak(bytes.to_vec().into_boxed_slice())).map(Arc::new)
}

/// Numbers as stored bytes.
pub(crate) fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Row numbers as stored bytes.
pub(crate) fn i64s(values: &[i64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}
