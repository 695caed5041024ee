//! A pose as JSON: OpenPose's layout, coordinates as shares of the canvas.

use serde_json::{Map, Value, json};

use super::{Keypoint, Person, Pose};

pub(super) fn value(pose: &Pose) -> Value {
    let mut out = Map::new();
    if let Some((width, height)) = pose.canvas {
        out.insert("canvas_width".into(), width.into());
        out.insert("canvas_height".into(), height.into());
    }
    out.insert("people".into(), pose.people.iter().map(person).collect());
    Value::Object(out)
}

fn person(person: &Person) -> Value {
    json!({
        "pose_keypoints_2d": points(&person.body),
        "hand_left_keypoints_2d": person.left_hand.as_ref().map(|hand| points(hand)),
        "hand_right_keypoints_2d": person.right_hand.as_ref().map(|hand| points(hand)),
        "face_keypoints_2d": person.face.as_deref().map(points),
        "confidence": person.confidence,
    })
}

/// x, y and a confidence of 1 or 0 for each point.
fn points(points: &[Option<Keypoint>]) -> Vec<f32> {
    let triple = |point: &Option<Keypoint>| point.map_or([0.0; 3], |point| [point.x, point.y, 1.0]);
    points.iter().flat_map(triple).collect()
}
