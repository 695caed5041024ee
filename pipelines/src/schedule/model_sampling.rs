//! What a network predicts and at which noise levels it was trained. For Stable Diffusion 1.5 and SDXL this is ComfyUI's
//! `ModelSamplingDiscrete` with each kind of prediction that its node of this name offers; for models that predict a
//! flow its `ModelSamplingDiscreteFlow` (Stable Diffusion 3, AuraFlow and Qwen-Image, which differ in the shift and in
//! what the network is told), whose shift is equation 23 of Esser et al. 2024.

use candle_core::{Result, Tensor};
use darkroom_kernels::sampling::linear_combination;

use super::process::Process;

/// Timesteps a discrete model was trained on.
const TIMESTEPS: usize = 1000;
/// First and last beta of the `scaled_linear` schedule that SD 1.5 and SDXL share.
const BETA_START: f64 = 0.00085;
const BETA_END: f64 = 0.012;
/// Timesteps of a model distilled to a few steps, of the thousand (`ModelSamplingDiscreteDistilled`).
const DISTILLED_TIMESTEPS: usize = 50;
/// What a schedule of zero terminal SNR keeps of the picture at its last timestep: not quite nothing, for the sigma to
/// be finite (about 4518).
const LEAST_KEPT: f64 = 4.897_345_189_085_343_5e-8;
/// How close to the largest sigma a run must begin to count as full denoising (`math.isclose` in ComfyUI).
const MAX_SIGMA_RELATIVE: f64 = 1e-5;

/// What the network's output means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prediction {
    /// The noise (`epsilon`).
    Epsilon,
    /// The velocity (Salimans and Ho 2022).
    V,
    /// The picture itself.
    X0,
    /// The noise, of a latent consistency model (Luo et al. 2023): its own mean of picture and input, and every
    /// twentieth timestep.
    Lcm,
    /// The picture itself, from a latent that is not scaled for the network.
    ImgToImg,
    /// The way from picture to noise, `noise - picture`, of a latent that mixes the two ([`Process::Flow`]).
    Flow,
}

/// A model's noise levels and the maps between latents, network inputs and network outputs.
#[derive(Debug, Clone)]
pub struct ModelSampling {
    prediction: Prediction,
    /// Sigma of every timestep that the model has, rising.
    sigmas: Vec<f32>,
    timesteps: Timesteps,
}

/// How timesteps, which the network is told, go with sigmas.
#[derive(Debug, Clone)]
enum Timesteps {
    /// Whole numbers, by a table.
    Table {
        /// Timesteps from one entry of the table to the next.
        stride: usize,
        log_sigmas: Vec<f32>,
    },
    /// Any, by a formula.
    Flow {
        /// How far noise levels are moved up: 1 leaves them evenly spread.
        shift: f64,
        /// The timestep of noise alone.
        multiplier: f64,
    },
    /// The same with a shift that is given as an exponent; the timestep is the noise level itself.
    Exponential {
        /// The exponent.
        mu: f64,
    },
}

/// Entries of the table of models whose shift is an exponent.
const FLUX_TIMESTEPS: usize = 10_000;

impl ModelSampling {
    /// The schedule of Stable Diffusion 1.5 and SDXL: 1000 timesteps, betas `linspace(√0.00085, √0.012)²`; of these,
    /// 50 with [`Prediction::Lcm`].
    #[must_use]
    pub fn scaled_linear(prediction: Prediction) -> Self {
        Self::of(prediction, &scaled_linear_sigmas())
    }

    /// The same, rescaled to end in noise alone (zero terminal SNR; Lin et al. 2024, algorithm 1), at a sigma of about
    /// 4518.
    #[must_use]
    pub fn zero_terminal_snr(prediction: Prediction) -> Self {
        let mut sigmas = scaled_linear_sigmas();
        let kept = |sigma: f64| (1.0 / (sigma * sigma + 1.0)).sqrt();
        let (first, last) = (kept(sigmas[0]), kept(sigmas[TIMESTEPS - 1]));
        for sigma in &mut sigmas {
            let kept = ((kept(*sigma) - last) * (first / (first - last))).powi(2);
            *sigma = ((1.0 - kept) / kept).sqrt();
        }
        sigmas[TIMESTEPS - 1] = ((1.0 - LEAST_KEPT) / LEAST_KEPT).sqrt();
        Self::of(prediction, &sigmas)
    }

    /// The schedule of models that predict a flow: sigmas from 0.001 to 1, moved up by `shift` (above 0; Stable
    /// Diffusion 3 has 3, AuraFlow 1.73, ComfyUI's Qwen-Image workflow 3.1), and timesteps up to `multiplier` (1000
    /// for Stable Diffusion 3, 1 for AuraFlow and Qwen-Image).
    #[must_use]
    pub fn flow(shift: f64, multiplier: f64) -> Self {
        let timesteps = Timesteps::Flow { shift, multiplier };
        let mut sampling = Self { prediction: Prediction::Flow, sigmas: Vec::new(), timesteps };
        let share = |t: usize| t as f32 / TIMESTEPS as f32;
        sampling.sigmas = (1..=TIMESTEPS).map(|t| sampling.sigma(share(t) * multiplier as f32)).collect();
        sampling
    }

