//! Which crops a picture's boxes need.

use std::ops::Range;

use darkroom_models::face_detector::MAX_PICTURE_SIDE;

use super::crop::Crop;
use super::{BoundingBox, CropShape, DetailError, DetailOptions};
use crate::PIXELS_PER_CELL;

/// Smallest side that is worked on: what is thinner is stretched.
const MIN_SIDE: usize = 64;

/// The crops for `boxes` in a picture of `width × height`, smallest box first: where the masks of two crops overlap
/// and all are pasted in this order, the larger face, which is nearer, is on top. The order of `boxes` does not
/// matter.
///
/// A box is left alone when, inside the picture, it is not larger than `drop_size`, when it needs no enlarging (see
/// [`DetailOptions::force_inpaint`]), or when `max_faces` others are larger.
///
/// A crop lies inside the picture. Its sides are multiples of 8 unless the picture ends before; its working size
/// always is one, within `max_size`.
///
/// # Errors
/// When an option is out of range, or the picture's size is.
pub fn crops(
    width: usize,
    height: usize,
    boxes: &[BoundingBox],
    options: &DetailOptions,
) -> Result<Vec<Crop>, DetailError> {
    options.validate()?;
    if width.max(height) > MAX_PICTURE_SIDE {
        let message = format!("is {width}×{height}; a side may have at most {MAX_PICTURE_SIDE} pixels");
        return Err(DetailError::Option { option: "picture", message });
    }
    let clipped = boxes.iter().map(|region| region.clipped(width, height));
    let mut found: Vec<_> = clipped
        .enumerate()
        .filter_map(|(source, region)| {
            let crop = crop((width, height), source, &region, options)?;
            let (w, h) = region.size();
            Some((w * h, region.edges(), crop))
        })
        .collect();
    // Largest first; among equals the upper, then the left one.
    found.sort_by(|(area, edges, a), (other_area, other_edges, b)| {
        let key = |[x0, y0, x1, y1]: &[f64; 4]| [*y0, *x0, *y1, *x1];
        let mut order = other_area.total_cmp(area);
        for (edge, other) in key(edges).iter().zip(key(other_edges)) {
            order = order.then(edge.total_cmp(&other));
        }
        order.then(a.source().cmp(&b.source()))
    });
    found.truncate(options.max_faces);
    Ok(found.into_iter().rev().map(|(_, _, crop)| crop).collect())
}

/// The crop for one box, or `None` when it is left alone.
fn crop(
    (width, height): (usize, usize),
    source: usize,
    region: &BoundingBox,
    options: &DetailOptions,
) -> Option<Crop> {
    let (w, h) = region.size();
    let least = options.drop_size as f64;
    if w <= least || h <= least {
        return None;
    }
    let guide = options.guide_size as f64;
    if !options.force_inpaint && w >= guide && h >= guide {
        return None;
    }
    let [x0, y0, x1, y1] = region.edges();
    let columns = Axis::new(width, x0, x1, options)?;
    let rows = Axis::new(height, y0, y1, options)?;
    let wanted = match options.shape {
        CropShape::Square => [w.max(h); 2],
        CropShape::Box => [w, h],
    };
    let wanted = wanted.map(|side| rounded_up((side * options.bbox_crop_factor).ceil() as usize));
    let sides = sides(&columns, &rows, wanted, options.shape);
    let most = options.max_size as f64;
    let fitting = most / sides.0.max(sides.1) as f64;
    let scale = match options.shape {
        CropShape::Square => fitting,
        CropShape::Box => fitting.min(guide / w.min(h)),
    };
    let (sides, scale) = if scale > 1.0 {
        (sides, scale)
    } else if options.force_inpaint {
        // With less around it, the face can stay at its own size.
        let wanted = wanted.map(|side| side.min(options.max_size));
        let sides = self::sides(&columns, &rows, wanted, options.shape);
        if sides.0.max(sides.1) > options.max_size {
            return None;
        }
        (sides, 1.0)
    } else {
        return None;
    };
    let working = |side: usize| {
        let cells = (side as f64 * scale / PIXELS_PER_CELL as f64).round() as usize;
        (cells * PIXELS_PER_CELL).clamp(MIN_SIDE, options.max_size)
    };
    let (left, top) = (columns.start(sides.0), rows.start(sides.1));
    Some(Crop {
        source,
        picture: (width, height),
        columns: left..left + sides.0,
        rows: top..top + sides.1,
        working: (working(sides.0), working(sides.1)),
        hole: (columns.hole_in(left), rows.hole_in(top)),
        feather: options.feather,
    })
}

fn rounded_up(side: usize) -> usize {
    side.next_multiple_of(PIXELS_PER_CELL)
}

/// Width and height of a crop: what is `wanted`, but at least what the mask needs and at most the picture.
fn sides(columns: &Axis, rows: &Axis, wanted: [usize; 2], shape: CropShape) -> (usize, usize) {
    let [wide, high] = [wanted[0].max(columns.least()), wanted[1].max(rows.least())];
    if shape == CropShape::Square {
        let shorter = columns.length.min(rows.length) / PIXELS_PER_CELL * PIXELS_PER_CELL;
        let side = wide.max(high).min(shorter);
        if side >= columns.needed.len().max(rows.needed.len()) && side > 0 {
            return (side, side);
        }
    }
    (wide.min(columns.length), high.min(rows.length))
}

