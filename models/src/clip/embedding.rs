//! Embeddings (textual inversion; Gal et al. 2022): vectors that stand in a prompt where words' vectors would.

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device};

use crate::weights::{Storage, WeightFile, WeightsError};

/// Most bytes of a file: thousands of vectors.
const MAX_BYTES: usize = 64 << 20;
/// Most vectors of a tensor: more than fit into a prompt.
const MAX_VECTORS: usize = 10_000;
/// How the tensors of embeddings that came with a LoRA are called.
const BUNDLED: &str = "bundle_emb.";

/// A file of embeddings.
#[derive(Debug, Clone)]
pub struct Embedding {
    /// In the file's order.
    tensors: Vec<(String, Vec<Arc<[f32]>>)>,
}

/// Why an embedding cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EmbeddingError {
    /// The file does not read.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// It is no embedding.
    #[error("{file}: it has {bytes} bytes, far more than an embedding: is it another kind of file?")]
    TooLarge {
        /// The file.
        file: String,
        /// Its size.
        bytes: usize,
    },
    /// It is no embedding.
    #[error("{file}: tensor '{name}' has {rank} dimensions; vectors of an embedding have 1 or 2")]
    Rank {
        /// The file.
        file: String,
        /// The tensor.
        name: String,
        /// Its dimensions.
        rank: usize,
    },
    /// It is no embedding.
    #[error("{file}: tensor '{name}' has {vectors} vectors; an embedding has at most {MAX_VECTORS}")]
    TooMany {
        /// The file.
        file: String,
        /// The tensor.
        name: String,
        /// Its vectors.
        vectors: usize,
    },
    /// It has no vectors.
    #[error("{file}: it has no tensors")]
    Empty {
        /// The file.
        file: String,
    },
}

impl Embedding {
    /// Reads a safetensors file.
    ///
    /// # Errors
    /// It does not read, or what is in it is no embedding.
    pub fn read(path: &Path) -> Result<Self, EmbeddingError> {
        let file = WeightFile::open(path)?;
        let name = || file.name().to_owned();
        if file.size() > MAX_BYTES {
            return Err(EmbeddingError::TooLarge { file: name(), bytes: file.size() });
        }
        let mut found: Vec<(usize, &String)> = Vec::new();
        for (tensor, info) in &file.header().tensors {
            let start = if let Storage::Dense(range) = &info.storage { range.start } else { 0 };
            if !(1..=2).contains(&info.shape.len()) {
                let rank = info.shape.len();
                return Err(EmbeddingError::Rank { file: name(), name: tensor.clone(), rank });
            }
            if let [vectors, _] = *info.shape
                && vectors > MAX_VECTORS
            {
                return Err(EmbeddingError::TooMany { file: name(), name: tensor.clone(), vectors });
            }
            found.push((start, tensor));
        }
        found.sort();
        if found.is_empty() {
            return Err(EmbeddingError::Empty { file: name() });
        }
        let mut tensors = Vec::with_capacity(found.len());
        for (_, tensor) in found {
            let values = file.tensor(tensor, &Device::Cpu)?;
            let values = values.to_dtype(DType::F32).map_err(WeightsError::from)?;
            let width = values.dims().last().copied().unwrap_or(0);
            let flat = values.flatten_all().and_then(|flat| flat.to_vec1::<f32>());
            let flat = flat.map_err(WeightsError::from)?;
            let vectors = flat.chunks_exact(width.max(1)).map(Arc::from).collect();
            tensors.push((tensor.clone(), vectors));
        }
        Ok(Self { tensors })
    }

    /// The vectors for the text encoder that ComfyUI calls `key` (`clip_l`, `clip_g`): the tensor of this name, those
    /// that came with a LoRA for it, or the file's first, whatever it is called; its width may be another encoder's.
    pub fn vectors(&self, key: &str) -> Vec<Arc<[f32]>> {
        let named = |wanted: &dyn Fn(&str) -> bool| -> Vec<Arc<[f32]>> {
            let tensors = self.tensors.iter().filter(|(name, _)| wanted(name));
            tensors.flat_map(|(_, vectors)| vectors.iter().cloned()).collect()
        };
        let bundled = |end: &str| {
            let of_end = |name: &str| {
                name.starts_with(BUNDLED) && name.strip_suffix(end).is_some_and(|start| start.ends_with('.'))
            };
            named(&of_end)
        };
        let first = || self.tensors.first().map(|(_, vectors)| vectors.clone());
        let of_key = self.tensors.iter().find(|(name, _)| name == key).map(|(_, vectors)| vectors.clone());
        let found = of_key.or_else(|| {
            [bundled("string_to_param.*"), bundled(key)].into_iter().find(|found| !found.is_empty())
        });
        found.or_else(first).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use candle_core::Tensor;

    use super::*;

    fn embedding(tensors: &[(&str, Tensor)]) -> Result<Embedding, EmbeddingError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("made.safetensors");
        let tensors: HashMap<&str, Tensor> = tensors.iter().cloned().collect();
        candle_core::safetensors::save(&tensors, &path).unwrap();
        Embedding::read(&path)
    }

    fn rows(values: &[&[f32]]) -> Tensor {
        let rows: Vec<Tensor> = values.iter().map(|row| Tensor::new(*row, &Device::Cpu).unwrap()).collect();
        Tensor::stack(&rows, 0).unwrap()
    }

    fn plain(vectors: &[Arc<[f32]>]) -> Vec<Vec<f32>> {
        vectors.iter().map(|vector| vector.to_vec()).collect()
    }

    #[test]
    fn each_encoder_has_the_tensor_of_its_name() {
        let two = embedding(&[("clip_g", rows(&[&[1.0, 2.0], &[3.0, 4.0]])), ("clip_l", rows(&[&[5.0]]))]);
        let two = two.unwrap();
        assert_eq!(plain(&two.vectors("clip_g")), [[1.0, 2.0], [3.0, 4.0]]);
        assert_eq!(plain(&two.vectors("clip_l")), [[5.0]]);
    }

    #[test]
    fn a_single_tensor_is_for_every_encoder_and_may_be_one_vector_in_half_precision() {
        let one = Tensor::new(&[0.5f32, -1.0], &Device::Cpu).unwrap().to_dtype(DType::F16).unwrap();
        let one = embedding(&[("emb_params", one)]).unwrap();
        for key in ["clip_l", "clip_g"] {
            assert_eq!(plain(&one.vectors(key)), [[0.5, -1.0]]);
        }
    }

    #[test]
    fn what_came_with_a_lora_is_found_by_its_ending() {
        let bundled = embedding(&[
            ("bundle_emb.name.clip_g", rows(&[&[1.0, 2.0]])),
            ("bundle_emb.name.clip_l", rows(&[&[3.0, 4.0]])),
        ]);
        let bundled = bundled.unwrap();
        assert_eq!(plain(&bundled.vectors("clip_l")), [[3.0, 4.0]]);
        assert_eq!(plain(&bundled.vectors("clip_g")), [[1.0, 2.0]]);
    }

    #[test]
    fn what_is_no_embedding_is_refused() {
        let image = Tensor::zeros((1, 2, 2), DType::F32, &Device::Cpu).unwrap();
        assert!(matches!(embedding(&[("image", image)]), Err(EmbeddingError::Rank { rank: 3, .. })));
        assert!(matches!(embedding(&[]), Err(EmbeddingError::Empty { .. })));
    }
}
