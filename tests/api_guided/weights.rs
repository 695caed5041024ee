//! Files of weights for tests: whole, changed and damaged ones.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

/// A safetensors file in parts.
pub(crate) struct Weights {
    header: Map<String, Value>,
    data: Vec<u8>,
}

impl Weights {
    pub(crate) fn empty() -> Self {
        Self { header: Map::new(), data: Vec::new() }
    }

    /// One that ships with the program.
    pub(crate) fn shipped(name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets").join(name);
        let file = std::fs::read(path).unwrap();
        let length = u64::from_le_bytes(*file.first_chunk().unwrap()) as usize;
        let header = serde_json::from_slice(&file[8..8 + length]).unwrap();
        Self { header, data: file[8 + length..].to_vec() }
    }

    /// The same with one more tensor, all zero.
    pub(crate) fn with(mut self, name: &str, shape: &[usize]) -> Self {
        let begin = self.data.len();
        self.data.resize(begin + 2 * shape.iter().product::<usize>(), 0);
        let tensor = json!({"dtype": "F16", "shape": shape, "data_offsets": [begin, self.data.len()]});
        self.header.insert(name.to_owned(), tensor);
        self
    }

    /// The same with NaN as the first number of the tensors that `spoilt` names.
    pub(crate) fn with_nan(mut self, spoilt: &str) -> Self {
        for (name, tensor) in &self.header {
            if name.contains(spoilt) {
                let begin = tensor["data_offsets"][0].as_u64().unwrap() as usize;
                self.data[begin..begin + 2].copy_from_slice(&0x7e00_u16.to_le_bytes());
            }
        }
        self
    }

    pub(crate) fn file(&self) -> Vec<u8> {
        let header = serde_json::to_vec(&self.header).unwrap();
        [&(header.len() as u64).to_le_bytes()[..], &header, &self.data].concat()
    }

    pub(crate) fn write(&self, folder: &Path, name: &str) -> PathBuf {
        write(folder, name, &self.file())
    }
}

pub(crate) fn write(folder: &Path, name: &str, file: &[u8]) -> PathBuf {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, file).unwrap();
    path
}
