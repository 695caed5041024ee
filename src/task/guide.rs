//! What keeps a picture in character and in place: LoRAs, ControlNets, the detail pass over faces, and what becomes
//! of the background.

use serde::{Deserialize, Serialize};

use super::BlobId;

/// A LoRA and how strongly it counts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoraSpec {
    /// The LoRA's id in the catalog.
    pub lora: String,
    /// Strength on the denoising network; negative turns its effect round.
    pub strength: f64,
    /// Strength on the text encoders.
    pub text_strength: f64,
}

/// A ControlNet, the picture that steers it, and how strongly.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ControlSpec {
    /// The ControlNet's id in the catalog.
    pub control: String,
    /// The kept picture.
    pub image: BlobId,
    /// What is done with the picture first.
    pub preprocess: Preprocess,
    /// What the network's residuals are multiplied by.
    pub strength: f64,
    /// Share of the noise schedule at which it begins, 0 to 1 (ComfyUI's `start_percent`).
    pub start: f64,
    /// Share of the noise schedule at which it ends, 0 to 1.
    pub end: f64,
}

/// What is done with a picture before a ControlNet sees it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Preprocess {
    /// Nothing: it is a control picture already.
    None,
    /// Edges, as ComfyUI's `Canny` node finds them; thresholds 0 to 1.
    Canny {
        /// Edges weaker than this are dropped.
        low: f64,
        /// Edges stronger than this are kept in any case.
        high: f64,
    },
    /// Edges, as OpenCV's `Canny` finds them on 8-bit grey; thresholds 0 to 255.
    OpencvCanny {
        /// Edges weaker than this are dropped.
        low: f64,
        /// Edges stronger than this are kept in any case.
        high: f64,
    },
    /// Nearness, by the depth network in the models folder.
    Depth,
}

/// Which places of a finished picture are drawn once more, larger.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DetailSpec {
    /// Where.
    pub places: DetailPlaces,
    /// Share of the schedule that runs on each place.
    pub denoise: f64,
    /// Longer side at which a place is drawn, pixels; `None`: the model's own side.
    pub size: Option<usize>,
    /// How much larger than the box the part is that is drawn anew.
    pub crop_factor: f64,
    /// Pixels over which the new part fades into the old.
    pub feather: usize,
}

/// Where details are drawn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum DetailPlaces {
    /// What the detector finds.
    Detected {
        /// The detector's id in the catalog.
        detector: String,
        /// Least confidence, 0 to 1.
        confidence: f64,
    },
    /// Boxes that the client gives: left, top, right, bottom, each as a share of the picture.
    Boxes {
        /// The boxes.
        boxes: Vec<[f64; 4]>,
    },
}

/// What becomes of the background.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Background {
    /// It stays.
    #[default]
    Keep,
    /// The flat colour around the subject becomes transparent.
    Key,
    /// The network of this id in the catalog finds the subject; the rest becomes transparent.
    Remove {
        /// The network's id.
        remover: String,
    },
}
