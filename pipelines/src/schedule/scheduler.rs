//! The schedulers, and KSampler's rules around them.

use std::fmt;
use std::str::FromStr;

use super::ScheduleError;
use super::explicit::{self, SigmaRange};
use super::model_sampling::ModelSampling;
use crate::sampler::SamplerKind;

/// Most steps of a schedule, before denoise cuts it.
pub const MAX_STEPS: usize = 10_000;

/// The rho that Karras et al. recommend.
const KARRAS_RHO: f64 = 7.0;
/// Both parameters of the beta scheduler's distribution.
const BETA_SHAPE: [f64; 2] = [0.6, 0.6];

/// How the sigmas of a run are spread, by ComfyUI's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "&'static str")]
#[expect(missing_docs, reason = "names are the field's own; the functions of this file say what each does")]
pub enum Scheduler {
    Simple,
    SgmUniform,
    Karras,
    Exponential,
    DdimUniform,
    Beta,
    Normal,
    LinearQuadratic,
    KlOptimal,
}

impl Scheduler {
    /// Every scheduler, in ComfyUI's order.
    pub const ALL: &'static [Self] = &[
        Self::Simple,
        Self::SgmUniform,
        Self::Karras,
        Self::Exponential,
        Self::DdimUniform,
        Self::Beta,
        Self::Normal,
        Self::LinearQuadratic,
        Self::KlOptimal,
    ];

    /// The name in requests.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Simple => "simple",
            Self::SgmUniform => "sgm_uniform",
            Self::Karras => "karras",
            Self::Exponential => "exponential",
            Self::DdimUniform => "ddim_uniform",
            Self::Beta => "beta",
            Self::Normal => "normal",
            Self::LinearQuadratic => "linear_quadratic",
            Self::KlOptimal => "kl_optimal",
        }
    }
}

impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Scheduler {
    type Err = ScheduleError;

    fn from_str(name: &str) -> Result<Self, ScheduleError> {
        Self::ALL
            .iter()
            .copied()
            .find(|scheduler| scheduler.name() == name)
            .ok_or_else(|| ScheduleError::UnknownScheduler(name.to_owned()))
    }
}

impl TryFrom<String> for Scheduler {
    type Error = ScheduleError;

    fn try_from(name: String) -> Result<Self, ScheduleError> {
        name.parse()
    }
}

impl From<Scheduler> for &'static str {
    fn from(scheduler: Scheduler) -> Self {
        scheduler.name()
    }
}

/// The sigmas of a run as ComfyUI's KSampler has them, falling, the last one usually 0.
///
/// `denoise` below 1 takes the end of a longer schedule; a `denoise` of 0 or less means no sampling and gives an
/// empty list. The list has `steps + 1` sigmas with most schedulers; `ddim_uniform` and `beta` may have more or
/// fewer. Samplers of second order in half steps ask for one step more and leave out the last but one sigma.
///
/// # Errors
/// No steps or more than [`MAX_STEPS`], a denoise that is not a number or above 1, or a scheduler that is not
/// defined for so few steps.
pub fn sigmas(
    scheduler: Scheduler,
    model: &ModelSampling,
    steps: usize,
    denoise: f64,
    sampler: SamplerKind,
) -> Result<Vec<f32>, ScheduleError> {
    if !(1..=MAX_STEPS).contains(&steps) {
        return Err(ScheduleError::Steps(steps));
    }
    if denoise.is_nan() || denoise > 1.0 {
        return Err(ScheduleError::Denoise(denoise));
    }
    if denoise > 0.9999 {
        return ksampler_sigmas(scheduler, model, steps, sampler);
    }
    if denoise <= 0.0 {
        return Ok(Vec::new());
    }
    let longer = (steps as f64 / denoise).trunc();
    if longer > MAX_STEPS as f64 {
        return Err(ScheduleError::DenoiseTooSmall { steps, denoise });
    }
    let mut all = ksampler_sigmas(scheduler, model, longer as usize, sampler)?;
    let cut = all.len().saturating_sub(steps + 1);
    Ok(all.split_off(cut))
}

fn ksampler_sigmas(
    scheduler: Scheduler,
    model: &ModelSampling,
    steps: usize,
    sampler: SamplerKind,
) -> Result<Vec<f32>, ScheduleError> {
    let discard = sampler.discards_penultimate_sigma();
    let asked = steps + usize::from(discard);
    if scheduler == Scheduler::KlOptimal && asked < 2 {
        return Err(ScheduleError::TooFewSteps { scheduler, sampler, steps, least: 2 });
    }
    let mut sigmas = match scheduler {
        Scheduler::Normal => normal(model, asked),
        Scheduler::SgmUniform => sgm_uniform(model, asked),
        Scheduler::Simple => simple(model, asked),
        Scheduler::DdimUniform => ddim_uniform(model, asked),
        Scheduler::Karras => explicit::karras_unchecked(asked, SigmaRange::of(model), KARRAS_RHO),
        Scheduler::Exponential => explicit::exponential_unchecked(asked, SigmaRange::of(model)),
        Scheduler::Beta => super::beta::beta(model, asked, BETA_SHAPE),
        Scheduler::LinearQuadratic => linear_quadratic(model, asked),
        Scheduler::KlOptimal => kl_optimal(model, asked),
    };
    if discard && sigmas.len() >= 2 {
        sigmas.remove(sigmas.len() - 2);
    }
    Ok(sigmas)
}