/// One direction of a picture with a box in it.
struct Axis {
    /// Pixels of the picture.
    length: usize,
    middle: f64,
    /// The grown box, cut at the picture's edges.
    hole: Range<usize>,
    /// The hole and the feather around it, cut likewise.
    needed: Range<usize>,
}

impl Axis {
    /// `None` when nothing is left of the box.
    fn new(length: usize, low: f64, high: f64, options: &DetailOptions) -> Option<Self> {
        // An even growth puts its odd pixel behind, as OpenCV's `dilate` does.
        let grow = i64::from(options.bbox_dilation);
        let (before, behind) = match grow {
            0 => (0, 0),
            1.. => ((grow - 1) / 2, grow / 2),
            _ => (-(-grow / 2), -((-grow - 1) / 2)),
        };
        let cut = |at: i64| usize::try_from(at).unwrap_or(0).min(length);
        let hole = cut(low.floor() as i64 - before)..cut(high.ceil() as i64 + behind);
        if hole.is_empty() {
            return None;
        }
        let needed = hole.start.saturating_sub(options.feather)..(hole.end + options.feather).min(length);
        Some(Self { length, middle: (low + high) / 2.0, hole, needed })
    }

    /// The shortest side that the mask fits in.
    fn least(&self) -> usize {
        rounded_up(self.needed.len())
    }

    /// Where a crop of `side` begins: in the middle of the box as far as picture and mask allow.
    fn start(&self, side: usize) -> usize {
        let ideal = (self.middle - side as f64 / 2.0).max(0.0) as usize;
        let earliest = self.needed.end.saturating_sub(side);
        let latest = self.needed.start.min(self.length.saturating_sub(side));
        ideal.clamp(earliest.min(latest), latest)
    }

