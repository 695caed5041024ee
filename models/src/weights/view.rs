//! What a network loads from: tensors under canonical names, each taken at most once.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::{Arc, Mutex};

use candle_core::{Device, Tensor};

use super::{WeightFile, WeightsError};

/// What to do with a stored tensor to get the canonical one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transform {
    /// Nothing.
    None,
    /// `[a, b] -> [b, a]`.
    Transpose,
    /// Rows `start .. start + len` of the first dimension (packed q, k, v projections).
    Rows {
        /// First row.
        start: usize,
        /// Number of rows.
        len: usize,
    },
    /// `[out, in, 1, 1] -> [out, in]`: a 1×1 convolution used as a linear layer.
    Squeeze,
}

/// Where a canonical tensor is stored.
#[derive(Clone)]
pub struct Stored {
    /// The file that holds it.
    pub file: Arc<WeightFile>,
    /// Its name there.
    pub name: String,
    /// How to make it canonical.
    pub transform: Transform,
}

struct Shared {
    origin: String,
    device: Device,
    left: Mutex<BTreeMap<String, Stored>>,
}

/// A scope of canonical names (`down_blocks.0.resnets.1`), as networks walk them.
#[derive(Clone)]
pub struct Weights {
    shared: Arc<Shared>,
    prefix: String,
}

impl Weights {
    /// A view of `tensors` (canonical name → where it is), for a network on `device`. `origin` is the file or
    /// folder that errors speak of.
    pub fn new(origin: &str, tensors: BTreeMap<String, Stored>, device: &Device) -> Self {
        let shared = Shared { origin: origin.to_owned(), device: device.clone(), left: Mutex::new(tensors) };
        Self { shared: Arc::new(shared), prefix: String::new() }
    }

    /// All tensors of one file under their own names.
    pub fn from_file(file: Arc<WeightFile>, device: &Device) -> Self {
        let tensors = file
            .header()
            .tensors
            .keys()
            .map(|name| {
                let stored = Stored { file: file.clone(), name: name.clone(), transform: Transform::None };
                (name.clone(), stored)
            })
            .collect();
        Self::new(file.name(), tensors, device)
    }

    /// The scope `self.prefix + segment`.
    pub fn scope(&self, segment: impl Display) -> Self {
        let prefix =
            if self.prefix.is_empty() { segment.to_string() } else { format!("{}.{segment}", self.prefix) };
        Self { shared: self.shared.clone(), prefix }
    }

    fn full(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}.{name}", self.prefix) }
    }

    /// Whether `name` is there (and not taken yet).
    pub fn contains(&self, name: &str) -> bool {
        self.lock().contains_key(&self.full(name))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Stored>> {
        self.shared.left.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Takes the tensor `name`, which must have shape `shape`; in its stored type.
    pub fn take(&self, name: &str, shape: &[usize]) -> Result<Tensor, WeightsError> {
        let full = self.full(name);
        let stored = self
            .lock()
            .remove(&full)
            .ok_or_else(|| WeightsError::Missing { file: self.shared.origin.clone(), name: full })?;
        let tensor = stored.file.tensor(&stored.name, &self.shared.device)?;
        let tensor = match stored.transform {
            Transform::None => tensor,
            Transform::Transpose => tensor.t()?.contiguous()?,
            Transform::Rows { start, len } => tensor.narrow(0, start, len)?.contiguous()?,
            Transform::Squeeze => tensor.flatten_from(1)?,
        };
        if tensor.dims() != shape {
            return Err(WeightsError::Shape {
                file: stored.file.name().to_owned(),
                name: stored.name,
                found: tensor.dims().to_vec(),
                expected: shape.to_vec(),
            });
        }
        Ok(tensor)
    }

    /// Fails when tensors are left in this scope that nothing took.
    pub fn finish(&self) -> Result<(), WeightsError> {
        let left = self.lock();
        let mut unused =
            left.iter().filter(|(name, _)| self.prefix.is_empty() || name.starts_with(&self.prefix));
        match unused.next() {
            None => Ok(()),
            Some((_, first)) => Err(WeightsError::Unexpected {
                file: self.shared.origin.clone(),
                count: 1 + unused.count(),
                first: first.name.clone(),
            }),
        }
    }

    /// Where this view's tensors go.
    pub fn device(&self) -> &Device {
        &self.shared.device
    }
}