    /// The schedule of models whose noise levels are moved up by an exponent (ComfyUI's `ModelSamplingFlux`; its own for
    /// Qwen-Image where no node says another is 1.15): sigmas from near 0 to 1, timesteps the same.
    #[must_use]
    pub fn flux(mu: f64) -> Self {
        let timesteps = Timesteps::Exponential { mu };
        let mut sampling = Self { prediction: Prediction::Flow, sigmas: Vec::new(), timesteps };
        sampling.sigmas =
            (1..=FLUX_TIMESTEPS).map(|t| sampling.sigma(t as f32 / FLUX_TIMESTEPS as f32)).collect();
        sampling
    }

    /// From the sigma of each timestep.
    fn of(prediction: Prediction, exact: &[f64]) -> Self {
        if prediction == Prediction::Lcm {
            let stride = exact.len() / DISTILLED_TIMESTEPS;
            let kept = exact.iter().skip(stride - 1).step_by(stride);
            let sigmas: Vec<f32> = kept.map(|&sigma| sigma as f32).collect();
            let log_sigmas = sigmas.iter().map(|&sigma| ln(sigma)).collect();
            return Self { prediction, sigmas, timesteps: Timesteps::Table { stride, log_sigmas } };
        }
        let log_sigmas = exact.iter().map(|sigma| sigma.ln() as f32).collect();
        Self {
            prediction,
            sigmas: exact.iter().map(|&sigma| sigma as f32).collect(),
            timesteps: Timesteps::Table { stride: 1, log_sigmas },
        }
    }

    /// How a picture and its noise share the network's latents.
    #[must_use]
    pub fn process(&self) -> Process {
        match self.prediction {
            Prediction::Flow => Process::Flow,
            _ => Process::Exploding,
        }
    }

    /// What the network predicts.
    #[must_use]
    pub fn prediction(&self) -> Prediction {
        self.prediction
    }

    /// Sigma of every timestep that the model has, rising.
    #[must_use]
    pub fn table(&self) -> &[f32] {
        &self.sigmas
    }

    /// Smallest sigma the model was trained at, about 0.0292 without rescaling.
    #[must_use]
    pub fn sigma_min(&self) -> f32 {
        self.sigmas[0]
    }

    /// Largest sigma the model was trained at, about 14.6146 without rescaling.
    #[must_use]
    pub fn sigma_max(&self) -> f32 {
        self.sigmas[self.sigmas.len() - 1]
    }

    /// What the network is told of a noise level. Of a table, the timestep whose sigma is nearest in the logarithm: a
    /// whole number, the lower of two equally near. Of a flow, sigma times the timestep of noise alone.
    #[must_use]
    pub fn timestep(&self, sigma: f32) -> f32 {
        let (stride, log_sigmas) = match &self.timesteps {
            Timesteps::Table { stride, log_sigmas } => (*stride, log_sigmas),
            Timesteps::Flow { multiplier, .. } => return sigma * *multiplier as f32,
            Timesteps::Exponential { .. } => return sigma,
        };
        let log_sigma = ln(sigma);
        let distance = |index: usize| (log_sigma - log_sigmas[index]).abs();
        let mut best = 0;
        for index in 1..log_sigmas.len() {
            if distance(index) < distance(best) {
                best = index;
            }
        }
        (best * stride + stride - 1) as f32
    }

    /// Sigma at a timestep. It may lie between whole ones, and is cut to the table where there is one. A flow's is
    /// shifted, so that this is not the inverse of [`timestep`](Self::timestep).
    #[must_use]
    pub fn sigma(&self, timestep: f32) -> f32 {
        let (stride, log_sigmas) = match &self.timesteps {
            Timesteps::Table { stride, log_sigmas } => (*stride, log_sigmas),
            Timesteps::Flow { shift, multiplier } => {
                let t = timestep / *multiplier as f32;
                // Each operation rounds, as torch's do.
                return match *shift {
                    1.0 => t,
                    shift => (shift as f32 * t) / (1.0 + (shift - 1.0) as f32 * t),
                };
            }
            Timesteps::Exponential { mu } => {
                let factor = mu.exp() as f32;
                return factor / (factor + (1.0 / timestep - 1.0));
            }
        };
        let t = (timestep - (stride - 1) as f32) / stride as f32;
        let t = t.clamp(0.0, (log_sigmas.len() - 1) as f32);
        let (low, high) = (t.floor() as usize, t.ceil() as usize);
        let weight = t - t.trunc();
        exp((1.0 - weight) * log_sigmas[low] + weight * log_sigmas[high])
    }

