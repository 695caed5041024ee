//! What requests may give up of exactness for speed, as JSON, and what a picture was drawn with.

use darkroom_pipelines::{GuidanceInterval, Speed, StepCache};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What is given up of exactness for speed. What is left out is as the server's `[speed]` settings have it, which give
/// up nothing unless they are changed.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct SpeedBody {
    /// Evaluates the negative prompt for part of the noise schedule only. Steps outside it cost half.
    #[serde(skip_serializing_if = "Option::is_none")]
    guidance_interval: Option<GuidanceIntervalBody>,
    /// Runs the whole network on every so many evaluations only.
    #[serde(skip_serializing_if = "Option::is_none")]
    step_cache: Option<StepCacheBody>,
}

/// The part of the noise schedule in which guidance acts. From 0 to 1 is plain guidance.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct GuidanceIntervalBody {
    /// Share of the schedule at which it begins.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 1, default = 0.0)]
    start: f64,
    /// Share of the schedule at which it ends.
    #[serde(default = "whole")]
    #[schema(minimum = 0, maximum = 1, default = 1.0)]
    end: f64,
}

/// DeepCache: evaluations share what the deeper part of the network made.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct StepCacheBody {
    /// Evaluations that share it; 1 is no caching.
    #[schema(minimum = 1, maximum = 100)]
    cache_interval: u32,
    /// Number of the skip connection, from the outermost, below which nothing is run anew. Left out: the outermost
    /// blocks run as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 63)]
    cache_branch_id: Option<u32>,
}

fn whole() -> f64 {
    GuidanceInterval::WHOLE.end
}

impl SpeedBody {
    /// What a picture was drawn with; `None`: nothing was given up.
    pub(in crate::http) fn of(speed: Speed) -> Option<Self> {
        let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let speed = speed.effective();
        (!speed.is_exact()).then(|| Self {
            guidance_interval: speed
                .guidance_interval
                .map(|GuidanceInterval { start, end }| GuidanceIntervalBody { start, end }),
            step_cache: speed.step_cache.map(|StepCache { cache_interval, cache_branch_id }| StepCacheBody {
                cache_interval: number(cache_interval),
                cache_branch_id: cache_branch_id.map(number),
            }),
        })
    }
}

impl From<SpeedBody> for Speed {
    fn from(SpeedBody { guidance_interval, step_cache }: SpeedBody) -> Self {
        Self {
            guidance_interval: guidance_interval
                .map(|GuidanceIntervalBody { start, end }| GuidanceInterval { start, end }),
            step_cache: step_cache.map(|StepCacheBody { cache_interval, cache_branch_id }| StepCache {
                cache_interval: cache_interval as usize,
                cache_branch_id: cache_branch_id.map(|branch| branch as usize),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: serde_json::Value) -> Speed {
        serde_json::from_value::<SpeedBody>(value).unwrap().into()
    }

    #[test]
    fn what_is_left_out_of_an_interval_is_the_end_of_the_schedule() {
        let interval = |start, end| Some(GuidanceInterval { start, end });
        assert_eq!(
            read(json!({ "guidance_interval": { "end": 0.8 } })).guidance_interval,
            interval(0.0, 0.8)
        );
        assert_eq!(
            read(json!({ "guidance_interval": { "start": 0.1 } })).guidance_interval,
            interval(0.1, 1.0)
        );
        assert_eq!(read(json!({})), Speed::default());
    }

    #[test]
    fn what_is_told_of_a_picture_can_be_asked_for_again() {
        for value in [
            json!({ "guidance_interval": { "start": 0.25, "end": 0.75 } }),
            json!({ "step_cache": { "cache_interval": 3 } }),
            json!({ "guidance_interval": { "start": 0.0, "end": 0.5 }, "step_cache": { "cache_interval": 2, "cache_branch_id": 0 } }),
        ] {
            let told = SpeedBody::of(read(value.clone())).unwrap();
            assert_eq!(serde_json::to_value(told).unwrap(), value);
        }
        assert_eq!(SpeedBody::of(read(json!({ "step_cache": { "cache_interval": 1 } }))), None);
    }

    #[test]
    fn unknown_words_and_no_numbers_are_refused() {
        for value in [
            json!({ "fp9": true }),
            json!({ "step_cache": {} }),
            json!({ "step_cache": { "cache_interval": -1 } }),
            json!({ "guidance_interval": { "stop": 0.5 } }),
            json!({ "guidance_interval": { "end": "late" } }),
        ] {
            assert!(serde_json::from_value::<SpeedBody>(value.clone()).is_err(), "{value}");
        }
    }
}
