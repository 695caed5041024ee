//! From the network's rows to boxes.

use super::network::STRIDES;

/// Something found in a picture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Detection {
    /// Left edge, in pixels of the picture.
    pub x0: f32,
    /// Top edge.
    pub y0: f32,
    /// Right edge, not left of the left one.
    pub x1: f32,
    /// Bottom edge, not above the top one.
    pub y1: f32,
    /// How sure the network is, 0 to 1.
    pub confidence: f32,
    /// Index of the class.
    pub class: usize,
}

impl Detection {
    /// Left, top, right and bottom.
    pub fn edges(&self) -> [f32; 4] {
        [self.x0, self.y0, self.x1, self.y1]
    }
}

/// One picture's rows: logits of its cells' distances and classes.
pub(super) struct Rows<'a> {
    pub(super) distances: &'a [f32],
    pub(super) scores: &'a [f32],
    pub(super) bins: usize,
    pub(super) classes: usize,
}

impl Rows<'_> {
    /// The boxes above `confidence` in a padded picture of `width × height`, each with its best class, in its
    /// pixels. `None` when anything is not a number.
    pub(super) fn detections(&self, width: usize, height: usize, confidence: f32) -> Option<Vec<Detection>> {
        let cells = STRIDES.into_iter().flat_map(|stride| {
            let (columns, rows) = (width / stride, height / stride);
            (0..rows).flat_map(move |row| (0..columns).map(move |column| (stride as f32, column, row)))
        });
        let logits = self.scores.chunks_exact(self.classes);
        let distances = self.distances.chunks_exact(4 * self.bins);
        let mut found = Vec::new();
        for ((scores, distances), (stride, column, row)) in logits.zip(distances).zip(cells) {
            let (class, best) = best(scores)?;
            let probability = sigmoid(best);
            if probability <= confidence {
                continue;
            }
            let mut sides = distances.chunks_exact(self.bins).map(expectation);
            let (left, top, right, bottom) = (sides.next()?, sides.next()?, sides.next()?, sides.next()?);
            let (x, y) = (column as f32 + 0.5, row as f32 + 0.5);
            let edges = [x - left, y - top, x + right, y + bottom].map(|at| at * stride);
            if edges.iter().any(|at| !at.is_finite()) {
                return None;
            }
            let [x0, y0, x1, y1] = edges;
            found.push(Detection { x0, y0, x1, y1, confidence: probability, class });
        }
        Some(found)
    }
}

/// The first of the largest; `None` when one is not a number.
fn best(logits: &[f32]) -> Option<(usize, f32)> {
    let mut best: Option<(usize, f32)> = None;
    for (class, logit) in logits.iter().copied().enumerate() {
        if logit.is_nan() {
            return None;
        }
        if best.is_none_or(|(_, most)| logit > most) {
            best = Some((class, logit));
        }
    }
    best
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// The mean bin under the softmax of `logits` (distribution focal loss, Li et al. 2020).
fn expectation(logits: &[f32]) -> f32 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let (mut total, mut weighted) = (0.0, 0.0);
    for (bin, logit) in logits.iter().enumerate() {
        let share = (logit - most).exp();
        total += share;
        weighted += share * bin as f32;
    }
    weighted / total
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of a 32 × 32 picture: 16, 4 and 1 cells, 4 bins, 2 classes; only `cell` is above a half.
    fn rows(cell: usize, distances: [usize; 4]) -> (Vec<f32>, Vec<f32>) {
        let (mut logits, mut scores) = (vec![0.0; 21 * 16], vec![-5.0; 21 * 2]);
        scores[cell * 2 + 1] = 3.0;
        for (side, bin) in distances.into_iter().enumerate() {
            logits[cell * 16 + side * 4 + bin] = 100.0;
        }
        (logits, scores)
    }

    fn only(cell: usize, distances: [usize; 4]) -> Detection {
        let (distances, scores) = rows(cell, distances);
        let rows = Rows { distances: &distances, scores: &scores, bins: 4, classes: 2 };
        let found = rows.detections(32, 32, 0.5).unwrap();
        assert_eq!(found.len(), 1);
        found[0]
    }

    #[test]
    fn a_cell_says_how_far_the_edges_are_from_its_middle_in_its_own_stride() {
        // Cell 6 of the finest grid is column 2, row 1; cell 17 is column 1, row 0 of the next one.
        let fine = only(6, [1, 0, 2, 3]);
        assert_eq!(fine.edges(), [12.0, 12.0, 36.0, 36.0]);
        assert_eq!(fine.class, 1);
        assert!((fine.confidence - 0.952_574_1).abs() < 1e-6);
        assert_eq!(only(17, [1, 0, 2, 3]).edges(), [8.0, 8.0, 56.0, 56.0]);
        assert_eq!(only(20, [0, 0, 0, 0]).edges(), [16.0, 16.0, 16.0, 16.0]);
    }

    #[test]
    fn a_distance_is_the_mean_of_its_distribution() {
        assert_eq!(expectation(&[0.0, 0.0, 0.0, 0.0]), 1.5);
        assert_eq!(expectation(&[-1000.0, 1000.0, 1000.0, -1000.0]), 1.5);
    }

    #[test]
    fn what_is_not_a_number_is_no_detection_but_an_error() {
        for damaged in [f32::NAN, f32::INFINITY] {
            let (mut distances, scores) = rows(3, [1; 4]);
            distances[3 * 16] = damaged;
            let rows = Rows { distances: &distances, scores: &scores, bins: 4, classes: 2 };
            assert!(rows.detections(32, 32, 0.5).is_none());
        }
        let (distances, mut scores) = rows(3, [1; 4]);
        scores[0] = f32::NAN;
        let rows = Rows { distances: &distances, scores: &scores, bins: 4, classes: 2 };
        assert!(rows.detections(32, 32, 0.5).is_none());
    }
}
