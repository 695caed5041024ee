//! What was measured, as a table for people and as JSON.

use std::fmt::Write;

use serde_json::{Value, json};

use super::compare::Alike;

/// A distribution of seconds.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Figures {
    pub(super) count: usize,
    pub(super) mean: f64,
    pub(super) p50: f64,
    pub(super) p95: f64,
    pub(super) p99: f64,
    pub(super) most: f64,
}

impl Figures {
    /// Of what was measured; percentiles by nearest rank.
    pub(super) fn of(seconds: &[f64]) -> Self {
        let mut sorted = seconds.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let rank = (share * sorted.len() as f64).ceil() as usize;
            sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
        };
        Self {
            count: sorted.len(),
            mean: sorted.iter().sum::<f64>() / sorted.len().max(1) as f64,
            p50: at(0.5),
            p95: at(0.95),
            p99: at(0.99),
            most: at(1.0),
        }
    }

    fn json(&self) -> Value {
        json!({"count": self.count, "mean": self.mean, "p50": self.p50, "p95": self.p95, "p99": self.p99, "max": self.most})
    }
}

/// One server.
pub(super) struct Side {
    pub(super) name: String,
    pub(super) url: String,
    /// Seconds a prompt.
    pub(super) latency: Figures,
    /// Prompts a second of each round.
    pub(super) rounds: Vec<f64>,
    /// Seconds of a workflow that does nearly nothing.
    pub(super) trivial: Figures,
    /// The same from the cache.
    pub(super) cached: Figures,
    /// Bytes.
    pub(super) peak_memory: Option<u64>,
    pub(super) system: Value,
}

impl Side {
    fn throughput(&self) -> Figures {
        Figures::of(&self.rounds)
    }
}

/// All of it.
pub(super) struct Report {
    pub(super) workflow: String,
    pub(super) prompts: usize,
    pub(super) concurrency: usize,
    pub(super) warmup: usize,
    pub(super) sides: Vec<Side>,
    pub(super) pictures: Option<Alike>,
}

impl Report {
    /// The other's throughput in Darkroom's: above 1, Darkroom is faster.
    fn ratio(&self) -> Option<f64> {
        match &self.sides[..] {
            [own, other] => Some(own.throughput().p50 / other.throughput().p50),
            _ => None,
        }
    }

    /// For people.
    pub(super) fn table(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(
            text,
            "{} prompts of {} on each server, {} at a time, after {} for warm-up",
            self.prompts, self.workflow, self.concurrency, self.warmup
        );
        let mut row = |label: &str, cell: &dyn Fn(&Side) -> String| {
            let _ = write!(text, "{label:<34}");
            for side in &self.sides {
                let _ = write!(text, "{:>18}", cell(side));
            }
            text.push('\n');
        };
        let milliseconds = |seconds: f64| format!("{:.1} ms", 1e3 * seconds);
        row("", &|side| side.name.clone());
        row("prompts a second (median round)", &|side| format!("{:.3}", side.throughput().p50));
        row("  slowest and fastest round", &|side| {
            let least = side.rounds.iter().copied().fold(f64::INFINITY, f64::min);
            format!("{least:.3}-{:.3}", side.throughput().most)
        });
        row("latency p50", &|side| milliseconds(side.latency.p50));
        row("latency p95", &|side| milliseconds(side.latency.p95));
        row("latency p99", &|side| milliseconds(side.latency.p99));
        row("overhead, trivial workflow, p50", &|side| milliseconds(side.trivial.p50));
        row("overhead, cached workflow, p50", &|side| milliseconds(side.cached.p50));
        row("peak memory", &|side| {
            side.peak_memory.map_or("not readable".into(), |bytes| format!("{} MiB", bytes >> 20))
        });
        if let Some(ratio) = self.ratio() {
            let _ = writeln!(text, "Darkroom's throughput is {ratio:.2} times the other's");
        }
        if let Some(alike) = &self.pictures {
            let _ = writeln!(
                text,
                "{} pictures compared: least PSNR {:.1} dB, least SSIM {:.5}, largest difference {} of 255, {:.4} % of \
                 values differ by more than 2",
                alike.pictures,
                alike.psnr,
                alike.ssim,
                alike.largest,
                100.0 * alike.beyond_two
            );
            if alike.unequal > 0 {
                let _ = writeln!(text, "{} could not be compared: other sizes or numbers", alike.unequal);
            }
        }
        text.trim_end().to_owned()
    }

    /// For programs.
    pub(super) fn json(&self) -> Value {
        let sides: Vec<Value> = self
            .sides
            .iter()
            .map(|side| {
                json!({
                    "name": side.name,
                    "url": side.url,
                    "prompts_per_second": {"rounds": side.rounds, "median": side.throughput().p50},
                    "latency_seconds": side.latency.json(),
                    "overhead_seconds": {"trivial": side.trivial.json(), "cached": side.cached.json()},
                    "peak_memory_bytes": side.peak_memory,
                    "system_stats": side.system,
                })
            })
            .collect();
        let pictures = self.pictures.as_ref().map(|alike| {
            json!({
                "compared": alike.pictures,
                "not_comparable": alike.unequal,
                // JSON has no infinity: the same pictures have none.
                "least_psnr_db": alike.psnr.is_finite().then_some(alike.psnr),
                "least_ssim": alike.ssim,
                "largest_difference": alike.largest,
                "share_beyond_2": alike.beyond_two,
            })
        });
        json!({
            "workflow": self.workflow,
            "prompts": self.prompts,
            "concurrency": self.concurrency,
            "warmup": self.warmup,
            "cores": std::thread::available_parallelism().map_or(0, usize::from),
            "darkroom_version": env!("CARGO_PKG_VERSION"),
            "servers": sides,
            "throughput_ratio": self.ratio(),
            "pictures": pictures,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let figures = Figures::of(&(1..=100).map(f64::from).collect::<Vec<_>>());
        assert_eq!((figures.p50, figures.p95, figures.p99, figures.most), (50.0, 95.0, 99.0, 100.0));
        assert_eq!(Figures::of(&[3.0]).p99, 3.0);
        assert_eq!(Figures::of(&[]).p50, 0.0);
    }
}
