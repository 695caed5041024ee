//! What the golden tests share: reading the files that `scripts/golden` makes, and comparing tensors.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use darkroom_models::weights::{WeightFile, Weights};
use serde::de::DeserializeOwned;

/// Relative error allowed against the reference library: both compute in `f32`, and the sums of these networks
/// in another order differ by some 1e-6.
pub(crate) const REFERENCE_TOLERANCE: f32 = 1e-4;
/// Relative error allowed between a row in a batch and the same row alone: the same sums in the same order, but
/// for kernels that divide the work by its size.
pub(crate) const BATCH_TOLERANCE: f32 = 1e-5;

/// A file or folder of golden data.
pub(crate) fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// A network's folder as diffusers writes it: config and weights.
pub(crate) fn folder<C: DeserializeOwned>(name: &str) -> (C, Weights) {
    let folder = golden(name);
    let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let file = ["model.safetensors", "diffusion_pytorch_model.safetensors"]
        .map(|file| folder.join(file))
        .into_iter()
        .find(|file| file.exists())
        .unwrap();
    let file = Arc::new(WeightFile::open(&file).unwrap());
    (serde_json::from_str(&config).unwrap(), Weights::from_file(file, &Device::Cpu))
}

/// Named inputs and outputs of the reference.
pub(crate) struct Cases(std::collections::HashMap<String, Tensor>);

impl Cases {
    pub(crate) fn open(name: &str) -> Self {
        Self(candle_core::safetensors::load(golden(name), &Device::Cpu).unwrap())
    }

    pub(crate) fn get(&self, name: impl AsRef<str>) -> Tensor {
        let name = name.as_ref();
        self.0.get(name).unwrap_or_else(|| panic!("no '{name}' in the golden file")).clone()
    }

    pub(crate) fn find(&self, name: &str) -> Option<Tensor> {
        self.0.get(name).cloned()
    }
}

/// `‖actual − expected‖ / ‖expected‖`; infinite where shapes differ or anything is not finite.
pub(crate) fn relative_error(actual: &Tensor, expected: &Tensor) -> f32 {
    if actual.dims() != expected.dims() {
        return f32::INFINITY;
    }
    let norm = |x: &Tensor| {
        let sum = x.to_dtype(DType::F64).unwrap().sqr().unwrap().sum_all().unwrap();
        sum.to_scalar::<f64>().unwrap().sqrt()
    };
    let error = norm(&(actual - expected).unwrap()) / norm(expected);
    if error.is_finite() { error as f32 } else { f32::INFINITY }
}

/// Fails unless `actual` is within `tolerance` of `expected`.
#[track_caller]
pub(crate) fn assert_close(what: &str, actual: &Tensor, expected: &Tensor, tolerance: f32) {
    let error = relative_error(actual, expected);
    println!("{what}: relative error {error:.1e}");
    assert!(
        error <= tolerance,
        "{what}: relative error {error:e} above {tolerance:e} (shapes {:?}, {:?})",
        actual.dims(),
        expected.dims()
    );
}
