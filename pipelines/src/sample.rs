//! One latent on its way from noise to picture.
//!
//! A sample owns everything that is its own (sampler state, conditioning, guidance scale, noise mask) and
//! nothing that is shared (networks). [`crate::denoise`] advances any mix of samples by one network call.

use std::sync::Arc;

use candle_core::Tensor;

use crate::guidance::{Guidance, Guided};
use crate::lora::LoraSet;
use crate::sampler::{Advance, Denoised, Sampler};
use crate::schedule::{ModelSampling, Process};
use crate::step_cache::{CachedFeatures, Pass};
use crate::{PipelineError, picture::Mask};

/// What holds the unmasked part of a sample to its source (ComfyUI's `KSamplerX0Inpaint`).
#[derive(Debug, Clone)]
pub(crate) struct Repaint {
    /// `[1, h/8, w/8]`, 1 = repaint; soft values blend.
    pub(crate) mask: Tensor,
    /// The source, `[4, h/8, w/8]`, in the network's scale.
    pub(crate) latent: Tensor,
    /// The noise that puts the source at a step's noise level, and how it does.
    pub(crate) noise: Tensor,
    pub(crate) process: Process,
    /// Which of it counts when; `None`: all of it always.
    pub(crate) order: Option<Differential>,
}

/// ComfyUI's `DifferentialDiffusion`: at each step only what the mask has at least so much of is drawn, and that bar
/// falls from 1 at the run's first step to 0 at its end.
#[derive(Debug, Clone)]
pub(crate) struct Differential {
    sampling: ModelSampling,
    /// Time steps of the run's ends.
    from: f32,
    to: f32,
    strength: f64,
}

impl Differential {
    pub(crate) fn new(sampling: &ModelSampling, sigmas: &[f32], strength: f64) -> Self {
        let end = |sigma: Option<&f32>| sigma.copied().unwrap_or_default();
        let last = end(sigmas.last()).max(sampling.sigma_min());
        Self {
            sampling: sampling.clone(),
            from: sampling.timestep(end(sigmas.first())),
            to: sampling.timestep(last),
            strength,
        }
    }

    /// What of `mask` counts at noise level `sigma`.
    fn at(&self, mask: &Tensor, sigma: f32) -> candle_core::Result<Tensor> {
        let bar = (self.sampling.timestep(sigma) - self.to) / (self.from - self.to);
        // Where the ends are one, nothing is at least the bar, which is no number.
        let hard = match bar.is_nan() {
            true => mask.zeros_like()?,
            false => mask.ge(f64::from(bar))?.to_dtype(mask.dtype())?,
        };
        if self.strength > 0.0 && self.strength < 1.0 {
            return (hard * self.strength)? + (mask * (1.0 - self.strength))?;
        }
        Ok(hard)
    }
}

impl Repaint {
    pub(crate) fn new(
        mask: &Mask,
        latent: &Tensor,
        noise: Tensor,
        process: Process,
    ) -> Result<Self, PipelineError> {
        let (_, height, width) = latent.dims3()?;
        let mask = mask.resized(width, height).to_tensor(latent.device())?;
        Ok(Self { mask, latent: latent.clone(), noise, process, order: None })
    }

    /// The same with an order in which the mask counts.
    pub(crate) fn in_order(self, order: Option<Differential>) -> Self {
        Self { order, ..self }
    }

    fn blend(&self, inside: &Tensor, outside: &Tensor, sigma: f32) -> candle_core::Result<Tensor> {
        let mask = match &self.order {
            Some(order) => order.at(&self.mask, sigma)?,
            None => self.mask.clone(),
        };
        inside.broadcast_mul(&mask)? + outside.broadcast_mul(&mask.affine(-1.0, 1.0)?)?
    }

    /// What the network sees: the source at noise level `sigma` outside the mask.
    fn input(&self, latent: &Tensor, sigma: f32) -> candle_core::Result<Tensor> {
        let source = self.process.noised(&self.latent, &self.noise, sigma)?;
        self.blend(latent, &source, sigma)
    }
}

enum State {
    Running { sampler: Box<dyn Sampler>, latent: Tensor, sigma: f32 },
    Done(Tensor),
}

