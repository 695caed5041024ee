//! The flags that give up exactness for speed.

use std::str::FromStr;

use clap::Args;
use darkroom_pipelines::{GuidanceInterval, MAX_CACHE_BRANCH, MAX_CACHE_INTERVAL, Speed, StepCache};

/// What is given up; by default nothing.
#[derive(Debug, Args)]
#[command(next_help_heading = "Speed for exactness")]
pub(super) struct SpeedArgs {
    /// Evaluate the negative prompt only within this part of the noise schedule; steps outside it cost half
    #[arg(long, value_name = "START-END")]
    guidance_interval: Option<IntervalArg>,
    /// Run the whole network on one of so many evaluations, its outer part on the others (DeepCache)
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..=MAX_CACHE_INTERVAL as i64))]
    cache_interval: Option<u32>,
    /// Skip connection below which nothing is run anew, 0 the outermost [default: the outermost blocks run whole]
    #[arg(long, value_name = "N", allow_negative_numbers = true, requires = "cache_interval", value_parser = clap::value_parser!(u32).range(0..=MAX_CACHE_BRANCH as i64))]
    cache_branch_id: Option<u32>,
}

impl SpeedArgs {
    /// What the pipeline is told.
    pub(super) fn speed(&self) -> Speed {
        Speed {
            guidance_interval: self.guidance_interval.map(|IntervalArg(interval)| interval),
            step_cache: self.cache_interval.map(|interval| StepCache {
                cache_interval: interval as usize,
                cache_branch_id: self.cache_branch_id.map(|branch| branch as usize),
            }),
        }
    }
}

/// `0.1-0.8`.
#[derive(Debug, Clone, Copy, PartialEq)]
struct IntervalArg(GuidanceInterval);

impl FromStr for IntervalArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let share = |text: &str| text.trim().parse::<f64>().ok().filter(|share| (0.0..=1.0).contains(share));
        let ends = text.split_once('-').and_then(|(start, end)| Some((share(start)?, share(end)?)));
        match ends {
            Some((start, end)) if start <= end => Ok(Self(GuidanceInterval { start, end })),
            Some(_) => Err("ends before it starts".into()),
            None => Err("write START-END, each 0 to 1, such as 0-0.8".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_two_shares() {
        let interval = |start, end| Ok(IntervalArg(GuidanceInterval { start, end }));
        assert_eq!("0-0.8".parse(), interval(0.0, 0.8));
        assert_eq!(" 0.25 - 1 ".parse(), interval(0.25, 1.0));
        for wrong in ["", "0.5", "0.8-0.2", "0-1.5", "-0.5-1", "a-b", "0-NaN", "0-1-1"] {
            assert!(wrong.parse::<IntervalArg>().is_err(), "{wrong}");
        }
    }
}
