//! Names of the samplers, and what each needs from outside: which noise, which predictions, which sigmas.

use std::fmt;
use std::str::FromStr;

use candle_core::Device;

use super::{Result, SamplerError};
use crate::noise::{BatchPosition, BrownianNoise, DefaultNoise, StepNoise};

/// A sampler by ComfyUI's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "&'static str")]
#[expect(missing_docs, reason = "names are the field's own; the module of each says what it does")]
pub enum SamplerKind {
    Euler,
    EulerCfgPp,
    EulerAncestral,
    EulerAncestralCfgPp,
    Heun,
    Heunpp2,
    Dpm2,
    Dpm2Ancestral,
    Lms,
    DpmFast,
    DpmAdaptive,
    Dpmpp2sAncestral,
    Dpmpp2sAncestralCfgPp,
    DpmppSde,
    Dpmpp2m,
    Dpmpp2mCfgPp,
    Dpmpp2mSde,
    Dpmpp2mSdeHeun,
    Dpmpp3mSde,
    Ddpm,
    Lcm,
    Ipndm,
    IpndmV,
    Deis,
    ResMultistep,
    ResMultistepCfgPp,
    ResMultistepAncestral,
    ResMultistepAncestralCfgPp,
    GradientEstimation,
    GradientEstimationCfgPp,
    ErSde,
    Seeds2,
    Seeds3,
    SaSolver,
    SaSolverPece,
    Ddim,
    UniPc,
    UniPcBh2,
}

impl SamplerKind {
    /// Every sampler, in ComfyUI's order.
    pub const ALL: &'static [Self] = &[
        Self::Euler,
        Self::EulerCfgPp,
        Self::EulerAncestral,
        Self::EulerAncestralCfgPp,
        Self::Heun,
        Self::Heunpp2,
        Self::Dpm2,
        Self::Dpm2Ancestral,
        Self::Lms,
        Self::DpmFast,
        Self::DpmAdaptive,
        Self::Dpmpp2sAncestral,
        Self::Dpmpp2sAncestralCfgPp,
        Self::DpmppSde,
        Self::Dpmpp2m,
        Self::Dpmpp2mCfgPp,
        Self::Dpmpp2mSde,
        Self::Dpmpp2mSdeHeun,
        Self::Dpmpp3mSde,
        Self::Ddpm,
        Self::Lcm,
        Self::Ipndm,
        Self::IpndmV,
        Self::Deis,
        Self::ResMultistep,
        Self::ResMultistepCfgPp,
        Self::ResMultistepAncestral,
        Self::ResMultistepAncestralCfgPp,
        Self::GradientEstimation,
        Self::GradientEstimationCfgPp,
        Self::ErSde,
        Self::Seeds2,
        Self::Seeds3,
        Self::SaSolver,
        Self::SaSolverPece,
        Self::Ddim,
        Self::UniPc,
        Self::UniPcBh2,
    ];

    /// The name in requests.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Euler => "euler",
            Self::EulerCfgPp => "euler_cfg_pp",
            Self::EulerAncestral => "euler_ancestral",
            Self::EulerAncestralCfgPp => "euler_ancestral_cfg_pp",
            Self::Heun => "heun",
            Self::Heunpp2 => "heunpp2",
            Self::Dpm2 => "dpm_2",
            Self::Dpm2Ancestral => "dpm_2_ancestral",
            Self::Lms => "lms",
            Self::DpmFast => "dpm_fast",
            Self::DpmAdaptive => "dpm_adaptive",
            Self::Dpmpp2sAncestral => "dpmpp_2s_ancestral",
            Self::Dpmpp2sAncestralCfgPp => "dpmpp_2s_ancestral_cfg_pp",
            Self::DpmppSde => "dpmpp_sde",
            Self::Dpmpp2m => "dpmpp_2m",
            Self::Dpmpp2mCfgPp => "dpmpp_2m_cfg_pp",
            Self::Dpmpp2mSde => "dpmpp_2m_sde",
            Self::Dpmpp2mSdeHeun => "dpmpp_2m_sde_heun",
            Self::Dpmpp3mSde => "dpmpp_3m_sde",
            Self::Ddpm => "ddpm",
            Self::Lcm => "lcm",
            Self::Ipndm => "ipndm",
            Self::IpndmV => "ipndm_v",
            Self::Deis => "deis",
            Self::ResMultistep => "res_multistep",
            Self::ResMultistepCfgPp => "res_multistep_cfg_pp",
            Self::ResMultistepAncestral => "res_multistep_ancestral",
            Self::ResMultistepAncestralCfgPp => "res_multistep_ancestral_cfg_pp",
            Self::GradientEstimation => "gradient_estimation",
            Self::GradientEstimationCfgPp => "gradient_estimation_cfg_pp",
            Self::ErSde => "er_sde",
            Self::Seeds2 => "seeds_2",
            Self::Seeds3 => "seeds_3",
            Self::SaSolver => "sa_solver",
            Self::SaSolverPece => "sa_solver_pece",
            Self::Ddim => "ddim",
            Self::UniPc => "uni_pc",
            Self::UniPcBh2 => "uni_pc_bh2",
        }
    }

    /// Whether the sampler needs the prediction of the negative prompt beside the guided one (CFG++), so that the
    /// negative prompt must be evaluated even at guidance scale 1.
    #[must_use]
    pub fn needs_uncond(self) -> bool {
        matches!(
            self,
            Self::EulerCfgPp
                | Self::EulerAncestralCfgPp
                | Self::Dpmpp2sAncestralCfgPp
                | Self::Dpmpp2mCfgPp
                | Self::ResMultistepCfgPp
                | Self::ResMultistepAncestralCfgPp
                | Self::GradientEstimationCfgPp
        )
    }

    /// Whether KSampler asks the scheduler for one step more and leaves out the last sigma before 0: methods whose
    /// last step would else be wasted on a tiny sigma.
    #[must_use]
    pub fn discards_penultimate_sigma(self) -> bool {
        matches!(self, Self::Dpm2 | Self::Dpm2Ancestral | Self::UniPc | Self::UniPcBh2)
    }

    /// Whether the method can follow sigmas that rise, as `FlipSigmas` makes them to put noise back into a picture.
    /// The others take roots of what is negative then.
    pub(super) fn can_rise(self) -> bool {
        !matches!(
            self,
            Self::Dpmpp2mSde
                | Self::Dpmpp2mSdeHeun
                | Self::Dpmpp3mSde
                | Self::Ddpm
                | Self::Seeds2
                | Self::Seeds3
                | Self::SaSolver
                | Self::SaSolverPece
                | Self::UniPc
                | Self::UniPcBh2
        )
    }

    /// Whether a step between two equal sigmas is one: the methods that divide by nothing of its length.
    pub(super) fn steps_in_place(self) -> bool {
        matches!(
            self,
            Self::Euler
                | Self::EulerCfgPp
                | Self::EulerAncestral
                | Self::EulerAncestralCfgPp
                | Self::Heun
                | Self::Heunpp2
                | Self::Dpm2
                | Self::Dpm2Ancestral
                | Self::DpmFast
                | Self::Dpmpp2sAncestral
                | Self::Dpmpp2sAncestralCfgPp
                | Self::Ddpm
                | Self::Lcm
                | Self::Ipndm
                | Self::GradientEstimation
                | Self::GradientEstimationCfgPp
                | Self::Seeds2
                | Self::Ddim
        )
    }

    /// Whether its steps are taken in the logarithm of the signal-to-noise ratio, whatever process the model has.
    pub(super) fn is_logarithmic(self) -> bool {
        matches!(self, Self::ErSde | Self::Seeds2 | Self::Seeds3 | Self::SaSolver | Self::SaSolverPece)
            || self.is_brownian()
    }

    /// Whether the noise of its steps comes from one Brownian path.
    fn is_brownian(self) -> bool {
        matches!(self, Self::DpmppSde | Self::Dpmpp2mSde | Self::Dpmpp2mSdeHeun | Self::Dpmpp3mSde)
    }
}

