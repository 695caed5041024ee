//! Sigmas: the noise levels of a run, made by schedulers and cut to pieces.

use std::sync::Arc;

use darkroom_pipelines::sampler::SamplerKind;
use darkroom_pipelines::schedule::explicit::{self, SigmaRange};
use darkroom_pipelines::schedule::{self, ScheduleError, Scheduler};

use super::sampling::{model_sampling, scheduler};
use crate::workflow::context::{Inputs, NodeError, Outputs};
use crate::workflow::interface::{Input, Interface, combo, float, int, link};
use crate::workflow::registry::{Registry, Run};
use crate::workflow::value::{Kind, Value};

const SCHEDULERS: &str = "sampling/custom_sampling/schedulers";
const PIECES: &str = "sampling/custom_sampling/sigmas";
const MODULE: &str = "comfy_extras.nodes_custom_sampler";

/// NVIDIA's "Align Your Steps" (Sabour et al. 2024): ten steps each.
const ALIGNED: [(&str, [f64; 11]); 3] = [
    (
        "SD1",
        [
            14.614_641_229_3,
            6.474_574_595_6,
            3.863_674_598_5,
            2.694_615_152_0,
            1.884_192_117_7,
            1.394_380_509_2,
            0.964_258_390_4,
            0.652_368_601_6,
            0.397_745_627_2,
            0.151_523_266_2,
            0.029_167_158_2,
        ],
    ),
    (
        "SDXL",
        [
            14.614_641_229_3,
            6.318_448_528_7,
            3.768_179_031_5,
            2.181_148_076_9,
            1.340_524_494_5,
            0.862_072_114_1,
            0.555_069_328_9,
            0.379_854_070_8,
            0.233_236_413_4,
            0.111_418_817_7,
            0.029_167_158_2,
        ],
    ),
    ("SVD", [700.00, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002]),
];

/// Adds them.
pub(super) fn register(registry: &mut Registry) {
    of_models(registry);
    of_numbers(registry);
    pieces(registry);
}

fn steps() -> Input {
    int("steps", 20, 1, 10000)
}

fn exact(name: &'static str, default: f64, max: f64) -> Input {
    float(name, default, 0.0, max).with("step", 0.01).with("round", false)
}

fn of_models(registry: &mut Registry) {
    let denoise = || -> Input { float("denoise", 1.0, 0.0, 1.0).with("step", 0.01) };
    let mut add = |class, inputs: &[Input], run: Run| {
        let model = Interface::new(class, SCHEDULERS).display(class).input(link("model", Kind::MODEL));
        let with_inputs = inputs.iter().cloned().fold(model, Interface::input);
        registry.add(with_inputs.output(Kind::SIGMAS).module(MODULE), run);
    };
    let names = combo("scheduler", Scheduler::ALL.iter().map(|scheduler| scheduler.name()));
    add("BasicScheduler", &[names, steps(), denoise()], |inputs, context| {
        let sampling = model_sampling(context, &inputs.model("model")?)?;
        let (steps, denoise) = (inputs.size("steps")?, inputs.float("denoise")?);
        // Euler asks nothing special of a schedule.
        let all =
            schedule::sigmas(scheduler(inputs, "scheduler")?, &sampling, steps, denoise, SamplerKind::Euler);
        given(all)
    });
    let few = int("steps", 1, 1, 10);
    add("SDTurboScheduler", &[few, denoise().with("min", 0)], |inputs, context| {
        let sampling = model_sampling(context, &inputs.model("model")?)?;
        given(explicit::sd_turbo(&sampling, inputs.size("steps")?, inputs.float("denoise")?))
    });
    let shape = [exact("alpha", 0.6, 50.0), exact("beta", 0.6, 50.0)];
    let [alpha, beta] = shape;
    add("BetaSamplingScheduler", &[steps(), alpha, beta], |inputs, context| {
        let sampling = model_sampling(context, &inputs.model("model")?)?;
        let (alpha, beta) = (inputs.float("alpha")?, inputs.float("beta")?);
        given(explicit::beta_quantiles(&sampling, inputs.size("steps")?, alpha, beta))
    });
}