/// A latent between two denoising steps.
pub struct Sample {
    state: State,
    guidance: Guidance,
    repaint: Option<Repaint>,
    steps: usize,
    /// Where the run ends.
    end: End,
    /// What the last step's first evaluation took the finished latent to be.
    denoised: Option<Tensor>,
    /// What steps share, where they share anything.
    cache: Option<CachedFeatures>,
}

/// The last noise level of a run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct End {
    pub(crate) process: Process,
    pub(crate) sigma: f32,
}

/// What the network is to evaluate for one sample: the latent as it sees it, and its noise level.
pub(crate) struct Evaluation {
    pub(crate) latent: Tensor,
    pub(crate) sigma: f32,
}

impl Sample {
    /// A sample whose sampler has said what comes first. `steps` is the schedule's number of steps, `end` its end.
    pub(crate) fn new(
        sampler: Box<dyn Sampler>,
        first: Advance,
        guidance: Guidance,
        repaint: Option<Repaint>,
        steps: usize,
        end: End,
    ) -> candle_core::Result<Self> {
        let state = match first {
            Advance::Evaluate { latent, sigma } => State::Running { sampler, latent, sigma },
            Advance::Done(latent) => State::Done(end.process.unmixed(&latent, end.sigma)?),
        };
        Ok(Self { state, guidance, repaint, steps, end, denoised: None, cache: None })
    }

    /// The same with features that evaluations share.
    pub(crate) fn caching(self, cache: Option<CachedFeatures>) -> Self {
        Self { cache, ..self }
    }

    /// A sample with nothing left to do.
    pub(crate) fn finished(latent: Tensor, guidance: Guidance) -> Self {
        let end = End { process: Process::Exploding, sigma: 0.0 };
        Self {
            state: State::Done(latent),
            guidance,
            repaint: None,
            steps: 0,
            end,
            denoised: None,
            cache: None,
        }
    }

    /// The finished latent, `[4, h/8, w/8]` in the network's scale, once there is one.
    pub fn latent(&self) -> Option<&Tensor> {
        match &self.state {
            State::Done(latent) => Some(latent),
            State::Running { .. } => None,
        }
    }

    /// The latent to show while this sample is under way, `[4, h/8, w/8]` in the network's scale: the finished one,
    /// else what the last step took it to be, else the noise it starts from.
    pub fn preview_latent(&self) -> &Tensor {
        match (&self.state, &self.denoised) {
            (State::Done(latent), _) | (State::Running { .. }, Some(latent)) => latent,
            (State::Running { latent, .. }, None) => latent,
        }
    }

    /// What the last step's first evaluation took the finished latent to be, `[4, h/8, w/8]` in the network's scale:
    /// what ComfyUI shows of a step.
    pub fn last_denoised(&self) -> Option<&Tensor> {
        self.denoised.as_ref()
    }

    /// Steps of the schedule in all, and how many are behind this sample.
    pub fn progress(&self) -> (usize, usize) {
        let done = match &self.state {
            State::Running { sampler, .. } => sampler.completed_steps(),
            State::Done(_) => self.steps,
        };
        (done, self.steps)
    }

    /// Whether it has come out as something that is not a number: the settings or the weights are at fault.
    pub fn is_broken(&self) -> Result<bool, PipelineError> {
        match self.latent() {
            Some(latent) => Ok(latent.sqr()?.sum_all()?.to_scalar::<f32>()?.is_nan()),
            None => Ok(false),
        }
    }

    /// Shape of the latent: samples of one step batch share it.
    pub fn latent_dims(&self) -> &[usize] {
        match &self.state {
            State::Running { latent, .. } | State::Done(latent) => latent.dims(),
        }
    }

    /// Most rows of the network's batch that a step of it takes. With a guidance interval steps outside it take one.
    pub fn rows(&self) -> usize {
        1 + usize::from(self.guidance.negative.is_some())
    }

    /// Most bytes that it keeps between steps beside its latent: features that evaluations share.
    pub fn cache_bytes(&self) -> usize {
        self.cache.as_ref().map_or(0, CachedFeatures::bytes)
    }

    /// What it is drawn with beside the model.
    pub fn loras(&self) -> Option<&Arc<LoraSet>> {
        self.guidance.loras.as_ref()
    }

