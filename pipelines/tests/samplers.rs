//! Samplers as state machines: against k-diffusion with an analytic denoiser (`scripts/golden/sampling.py`), and
//! against what the theory says of all of them. Whole runs with a network are in `comfyui.rs`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::path::PathBuf;

use candle_core::{Device, Tensor};
use darkroom_pipelines::noise::{BatchPosition, StepNoise, initial_noise};
use darkroom_pipelines::sampler::{
    self, Advance, Denoised, Sampler, SamplerError, SamplerKind, noise_for, start,
};
use darkroom_pipelines::schedule::{ModelSampling, Prediction, Scheduler, sigmas};
use proptest::prelude::*;

/// ‖ours − theirs‖ / ‖theirs‖ after eight steps. Both round every operation to f32, in a different order.
const REFERENCE_TOLERANCE: f64 = 5e-6;

fn model() -> ModelSampling {
    ModelSampling::scaled_linear(Prediction::Epsilon)
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn relative_error(ours: &[f32], theirs: &[f32]) -> f64 {
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
    let difference = square(&mut ours.iter().zip(theirs).map(|(a, b)| f64::from(a - b)));
    (difference / square(&mut theirs.iter().map(|&value| f64::from(value)))).sqrt()
}

/// Runs a sampler to its end; returns its latent and the sigmas it asked for.
fn run(
    kind: SamplerKind,
    latent: &Tensor,
    sigmas: &[f32],
    noise: Box<dyn StepNoise>,
    denoiser: impl Fn(&Tensor, f32) -> Tensor,
) -> (Tensor, Vec<f32>) {
    let (mut sampler, mut next) = start(kind, latent.clone(), sigmas, noise, &model()).unwrap();
    let mut asked = Vec::new();
    loop {
        match next {
            Advance::Done(latent) => {
                assert_eq!(sampler.completed_steps(), sampler.total_steps(), "{kind}");
                return (latent, asked);
            }
            Advance::Evaluate { latent, sigma } => {
                asked.push(sigma);
                let guided = denoiser(&latent, sigma);
                let denoised = Denoised { uncond: Some(guided.clone()), guided };
                next = sampler.advance(&denoised).unwrap();
            }
        }
    }
}

fn noise(
    kind: SamplerKind,
    seed: u64,
    position: BatchPosition,
    shape: &[usize],
    sigmas: &[f32],
) -> Box<dyn StepNoise> {
    noise_for(kind, seed, position, shape, sigmas, &Device::Cpu).unwrap()
}

/// The denoiser of the golden files.
fn analytic(x: &Tensor, sigma: f32) -> Tensor {
    let share = x.affine(1.0 / f64::from(1.0 + sigma * sigma), 0.0).unwrap();
    (share + x.affine(0.5, 0.0).unwrap().tanh().unwrap().affine(0.3, 0.0).unwrap()).unwrap()
}

#[test]
fn samplers_equal_those_of_k_diffusion() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/samplers.safetensors");
    let golden: HashMap<String, Tensor> = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    let whole = values(&golden["sigmas"]);
    let size = golden["start"].dims()[0];
    let (mut cases, mut worst) = (0, (0.0, String::new()));
    for (name, expected) in &golden {
        let Some((kind, ending)) = name.split_once('.') else { continue };
        let kind: SamplerKind = kind.parse().unwrap();
        let sigmas = match ending {
            "to_zero" => whole.clone(),
            "partial" => whole[..whole.len() - 1].to_vec(),
            // dpm_fast looks at the ends and the number of steps only.
            steps => {
                let steps: usize = steps.parse().unwrap();
                let (first, last) = (whole[0], whole[whole.len() - 2]);
                let between = |i: usize| first + (last - first) * i as f32 / steps as f32;
                (0..steps).map(between).chain([last]).collect()
            }
        };
        for index in 0..size {
            let latent = golden["start"].get(index).unwrap();
            let noise = noise(kind, 12345, BatchPosition { index, size }, latent.dims(), &sigmas);
            let (ours, _) = run(kind, &latent, &sigmas, noise, analytic);
            let error = relative_error(&values(&ours), &values(&expected.get(index).unwrap()));
            assert!(error <= REFERENCE_TOLERANCE, "{name}, sample {index}: {error:e}");
            if error > worst.0 {
                worst = (error, name.clone());
            }
            cases += 1;
        }
    }
    println!("largest error {worst:?}");
    assert_eq!(cases, 64);
}