fn of_numbers(registry: &mut Registry) {
    let max = || exact("sigma_max", 14.614642, 5000.0);
    let min = || exact("sigma_min", 0.0291675, 5000.0);
    let mut add = |class, inputs: &[Input], run: Run| {
        let empty = Interface::new(class, SCHEDULERS).display(class);
        let with_inputs = inputs.iter().cloned().fold(empty, Interface::input);
        registry.add(with_inputs.output(Kind::SIGMAS).module(MODULE), run);
    };
    add("KarrasScheduler", &[steps(), max(), min(), exact("rho", 7.0, 100.0)], |inputs, _| {
        given(explicit::karras(inputs.size("steps")?, range(inputs)?, inputs.float("rho")?))
    });
    add("ExponentialScheduler", &[steps(), max(), min()], |inputs, _| {
        given(explicit::exponential(inputs.size("steps")?, range(inputs)?))
    });
    add("PolyexponentialScheduler", &[steps(), max(), min(), exact("rho", 1.0, 100.0)], |inputs, _| {
        given(explicit::polyexponential(inputs.size("steps")?, range(inputs)?, inputs.float("rho")?))
    });
    let mu = float("mu", 0.0, -10.0, 10.0).with("step", 0.1).with("round", false);
    let beta = float("beta", 0.5, 0.0, 10.0).with("step", 0.1).with("round", false);
    add("LaplaceScheduler", &[steps(), max(), min(), mu, beta], |inputs, _| {
        let (mu, beta) = (inputs.float("mu")?, inputs.float("beta")?);
        given(explicit::laplace(inputs.size("steps")?, range(inputs)?, mu, beta))
    });
    let eps = float("eps_s", 0.001, 0.0, 1.0).with("step", 0.0001).with("round", false);
    let betas = [exact("beta_d", 19.9, 5000.0), exact("beta_min", 0.1, 5000.0)];
    let [beta_d, beta_min] = betas;
    add("VPScheduler", &[steps(), beta_d, beta_min, eps], |inputs, _| {
        let (d, min) = (inputs.float("beta_d")?, inputs.float("beta_min")?);
        given(explicit::vp(inputs.size("steps")?, d, min, inputs.float("eps_s")?))
    });
    registry.add(
        Interface::new("AlignYourStepsScheduler", SCHEDULERS)
            .input(tagged_models())
            .input(int("steps", 10, 1, 10000))
            .input(float("denoise", 1.0, 0.0, 1.0).with("step", 0.01))
            .output(Kind::SIGMAS)
            .module("comfy_extras.nodes_align_your_steps"),
        |inputs, _| aligned(inputs),
    );
}

fn tagged_models() -> Input {
    crate::workflow::interface::tagged_combo("model_type", ALIGNED.map(|(name, _)| name))
}

fn pieces(registry: &mut Registry) {
    let two = |class, input: Input, run: Run, registry: &mut Registry| {
        registry.add(
            Interface::new(class, PIECES)
                .display(class)
                .input(link("sigmas", Kind::SIGMAS))
                .input(input)
                .named_output("high_sigmas", Kind::SIGMAS)
                .named_output("low_sigmas", Kind::SIGMAS)
                .module(MODULE),
            run,
        );
    };
    two("SplitSigmas", int("step", 0, 0, 10000), |inputs, _| split(inputs), registry);
    let share = float("denoise", 1.0, 0.0, 1.0).with("step", 0.01);
    two("SplitSigmasDenoise", share, |inputs, _| split_by_share(inputs), registry);
    registry.add(
        Interface::new("FlipSigmas", PIECES)
            .display("FlipSigmas")
            .input(link("sigmas", Kind::SIGMAS))
            .output(Kind::SIGMAS)
            .module(MODULE),
        |inputs, _| flip(inputs),
    );
    registry.add(
        Interface::new("SetFirstSigma", PIECES)
            .display("SetFirstSigma")
            .input(link("sigmas", Kind::SIGMAS))
            .input(float("sigma", 136.0, 0.0, 20000.0).with("step", 0.001).with("round", false))
            .output(Kind::SIGMAS)
            .module(MODULE),
        |inputs, _| {
            let mut sigmas = sigmas(inputs)?.to_vec();
            let first = sigmas.first_mut().ok_or_else(|| NodeError::input("sigmas", "has none in it"))?;
            *first = inputs.float("sigma")? as f32;
            Ok(one(sigmas))
        },
    );
}

