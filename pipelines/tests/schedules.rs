//! Sigmas against those recorded from ComfyUI 0.3.64, and what holds for every schedule.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::path::PathBuf;

use candle_core::{Device, Tensor};
use darkroom_pipelines::sampler::SamplerKind;
use darkroom_pipelines::schedule::{MAX_STEPS, ModelSampling, Prediction, ScheduleError, Scheduler, sigmas};
use proptest::prelude::*;
use serde::Deserialize;

/// Relative. Two units in the last place of an f32: torch's exponentials and tangents may be one unit off, and so
/// may the correctly rounded ones here be from them.
const SIGMA_TOLERANCE: f32 = 2.4e-7;

#[derive(Deserialize)]
struct Golden {
    sigma_min: f32,
    sigma_max: f32,
    schedulers: HashMap<Scheduler, HashMap<usize, Vec<f32>>>,
    all_sigmas: Vec<f32>,
    all_log_sigmas: Vec<f32>,
    /// By `sampler/scheduler/steps/denoise`.
    ksampler_denoise: HashMap<String, Vec<f32>>,
    timestep_of_sigma_normal20: Vec<f32>,
    percent_to_sigma: HashMap<String, f64>,
}

fn golden() -> Golden {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/sigmas.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn model() -> ModelSampling {
    ModelSampling::scaled_linear(Prediction::Epsilon)
}

fn assert_close(ours: &[f32], theirs: &[f32], what: &str) {
    assert_eq!(ours.len(), theirs.len(), "{what}: {ours:?} for {theirs:?}");
    for (ours, theirs) in ours.iter().zip(theirs) {
        assert!((ours - theirs).abs() <= SIGMA_TOLERANCE * theirs.abs(), "{what}: {ours} for {theirs}");
    }
}

#[test]
fn the_models_table_has_the_bits_of_comfyui() {
    let golden = golden();
    let model = model();
    assert_eq!(model.table(), golden.all_sigmas);
    assert_eq!((model.sigma_min(), model.sigma_max()), (golden.sigma_min, golden.sigma_max));
    // The logarithms show in sigmas of whole timesteps.
    for (t, log_sigma) in golden.all_log_sigmas.iter().enumerate() {
        assert_close(&[model.sigma(t as f32)], &[log_sigma.exp()], &format!("timestep {t}"));
    }
}

#[test]
fn every_scheduler_gives_comfyuis_sigmas() {
    let golden = golden();
    let mut exact = 0;
    let mut all = 0;
    for (&scheduler, counts) in &golden.schedulers {
        for (&steps, theirs) in counts {
            let ours = sigmas(scheduler, &model(), steps, 1.0, SamplerKind::Euler).unwrap();
            assert_close(&ours, theirs, &format!("{scheduler}, {steps} steps"));
            exact += ours.iter().zip(theirs).filter(|(ours, theirs)| ours == theirs).count();
            all += theirs.len();
        }
    }
    println!("{exact} of {all} sigmas are bit-equal");
    assert_eq!(golden.schedulers.len(), Scheduler::ALL.len());
}

#[test]
fn denoise_and_second_order_samplers_cut_the_schedule_as_ksampler_does() {
    for (name, theirs) in golden().ksampler_denoise {
        let [sampler, scheduler, steps, denoise] = name.split('/').collect::<Vec<_>>()[..] else {
            panic!("{name}")
        };
        let ours = sigmas(
            scheduler.parse().unwrap(),
            &model(),
            steps.parse().unwrap(),
            denoise.parse().unwrap(),
            sampler.parse().unwrap(),
        );
        assert_close(&ours.unwrap(), &theirs, &name);
    }
}

#[test]
fn timesteps_of_sigmas_are_comfyuis() {
    let golden = golden();
    let normal = &golden.schedulers[&Scheduler::Normal][&20];
    let ours: Vec<f32> = normal[..20].iter().map(|&sigma| model().timestep(sigma)).collect();
    assert_eq!(ours, golden.timestep_of_sigma_normal20);
    for (t, &sigma) in golden.all_sigmas.iter().enumerate() {
        assert_eq!(model().timestep(sigma), t as f32);
    }
    assert_eq!(model().timestep(0.0), 0.0);
    assert_eq!(model().timestep(1e9), 999.0);
}

#[test]
fn percents_of_the_run_map_to_comfyuis_sigmas() {
    for (percent, sigma) in golden().percent_to_sigma {
        let ours = model().percent_to_sigma(percent.parse().unwrap());
        assert_close(&[ours], &[sigma as f32], &percent);
    }
}

fn any_schedule() -> impl Strategy<Value = (Scheduler, SamplerKind)> {
    (prop::sample::select(Scheduler::ALL), prop::sample::select(SamplerKind::ALL))
}

proptest! {
    #[test]
    fn sigmas_fall_to_zero_within_the_models_range(
        (scheduler, sampler) in any_schedule(), steps in 2usize..400, denoise in 0.05f64..=1.0
    ) {
        let sigmas = sigmas(scheduler, &model(), steps, denoise, sampler).unwrap();
        prop_assert!(sigmas.windows(2).all(|pair| pair[0] >= pair[1]), "{:?}", sigmas);
        prop_assert_eq!(sigmas[sigmas.len() - 1], 0.0);
        prop_assert!(sigmas[0] <= model().sigma_max() * (1.0 + 1e-5));
        prop_assert!(sigmas.len() >= 2 && sigmas.len() <= 2 * steps + 2);
    }

    #[test]
    fn no_request_panics_or_makes_a_sigma_that_is_not_a_number(
        (scheduler, sampler) in any_schedule(), steps in 0usize..20_000, denoise: f64
    ) {
        if let Ok(sigmas) = sigmas(scheduler, &model(), steps, denoise, sampler) {
            prop_assert!(sigmas.iter().all(|sigma| sigma.is_finite() && *sigma >= 0.0));
            prop_assert!(sigmas.len() <= MAX_STEPS + 2);
        }
    }
}

#[test]
fn requests_out_of_range_are_refused() {
    let ask = |steps, denoise| sigmas(Scheduler::Normal, &model(), steps, denoise, SamplerKind::Euler);
    assert_eq!(ask(0, 1.0), Err(ScheduleError::Steps(0)));
    assert_eq!(ask(MAX_STEPS + 1, 1.0), Err(ScheduleError::Steps(MAX_STEPS + 1)));
    assert!(matches!(ask(5, f64::NAN), Err(ScheduleError::Denoise(_))));
    assert!(matches!(ask(5, 1.5), Err(ScheduleError::Denoise(_))));
    assert!(matches!(ask(5, 1e-9), Err(ScheduleError::DenoiseTooSmall { steps: 5, .. })));
    assert_eq!(ask(5, 0.0), Ok(Vec::new()));
    let one = |sampler| sigmas(Scheduler::KlOptimal, &model(), 1, 1.0, sampler);
    assert!(matches!(one(SamplerKind::Euler), Err(ScheduleError::TooFewSteps { least: 2, .. })));
    assert_eq!(one(SamplerKind::Dpm2).unwrap().len(), 2);
}

#[test]
fn names_are_read_as_they_are_written() {
    for &scheduler in Scheduler::ALL {
        assert_eq!(scheduler.to_string().parse(), Ok(scheduler));
        let json = serde_json::to_string(&scheduler).unwrap();
        assert_eq!(serde_json::from_str::<Scheduler>(&json).unwrap(), scheduler);
    }
    let error = "karas".parse::<Scheduler>().unwrap_err().to_string();
    assert!(error.contains("\"karas\"") && error.contains("karras"), "{error}");
}

/// Rounding of one product and one sum.
const LATENT_TOLERANCE: f32 = 1e-6;

#[test]
fn predictions_of_noise_and_of_velocity_give_the_picture_back() {
    let device = Device::Cpu;
    let picture = Tensor::new(&[0.5f32, -1.0, 2.0], &device).unwrap();
    let noise = Tensor::new(&[1.0f32, 0.3, -0.7], &device).unwrap();
    let cases = [
        (Prediction::Epsilon, 3.0f32),
        (Prediction::V, 3.0),
        (Prediction::V, 0.1),
        (Prediction::X0, 3.0),
        (Prediction::ImgToImg, 3.0),
    ];
    for (prediction, sigma) in cases {
        let model = ModelSampling::scaled_linear(prediction);
        let x = model.noise_latent(&picture, &noise, sigma, false).unwrap();
        let scale = f64::from((sigma * sigma + 1.0).sqrt());
        let output = match prediction {
            Prediction::Epsilon | Prediction::Lcm | Prediction::Flow => noise.clone(),
            Prediction::X0 | Prediction::ImgToImg => picture.clone(),
            // v = alpha * noise - sigma * picture, in variance-preserving coordinates.
            Prediction::V => ((&noise - (&picture * f64::from(sigma)).unwrap()).unwrap() / scale).unwrap(),
        };
        let error = (model.denoised(&x, &output, sigma).unwrap() - &picture).unwrap().abs().unwrap();
        assert!(error.max(0).unwrap().to_scalar::<f32>().unwrap() < LATENT_TOLERANCE * (1.0 + sigma));
    }
}

#[test]
fn a_run_from_the_largest_sigma_starts_from_pure_noise() {
    let model = model();
    let max = model.sigma_max();
    assert!(
        model.is_max_denoise(max) && model.is_max_denoise(max * 1.5) && model.is_max_denoise(max * 0.999_995)
    );
    assert!(!model.is_max_denoise(max * 0.9999));
    let one = Tensor::ones(1, candle_core::DType::F32, &Device::Cpu).unwrap();
    let noised = |full| model.noise_latent(&one, &one, 2.0, full).unwrap().to_vec1::<f32>().unwrap()[0];
    assert_eq!(noised(true), 5f32.sqrt() + 1.0);
    assert_eq!(noised(false), 3.0);
}

/// A choice of `ModelSamplingDiscrete`, as ComfyUI computes it.
#[derive(Deserialize)]
struct SamplingCase {
    prediction: String,
    zsnr: bool,
    sigmas_at: Vec<(f32, f32)>,
    percents: Vec<(f64, f32)>,
    steps: Vec<SamplingStep>,
    schedules: HashMap<Scheduler, Vec<f32>>,
}

#[derive(Deserialize)]
struct SamplingStep {
    sigma: f32,
    timestep: f32,
    input: Vec<f32>,
    denoised: Vec<f32>,
}

#[derive(Deserialize)]
struct SamplingCases {
    x: Vec<f32>,
    output: Vec<f32>,
    cases: Vec<SamplingCase>,
    flows: Vec<FlowCase>,
}

/// A choice of `ModelSamplingSD3` or `ModelSamplingAuraFlow`.
#[derive(Deserialize)]
struct FlowCase {
    shift: f64,
    multiplier: f64,
    /// Every 37th sigma.
    table: Vec<f32>,
    sigmas_at: Vec<(f32, f32)>,
    percents: Vec<(f64, f32)>,
    steps: Vec<FlowStep>,
    schedules: HashMap<Scheduler, Vec<f32>>,
}

#[derive(Deserialize)]
struct FlowStep {
    #[serde(flatten)]
    of_any: SamplingStep,
    noised: Vec<f32>,
    /// None where noise alone is left.
    unmixed: Option<Vec<f32>>,
}

/// Rounding of an exponential and of an interpolation between two logarithms.
const CHOICE_TOLERANCE: f32 = 1e-6;

fn assert_near(ours: &[f32], theirs: &[f32], what: &str) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    let largest = theirs.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    for (ours, theirs) in ours.iter().zip(theirs) {
        let allowed = CHOICE_TOLERANCE * theirs.abs().max(1e-2 * largest);
        assert!((ours - theirs).abs() <= allowed, "{what}: {ours} is not {theirs}");
    }
}

