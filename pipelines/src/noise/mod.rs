//! Random numbers of a picture: the starting noise of a seed and the noise that stochastic samplers add at each
//! step, bit for bit those of torch's CPU generator, so that a seed means the same picture as in ComfyUI.
//!
//! ComfyUI draws the noise of a whole batch at once. Here every sample lives alone, so it names its place with a
//! [`BatchPosition`] and gets its slice of that draw.

mod brownian;
mod seed_sequence;
mod torch_generator;
mod torch_normal;

use std::ops::Range;

pub use brownian::BrownianNoise;
pub use torch_generator::TorchGenerator;

use candle_core::{Device, Tensor};

/// Most values one draw may have: 2^28, a batch of 64 latents of 4096×4096 pixels. The limit keeps a hostile
/// request from allocating without bound; real batches stay far below it.
pub const MAX_DRAW: usize = 1 << 28;

/// What can go wrong when noise is drawn.
#[derive(Debug, thiserror::Error)]
pub enum NoiseError {
    /// The position lies outside its own batch.
    #[error("sample {index} of a batch of {size} does not exist; the index must be below the size")]
    Position {
        /// Index asked for.
        index: usize,
        /// Size of the batch.
        size: usize,
    },
    /// The batch's draw would have no values or more than [`MAX_DRAW`].
    #[error(
        "noise of shape {shape:?} for a batch of {size} has no values or more than {MAX_DRAW}; \
         use smaller pictures or fewer of them"
    )]
    Draw {
        /// Shape of one sample.
        shape: Vec<usize>,
        /// Size of the batch.
        size: usize,
    },
    /// Brownian noise was asked for over an interval that is empty or not finite.
    #[error("Brownian noise needs finite sigmas with a positive one among them, got {0:?}")]
    Interval(Vec<f32>),
    /// Brownian noise was asked for between two sigmas that are equal or not finite.
    #[error(
        "Brownian noise between sigma {sigma} and {sigma_next} is undefined; the two must be finite and differ"
    )]
    Step {
        /// Start of the step.
        sigma: f32,
        /// End of the step.
        sigma_next: f32,
    },
    /// The tensor library failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// Where a sample stands in the batch it was asked for in: ComfyUI draws the noise of all `size` samples at once
/// and sample `index` takes its slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct BatchPosition {
    /// Which sample, from 0.
    pub index: usize,
    /// How many samples the batch has.
    pub size: usize,
}

impl BatchPosition {
    /// A sample that was asked for alone.
    pub const ALONE: Self = Self { index: 0, size: 1 };
}

impl Default for BatchPosition {
    fn default() -> Self {
        Self::ALONE
    }
}

/// A sample's part of a batch's draws.
#[derive(Debug, Clone)]
pub(crate) struct Slice {
    /// Shape of the sample.
    shape: Vec<usize>,
    /// Values in the draw of the whole batch.
    total: usize,
    /// Which of them are the sample's.
    range: Range<usize>,
}

impl Slice {
    fn new(position: BatchPosition, shape: &[usize]) -> Result<Self, NoiseError> {
        let BatchPosition { index, size } = position;
        if index >= size {
            return Err(NoiseError::Position { index, size });
        }
        let numel = shape.iter().try_fold(1usize, |product, &n| product.checked_mul(n));
        match numel.and_then(|numel| Some((numel, numel.checked_mul(size)?))) {
            Some((numel, total)) if (1..=MAX_DRAW).contains(&total) => {
                Ok(Self { shape: shape.to_vec(), total, range: index * numel..(index + 1) * numel })
            }
            _ => Err(NoiseError::Draw { shape: shape.to_vec(), size }),
        }
    }

    fn draw(&self, generator: &mut TorchGenerator) -> Vec<f32> {
        generator.randn_range(self.total, self.range.clone())
    }

    fn tensor(&self, values: Vec<f32>, device: &Device) -> Result<Tensor, NoiseError> {
        Ok(Tensor::from_vec(values, self.shape.as_slice(), device)?)
    }
}

/// Noise a sample starts from: its slice of `torch.randn([size, *shape])` with a CPU generator of this seed, f32.
///
/// # Errors
/// The position lies outside the batch, the draw is empty or larger than [`MAX_DRAW`], or the copy to the device
/// fails.
pub fn initial_noise(
    seed: u64,
    position: BatchPosition,
    shape: &[usize],
    device: &Device,
) -> Result<Tensor, NoiseError> {
    let slice = Slice::new(position, shape)?;
    let values = slice.draw(&mut TorchGenerator::new(seed));
    slice.tensor(values, device)
}

/// Noise of the place `index` of a numbered batch (ComfyUI's `batch_index`): draw number `index` of a generator that
/// draws one sample of this shape after another. Where samples have a multiple of 16 values, which all but the oddest
/// have, that is sample `index` of any longer batch.
///
/// # Errors
/// The draws up to this one are empty or have more than [`MAX_DRAW`] values, or the copy to the device fails.
pub fn indexed_noise(
    seed: u64,
    index: usize,
    shape: &[usize],
    device: &Device,
) -> Result<Tensor, NoiseError> {
    // Draws that do not count: the bound on their number is the batch's.
    let size = index.checked_add(1).ok_or_else(|| NoiseError::Draw { shape: shape.to_vec(), size: index })?;
    Slice::new(BatchPosition { index, size }, shape)?;
    let one = Slice::new(BatchPosition::ALONE, shape)?;
    let mut generator = TorchGenerator::new(seed);
    for _ in 0..index {
        generator.randn_range(one.total, 0..0);
    }
    let values = one.draw(&mut generator);
    one.tensor(values, device)
}

/// Noise that a stochastic sampler adds on its way from one sigma to the next.
pub trait StepNoise: Send {
    /// Standard normal noise of one sample for the step from `sigma` to `sigma_next`.
    ///
    /// # Errors
    /// The sigmas do not make a step, or the copy to the device fails.
    fn next(&mut self, sigma: f32, sigma_next: f32) -> Result<Tensor, NoiseError>;
}

/// Independent noise at every draw: k-diffusion's `default_noise_sampler`, a generator of its own with the
/// picture's seed. Its first draw therefore equals the starting noise, as in ComfyUI up to 0.3.64.
#[derive(Debug)]
pub struct DefaultNoise {
    generator: TorchGenerator,
    slice: Slice,
    device: Device,
}

impl DefaultNoise {
    /// Noise for a sample of `shape` at `position`.
    ///
    /// # Errors
    /// The position lies outside the batch, or the draw is empty or larger than [`MAX_DRAW`].
    pub fn new(
        seed: u64,
        position: BatchPosition,
        shape: &[usize],
        device: &Device,
    ) -> Result<Self, NoiseError> {
        let slice = Slice::new(position, shape)?;
        Ok(Self { generator: TorchGenerator::new(seed), slice, device: device.clone() })
    }
}

impl StepNoise for DefaultNoise {
    fn next(&mut self, _sigma: f32, _sigma_next: f32) -> Result<Tensor, NoiseError> {
        let values = self.slice.draw(&mut self.generator);
        self.slice.tensor(values, &self.device)
    }
}
