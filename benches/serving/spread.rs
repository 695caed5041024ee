//! Many measurements in a few numbers.

use serde_json::{Value, json};

/// Measurements in ascending order.
pub(crate) struct Spread(Vec<f64>);

impl Spread {
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        Self(values)
    }

    /// The value that `share` (0 to 1) of all do not exceed; the nearest rank.
    pub(crate) fn at(&self, share: f64) -> f64 {
        let rank = (share * self.0.len() as f64).ceil() as usize;
        self.0.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
    }

    /// The middle one, or the mean of the two in the middle.
    pub(crate) fn median(&self) -> f64 {
        let n = self.0.len();
        if n == 0 {
            return f64::NAN;
        }
        (self.0[(n - 1) / 2] + self.0[n / 2]) / 2.0
    }

    /// Rounded for people who read the report.
    pub(crate) fn json(&self) -> Value {
        json!({
            "count": self.0.len(),
            "least": rounded(self.at(0.0)),
            "median": rounded(self.median()),
            "p95": rounded(self.at(0.95)),
            "most": rounded(self.at(1.0)),
        })
    }
}

/// Four significant digits: more are noise.
pub(crate) fn rounded(value: f64) -> f64 {
    format!("{value:.3e}").parse().unwrap_or(value)
}