/// The same on sigmas that rise: what is small at their beginning has grown at their end.
const RISING_TOLERANCE: f64 = 2e-5;
/// DEIS sums integrals over steps next to sigma 0 in another order than the reference.
const RISING_DEIS_TOLERANCE: f64 = 5e-4;

#[test]
fn samplers_take_sigmas_that_rise_or_repeat_as_comfyui_does_or_refuse_them() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/any_sigmas.safetensors");
    let golden: HashMap<String, Tensor> = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    let mut equal = HashMap::new();
    for list in ["rising", "repeating", "rising_then_falling", "flat"] {
        let sigmas = values(&golden[&format!("{list}.sigmas")]);
        let scale = f64::from((1.0 + sigmas[0] * sigmas[0]).sqrt());
        let latent = golden["start"].affine(scale, 0.0).unwrap();
        for &kind in SamplerKind::ALL {
            let theirs = values(&golden[&format!("{list}.{kind}")]);
            let step_noise = noise(kind, 12345, BatchPosition::ALONE, latent.dims(), &sigmas);
            if let Err(error) = start(kind, latent.clone(), &sigmas, step_noise, &model()) {
                assert!(matches!(error, SamplerError::Sigmas { .. }), "{list} {kind}: {error}");
                continue;
            }
            let step_noise = noise(kind, 12345, BatchPosition::ALONE, latent.dims(), &sigmas);
            let ours = values(&run(kind, &latent, &sigmas, step_noise, analytic).0);
            assert!(ours.iter().all(|value| value.is_finite()), "{list} {kind}: {ours:?}");
            // Where ComfyUI divides by a step of no length, ours leaves it out.
            if theirs.iter().all(|value| value.is_finite())
                && !(list == "repeating" && matches!(kind, SamplerKind::SaSolver | SamplerKind::SaSolverPece))
            {
                let tolerance =
                    if kind == SamplerKind::Deis { RISING_DEIS_TOLERANCE } else { RISING_TOLERANCE };
                let error = relative_error(&ours, &theirs);
                assert!(error <= tolerance, "{list} {kind}: {error:e}");
                *equal.entry(list).or_insert(0) += 1;
            }
        }
    }
    let equal = |list| equal[list];
    let counts = ["rising", "repeating", "rising_then_falling", "flat"].map(equal);
    assert_eq!(counts, [28, 19, 28, 33]);
}

/// The same on flows and with integrals in the reference's single precision; `dpm_adaptive` chooses its own steps.
const EVERY_TOLERANCE: f64 = 2e-5;

