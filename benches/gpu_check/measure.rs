//! Times that mean something: warm, repeated, in the middle of many.

use std::time::Instant;

use crate::Outcome;
use crate::device::Target;

/// Many measurements in ascending order.
pub(crate) struct Spread(Vec<f64>);

impl Spread {
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        Self(values)
    }

    /// The middle one, or the mean of the two in the middle.
    pub(crate) fn median(&self) -> f64 {
        let n = self.0.len();
        if n == 0 { f64::NAN } else { (self.0[(n - 1) / 2] + self.0[n / 2]) / 2.0 }
    }

    pub(crate) fn least(&self) -> f64 {
        self.0.first().copied().unwrap_or(f64::NAN)
    }

    pub(crate) fn most(&self) -> f64 {
        self.0.last().copied().unwrap_or(f64::NAN)
    }
}

/// How often.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Repeat {
    pub(crate) warm_up: usize,
    /// Measurements.
    pub(crate) times: usize,
    /// Seconds after which no further measurement begins (three are always made).
    pub(crate) patience: f64,
}

/// What a measurement of short work should last, so that the gaps between launches and the clock's grain do not count.
const LEAST_SECONDS: f64 = 2e-3;
/// Most calls in one measurement.
const MOST_CALLS: usize = 200;

/// Seconds of one call of `work`, which is told the number of the call. Short work is called often between two looks
/// at the clock.
pub(crate) fn seconds(
    target: &Target,
    repeat: Repeat,
    mut work: impl FnMut(usize) -> Outcome<()>,
) -> Outcome<Spread> {
    let mut call = 0;
    let mut run = |count: usize| -> Outcome<f64> {
        let begin = target.mark()?;
        for _ in 0..count {
            work(call)?;
            call += 1;
        }
        let end = target.mark()?;
        begin.seconds_to(&end)
    };
    for _ in 0..repeat.warm_up {
        run(1)?;
    }
    let once = run(1)?;
    let calls = ((LEAST_SECONDS / once.max(1e-9)).ceil() as usize).clamp(1, MOST_CALLS);
    let started = Instant::now();
    let mut all = Vec::with_capacity(repeat.times);
    for index in 0..repeat.times {
        if index >= 3 && started.elapsed().as_secs_f64() > repeat.patience {
            break;
        }
        all.push(run(calls)? / calls as f64);
    }
    Ok(Spread::of(all))
}
