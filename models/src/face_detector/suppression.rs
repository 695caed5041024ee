//! Non-maximum suppression: of boxes that overlap, the most confident one stays.

use super::decode::Detection;

/// Most boxes that are compared; the least confident ones beyond are dropped, as in the reference.
const MAX_CANDIDATES: usize = 30_000;

/// At most `limit` of `candidates`, most confident first: each is left out that overlaps a kept one of its class
/// by more than `iou`. Boxes of equal confidence are taken in the order given.
pub(super) fn suppressed(mut candidates: Vec<Detection>, iou: f32, limit: usize) -> Vec<Detection> {
    candidates.sort_by(|a, b| b.confidence.total_cmp(&a.confidence));
    candidates.truncate(MAX_CANDIDATES);
    let mut kept: Vec<Detection> = Vec::new();
    for candidate in candidates {
        if kept.len() == limit {
            break;
        }
        let covered =
            kept.iter().any(|better| better.class == candidate.class && overlap(better, &candidate) > iou);
        if !covered {
            kept.push(candidate);
        }
    }
    kept
}

/// Intersection over union; not a number for two boxes without area, which covers nothing.
fn overlap(a: &Detection, b: &Detection) -> f32 {
    let width = (a.x1.min(b.x1) - a.x0.max(b.x0)).max(0.0);
    let height = (a.y1.min(b.y1) - a.y0.max(b.y0)).max(0.0);
    let area = |d: &Detection| (d.x1 - d.x0) * (d.y1 - d.y0);
    let shared = width * height;
    shared / (area(a) + area(b) - shared)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn square(x: f32, y: f32, side: f32, confidence: f32, class: usize) -> Detection {
        Detection { x0: x, y0: y, x1: x + side, y1: y + side, confidence, class }
    }

    #[test]
    fn of_two_that_overlap_the_more_confident_stays() {
        let (weak, strong) = (square(0.0, 0.0, 10.0, 0.6, 0), square(1.0, 0.0, 10.0, 0.9, 0));
        // They share 90 of 110.
        assert_eq!(suppressed(vec![weak, strong], 0.81, 10), [strong]);
        assert_eq!(suppressed(vec![weak, strong], 0.82, 10), [strong, weak]);
    }

    #[test]
    fn an_overlap_of_exactly_the_limit_is_allowed() {
        let (a, b) = (square(0.0, 0.0, 3.0, 0.9, 0), square(1.0, 0.0, 3.0, 0.8, 0));
        // They share 6 of 12.
        assert_eq!(suppressed(vec![a, b], 0.5, 10).len(), 2);
    }

    #[test]
    fn classes_do_not_suppress_each_other() {
        let both = vec![square(0.0, 0.0, 10.0, 0.9, 0), square(0.0, 0.0, 10.0, 0.8, 1)];
        assert_eq!(suppressed(both.clone(), 0.1, 10), both);
    }

    #[test]
    fn what_was_suppressed_suppresses_nothing() {
        let chain: Vec<_> =
            (0..3).map(|i| square(4.0 * i as f32, 0.0, 10.0, 0.9 - 0.1 * i as f32, 0)).collect();
        // Neighbours share 60 of 140, the ends 20 of 180.
        assert_eq!(suppressed(chain.clone(), 0.4, 10), [chain[0], chain[2]]);
    }

    #[test]
    fn boxes_without_area_stay_and_break_nothing() {
        let points = vec![square(5.0, 5.0, 0.0, 0.9, 0), square(5.0, 5.0, 0.0, 0.8, 0)];
        assert_eq!(suppressed(points.clone(), 0.5, 10), points);
    }

    #[test]
    fn equal_confidences_are_taken_in_order() {
        let equal: Vec<_> = (0..4).map(|i| square(20.0 * i as f32, 0.0, 10.0, 0.5, 0)).collect();
        assert_eq!(suppressed(equal.clone(), 0.5, 2), equal[..2]);
    }

    proptest! {
        #[test]
        fn what_is_left_does_not_overlap_and_what_is_not_did(
            boxes in prop::collection::vec((0f32..50.0, 0f32..50.0, 1f32..30.0, 0f32..1.0, 0usize..3), 0..60),
            iou in 0f32..1.0,
        ) {
            let all: Vec<_> = boxes.into_iter().map(|(x, y, s, c, k)| square(x, y, s, c, k)).collect();
            let kept = suppressed(all.clone(), iou, usize::MAX);
            prop_assert!(kept.is_sorted_by(|a, b| a.confidence >= b.confidence));
            for (i, a) in kept.iter().enumerate() {
                prop_assert!(all.contains(a));
                prop_assert!(kept[..i].iter().all(|b| a.class != b.class || overlap(a, b) <= iou));
            }
            for lost in all.iter().filter(|d| !kept.contains(d)) {
                let better = |k: &&Detection| k.class == lost.class && k.confidence >= lost.confidence;
                prop_assert!(kept.iter().filter(better).any(|k| overlap(k, lost) > iou));
            }
        }
    }
}
