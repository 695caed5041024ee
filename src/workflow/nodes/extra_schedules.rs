//! Schedules that extensions offer beside ComfyUI's: Align Your Steps (Sabour et al. 2024), whose noise levels are
//! tables for each kind of model.

use std::str::FromStr;

use darkroom_pipelines::sampler::SamplerKind;
use darkroom_pipelines::schedule::{self, MAX_STEPS, ModelSampling, Scheduler};

/// Noise levels of ten steps, and what extensions call them.
const TABLES: [(&str, [f64; 11]); 3] = [
    (
        "AYS SD1",
        [
            14.6146412293,
            6.4745760956,
            3.8636745985,
            2.694615152,
            1.8841921177,
            1.3943805092,
            0.9642583904,
            0.6523686016,
            0.3977456272,
            0.1515232662,
            0.0291671582,
        ],
    ),
    (
        "AYS SDXL",
        [
            14.6146412293,
            6.3184485287,
            3.7681790315,
            2.1811480769,
            1.3405244945,
            0.8620721141,
            0.5550693289,
            0.3798540708,
            0.2332364134,
            0.1114188177,
            0.0291671582,
        ],
    ),
    ("AYS SVD", [700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002]),
];
/// How small a share of the schedule still draws all of it, as ComfyUI has it.
const ALL_OF_IT: f64 = 0.9999;

/// ComfyUI's schedulers and those after them that an extension offers.
pub(super) fn names(others: &[&'static str]) -> Vec<&'static str> {
    Scheduler::ALL.iter().map(|scheduler| scheduler.name()).chain(others.iter().copied()).collect()
}

/// The last `steps` steps of a schedule of `steps / denoise`, by its name; none where `denoise` is 0.
///
/// # Errors
/// When the name is not known or the schedule cannot be made; in words.
pub(super) fn sigmas(
    name: &str,
    sampling: &ModelSampling,
    steps: usize,
    denoise: f64,
    sampler: SamplerKind,
) -> Result<Vec<f32>, String> {
    let Some((_, table)) = TABLES.iter().find(|(known, _)| *known == name) else {
        if name.starts_with("GITS") {
            return Err("the scheduler GITS is not supported; take another".into());
        }
        let scheduler = Scheduler::from_str(name).map_err(|error| error.to_string())?;
        return schedule::sigmas(scheduler, sampling, steps, denoise, sampler)
            .map_err(|error| error.to_string());
    };
    if denoise <= 0.0 {
        return Ok(Vec::new());
    }
    let total = if denoise > ALL_OF_IT { steps as f64 } else { steps as f64 / denoise };
    if total < 1.0 || total > MAX_STEPS as f64 {
        return Err(format!("{total} steps are needed; 1 to {MAX_STEPS} can be made"));
    }
    let total = total as usize;
    let discard = sampler.discards_penultimate_sigma();
    let mut sigmas = aligned(table, total + usize::from(discard));
    if discard {
        sigmas.remove(sigmas.len() - 2);
    }
    Ok(sigmas.split_off(sigmas.len().saturating_sub(steps + 1)))
}

/// The table for `steps` steps: between its levels by their logarithms. Ends at 0.
fn aligned(table: &[f64; 11], steps: usize) -> Vec<f32> {
    let count = steps + 1;
    let mut levels: Vec<f64> = if count == table.len() {
        table.to_vec()
    } else {
        let last = table.len() - 1;
        // Counted from the lowest level, which is how rounding goes.
        let level = |i: usize| {
            let place = i as f64 / (count - 1) as f64 * last as f64;
            let low = (place as usize).min(last - 1);
            let (a, b) = (table[last - low].ln(), table[last - low - 1].ln());
            (a + (b - a) * (place - low as f64)).exp()
        };
        (0..count).rev().map(level).collect()
    };
    if let Some(end) = levels.last_mut() {
        *end = 0.0;
    }
    levels.into_iter().map(|level| level as f32).collect()
}

#[cfg(test)]
mod tests {
    use darkroom_pipelines::schedule::Prediction;

    use super::*;

    #[test]
    fn ten_steps_are_the_table_and_others_lie_between() {
        // What ComfyUI's AlignYourStepsScheduler gives for SDXL.
        let three = aligned(&TABLES[1].1, 3);
        let expected = [14.614_641, 1.854_449_5, 0.431_049_3, 0.0];
        for (found, expected) in three.iter().zip(expected) {
            assert!((found - expected).abs() <= 1e-6 * expected, "{three:?}");
        }
        assert_eq!(aligned(&TABLES[0].1, 10)[1], 6.474_576);
    }

    #[test]
    fn a_part_of_a_schedule_is_its_end() {
        let sampling = ModelSampling::scaled_linear(Prediction::Epsilon);
        let all = sigmas("AYS SD1", &sampling, 20, 1.0, SamplerKind::Euler).unwrap();
        let half = sigmas("AYS SD1", &sampling, 10, 0.5, SamplerKind::Euler).unwrap();
        assert_eq!(all[10..], half);
        assert_eq!(sigmas("AYS SD1", &sampling, 20, 1.0, SamplerKind::Dpm2).unwrap().len(), 21);
        assert!(sigmas("GITS[coeff=1.2]", &sampling, 20, 1.0, SamplerKind::Euler).is_err());
        assert!(sigmas("AYS SD1", &sampling, 10_000, 1e-4, SamplerKind::Euler).is_err());
    }
}
