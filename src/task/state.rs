//! A task and its life: queued → processing → completed, failed or cancelled.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{ApiKeyId, ImageFormat, ImageId, ImageSpec, TaskId};

/// Who asked. Tasks and pictures are seen by their owner alone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Owner {
    /// A server without keys: everyone is the same.
    Anyone,
    /// The holder of a key.
    Key(ApiKeyId),
}

/// What sort of task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskKind {
    /// Pictures from one request of `/v1/images` or a route like it.
    Images,
    /// Variants of a new character.
    Prototypes,
    /// A character in many expressions.
    Expressions,
    /// A character from head to foot.
    FullBody,
    /// A character in other clothes.
    OutfitChange,
    /// A character cut out of its background.
    Stickers,
    /// A scene.
    Scene,
}

impl TaskKind {
    /// What its ids start with.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Images => "img",
            Self::Prototypes => "proto",
            Self::Expressions => "expr",
            Self::FullBody => "fullbody",
            Self::OutfitChange => "outfit",
            Self::Stickers => "sticker",
            Self::Scene => "scene",
        }
    }

    /// Its name in the store and in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Images => "images",
            Self::Prototypes => "prototypes",
            Self::Expressions => "expressions",
            Self::FullBody => "full_body",
            Self::OutfitChange => "outfit_change",
            Self::Stickers => "stickers",
            Self::Scene => "scene",
        }
    }

    /// All kinds.
    pub const ALL: [Self; 7] = [
        Self::Images,
        Self::Prototypes,
        Self::Expressions,
        Self::FullBody,
        Self::OutfitChange,
        Self::Stickers,
        Self::Scene,
    ];
}

/// How soon, least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// In turn.
    #[default]
    Standard,
    /// Before standard ones.
    Priority,
    /// At the next step.
    Urgent,
}

impl Priority {
    /// All, least first.
    pub const ALL: [Self; 3] = [Self::Standard, Self::Priority, Self::Urgent];

    /// Its name in the store, the API and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::Priority => "priority",
            Self::Urgent => "urgent",
        }
    }
}

/// Where a task is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskStatus {
    /// Stored, waiting.
    Queued,
    /// At least one of its pictures has started.
    Processing,
    /// All pictures are stored.
    Completed,
    /// It will not be completed; pictures that were done stay.
    Failed,
    /// A client took it back; pictures that were done stay.
    Cancelled,
}

impl TaskStatus {
    /// All.
    pub const ALL: [Self; 5] =
        [Self::Queued, Self::Processing, Self::Completed, Self::Failed, Self::Cancelled];

    /// Its name in the store and the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Processing => "processing",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Nothing more will happen to it.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

/// A task to be stored.
#[derive(Debug, Clone, PartialEq)]
pub struct NewTask {
    /// Its id.
    pub id: TaskId,
    /// Its kind.
    pub kind: TaskKind,
    /// Who asked.
    pub owner: Owner,
    /// How soon.
    pub priority: Priority,
    /// Its pictures, in the order they are shown; at least one.
    pub images: Vec<ImageSpec>,
    /// Pictures that are there already (from the expression bank), by index.
    pub drawn: Vec<DrawnImage>,
    /// Whom to tell when it is final.
    pub webhook_url: Option<String>,
    /// When it was asked for.
    pub created_at: Timestamp,
}

/// A stored task.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    /// Its id.
    pub id: TaskId,
    /// Its kind.
    pub kind: TaskKind,
    /// Who asked.
    pub owner: Owner,
    /// How soon.
    pub priority: Priority,
    /// Where it is in its life.
    pub status: TaskStatus,
    /// Its pictures.
    pub images: Vec<ImageSpec>,
    /// Those that are done, by index.
    pub drawn: Vec<DrawnImage>,
    /// Whom to tell when it is final.
    pub webhook_url: Option<String>,
    /// Why it failed.
    pub error: Option<TaskError>,
    /// Work done for it so far.
    pub usage: Usage,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When its first picture started.
    pub started_at: Option<Timestamp>,
    /// When it became final.
    pub finished_at: Option<Timestamp>,
}

/// A picture that is stored and that its task names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DrawnImage {
    /// Its place in the task.
    pub index: usize,
    /// Its name.
    pub id: ImageId,
    /// How it is written.
    pub format: ImageFormat,
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Bytes of the file.
    pub bytes: u64,
    /// The seed it was drawn from.
    pub seed: u64,
    /// Whether it came from the expression bank.
    pub cached: bool,
    /// What is not as asked for: a background that could not be keyed out, say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Work done.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Denoising steps, over all pictures.
    pub steps: u64,
    /// Pixels of finished pictures.
    pub pixels: u64,
    /// Device time, each step batch's shared evenly by its samples.
    pub device_seconds: f64,
}

impl Usage {
    /// Adds another's work.
    pub fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.pixels += other.pixels;
        self.device_seconds += other.device_seconds;
    }
}

/// Why a task failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskError {
    /// What sort of reason.
    pub kind: TaskErrorKind,
    /// For a person: what and where.
    pub message: String,
}

/// What sort of reason a failure has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskErrorKind {
    /// The request cannot be drawn as it is (a prompt the tokenizer refuses, a source that is no picture).
    InvalidRequest,
    /// The model's files are missing, damaged or of a kind that is not supported.
    ModelUnavailable,
    /// It does not fit into the memory budget.
    OutOfMemory,
    /// A defect; the log has more under the task's id.
    Internal,
}
