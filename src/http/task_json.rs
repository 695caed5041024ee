//! Tasks as clients read them.

use serde::Serialize;
use utoipa::ToSchema;

use super::addresses::Addresses;
use super::speed::SpeedBody;
use crate::service::TaskView;
use crate::task::{
    Background, ControlSpec, DrawnImage, ImageFormat, ImageSpec, LoraSpec, Preprocess, SourceSpec, Task,
    TaskError, TaskErrorKind, TaskStatus,
};

/// A task.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub(super) struct TaskBody {
    /// Its id: `expr_0192…`.
    pub(super) task_id: String,
    /// `images`, `prototypes`, `expressions`, `full_body`, `outfit_change`, `stickers` or `scene`.
    pub(super) kind: &'static str,
    /// `queued`, `processing`, `completed`, `failed` or `cancelled`.
    #[schema(examples("processing"))]
    pub(super) status: &'static str,
    /// `standard`, `priority` or `urgent`.
    pub(super) priority: &'static str,
    /// Steps done of all steps, 0 to 1.
    pub(super) progress: f64,
    /// A line for people: `Generating variant 3/4`; null before it starts.
    pub(super) current_step: Option<String>,
    /// How many pictures it has in all.
    pub(super) image_count: usize,
    /// The prompt of the first picture, after everything that the request's words add.
    pub(super) prompt: String,
    /// Pictures that are done, in the order they are shown.
    pub(super) images_completed: Vec<CompletedImage>,
    /// The same with everything known about them, when the status is final.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) images: Option<Vec<ImageBody>>,
    /// Seconds until it is done, from measured step times; null while there is no measure.
    pub(super) eta_seconds: Option<f64>,
    /// Tasks that will be served before it; null once it has started.
    pub(super) queue_position: Option<usize>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<TaskErrorBody>,
    /// Work done for it so far.
    pub(super) usage: UsageBody,
    /// Whom to tell when it is final.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) webhook_url: Option<String>,
    /// When it was asked for (RFC 3339).
    pub(super) created_at: String,
    /// When its first picture started.
    pub(super) started_at: Option<String>,
    /// When it became final.
    pub(super) finished_at: Option<String>,
}

/// A picture that is done.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub(super) struct CompletedImage {
    /// Where it is.
    pub(super) url: String,
    /// Its place in the task, from 0.
    pub(super) index: usize,
}

/// A picture with everything known about it.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub(super) struct ImageBody {
    /// Where it is.
    pub(super) url: String,
    /// Its id.
    pub(super) id: String,
    /// Its place in the task, from 0.
    pub(super) index: usize,
    /// The seed that it was drawn from.
    #[schema(format = "uint64")]
    pub(super) seed: u64,
    /// Pixels in a row.
    pub(super) width: usize,
    /// Rows.
    pub(super) height: usize,
    /// `png`, `webp` or `jpeg`.
    pub(super) format: &'static str,
    /// Bytes of the file.
    pub(super) bytes: u64,
    /// What it is among the task's: an expression's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) label: Option<String>,
    /// The prompt that it was drawn from.
    pub(super) prompt: String,
    /// The negative prompt.
    pub(super) negative_prompt: String,
    /// The model's id.
    pub(super) model: String,
    /// Sampling steps.
    pub(super) steps: usize,
    /// Classifier-free guidance scale.
    pub(super) cfg: f64,
    /// ComfyUI's name of the sampler.
    pub(super) sampler: String,
    /// ComfyUI's name of the scheduler.
    pub(super) scheduler: String,
    /// Share of the schedule that ran; 1 unless it began as a picture.
    pub(super) denoise: f64,
    /// Whether it began as a picture.
    pub(super) from_image: bool,
    /// LoRAs, in the order in which they were applied.
    pub(super) loras: Vec<LoraBody>,
    /// ControlNets.
    pub(super) controls: Vec<ControlBody>,
    /// What was given up of exactness for speed; left out: nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) speed: Option<SpeedBody>,
    /// Whether places were drawn once more, larger.
    pub(super) detailed: bool,
    /// What became of the background: `keep`, `key` or `remove`.
    pub(super) background: &'static str,
    /// Whether it came from the expression bank.
    pub(super) cached: bool,
    /// What is not as asked for, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) warnings: Vec<String>,
}