    /// Most bytes that its ControlNets take in a step beside the model, for `rows` latents of `height × width` cells:
    /// they are called one after another.
    pub fn control_bytes(&self, rows: usize, height: usize, width: usize) -> usize {
        let bytes = self.guidance.conditions().flat_map(|placed| {
            let tokens = placed.text.context.dims().first().copied().unwrap_or(0);
            let networks = placed.controls.iter().map(|active| &active.control.network);
            networks.map(move |network| network.forward_bytes(rows, height, width, tokens))
        });
        bytes.max().unwrap_or(0)
    }

    pub(crate) fn guidance(&self) -> &Guidance {
        &self.guidance
    }

    /// How a condition's row goes through the network at the next evaluation.
    pub(crate) fn pass(&self, condition: usize) -> Pass<'_> {
        self.cache.as_ref().map_or(Pass::Whole { keep: None }, |cache| cache.pass(condition))
    }

    /// Lets go of kept features that the next evaluation makes anew.
    pub(crate) fn drop_stale_features(&mut self) {
        if let Some(cache) = &mut self.cache {
            cache.drop_stale();
        }
    }

    pub(crate) fn next_evaluation(&self) -> candle_core::Result<Option<Evaluation>> {
        let State::Running { latent, sigma, .. } = &self.state else { return Ok(None) };
        let latent = match &self.repaint {
            Some(repaint) => repaint.input(latent, *sigma)?,
            None => latent.clone(),
        };
        Ok(Some(Evaluation { latent, sigma: *sigma }))
    }

    /// Takes the network's answers to an [`Evaluation`], one for each of [`Guidance::rows`], guides them and moves on.
    /// `kept` are features to keep, by number of the condition.
    pub(crate) fn advance(
        &mut self,
        evaluation: &Evaluation,
        predictions: &[Tensor],
        kept: Vec<(usize, Tensor)>,
    ) -> Result<(), PipelineError> {
        if let Some(cache) = &mut self.cache {
            cache.advance(kept);
        }
        let State::Running { sampler, .. } = &mut self.state else { return Ok(()) };
        let Guided { guided, uncond } =
            self.guidance.combine(&evaluation.latent, evaluation.sigma, predictions)?;
        let guided = match &self.repaint {
            Some(repaint) => repaint.blend(&guided, &repaint.latent, evaluation.sigma)?,
            None => guided,
        };
        if sampler.opens_step() {
            self.denoised = Some(guided.clone());
        }
        match sampler.advance(&Denoised { guided, uncond })? {
            Advance::Evaluate { latent, sigma } => {
                if let State::Running { latent: at, sigma: level, .. } = &mut self.state {
                    (*at, *level) = (latent, sigma);
                }
            }
            Advance::Done(latent) => {
                self.cache = None;
                self.state = State::Done(self.end.process.unmixed(&latent, self.end.sigma)?);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::schedule::Prediction;

    #[test]
    fn what_a_mask_has_most_of_is_drawn_first_and_all_of_it_at_the_end() {
        let sampling = ModelSampling::scaled_linear(Prediction::Epsilon);
        let sigmas = [sampling.sigma(799.0), sampling.sigma(400.0), sampling.sigma(0.0), 0.0];
        let mask = Tensor::new(&[[[0f32, 0.3, 0.6, 1.0]]], &Device::Cpu).unwrap();
        let at = |strength, sigma| -> Vec<f32> {
            let order = Differential::new(&sampling, &sigmas, strength);
            order.at(&mask, sigma).unwrap().flatten_all().unwrap().to_vec1().unwrap()
        };
        assert_eq!(at(1.0, sigmas[0]), [0.0, 0.0, 0.0, 1.0]);
        assert_eq!(at(1.0, sigmas[1]), [0.0, 0.0, 1.0, 1.0]);
        assert_eq!(at(1.0, sigmas[2]), [1.0; 4]);
        let half = at(0.5, sigmas[1]);
        for (found, expected) in half.iter().zip([0.0, 0.15, 0.8, 1.0]) {
            assert!((found - expected).abs() < 1e-6, "{half:?}");
        }
    }
}