fn range(inputs: &Inputs) -> Result<SigmaRange, NodeError> {
    Ok(SigmaRange { min: inputs.float("sigma_min")?, max: inputs.float("sigma_max")? })
}

/// The sigmas behind input `sigmas`.
pub(super) fn sigmas(inputs: &Inputs) -> Result<Arc<[f32]>, NodeError> {
    match inputs.get("sigmas") {
        Some(Value::Sigmas(sigmas)) => Ok(Arc::clone(sigmas)),
        _ => Err(NodeError::input("sigmas", "is missing")),
    }
}

fn one(sigmas: Vec<f32>) -> Outputs {
    Outputs::one(Value::Sigmas(sigmas.into()))
}

fn both(high: &[f32], low: &[f32]) -> Outputs {
    Outputs::of([Value::Sigmas(high.into()), Value::Sigmas(low.into())])
}

fn given(sigmas: Result<Vec<f32>, ScheduleError>) -> Result<Outputs, NodeError> {
    match sigmas {
        Ok(sigmas) => Ok(one(sigmas)),
        Err(error) => Err(NodeError::Failed(error.to_string())),
    }
}

fn split(inputs: &Inputs) -> Result<Outputs, NodeError> {
    let (sigmas, step) = (sigmas(inputs)?, inputs.size("step")?);
    let end = step.saturating_add(1).min(sigmas.len());
    Ok(both(&sigmas[..end], &sigmas[step.min(sigmas.len())..]))
}

fn split_by_share(inputs: &Inputs) -> Result<Outputs, NodeError> {
    let (sigmas, denoise) = (sigmas(inputs)?, inputs.float("denoise")?);
    let steps = sigmas.len().saturating_sub(1);
    let low = ((steps as f64 * denoise).round_ties_even() as usize).min(steps);
    // Python's `[:-0]` is empty.
    let high = if low == 0 { 0 } else { sigmas.len() - low };
    Ok(both(&sigmas[..high], &sigmas[sigmas.len().saturating_sub(low + 1)..]))
}

fn flip(inputs: &Inputs) -> Result<Outputs, NodeError> {
    /// Noise cannot be added to from none at all.
    const LEAST: f32 = 0.0001;
    let mut sigmas = sigmas(inputs)?.to_vec();
    sigmas.reverse();
    if let Some(first) = sigmas.first_mut().filter(|first| **first == 0.0) {
        *first = LEAST;
    }
    Ok(one(sigmas))
}

fn aligned(inputs: &Inputs) -> Result<Outputs, NodeError> {
    let (name, steps, denoise) =
        (inputs.string("model_type")?, inputs.size("steps")?, inputs.float("denoise")?);
    let known = ALIGNED.iter().find(|(model, _)| *model == &*name);
    let (_, levels) =
        known.ok_or_else(|| NodeError::input("model_type", format!("'{name}' is not known")))?;
    if !(1..=schedule::MAX_STEPS).contains(&steps) {
        return given(Err(ScheduleError::Steps(steps)));
    }
    if denoise <= 0.0 {
        return Ok(one(Vec::new()));
    }
    let asked = if denoise < 1.0 { (steps as f64 * denoise).round_ties_even() as usize } else { steps };
    let all = if steps + 1 == levels.len() { levels.to_vec() } else { between(levels, steps + 1) };
    let mut sigmas: Vec<f32> =
        all[all.len().saturating_sub(asked + 1)..].iter().map(|sigma| *sigma as f32).collect();
    if let Some(last) = sigmas.last_mut() {
        *last = 0.0;
    }
    Ok(one(sigmas))
}