/// A LoRA and how strongly it counted.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub(super) struct LoraBody {
    /// Its id.
    pub(super) id: String,
    /// Strength on the denoising network.
    pub(super) strength: f64,
    /// Strength on the text encoders.
    pub(super) text_strength: f64,
}

/// A ControlNet and how strongly it counted.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub(super) struct ControlBody {
    /// Its id.
    pub(super) id: String,
    /// What was done with its picture first: `none`, `canny`, `opencv_canny` or `depth`.
    pub(super) preprocess: &'static str,
    /// How strongly it counted.
    pub(super) strength: f64,
    /// Share of the schedule at which it began.
    pub(super) start: f64,
    /// Share of the schedule at which it ended.
    pub(super) end: f64,
}

impl From<&LoraSpec> for LoraBody {
    fn from(spec: &LoraSpec) -> Self {
        Self { id: spec.lora.clone(), strength: spec.strength, text_strength: spec.text_strength }
    }
}

impl From<&ControlSpec> for ControlBody {
    fn from(spec: &ControlSpec) -> Self {
        Self {
            id: spec.control.clone(),
            preprocess: match spec.preprocess {
                Preprocess::None => "none",
                Preprocess::Canny { .. } => "canny",
                Preprocess::OpencvCanny { .. } => "opencv_canny",
                Preprocess::Depth => "depth",
            },
            strength: spec.strength,
            start: spec.start,
            end: spec.end,
        }
    }
}

/// Why a task failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(super) struct TaskErrorBody {
    /// `invalid_request`, `model_unavailable`, `out_of_memory` or `internal`.
    #[serde(rename = "type")]
    pub(super) kind: &'static str,
    /// What and where.
    pub(super) message: String,
}

/// Work done.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
pub(super) struct UsageBody {
    /// Denoising steps, over all pictures.
    pub(super) steps: u64,
    /// Pixels of finished pictures.
    pub(super) pixels: u64,
    /// Device time; a step's is shared evenly by the pictures that took part.
    pub(super) device_seconds: f64,
}

impl TaskBody {
    pub(super) fn new(view: &TaskView, addresses: &Addresses) -> Self {
        let task = &view.task;
        let mut drawn: Vec<&DrawnImage> = task.drawn.iter().collect();
        drawn.sort_by_key(|image| image.index);
        let images = task
            .status
            .is_final()
            .then(|| drawn.iter().map(|image| ImageBody::new(task, image, addresses)).collect());
        Self {
            task_id: task.id.to_string(),
            kind: task.kind.name(),
            status: task.status.name(),
            priority: task.priority.name(),
            progress: progress(task.status, view.steps_done, view.steps_total),
            current_step: view.current_step.as_deref().map(str::to_owned),
            image_count: task.images.len(),
            prompt: task.images.first().map(|spec| spec.prompt.clone()).unwrap_or_default(),
            images_completed: drawn
                .iter()
                .map(|image| CompletedImage { url: addresses.image(&image.id), index: image.index })
                .collect(),
            images,
            eta_seconds: view.eta_seconds,
            queue_position: view.queue_position,
            error: task.error.as_ref().map(TaskErrorBody::from),
            usage: UsageBody {
                steps: task.usage.steps,
                pixels: task.usage.pixels,
                device_seconds: task.usage.device_seconds,
            },
            webhook_url: task.webhook_url.clone(),
            created_at: task.created_at.to_string(),
            started_at: task.started_at.map(|at| at.to_string()),
            finished_at: task.finished_at.map(|at| at.to_string()),
        }
    }
}

