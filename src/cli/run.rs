//! The one place of the command line that talks to the pipelines: loads a model, runs requests through its
//! stages, and measures each.

use std::path::Path;
use std::time::Instant;

use candle_core::{DType, Tensor};
use darkroom_models::checkpoint::{ModelKind, QwenImageParts};
use darkroom_models::{bf16_is_accelerated, device};
use darkroom_pipelines::prompt::{PromptError, PromptLimits};
use darkroom_pipelines::{ImageRequest, Limits, LoadOptions, Picture, Pipeline, PipelineError};
use serde::Serialize;

use super::args::{PrecisionArg, SamplingArgs};
use super::error::CommandError;
use super::model::{Defaults, ModelRef};
use super::progress::Progress;
use crate::catalog::{self, Opened};
use crate::expressions::Vocabulary;
use crate::picture::save_whole;
use crate::service::default_budget;
use crate::{embedded, hub};

/// A model, ready to draw.
pub(super) struct Model {
    pipeline: Pipeline,
    /// The name for recipes.
    pub(super) name: String,
    /// Of Qwen-Image: the names of its text encoder's and autoencoder's files, for recipes.
    pub(super) split_files: Option<(String, String)>,
    /// What to draw with where the flags say nothing.
    pub(super) defaults: Defaults,
}

/// What `--timings` writes. Seconds of wall-clock time.
#[derive(Debug, Default, Serialize)]
pub(super) struct Timings {
    /// Opening the weights and building the networks.
    load_seconds: f64,
    /// Prompts, and source pictures where there are any.
    encode_seconds: f64,
    /// Each network call of the denoising loop, in order.
    step_seconds: Vec<f64>,
    /// From latents to pictures.
    decode_seconds: f64,
}

impl Timings {
    /// Writes them as JSON.
    pub(super) fn save(&self, path: &Path) -> Result<(), CommandError> {
        let json = serde_json::to_vec_pretty(self).map_err(CommandError::plain)?;
        save_whole(path, &json).map_err(CommandError::plain)
    }
}

/// The bounds that the flags set.
pub(super) fn limits(args: &SamplingArgs) -> Limits {
    let chunks = args.max_prompt_chunks as usize;
    let prompt = PromptLimits { chunks, ..PromptLimits::default() };
    Limits { prompt, ..Limits::default() }
}

impl Model {
    /// Loads what `--model` names.
    pub(super) fn load(
        args: &SamplingArgs,
        vocabulary: &Vocabulary,
        show_progress: bool,
        timings: &mut Timings,
    ) -> Result<Self, CommandError> {
        let reference = ModelRef::parse(&args.model)?;
        let started = Instant::now();
        let (device, unused) = device::open(args.device).map_err(|error| {
            CommandError::failure(
                error,
                "`darkroom doctor` tells what there is; --device auto takes what works",
            )
        })?;
        if let Some(reason) = unused {
            tracing::warn!(%reason, "computing on the CPU");
        }
        let tokenizer = args.tokenizer.as_deref();
        let open = |path: &Path| {
            catalog::qwen_image::open_at(path, tokenizer, &device).map_err(|e| unusable(&e.into()))
        };
        let opened = match &reference {
            ModelRef::Embedded => {
                Opened::Whole(embedded::checkpoint(&device).map_err(|e| unusable(&e.into()))?)
            }
            ModelRef::Path(path) => open(path)?,
            ModelRef::Hub(name) => {
                let path = hub::fetch(name, show_progress).map_err(|e| {
                    CommandError::failure(
                        e,
                        "check the name and the network, or pass the path of a local model",
                    )
                })?;
                open(&path)?
            }
        };
        match args.precision {
            PrecisionArg::Bf16 if device.is_cpu() && !bf16_is_accelerated() => {
                tracing::warn!("this CPU has no AMX: --precision bf16 computes in full precision");
            }
            PrecisionArg::Fp8 if device.is_cpu() => {
                tracing::warn!(
                    "a CPU has no 8-bit products: --precision fp8 imitates them, and is slower than full"
                );
            }
            _ => {}
        }
        let budget = device::memory(&device).map(|(free, _)| free);
        let options = LoadOptions { compute_type: args.precision.into(), budget };
        let pipeline = match &opened {
            Opened::Whole(checkpoint) => Pipeline::load_at(checkpoint, &device, options),
            Opened::Part(parts) => Pipeline::load_partial(parts, &device, options),
            Opened::QwenImage(parts) => {
                // It may well be larger than the machine: then it is read as it goes.
                let budget = budget.or_else(|| Some(default_budget()));
                Pipeline::load_qwen_image(parts, &device, LoadOptions { budget, ..options })
            }
        };
        let pipeline = pipeline.map_err(|e| unusable(&e))?;
        let pipeline = pipeline.with_limits(limits(args));
        timings.load_seconds = started.elapsed().as_secs_f64();
        tracing::info!(model = args.model, seconds = timings.load_seconds, "loaded");
        let defaults = match (&reference, pipeline.kind()) {
            (ModelRef::Embedded, _) => Defaults::embedded(vocabulary)?,
            (_, ModelKind::Sd15) => Defaults::of_size(512),
            (_, ModelKind::QwenImage) => Defaults::of_qwen_image(),
            (_, _) => Defaults::of_size(1024),
        };
        let split_files = match &opened {
            Opened::QwenImage(parts) => Some(split_files(parts)),
            _ => None,
        };
        Ok(Self { pipeline, name: reference.name(vocabulary), split_files, defaults })
    }

