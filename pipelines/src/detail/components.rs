//! Boxes from a mask that a client painted.

use super::BoundingBox;
use crate::Mask;

/// Most boxes that a mask gives; of more, the ones with the most pixels are kept.
pub const MAX_MASK_BOXES: usize = 64;

/// Above this a pixel belongs to a part.
const THRESHOLD: f32 = 0.5;

/// The boxes around the connected parts of `mask`, neighbours in all eight directions, in the order in which their
/// first pixels are met row by row.
pub fn boxes_of_mask(mask: &Mask) -> Vec<BoundingBox> {
    let (width, height) = (mask.width(), mask.height());
    let mut left: Vec<bool> = mask.data().iter().map(|value| *value > THRESHOLD).collect();
    let mut parts: Vec<Part> = Vec::new();
    let mut waiting = Vec::new();
    for first in 0..left.len() {
        if !std::mem::take(&mut left[first]) {
            continue;
        }
        let mut part = Part { first, pixels: 0, columns: (width, 0), rows: (height, 0) };
        waiting.push(first);
        while let Some(pixel) = waiting.pop() {
            let (x, y) = (pixel % width, pixel / width);
            part.take(x, y);
            for y in y.saturating_sub(1)..(y + 2).min(height) {
                for x in x.saturating_sub(1)..(x + 2).min(width) {
                    let neighbour = y * width + x;
                    if std::mem::take(&mut left[neighbour]) {
                        waiting.push(neighbour);
                    }
                }
            }
        }
        parts.push(part);
        // A mask of noise has millions of parts: the small ones go before they take memory.
        if parts.len() == 2 * MAX_MASK_BOXES {
            keep_largest(&mut parts);
        }
    }
    keep_largest(&mut parts);
    parts.sort_by_key(|part| part.first);
    parts.iter().filter_map(Part::region).collect()
}

/// One connected part.
struct Part {
    first: usize,
    pixels: usize,
    /// First and one past the last.
    columns: (usize, usize),
    rows: (usize, usize),
}

impl Part {
    fn take(&mut self, x: usize, y: usize) {
        self.pixels += 1;
        self.columns = (self.columns.0.min(x), self.columns.1.max(x + 1));
        self.rows = (self.rows.0.min(y), self.rows.1.max(y + 1));
    }

    fn region(&self) -> Option<BoundingBox> {
        let [x0, y0, x1, y1] =
            [self.columns.0, self.rows.0, self.columns.1, self.rows.1].map(|edge| edge as f64);
        BoundingBox::new(x0, y0, x1, y1).ok()
    }
}

fn keep_largest(parts: &mut Vec<Part>) {
    parts.sort_by_key(|part| (std::cmp::Reverse(part.pixels), part.first));
    parts.truncate(MAX_MASK_BOXES);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mask(rows: &[&str]) -> Mask {
        let data =
            rows.iter().flat_map(|row| row.bytes().map(|b| if b == b'#' { 1.0 } else { 0.0 })).collect();
        Mask::new(rows[0].len(), rows.len(), data).unwrap()
    }

    fn edges(mask: &Mask) -> Vec<[f64; 4]> {
        boxes_of_mask(mask).iter().map(BoundingBox::edges).collect()
    }

    #[test]
    fn every_connected_part_has_its_box() {
        let found = edges(&mask(&[
            "##...##", //
            "#....#.", "......#", ".#.....",
        ]));
        assert_eq!(found, [[0.0, 0.0, 2.0, 2.0], [5.0, 0.0, 7.0, 3.0], [1.0, 3.0, 2.0, 4.0]]);
    }

    #[test]
    fn soft_edges_below_a_half_do_not_join_parts() {
        let data = vec![1.0, 0.5, 1.0, 0.2, f32::NAN, 0.51];
        let found = edges(&Mask::new(6, 1, data).unwrap());
        assert_eq!(found.iter().map(|e| e[0]).collect::<Vec<_>>(), [0.0, 2.0, 5.0]);
        assert!(edges(&mask(&["...", "..."])).is_empty());
    }

    #[test]
    fn of_very_many_parts_the_largest_are_kept() {
        // Single pixels two apart, and one part of four pixels among the last.
        let mut data = vec![0.0; 200 * 200];
        for y in (0..198).step_by(2) {
            for x in (0..200).step_by(2) {
                data[y * 200 + x] = 1.0;
            }
        }
        data[199 * 200..199 * 200 + 4].fill(1.0);
        let found = edges(&Mask::new(200, 200, data).unwrap());
        assert_eq!(found.len(), MAX_MASK_BOXES);
        assert!(found.contains(&[0.0, 199.0, 4.0, 200.0]));
    }

    #[test]
    fn a_part_as_large_as_the_picture_is_walked_without_recursion() {
        let whole = Mask::new(1000, 1000, vec![1.0; 1_000_000]).unwrap();
        assert_eq!(edges(&whole), [[0.0, 0.0, 1000.0, 1000.0]]);
    }

    proptest! {
        #[test]
        fn boxes_cover_every_painted_pixel_and_are_as_small_as_can_be(
            width in 1usize..20, bits in prop::collection::vec(any::<bool>(), 1..200),
        ) {
            let height = bits.len().div_ceil(width);
            let mut data: Vec<f32> = bits.iter().map(|b| if *b { 1.0 } else { 0.0 }).collect();
            data.resize(width * height, 0.0);
            let found = edges(&Mask::new(width, height, data.clone()).unwrap());
            let painted = |x: usize, y: usize| data[y * width + x] > 0.5;
            if found.len() < MAX_MASK_BOXES {
                for (x, y) in (0..width * height).map(|i| (i % width, i / width)).filter(|(x, y)| painted(*x, *y)) {
                    let (x, y) = (x as f64, y as f64);
                    prop_assert!(found.iter().any(|e| e[0] <= x && x < e[2] && e[1] <= y && y < e[3]));
                }
            }
            for [x0, y0, x1, y1] in found.into_iter().map(|edges| edges.map(|edge| edge as usize)) {
                prop_assert!((y0..y1).any(|y| painted(x0, y)) && (y0..y1).any(|y| painted(x1 - 1, y)));
                prop_assert!((x0..x1).any(|x| painted(x, y0)) && (x0..x1).any(|x| painted(x, y1 - 1)));
            }
        }
    }
}
