//! What a detail pass may be told, with bounds, and what can be wrong with it.

use std::ops::RangeInclusive;

/// Sides of working sizes and guide sizes, in pixels.
const SIDES: RangeInclusive<usize> = 64..=4096;

/// Why crops cannot be made, cut or pasted.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum DetailError {
    /// An option is out of range.
    #[error("{option} {message}")]
    Option {
        /// Its name.
        option: &'static str,
        /// What it is and what it may be.
        message: String,
    },
    /// A box is none.
    #[error("box ({x0}, {y0}, {x1}, {y1}) {message}")]
    Region {
        /// Left edge as given.
        x0: f64,
        /// Top edge.
        y0: f64,
        /// Right edge.
        x1: f64,
        /// Bottom edge.
        y1: f64,
        /// What is wrong with it.
        message: &'static str,
    },
    /// A picture is not the one that the crop was made for.
    #[error("{what} is {}×{}, but the crop is for {}×{}", found.0, found.1, expected.0, expected.1)]
    Size {
        /// Which picture.
        what: &'static str,
        /// Its width and height.
        found: (usize, usize),
        /// What they should be.
        expected: (usize, usize),
    },
}

/// Which form a crop has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CropShape {
    /// A square, worked on at `max_size` each way, so that all faces of all pictures fit in one step batch. Where
    /// a box is longer than the picture's shorter side, the longer side of the crop gets `max_size`.
    #[default]
    Square,
    /// The box's own proportions, enlarged until the box's shorter side has `guide_size`, but not beyond
    /// `max_size`: `FaceDetailer`'s rule.
    Box,
}

/// How faces are drawn again. The names are `FaceDetailer`'s.
#[derive(Debug, Clone, PartialEq)]
pub struct DetailOptions {
    /// Share of the schedule to run, above 0, at most 1.
    pub denoise: f64,
    /// What the shorter side of a box is enlarged to, in pixels; a box at least this large both ways is left
    /// alone.
    pub guide_size: usize,
    /// Largest working size, in pixels: a multiple of 8. Best is the size that the model was trained at.
    pub max_size: usize,
    /// How much larger than its box a crop is, 1 to 10.
    pub bbox_crop_factor: f64,
    /// Pixels that the box is grown by in all, -512 to 512, before what is inside is drawn again.
    pub bbox_dilation: i32,
    /// Pixels that the edge of the new part is blended over, each way, 0 to 100.
    pub feather: usize,
    /// Boxes that are not wider and higher than this many pixels are left alone.
    pub drop_size: usize,
    /// Most boxes of a picture, 1 to 64; the largest ones are taken.
    pub max_faces: usize,
    /// Whether boxes that need no enlarging are drawn again too, at their own size.
    pub force_inpaint: bool,
    /// Which form crops have.
    pub shape: CropShape,
}

impl Default for DetailOptions {
    fn default() -> Self {
        Self {
            denoise: 0.4,
            guide_size: 512,
            max_size: 1024,
            bbox_crop_factor: 3.0,
            bbox_dilation: 10,
            feather: 5,
            drop_size: 10,
            max_faces: 16,
            force_inpaint: false,
            shape: CropShape::Square,
        }
    }
}

impl DetailOptions {
    /// Checks every bound; the error names the option.
    ///
    /// # Errors
    /// [`DetailError::Option`].
    pub fn validate(&self) -> Result<(), DetailError> {
        let refuse = |option, message| Err(DetailError::Option { option, message });
        if !(self.denoise > 0.0 && self.denoise <= 1.0) {
            return refuse("denoise", format!("is {}, must be above 0, at most 1", self.denoise));
        }
        for (option, side) in [("guide_size", self.guide_size), ("max_size", self.max_size)] {
            if !SIDES.contains(&side) {
                return refuse(option, format!("is {side}, must be {} to {}", SIDES.start(), SIDES.end()));
            }
        }
        if !self.max_size.is_multiple_of(8) {
            return refuse("max_size", format!("is {}, must be a multiple of 8", self.max_size));
        }
        if !(1.0..=10.0).contains(&self.bbox_crop_factor) {
            return refuse("bbox_crop_factor", format!("is {}, must be 1 to 10", self.bbox_crop_factor));
        }
        if !(-512..=512).contains(&self.bbox_dilation) {
            return refuse("bbox_dilation", format!("is {}, must be -512 to 512", self.bbox_dilation));
        }
        if self.feather > 100 {
            return refuse("feather", format!("is {}, must be 0 to 100", self.feather));
        }
        if !(1..=64).contains(&self.max_faces) {
            return refuse("max_faces", format!("is {}, must be 1 to 64", self.max_faces));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_out_of_range_is_named() {
        DetailOptions::default().validate().unwrap();
        let refused = |change: fn(&mut DetailOptions)| {
            let mut options = DetailOptions::default();
            change(&mut options);
            options.validate().unwrap_err().to_string()
        };
        assert!(refused(|o| o.denoise = 0.0).starts_with("denoise"));
        assert!(refused(|o| o.denoise = 7.0).starts_with("denoise"));
        assert!(refused(|o| o.denoise = f64::NAN).starts_with("denoise"));
        assert!(refused(|o| o.guide_size = 0).starts_with("guide_size"));
        assert!(refused(|o| o.max_size = usize::MAX).starts_with("max_size"));
        assert!(refused(|o| o.max_size = 1020).contains("multiple of 8"));
        assert!(refused(|o| o.bbox_crop_factor = f64::NAN).starts_with("bbox_crop_factor"));
        assert!(refused(|o| o.bbox_dilation = i32::MIN).starts_with("bbox_dilation"));
        assert!(refused(|o| o.feather = 101).starts_with("feather"));
        assert!(refused(|o| o.max_faces = 0).starts_with("max_faces"));
    }
}
