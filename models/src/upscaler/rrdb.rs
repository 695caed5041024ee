//! RRDBNet: dense blocks at the picture's own size, then doublings.
//!
//! The doublings hold by far the largest tensors, and what they see is a few pixels wide: they are computed in bands
//! of rows with as many rows around them as they see, which gives the same values in bounded memory.

use candle_core::{Result, Tensor};
use darkroom_kernels::{Conv2dGeometry, Padding, conv2d, upsample_nearest_2x};

use super::detect::RrdbConfig;
use super::rectify::Rectifier;
use super::shuffle::unshuffle;
use crate::adapter::Adapters;
use crate::layers::Conv2d;
use crate::weights::{Weights, WeightsError};

/// What blocks multiply their result by before it is added to their input.
const RESIDUAL: f64 = 0.2;
/// Rows of the small picture around a band that its result depends on. Each convolution sees one row further at its
/// own size: two at the final size, and one at each size before, which together are less than three rows.
const AROUND: usize = 3;
/// Bytes of a band's largest tensor.
const BAND_BYTES: usize = 64 << 20;

/// The network.
#[derive(Debug, Clone)]
pub(super) struct Rrdb {
    config: RrdbConfig,
    first: Conv2d,
    blocks: Vec<[Dense; 3]>,
    body: Conv2d,
    doublings: Vec<Conv2d>,
    wide: Conv2d,
    last: Conv2d,
    leaky: Rectifier,
}

impl Rrdb {
    pub(super) fn load(config: &RrdbConfig, weights: &Weights) -> std::result::Result<Self, WeightsError> {
        let filters = config.filters;
        let conv = |name: &str, inputs, outputs| Conv2d::load(&weights.scope(name), inputs, outputs, 3);
        let mut blocks = Vec::with_capacity(config.blocks);
        for block in 0..config.blocks {
            let scope = weights.scope(format!("body.{block}"));
            let dense = |name: &str| Dense::load(config, &scope.scope(name));
            blocks.push([dense("rdb1")?, dense("rdb2")?, dense("rdb3")?]);
        }
        let doublings = (1..=config.doublings).map(|i| conv(&format!("conv_up{i}"), filters, filters));
        Ok(Self {
            config: *config,
            first: conv("conv_first", config.inputs, filters)?,
            blocks,
            body: conv("conv_body", filters, filters)?,
            doublings: doublings.collect::<std::result::Result<_, _>>()?,
            wide: conv("conv_hr", filters, filters)?,
            last: conv("conv_last", filters, config.outputs)?,
            leaky: Rectifier::leaky(),
        })
    }

    /// `[b, h, w, c] -> [b, scale·h, scale·w, outputs]`; the factor of unshuffling divides both sides.
    pub(super) fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        let seen = if self.config.unshuffle > 1 {
            unshuffle(pixels, self.config.unshuffle)?
        } else {
            pixels.clone()
        };
        let features = self.features(&seen)?;
        let (_, _, width, _) = features.dims4()?;
        self.in_bands(&features, band_rows(&self.config, width))
    }

    /// [`Self::enlarge`], `band` rows at a time.
    fn in_bands(&self, features: &Tensor, band: usize) -> Result<Tensor> {
        let (_, height, _, _) = features.dims4()?;
        if band >= height {
            return self.enlarge(features);
        }
        let factor = 1 << self.doublings.len();
        let mut bands = Vec::with_capacity(height.div_ceil(band));
        for start in (0..height).step_by(band) {
            let rows = band.min(height - start);
            let above = start.min(AROUND);
            let below = (height - start - rows).min(AROUND);
            let part = features.narrow(1, start - above, above + rows + below)?.contiguous()?;
            bands.push(self.enlarge(&part)?.narrow(1, above * factor, rows * factor)?.contiguous()?);
        }
        Tensor::cat(&bands, 1)
    }

    /// What the blocks make of it: `[b, h, w, filters]`.
    fn features(&self, seen: &Tensor) -> Result<Tensor> {
        let first = self.first.forward(seen, Adapters::none())?;
        let mut x = first.clone();
        for [one, two, three] in &self.blocks {
            let y = three.forward(&two.forward(&one.forward(&x)?)?)?;
            x = ((y * RESIDUAL)? + x)?;
        }
        self.body.forward(&x, Adapters::none())? + first
    }

    fn enlarge(&self, features: &Tensor) -> Result<Tensor> {
        let mut x = features.clone();
        for conv in &self.doublings {
            let doubled = upsample_nearest_2x(&x)?;
            drop(x);
            x = self.leaky.apply(conv.forward(&doubled, Adapters::none())?)?;
        }
        let wide = self.wide.forward(&x, Adapters::none())?;
        drop(x);
        self.last.forward(&self.leaky.apply(wide)?, Adapters::none())
    }

    /// Most bytes of activations for one picture of `height × width` pixels.
    pub(super) fn forward_bytes(config: &RrdbConfig, height: usize, width: usize) -> usize {
        let (height, width) = (height.div_ceil(config.unshuffle), width.div_ceil(config.unshuffle));
        let pixels = height.saturating_mul(width);
        let (filters, growth) = (config.filters, config.growth);
        // Three inputs that are still to be added to, a dense block's parts, the same side by side, and the result.
        let block = 5 * filters + 8 * growth;
        let seen = config.inputs + config.inputs.div_ceil(config.unshuffle);
        let body = pixels.saturating_mul(block + seen);
        // Features, a band's tensors before and after a convolution, and the result twice.
        let rows = (band_rows(config, width).saturating_add(2 * AROUND)).min(height);
        let factor = 1usize << (2 * config.doublings);
        let band = width.saturating_mul(rows).saturating_mul(factor).saturating_mul(2 * filters);
        let result = pixels.saturating_mul(2 * factor * config.outputs);
        let enlarging = pixels.saturating_mul(filters).saturating_add(band).saturating_add(result);
        body.max(enlarging).saturating_mul(size_of::<f32>())
    }
}

