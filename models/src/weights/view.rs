//! What a network loads from: tensors under canonical names, each taken at most once.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use candle_core::{Device, Tensor};
use darkroom_kernels::Precision;

use super::copy::Order;
use super::{TensorInfo, WeightFile, WeightsError};

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
    /// `[out, in, 1, 1] -> [out, in]`: a 1×1 convolution used as a linear layer. `[out, in]` stays.
    Squeeze,
}

/// Where a canonical tensor is stored.
#[derive(Debug, Clone)]
pub struct Stored {
    /// The file that holds it.
    pub file: Arc<WeightFile>,
    /// Its name there.
    pub name: String,
    /// How to make it canonical.
    pub transform: Transform,
}

impl Stored {
    /// The canonical tensor's shape; `None` when the tensor is missing or its shape does not allow the
    /// transform.
    pub fn shape(&self) -> Option<Vec<usize>> {
        let shape = &self.file.info(&self.name).ok()?.shape;
        match (&self.transform, shape.as_slice()) {
            (Transform::None, _) => Some(shape.clone()),
            (Transform::Transpose, [rows, columns]) => Some(vec![*columns, *rows]),
            (Transform::Rows { start, len }, [rows, rest @ ..]) if start.checked_add(*len)? <= *rows => {
                Some(std::iter::once(len).chain(rest).copied().collect())
            }
            (Transform::Squeeze, [out, input] | [out, input, 1, 1]) => Some(vec![*out, *input]),
            _ => None,
        }
    }

    fn read(&self, info: &TensorInfo, shape: &[usize], device: &Device) -> Result<Tensor, WeightsError> {
        let (rows, order): (Option<Range<usize>>, Order) = match (&self.transform, info.shape.as_slice()) {
            (Transform::Transpose, [rows, columns]) => {
                (None, Order::Transposed { rows: *rows, columns: *columns })
            }
            (Transform::Rows { start, len }, _) => (Some(*start..start + len), Order::Stored),
            _ => (None, Order::Stored),
        };
        self.file.read(&self.name, info, rows, order, shape, device)
    }
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
    precision: Precision,
}

impl std::fmt::Debug for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Weights")
            .field("origin", &self.shared.origin)
            .field("prefix", &self.prefix)
            .field("left", &self.lock().len())
            .finish_non_exhaustive()
    }
}

impl Weights {
    /// A view of `tensors` (canonical name → where it is), for a network on `device`. `origin` is the file or
    /// folder that errors speak of.
    pub fn new(origin: &str, tensors: BTreeMap<String, Stored>, device: &Device) -> Self {
        let shared = Shared { origin: origin.to_owned(), device: device.clone(), left: Mutex::new(tensors) };
        Self { shared: Arc::new(shared), prefix: String::new(), precision: Precision::Full }
    }

    /// All tensors of one file under their own names.
    #[expect(clippy::needless_pass_by_value, reason = "callers have no further use for their handle")]
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
        Self { shared: self.shared.clone(), prefix, precision: self.precision }
    }

    /// The same view for a network whose linear layers and convolutions compute at `precision`.
    pub fn at_precision(&self, precision: Precision) -> Self {
        Self { precision, ..self.clone() }
    }

    /// How precisely a network that loads from here is to compute.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    fn full(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}.{name}", self.prefix) }
    }

    /// Whether `name` is there (and not taken yet).
    pub fn contains(&self, name: &str) -> bool {
        self.lock().contains_key(&self.full(name))
    }

    /// The names in this scope (without its prefix) that nothing took yet, in order.
    pub fn names(&self) -> Vec<String> {
        self.lock().keys().filter_map(|name| self.within(name)).map(str::to_owned).collect()
    }

    /// The canonical shape of `name`, if it is there and not taken yet.
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.lock().get(&self.full(name))?.shape()
    }

    /// Bytes that the tensors of this scope that nothing took yet will take, each in its stored type.
    pub fn bytes(&self) -> u64 {
        let left = self.lock();
        let tensors = left.iter().filter(|(name, _)| self.within(name).is_some());
        let bytes = |stored: &Stored| {
            let elements: usize = stored.shape()?.iter().product();
            Some(
                (elements as u64).saturating_mul(stored.file.info(&stored.name).ok()?.dtype.bits() as u64)
                    / 8,
            )
        };
        tensors.filter_map(|(_, stored)| bytes(stored)).sum()
    }

    /// `name` without this scope's prefix, if it is in this scope.
    fn within<'a>(&self, name: &'a str) -> Option<&'a str> {
        if self.prefix.is_empty() {
            return Some(name);
        }
        name.strip_prefix(&self.prefix)?.strip_prefix('.')
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Stored>> {
        self.shared.left.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn claim(&self, name: &str) -> Result<Stored, WeightsError> {
        let full = self.full(name);
        self.lock()
            .remove(&full)
            .ok_or_else(|| WeightsError::Missing { file: self.shared.origin.clone(), name: full })
    }

    /// Takes the tensor `name`, which must have shape `shape`; in its stored type.
    ///
    /// # Errors
    /// When it is missing, has another shape (found before anything is copied) or type, or holds NaN or
    /// infinity.
    pub fn take(&self, name: &str, shape: &[usize]) -> Result<Tensor, WeightsError> {
        let stored = self.claim(name)?;
        let info = stored.file.info(&stored.name)?;
        if stored.shape().as_deref() != Some(shape) {
            return Err(mismatch(&stored, info, shape));
        }
        stored.read(info, shape, &self.shared.device)
    }

    /// Takes the convolution weight `name` of shape `[out, in, height, width]` and gives it channels-last,
    /// `[out, height, width, in]`, reordered while it is copied.
    ///
    /// # Errors
    /// As [`Weights::take`].
    pub fn take_conv(&self, name: &str, shape: [usize; 4]) -> Result<Tensor, WeightsError> {
        let stored = self.claim(name)?;
        let info = stored.file.info(&stored.name)?;
        if stored.transform != Transform::None || info.shape != shape {
            return Err(mismatch(&stored, info, &shape));
        }
        let [out, inputs, height, width] = shape;
        let order = Order::ChannelsLast { inputs, taps: height * width };
        let target = [out, height, width, inputs];
        stored.file.read(&stored.name, info, None, order, &target, &self.shared.device)
    }

    /// Fails when tensors are left in this scope that nothing took.
    pub fn finish(&self) -> Result<(), WeightsError> {
        let left = self.lock();
        let mut unused = left.iter().filter(|(name, _)| self.within(name).is_some());
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

    /// The file or folder that errors speak of.
    pub fn origin(&self) -> &str {
        &self.shared.origin
    }
}

fn mismatch(stored: &Stored, info: &TensorInfo, expected: &[usize]) -> WeightsError {
    WeightsError::Shape {
        file: stored.file.name().to_owned(),
        name: stored.name.clone(),
        found: stored.shape().unwrap_or_else(|| info.shape.clone()),
        expected: expected.to_vec(),
    }
}
