//! What can be wrong with a pose.

use super::MAX_PEOPLE;

/// Why a pose cannot be used. Paths are those of JSON: `people[0].pose_keypoints_2d[4]`.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PoseError {
    /// The text is no JSON.
    #[error("the pose is not JSON: {reason}")]
    NotJson {
        /// What the parser said, with line and column.
        reason: String,
    },
    /// The JSON has no pose where one is wanted.
    #[error(
        "{path} {problem}; a pose is OpenPose JSON with `people`, or `joints` by name: {{\"joints\": {{\"nose\": [0.5, 0.1], …}}}}"
    )]
    NotAPose {
        /// Where.
        path: String,
        /// What is the matter there.
        problem: &'static str,
    },
    /// NaN, an infinity, or no number at all.
    #[error("{path} is not a finite number")]
    NotANumber {
        /// Where.
        path: String,
    },
    /// A list of points of a length that no known layout has.
    #[error("{path} has {found} values; {expected}")]
    WrongCount {
        /// Where.
        path: String,
        /// How many there are.
        found: usize,
        /// What would do.
        expected: &'static str,
    },
    /// A crowd.
    #[error("{path} has {found} people; {MAX_PEOPLE} is the most")]
    TooManyPeople {
        /// Where.
        path: String,
        /// How many there are.
        found: usize,
    },
    /// Nobody, or nobody with a point that can be drawn.
    #[error("the pose is empty: no person has a point that can be drawn")]
    Empty,
    /// A coordinate in pixels, of how many is not said.
    #[error(
        "{path} is {value}, which is in pixels: add canvas_width and canvas_height, or give shares of the canvas (0 to 1)"
    )]
    NeedsCanvas {
        /// Where.
        path: String,
        /// The coordinate.
        value: f64,
    },
    /// A canvas of a size that no picture has.
    #[error("{path} must be a whole number of pixels, 1 to 65535")]
    BadCanvas {
        /// Where.
        path: String,
    },
    /// A point too far from the canvas to be meant.
    #[error("{path} is {value}, which lies far outside the canvas")]
    FarOutside {
        /// Where.
        path: String,
        /// The coordinate as it was given.
        value: f64,
    },
    /// A joint whose name is almost one.
    #[error("{path} is no joint's name; did you mean {nearest}?")]
    Misspelt {
        /// Where.
        path: String,
        /// The joint with the most similar name.
        nearest: &'static str,
    },
    /// Joints by name, and none of the names is known.
    #[error("{path} has no joint that is known; the joints are {}", super::joint::names())]
    NoKnownJoint {
        /// Where.
        path: String,
    },
    /// A preset that does not exist.
    #[error("no pose preset is called '{id}'; the nearest are {}", nearest.join(", "))]
    UnknownPreset {
        /// What was asked for.
        id: String,
        /// Ids of presets with similar names, the most similar first.
        nearest: Vec<String>,
    },
    /// The file of presets itself is wrong.
    #[error("pose presets: {reason}")]
    Presets {
        /// What is wrong, and in which preset.
        reason: String,
    },
}
