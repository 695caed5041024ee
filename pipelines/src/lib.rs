//! What a picture needs around its networks: prompts, noise, sigmas, samplers, conditioning, step batches.
//!
//! Sits above `darkroom-models` (networks and weights) and below the program. No devices are chosen here and
//! no file formats are known: requests and pictures go in, pictures come out.

mod autoencoder;
pub mod background;
mod condition;
mod conditioning;
mod control;
mod denoise;
pub mod detail;
mod error;
mod guidance;
mod latent_request;
mod lora;
mod network;
pub mod noise;
pub mod pack;
mod picture;
mod pipeline;
pub mod preprocess;
mod preview;
pub mod prompt;
mod request;
pub mod resample;
mod sample;
pub mod sampler;
pub mod schedule;
mod speed;
mod step_cache;
mod text_encoders;

pub use condition::{Area, Condition, ConditionMask, MAX_CONDITIONS};
pub use conditioning::Conditioning;
pub use control::Control;
pub use denoise::StepWork;
pub use error::PipelineError;
pub use latent_request::{LatentNoise, LatentRequest};
pub use lora::{LoraSet, StackedLora};
pub use picture::{Mask, Picture};
pub use pipeline::{
    LoadOptions, MemoryPlan, Pipeline, Placement, PlannedPart, PromptText, RequestPrompts, Rounding,
    SourceLatent, StepReport, WantedPrompt,
};
pub use preview::LatentPreview;
pub use request::{FlowShift, ImageRequest, InpaintMode, Limits, PIXELS_PER_CELL, Source};
pub use sample::Sample;
pub use speed::{GuidanceInterval, MAX_CACHE_BRANCH, MAX_CACHE_INTERVAL, Speed, StepCache};
