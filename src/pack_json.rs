//! `pack.json`, the index of a pack's folder: what was asked for and which file shows what. Programs that use a
//! pack read this file; its fields are only ever added to.

use darkroom_models::Computed;
use darkroom_pipelines::Speed;
use serde::{Deserialize, Serialize};

/// The version of this layout.
pub const VERSION: u32 = 1;

/// A pack: one character, many pictures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PackJson {
    /// Version of the layout: [`VERSION`].
    pub version: u32,
    /// What drew it: `darkroom 0.1.0`.
    pub generator: String,
    /// The character's prompt, shared by all pictures.
    pub character: String,
    /// The negative prompt.
    pub negative_prompt: String,
    /// The model's name.
    pub model: String,
    /// How it was sampled.
    pub settings: Settings,
    /// File name of the contact sheet, in the same folder.
    pub contact_sheet: String,
    /// The pictures, in the order they were asked for.
    pub images: Vec<PackImage>,
    /// Wall-clock time of the whole pack from the loaded model to the last file, seconds.
    pub seconds: f64,
}

/// How the pictures of a pack were sampled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Sampler, ComfyUI's name.
    pub sampler: String,
    /// Scheduler, ComfyUI's name.
    pub scheduler: String,
    /// Sampling steps.
    pub steps: usize,
    /// Classifier-free guidance scale.
    pub cfg: f64,
    /// Hidden state of the text encoders that was used, from the end; absent: the model's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_skip: Option<usize>,
    /// Whether the networks formed their products in bf16.
    #[serde(default)]
    pub bf16: bool,
    /// What the networks formed their products in; absent: single precision, or what `bf16` says.
    #[serde(default, skip_serializing_if = "Computed::is_full")]
    pub precision: Computed,
    /// What was given up for speed; absent: nothing.
    #[serde(default, skip_serializing_if = "Speed::is_exact")]
    pub speed: Speed,
}

/// One picture of a pack.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PackImage {
    /// File name, in the same folder.
    pub file: String,
    /// The expression's name: `smile_gentle`.
    pub name: String,
    /// What a person calls it: `Gentle smile`.
    pub label: String,
    /// The whole prompt.
    pub prompt: String,
    /// Seed of the noise.
    pub seed: u64,
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// From the start of the pack's denoising until this picture was on the disk, seconds.
    pub seconds: f64,
}