#[test]
fn samplers_equal_comfyuis_on_both_kinds_of_noise() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/every_sampler.safetensors");
    let golden: HashMap<String, Tensor> = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    let start_noise = &golden["start"];
    let picture = Tensor::full(0.4f32, start_noise.dims(), &Device::Cpu).unwrap();
    let mut wrong = Vec::new();
    for (process, model) in [
        ("exploding", model()),
        ("flow", ModelSampling::flow(3.0, 1.0)),
        ("late_flow", ModelSampling::flow(3.0, 1000.0)),
    ] {
        let sigmas = values(&golden[&format!("{process}.sigmas")]);
        let latent = model.noise_latent(&picture, start_noise, sigmas[0], false).unwrap();
        for &kind in SamplerKind::ALL {
            let step_noise = noise(kind, 12345, BatchPosition::ALONE, latent.dims(), &sigmas);
            let (mut sampler, mut next) = start(kind, latent.clone(), &sigmas, step_noise, &model).unwrap();
            let mut shown = None;
            let ours = loop {
                let Advance::Evaluate { latent, sigma } = next else { break next };
                let guided = analytic(&latent, sigma);
                if sampler.opens_step() {
                    shown = Some(guided.clone());
                }
                let other = latent.tanh().unwrap().affine(0.1, 0.0).unwrap();
                let uncond = Some((guided.affine(0.8, 0.0).unwrap() + other).unwrap());
                next = sampler.advance(&Denoised { guided, uncond }).unwrap();
            };
            let Advance::Done(ours) = ours else { unreachable!() };
            for (what, ours) in [("", &ours), (".shown", shown.as_ref().unwrap())] {
                let theirs = values(&golden[&format!("{process}.{kind}{what}")]);
                let error = relative_error(&values(ours), &theirs);
                if error.is_nan() || error > EVERY_TOLERANCE {
                    wrong.push(format!("{process} {kind}{what}: {error:.1e}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Standard deviation of the data that [`gaussian`] knows.
const DATA: f32 = 0.8;

/// The exact denoiser of normal data: the best guess of `data` from `data + sigma * noise`.
fn gaussian(x: &Tensor, sigma: f32) -> Tensor {
    let variance = DATA * DATA;
    x.affine(f64::from(variance / (variance + sigma * sigma)), 0.0).unwrap()
}

/// The exact consistency function of normal data, where the flow from `x` ends: what LCM's networks are trained to.
fn consistency(x: &Tensor, sigma: f32) -> Tensor {
    x.affine(f64::from(DATA / (DATA * DATA + sigma * sigma).sqrt()), 0.0).unwrap()
}

fn is_stochastic(kind: SamplerKind) -> bool {
    use SamplerKind::*;
    matches!(
        kind,
        Lcm | EulerAncestral
            | EulerAncestralCfgPp
            | Dpm2Ancestral
            | Dpmpp2sAncestral
            | DpmppSde
            | Dpmpp2mSde
            | Dpmpp2mSdeHeun
            | Dpmpp3mSde
            | Ddpm
            | ErSde
            | Seeds2
            | Seeds3
            | SaSolver
            | SaSolverPece
            | Dpmpp2sAncestralCfgPp
            | ResMultistepAncestral
            | ResMultistepAncestralCfgPp
    )
}

/// Share of the exact solution that a run may miss after 100 Karras steps. Euler, the crudest, misses 1.6%; DEIS
/// integrates by a plain sum; `dpm_adaptive` allows itself 5% a step.
const CONVERGENCE_TOLERANCE: f64 = 0.03;

#[test]
fn samplers_without_noise_follow_the_exact_flow() {
    let model = model();
    for &kind in SamplerKind::ALL.iter().filter(|kind| !is_stochastic(**kind)) {
        let mut sigmas = sigmas(Scheduler::Karras, &model, 100, 1.0, kind).unwrap();
        if matches!(kind, SamplerKind::DpmFast | SamplerKind::DpmAdaptive) {
            // These end at the last sigma above 0 whatever the list says.
            sigmas.pop();
        }
        let end = sigmas[sigmas.len() - 1];
        let latent = Tensor::new(&[sigmas[0], -2.0, 0.5], &Device::Cpu).unwrap();
        let noise = noise(kind, 0, BatchPosition::ALONE, &[3], &sigmas);
        let (ours, _) = run(kind, &latent, &sigmas, noise, gaussian);
        // The flow keeps x in proportion to the standard deviation at its sigma.
        let deviation = |sigma: f32| f64::from(DATA * DATA + sigma * sigma).sqrt();
        let exact = latent.affine(deviation(end) / deviation(sigmas[0]), 0.0).unwrap();
        let error = relative_error(&values(&ours), &values(&exact));
        assert!(error <= CONVERGENCE_TOLERANCE, "{kind}: {error:e}");
    }
}

/// Share by which the standard deviation of the results may differ from the data's: 4096 values are 1.1% uncertain
/// themselves, and first-order methods shrink it by up to 5% in 100 steps.
const SPREAD_TOLERANCE: f64 = 0.08;

#[test]
fn samplers_with_noise_end_in_the_distribution_of_the_data() {
    let model = model();
    let shape = [4096];
    // What one part of CFG++ takes from a step's start and another from its middle does not cancel out in this one.
    let exact = |kind: SamplerKind| kind != SamplerKind::Dpmpp2sAncestralCfgPp;
    for &kind in SamplerKind::ALL.iter().filter(|kind| is_stochastic(**kind) && exact(**kind)) {
        let sigmas = sigmas(Scheduler::Karras, &model, 100, 1.0, kind).unwrap();
        let start = initial_noise(1, BatchPosition::ALONE, &shape, &Device::Cpu).unwrap();
        let latent = start.affine(f64::from(DATA * DATA + sigmas[0] * sigmas[0]).sqrt(), 0.0).unwrap();
        let noise = noise(kind, 2, BatchPosition::ALONE, &shape, &sigmas);
        let denoiser = if kind == SamplerKind::Lcm { consistency } else { gaussian };
        let (ours, _) = run(kind, &latent, &sigmas, noise, denoiser);
        let ours = values(&ours);
        let variance = ours.iter().map(|&x| f64::from(x * x)).sum::<f64>() / ours.len() as f64;
        let share = variance.sqrt() / f64::from(DATA);
        assert!((share - 1.0).abs() <= SPREAD_TOLERANCE, "{kind}: spread is {share} of the data's");
    }
}

#[test]
fn every_sampler_asks_for_as_many_evaluations_as_its_method_has() {
    let sigmas = [10.0, 5.0, 2.0, 0.7, 0.0];
    let latent = Tensor::new(&[1.0f32, -1.0], &Device::Cpu).unwrap();
    for &kind in SamplerKind::ALL {
        use SamplerKind::*;
        let expected = match kind {
            // Two a step, one in the last, which ends at 0.
            Heun | Dpm2 | Dpm2Ancestral | Dpmpp2sAncestral | Dpmpp2sAncestralCfgPp | DpmppSde | Seeds2 => 7,
            // Two but in the first.
            SaSolverPece => 7,
            // Three a step, one in the last.
            Seeds3 => 10,
            // 3 + 3 + 2 + 1.
            Heunpp2 => 9,
            // Chooses for itself.
            DpmAdaptive => continue,
            _ => 4,
        };
        let noise = noise(kind, 0, BatchPosition::ALONE, &[2], &sigmas);
        let (_, asked) = run(kind, &latent, &sigmas, noise, analytic);
        assert_eq!(asked.len(), expected, "{kind}");
        assert_eq!(asked[0], sigmas[0], "{kind}");
    }
}

#[test]
fn guidance_plus_plus_uses_the_unconditional_prediction() {
    let sigmas = [5.0, 1.0, 0.5, 0.0];
    let latent = Tensor::new(&[3.0f32], &Device::Cpu).unwrap();
    for &kind in SamplerKind::ALL {
        let with = |uncond: Option<f32>| {
            let noise = noise(kind, 0, BatchPosition::ALONE, &[1], &sigmas);
            let (mut sampler, mut next) = start(kind, latent.clone(), &sigmas, noise, &model())?;
            while let Advance::Evaluate { latent, sigma } = next {
                let guided = gaussian(&latent, sigma);
                let uncond = uncond.map(|value| Tensor::new(&[value], &Device::Cpu).unwrap());
                next = sampler.advance(&Denoised { guided, uncond })?;
            }
            let Advance::Done(latent) = next else { unreachable!() };
            Ok::<_, SamplerError>(values(&latent))
        };
        if kind.needs_uncond() {
            assert!(matches!(with(None), Err(SamplerError::NoUncond)), "{kind}");
            assert_ne!(with(Some(0.5)).unwrap(), with(Some(0.1)).unwrap(), "{kind}");
        } else {
            assert_eq!(with(Some(0.5)).unwrap(), with(None).unwrap(), "{kind}");
        }
    }
}

#[test]
fn a_run_of_no_step_is_done_at_once() {
    let latent = Tensor::new(&[1.0f32, 2.0], &Device::Cpu).unwrap();
    for &kind in SamplerKind::ALL {
        let mut lists = vec![&[][..], &[3.0], &[0.0]];
        // Others divide by the step's length, and take none.
        if kind == SamplerKind::Dpmpp2m {
            lists.push(&[3.0, 3.0]);
        }
        for sigmas in lists {
            let noise = noise(kind, 0, BatchPosition::ALONE, &[2], sigmas);
            let (mut sampler, next) = start(kind, latent.clone(), sigmas, noise, &model()).unwrap();
            let Advance::Done(done) = next else { panic!("{kind} {sigmas:?}") };
            assert_eq!(values(&done), values(&latent));
            assert_eq!(sampler.total_steps(), 0);
            let more = sampler.advance(&Denoised::guided(latent.clone()));
            assert!(matches!(more, Err(SamplerError::AlreadyDone)), "{kind}");
        }
    }
}

#[test]
fn sigmas_that_are_no_numbers_or_rise_where_they_cannot_are_refused() {
    let latent = Tensor::new(&[1.0f32], &Device::Cpu).unwrap();
    let (euler, ddpm) = (SamplerKind::Euler, SamplerKind::Ddpm);
    for (kind, sigmas, at) in [
        (ddpm, &[1.0, 2.0][..], 1),
        (euler, &[f32::NAN], 0),
        (euler, &[2.0, -1.0], 1),
        (euler, &[f32::INFINITY, 1.0], 0),
    ] {
        let noise = noise(kind, 0, BatchPosition::ALONE, &[1], sigmas);
        match start(kind, latent.clone(), sigmas, noise, &model()) {
            Err(SamplerError::Sigmas { index, .. }) => assert_eq!(index, at),
            other => panic!("{sigmas:?}: {:?}", other.map(|(_, next)| next)),
        }
    }
}

#[test]
fn predictions_that_are_no_numbers_end_the_adaptive_sampler() {
    let sigmas = [5.0, 1.0, 0.0];
    let latent = Tensor::new(&[1.0f32], &Device::Cpu).unwrap();
    let noise = noise(SamplerKind::DpmAdaptive, 0, BatchPosition::ALONE, &[1], &sigmas);
    let (mut sampler, _) = start(SamplerKind::DpmAdaptive, latent, &sigmas, noise, &model()).unwrap();
    let nan = Denoised::guided(Tensor::new(&[f32::NAN], &Device::Cpu).unwrap());
    let error = (0..3).map(|_| sampler.advance(&nan)).find_map(Result::err);
    assert!(matches!(error, Some(SamplerError::NoConvergence { tries: 1, .. })), "{error:?}");
}

#[test]
fn names_are_read_as_they_are_written() {
    for &kind in SamplerKind::ALL {
        assert_eq!(kind.to_string().parse::<SamplerKind>().unwrap(), kind);
        let json = serde_json::to_string(&kind).unwrap();
        assert_eq!(serde_json::from_str::<SamplerKind>(&json).unwrap(), kind);
    }
    assert_eq!("dpmpp_2m_sde_gpu".parse::<SamplerKind>().unwrap(), SamplerKind::Dpmpp2mSde);
    for wrong in ["", "Euler", "euler_gpu", "dpmpp_4m"] {
        let error = wrong.parse::<SamplerKind>().unwrap_err().to_string();
        assert!(error.contains("euler_ancestral"), "{error}");
    }
}

/// A run that can be advanced one evaluation at a time.
struct Running {
    sampler: Box<dyn Sampler>,
    next: Advance,
}

impl Running {
    fn start(kind: SamplerKind, seed: u64, sigmas: &[f32]) -> Self {
        let shape = [4, 2, 2];
        let latent = initial_noise(seed, BatchPosition::ALONE, &shape, &Device::Cpu).unwrap();
        let latent = latent.affine(f64::from(sigmas[0]), 0.0).unwrap();
        let noise = noise(kind, seed, BatchPosition::ALONE, &shape, sigmas);
        let (sampler, next) = sampler::start(kind, latent, sigmas, noise, &model()).unwrap();
        Self { sampler, next }
    }

    fn advance(&mut self) -> bool {
        let Advance::Evaluate { latent, sigma } = &self.next else { return false };
        let guided = analytic(latent, *sigma);
        self.next = self.sampler.advance(&Denoised { uncond: Some(guided.clone()), guided }).unwrap();
        true
    }

    fn finish(mut self) -> Vec<f32> {
        while self.advance() {}
        let Advance::Done(latent) = self.next else { unreachable!() };
        values(&latent)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn samplers_that_take_turns_end_where_each_ends_alone(
        kinds in prop::collection::vec(prop::sample::select(SamplerKind::ALL), 2..5),
        turns in prop::collection::vec(0usize..5, 0..40),
        steps in 1usize..6,
    ) {
        let runs: Vec<(SamplerKind, Vec<f32>)> = kinds
            .into_iter()
            .enumerate()
            .map(|(i, kind)| (kind, sigmas(Scheduler::Karras, &model(), steps + i, 1.0, kind).unwrap()))
            .collect();
        let started = || {
            (0u64..).zip(&runs).map(|(seed, (kind, sigmas))| Running::start(*kind, seed, sigmas))
        };
        let mut together: Vec<Running> = started().collect();
        for turn in turns {
            let count = together.len();
            together[turn % count].advance();
        }
        for (together, alone) in together.into_iter().zip(started()) {
            prop_assert_eq!(together.finish(), alone.finish());
        }
    }

    #[test]
    fn no_valid_run_makes_a_value_that_is_not_finite(
        kind in prop::sample::select(SamplerKind::ALL),
        scheduler in prop::sample::select(Scheduler::ALL),
        steps in 2usize..40,
        denoise in 0.02f64..=1.0,
        seed: u64,
    ) {
        let sigmas = sigmas(scheduler, &model(), steps, denoise, kind).unwrap();
        let latent = Running::start(kind, seed, &sigmas).finish();
        prop_assert!(latent.iter().all(|value| value.is_finite()), "{:?}", latent);
    }
}
