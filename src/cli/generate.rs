//! `darkroom generate`: pictures from a prompt, from a picture, or inside a mask.

use std::hash::{BuildHasher, Hasher};
use std::io::Read;
use std::path::Path;

use darkroom_pipelines::noise::BatchPosition;
use darkroom_pipelines::{FlowShift, ImageRequest, Limits, Picture};

use super::args::{GenerateArgs, PromptArgs};
use super::error::CommandError;
use super::model::default_batch;
use super::progress::Progress;
use super::run::{Model, Timings, check, limits, save_latents};
use super::{print_result, source};
use crate::expressions::Vocabulary;
use crate::picture::{Recipe, RecipeFlow, encode_png, save_numbered};
use crate::task::Background;

/// Most bytes that are read of a prompt file.
const MAX_PROMPT_FILE: u64 = 4 << 20;
/// What file names begin with.
const PREFIX: &str = "darkroom";

pub(super) fn run(args: &GenerateArgs, quiet: bool) -> Result<(), CommandError> {
    let prompt = prompt(&args.text)?;
    check_length("prompt", &prompt, &limits(&args.sampling))?;
    check_length("negative", args.sampling.negative.as_deref().unwrap_or(""), &limits(&args.sampling))?;
    check_folder(&args.out)?;
    let vocabulary = Vocabulary::embedded().map_err(CommandError::plain)?;
    let mut timings = Timings::default();
    let model = Model::load(&args.sampling, &vocabulary, !quiet, &mut timings)?;
    let settings = model.defaults.with_flags(&args.sampling);
    let start = source::read(&args.source, (args.sampling.width, args.sampling.height), settings.size)?;
    let (width, height) = start.source.size();
    let first_seed = args.sampling.seed.unwrap_or_else(random_seed);

    let requests: Vec<ImageRequest> = (0..u64::from(args.count))
        .map(|index| ImageRequest {
            prompt: prompt.clone(),
            negative_prompt: settings.negative_prompt.clone(),
            steps: settings.steps,
            cfg: settings.cfg,
            sampler: settings.sampler,
            scheduler: settings.scheduler,
            seed: first_seed.wrapping_add(index),
            position: BatchPosition::ALONE,
            denoise: start.denoise,
            clip_skip: args.sampling.clip_skip.map(|skip| skip as usize),
            source: start.source.clone(),
            loras: None,
            controls: Vec::new(),
            speed: args.sampling.speed.speed(),
            shift: args.sampling.shift,
        })
        .collect();
    check(&requests, &limits(&args.sampling))?;
    let recipes: Vec<Recipe> =
        requests.iter().map(|request| recipe(request, &model, &start.origin)).collect();

    let progress = Progress::new(requests.len(), settings.steps, quiet);
    if args.sampling.model == "embedded"
        && let Some(hint) = size_hint(&vocabulary, width, height)
    {
        progress.say(&format!("hint: {hint}"));
    }
    let batch = args.sampling.max_batch.map_or_else(|| default_batch(width, height), |batch| batch as usize);
    let latents = model.draw(
        &requests,
        batch,
        args.save_latent.is_some(),
        &progress,
        &mut timings,
        &mut |index, picture| {
            let bytes = png_of(picture, &recipes[index])?;
            let path = save_numbered(&args.out, PREFIX, &bytes).map_err(cannot_write)?;
            progress.picture_done(&format!("seed {}: {}", recipes[index].seed, path.display()));
            progress.beside_bars(|| print_result(&path.display().to_string()))
        },
    );
    progress.finish();
    let latents = latents?;
    if let Some(path) = &args.save_latent {
        save_latents(path, &latents)?;
    }
    if let Some(path) = &args.output.timings {
        timings.save(path)?;
    }
    Ok(())
}

/// The recipe of `request`, for the PNG.
pub(super) fn recipe(request: &ImageRequest, model: &Model, origin: &crate::picture::Origin) -> Recipe {
    let (width, height) = request.source.size();
    Recipe {
        prompt: request.prompt.clone(),
        negative_prompt: request.negative_prompt.clone(),
        width,
        height,
        steps: request.steps,
        cfg: request.cfg,
        sampler: request.sampler.to_string(),
        scheduler: request.scheduler.to_string(),
        seed: request.seed,
        denoise: request.denoise,
        clip_skip: request.clip_skip,
        computed: model.pipeline().computed(),
        model: model.name.clone(),
        flow: model.split_files.clone().map(|(text_encoder, vae)| RecipeFlow {
            shift: request.shift.unwrap_or(FlowShift::OWN),
            text_encoder,
            vae,
        }),
        origin: origin.clone(),
        loras: Vec::new(),
        controls: Vec::new(),
        speed: request.speed,
        detail: None,
        background: Background::Keep,
    }
}

/// A picture as a PNG that carries its recipe.
pub(super) fn png_of(picture: &Picture, recipe: &Recipe) -> Result<Vec<u8>, CommandError> {
    encode_png(picture.width(), picture.height(), &picture.to_rgb8(), &recipe.text_chunks())
        .map_err(CommandError::plain)
}

/// Refuses a text that no pipeline would take, before anything is loaded.
pub(super) fn check_length(flag: &str, text: &str, limits: &Limits) -> Result<(), CommandError> {
    let (characters, most) = (text.chars().count(), limits.prompt.characters);
    if characters <= most {
        return Ok(());
    }
    Err(CommandError::usage(
        format!("--{flag} has {characters} characters; at most {most} are taken"),
        "shorten it; what a prompt says after its first few hundred words hardly counts",
    ))
}

/// Makes the folder for results, before time is spent on pictures that could not be stored.
pub(super) fn check_folder(folder: &Path) -> Result<(), CommandError> {
    std::fs::create_dir_all(folder).map_err(|e| {
        CommandError::failure(
            format!("cannot make the folder {}: {e}", folder.display()),
            "choose another with --out",
        )
    })
}

pub(super) fn cannot_write(error: crate::picture::WriteError) -> CommandError {
    CommandError::failure(
        error,
        "check that there is space and that the folder may be written, or choose another --out",
    )
}

/// What to tell a person who asks the embedded model for a size that it does not draw well.
pub(super) fn size_hint(vocabulary: &Vocabulary, width: usize, height: usize) -> Option<&str> {
    let sizes = &vocabulary.sizes;
    let well = sizes.trained == [width, height] || sizes.good.contains(&[width, height]);
    (!well).then_some(sizes.hint.as_str())
}

fn prompt(args: &PromptArgs) -> Result<String, CommandError> {
    let Some(path) = &args.prompt_file else {
        return Ok(args.prompt.clone().unwrap_or_default());
    };
    let name = path.display();
    let cannot = |e: std::io::Error| {
        CommandError::failure(
            format!("{name}: cannot read the prompt: {e}"),
            "check the path and that it is UTF-8",
        )
    };
    let mut text = String::new();
    let read = if path.as_os_str() == "-" {
        std::io::stdin().take(MAX_PROMPT_FILE + 1).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).map_err(cannot)?.take(MAX_PROMPT_FILE + 1).read_to_string(&mut text)
    };
    read.map_err(cannot)?;
    text.truncate(text.trim_end_matches(['\n', '\r']).len());
    Ok(text)
}

/// A seed of 32 bits from the system's randomness, as hash maps are seeded.
fn random_seed() -> u64 {
    std::hash::RandomState::new().build_hasher().finish() >> 32
}
