//! `darkroom pack`: one character with many expressions, drawn as one batch.

use std::time::Instant;

use darkroom_models::Computed;
use darkroom_pipelines::ImageRequest;
use darkroom_pipelines::noise::BatchPosition;
use darkroom_pipelines::pack::{Expression, expression_requests};
use image::RgbImage;

use super::args::{PackArgs, SourceArgs};
use super::error::CommandError;
use super::generate::{cannot_write, check_folder, check_length, png_of, recipe, size_hint};
use super::guide::Guide;
use super::model::default_batch;
use super::progress::Progress;
use super::run::{Model, Timings, check, limits};
use super::{print_result, source};
use crate::contact_sheet::{self, Sheet, Tile};
use crate::expressions::Vocabulary;
use crate::pack_json::{PackImage, PackJson, Settings, VERSION};
use crate::picture::{TextChunk, encode_png, save_whole};

const SHEET: &str = "contact_sheet.png";
const INDEX: &str = "pack.json";
/// Seed of a pack when none is given. With this one the built-in model keeps hair, clothes and background alike
/// over all expressions even where the character's tags do not name them.
const SEED: u64 = 5;
/// Share of the schedule that runs on a base picture.
const BASE_DENOISE: f64 = 0.4;

pub(super) fn run(args: &PackArgs, quiet: bool) -> Result<(), CommandError> {
    let vocabulary = Vocabulary::embedded().map_err(CommandError::plain)?;
    let chosen = vocabulary.choose(&args.expressions).map_err(|e| {
        CommandError::usage(e, "name expressions with commas between: --expressions smile_gentle,angry")
    })?;
    let expressions: Vec<Expression> = chosen
        .into_iter()
        .map(|e| Expression { name: e.name.clone(), label: e.label.clone(), tags: e.tags.clone() })
        .collect();
    check_length("character", &args.character, &limits(&args.sampling))?;
    let outfit = args.guide.outfit.as_deref().unwrap_or_default();
    check_length("outfit", outfit, &limits(&args.sampling))?;
    let character = [args.character.trim().trim_end_matches(','), outfit.trim()];
    let character = character.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ");
    check_folder(&args.out)?;
    let mut timings = Timings::default();
    let model = Model::load(&args.sampling, &vocabulary, !quiet, &mut timings)?;
    let started = Instant::now();

    let settings = model.defaults.with_flags(&args.sampling);
    let start = source::read(
        &SourceArgs {
            image: args.guide.base.clone(),
            mask: None,
            inpaint_mode: None,
            grow_mask: None,
            denoise: args.guide.base.is_some().then(|| args.guide.denoise.unwrap_or(BASE_DENOISE)),
        },
        (args.sampling.width, args.sampling.height),
        settings.size,
    )?;
    let base = ImageRequest {
        prompt: String::new(),
        negative_prompt: settings.negative_prompt.clone(),
        steps: settings.steps,
        cfg: settings.cfg,
        sampler: settings.sampler,
        scheduler: settings.scheduler,
        seed: args.sampling.seed.unwrap_or(SEED),
        position: BatchPosition::ALONE,
        denoise: start.denoise,
        clip_skip: args.sampling.clip_skip.map(|skip| skip as usize),
        source: start.source,
        loras: None,
        controls: Vec::new(),
        speed: args.sampling.speed.speed(),
        shift: None,
    };
    let mut requests = expression_requests(&base, &character, &expressions);
    check(&requests, &limits(&args.sampling))?;
    let (width, height) = base.source.size();
    let guide = Guide::new(&args.guide, model.pipeline(), &base)?;
    let mut controls = Vec::with_capacity(requests.len());
    for (request, expression) in requests.iter_mut().zip(&expressions) {
        controls.push(guide.apply(request, &expression.name, model.pipeline())?);
    }
    check(&requests, &limits(&args.sampling))?;

    let progress = Progress::new(requests.len(), settings.steps, quiet);
    progress.say(&format!("{} expressions of \"{character}\", {width}x{height}", expressions.len()));
    if args.sampling.model == "embedded"
        && let Some(hint) = size_hint(&vocabulary, width, height)
    {
        progress.say(&format!("hint: {hint}"));
    }
    let mut pictures: Vec<RgbImage> = Vec::with_capacity(requests.len());
    let mut images: Vec<PackImage> = Vec::with_capacity(requests.len());
    let batch = args.sampling.max_batch.map_or_else(|| default_batch(width, height), |batch| batch as usize);
    let drawn = model.draw(&requests, batch, false, &progress, &mut timings, &mut |index, picture| {
        let (expression, request) = (&expressions[index], &requests[index]);
        let recipe = guide.note(recipe(request, &model, &start.origin), &controls[index]);
        let bytes = png_of(picture, &recipe)?;
        let file = format!("{}.png", expression.name);
        let path = args.out.join(&file);
        save_whole(&path, &bytes).map_err(cannot_write)?;
        progress.picture_done(&format!("{}: {}", expression.label, path.display()));
        let (width, height) = (picture.width(), picture.height());
        pictures.extend(RgbImage::from_raw(width as u32, height as u32, picture.to_rgb8()));
        images.push(PackImage {
            file,
            name: expression.name.clone(),
            label: expression.label.clone(),
            prompt: request.prompt.clone(),
            seed: request.seed,
            width,
            height,
            seconds: seconds_since(started),
        });
        Ok(())
    });
    progress.finish();
    drawn?;

    let index = PackJson {
        version: VERSION,
        generator: format!("darkroom {}", env!("CARGO_PKG_VERSION")),
        character,
        negative_prompt: base.negative_prompt.clone(),
        model: model.name.clone(),
        settings: Settings {
            sampler: settings.sampler.to_string(),
            scheduler: settings.scheduler.to_string(),
            steps: settings.steps,
            cfg: settings.cfg,
            clip_skip: base.clip_skip,
            bf16: model.pipeline().computed() == Computed::Bf16,
            precision: model.pipeline().computed(),
            speed: base.speed,
        },
        contact_sheet: SHEET.to_owned(),
        images,
        seconds: seconds_since(started),
    };
    let sheet = sheet_of(&index, base.seed, &pictures)?;
    let sheet_path = args.out.join(SHEET);
    save_whole(&sheet_path, &sheet).map_err(cannot_write)?;
    // Last: where pack.json is, everything it names is there.
    let json = serde_json::to_vec_pretty(&index).map_err(CommandError::plain)?;
    save_whole(&args.out.join(INDEX), &json).map_err(cannot_write)?;
    if let Some(path) = &args.output.timings {
        timings.save(path)?;
    }
    for image in &index.images {
        print_result(&args.out.join(&image.file).display().to_string())?;
    }
    print_result(&sheet_path.display().to_string())?;
    progress.say(&format!("{} pictures in {:.1} s", index.images.len(), index.seconds));
    Ok(())
}