impl ImageBody {
    pub(super) fn new(task: &Task, image: &DrawnImage, addresses: &Addresses) -> Self {
        let spec = task.images.get(image.index);
        let of = |text: fn(&ImageSpec) -> String| spec.map(text).unwrap_or_default();
        Self {
            url: addresses.image(&image.id),
            id: image.id.to_string(),
            index: image.index,
            seed: image.seed,
            width: image.width,
            height: image.height,
            format: format_name(image.format),
            bytes: image.bytes,
            label: spec.and_then(|spec| spec.label.clone()),
            prompt: of(|spec| spec.prompt.clone()),
            negative_prompt: of(|spec| spec.negative_prompt.clone()),
            model: of(|spec| spec.model.clone()),
            steps: spec.map_or(0, |spec| spec.steps),
            cfg: spec.map_or(1.0, |spec| spec.cfg),
            sampler: of(|spec| spec.sampler.clone()),
            scheduler: of(|spec| spec.scheduler.clone()),
            denoise: spec.map_or(1.0, |spec| spec.denoise),
            from_image: spec.is_some_and(|spec| spec.source != SourceSpec::Empty),
            loras: spec.map(|spec| spec.loras.iter().map(LoraBody::from).collect()).unwrap_or_default(),
            controls: spec
                .map(|spec| spec.controls.iter().map(ControlBody::from).collect())
                .unwrap_or_default(),
            speed: spec.and_then(|spec| SpeedBody::of(spec.speed)),
            detailed: spec.is_some_and(|spec| spec.detail.is_some()),
            background: match spec.map(|spec| &spec.background) {
                None | Some(Background::Keep) => "keep",
                Some(Background::Key) => "key",
                Some(Background::Remove { .. }) => "remove",
            },
            cached: image.cached,
            warnings: image.warnings.clone(),
        }
    }
}

impl From<&TaskError> for TaskErrorBody {
    fn from(error: &TaskError) -> Self {
        let kind = match error.kind {
            TaskErrorKind::InvalidRequest => "invalid_request",
            TaskErrorKind::ModelUnavailable => "model_unavailable",
            TaskErrorKind::OutOfMemory => "out_of_memory",
            TaskErrorKind::Internal => "internal",
        };
        Self { kind, message: error.message.clone() }
    }
}

/// Steps done of all, 0 to 1. A completed task has done all, also the ones that the bank has saved it.
pub(super) fn progress(status: TaskStatus, done: usize, total: usize) -> f64 {
    match status {
        TaskStatus::Completed => 1.0,
        _ if total == 0 => 0.0,
        _ => (done as f64 / total as f64).min(1.0),
    }
}

/// The format's name in requests and answers.
pub(super) fn format_name(format: ImageFormat) -> &'static str {
    match format {
        ImageFormat::Png => "png",
        ImageFormat::Webp { .. } => "webp",
        ImageFormat::Jpeg { .. } => "jpeg",
    }
}

#[cfg(test)]
pub(super) mod testing {
    //! Tasks in any state, for tests.

    use super::*;
    use crate::http::rules::testing::spec;
    use crate::task::{Owner, Priority, TaskId, TaskKind, Usage};