/// `count` levels evenly spread over the given ones, in the logarithm.
fn between(levels: &[f64], count: usize) -> Vec<f64> {
    let last = levels.len() - 1;
    let level = |i: usize| {
        let place = (i as f64 / (count - 1) as f64) * last as f64;
        let (low, weight) = ((place as usize).min(last - 1), place - (place as usize).min(last - 1) as f64);
        let (a, b) = (levels[low].ln(), levels[low + 1].ln());
        (a + (b - a) * weight).exp()
    };
    (0..count).map(level).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workflow::context::Slot;

    fn inputs(values: Vec<(&str, Value)>) -> Inputs {
        Inputs(values.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    fn lists(outputs: &Outputs) -> Vec<Vec<f32>> {
        let list = |slot: &Slot| match slot {
            Slot::One(Value::Sigmas(sigmas)) => sigmas.to_vec(),
            other => panic!("{other:?}"),
        };
        outputs.slots.iter().map(list).collect()
    }

    fn sigmas_of(values: &[f32]) -> (&'static str, Value) {
        ("sigmas", Value::Sigmas(values.into()))
    }

    #[test]
    fn a_split_shares_the_sigma_between_its_halves() {
        let split_at = |step| {
            lists(
                &split(&inputs(vec![sigmas_of(&[3.0, 2.0, 1.0, 0.0]), ("step", Value::Int(step))])).unwrap(),
            )
        };
        assert_eq!(split_at(1), [vec![3.0, 2.0], vec![2.0, 1.0, 0.0]]);
        assert_eq!(split_at(0), [vec![3.0], vec![3.0, 2.0, 1.0, 0.0]]);
        assert_eq!(split_at(9), [vec![3.0, 2.0, 1.0, 0.0], vec![]]);
    }

    #[test]
    fn a_split_by_share_counts_as_python_slices() {
        let by = |share| {
            let values = vec![sigmas_of(&[3.0, 2.0, 1.0, 0.0]), ("denoise", Value::Float(share))];
            lists(&split_by_share(&inputs(values)).unwrap())
        };
        assert_eq!(by(0.5), [vec![3.0, 2.0], vec![2.0, 1.0, 0.0]]);
        assert_eq!(by(0.0), [vec![], vec![0.0]]);
        assert_eq!(by(1.0), [vec![3.0], vec![3.0, 2.0, 1.0, 0.0]]);
    }

    #[test]
    fn flipped_sigmas_do_not_begin_at_zero() {
        let flipped = |values: &[f32]| lists(&flip(&inputs(vec![sigmas_of(values)])).unwrap());
        assert_eq!(flipped(&[3.0, 1.0, 0.0]), [vec![0.0001, 1.0, 3.0]]);
        assert_eq!(flipped(&[]), [Vec::<f32>::new()]);
    }

    #[test]
    fn aligned_steps_are_the_published_ones_and_others_lie_between() {
        let run = |steps, denoise| {
            let model = ("model_type", Value::String("SDXL".into()));
            let values = vec![model, ("steps", Value::Int(steps)), ("denoise", Value::Float(denoise))];
            lists(&aligned(&inputs(values)).unwrap()).remove(0)
        };
        let ten = run(10, 1.0);
        assert_eq!((ten.len(), ten[1], ten[10]), (11, 6.318_448_5, 0.0));
        let five = run(5, 1.0);
        assert_eq!(five.len(), 6);
        assert!((five[1] - 3.768_179).abs() < 1e-5, "{five:?}");
        // Half of five is two: Python rounds halves to the even side.
        assert_eq!(run(5, 0.5), five[3..]);
        assert!(run(5, 0.0).is_empty());
    }
}
