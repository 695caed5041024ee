//! What a caller may choose, with bounds.

use super::DetectorError;
use super::network::COARSEST_STRIDE;

/// Most detections of one picture.
pub const MAX_DETECTIONS: usize = 1000;
/// Largest side that pictures may be scaled to.
pub const MAX_SIZE: usize = 2048;
/// Largest side of a picture that is searched.
pub const MAX_PICTURE_SIDE: usize = 16384;

/// What counts as found. The names and meanings are `ultralytics`'.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DetectOptions {
    /// Least confidence, 0 to 1; a detection must be above it.
    pub confidence: f32,
    /// Intersection over union, 0 to 1, above which the less confident of two boxes of a class is dropped.
    pub iou: f32,
    /// Most detections of a picture, 1 to [`MAX_DETECTIONS`]; the most confident ones stay.
    pub max_detections: usize,
    /// What the longer side is scaled to, in pixels: a multiple of 32, at most [`MAX_SIZE`]. Networks work best
    /// at the size they were trained at, nearly always 640.
    pub size: usize,
}

impl Default for DetectOptions {
    fn default() -> Self {
        Self { confidence: 0.5, iou: 0.7, max_detections: 100, size: 640 }
    }
}

impl DetectOptions {
    /// Checks every bound; the error names the option.
    pub fn validate(&self) -> Result<(), DetectorError> {
        let refuse = |option, message| Err(DetectorError::Option { option, message });
        for (option, value) in [("confidence", self.confidence), ("iou", self.iou)] {
            if !(0.0..=1.0).contains(&value) {
                return refuse(option, format!("is {value}, must be 0 to 1"));
            }
        }
        if !(1..=MAX_DETECTIONS).contains(&self.max_detections) {
            let message = format!("is {}, must be 1 to {MAX_DETECTIONS}", self.max_detections);
            return refuse("max_detections", message);
        }
        if !(COARSEST_STRIDE..=MAX_SIZE).contains(&self.size) || !self.size.is_multiple_of(COARSEST_STRIDE) {
            let message =
                format!("is {}, must be a multiple of {COARSEST_STRIDE} up to {MAX_SIZE}", self.size);
            return refuse("size", message);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_out_of_range_is_named() {
        let good = DetectOptions::default();
        good.validate().unwrap();
        let refused = |options: DetectOptions| options.validate().unwrap_err().to_string();
        for confidence in [f32::NAN, -0.1, 1.5, f32::INFINITY] {
            assert!(refused(DetectOptions { confidence, ..good }).starts_with("confidence is"));
        }
        assert!(refused(DetectOptions { iou: f32::NAN, ..good }).starts_with("iou is"));
        for max_detections in [0, MAX_DETECTIONS + 1] {
            assert!(refused(DetectOptions { max_detections, ..good }).starts_with("max_detections is"));
        }
        for size in [0, 16, 650, MAX_SIZE + 32, usize::MAX] {
            assert!(refused(DetectOptions { size, ..good }).starts_with("size is"));
        }
    }
}
