//! Places that a detector found, as Impact Pack cuts them out: the box around each, its mask, and the size at which it
//! is drawn anew. The extension computes with numpy's single precision where boxes come from the detector; so does
//! this.

/// Edges of a box: left, top, right, bottom.
pub(super) type Box4 = [f32; 4];

/// Whole pixels of a picture: left, top, and right and bottom outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Region {
    pub(super) x1: usize,
    pub(super) y1: usize,
    pub(super) x2: usize,
    pub(super) y2: usize,
}

impl Region {
    pub(super) fn width(&self) -> usize {
        self.x2 - self.x1
    }

    pub(super) fn height(&self) -> usize {
        self.y2 - self.y1
    }

    /// Around a box, `factor` times as large, moved into the picture.
    pub(super) fn around(width: usize, height: usize, bounds: Box4, factor: f64) -> Self {
        let [x1, y1, x2, y2] = bounds;
        let along = |limit: usize, low: f32, high: f32| {
            let side = high - low;
            let size = side * factor as f32;
            // Cut towards 0, as Python's `int` does.
            let start = (low + side / 2.0 - size / 2.0) as i64;
            let limit_float = limit as f32;
            let (start, end) = if start < 0 {
                (0.0, limit_float.min(size))
            } else if start as f32 + size > limit_float {
                ((limit_float - size).max(0.0), limit_float)
            } else {
                (start as f32, limit_float.min(start as f32 + size))
            };
            let whole = |place: f32| (place.max(0.0) as usize).min(limit);
            (whole(start), whole(end))
        };
        let ((x1, x2), (y1, y2)) = (along(width, x1, x2), along(height, y1, y2));
        Self { x1, y1, x2, y2 }
    }
}

/// A found place.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Segment {
    pub(super) bounds: Box4,
    pub(super) region: Region,
    /// 1 where it is, `[region.height, region.width]`.
    pub(super) mask: Vec<f32>,
}

impl Segment {
    /// `None` for a box that is not larger than `drop_size` both ways, or lies outside the picture.
    pub(super) fn new(
        (width, height): (usize, usize),
        bounds: Box4,
        dilation: i128,
        factor: f64,
        drop_size: usize,
    ) -> Option<Self> {
        let [x1, y1, x2, y2] = bounds;
        let least = drop_size.max(1) as f32;
        // Also where one is no number.
        if !(x2 - x1 > least && y2 - y1 > least) {
            return None;
        }
        let region = Region::around(width, height, bounds, factor);
        if region.x1 >= region.x2 || region.y1 >= region.y2 {
            return None;
        }
        let columns = painted(x1, x2, width, dilation);
        let rows = painted(y1, y2, height, dilation);
        let mut mask = vec![0.0; region.width() * region.height()];
        for (y, line) in mask.chunks_exact_mut(region.width()).enumerate() {
            for (x, value) in line.iter_mut().enumerate() {
                let inside = |span: &(i128, i128), place: usize| {
                    let place = place as i128;
                    span.0 <= place && place <= span.1
                };
                if inside(&columns, region.x1 + x) && inside(&rows, region.y1 + y) {
                    *value = 1.0;
                }
            }
        }
        Some(Self { bounds, region, mask })
    }
}

/// First and last pixel of a filled rectangle along one side, made larger by OpenCV's dilation with a square of that
/// many pixels, whose anchor is behind its middle.
fn painted(low: f32, high: f32, side: usize, dilation: i128) -> (i128, i128) {
    let last = side as i128 - 1;
    let (low, high) = (i128::from(low as i64).max(0), i128::from(high as i64).min(last));
    if dilation <= 0 || low > high {
        return (low, high);
    }
    let anchor = dilation / 2;
    (low - (dilation - 1 - anchor), high + anchor)
}

/// How a place is drawn anew.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Sizing {
    pub(super) guide_size: f64,
    /// Whether the box is to have that size, or what is cut out around it.
    pub(super) for_box: bool,
    pub(super) max_size: f64,
    pub(super) force_inpaint: bool,
}