    /// What draws.
    pub(super) fn pipeline(&self) -> &Pipeline {
        &self.pipeline
    }

    /// Draws `requests`, at most `max_batch` at once, and hands each picture to `save` with its index as soon as
    /// it is done. The latents (`[4, h/8, w/8]`, VAE units) come back where `keep_latents` asks for them.
    pub(super) fn draw(
        &self,
        requests: &[ImageRequest],
        max_batch: usize,
        keep_latents: bool,
        progress: &Progress,
        timings: &mut Timings,
        save: &mut dyn FnMut(usize, &Picture) -> Result<(), CommandError>,
    ) -> Result<Vec<Tensor>, CommandError> {
        let mut latents = Vec::new();
        let mut steps_before = 0;
        let max_batch = max_batch.max(1);
        for (group_index, group) in requests.chunks(max_batch).enumerate() {
            let started = Instant::now();
            let mut samples = self.pipeline.prepare(group).map_err(|e| refused(&e))?;
            timings.encode_seconds += started.elapsed().as_secs_f64();

            let mut done = vec![0; group.len()];
            self.pipeline
                .denoise(&mut samples, max_batch, &mut |report| {
                    timings.step_seconds.push(report.elapsed.as_secs_f64());
                    for (index, (steps, _)) in report.advanced.iter().zip(report.progress) {
                        done[*index] = *steps;
                    }
                    let steps = done.iter().sum::<usize>();
                    tracing::debug!(steps, seconds = report.elapsed.as_secs_f64(), "step");
                    progress.steps_done(steps_before + steps);
                })
                .map_err(|e| refused(&e))?;
            steps_before += group.iter().map(|request| request.steps).sum::<usize>();

            let finished: Vec<&Tensor> = samples.iter().filter_map(|sample| sample.latent()).collect();
            let started = Instant::now();
            let pictures = self.pipeline.decode(&finished).map_err(|e| refused(&e))?;
            timings.decode_seconds += started.elapsed().as_secs_f64();
            for (index, picture) in pictures.iter().enumerate() {
                if picture.data().iter().any(|value| !value.is_finite()) {
                    return Err(CommandError::failure(
                        "the picture's values are no numbers (NaN)",
                        "check the model file: its VAE is damaged",
                    ));
                }
                save(group_index * max_batch + index, picture)?;
            }
            if keep_latents {
                for latent in finished {
                    latents.push(self.pipeline.to_vae_units(latent).map_err(|e| refused(&e))?);
                }
            }
        }
        Ok(latents)
    }
}

/// The file names of a Qwen-Image's text encoder and autoencoder; of a folder, its folders' names.
fn split_files(parts: &QwenImageParts) -> (String, String) {
    let name = |origin: &str| catalog::last_name(Path::new(origin));
    let text = parts.text_encoder.as_ref().map_or("", |part| part.weights.origin());
    let vae = parts.vae.as_ref().map_or("", |part| part.weights.origin());
    (name(text), name(vae))
}

/// Writes latents as one batch in the file format of ComfyUI's `SaveLatent`: `latent_tensor`
/// `[batch, 4, h/8, w/8]` in VAE units, and an empty `latent_format_version_0`.
pub(super) fn save_latents(path: &Path, latents: &[Tensor]) -> Result<(), CommandError> {
    let batch = Tensor::stack(latents, 0).and_then(|batch| batch.to_dtype(DType::F32));
    let values = batch.and_then(|batch| Ok((batch.dims().to_vec(), batch.flatten_all()?.to_vec1::<f32>()?)));
    let (shape, values) = values.map_err(CommandError::plain)?;
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let view = |shape, bytes| safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape, bytes);
    let tensors = [
        ("latent_tensor", view(shape, &bytes).map_err(CommandError::plain)?),
        ("latent_format_version_0", view(vec![0], &[]).map_err(CommandError::plain)?),
    ];
    let file = safetensors::serialize(tensors, None).map_err(CommandError::plain)?;
    save_whole(path, &file).map_err(CommandError::plain)
}

/// Refuses requests that the pipeline would refuse, before anything is said or done about them.
pub(super) fn check(requests: &[ImageRequest], limits: &Limits) -> Result<(), CommandError> {
    requests.iter().try_for_each(|request| request.validate(limits)).map_err(|e| refused(&e))
}

/// A model that cannot be loaded.
fn unusable(error: &PipelineError) -> CommandError {
    CommandError::failure(
        format!("cannot load the model: {error}"),
        "`darkroom inspect FILE` says what the file is; download it again if it is damaged",
    )
}

/// A request that the pipeline refused or could not finish.
fn refused(error: &PipelineError) -> CommandError {
    match error {
        PipelineError::Request { field, message } => {
            // Flags have no groups.
            let flag = field.rsplit('.').next().unwrap_or(field).replace('_', "-");
            CommandError::Usage { message: format!("--{flag} {message}"), fix: None }
        }
        PipelineError::Prompt { source: PromptError::TooManyTokens { .. }, .. } => {
            CommandError::usage(error, "shorten it, or raise --max-prompt-chunks")
        }
        PipelineError::Prompt { .. } => CommandError::Usage { message: error.to_string(), fix: None },
        PipelineError::Schedule(_) => {
            CommandError::usage(error, "choose another --steps, --denoise or --scheduler")
        }
        PipelineError::NotANumber { .. } => CommandError::failure(
            error,
            "lower --cfg and the weights in the prompt; if it stays, the model file is damaged",
        ),
        _ => CommandError::plain(error),
    }
}