    pub(in crate::http) fn view(status: TaskStatus, pictures: usize, drawn: usize) -> TaskView {
        let id = TaskId::new(TaskKind::Expressions);
        let drawn = (0..drawn).rev().map(|index| DrawnImage {
            index,
            id: id.image(index),
            format: ImageFormat::Png,
            width: 128,
            height: 128,
            bytes: 1000,
            seed: 7,
            cached: index == 0,
            warnings: Vec::new(),
        });
        let task = Task {
            kind: TaskKind::Expressions,
            owner: Owner::Anyone,
            priority: Priority::Urgent,
            status,
            images: vec![spec(); pictures],
            drawn: drawn.collect(),
            webhook_url: None,
            error: None,
            usage: Usage::default(),
            created_at: jiff::Timestamp::UNIX_EPOCH,
            started_at: None,
            finished_at: None,
            id,
        };
        TaskView {
            task,
            steps_done: 5,
            steps_total: 20,
            current_step: None,
            queue_position: Some(3),
            eta_seconds: Some(1.5),
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderMap;

    use super::testing::view;
    use super::*;
    use crate::config::ServerConfig;

    fn body(view: &TaskView) -> serde_json::Value {
        let addresses = Addresses::new(&ServerConfig::default(), &HeaderMap::new());
        serde_json::to_value(TaskBody::new(view, &addresses)).unwrap()
    }

    #[test]
    fn a_running_task_shows_what_is_done_and_how_far_it_is() {
        let mut running = view(TaskStatus::Processing, 4, 2);
        running.current_step = Some("Generating variant 3/4".into());
        let body = body(&running);
        assert_eq!(body["status"], "processing");
        assert_eq!(body["progress"], 0.25);
        assert_eq!(body["current_step"], "Generating variant 3/4");
        assert_eq!(body["images_completed"][0]["index"], 0);
        let url = format!("/v1/images/{}", running.task.id.image(1));
        assert_eq!(body["images_completed"][1]["url"], url);
        assert!(body.get("images").is_none());
        assert_eq!(body["created_at"], "1970-01-01T00:00:00Z");
    }

    #[test]
    fn a_finished_task_lists_its_pictures_in_full() {
        let body = body(&view(TaskStatus::Completed, 2, 2));
        assert_eq!(body["progress"], 1.0);
        let first = &body["images"][0];
        assert_eq!((first["index"].as_u64(), first["seed"].as_u64()), (Some(0), Some(7)));
        assert_eq!((first["format"].as_str(), first["cached"].as_bool()), (Some("png"), Some(true)));
        assert_eq!(first["prompt"], "1girl");
    }

    #[test]
    fn a_picture_says_what_is_not_as_asked_for() {
        let mut done = view(TaskStatus::Completed, 2, 2);
        done.task.drawn[0].warnings = vec!["the background stays: it is not flat".into()];
        let index = done.task.drawn[0].index;
        let body = body(&done);
        assert_eq!(body["images"][index]["warnings"][0], "the background stays: it is not flat");
        assert!(body["images"][1 - index].get("warnings").is_none());
    }

    #[test]
    fn a_task_names_its_prompt_loras_and_controls() {
        let mut guided = view(TaskStatus::Completed, 1, 1);
        guided.task.images[0].loras =
            vec![LoraSpec { lora: "mia".into(), strength: 0.8, text_strength: 0.5 }];
        guided.task.images[0].controls = vec![ControlSpec {
            control: "canny".into(),
            image: crate::task::BlobId::of(b"template"),
            preprocess: Preprocess::OpencvCanny { low: 100.0, high: 200.0 },
            strength: 0.8,
            start: 0.0,
            end: 1.0,
        }];
        guided.task.images[0].background = Background::Key;
        let body = body(&guided);
        assert_eq!(body["prompt"], "1girl");
        let image = &body["images"][0];
        assert_eq!(
            (&image["loras"][0]["id"], image["loras"][0]["text_strength"].as_f64()),
            (&"mia".into(), Some(0.5))
        );
        assert_eq!(
            (&image["controls"][0]["id"], &image["controls"][0]["preprocess"]),
            (&"canny".into(), &"opencv_canny".into())
        );
        assert_eq!((image["detailed"].as_bool(), image["background"].as_str()), (Some(false), Some("key")));
    }

    #[test]
    fn a_failed_task_says_why_and_keeps_what_was_done() {
        let mut failed = view(TaskStatus::Failed, 2, 1);
        failed.task.error =
            Some(TaskError { kind: TaskErrorKind::OutOfMemory, message: "too large for 1 GiB".into() });
        let body = body(&failed);
        assert_eq!(body["error"]["type"], "out_of_memory");
        assert_eq!(body["images"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn progress_is_never_more_than_all() {
        assert_eq!(progress(TaskStatus::Queued, 0, 0), 0.0);
        assert_eq!(progress(TaskStatus::Processing, 30, 20), 1.0);
        assert_eq!(progress(TaskStatus::Completed, 0, 20), 1.0);
    }
}