    /// Sigma at which `percent` (0 to 1) of the run's timesteps are done: what ControlNet ranges are given in.
    /// 0 is a sigma above every other (of a flow, 1), 1 is 0.
    #[must_use]
    pub fn percent_to_sigma(&self, percent: f64) -> f32 {
        if percent >= 1.0 {
            return 0.0;
        }
        match self.timesteps {
            Timesteps::Table { .. } if percent <= 0.0 => 999_999_999.9,
            Timesteps::Table { .. } => self.sigma(((1.0 - percent) * 999.0) as f32),
            Timesteps::Flow { .. } | Timesteps::Exponential { .. } if percent <= 0.0 => 1.0,
            Timesteps::Exponential { mu } => {
                let factor = mu.exp();
                (factor / (factor + (1.0 / (1.0 - percent) - 1.0))) as f32
            }
            Timesteps::Flow { shift, .. } => {
                let t = 1.0 - percent;
                (shift * t / (1.0 + (shift - 1.0) * t)) as f32
            }
        }
    }

    /// The network's input: `x / √(sigma² + 1)`, or `x` itself with [`Prediction::ImgToImg`] and [`Prediction::Flow`].
    ///
    /// # Errors
    /// The tensor library failed.
    pub fn scale_input(&self, x: &Tensor, sigma: f32) -> Result<Tensor> {
        if matches!(self.prediction, Prediction::ImgToImg | Prediction::Flow) {
            return Ok(x.clone());
        }
        x.affine(1.0 / f64::from((sigma * sigma + 1.0).sqrt()), 0.0)
    }

    /// The picture that the network's output means, as a latent: `x - sigma * output` for epsilon
    /// and for a flow.
    ///
    /// # Errors
    /// The shapes differ, or the tensor library failed.
    pub fn denoised(&self, x: &Tensor, model_output: &Tensor, sigma: f32) -> Result<Tensor> {
        match self.prediction {
            Prediction::Epsilon | Prediction::Flow => {
                linear_combination(&[(x, 1.0), (model_output, -f64::from(sigma))])
            }
            Prediction::X0 | Prediction::ImgToImg => Ok(model_output.clone()),
            Prediction::Lcm => {
                /// What the authors scale timesteps by, and the variance of the data.
                const SCALE: f32 = 10.0;
                const VARIANCE: f32 = 0.25;
                let t = self.timestep(sigma) * SCALE;
                let (skip, out) = (VARIANCE / (t * t + VARIANCE), t / (t * t + VARIANCE).sqrt());
                let picture = (x - model_output.affine(f64::from(sigma), 0.0)?)?;
                picture.affine(f64::from(out), 0.0)? + x.affine(f64::from(skip), 0.0)?
            }
            Prediction::V => {
                let variance = sigma * sigma + 1.0;
                let output = model_output.affine(f64::from(sigma / variance.sqrt()), 0.0)?;
                x.affine(f64::from(1.0 / variance), 0.0)? - output
            }
        }
    }

    /// Whether a run that begins at `sigma` begins from pure noise.
    #[must_use]
    pub fn is_max_denoise(&self, sigma: f32) -> bool {
        let (sigma, max) = (f64::from(sigma), f64::from(self.sigma_max()));
        sigma > max || (sigma - max).abs() <= MAX_SIGMA_RELATIVE * sigma.abs().max(max.abs())
    }

    /// The latent a run starts from: `noise * sigma + latent`, or `noise * √(1 + sigma²) + latent` where the run
    /// begins from pure noise (`max_denoise`; see [`is_max_denoise`](Self::is_max_denoise)). Of a flow, the mixture
    /// `noise * sigma + latent * (1 - sigma)` in either case.
    ///
    /// # Errors
    /// The shapes differ, or the tensor library failed.
    pub fn noise_latent(
        &self,
        latent: &Tensor,
        noise: &Tensor,
        sigma: f32,
        max_denoise: bool,
    ) -> Result<Tensor> {
        match self.process() {
            Process::Exploding if max_denoise => {
                noise.affine(f64::from((1.0 + sigma * sigma).sqrt()), 0.0)? + latent
            }
            process => process.noised(latent, noise, sigma),
        }
    }
}

/// Sigma of each timestep with betas `linspace(√0.00085, √0.012)²`.
fn scaled_linear_sigmas() -> Vec<f64> {
    let (start, end) = (BETA_START.sqrt(), BETA_END.sqrt());
    let step = (end - start) / (TIMESTEPS - 1) as f64;
    let mut kept = 1.0f64;
    (0..TIMESTEPS)
        .map(|t| {
            // torch's linspace counts the second half from the end.
            let root = if t < TIMESTEPS / 2 {
                start + step * t as f64
            } else {
                end - step * (TIMESTEPS - 1 - t) as f64
            };
            kept *= 1.0 - root * root;
            ((1.0 - kept) / kept).sqrt()
        })
        .collect()
}

/// Single-precision exponential, correctly rounded but for rare ties.
pub(crate) fn exp(x: f32) -> f32 {
    f64::from(x).exp() as f32
}

/// Single-precision logarithm, correctly rounded but for rare ties.
pub(crate) fn ln(x: f32) -> f32 {
    f64::from(x).ln() as f32
}
