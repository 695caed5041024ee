//! From what a client chose to a complete [`ImageSpec`]: the model's own settings where nothing was chosen, and every
//! bound checked that can be known before anything is drawn. Used by all dialects.

use std::sync::Arc;

use darkroom_models::checkpoint::ModelKind;
use darkroom_models::tokenizer::ClipTokenizer;
use darkroom_pipelines::noise::BatchPosition;
use darkroom_pipelines::prompt::{self, CLIP_L_PAD, PromptError, PromptLimits};
use darkroom_pipelines::sampler::SamplerKind;
use darkroom_pipelines::schedule::{self, ModelSampling, Prediction, ScheduleError, Scheduler};
use darkroom_pipelines::{
    FlowShift, GuidanceInterval, ImageRequest, Limits, PIXELS_PER_CELL, PipelineError, Source, Speed,
    StepCache,
};

use super::bank::SEED_MASK;
use super::error::{ApiError, did_you_mean, shown};
use crate::config::{LimitsConfig, SpeedConfig};
use crate::service::ModelDefaults;
use crate::task::{Background, ImageFormat, ImageSpec, SourceSpec};

/// Smallest side of a picture, pixels.
const LEAST_SIDE: usize = 16;
/// Text-encoder layers of the largest CLIP that is known.
const CLIP_LAYERS: usize = 32;
/// Denoise of image to image where none is given, as AUTOMATIC1111's.
const IMAGE_DENOISE: f64 = 0.75;

/// The bounds of every picture.
pub(super) struct Rules {
    limits: Limits,
    max_images: usize,
    tokenizer: Arc<ClipTokenizer>,
    /// Schedules are computed once on submission, since some settings have none.
    sampling: ModelSampling,
    /// What is given up for speed where a client does not say.
    speed: Speed,
}

/// What a client chose of one picture; the rest is the model's own.
#[derive(Debug, Clone, Default)]
pub(super) struct Choices {
    pub(super) prompt: String,
    pub(super) negative_prompt: Option<String>,
    pub(super) width: Option<usize>,
    pub(super) height: Option<usize>,
    pub(super) steps: Option<usize>,
    pub(super) cfg: Option<f64>,
    pub(super) sampler: Option<String>,
    pub(super) scheduler: Option<String>,
    pub(super) clip_skip: Option<usize>,
    pub(super) denoise: Option<f64>,
    /// What is `None` in it was not chosen.
    pub(super) speed: Speed,
    /// How far noise levels are moved up.
    pub(super) shift: Option<FlowShift>,
    pub(super) start: Option<Start>,
    pub(super) format: Option<ImageFormat>,
    pub(super) without_metadata: bool,
}

/// A source picture that was read.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Start {
    /// What the spec says of it.
    pub(super) source: SourceSpec,
    /// Its size, pixels.
    pub(super) size: (usize, usize),
}

impl Rules {
    pub(super) fn new(config: &LimitsConfig, speed: &SpeedConfig, tokenizer: Arc<ClipTokenizer>) -> Self {
        let limits = Limits {
            side: LEAST_SIDE..=config.max_side,
            pixels: config.max_pixels,
            steps: 1..=config.max_steps,
            prompt: PromptLimits { characters: config.prompt_characters, chunks: config.prompt_chunks },
            ..Limits::default()
        };
        let sampling = ModelSampling::scaled_linear(Prediction::Epsilon);
        let speed = Speed {
            guidance_interval: Some(GuidanceInterval {
                start: speed.guidance_start,
                end: speed.guidance_end,
            }),
            step_cache: Some(StepCache {
                cache_interval: speed.cache_interval,
                cache_branch_id: speed.cache_branch_id,
            }),
        };
        Self { limits, max_images: config.max_images, tokenizer, sampling, speed }
    }

    /// Refuses a number of pictures that one task may not have.
    pub(super) fn check_count(&self, field: &str, count: usize) -> Result<(), ApiError> {
        if (1..=self.max_images).contains(&count) {
            return Ok(());
        }
        Err(ApiError::invalid(field, format!("is {count}, must be 1 to {}", self.max_images)))
    }

    /// A picture's size in whole cells, made smaller where it is beyond the limits.
    pub(super) fn fitting(&self, (width, height): (usize, usize)) -> (usize, usize) {
        let (most_side, most_pixels) = (*self.limits.side.end() as f64, self.limits.pixels as f64);
        let (w, h) = (width.max(1) as f64, height.max(1) as f64);
        let scale = (most_side / w.max(h)).min((most_pixels / (w * h)).sqrt()).min(1.0);
        let cells = |side: f64| ((side * scale) as usize / PIXELS_PER_CELL * PIXELS_PER_CELL).max(LEAST_SIDE);
        (cells(w), cells(h))
    }