impl fmt::Display for SamplerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for SamplerKind {
    type Err = SamplerError;

    /// ComfyUI's names; those of the `_gpu` variants, which differ in where noise is drawn, mean the same sampler.
    fn from_str(name: &str) -> Result<Self> {
        let find = |name: &str| Self::ALL.iter().copied().find(|kind| kind.name() == name);
        find(name)
            .or_else(|| find(name.strip_suffix("_gpu")?).filter(|kind| kind.is_brownian()))
            .ok_or_else(|| SamplerError::UnknownSampler(name.to_owned()))
    }
}

impl TryFrom<String> for SamplerKind {
    type Error = SamplerError;

    fn try_from(name: String) -> Result<Self> {
        name.parse()
    }
}

impl From<SamplerKind> for &'static str {
    fn from(kind: SamplerKind) -> Self {
        kind.name()
    }
}

/// The noise that `kind` adds at its steps, for a sample of `shape` (without a batch dimension) at `position`, with
/// the picture's `seed`, over the `sigmas` of its run. Samplers that add none never draw from it.
///
/// # Errors
/// The position lies outside the batch, the draw is empty or too large, or Brownian noise has no interval.
pub fn noise_for(
    kind: SamplerKind,
    seed: u64,
    position: BatchPosition,
    shape: &[usize],
    sigmas: &[f32],
    device: &Device,
) -> Result<Box<dyn StepNoise>> {
    // Without a step nothing is drawn, and a Brownian path would have no interval.
    if kind.is_brownian() && sigmas.len() > 1 {
        return Ok(Box::new(BrownianNoise::new(seed, position, shape, sigmas, device)?));
    }
    Ok(Box::new(DefaultNoise::new(seed, position, shape, device)?))
}

/// Names in a list, for messages.
pub(crate) fn join<T: fmt::Display>(names: &[T]) -> String {
    names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
