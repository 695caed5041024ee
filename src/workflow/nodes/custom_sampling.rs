//! Sampling put together from its parts: noise, guider, sampler, sigmas.

use std::sync::Arc;

use super::sampling::{self, Job, SAMPLERS, sampler};
use super::sigmas::sigmas;
use crate::workflow::Context;
use crate::workflow::context::{Inputs, NodeError, Outputs};
use crate::workflow::interface::{Input, Interface, boolean, combo, float, link, seed};
use crate::workflow::registry::Registry;
use crate::workflow::value::{Guider, Kind, Noise, Value};

const MODULE: &str = "comfy_extras.nodes_custom_sampler";

/// Adds them.
pub(super) fn register(registry: &mut Registry) {
    parts(registry);
    guiders(registry);
    registry.add(
        Interface::new("SamplerCustom", "sampling/custom_sampling")
            .display("SamplerCustom")
            .input(link("model", Kind::MODEL))
            .input(boolean("add_noise", true))
            .input(seed("noise_seed"))
            .input(cfg())
            .input(link("positive", Kind::CONDITIONING))
            .input(link("negative", Kind::CONDITIONING))
            .input(link("sampler", Kind::SAMPLER))
            .input(link("sigmas", Kind::SIGMAS))
            .input(link("latent_image", Kind::LATENT))
            .named_output("output", Kind::LATENT)
            .named_output("denoised_output", Kind::LATENT)
            .module(MODULE),
        custom,
    );
    registry.add(
        Interface::new("SamplerCustomAdvanced", "sampling/custom_sampling")
            .display("SamplerCustomAdvanced")
            .input(link("noise", Kind::NOISE))
            .input(link("guider", Kind::GUIDER))
            .input(link("sampler", Kind::SAMPLER))
            .input(link("sigmas", Kind::SIGMAS))
            .input(link("latent_image", Kind::LATENT))
            .named_output("output", Kind::LATENT)
            .named_output("denoised_output", Kind::LATENT)
            .module(MODULE),
        custom_advanced,
    );
}

/// Guidance scale.
pub(super) fn cfg() -> Input {
    float("cfg", 8.0, 0.0, 100.0).with("step", 0.1).with("round", 0.01)
}

fn parts(registry: &mut Registry) {
    registry.add(
        Interface::new("KSamplerSelect", "sampling/custom_sampling/samplers")
            .display("KSamplerSelect")
            .input(combo("sampler_name", SAMPLERS))
            .output(Kind::SAMPLER)
            .module(MODULE),
        |inputs, _| Ok(Outputs::one(Value::Sampler(sampler(inputs, "sampler_name")?))),
    );
    registry.add(
        Interface::new("RandomNoise", "sampling/custom_sampling/noise")
            .display("RandomNoise")
            .input(seed("noise_seed"))
            .output(Kind::NOISE)
            .module(MODULE),
        |inputs, _| Ok(Outputs::one(Value::Noise(Noise::Seed(inputs.seed("noise_seed")?)))),
    );
    registry.add(
        Interface::new("DisableNoise", "sampling/custom_sampling/noise")
            .display("DisableNoise")
            .output(Kind::NOISE)
            .module(MODULE),
        |_, _| Ok(Outputs::one(Value::Noise(Noise::Disabled))),
    );
}

fn guiders(registry: &mut Registry) {
    registry.add(
        Interface::new("BasicGuider", "sampling/custom_sampling/guiders")
            .display("BasicGuider")
            .input(link("model", Kind::MODEL))
            .input(link("conditioning", Kind::CONDITIONING))
            .output(Kind::GUIDER)
            .module(MODULE),
        |inputs, _| {
            let (model, positive) = (inputs.model("model")?, inputs.conditioning("conditioning")?);
            let guider = Guider { model, positive, negative: None, cfg: 1.0 };
            Ok(Outputs::one(Value::Guider(Arc::new(guider))))
        },
    );
    registry.add(
        Interface::new("CFGGuider", "sampling/custom_sampling/guiders")
            .display("CFGGuider")
            .input(link("model", Kind::MODEL))
            .input(link("positive", Kind::CONDITIONING))
            .input(link("negative", Kind::CONDITIONING))
            .input(cfg())
            .output(Kind::GUIDER)
            .module(MODULE),
        |inputs, _| {
            let guider = Guider {
                model: inputs.model("model")?,
                positive: inputs.conditioning("positive")?,
                negative: Some(inputs.conditioning("negative")?),
                cfg: inputs.float("cfg")?,
            };
            Ok(Outputs::one(Value::Guider(Arc::new(guider))))
        },
    );
}

fn custom(inputs: &Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
    let (model, seed) = (inputs.model("model")?, inputs.seed("noise_seed")?);
    let (positive, negative) = (inputs.conditioning("positive")?, inputs.conditioning("negative")?);
    let (sigmas, latent) = (sigmas(inputs)?, inputs.latent("latent_image")?);
    let noise = if inputs.boolean("add_noise")? { Noise::Seed(seed) } else { Noise::Disabled };
    let drawn = sampling::denoise(
        context,
        &Job {
            model: &model,
            positive: &positive,
            negative: Some(&negative),
            cfg: inputs.float("cfg")?,
            sampler: link_of(inputs)?,
            sigmas: &sigmas,
            noise_sigmas: None,
            noise,
            step_seed: seed,
            latent: &latent,
        },
    )?;
    Ok(Outputs::of([Value::Latent(drawn.latent), Value::Latent(drawn.denoised)]))
}

fn custom_advanced(inputs: &Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
    let Some(Value::Guider(guider)) = inputs.get("guider") else {
        return Err(NodeError::input("guider", "is missing"));
    };
    let Some(Value::Noise(noise)) = inputs.get("noise") else {
        return Err(NodeError::input("noise", "is missing"));
    };
    let (sigmas, latent) = (sigmas(inputs)?, inputs.latent("latent_image")?);
    let drawn = sampling::denoise(
        context,
        &Job {
            model: &guider.model,
            positive: &guider.positive,
            negative: guider.negative.as_deref().map(Vec::as_slice),
            cfg: guider.cfg,
            sampler: link_of(inputs)?,
            sigmas: &sigmas,
            noise_sigmas: None,
            noise: *noise,
            // What samplers add at their steps comes from seed 0 where there is no noise.
            step_seed: if let Noise::Seed(seed) = noise { *seed } else { 0 },
            latent: &latent,
        },
    )?;
    Ok(Outputs::of([Value::Latent(drawn.latent), Value::Latent(drawn.denoised)]))
}

fn link_of(inputs: &Inputs) -> Result<darkroom_pipelines::sampler::SamplerKind, NodeError> {
    match inputs.get("sampler") {
        Some(Value::Sampler(sampler)) => Ok(*sampler),
        _ => Err(NodeError::input("sampler", "is missing")),
    }
}
