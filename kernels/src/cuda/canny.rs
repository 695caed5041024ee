//! Canny's edges on the device, to the pixel as `darkroom-pipelines` finds them on the CPU.

use candle_core::{DType, Error, Result, Tensor, bail};

use super::compile::{Source, function};
use super::launch::{self, Dense, launch};

const SOURCE: Source = Source { name: "canny", text: include_str!("../../cuda/canny.cu") };
const THREADS: u32 = 256;
/// Pixels of a picture at most: indices of values have 32 bits.
const MOST_PIXELS: usize = 1 << 28;

/// By whose rules, and which gradients begin an edge (more than `high`) or continue one (more than `low`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum CannyRule {
    /// `kornia.filters.canny` (0.9).
    Kornia {
        /// Of the gradient's magnitude in `f32`.
        low: f32,
        /// As `low`.
        high: f32,
    },
    /// `cv2.Canny` with an aperture of 3 on the 8-bit grey picture.
    OpenCv {
        /// Of |x| + |y|, or of x² + y² if `l2_gradient` is set.
        low: i32,
        /// As `low`.
        high: i32,
        /// Measure gradients by √(x² + y²) rather than |x| + |y|.
        l2_gradient: bool,
    },
}

/// Which pixels of a picture `[h, w, 3]`, `f32` in `0..=1` on a CUDA device, are edges: `[h, w]`, `u8`, 1 or 0.
///
/// # Errors
/// When it is no such picture, has more than 2²⁸ pixels, or the device fails.
pub fn canny(picture: &Tensor, rule: CannyRule) -> Result<Tensor> {
    let (height, width, channels) = picture.dims3()?;
    let pixels = height.checked_mul(width).filter(|pixels| (1..=MOST_PIXELS).contains(pixels));
    let (Some(pixels), 3, DType::F32) = (pixels, channels, picture.dtype()) else {
        bail!("canny: {:?} of {:?} is no picture [h, w, 3] of f32", picture.shape(), picture.dtype());
    };
    let device = launch::device(picture)?;
    let picture = Dense::of(picture)?;
    let plane = |dtype| Dense::unset((height, width), dtype, picture.tensor().device());
    let side = |n: usize| i32::try_from(n).map_err(Error::wrap);
    let (w, h) = (side(width)?, side(height)?);
    let config = launch::blocks(pixels, THREADS)?;
    macro_rules! run {
        ($kernel:literal, $($argument:expr),+ $(,)?) => {{
            let function = function(&device, SOURCE, &[], $kernel)?;
            launch!(device, function, config, $($argument),+)
        }};
    }

    let (strength, set) = (plane(DType::U8)?, plane(DType::U32)?);
    match rule {
        CannyRule::Kornia { low, high } => {
            let (grey, other) = (plane(DType::F32)?, plane(DType::F32)?);
            let direction = plane(DType::U8)?;
            run!("grey_of_floats", picture.address(), grey.address(), w, h)?;
            run!("blur", grey.address(), other.address(), w, h, 0i32)?;
            run!("blur", other.address(), grey.address(), w, h, 1i32)?;
            let magnitude = other;
            run!("gradients_of_floats", grey.address(), magnitude.address(), direction.address(), w, h)?;
            run!(
                "ridges_of_floats",
                magnitude.address(),
                direction.address(),
                strength.address(),
                set.address(),
                w,
                h,
                low,
                high,
            )?;
        }
        CannyRule::OpenCv { low, high, l2_gradient } => {
            // Whole numbers of 32 bits have no tensor of their own here.
            let (grey, gradient, size) = (plane(DType::U8)?, plane(DType::U32)?, plane(DType::U32)?);
            run!("grey_of_bytes", picture.address(), grey.address(), w, h)?;
            run!(
                "gradients_of_bytes",
                grey.address(),
                gradient.address(),
                size.address(),
                w,
                h,
                i32::from(l2_gradient),
            )?;
            run!(
                "ridges_of_bytes",
                gradient.address(),
                size.address(),
                strength.address(),
                set.address(),
                w,
                h,
                low,
                high,
            )?;
        }
    }
    let edges = plane(DType::U8)?;
    run!("join", strength.address(), set.address(), w, h)?;
    run!("mark", strength.address(), set.address(), w, h)?;
    run!("edges", strength.address(), set.address(), edges.address(), w, h)?;
    Ok(edges.into_tensor())
}
