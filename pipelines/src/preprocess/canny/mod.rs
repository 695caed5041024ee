//! Canny edges: white lines one pixel wide on black, as ControlNets of that name were trained on.
//!
//! Two programs made the pictures that people compare with, and they disagree in every step, so both are here:
//! ComfyUI's `Canny` node and OpenCV's `cv2.Canny`. Each is matched to the pixel.

mod comfyui;
mod hysteresis;
mod opencv;

use std::fmt;
use std::str::FromStr;

use candle_core::Device;
#[cfg(feature = "cuda")]
use candle_core::Tensor;

use crate::Picture;

/// Largest threshold for [`CannyMethod::OpenCv`]: no 8-bit picture has a steeper edge.
const STEEPEST: f64 = 2040.0;

/// Whose rules to follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CannyMethod {
    /// ComfyUI's `Canny` node, which is `kornia.filters.canny` (0.9) in f32; thresholds lie in `0..=1`.
    #[default]
    ComfyUi,
    /// `cv2.Canny` with an aperture of 3 on the 8-bit grey picture; thresholds usually lie in `0..=255`.
    OpenCv {
        /// Measure gradients by √(x² + y²) rather than |x| + |y|, which is OpenCV's default.
        l2_gradient: bool,
    },
}

impl CannyMethod {
    /// `low` and `high` where nothing else is asked for: the ComfyUI node's own, and the 100 and 200 that most
    /// programs give OpenCV.
    pub fn default_thresholds(self) -> (f64, f64) {
        match self {
            Self::ComfyUi => (0.4, 0.8),
            Self::OpenCv { .. } => (100.0, 200.0),
        }
    }

    /// `comfyui` or `opencv`.
    pub fn name(self) -> &'static str {
        match self {
            Self::ComfyUi => "comfyui",
            Self::OpenCv { .. } => "opencv",
        }
    }
}

impl fmt::Display for CannyMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for CannyMethod {
    type Err = CannyError;

    fn from_str(name: &str) -> Result<Self, CannyError> {
        match name {
            "comfyui" => Ok(Self::ComfyUi),
            "opencv" => Ok(Self::OpenCv { l2_gradient: false }),
            _ => Err(CannyError::UnknownMethod { name: name.chars().take(40).collect() }),
        }
    }
}

/// Why edges cannot be looked for.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CannyError {
    /// A method that does not exist.
    #[error("no Canny method is called '{name}'; there are comfyui and opencv")]
    UnknownMethod {
        /// What was asked for.
        name: String,
    },
    /// A threshold that the method has no use for.
    #[error(
        "the {which} threshold is {value}; {method} takes {range}{}",
        other_scale.map(|other| format!(" (a threshold of {value} is one for {other})")).unwrap_or_default()
    )]
    OutOfRange {
        /// `low` or `high`.
        which: &'static str,
        /// What was asked for.
        value: f64,
        /// Whose rules were to be followed.
        method: CannyMethod,
        /// What would do.
        range: &'static str,
        /// The method on whose scale the value would be usual.
        other_scale: Option<CannyMethod>,
    },
    /// The thresholds are the wrong way round.
    #[error("the low threshold {low} is above the high threshold {high}; exchange them")]
    Exchanged {
        /// The low threshold.
        low: f64,
        /// The high threshold.
        high: f64,
    },
}

/// An edge detector. A pixel is an edge where the gradient has a ridge above `high`, or above `low` and in touch
/// with such a pixel through others.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Canny {
    /// Weaker gradients are no edges. On the method's scale.
    pub low: f64,
    /// Stronger gradients begin an edge. On the method's scale.
    pub high: f64,
    /// Whose rules to follow.
    pub method: CannyMethod,
}

impl Default for Canny {
    fn default() -> Self {
        Self::with_defaults(CannyMethod::default())
    }
}

impl Canny {
    /// `method` with its usual thresholds.
    pub fn with_defaults(method: CannyMethod) -> Self {
        let (low, high) = method.default_thresholds();
        Self { low, high, method }
    }

    /// Says what is wrong with the thresholds, for people: [`detect`](Self::detect) takes any.
    ///
    /// # Errors
    /// When a threshold is no number or off the method's scale, or `low` is above `high`.
    pub fn check(&self) -> Result<(), CannyError> {
        for (which, value) in [("low", self.low), ("high", self.high)] {
            let (fits, range, other_scale) = match self.method {
                CannyMethod::ComfyUi => (
                    value > 0.0 && value <= 1.0,
                    "more than 0 and at most 1",
                    (value > 1.0).then_some(CannyMethod::OpenCv { l2_gradient: false }),
                ),
                CannyMethod::OpenCv { .. } => (
                    (0.0..=STEEPEST).contains(&value) && (which == "low" || value >= 1.0),
                    "0 to 2040, and at least 1 for the high one",
                    (value > 0.0 && value < 1.0).then_some(CannyMethod::ComfyUi),
                ),
            };
            if !fits {
                return Err(CannyError::OutOfRange { which, value, method: self.method, range, other_scale });
            }
        }
        if self.low > self.high {
            return Err(CannyError::Exchanged { low: self.low, high: self.high });
        }
        Ok(())
    }