impl Sizing {
    /// Width and height at which `region` is drawn; `None`: it stays as it is.
    pub(super) fn of(&self, region: Region, bounds: Box4) -> Option<(usize, usize)> {
        let (w, h) = (region.width(), region.height());
        let (box_w, box_h) = (bounds[2] - bounds[0], bounds[3] - bounds[1]);
        if !self.force_inpaint && f64::from(box_h) >= self.guide_size && f64::from(box_w) >= self.guide_size {
            return None;
        }
        // Numbers of the box are single precision, and make what they are multiplied by so.
        let rounded = |value: f64| if self.for_box { f64::from(value as f32) } else { value };
        let smaller = if self.for_box { f64::from(box_w.min(box_h)) } else { w.min(h) as f64 };
        let mut scale = rounded(self.guide_size / smaller);
        let sized = |scale: f64| {
            let side = |side: usize| rounded(side as f64 * scale) as usize;
            (side(w), side(h))
        };
        let mut size = sized(scale);
        let longer = size.0.max(size.1) as f64;
        if longer > self.max_size {
            scale = rounded(scale * rounded(self.max_size / longer));
            size = sized(scale);
        }
        if scale <= 1.0 || size.0 == 0 || size.1 == 0 {
            return self.force_inpaint.then_some((w, h));
        }
        Some(size)
    }
}

/// The kernel that masks are blurred with for a feather of so many pixels, fitted to the mask; `None`: none.
pub(super) fn feather_kernel(feather: usize, width: usize, height: usize) -> Option<usize> {
    if feather == 0 {
        return None;
    }
    let (kernel, shortest) = (feather * 2 + 1, width.min(height));
    if shortest > kernel {
        return Some(kernel);
    }
    let kernel = shortest / 2;
    let kernel = kernel + usize::from(kernel.is_multiple_of(2));
    (kernel >= 3).then_some(kernel)
}

/// All masks in one, `[height, width]`.
pub(super) fn combined(segments: &[Segment], width: usize, height: usize) -> Vec<f32> {
    let mut mask = vec![0f32; width * height];
    for segment in segments {
        let region = segment.region;
        for (y, line) in segment.mask.chunks_exact(region.width()).enumerate() {
            let start = (region.y1 + y) * width + region.x1;
            let target = &mut mask[start..start + line.len()];
            target.iter_mut().zip(line).for_each(|(all, own)| *all = all.max(*own));
        }
    }
    mask
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::Value as Json;

    use super::*;

    #[test]
    fn crops_masks_and_sizes_are_impact_packs() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/third_party/impact.json");
        let cases: Json = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let number = |value: &Json| value.as_f64().unwrap();
        let whole = |value: &Json| value.as_u64().unwrap() as usize;
        let segments = cases["segments"].as_array().unwrap();
        assert!(segments.len() > 100);
        for case in segments {
            let (width, height) = (whole(&case["width"]), whole(&case["height"]));
            let bounds: Vec<f32> =
                case["box"].as_array().unwrap().iter().map(|value| number(value) as f32).collect();
            let bounds = [bounds[0], bounds[1], bounds[2], bounds[3]];
            let found = Segment::new(
                (width, height),
                bounds,
                case["dilation"].as_i64().unwrap().into(),
                number(&case["factor"]),
                whole(&case["drop_size"]),
            );
            let Some(region) = case["region"].as_array() else {
                assert!(found.is_none(), "{case}");
                continue;
            };
            let found = found.unwrap_or_else(|| panic!("{case}"));
            let Region { x1, y1, x2, y2 } = found.region;
            assert_eq!([x1, y1, x2, y2].to_vec(), region.iter().map(whole).collect::<Vec<_>>(), "{case}");
            // How much of each row and column is painted tells all of a rectangle.
            let rows: Vec<usize> = found
                .mask
                .chunks_exact(found.region.width())
                .map(|line| line.iter().filter(|value| **value == 1.0).count())
                .collect();
            let first = found.mask.iter().position(|value| *value == 1.0);
            assert_eq!(rows.iter().sum::<usize>(), whole(&case["painted"]), "{case}");
            assert_eq!(first.map(|place| place as u64), case["first"].as_u64(), "{case}");
            let sizing = Sizing {
                guide_size: number(&case["guide_size"]),
                for_box: case["for_box"].as_bool().unwrap(),
                max_size: number(&case["max_size"]),
                force_inpaint: case["force_inpaint"].as_bool().unwrap(),
            };
            let size = case["size"].as_array().map(|size| (whole(&size[0]), whole(&size[1])));
            assert_eq!(sizing.of(found.region, bounds), size, "{case}");
        }
    }

    #[test]
    fn kernels_fit_the_mask() {
        assert_eq!(feather_kernel(5, 100, 50), Some(11));
        assert_eq!(feather_kernel(5, 11, 50), Some(5));
        assert_eq!(feather_kernel(20, 12, 50), Some(7));
        assert_eq!(feather_kernel(20, 4, 50), Some(3));
        assert_eq!(feather_kernel(20, 2, 50), None);
        assert_eq!(feather_kernel(0, 100, 50), None);
    }
}