/// Seconds to the millisecond.
fn seconds_since(start: Instant) -> f64 {
    (start.elapsed().as_secs_f64() * 1000.0).round() / 1000.0
}

/// The contact sheet as a PNG.
fn sheet_of(index: &PackJson, seed: u64, pictures: &[RgbImage]) -> Result<Vec<u8>, CommandError> {
    let Settings { sampler, scheduler, steps, cfg, .. } = &index.settings;
    let model = index.model.strip_suffix(".safetensors").unwrap_or(&index.model);
    let footer = format!(
        "{model}  ·  {sampler} / {scheduler}  ·  {steps} steps  ·  cfg {cfg}  ·  seed {seed}  ·  {}",
        index.generator
    );
    let tiles = index.images.iter().zip(pictures);
    let tiles = tiles.map(|(image, picture)| Tile { label: &image.label, name: &image.name, picture });
    let heading = "EXPRESSION PACK";
    let sheet = Sheet { heading, title: &index.character, footer: &footer, tiles: tiles.collect() };
    let page = contact_sheet::draw(&sheet).map_err(CommandError::plain)?;
    let about = [
        TextChunk { keyword: "Title".into(), text: index.character.clone() },
        TextChunk { keyword: "Software".into(), text: index.generator.clone() },
    ];
    encode_png(page.width() as usize, page.height() as usize, page.as_raw(), &about)
        .map_err(CommandError::plain)
}