fn golden_sampling() -> SamplingCases {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/model_sampling.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn flows_are_comfyuis() {
    let golden = golden_sampling();
    let tensor = |values: &[f32]| Tensor::from_slice(values, values.len(), &Device::Cpu).unwrap();
    let ours = |tensor: Tensor| tensor.to_vec1::<f32>().unwrap();
    let (x, output) = (tensor(&golden.x), tensor(&golden.output));
    assert_eq!(golden.flows.len(), 6);
    for case in &golden.flows {
        let model = ModelSampling::flow(case.shift, case.multiplier);
        let name = format!("shift {} of {}", case.shift, case.multiplier);
        let table: Vec<f32> = model.table().iter().copied().step_by(37).collect();
        assert_near(&table, &case.table, &name);
        for (t, sigma) in &case.sigmas_at {
            assert_near(&[model.sigma(*t)], &[*sigma], &format!("{name}: timestep {t}"));
        }
        for (percent, sigma) in &case.percents {
            assert_near(&[model.percent_to_sigma(*percent)], &[*sigma], &format!("{name}: share {percent}"));
        }
        for FlowStep { of_any: step, noised, unmixed } in &case.steps {
            let what = format!("{name} at {}", step.sigma);
            assert_near(&[model.timestep(step.sigma)], &[step.timestep], &what);
            assert_near(&ours(model.scale_input(&x, step.sigma).unwrap()), &step.input, &what);
            assert_near(&ours(model.denoised(&x, &output, step.sigma).unwrap()), &step.denoised, &what);
            for full in [false, true] {
                let mixed = model.noise_latent(&x, &output, step.sigma, full).unwrap();
                assert_near(&ours(mixed), noised, &what);
            }
            if let Some(unmixed) = unmixed {
                assert_near(&ours(model.process().unmixed(&x, step.sigma).unwrap()), unmixed, &what);
            }
        }
        for (scheduler, theirs) in &case.schedules {
            let ours = sigmas(*scheduler, &model, 7, 1.0, SamplerKind::Euler).unwrap();
            assert_near(&ours, theirs, &format!("{name} {scheduler}"));
        }
    }
}

#[test]
fn every_choice_of_model_sampling_is_comfyuis() {
    let golden = golden_sampling();
    let tensor = |values: &[f32]| Tensor::from_slice(values, values.len(), &Device::Cpu).unwrap();
    let (x, output) = (tensor(&golden.x), tensor(&golden.output));
    assert_eq!(golden.cases.len(), 10);
    for case in &golden.cases {
        let prediction = match case.prediction.as_str() {
            "eps" => Prediction::Epsilon,
            "v_prediction" => Prediction::V,
            "lcm" => Prediction::Lcm,
            "x0" => Prediction::X0,
            "img_to_img" => Prediction::ImgToImg,
            other => panic!("{other}"),
        };
        let model = if case.zsnr {
            ModelSampling::zero_terminal_snr(prediction)
        } else {
            ModelSampling::scaled_linear(prediction)
        };
        let name = format!("{} {}", case.prediction, case.zsnr);
        for (t, sigma) in &case.sigmas_at {
            assert_near(&[model.sigma(*t)], &[*sigma], &format!("{name}: timestep {t}"));
        }
        for (percent, sigma) in &case.percents {
            assert_near(&[model.percent_to_sigma(*percent)], &[*sigma], &format!("{name}: share {percent}"));
        }
        for step in &case.steps {
            let what = format!("{name} at {}", step.sigma);
            assert_eq!(model.timestep(step.sigma), step.timestep, "{what}");
            let ours = |tensor: Tensor| tensor.to_vec1::<f32>().unwrap();
            assert_near(&ours(model.scale_input(&x, step.sigma).unwrap()), &step.input, &what);
            assert_near(&ours(model.denoised(&x, &output, step.sigma).unwrap()), &step.denoised, &what);
        }
        for (scheduler, theirs) in &case.schedules {
            let ours = sigmas(*scheduler, &model, 7, 1.0, SamplerKind::Euler).unwrap();
            assert_near(&ours, theirs, &format!("{name} {scheduler}"));
        }
    }
}