    /// The hole as a crop that begins at `start` sees it.
    fn hole_in(&self, start: usize) -> Range<usize> {
        self.hole.start - start..self.hole.end - start
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    fn region(x0: f64, y0: f64, x1: f64, y1: f64) -> BoundingBox {
        BoundingBox::new(x0, y0, x1, y1).unwrap()
    }

    fn one(width: usize, height: usize, region: BoundingBox, options: &DetailOptions) -> Option<Crop> {
        crops(width, height, &[region], options).unwrap().pop()
    }

    #[test]
    fn a_crop_is_three_times_its_box_around_its_middle_and_worked_on_at_full_size() {
        let crop = one(1024, 1024, region(400.0, 300.0, 480.0, 380.0), &DetailOptions::default()).unwrap();
        assert_eq!((crop.columns.clone(), crop.rows.clone()), (320..560, 220..460));
        assert_eq!(crop.working(), (1024, 1024));
        // Ten pixels of growth: four before, five behind.
        assert_eq!(crop.hole, (76..165, 76..165));
    }

    #[test]
    fn a_crop_at_the_edge_is_moved_not_cut() {
        let crop = one(1024, 768, region(0.0, 700.0, 60.0, 760.0), &DetailOptions::default()).unwrap();
        assert_eq!((crop.columns.clone(), crop.rows.clone()), (0..184, 584..768));
    }

    #[test]
    fn square_crops_of_all_faces_have_one_working_size() {
        let options = DetailOptions::default();
        let boxes = [region(10.0, 10.0, 40.0, 70.0), region(500.0, 20.0, 590.0, 130.0)];
        let sizes: Vec<_> = crops(1536, 1024, &boxes, &options).unwrap().iter().map(Crop::working).collect();
        assert_eq!(sizes, [(1024, 1024); 2]);
    }

    #[test]
    fn a_box_shaped_crop_brings_the_shorter_side_to_the_guide_size_within_the_limit() {
        let options =
            DetailOptions { shape: CropShape::Box, bbox_crop_factor: 1.5, ..DetailOptions::default() };
        let crop = one(2048, 2048, region(1000.0, 1000.0, 1128.0, 1128.0), &options).unwrap();
        // 128 becomes 512: four times 192.
        assert_eq!((crop.columns.len(), crop.rows.len(), crop.working()), (192, 192, (768, 768)));
        let crop = one(2048, 2048, region(1000.0, 1000.0, 1128.0, 1256.0), &options).unwrap();
        // 192 × 384 would become 768 × 1536.
        assert_eq!((crop.columns.len(), crop.rows.len(), crop.working()), (192, 384, (512, 1024)));
    }

    #[test]
    fn what_needs_no_enlarging_is_left_alone_unless_forced() {
        let large = region(200.0, 200.0, 800.0, 800.0);
        let options = DetailOptions::default();
        assert!(one(1024, 1024, large, &options).is_none());
        // Smaller than the guide size, but its crop is the whole picture.
        assert!(one(1024, 1024, region(300.0, 300.0, 700.0, 700.0), &options).is_none());
        let forced = DetailOptions { force_inpaint: true, ..options };
        let crop = one(1024, 1024, large, &forced).unwrap();
        assert_eq!((crop.columns.len(), crop.working()), (1024, (1024, 1024)));
        let crop = one(4096, 4096, region(1000.0, 1000.0, 1900.0, 1900.0), &forced).unwrap();
        assert_eq!((crop.columns.len(), crop.working()), (1024, (1024, 1024)));
        assert!(one(4096, 4096, region(1000.0, 1000.0, 2100.0, 2100.0), &forced).is_none());
    }

    #[test]
    fn specks_empty_boxes_and_boxes_outside_are_left_alone() {
        let options = DetailOptions::default();
        for nothing in [
            region(100.0, 100.0, 110.0, 200.0),
            region(100.0, 100.0, 100.0, 100.0),
            region(-500.0, -500.0, -10.0, -10.0),
            region(600.0, 10.0, 700.0, 90.0),
            region(-1e300, 0.0, -1e299, 50.0),
        ] {
            assert!(one(512, 512, nothing, &options).is_none(), "{nothing:?}");
        }
        let shrunk = DetailOptions { bbox_dilation: -60, ..options };
        assert!(one(512, 512, region(100.0, 100.0, 150.0, 150.0), &shrunk).is_none());
    }

    #[test]
    fn the_largest_faces_are_taken_and_the_smallest_is_pasted_first_whatever_the_order_given() {
        let options = DetailOptions { max_faces: 2, ..DetailOptions::default() };
        let mut boxes = vec![
            region(0.0, 0.0, 30.0, 30.0),
            region(100.0, 0.0, 160.0, 60.0),
            region(300.0, 0.0, 345.0, 45.0),
        ];
        let lefts = |boxes: &[BoundingBox]| -> Vec<usize> {
            crops(1024, 1024, boxes, &options).unwrap().iter().map(|crop| crop.columns.start).collect()
        };
        let expected = lefts(&boxes);
        assert_eq!(expected, [254, 38]);
        boxes.reverse();
        assert_eq!(lefts(&boxes), expected);
    }

    #[test]
    fn options_out_of_range_make_no_crops() {
        let options = DetailOptions { max_size: 0, ..DetailOptions::default() };
        assert!(crops(64, 64, &[], &options).is_err());
        assert!(crops(usize::MAX, 64, &[], &DetailOptions::default()).is_err());
    }

    pub(in crate::detail) fn any_options() -> impl Strategy<Value = DetailOptions> {
        let sizes = (64usize..1500, 8usize..128, 1f64..10.0);
        (sizes, -40i32..60, 0usize..40, 0usize..20, any::<(bool, bool)>()).prop_map(
            |(
                (guide_size, cells, bbox_crop_factor),
                bbox_dilation,
                feather,
                drop_size,
                (force_inpaint, square),
            )| {
                DetailOptions {
                    guide_size,
                    max_size: cells * 8,
                    bbox_crop_factor,
                    bbox_dilation,
                    feather,
                    drop_size,
                    force_inpaint,
                    shape: if square { CropShape::Square } else { CropShape::Box },
                    ..DetailOptions::default()
                }
            },
        )
    }

    pub(in crate::detail) fn any_box() -> impl Strategy<Value = BoundingBox> {
        let usual = (-200f64..1500.0, -200f64..1500.0, 0f64..900.0, 0f64..900.0);
        let usual = usual.prop_map(|(x, y, w, h)| region(x, y, x + w, y + h));
        let huge = (-1e300f64..1e300, -1e300f64..1e300)
            .prop_map(|(a, b)| region(a.min(b), a.min(b), a.max(b), a.max(b)));
        prop_oneof![9 => usual, 1 => huge]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
        #[test]
        fn any_boxes_on_any_picture_give_crops_inside_it_with_working_sizes_of_whole_cells(
            width in 0usize..1400, height in 0usize..1400,
            boxes in prop::collection::vec(any_box(), 0..8),
            options in any_options(),
        ) {
            let crops = crops(width, height, &boxes, &options).unwrap();
            prop_assert!(crops.len() <= boxes.len());
            for crop in crops {
                for (range, length, working, hole) in [
                    (&crop.columns, width, crop.working().0, &crop.hole.0),
                    (&crop.rows, height, crop.working().1, &crop.hole.1),
                ] {
                    prop_assert!(!range.is_empty() && range.end <= length, "{crop:?}");
                    prop_assert!(range.len() % 8 == 0 || range.len() == length, "{crop:?}");
                    prop_assert!(working % 8 == 0 && (64..=options.max_size).contains(&working), "{crop:?}");
                    prop_assert!(!hole.is_empty() && hole.end <= range.len(), "{crop:?}");
                    // Room for the feather, unless the picture itself ends.
                    prop_assert!(hole.start >= options.feather || range.start == 0, "{crop:?}");
                    prop_assert!(hole.end + options.feather <= range.len() || range.end == length, "{crop:?}");
                }
            }
        }
    }
}
