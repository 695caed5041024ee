//! How a picture was made, in the two forms that other programs read back from a picture: the `parameters` text of
//! AUTOMATIC1111's web UI ([`parameters`]), and ComfyUI's `prompt`, a workflow in API format that draws the same
//! picture there as far as its core nodes go ([`workflow`]).

mod parameters;
mod workflow;

use std::fmt::Write as _;

use darkroom_models::Computed;
use darkroom_pipelines::{FlowShift, Speed};
use serde_json::Value;

use super::TextChunk;
use crate::task::{Background, DetailSpec, Preprocess};

/// What a picture started from.
#[derive(Debug, Clone, PartialEq)]
pub enum Origin {
    /// Noise alone.
    Empty,
    /// A picture.
    Image {
        /// Its file name.
        image: String,
        /// Whether it was scaled to the size of the result.
        scaled: bool,
    },
    /// A picture of which a part is repainted.
    Inpaint {
        /// The picture's file name.
        image: String,
        /// The mask's file name; `None`: the transparent areas of the picture.
        mask: Option<String>,
        /// Whether picture and mask were scaled to the size of the result.
        scaled: bool,
        /// `Some(pixels)`: the masked area was blanked before encoding and the mask grown so far
        /// (ComfyUI's `VAEEncodeForInpaint`); `None`: the mask only steers the noise (`SetLatentNoiseMask`).
        fill_grow: Option<usize>,
    },
}

/// A LoRA that counted.
#[derive(Debug, Clone, PartialEq)]
pub struct RecipeLora {
    /// Its file name, with its folders below the folder of LoRAs.
    pub file: String,
    /// Strength on the denoising network.
    pub strength: f64,
    /// Strength on the text encoders.
    pub text_strength: f64,
}

/// A ControlNet that steered.
#[derive(Debug, Clone, PartialEq)]
pub struct RecipeControl {
    /// Its file name, with its folders below the folder of ControlNets.
    pub file: String,
    /// File name of the picture that it was given.
    pub image: String,
    /// What was done with the picture first. It was scaled to the size of the result for anything but `None`.
    pub preprocess: Preprocess,
    /// What the network's residuals were multiplied by.
    pub strength: f64,
    /// Share of the noise schedule at which it began, 0 to 1.
    pub start: f64,
    /// Share of the noise schedule at which it ended, 0 to 1.
    pub end: f64,
}

/// What Qwen-Image's workflow has beside what others have.
#[derive(Debug, Clone, PartialEq)]
pub struct RecipeFlow {
    /// How far noise levels were moved up.
    pub shift: FlowShift,
    /// File name of the text encoder.
    pub text_encoder: String,
    /// File name of the autoencoder.
    pub vae: String,
}

/// Everything that decides one picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    /// What to draw.
    pub prompt: String,
    /// What not to draw.
    pub negative_prompt: String,
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Sampling steps.
    pub steps: usize,
    /// Classifier-free guidance scale.
    pub cfg: f64,
    /// ComfyUI's name of the sampler: `dpmpp_2m`.
    pub sampler: String,
    /// ComfyUI's name of the scheduler: `karras`.
    pub scheduler: String,
    /// Seed of the noise.
    pub seed: u64,
    /// Part of the schedule that is run: 1 is all of it.
    pub denoise: f64,
    /// Which hidden state of the text encoders counts, from the end: 1 the last layer; `None`: the model's own.
    pub clip_skip: Option<usize>,
    /// What the networks formed their products in; all but single precision changes the picture a little.
    pub computed: Computed,
    /// File name of the model.
    pub model: String,
    /// Of Qwen-Image: how its noise levels were moved up, and what its other files are.
    pub flow: Option<RecipeFlow>,
    /// What it started from.
    pub origin: Origin,
    /// LoRAs, in the order in which they were applied.
    pub loras: Vec<RecipeLora>,
    /// ControlNets; their effects add up.
    pub controls: Vec<RecipeControl>,
    /// What was given up for speed. Only in AUTOMATIC1111's text.
    pub speed: Speed,
    /// Which places were drawn once more, larger. Only in AUTOMATIC1111's text.
    pub detail: Option<DetailSpec>,
    /// What became of the background. Only in AUTOMATIC1111's text.
    pub background: Background,
}

impl Recipe {
    /// Both forms, as the text chunks of a PNG.
    pub fn text_chunks(&self) -> Vec<TextChunk> {
        vec![
            TextChunk { keyword: "parameters".into(), text: self.parameters() },
            TextChunk { keyword: "prompt".into(), text: self.comfyui_text() },
        ]
    }

    /// [`Self::comfyui_prompt`] as ASCII text.
    pub(super) fn comfyui_text(&self) -> String {
        ascii_json(&self.comfyui_prompt())
    }
}

/// JSON with everything beyond ASCII escaped, as Python's `json.dumps` writes it: it fits into `tEXt`.
fn ascii_json(value: &Value) -> String {
    let mut text = String::new();
    for c in value.to_string().chars() {
        if c.is_ascii() {
            text.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(text, "\\u{unit:04x}");
            }
        }
    }
    text
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A recipe without anything that can be left out.
    pub(crate) fn recipe(origin: Origin) -> Recipe {
        Recipe {
            prompt: "1girl, (smile:1.2)".into(),
            negative_prompt: "blurry".into(),
            width: 512,
            height: 768,
            steps: 20,
            cfg: 7.0,
            sampler: "dpmpp_2m".into(),
            scheduler: "karras".into(),
            seed: u64::MAX,
            denoise: 1.0,
            clip_skip: None,
            computed: Computed::Full,
            model: "sdxl/base.safetensors".into(),
            flow: None,
            origin,
            loras: Vec::new(),
            controls: Vec::new(),
            speed: Speed::default(),
            detail: None,
            background: Background::Keep,
        }
    }

    pub(super) fn lora(file: &str, strength: f64, text_strength: f64) -> RecipeLora {
        RecipeLora { file: file.into(), strength, text_strength }
    }

    pub(super) fn control(file: &str, preprocess: Preprocess) -> RecipeControl {
        RecipeControl {
            file: file.into(),
            image: "pose.png".into(),
            preprocess,
            strength: 0.8,
            start: 0.0,
            end: 0.75,
        }
    }

    #[test]
    fn the_workflow_is_ascii_and_parses_back() {
        let mut recipe = recipe(Origin::Empty);
        recipe.prompt = "少女 \u{1f600} \"x\"\n".into();
        recipe.loras.push(lora("文字.safetensors", 1.0, 1.0));
        let chunk = &recipe.text_chunks()[1];
        assert!(chunk.text.is_ascii());
        let graph: Value = serde_json::from_str(&chunk.text).unwrap();
        assert_eq!(graph, recipe.comfyui_prompt());
    }
}