    /// The picture in full, with seed 0.
    pub(super) fn resolve(&self, defaults: ModelDefaults, choices: Choices) -> Result<ImageSpec, ApiError> {
        let kind = defaults.kind;
        check_family(kind, &choices)?;
        let negative_prompt = choices.negative_prompt.unwrap_or(defaults.negative_prompt);
        self.check_prompt(kind, "prompt", &choices.prompt)?;
        self.check_prompt(kind, "negative_prompt", &negative_prompt)?;
        let sampler = named("sampler", choices.sampler, defaults.sampler, SamplerKind::ALL)?;
        let scheduler = named("scheduler", choices.scheduler, defaults.scheduler, Scheduler::ALL)?;
        let (width, height) = size(
            (choices.width, choices.height),
            choices.start.as_ref().map(|start| start.size),
            (defaults.width, defaults.height),
        );
        let denoise = denoise(choices.denoise, choices.start.as_ref())?;
        if choices.clip_skip.is_some_and(|layer| layer > CLIP_LAYERS) {
            return Err(ApiError::invalid("clip_skip", format!("must be 1 to {CLIP_LAYERS}")));
        }
        let request = ImageRequest {
            prompt: choices.prompt,
            negative_prompt,
            steps: choices.steps.unwrap_or(defaults.steps),
            cfg: choices.cfg.unwrap_or(defaults.cfg),
            sampler,
            scheduler,
            seed: 0,
            position: BatchPosition::ALONE,
            denoise,
            clip_skip: choices.clip_skip,
            source: Source::Empty { width, height },
            loras: None,
            controls: Vec::new(),
            speed: self.speed(choices.speed, sampler, kind),
            shift: choices.shift,
        };
        request.validate(&self.limits).map_err(pipeline_error)?;
        let flow = ModelSampling::flow(1.0, 1.0);
        let sampling = if kind == ModelKind::QwenImage { &flow } else { &self.sampling };
        schedule::sigmas(scheduler, sampling, request.steps, denoise, sampler)
            .map_err(|error| schedule_error(&error))?;
        Ok(ImageSpec {
            model: defaults.model,
            prompt: request.prompt,
            negative_prompt: request.negative_prompt,
            width,
            height,
            steps: request.steps,
            cfg: request.cfg,
            sampler: sampler.name().to_owned(),
            scheduler: scheduler.name().to_owned(),
            seed: 0,
            denoise,
            clip_skip: request.clip_skip,
            source: choices.start.map_or(SourceSpec::Empty, |start| start.source),
            loras: Vec::new(),
            controls: Vec::new(),
            speed: request.speed,
            shift: request.shift,
            detail: None,
            background: Background::Keep,
            format: choices.format.unwrap_or(ImageFormat::Png),
            metadata: !choices.without_metadata,
            label: None,
            bank: None,
        })
    }

    /// What is given up: what was chosen, else what the configuration says as far as the sampler allows it.
    fn speed(&self, chosen: Speed, sampler: SamplerKind, kind: ModelKind) -> Speed {
        let interval = self.speed.guidance_interval.filter(|_| !sampler.needs_uncond());
        let speed = Speed {
            guidance_interval: chosen.guidance_interval.or(interval),
            // Only UNets have features to keep.
            step_cache: chosen.step_cache.or(self.speed.step_cache.filter(|_| kind != ModelKind::QwenImage)),
        };
        speed.effective()
    }

    fn check_prompt(&self, kind: ModelKind, field: &'static str, text: &str) -> Result<(), ApiError> {
        let limits = &self.limits.prompt;
        if kind == ModelKind::QwenImage {
            // Its language model reads every sign as it stands.
            return prompt::check_length(text, limits)
                .map_err(|error| ApiError::invalid(field, format!("cannot be used: {error}")));
        }
        let checked = prompt::parse(text, limits).and_then(|segments| {
            prompt::check_weights(&segments)?;
            prompt::chunk(&segments, &self.tokenizer, CLIP_L_PAD, limits)
        });
        checked.map(|_| ()).map_err(|error| match error {
            PromptError::Tokenizer(error) => ApiError::internal(&format!("the tokenizer failed: {error}")),
            error => ApiError::invalid(field, format!("cannot be used: {error}")),
        })
    }
}

