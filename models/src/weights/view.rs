//! What a network loads from: tensors under canonical names, each taken at most once.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Tensor};
use darkroom_kernels::{Fp8Weight, Precision};

use super::copy::Order;
use super::kept::{Kept, KeptOrder, KeptTensor};
use super::matrix::{Matrix, fits_eight_bits};
use super::rows::Rows;
use super::stored::{Source, Stored, Transform};
use super::{TensorInfo, WeightFile, WeightsError};
use crate::arithmetic::{Arithmetic, ComputeType, Held, Range as NumberRange};

struct Shared {
    origin: String,
    left: Mutex<BTreeMap<String, Source>>,
    /// What was taken, where it is wanted.
    kept: Mutex<Option<BTreeMap<String, KeptTensor>>>,
}

/// A scope of canonical names (`down_blocks.0.resnets.1`), as networks walk them.
#[derive(Clone)]
pub struct Weights {
    shared: Arc<Shared>,
    prefix: String,
    /// Where tensors go.
    device: Device,
    arithmetic: Arithmetic,
    /// Whether blocks of deep networks are read when their turn comes.
    streamed: bool,
    /// Whether it speaks of a card that need not be there.
    planned: bool,
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
        let left = tensors.into_iter().map(|(name, stored)| (name, Source::Stored(stored))).collect();
        Self::over(origin.to_owned(), left, device.clone(), Arithmetic::default())
    }

    fn over(origin: String, left: BTreeMap<String, Source>, device: Device, arithmetic: Arithmetic) -> Self {
        let shared = Shared { origin, left: Mutex::new(left), kept: Mutex::default() };
        Self {
            shared: Arc::new(shared),
            prefix: String::new(),
            device,
            arithmetic,
            streamed: false,
            planned: false,
        }
    }

    /// What a network took, to be taken once more.
    pub(super) fn from_kept(kept: Kept) -> Self {
        let Kept { origin, device, arithmetic, tensors, streamed: _ } = kept;
        let left = tensors.into_iter().map(|(name, kept)| (name, Source::Kept(kept))).collect();
        Self::over(origin, left, device, arithmetic)
    }

    /// From now on a handle on every tensor that is taken is kept too.
    pub fn keep(&self) {
        *self.shared.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(BTreeMap::new());
    }

    /// What was taken since [`Self::keep`].
    pub fn kept(&self) -> Kept {
        let tensors = self.shared.kept.lock().unwrap_or_else(PoisonError::into_inner).take();
        Kept {
            origin: self.shared.origin.clone(),
            device: self.device.clone(),
            arithmetic: self.arithmetic,
            tensors: tensors.unwrap_or_default(),
            streamed: self.streamed,
        }
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
        Self { prefix, ..self.clone() }
    }

    /// The same view for a network that computes in `compute_type`, which may be asked for numbers as large as
    /// `range` has.
    pub fn computing(&self, compute_type: ComputeType, range: NumberRange) -> Self {
        let stored = self.stored_type();
        let arithmetic = match self.planned {
            true => compute_type.on_card(true, stored, range),
            false => compute_type.on(self.device(), stored, range),
        };
        Self { arithmetic, ..self.clone() }
    }

    /// The same view for a network on another device than the file was opened for.
    pub fn on(&self, device: &Device) -> Self {
        Self { device: device.clone(), ..self.clone() }
    }

    /// The same view as if it were of a network on a GPU that multiplies `bf16`: what [`Self::bytes`] and
    /// [`Self::activations`] would be there. Nothing is to be loaded from it.
    pub fn as_on_card(&self) -> Self {
        Self { planned: true, ..self.clone() }
    }

    /// Whether the network is on a GPU, or is planned for one.
    fn on_card(&self) -> bool {
        self.planned || self.device.is_cuda()
    }

    /// The same view for a network whose blocks are read from the file each time that their turn comes.
    pub fn streaming(&self) -> Self {
        Self { streamed: true, ..self.clone() }
    }

    /// Whether blocks are read when their turn comes.
    pub(crate) fn is_streamed(&self) -> bool {
        self.streamed
    }

    /// What is left in this scope, taken from the rest: a view of its own, to be [forked](Self::forked).
    pub(crate) fn detached(&self) -> Self {
        let mut left = self.lock();
        let own: Vec<String> = left.keys().filter(|name| self.within(name).is_some()).cloned().collect();
        let own = own.into_iter().filter_map(|name| left.remove_entry(&name)).collect();
        drop(left);
        let view = Self::over(self.shared.origin.clone(), own, self.device.clone(), self.arithmetic);
        Self { prefix: self.prefix.clone(), ..view }
    }

    /// A view from which the same can be taken again.
    pub(crate) fn forked(&self) -> Self {
        let left = self.lock().clone();
        let view = Self::over(self.shared.origin.clone(), left, self.device.clone(), self.arithmetic);
        Self { prefix: self.prefix.clone(), ..view }
    }

    /// Keeps the shapes of what is left in this scope, for those who only bind to layers: no content.
    pub(crate) fn note_shapes(&self) -> Result<(), WeightsError> {
        for name in self.names() {
            let Some(shape) = self.shape(&name) else { continue };
            let dtype = self.lock().get(&self.full(&name)).and_then(Source::dtype).unwrap_or(DType::F32);
            let tensor = Tensor::zeros(1, dtype, &self.device)?.broadcast_as(shape)?;
            let order = KeptOrder::Canonical;
            self.note_as(&name, KeptTensor { tensor, eight_bit: None, streamed: true, order });
        }
        Ok(())
    }

    /// What is wrong with a tensor that is missing or of another shape than others of its kind.
    pub(crate) fn misfit(
        &self,
        name: &str,
        found: Option<Vec<usize>>,
        expected: Option<Vec<usize>>,
    ) -> WeightsError {
        let (file, name) = (self.shared.origin.clone(), self.full(name));
        match found {
            None => WeightsError::Missing { file, name },
            Some(found) => WeightsError::Shape { file, name, found, expected: expected.unwrap_or_default() },
        }
    }

    /// The same view for layers of few rows, whose activations are `f32` and whose products are not rounded.
    pub(crate) fn in_full(&self) -> Self {
        Self { arithmetic: Arithmetic::full(&self.device), ..self.clone() }
    }

    /// How precisely a network that loads from here is to form products on a CPU.
    pub fn precision(&self) -> Precision {
        self.arithmetic.products
    }

    /// The type of the activations of a network that loads from here.
    pub fn activations(&self) -> DType {
        self.arithmetic.activations
    }

    /// The type that most bytes of this scope are stored in.
    fn stored_type(&self) -> DType {
        let mut bytes = [(DType::F32, 0u64), (DType::F16, 0), (DType::BF16, 0)];
        for (name, source) in self.lock().iter() {
            if self.within(name).is_none() {
                continue;
            }
            let dtype = source.dtype();
            for (known, sum) in &mut bytes {
                *sum += if Some(*known) == dtype { source.bytes().unwrap_or(0) } else { 0 };
            }
        }
        bytes.into_iter().max_by_key(|(_, bytes)| *bytes).map_or(DType::F32, |(dtype, _)| dtype)
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

    /// Bytes that the tensors of this scope that nothing took yet will take: each in the type that a network which loads
    /// from here holds its matrices in.
    pub fn bytes(&self) -> u64 {
        let left = self.lock();
        let tensors = left.iter().filter(|(name, _)| self.within(name).is_some());
        let bytes = |source: &Source| {
            let stored = source.bytes()?;
            let Some(from) = source.dtype() else { return Some(stored) };
            if source.is_eight_bit_matrix() {
                return Some(stored);
            }
            let eight_bit = self.arithmetic.held == Held::EightBit
                && source.shape().is_some_and(|shape| fits_eight_bits(&shape));
            let to = self.arithmetic.kernel_type(self.on_card(), from).size_in_bytes();
            let to = match eight_bit {
                true if !self.on_card() => 1 + from.size_in_bytes(), // what was rounded stays beside it
                true => 1,
                false => to,
            };
            Some((stored / from.size_in_bytes() as u64).saturating_mul(to as u64))
        };
        tensors.filter_map(|(_, source)| bytes(source)).sum()
    }

    /// `name` without this scope's prefix, if it is in this scope.
    fn within<'a>(&self, name: &'a str) -> Option<&'a str> {
        if self.prefix.is_empty() {
            return Some(name);
        }
        name.strip_prefix(&self.prefix)?.strip_prefix('.')
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Source>> {
        self.shared.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn claim(&self, name: &str) -> Result<Source, WeightsError> {
        let full = self.full(name);
        self.lock()
            .remove(&full)
            .ok_or_else(|| WeightsError::Missing { file: self.shared.origin.clone(), name: full })
    }

    /// A kept tensor, which must have the shape and the order that the network asks for.
    fn claim_kept(
        &self,
        name: &str,
        kept: KeptTensor,
        order: KeptOrder,
        shape: &[usize],
    ) -> Result<Tensor, WeightsError> {
        if kept.streamed {
            let (file, name) = (self.shared.origin.clone(), self.full(name));
            return Err(WeightsError::Streamed { file, name });
        }
        if kept.order != order || kept.shape() != shape {
            return Err(WeightsError::Shape {
                file: self.shared.origin.clone(),
                name: self.full(name),
                found: kept.shape(),
                expected: shape.to_vec(),
            });
        }
        self.note(name, &kept.tensor, order);
        Ok(kept.tensor)
    }

    fn note(&self, name: &str, tensor: &Tensor, order: KeptOrder) {
        self.note_as(name, KeptTensor { tensor: tensor.clone(), eight_bit: None, streamed: false, order });
    }

    fn note_as(&self, name: &str, tensor: KeptTensor) {
        if let Some(kept) = self.shared.kept.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            kept.insert(self.full(name), tensor);
        }
    }

    /// Takes the tensor `name`, which must have shape `shape`; in its stored type.
    ///
    /// # Errors
    /// When it is missing, has another shape (found before anything is copied) or type, or holds NaN or
    /// infinity.
    pub fn take(&self, name: &str, shape: &[usize]) -> Result<Tensor, WeightsError> {
        self.take_with(name, shape, Ok)
    }

    /// Takes the matrix `name`, as [`Weights::take`], in what the network's products take. `[out, in, 1, 1]`, a 1×1
    /// convolution's, is one too.
    ///
    /// # Errors
    /// As [`Weights::take`], and when it is to be in 8 bits and the device has no such products.
    pub fn take_matrix(&self, name: &str, shape: &[usize]) -> Result<Matrix, WeightsError> {
        let (out, inner) = (shape.first().copied().unwrap_or(0), shape.get(1).copied().unwrap_or(0));
        let matrix = |tensor: Tensor| tensor.reshape((out, inner));
        let stored_so = self.lock().get(&self.full(name)).is_some_and(Source::is_stored_eight_bit);
        if stored_so {
            return self.take_stored_eight_bit(name, shape);
        }
        if self.arithmetic.held != Held::EightBit || !fits_eight_bits(shape) {
            return Ok(Matrix::Plain(matrix(
                self.take_with(name, shape, |tensor| self.converted(&tensor))?,
            )?));
        }
        // What a LoRA did not change is shared.
        let shared = match self.lock().get(&self.full(name)) {
            Some(Source::Kept(kept)) => kept.eight_bit.clone(),
            _ => None,
        };
        // LoRAs are merged into what was rounded; the host has room for it.
        let tensor = self.on(&Device::Cpu).take(name, shape)?;
        let weight = match shared {
            Some(weight) => weight,
            None => Fp8Weight::quantize(&matrix(tensor.to_device(&self.device)?)?)?,
        };
        let eight_bit = Some(weight.clone());
        let order = KeptOrder::Canonical;
        self.note_as(name, KeptTensor { tensor, eight_bit, streamed: false, order });
        Ok(Matrix::EightBit(weight))
    }

    /// A matrix that is stored in 8 bits: multiplied as it is where the network computes so, else widened in its products.
    fn take_stored_eight_bit(&self, name: &str, shape: &[usize]) -> Result<Matrix, WeightsError> {
        let weight = match self.claim(name)? {
            Source::Kept(KeptTensor { eight_bit: Some(weight), .. }) => weight,
            Source::Kept(kept) => return Ok(Matrix::Plain(kept.tensor)),
            Source::Stored(stored) => {
                let info = stored.file.info(&stored.name)?;
                if stored.shape().as_deref() != Some(shape) {
                    return Err(mismatch(&stored, info, shape));
                }
                stored.read_eight_bit(info, shape, &self.device)?
            }
        };
        let tensor = weight.values().reshape(shape)?;
        let (eight_bit, order) = (Some(weight.clone()), KeptOrder::Canonical);
        self.note_as(name, KeptTensor { tensor, eight_bit, streamed: false, order });
        // A CPU only imitates products of 8 bits.
        let whole = self.arithmetic.held == Held::EightBit && fits_eight_bits(shape) && self.device.is_cuda();
        Ok(if whole { Matrix::EightBit(weight.spread()?) } else { Matrix::Widened(weight) })
    }

    /// Takes the table `name`, of which rows are looked up: of streamed weights it stays in its file.
    ///
    /// # Errors
    /// As [`Weights::take`]; what a streamed table's rows hold shows when they are looked up.
    pub(crate) fn take_rows(&self, name: &str, shape: [usize; 2]) -> Result<Rows, WeightsError> {
        let source = self.lock().get(&self.full(name)).cloned();
        let stored = match source {
            Some(Source::Stored(stored)) if self.streamed && Rows::can_stream(&stored) => stored,
            _ => return Ok(Rows::Held(self.take(name, &shape)?)),
        };
        let info = stored.file.info(&stored.name)?;
        if info.shape != shape {
            return Err(mismatch(&stored, info, &shape));
        }
        self.claim(name)?;
        Ok(Rows::Streamed(stored))
    }

    fn take_with(
        &self,
        name: &str,
        shape: &[usize],
        convert: impl FnOnce(Tensor) -> Result<Tensor, WeightsError>,
    ) -> Result<Tensor, WeightsError> {
        let stored = match self.claim(name)? {
            Source::Stored(stored) => stored,
            Source::Kept(kept) => return self.claim_kept(name, kept, KeptOrder::Canonical, shape),
        };
        let info = stored.file.info(&stored.name)?;
        if stored.shape().as_deref() != Some(shape) {
            return Err(mismatch(&stored, info, shape));
        }
        let tensor = convert(stored.read(info, shape, &self.device)?)?;
        self.note(name, &tensor, KeptOrder::Canonical);
        Ok(tensor)
    }

    /// A weight in the type that products are formed in.
    fn converted(&self, weight: &Tensor) -> Result<Tensor, WeightsError> {
        Ok(weight.to_dtype(self.arithmetic.kernel_type(self.on_card(), weight.dtype()))?)
    }

    /// Takes the convolution weight `name` of shape `[out, in, height, width]` and gives it channels-last,
    /// `[out, height, width, in]`, reordered while it is copied.
    ///
    /// # Errors
    /// As [`Weights::take`].
    pub fn take_conv(&self, name: &str, shape: [usize; 4]) -> Result<Tensor, WeightsError> {
        let stored = match self.claim(name)? {
            Source::Stored(stored) => stored,
            Source::Kept(kept) => return self.claim_kept(name, kept, KeptOrder::ChannelsLast, &shape),
        };
        let info = stored.file.info(&stored.name)?;
        if stored.transform != Transform::None || info.shape != shape {
            return Err(mismatch(&stored, info, &shape));
        }
        let [out, inputs, height, width] = shape;
        let order = Order::ChannelsLast { inputs, taps: height * width };
        let target = [out, height, width, inputs];
        let tensor =
            self.converted(&stored.file.read(&stored.name, info, None, order, &target, &self.device)?)?;
        self.note(name, &tensor, KeptOrder::ChannelsLast);
        Ok(tensor)
    }

    /// Takes the weight `name`, `[out, in, frames, height, width]`, of a convolution that is causal in time, and gives
    /// what it comes to for a picture with nothing before it: its last frame, channels-last, `[out, height, width, in]`.
    ///
    /// # Errors
    /// As [`Weights::take`]; of the other frames nothing but their shape is checked.
    pub fn take_conv3d_last(&self, name: &str, shape: [usize; 5]) -> Result<Tensor, WeightsError> {
        let [out, inputs, frames, height, width] = shape;
        let stored = match self.claim(name)? {
            Source::Stored(stored) => stored,
            Source::Kept(kept) => {
                let shape = [out, inputs, height, width];
                return self.claim_kept(name, kept, KeptOrder::ChannelsLast, &shape);
            }
        };
        let info = stored.file.info(&stored.name)?;
        if stored.transform != Transform::None || info.shape != shape || frames == 0 {
            return Err(mismatch(&stored, info, &shape));
        }
        let order = Order::LastFrame { inputs, frames, taps: height * width };
        let target = [out, height, width, inputs];
        let tensor =
            self.converted(&stored.file.read(&stored.name, info, None, order, &target, &self.device)?)?;
        self.note(name, &tensor, KeptOrder::ChannelsLast);
        Ok(tensor)
    }

    /// Leaves `name` out, if it is there: the network has it, and what is asked of it here does not use it.
    pub(crate) fn leave_out(&self, name: &str) {
        self.lock().remove(&self.full(name));
    }

    /// Fails when tensors are left in this scope that nothing took.
    pub fn finish(&self) -> Result<(), WeightsError> {
        let left = self.lock();
        let mut unused = left.iter().filter(|(name, _)| self.within(name).is_some());
        match unused.next() {
            None => Ok(()),
            Some((name, first)) => Err(WeightsError::Unexpected {
                file: self.shared.origin.clone(),
                count: 1 + unused.count(),
                first: match first {
                    Source::Stored(stored) => stored.name.clone(),
                    Source::Kept(_) => name.clone(),
                },
            }),
        }
    }

    /// Where this view's tensors go.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The layer whose tensors are in this scope: what adapters call it.
    pub(crate) fn layer(&self) -> Arc<str> {
        self.prefix.as_str().into()
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