/// Evenly spaced timesteps, both ends included.
fn normal(model: &ModelSampling, steps: usize) -> Vec<f32> {
    let (start, end) = (model.timestep(model.sigma_max()), model.timestep(model.sigma_min()));
    if is_zero(model.sigma(end)) {
        return linspace(start, end, steps + 1).map(|t| model.sigma(t)).collect();
    }
    with_zero(linspace(start, end, steps).map(|t| model.sigma(t)))
}

/// Evenly spaced timesteps without the last (Stability's generative models).
fn sgm_uniform(model: &ModelSampling, steps: usize) -> Vec<f32> {
    let (start, end) = (model.timestep(model.sigma_max()), model.timestep(model.sigma_min()));
    with_zero(linspace(start, end, steps + 1).take(steps).map(|t| model.sigma(t)))
}

/// Every n-th entry of the model's table, from the largest.
fn simple(model: &ModelSampling, steps: usize) -> Vec<f32> {
    let table = model.table();
    let stride = table.len() as f64 / steps as f64;
    with_zero((0..steps).map(|i| table[table.len() - 1 - (i as f64 * stride) as usize]))
}

/// DDIM's own spacing: every n-th entry of the table from the second on, so the count may differ from `steps`.
fn ddim_uniform(model: &ModelSampling, steps: usize) -> Vec<f32> {
    let table = model.table();
    let ends_at_zero = table.get(1).copied().is_some_and(is_zero);
    let stride = (table.len() / (steps + usize::from(ends_at_zero))).max(1);
    let rising: Vec<f32> = table.iter().copied().skip(1).step_by(stride).collect();
    let falling = rising.into_iter().rev();
    if ends_at_zero { falling.collect() } else { with_zero(falling) }
}

/// Whether a sigma stands for 0, so that no other is added (a flow's of a small shift).
fn is_zero(sigma: f32) -> bool {
    sigma.abs() <= 1e-5
}

/// Half the steps in a line through the first 2.5% of the noise, the rest quadratic (Genmo's Mochi).
fn linear_quadratic(model: &ModelSampling, steps: usize) -> Vec<f32> {
    const THRESHOLD_NOISE: f64 = 0.025;
    if steps == 1 {
        return vec![model.sigma_max(), 0.0];
    }
    let linear_steps = steps / 2;
    let quadratic_steps = steps - linear_steps;
    let (n, linear, quadratic) = (steps as f64, linear_steps as f64, quadratic_steps as f64);
    let step_difference = linear - THRESHOLD_NOISE * n;
    let square = step_difference / (linear * quadratic * quadratic);
    let slope = THRESHOLD_NOISE / linear - 2.0 * step_difference / (quadratic * quadratic);
    let constant = square * (linear * linear);
    let noise = |i: usize| {
        let i_f = i as f64;
        if i < linear_steps {
            i_f * THRESHOLD_NOISE / linear
        } else {
            square * (i_f * i_f) + slope * i_f + constant
        }
    };
    with_zero((0..steps).map(|i| (1.0 - noise(i)) as f32 * model.sigma_max()))
}

/// Sabour et al. 2024, "Align Your Steps", equation 22: evenly spaced arc tangents. Needs two steps at least.
fn kl_optimal(model: &ModelSampling, steps: usize) -> Vec<f32> {
    let min = f64::from(model.sigma_min()).atan() as f32;
    let max = f64::from(model.sigma_max()).atan() as f32;
    with_zero((0..steps).map(|i| {
        let part = i as f32 / (steps - 1) as f32;
        f64::from(part * min + (1.0 - part) * max).tan() as f32
    }))
}

pub(super) fn with_zero(sigmas: impl Iterator<Item = f32>) -> Vec<f32> {
    sigmas.chain(std::iter::once(0.0)).collect()
}

/// `torch.linspace` in f32, bit for bit: the second half is counted from the end, and sums are fused.
pub(crate) fn linspace(start: f32, end: f32, steps: usize) -> impl Iterator<Item = f32> {
    let step = if steps > 1 { (end - start) / (steps - 1) as f32 } else { 0.0 };
    (0..steps).map(move |i| {
        if i < steps / 2 || steps == 1 {
            step.mul_add(i as f32, start)
        } else {
            (-step).mul_add((steps - 1 - i) as f32, end)
        }
    })
}
