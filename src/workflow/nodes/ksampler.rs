//! KSampler and its advanced form.

use darkroom_pipelines::schedule::{self, Scheduler};

use super::custom_sampling::cfg;
use super::sampling::{self, Job, SAMPLERS, model_sampling, sampler, scheduler};
use crate::workflow::Context;
use crate::workflow::context::{Inputs, NodeError, Outputs};
use crate::workflow::interface::{Interface, combo, float, int, link, seed};
use crate::workflow::registry::Registry;
use crate::workflow::value::{Kind, Noise, Value};

/// Adds them.
pub(super) fn register(registry: &mut Registry) {
    let schedulers = || combo("scheduler", Scheduler::ALL.iter().map(|scheduler| scheduler.name()));
    registry.add(
        Interface::new("KSampler", "sampling")
            .display("KSampler")
            .description("Draws: turns a latent's noise into what the prompts say.")
            .input(link("model", Kind::MODEL))
            .input(seed("seed"))
            .input(int("steps", 20, 1, 10000))
            .input(cfg())
            .input(combo("sampler_name", SAMPLERS))
            .input(schedulers())
            .input(link("positive", Kind::CONDITIONING))
            .input(link("negative", Kind::CONDITIONING))
            .input(link("latent_image", Kind::LATENT))
            .input(float("denoise", 1.0, 0.0, 1.0).with("step", 0.01))
            .output(Kind::LATENT),
        |inputs, context| {
            let plan = Plan {
                seed: inputs.seed("seed")?,
                denoise: inputs.float("denoise")?,
                add_noise: true,
                steps: None,
            };
            run(inputs, context, &plan)
        },
    );
    registry.add(
        Interface::new("KSamplerAdvanced", "sampling")
            .display("KSampler (Advanced)")
            .description("Draws a part of the steps.")
            .input(link("model", Kind::MODEL))
            .input(combo("add_noise", ["enable", "disable"]))
            .input(seed("noise_seed"))
            .input(int("steps", 20, 1, 10000))
            .input(cfg())
            .input(combo("sampler_name", SAMPLERS))
            .input(schedulers())
            .input(link("positive", Kind::CONDITIONING))
            .input(link("negative", Kind::CONDITIONING))
            .input(link("latent_image", Kind::LATENT))
            .input(int("start_at_step", 0, 0, 10000))
            .input(int("end_at_step", 10000, 0, 10000))
            .input(combo("return_with_leftover_noise", ["disable", "enable"]))
            .output(Kind::LATENT),
        |inputs, context| {
            let part = Part {
                start: inputs.size("start_at_step")?,
                end: inputs.size("end_at_step")?,
                to_the_end: &*inputs.string("return_with_leftover_noise")? != "enable",
            };
            let plan = Plan {
                seed: inputs.seed("noise_seed")?,
                denoise: 1.0,
                add_noise: &*inputs.string("add_noise")? != "disable",
                steps: Some(part),
            };
            run(inputs, context, &plan)
        },
    );
}

/// What tells the two nodes apart.
struct Plan {
    seed: u64,
    denoise: f64,
    add_noise: bool,
    steps: Option<Part>,
}

/// Some of the steps.
#[derive(Debug, Clone, Copy)]
struct Part {
    start: usize,
    end: usize,
    /// Whether the last of them takes out all noise that is left.
    to_the_end: bool,
}

impl Part {
    /// Its sigmas; `None` where it has no step.
    fn of(self, mut sigmas: Vec<f32>) -> Option<Vec<f32>> {
        if self.end < sigmas.len().saturating_sub(1) {
            sigmas.truncate(self.end + 1);
            if self.to_the_end
                && let Some(last) = sigmas.last_mut()
            {
                *last = 0.0;
            }
        }
        (self.start < sigmas.len().saturating_sub(1)).then(|| sigmas.split_off(self.start))
    }
}

fn run(inputs: &Inputs, context: &Context<'_>, plan: &Plan) -> Result<Outputs, NodeError> {
    let (model, latent) = (inputs.model("model")?, inputs.latent("latent_image")?);
    let (positive, negative) = (inputs.conditioning("positive")?, inputs.conditioning("negative")?);
    let (sampler, scheduler) = (sampler(inputs, "sampler_name")?, scheduler(inputs, "scheduler")?);
    let model_sampling = model_sampling(context, &model)?;
    let all = schedule::sigmas(scheduler, &model_sampling, inputs.size("steps")?, plan.denoise, sampler)
        .map_err(|error| NodeError::Failed(error.to_string()))?;
    let sigmas = match plan.steps {
        None => Some(all),
        Some(part) => part.of(all),
    };
    let Some(sigmas) = sigmas else { return Ok(Outputs::one(Value::Latent(latent))) };
    let drawn = sampling::denoise(
        context,
        &Job {
            model: &model,
            positive: &positive,
            negative: Some(&negative),
            cfg: inputs.float("cfg")?,
            sampler,
            sigmas: &sigmas,
            noise_sigmas: None,
            noise: if plan.add_noise { Noise::Seed(plan.seed) } else { Noise::Disabled },
            step_seed: plan.seed,
            latent: &latent,
        },
    )?;
    Ok(Outputs::one(Value::Latent(drawn.latent)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIGMAS: [f32; 5] = [8.0, 4.0, 2.0, 1.0, 0.0];

    fn part(start: usize, end: usize, to_the_end: bool) -> Option<Vec<f32>> {
        Part { start, end, to_the_end }.of(SIGMAS.to_vec())
    }

    #[test]
    fn a_part_ends_in_no_noise_unless_it_is_to_leave_some() {
        assert_eq!(part(0, 10000, true).unwrap(), SIGMAS);
        assert_eq!(part(0, 2, false).unwrap(), [8.0, 4.0, 2.0]);
        assert_eq!(part(0, 2, true).unwrap(), [8.0, 4.0, 0.0]);
        assert_eq!(part(2, 10000, false).unwrap(), [2.0, 1.0, 0.0]);
        assert_eq!(part(1, 3, true).unwrap(), [4.0, 2.0, 0.0]);
    }

    #[test]
    fn a_part_without_steps_leaves_the_latent_alone() {
        assert_eq!(part(4, 10000, true), None);
        assert_eq!(part(2, 2, true), None);
        assert_eq!(part(0, 0, true), None);
        assert_eq!(Part { start: 0, end: 5, to_the_end: true }.of(Vec::new()), None);
    }
}