/// Fails for what the model's family cannot do, before anything is queued.
fn check_family(kind: ModelKind, choices: &Choices) -> Result<(), ApiError> {
    let refuse = |field: &str, message: &str| Err(ApiError::invalid(field, message.to_owned()));
    if kind != ModelKind::QwenImage {
        return match choices.shift {
            Some(_) => refuse("shift", "is for models that predict a flow, such as Qwen-Image"),
            None => Ok(()),
        };
    }
    if choices.clip_skip.is_some() {
        return refuse("clip_skip", "is not for Qwen-Image, whose text encoder is no CLIP");
    }
    if choices.speed.step_cache.is_some_and(|cache| cache.cache_interval > 1) {
        return refuse("speed.step_cache", "is not for Qwen-Image, which has no UNet");
    }
    Ok(())
}

/// Seeds of `count` pictures: the first one, and each next one higher, around the end.
pub(super) fn seeds(first: u64, count: usize) -> impl Iterator<Item = u64> {
    (0..count as u64).map(move |index| first.wrapping_add(index))
}

/// A seed for a client that gave none. JavaScript reads it without loss.
pub(super) fn random_seed() -> u64 {
    uuid::Uuid::new_v4().as_u64_pair().0 & SEED_MASK
}

/// `WIDTHxHEIGHT` in pixels.
pub(super) fn resolution(field: &str, text: &str) -> Result<(usize, usize), ApiError> {
    let side = |text: &str| -> Option<usize> {
        let text = text.trim();
        (!text.is_empty() && text.len() <= 9 && text.bytes().all(|byte| byte.is_ascii_digit()))
            .then(|| text.parse().ok())
            .flatten()
    };
    text.split_once(['x', 'X', '×'])
        .and_then(|(width, height)| Some((side(width)?, side(height)?)))
        .ok_or_else(|| {
            ApiError::invalid(field, format!("cannot be '{}'", shown(text)))
                .hint("write WIDTHxHEIGHT: 1024x1024")
        })
}

/// One side alone keeps a source's proportions; without both it stays as large as it is.
fn size(
    chosen: (Option<usize>, Option<usize>),
    source: Option<(usize, usize)>,
    default: (usize, usize),
) -> (usize, usize) {
    let cells =
        |pixels: f64| ((pixels / PIXELS_PER_CELL as f64).round() as usize * PIXELS_PER_CELL).max(LEAST_SIDE);
    let other =
        |side: usize, ours: usize, theirs: usize| cells(side as f64 * theirs as f64 / ours.max(1) as f64);
    match (chosen, source) {
        ((Some(width), Some(height)), _) => (width, height),
        ((Some(width), None), Some(source)) => (width, other(width, source.0, source.1)),
        ((None, Some(height)), Some(source)) => (other(height, source.1, source.0), height),
        ((None, None), Some(source)) => {
            let cut = |side: usize| side / PIXELS_PER_CELL * PIXELS_PER_CELL;
            (cut(source.0), cut(source.1))
        }
        ((width, height), None) => (width.unwrap_or(default.0), height.unwrap_or(default.1)),
    }
}

fn denoise(chosen: Option<f64>, start: Option<&Start>) -> Result<f64, ApiError> {
    match start.map(|start| &start.source) {
        None | Some(SourceSpec::Empty) => match chosen {
            None => Ok(1.0),
            Some(1.0) => Ok(1.0),
            Some(_) => Err(ApiError::invalid("denoise", "must be 1 without init_image")
                .hint("give an init_image, or leave denoise out")),
        },
        Some(SourceSpec::Image { inpaint: None, .. }) => Ok(chosen.unwrap_or(IMAGE_DENOISE)),
        Some(SourceSpec::Image { inpaint: Some(_), .. }) => Ok(chosen.unwrap_or(1.0)),
    }
}

/// A sampler or scheduler by name.
fn named<T: Copy + std::fmt::Display>(
    field: &'static str,
    chosen: Option<String>,
    default: String,
    all: &'static [T],
) -> Result<T, ApiError> {
    let name = chosen.unwrap_or(default);
    let names: Vec<String> = all.iter().map(T::to_string).collect();
    match names.iter().position(|known| *known == name) {
        Some(index) => Ok(all[index]),
        None => {
            let hint = did_you_mean(&name, names.iter().map(String::as_str));
            Err(ApiError::invalid(field, format!("cannot be '{}'", shown(&name)))
                .hint(hint.unwrap_or_else(|| format!("known: {}", names.join(", ")))))
        }
    }
}

fn pipeline_error(error: PipelineError) -> ApiError {
    match error {
        PipelineError::Request { field, message } => ApiError::invalid(field, message),
        other => ApiError::internal(&format!("a request could not be checked: {other}")),
    }
}

