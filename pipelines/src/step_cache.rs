//! What a sample keeps between evaluations with [`crate::speed::StepCache`]: where it is in the cycle, and for each of
//! its conditions the features that its last whole pass handed up.
//!
//! Whether an evaluation is whole depends on the sample's own count of evaluations alone. A condition for which
//! nothing is kept, because it did not count at the last whole evaluation, goes through the whole network.

use candle_core::Tensor;

/// How a row goes through the network.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pass<'s> {
    /// The whole network; what comes from below at skip `keep` is kept.
    Whole { keep: Option<usize> },
    /// What is above skip `branch`, on kept features, `[h, w, c]`.
    Shallow { branch: usize, below: &'s Tensor },
}

impl Pass<'_> {
    /// Where the pass is cut.
    pub(crate) fn branch(&self) -> Option<usize> {
        match self {
            Self::Whole { .. } => None,
            Self::Shallow { branch, .. } => Some(*branch),
        }
    }
}

/// A sample's place in the cycle, and its features.
#[derive(Debug, Clone)]
pub(crate) struct CachedFeatures {
    interval: usize,
    branch: usize,
    /// What the features of all conditions take.
    bytes: usize,
    /// Evaluations behind the sample.
    evaluations: usize,
    /// By number of the condition.
    kept: Vec<(usize, Tensor)>,
}

impl CachedFeatures {
    pub(crate) fn new(interval: usize, branch: usize, bytes: usize) -> Self {
        Self { interval: interval.max(1), branch, bytes, evaluations: 0, kept: Vec::new() }
    }

    /// Most bytes that are kept.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether the next evaluation is a whole one.
    pub(crate) fn is_whole(&self) -> bool {
        self.evaluations.is_multiple_of(self.interval)
    }

    /// Lets go of what the next evaluation has no use for, so that it is not held beside what takes its place.
    pub(crate) fn drop_stale(&mut self) {
        if self.is_whole() {
            self.kept.clear();
        }
    }

    /// How a condition's row goes through the network at the next evaluation.
    pub(crate) fn pass(&self, condition: usize) -> Pass<'_> {
        match self.kept.iter().find(|(known, _)| *known == condition) {
            Some((_, below)) if !self.is_whole() => Pass::Shallow { branch: self.branch, below },
            _ => Pass::Whole { keep: Some(self.branch) },
        }
    }

    /// The evaluation is done; `kept` is what its whole passes kept, by condition.
    pub(crate) fn advance(&mut self, kept: Vec<(usize, Tensor)>) {
        if self.is_whole() {
            self.kept.clear();
        }
        self.kept.extend(kept);
        self.evaluations += 1;
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    fn features(value: f32) -> Tensor {
        Tensor::full(value, (1, 1, 1), &Device::Cpu).unwrap().to_dtype(DType::F32).unwrap()
    }

    fn seen(cached: &CachedFeatures, condition: usize) -> Option<f32> {
        match cached.pass(condition) {
            Pass::Whole { keep } => {
                assert_eq!(keep, Some(2));
                None
            }
            Pass::Shallow { branch, below } => {
                assert_eq!(branch, 2);
                Some(below.flatten_all().unwrap().to_vec1::<f32>().unwrap()[0])
            }
        }
    }

    #[test]
    fn one_evaluation_of_a_cycle_is_whole_and_the_others_see_what_it_kept() {
        let mut cached = CachedFeatures::new(3, 2, 0);
        for evaluation in 0..7 {
            cached.drop_stale();
            let expected = (evaluation % 3 != 0).then_some((evaluation / 3 * 3) as f32);
            assert_eq!(seen(&cached, 0), expected, "{evaluation}");
            let kept = if expected.is_none() { vec![(0, features(evaluation as f32))] } else { Vec::new() };
            cached.advance(kept);
        }
    }

    #[test]
    fn a_condition_that_joins_within_a_cycle_runs_whole_once() {
        let mut cached = CachedFeatures::new(3, 2, 0);
        cached.advance(vec![(0, features(1.0))]);
        assert_eq!((seen(&cached, 0), seen(&cached, 1)), (Some(1.0), None));
        cached.advance(vec![(1, features(2.0))]);
        assert_eq!((seen(&cached, 0), seen(&cached, 1)), (Some(1.0), Some(2.0)));
        // It did not count at the next whole evaluation, so its old features are gone.
        cached.advance(Vec::new());
        assert!(cached.is_whole());
        cached.advance(vec![(0, features(3.0))]);
        assert_eq!((seen(&cached, 0), seen(&cached, 1)), (Some(3.0), None));
    }

    #[test]
    fn a_failed_evaluation_is_made_again_the_same_way() {
        let mut cached = CachedFeatures::new(2, 2, 0);
        cached.advance(vec![(0, features(1.0))]);
        for _ in 0..2 {
            cached.drop_stale();
            assert_eq!(seen(&cached, 0), Some(1.0));
        }
    }
}
