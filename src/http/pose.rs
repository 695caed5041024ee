//! Poses of requests: presets by name and clients' JSON, drawn as the skeletons that ControlNets read. The one place of
//! `http` that speaks to the pipelines' OpenPose.

use bytes::Bytes;
use darkroom_pipelines::preprocess::openpose::{self, Pose, PoseError, PosePresets};
use serde_json::Value;

use super::error::ApiError;
use crate::picture::encode_png;

/// Poses that have names.
#[derive(Debug)]
pub(super) struct Poses(PosePresets);

impl Poses {
    /// Those that are compiled in.
    pub(super) fn embedded() -> Result<Self, PoseError> {
        PosePresets::embedded().map(Self)
    }

    /// Name, what it shows, and other names, by name.
    pub(super) fn list(&self) -> impl Iterator<Item = (&str, &str, &[String])> {
        self.0.iter().map(|preset| (preset.id.as_str(), preset.about.as_str(), preset.also.as_slice()))
    }

    /// The pose of this name, however it is spelt; 404 with near names.
    pub(super) fn preset(&self, field: &str, id: &str) -> Result<&Pose, ApiError> {
        self.0.get(id).map(|preset| &preset.pose).map_err(|error| match &error {
            PoseError::UnknownPreset { id, nearest } => ApiError::not_found("pose", id)
                .field(field)
                .hint(format!("the nearest are {}; GET /v1/poses lists all", nearest.join(", "))),
            _ => refused(field, &error),
        })
    }
}

/// The pose that a client's JSON describes.
pub(super) fn of_json(field: &str, json: &Value) -> Result<Pose, ApiError> {
    Pose::from_value(json).map_err(|error| refused(field, &error))
}

/// Its skeleton as a PNG of this size.
pub(super) fn skeleton(pose: &Pose, width: usize, height: usize) -> Result<Bytes, ApiError> {
    let picture = openpose::draw(pose, width, height);
    let png = encode_png(picture.width(), picture.height(), &picture.to_rgb8(), &[]);
    png.map(Bytes::from)
        .map_err(|error| ApiError::internal(&format!("a skeleton could not be written: {error}")))
}

fn refused(field: &str, error: &PoseError) -> ApiError {
    ApiError::invalid(field, format!("cannot be used: {error}"))
        .hint("a pose is OpenPose's JSON (people with pose_keypoints_2d), or joints by name: GET /v1/poses lists presets")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pose_that_is_none_is_refused_with_its_place() {
        for wrong in [json!({}), json!([]), json!({"joints": {"nose": ["NaN", 0.1]}}), json!({"people": []})]
        {
            let error = of_json("pose_data.pose_json", &wrong).unwrap_err();
            assert_eq!(
                (error.status().as_u16(), error.detail().field.as_deref()),
                (422, Some("pose_data.pose_json"))
            );
            assert!(error.detail().hint.is_some());
        }
        let error = of_json("p", &json!({"joints": {"nose": ["NaN", 0.1]}})).unwrap_err();
        assert!(error.detail().message.contains("not a finite number"), "{error:?}");
    }

    #[test]
    fn presets_are_found_by_name_and_drawn() {
        let poses = Poses::embedded().unwrap();
        let (id, ..) = poses.list().next().unwrap();
        let png = skeleton(poses.preset("f", id).unwrap(), 64, 96).unwrap();
        let picture = image::load_from_memory(&png).unwrap().to_rgb8();
        assert_eq!((picture.width(), picture.height()), (64, 96));
        assert!(picture.pixels().any(|pixel| pixel.0 != [0, 0, 0]));
        let error = poses.preset("f", "no such pose").unwrap_err();
        assert_eq!(error.status().as_u16(), 404);
        assert!(error.detail().hint.as_deref().unwrap().contains("GET /v1/poses"));
    }
}
