//! A box around something in a picture.

use darkroom_models::face_detector::Detection;

use super::DetailError;

/// Left, top, right and bottom edge in pixels, the last two exclusive. May reach outside its picture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BoundingBox {
    x0: f64,
    y0: f64,
    x1: f64,
    y1: f64,
}

impl BoundingBox {
    /// A box of these edges.
    ///
    /// # Errors
    /// When one is NaN or infinite, or the right or bottom edge is before the left or top one.
    pub fn new(x0: f64, y0: f64, x1: f64, y1: f64) -> Result<Self, DetailError> {
        let refuse = |message| Err(DetailError::Region { x0, y0, x1, y1, message });
        if [x0, y0, x1, y1].iter().any(|edge| !edge.is_finite()) {
            return refuse("has an edge that is no number");
        }
        if x1 < x0 || y1 < y0 {
            return refuse("ends before it begins: give left, top, right, bottom");
        }
        Ok(Self { x0, y0, x1, y1 })
    }

    /// Left, top, right and bottom.
    pub fn edges(&self) -> [f64; 4] {
        [self.x0, self.y0, self.x1, self.y1]
    }

    /// The part inside a picture of `width × height`; without area where there is none.
    pub(super) fn clipped(&self, width: usize, height: usize) -> Self {
        let (width, height) = (width as f64, height as f64);
        Self {
            x0: self.x0.clamp(0.0, width),
            y0: self.y0.clamp(0.0, height),
            x1: self.x1.clamp(0.0, width),
            y1: self.y1.clamp(0.0, height),
        }
    }

    /// Width and height.
    pub(super) fn size(&self) -> (f64, f64) {
        (self.x1 - self.x0, self.y1 - self.y0)
    }
}

impl TryFrom<Detection> for BoundingBox {
    type Error = DetailError;

    fn try_from(found: Detection) -> Result<Self, DetailError> {
        let [x0, y0, x1, y1] = found.edges().map(f64::from);
        Self::new(x0, y0, x1, y1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_box_without_numbers_or_with_swapped_corners_is_refused() {
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            for place in 0..4 {
                let mut edges = [1.0, 2.0, 3.0, 4.0];
                edges[place] = bad;
                let [x0, y0, x1, y1] = edges;
                assert!(BoundingBox::new(x0, y0, x1, y1).unwrap_err().to_string().contains("no number"));
            }
        }
        assert!(BoundingBox::new(3.0, 0.0, 1.0, 5.0).unwrap_err().to_string().contains("left, top"));
        BoundingBox::new(2.0, 2.0, 2.0, 2.0).unwrap();
    }
}