fn schedule_error(error: &ScheduleError) -> ApiError {
    let field = match error {
        ScheduleError::Denoise(_) | ScheduleError::DenoiseTooSmall { .. } => "denoise",
        ScheduleError::UnknownScheduler(_) => "scheduler",
        ScheduleError::Steps(_) | ScheduleError::TooFewSteps { .. } => "steps",
        // Only schedules that are given by numbers have it, and requests have none.
        ScheduleError::Value { .. } => "scheduler",
    };
    ApiError::invalid(field, format!("cannot be used: {error}"))
}

#[cfg(test)]
pub(super) mod testing {
    //! A model's settings and a picture, for tests.

    use super::*;

    pub(in crate::http) fn rules() -> Rules {
        Rules::new(&LimitsConfig::default(), &SpeedConfig::default(), ClipTokenizer::standard().unwrap())
    }

    pub(in crate::http) fn defaults() -> ModelDefaults {
        ModelDefaults {
            model: "tiny-sdxl".into(),
            width: 128,
            height: 128,
            steps: 20,
            cfg: 5.0,
            sampler: "dpmpp_2m".into(),
            scheduler: "karras".into(),
            negative_prompt: String::new(),
            kind: darkroom_models::checkpoint::ModelKind::Sdxl,
        }
    }

