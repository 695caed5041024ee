//! What a picture may give up of exactness for speed: guidance for part of the run only, and features that several
//! steps share. Nothing unless it is asked for.
//!
//! What is left out is left out of a sample by its own settings and its own place in its run alone, so that samples
//! with and without share step batches.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::PipelineError;
use crate::sampler::SamplerKind;
use crate::schedule::ModelSampling;

/// Most evaluations that share features.
pub const MAX_CACHE_INTERVAL: usize = 100;
/// Highest number of a skip connection that is looked at; networks have fewer.
pub const MAX_CACHE_BRANCH: usize = 63;

/// What is given up; by default nothing.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Speed {
    /// Where in the run guidance acts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guidance_interval: Option<GuidanceInterval>,
    /// Features that evaluations share.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step_cache: Option<StepCache>,
}

/// The part of the noise schedule in which the negative prompt is evaluated (Kynkäänniemi et al. 2024). Outside it the
/// prompt's prediction stands alone, as with a guidance scale of 1, and a step costs half.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct GuidanceInterval {
    /// Share of the noise schedule at which it begins, 0 to 1, as ComfyUI's `start_percent` counts.
    pub start: f64,
    /// Share of the noise schedule at which it ends, 0 to 1.
    pub end: f64,
}

impl GuidanceInterval {
    /// The whole schedule: plain guidance.
    pub const WHOLE: Self = Self { start: 0.0, end: 1.0 };

    /// The noise levels at which guidance acts; `None`: all.
    pub(crate) fn sigmas(self, sampling: &ModelSampling) -> Option<RangeInclusive<f32>> {
        (self != Self::WHOLE)
            .then(|| sampling.percent_to_sigma(self.end)..=sampling.percent_to_sigma(self.start))
    }
}

/// DeepCache (Ma, Fang & Wang 2023): of so many network evaluations one runs the whole network and keeps what comes
/// from below at one skip connection; the others run only what is above it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepCache {
    /// Evaluations of which the first is whole, 1 to [`MAX_CACHE_INTERVAL`]; 1 is no caching. A sample's evaluations
    /// count from its first, so that a step of a sampler with two evaluations counts twice.
    pub cache_interval: usize,
    /// Number of the skip connection, from the outermost, 0; `None`: the outermost blocks as a whole run on every
    /// evaluation (2 with SDXL and SD 1.5).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_branch_id: Option<usize>,
}

impl Speed {
    /// Whether nothing is given up.
    pub fn is_exact(&self) -> bool {
        self.effective() == Self::default()
    }

    /// The same without what gives nothing up.
    #[must_use]
    pub fn effective(self) -> Self {
        Self {
            guidance_interval: self.guidance_interval.filter(|interval| *interval != GuidanceInterval::WHOLE),
            step_cache: self.step_cache.filter(|cache| cache.cache_interval != 1),
        }
    }

    /// Checks every bound that holds whatever the network is.
    ///
    /// # Errors
    /// A value is out of range, or the sampler cannot do without what is left out.
    pub fn validate(&self, sampler: SamplerKind) -> Result<(), PipelineError> {
        let refuse = |field: &'static str, message: String| Err(PipelineError::Request { field, message });
        if let Some(interval @ GuidanceInterval { start, end }) = self.guidance_interval {
            const FIELD: &str = "speed.guidance_interval";
            if !(0.0..=1.0).contains(&start) || !(0.0..=1.0).contains(&end) || start > end {
                return refuse(FIELD, "must have start and end of 0 to 1, and start not after end".into());
            }
            if interval != GuidanceInterval::WHOLE && sampler.needs_uncond() {
                let message = format!(
                    "cannot be used with {sampler}, which takes the negative prompt's prediction at every step: use a \
                     sampler without cfg_pp in its name"
                );
                return refuse(FIELD, message);
            }
        }
        if let Some(StepCache { cache_interval, cache_branch_id }) = self.step_cache {
            if !(1..=MAX_CACHE_INTERVAL).contains(&cache_interval) {
                let message = format!("is {cache_interval}, must be 1 to {MAX_CACHE_INTERVAL}");
                return refuse("speed.step_cache.cache_interval", message);
            }
            if let Some(branch) = cache_branch_id.filter(|branch| *branch > MAX_CACHE_BRANCH) {
                let message = format!("is {branch}, must be 0 to {MAX_CACHE_BRANCH}");
                return refuse("speed.step_cache.cache_branch_id", message);
            }
        }
        Ok(())
    }

    /// Network work of a run with this, relative to one without, for a guided run: what forecasts count. Steps are
    /// taken to be spread evenly over the schedule.
    pub fn expected_work(&self, guided: bool) -> f64 {
        /// What a shallow evaluation takes of a whole one: 0.07 of SDXL's products, and what does not shrink with
        /// them.
        const SHALLOW: f64 = 0.1;
        let rows = match self.guidance_interval {
            Some(GuidanceInterval { start, end }) if guided => (1.0 + (end - start).clamp(0.0, 1.0)) / 2.0,
            _ => 1.0,
        };
        let cached = self.step_cache.map_or(1.0, |cache| {
            let interval = cache.cache_interval.max(1) as f64;
            (1.0 + (interval - 1.0) * SHALLOW) / interval
        });
        rows * cached
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interval(start: f64, end: f64) -> Speed {
        Speed { guidance_interval: Some(GuidanceInterval { start, end }), step_cache: None }
    }

    fn cache(cache_interval: usize) -> Speed {
        let step_cache = Some(StepCache { cache_interval, cache_branch_id: None });
        Speed { guidance_interval: None, step_cache }
    }

    #[test]
    fn values_out_of_range_are_refused_by_their_names() {
        let refused = |speed: Speed| speed.validate(SamplerKind::Euler).unwrap_err().to_string();
        for speed in [interval(0.5, 0.4), interval(-0.1, 1.0), interval(0.0, 1.1), interval(f64::NAN, 1.0)] {
            assert!(refused(speed).contains("speed.guidance_interval"), "{speed:?}");
        }
        for speed in [cache(0), cache(MAX_CACHE_INTERVAL + 1), cache(usize::MAX)] {
            assert!(refused(speed).contains("speed.step_cache.cache_interval"), "{speed:?}");
        }
        for speed in [Speed::default(), interval(0.0, 1.0), interval(0.3, 0.3), cache(1), cache(100)] {
            speed.validate(SamplerKind::Euler).unwrap();
        }
    }

    #[test]
    fn samplers_that_need_the_negative_prediction_refuse_to_go_without_it() {
        for sampler in SamplerKind::ALL {
            assert_eq!(interval(0.0, 0.5).validate(*sampler).is_err(), sampler.needs_uncond(), "{sampler}");
            interval(0.0, 1.0).validate(*sampler).unwrap();
            cache(3).validate(*sampler).unwrap();
        }
    }

    #[test]
    fn nothing_is_given_up_by_default_and_by_what_changes_nothing() {
        assert!(Speed::default().is_exact() && interval(0.0, 1.0).is_exact() && cache(1).is_exact());
        assert!(!interval(0.0, 0.9).is_exact() && !cache(2).is_exact());
        for exact in [Speed::default(), interval(0.0, 1.0), cache(1)] {
            assert!((exact.expected_work(true) - 1.0).abs() < 1e-12);
        }
        assert!((interval(0.0, 0.5).expected_work(true) - 0.75).abs() < 1e-12);
        assert!((interval(0.0, 0.5).expected_work(false) - 1.0).abs() < 1e-12);
        assert!((cache(3).expected_work(true) - 0.4).abs() < 1e-12);
    }
}
