//! OpenPose skeletons: poses from JSON or from the presets in `assets/poses.toml`, drawn in the colours that OpenPose
//! ControlNets were trained on.
//!
//! A pose's own JSON is OpenPose's, with coordinates as shares of the canvas; it is read back by the rules for
//! foreign JSON, so that whatever holds a [`Pose`] holds a checked one.

mod draw;
mod error;
mod joint;
mod parse;
mod presets;
mod raster;
mod write;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use draw::{draw, draw_scaled};
pub use error::PoseError;
pub use joint::Joint;
pub use presets::{PosePreset, PosePresets};

/// Most people in one pose.
pub const MAX_PEOPLE: usize = 32;
/// Points of a body, in the order of [`Joint`].
pub const BODY_POINTS: usize = 18;
/// Points of a hand: the wrist, then four a finger from the thumb on.
pub const HAND_POINTS: usize = 21;

/// Where something is: shares of the canvas's width and height, from its upper left corner. May lie outside by as
/// much as the canvas is wide or high.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Keypoint {
    /// From the left edge (0) to the right one (1).
    pub x: f32,
    /// From the upper edge (0) to the lower one (1).
    pub y: f32,
}

/// A hand's points; what is not seen is `None`.
pub type Hand = [Option<Keypoint>; HAND_POINTS];

/// One person.
#[derive(Debug, Clone, PartialEq)]
pub struct Person {
    /// The body, in the order of [`Joint`]; what is not seen is `None`.
    pub body: [Option<Keypoint>; BODY_POINTS],
    /// The person's left hand.
    pub left_hand: Option<Hand>,
    /// The person's right hand.
    pub right_hand: Option<Hand>,
    /// The face: 68 points, or 70 with the pupils.
    pub face: Option<Vec<Option<Keypoint>>>,
    /// How sure the finder was of the body's points, on the average: `0..=1`, 1 for what was drawn by hand.
    pub confidence: f32,
}

/// People on a canvas.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub struct Pose {
    /// At most [`MAX_PEOPLE`]; none without any point.
    pub people: Vec<Person>,
    /// The canvas's width and height, pixels, where they are known: what the shares are shares of. A picture of
    /// another shape then shows the whole canvas undistorted.
    pub canvas: Option<(u32, u32)>,
}

impl Pose {
    /// Reads a pose from JSON text: OpenPose's (18 or 25 points, hands, face), COCO's 17 points, or joints by name
    /// (`{"joints": {"nose": [0.5, 0.1], "neck": …}}`, also `bones`).
    ///
    /// Coordinates are pixels of `canvas_width` × `canvas_height`, or shares of the canvas if none is beyond 2.
    ///
    /// # Errors
    /// Says what is wrong and where, as in `people[0].pose_keypoints_2d[4] is not a finite number`.
    pub fn from_json(text: &str) -> Result<Self, PoseError> {
        parse::text(text)
    }

    /// The same for JSON that is parsed already.
    ///
    /// # Errors
    /// As [`from_json`](Self::from_json).
    pub fn from_value(value: &Value) -> Result<Self, PoseError> {
        parse::value(value)
    }
}

impl TryFrom<Value> for Pose {
    type Error = PoseError;

    fn try_from(value: Value) -> Result<Self, PoseError> {
        Self::from_value(&value)
    }
}

impl From<Pose> for Value {
    fn from(pose: Pose) -> Self {
        write::value(&pose)
    }
}