    pub(in crate::http) fn spec() -> ImageSpec {
        rules().resolve(defaults(), Choices { prompt: "1girl".into(), ..Choices::default() }).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{defaults, rules};
    use super::*;
    use crate::task::{BlobId, Inpaint};

    fn resolve(change: impl FnOnce(&mut Choices)) -> Result<ImageSpec, ApiError> {
        let mut choices = Choices { prompt: "a cat".into(), ..Choices::default() };
        change(&mut choices);
        rules().resolve(defaults(), choices)
    }

    fn start(size: (usize, usize), inpaint: Option<Inpaint>) -> Start {
        Start { source: SourceSpec::Image { image: BlobId::of(b"x"), inpaint }, size }
    }

    fn interval(start: f64, end: f64) -> Option<GuidanceInterval> {
        Some(GuidanceInterval { start, end })
    }

    fn cache(cache_interval: usize, cache_branch_id: Option<usize>) -> Option<StepCache> {
        Some(StepCache { cache_interval, cache_branch_id })
    }

    #[test]
    fn speed_is_the_configurations_unless_it_is_chosen_and_nothing_is_given_up_by_default() {
        assert_eq!(resolve(|_| {}).unwrap().speed, Speed::default());
        let config = SpeedConfig { guidance_end: 0.8, cache_interval: 3, ..SpeedConfig::default() };
        let rules = Rules::new(&LimitsConfig::default(), &config, ClipTokenizer::standard().unwrap());
        let speed = |change: &dyn Fn(&mut Choices)| {
            let mut choices = Choices { prompt: "a cat".into(), ..Choices::default() };
            change(&mut choices);
            let Speed { guidance_interval, step_cache } = rules.resolve(defaults(), choices).unwrap().speed;
            (guidance_interval, step_cache)
        };
        assert_eq!(speed(&|_| {}), (interval(0.0, 0.8), cache(3, None)));
        assert_eq!(speed(&|c| c.speed.guidance_interval = interval(0.0, 1.0)), (None, cache(3, None)));
        assert_eq!(speed(&|c| c.speed.step_cache = cache(1, None)), (interval(0.0, 0.8), None));
        // The configuration does not refuse samplers that cannot have it.
        assert_eq!(speed(&|c| c.sampler = Some("euler_cfg_pp".into())), (None, cache(3, None)));
    }

    #[test]
    fn what_is_not_chosen_is_the_models_own() {
        let spec = resolve(|_| {}).unwrap();
        assert_eq!((spec.width, spec.height, spec.steps, spec.cfg), (128, 128, 20, 5.0));
        assert_eq!((spec.sampler.as_str(), spec.scheduler.as_str()), ("dpmpp_2m", "karras"));
        assert_eq!((spec.denoise, spec.format, spec.metadata), (1.0, ImageFormat::Png, true));
    }

    #[test]
    fn each_value_out_of_range_is_422_and_names_its_field() {
        type Change = fn(&mut Choices);
        let table: &[(&str, Change)] = &[
            ("width", |c| c.width = Some(8)),
            ("width", |c| c.width = Some(5000)),
            ("width", |c| c.width = Some(130)),
            ("height", |c| c.height = Some(1_000_000)),
            ("width", |c| (c.width, c.height) = (Some(4096), Some(4096))),
            ("steps", |c| c.steps = Some(0)),
            ("steps", |c| c.steps = Some(151)),
            ("steps", |c| (c.steps, c.scheduler) = (Some(1), Some("kl_optimal".into()))),
            ("cfg", |c| c.cfg = Some(-1.0)),
            ("cfg", |c| c.cfg = Some(101.0)),
            ("cfg", |c| c.cfg = Some(f64::NAN)),
            ("clip_skip", |c| c.clip_skip = Some(0)),
            ("clip_skip", |c| c.clip_skip = Some(33)),
            ("denoise", |c| c.denoise = Some(0.5)),
            ("denoise", |c| (c.denoise, c.start) = (Some(1.5), Some(start((64, 64), None)))),
            ("denoise", |c| (c.denoise, c.start) = (Some(1e-9), Some(start((64, 64), None)))),
            ("speed.guidance_interval", |c| c.speed.guidance_interval = interval(0.5, 0.4)),
            ("speed.guidance_interval", |c| c.speed.guidance_interval = interval(0.0, 1.5)),
            ("speed.guidance_interval", |c| {
                (c.speed.guidance_interval, c.sampler) = (interval(0.0, 0.5), Some("euler_cfg_pp".into()));
            }),
            ("speed.step_cache.cache_interval", |c| c.speed.step_cache = cache(0, None)),
            ("speed.step_cache.cache_interval", |c| c.speed.step_cache = cache(101, None)),
            ("speed.step_cache.cache_branch_id", |c| c.speed.step_cache = cache(2, Some(64))),
            ("sampler", |c| c.sampler = Some("eulr".into())),
            ("scheduler", |c| c.scheduler = Some("karas".into())),
            ("prompt", |c| c.prompt = "x".repeat(20_001)),
            ("prompt", |c| c.prompt = "cat ".repeat(3000)),
            ("prompt", |c| c.prompt = "(a:inf)".into()),
            ("negative_prompt", |c| c.negative_prompt = Some("(a:nan)".into())),
        ];
        for (field, change) in table {
            let error = resolve(change).unwrap_err();
            assert_eq!(error.status().as_u16(), 422, "{field}: {error:?}");
            assert_eq!(error.detail().field.as_deref(), Some(*field), "{error:?}");
        }
    }

    #[test]
    fn a_misspelt_sampler_is_told_the_near_ones() {
        let hint = |change: fn(&mut Choices)| resolve(change).unwrap_err().detail().hint.clone().unwrap();
        assert!(hint(|c| c.sampler = Some("dpm++_2m".into())).contains("dpmpp_2m"));
        assert!(hint(|c| c.scheduler = Some("karas".into())).contains("karras"));
        assert!(hint(|c| c.scheduler = Some("?".into())).contains("known: simple"));
    }

    #[test]
    fn a_source_decides_size_and_denoise_where_nothing_was_chosen() {
        let spec = resolve(|c| c.start = Some(start((403, 301), None))).unwrap();
        assert_eq!((spec.width, spec.height, spec.denoise), (400, 296, 0.75));
        let spec = resolve(|c| (c.start, c.width) = (Some(start((400, 300), None)), Some(128))).unwrap();
        assert_eq!((spec.width, spec.height), (128, 96));
        let spec = resolve(|c| (c.start, c.height) = (Some(start((400, 300), None)), Some(128))).unwrap();
        assert_eq!((spec.width, spec.height), (168, 128));
        let inpaint = Some(Inpaint { mask: None, fill_grow: Some(6) });
        assert_eq!(resolve(|c| c.start = Some(start((64, 64), inpaint))).unwrap().denoise, 1.0);
    }

    #[test]
    fn seeds_count_up_around_the_end() {
        assert_eq!(seeds(u64::MAX - 1, 4).collect::<Vec<_>>(), [u64::MAX - 1, u64::MAX, 0, 1]);
        assert!(random_seed() <= SEED_MASK);
    }

    #[test]
    fn a_resolution_is_width_x_height() {
        assert_eq!(resolution("resolution", "1920x1080"), Ok((1920, 1080)));
        assert_eq!(resolution("resolution", " 64 X 128 "), Ok((64, 128)));
        for wrong in ["", "x", "64", "64x", "-1x64", "64x64x64", "64x1e3", "99999999999x1", "+64x64"] {
            let error = resolution("resolution", wrong).unwrap_err();
            assert_eq!(error.detail().field.as_deref(), Some("resolution"), "{wrong}");
        }
    }

    #[test]
    fn a_task_has_one_to_the_limits_pictures() {
        assert!(rules().check_count("count", 100).is_ok());
        for wrong in [0, 101] {
            assert_eq!(rules().check_count("count", wrong).unwrap_err().status().as_u16(), 422);
        }
    }
}