/// Rows of the small picture that are enlarged at a time.
fn band_rows(config: &RrdbConfig, width: usize) -> usize {
    let row = width.saturating_mul(config.filters * size_of::<f32>()) << (2 * config.doublings);
    // At least as many as there are around them, so that no more than two thirds of the work is done twice.
    (BAND_BYTES / row.max(1)).max(AROUND)
}

/// A residual dense block: each convolution sees the outputs of all before it.
#[derive(Debug, Clone)]
struct Dense {
    convs: [Conv2d; 4],
    last: Conv2d,
    /// ESRGAN+'s 1×1 convolution, which has no bias.
    plus: Option<Tensor>,
    leaky: Rectifier,
}

impl Dense {
    fn load(config: &RrdbConfig, weights: &Weights) -> std::result::Result<Self, WeightsError> {
        let (filters, growth) = (config.filters, config.growth);
        let conv = |i: usize, outputs: usize| {
            Conv2d::load(&weights.scope(format!("conv{i}")), filters + (i - 1) * growth, outputs, 3)
        };
        let plus = config.plus.then(|| weights.scope("conv1x1").take_conv("weight", [growth, filters, 1, 1]));
        Ok(Self {
            convs: [conv(1, growth)?, conv(2, growth)?, conv(3, growth)?, conv(4, growth)?],
            last: conv(5, filters)?,
            plus: plus.transpose()?,
            leaky: Rectifier::leaky(),
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut seen = vec![x.clone()];
        for (i, conv) in self.convs.iter().enumerate() {
            let mut y = self.leaky.apply(conv.forward(&Tensor::cat(&seen, 3)?, Adapters::none())?)?;
            match (&self.plus, i) {
                (Some(plus), 1) => {
                    let geometry = Conv2dGeometry { stride: 1, padding: Padding::all(0) };
                    y = (y + conv2d(x, plus, None, geometry)?)?;
                }
                (Some(_), 3) => y = (y + &seen[2])?,
                _ => {}
            }
            seen.push(y);
        }
        let all = Tensor::cat(&seen, 3)?;
        drop(seen);
        (self.last.forward(&all, Adapters::none())? * RESIDUAL)? + x
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use candle_core::Device;

    use super::*;
    use crate::upscaler::detect::{Architecture, open};
    use crate::weights::WeightFile;

    #[test]
    fn bands_of_rows_give_what_the_whole_picture_gives() {
        /// Sums of the same products: kernels divide the work by its size.
        const TOLERANCE: f32 = 1e-5;
        for name in ["esrgan_x1", "esrgan_plus_x2", "esrgan_x4", "real_x8"] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR"))
                .join(format!("tests/golden/upscaler/{name}.safetensors"));
            let file = Arc::new(WeightFile::open(&path).unwrap());
            let (Architecture::Rrdb(config), weights) = open(&file, &Device::Cpu).unwrap() else {
                panic!("no ESRGAN")
            };
            let network = Rrdb::load(&config, &weights).unwrap();
            let features = Tensor::randn(0f32, 1.0, (1, 13, 5, config.filters), &Device::Cpu).unwrap();
            let whole = network.enlarge(&features).unwrap();
            for band in [1, 3, 5, 12] {
                let banded = network.in_bands(&features, band).unwrap();
                let worst = (&banded - &whole).unwrap().abs().unwrap().max_all().unwrap();
                assert!(worst.to_scalar::<f32>().unwrap() < TOLERANCE, "{name} by {band} rows");
            }
        }
    }
}