    /// The edges of `picture`: 1 on edges, 0 elsewhere, the same in all three channels, at the same size.
    pub fn detect(&self, picture: &Picture) -> Picture {
        let edges = match self.method {
            CannyMethod::ComfyUi => comfyui::edges(picture, self.low as f32, self.high as f32),
            CannyMethod::OpenCv { l2_gradient } => opencv::edges(picture, self.low, self.high, l2_gradient),
        };
        white_on_black(picture, edges)
    }

    /// [`detect`](Self::detect), on `device` if that is a GPU that does it: the same edges.
    ///
    /// # Errors
    /// When the device fails.
    pub fn detect_on(&self, picture: &Picture, device: &Device) -> candle_core::Result<Picture> {
        #[cfg(feature = "cuda")]
        if device.is_cuda() {
            return self.detect_on_cuda(picture, device);
        }
        // Without GPUs there is nothing to choose.
        let _ = device;
        Ok(self.detect(picture))
    }

    #[cfg(feature = "cuda")]
    fn detect_on_cuda(&self, picture: &Picture, device: &Device) -> candle_core::Result<Picture> {
        use darkroom_kernels::cuda::{CannyRule, canny};
        let rule = match self.method {
            CannyMethod::ComfyUi => CannyRule::Kornia { low: self.low as f32, high: self.high as f32 },
            CannyMethod::OpenCv { l2_gradient } => {
                let (low, high) = opencv::thresholds(self.low, self.high, l2_gradient);
                CannyRule::OpenCv { low, high, l2_gradient }
            }
        };
        let pixels = Tensor::from_slice(picture.data(), (picture.height(), picture.width(), 3), device)?;
        let edges = canny(&pixels, rule)?.flatten_all()?.to_vec1::<u8>()?;
        Ok(white_on_black(picture, edges.into_iter().map(|edge| edge != 0)))
    }
}

/// A picture as large as `picture`, white on edges.
fn white_on_black(picture: &Picture, edges: impl IntoIterator<Item = bool>) -> Picture {
    picture.with_data(edges.into_iter().flat_map(|edge| [if edge { 1.0 } else { 0.0 }; 3]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(low: f64, high: f64, method: CannyMethod) -> String {
        Canny { low, high, method }.check().unwrap_err().to_string()
    }

    #[test]
    fn thresholds_of_the_other_method_are_refused_by_name() {
        let opencv = CannyMethod::OpenCv { l2_gradient: false };
        let text = message(100.0, 200.0, CannyMethod::ComfyUi);
        assert!(text.contains("low threshold is 100") && text.contains("one for opencv"), "{text}");
        let text = message(0.2, 0.5, opencv);
        assert!(text.contains("high threshold is 0.5") && text.contains("one for comfyui"), "{text}");
        for method in [CannyMethod::ComfyUi, opencv] {
            Canny::with_defaults(method).check().unwrap();
            for bad in [f64::NAN, f64::INFINITY, -1.0] {
                assert!(
                    Canny { low: bad, ..Canny::with_defaults(method) }.check().is_err(),
                    "{method} {bad}"
                );
                assert!(
                    Canny { high: bad, ..Canny::with_defaults(method) }.check().is_err(),
                    "{method} {bad}"
                );
            }
        }
        assert!(message(0.5, 0.2, CannyMethod::ComfyUi).contains("exchange"));
    }

    #[test]
    fn the_smallest_pictures_and_the_wildest_numbers_have_edges_or_none_but_no_panic() {
        for (width, height) in [(1, 1), (1, 5), (2, 2), (7, 1), (3, 2)] {
            for value in [0.0, 1.0, -3.0, f32::NAN, f32::INFINITY, f32::MAX] {
                let data = (0..width * height * 3).map(|i| if i % 2 == 0 { value } else { 0.5 }).collect();
                let picture = Picture::new(width, height, data).unwrap();
                for method in [CannyMethod::ComfyUi, CannyMethod::OpenCv { l2_gradient: true }] {
                    for low in [0.1, f64::NAN, f64::MAX, f64::NEG_INFINITY] {
                        let edges = Canny { low, high: 0.2, method }.detect(&picture);
                        assert_eq!((edges.width(), edges.height()), (width, height));
                        assert!(edges.data().iter().all(|v| *v == 0.0 || *v == 1.0));
                    }
                }
            }
        }
    }

    #[test]
    fn a_method_is_read_by_the_name_it_shows() {
        for method in [CannyMethod::ComfyUi, CannyMethod::OpenCv { l2_gradient: false }] {
            assert_eq!(method.to_string().parse(), Ok(method));
        }
        let error = "kornia".parse::<CannyMethod>().unwrap_err();
        assert!(error.to_string().contains("comfyui and opencv"));
    }
}
