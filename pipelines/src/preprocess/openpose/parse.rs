//! Reads poses from JSON that others wrote. Nothing is believed: numbers must be finite, lists have a known length,
//! and what is wrong is named by its path.

use serde_json::{Map, Value};

use super::joint::{Fit, Joint, Named, read};
use super::{BODY_POINTS, HAND_POINTS, Hand, Keypoint, MAX_PEOPLE, Person, Pose, PoseError};

/// Points that the finder was less sure of are not there (OpenPose's own threshold for drawing).
const LEAST_CONFIDENCE: f64 = 0.05;
/// A pose without a coordinate beyond this has shares of the canvas, else pixels: what is out of the picture may be
/// a little beyond 1, and a person of two pixels is none.
const LARGEST_SHARE: f64 = 2.0;
/// A point may lie so much outside the canvas, in its widths or heights.
const MARGIN: f64 = 1.0;
/// Most named joints of a person; rigs with all fingers have fewer.
const MAX_NAMED: usize = 256;
/// Joints of 25 points (BODY_25) in the order of 18: the hips' middle and the feet are left out.
const OF_25: [usize; BODY_POINTS] = [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18];
/// COCO's 17 points in the order of 18, without the neck.
const OF_17: [Joint; 17] = [
    Joint::Nose,
    Joint::LeftEye,
    Joint::RightEye,
    Joint::LeftEar,
    Joint::RightEar,
    Joint::LeftShoulder,
    Joint::RightShoulder,
    Joint::LeftElbow,
    Joint::RightElbow,
    Joint::LeftWrist,
    Joint::RightWrist,
    Joint::LeftHip,
    Joint::RightHip,
    Joint::LeftKnee,
    Joint::RightKnee,
    Joint::LeftAnkle,
    Joint::RightAnkle,
];
/// Under what a person's named joints are found.
const NAMED: [&str; 3] = ["joints", "bones", "keypoints"];
const FLAT: &str = "pose_keypoints_2d";

/// A coordinate pair as it was given, and where.
#[derive(Debug, Clone)]
struct Point {
    x: f64,
    y: f64,
    confidence: f64,
    /// Paths of x and of y.
    paths: (String, String),
}

/// A person before it is known whether coordinates are pixels.
struct Found {
    body: Vec<Option<Point>>,
    left_hand: Option<Vec<Option<Point>>>,
    right_hand: Option<Vec<Option<Point>>>,
    face: Option<Vec<Option<Point>>>,
    confidence: Option<f64>,
}

pub(super) fn text(text: &str) -> Result<Pose, PoseError> {
    let parsed: Result<Value, _> = serde_json::from_str(text);
    match parsed {
        Ok(parsed) => value(&parsed),
        // Python writes NaN and Infinity, which JSON does not have. As strings they are found by their path.
        Err(error) => match serde_json::from_str(&quoted(text)) {
            Ok(parsed) => value(&parsed),
            Err(_) => Err(PoseError::NotJson { reason: error.to_string() }),
        },
    }
}

/// `text` with NaN and Infinity in quotes, where they are not in some already.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    let mut rest = text;
    let (mut inside, mut escaped) = (false, false);
    while let Some(c) = rest.chars().next() {
        let word =
            ["NaN", "-Infinity", "Infinity"].into_iter().find(|word| !inside && rest.starts_with(word));
        if let Some(word) = word {
            out.extend(["\"", word, "\""]);
            rest = &rest[word.len()..];
            continue;
        }
        match c {
            '"' if !escaped => inside = !inside,
            _ => {}
        }
        escaped = c == '\\' && !escaped;
        out.push(c);
        rest = &rest[c.len_utf8()..];
    }
    out
}

pub(super) fn value(value: &Value) -> Result<Pose, PoseError> {
    // ComfyUI's pose nodes write a list of frames.
    let (value, at) = match value {
        Value::Array(frames) if frames.len() == 1 => (&frames[0], "[0]"),
        Value::Array(_) => return Err(not_a_pose("the pose", "is a list, and not of one frame")),
        other => (other, ""),
    };
    let Value::Object(pose) = value else { return Err(not_a_pose("the pose", "is no object")) };
    let canvas = canvas(pose, at)?;
    let found = match pose.get("people") {
        Some(Value::Array(people)) => {
            let path = joined(at, "people");
            if people.len() > MAX_PEOPLE {
                return Err(PoseError::TooManyPeople { path, found: people.len() });
            }
            let person = |(i, value): (usize, &Value)| person(value, &format!("{path}[{i}]"));
            people.iter().enumerate().map(person).collect::<Result<Vec<_>, _>>()?
        }
        Some(_) => return Err(not_a_pose(&joined(at, "people"), "is no list")),
        None => vec![person(value, at)?],
    };
    let scale = scale(&found, canvas)?;
    let mut people = Vec::with_capacity(found.len());
    for found in found {
        people.extend(found.placed(scale)?);
    }
    if people.is_empty() { Err(PoseError::Empty) } else { Ok(Pose { people, canvas }) }
}

/// Width and height, if they are said.
fn canvas(pose: &Map<String, Value>, at: &str) -> Result<Option<(u32, u32)>, PoseError> {
    let side = |key: &str| match pose.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            match value.as_f64().filter(|side| side.fract() == 0.0 && (1.0..=65535.0).contains(side)) {
                Some(side) => Ok(Some(side as u32)),
                None => Err(PoseError::BadCanvas { path: joined(at, key) }),
            }
        }
    };
    match (side("canvas_width")?, side("canvas_height")?) {
        (Some(width), Some(height)) => Ok(Some((width, height))),
        (None, None) => Ok(None),
        (Some(_), None) => Err(PoseError::BadCanvas { path: joined(at, "canvas_height") }),
        (None, Some(_)) => Err(PoseError::BadCanvas { path: joined(at, "canvas_width") }),
    }
}

fn person(value: &Value, path: &str) -> Result<Found, PoseError> {
    let shown = if path.is_empty() { "the pose" } else { path };
    let Value::Object(person) = value else { return Err(not_a_pose(shown, "is no object")) };
    let named = NAMED.iter().find_map(|key| person.get(*key).map(|value| (joined(path, key), value)));
    let body = match (person.get(FLAT), named) {
        (Some(flat), _) => body(flat, &joined(path, FLAT))?,
        (None, Some((path, value))) => with_neck(joints(value, &path)?),
        (None, None) => return Err(not_a_pose(shown, "has neither pose_keypoints_2d nor joints")),
    };
    let part = |key: &str, lengths: &[usize], expected| {
        let path = joined(path, key);
        match person.get(key) {
            None | Some(Value::Null) => Ok(None),
            // OpenPose leaves lists of parts that it did not look for empty.
            Some(Value::Array(list)) if list.is_empty() => Ok(None),
            Some(value) => flat(value, &path, lengths, expected).map(Some),
        }
    };
    let hand = "a hand has 21 points of x, y and confidence";
    let face = "a face has 68 or 70 points of x, y and confidence";
    Ok(Found {
        body,
        left_hand: part("hand_left_keypoints_2d", &[HAND_POINTS], hand)?,
        right_hand: part("hand_right_keypoints_2d", &[HAND_POINTS], hand)?,
        face: part("face_keypoints_2d", &[68, 70], face)?,
        confidence: match person.get("confidence") {
            None | Some(Value::Null) => None,
            Some(value) => Some(number(value, &joined(path, "confidence"))?),
        },
    })
}

/// A body of 17, 18 or 25 points in the order of 18.
fn body(value: &Value, path: &str) -> Result<Vec<Option<Point>>, PoseError> {
    let expected = "a body has 18, 25 or 17 points of x, y and confidence";
    let points = flat(value, path, &[BODY_POINTS, 25, 17], expected)?;
    Ok(match points.len() {
        25 => OF_25.iter().map(|i| points[*i].clone()).collect(),
        17 => {
            let mut body = vec![None; BODY_POINTS];
            OF_17.iter().zip(points).for_each(|(joint, point)| body[joint.index()] = point);
            with_neck(body)
        }
        _ => points,
    })
}

/// x, y and confidence, one after the other, of as many points as one of `lengths` says.
fn flat(
    value: &Value,
    path: &str,
    lengths: &[usize],
    expected: &'static str,
) -> Result<Vec<Option<Point>>, PoseError> {
    let Value::Array(list) = value else { return Err(not_a_pose(path, "is no list")) };
    if !lengths.iter().any(|length| length * 3 == list.len()) {
        return Err(PoseError::WrongCount { path: path.to_owned(), found: list.len(), expected });
    }
    let element = |i: usize| number(&list[i], &format!("{path}[{i}]"));
    let point = |i: usize| {
        let (x, y, confidence) = (element(i)?, element(i + 1)?, element(i + 2)?);
        let paths = (format!("{path}[{i}]"), format!("{path}[{}]", i + 1));
        Ok((confidence >= LEAST_CONFIDENCE).then_some(Point { x, y, confidence, paths }))
    };
    (0..list.len()).step_by(3).map(point).collect()
}

/// Joints by name: an object of points, or a list of objects with a name and a point.
fn joints(value: &Value, path: &str) -> Result<Vec<Option<Point>>, PoseError> {
    let entries: Vec<(&str, String, &Value)> = match value {
        Value::Object(joints) => {
            joints.iter().map(|(name, value)| (name.as_str(), joined(path, &shown(name)), value)).collect()
        }
        Value::Array(list) => {
            let mut entries = Vec::with_capacity(list.len().min(MAX_NAMED));
            for (i, value) in list.iter().enumerate() {
                let path = format!("{path}[{i}]");
                match value.get("name").and_then(Value::as_str) {
                    Some(name) => entries.push((name, path, value)),
                    None => return Err(not_a_pose(&path, "has no name")),
                }
            }
            entries
        }
        _ => return Err(not_a_pose(path, "is neither an object nor a list")),
    };
    if entries.len() > MAX_NAMED {
        let expected = "256 joints are the most";
        return Err(PoseError::WrongCount { path: path.to_owned(), found: entries.len(), expected });
    }
    let mut body: Vec<Option<(Fit, Option<Point>)>> = vec![None; BODY_POINTS];
    for (name, path, value) in entries {
        match read(name) {
            Named::Joint(joint, fit) => {
                let point = point(value, &path)?;
                let place = &mut body[joint.index()];
                if place.as_ref().is_none_or(|(other, _)| fit >= *other) {
                    *place = Some((fit, point));
                }
            }
            Named::Nearly(joint) => return Err(PoseError::Misspelt { path, nearest: joint.name() }),
            Named::Other => {}
        }
    }
    if body.iter().all(Option::is_none) {
        return Err(PoseError::NoKnownJoint { path: path.to_owned() });
    }
    Ok(body.into_iter().map(|place| place.and_then(|(_, point)| point)).collect())
}

/// `[x, y]`, `[x, y, z]`, `{"x": …, "y": …}` or `{"position": …}`; null is a joint that is not seen.
fn point(value: &Value, path: &str) -> Result<Option<Point>, PoseError> {
    let (x, y, paths, confidence) = match value {
        Value::Null => return Ok(None),
        Value::Array(list) if matches!(list.len(), 2 | 3) => {
            let paths = (format!("{path}[0]"), format!("{path}[1]"));
            if let Some(third) = list.get(2) {
                // A depth or a confidence; which one nobody says.
                number(third, &format!("{path}[2]"))?;
            }
            (&list[0], &list[1], paths, 1.0)
        }
        Value::Array(list) => {
            let expected = "a joint is [x, y]";
            return Err(PoseError::WrongCount { path: path.to_owned(), found: list.len(), expected });
        }
        Value::Object(fields) => {
            // One level of nesting, no more.
            if let Some(position @ (Value::Array(_) | Value::Null)) = fields.get("position") {
                return point(position, &joined(path, "position"));
            }
            let (fields, path) = match fields.get("position") {
                Some(Value::Object(position)) => (position, joined(path, "position")),
                _ => (fields, path.to_owned()),
            };
            let confidence = match fields.get("confidence").or_else(|| fields.get("score")) {
                None | Some(Value::Null) => 1.0,
                Some(value) => number(value, &joined(&path, "confidence"))?,
            };
            let paths = (joined(&path, "x"), joined(&path, "y"));
            let field = |key: &str| fields.get(key).unwrap_or(&Value::Null);
            (field("x"), field("y"), paths, confidence)
        }
        _ => return Err(PoseError::NotANumber { path: path.to_owned() }),
    };
    let (x, y) = (number(x, &paths.0)?, number(y, &paths.1)?);
    Ok((confidence >= LEAST_CONFIDENCE).then_some(Point { x, y, confidence, paths }))
}

/// A missing neck is the middle of the shoulders, as OpenPose defines it.
fn with_neck(mut body: Vec<Option<Point>>) -> Vec<Option<Point>> {
    let shoulder = |joint: Joint| body[joint.index()].clone();
    if body[Joint::Neck.index()].is_none()
        && let (Some(right), Some(left)) = (shoulder(Joint::RightShoulder), shoulder(Joint::LeftShoulder))
    {
        let (x, y) = ((right.x + left.x) / 2.0, (right.y + left.y) / 2.0);
        let confidence = right.confidence.min(left.confidence);
        body[Joint::Neck.index()] = Some(Point { x, y, confidence, paths: right.paths });
    }
    body
}

impl Found {
    fn points(&self) -> impl Iterator<Item = &Point> {
        let parts = [&self.left_hand, &self.right_hand, &self.face].into_iter().flatten();
        self.body.iter().chain(parts.flatten()).flatten()
    }

    /// The person with coordinates divided by `scale`; `None` if there is nothing to draw.
    fn placed(&self, scale: (f64, f64)) -> Result<Option<Person>, PoseError> {
        if self.points().next().is_none() {
            return Ok(None);
        }
        let share = |value: f64, scale: f64, path: &String| {
            let share = value / scale;
            let near = (-MARGIN..=1.0 + MARGIN).contains(&share);
            near.then_some(share as f32).ok_or_else(|| PoseError::FarOutside { path: path.clone(), value })
        };
        let keypoint = |point: &Option<Point>| {
            point.as_ref().map_or(Ok(None), |point| {
                let x = share(point.x, scale.0, &point.paths.0)?;
                Ok(Some(Keypoint { x, y: share(point.y, scale.1, &point.paths.1)? }))
            })
        };
        let all = |points: &[Option<Point>]| points.iter().map(keypoint).collect::<Result<Vec<_>, _>>();
        let hand = |points: &Option<Vec<Option<Point>>>| -> Result<Option<Hand>, PoseError> {
            let points = points.as_deref().map(all).transpose()?;
            Ok(points.and_then(|points| points.try_into().ok()))
        };
        let sure: Vec<f64> = self.body.iter().flatten().map(|point| point.confidence.min(1.0)).collect();
        let mean = sure.iter().sum::<f64>() / sure.len().max(1) as f64;
        let mut body = [None; BODY_POINTS];
        body.iter_mut().zip(all(&self.body)?).for_each(|(place, point)| *place = point);
        Ok(Some(Person {
            body,
            left_hand: hand(&self.left_hand)?,
            right_hand: hand(&self.right_hand)?,
            face: self.face.as_deref().map(all).transpose()?,
            confidence: self.confidence.unwrap_or(mean).clamp(0.0, 1.0) as f32,
        }))
    }
}

/// What coordinates are to be divided by.
fn scale(people: &[Found], canvas: Option<(u32, u32)>) -> Result<(f64, f64), PoseError> {
    let coordinates = people.iter().flat_map(Found::points);
    let coordinates = coordinates.flat_map(|point| [(point.x, &point.paths.0), (point.y, &point.paths.1)]);
    let largest = coordinates.max_by(|(a, _), (b, _)| a.abs().total_cmp(&b.abs()));
    match (largest, canvas) {
        (Some((value, _)), _) if value.abs() <= LARGEST_SHARE => Ok((1.0, 1.0)),
        (Some((value, path)), None) => Err(PoseError::NeedsCanvas { path: path.clone(), value }),
        (_, Some((width, height))) => Ok((f64::from(width), f64::from(height))),
        (None, None) => Ok((1.0, 1.0)),
    }
}

fn number(value: &Value, path: &str) -> Result<f64, PoseError> {
    let finite = value.as_f64().filter(|value| value.is_finite());
    finite.ok_or_else(|| PoseError::NotANumber { path: path.to_owned() })
}

fn joined(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// A foreign key in a message: short, and without what could command a terminal.
fn shown(key: &str) -> String {
    key.chars().filter(|c| !c.is_control()).take(40).collect()
}

fn not_a_pose(path: &str, problem: &'static str) -> PoseError {
    PoseError::NotAPose { path: path.to_owned(), problem }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn refused(value: &Value) -> String {
        Pose::from_value(value).unwrap_err().to_string()
    }

    /// 18 points, all at the middle.
    fn middle() -> Vec<f64> {
        [0.5, 0.5, 1.0].repeat(BODY_POINTS)
    }

    fn body_of(value: &Value) -> [Option<Keypoint>; BODY_POINTS] {
        Pose::from_value(value).unwrap().people[0].body
    }

    #[test]
    fn what_is_not_a_number_is_named_by_its_path() {
        for bad in [json!("0.5"), json!(null), json!([1]), json!(true), json!({})] {
            let mut points: Vec<Value> = middle().into_iter().map(Value::from).collect();
            points[4] = bad;
            let text = refused(&json!({"people": [{"pose_keypoints_2d": points}]}));
            assert!(text.starts_with("people[0].pose_keypoints_2d[4] is not a finite number"), "{text}");
        }
        for (text, path) in [
            (r#"{"joints": {"left_knee": [0.5, NaN]}}"#, "joints.left_knee[1]"),
            (r#"{"bones": {"nose": {"x": -Infinity, "y": 0.5}}}"#, "bones.nose.x"),
            (r#"{"joints": {"nose": {"y": 0.5}}}"#, "joints.nose.x"),
            (r#"{"joints": {"nose": [0.1, 0.2, Infinity]}}"#, "joints.nose[2]"),
            (r#"[{"people": [{"joints": {"nose": "left"}}]}]"#, "[0].people[0].joints.nose"),
        ] {
            let error = Pose::from_json(text).unwrap_err();
            assert_eq!(error, PoseError::NotANumber { path: path.into() }, "{text}");
        }
        // In a string it is no number, and left alone.
        assert!(Pose::from_json(r#"{"joints": {"NaN \" NaN": 1, "nose": [0.5, 0.5]}}"#).is_ok());
    }

    #[test]
    fn counts_that_no_layout_has_and_crowds_and_nobody_are_refused() {
        let text = refused(&json!({"people": [{"pose_keypoints_2d": vec![0.5; 53]}]}));
        assert!(
            text.contains("people[0].pose_keypoints_2d has 53 values") && text.contains("18, 25 or 17"),
            "{text}"
        );
        let person = json!({"pose_keypoints_2d": middle()});
        let text = refused(&json!({"people": vec![person.clone(); 33]}));
        assert!(text.contains("33 people; 32 is the most"), "{text}");
        assert!(Pose::from_value(&json!({"people": vec![person; 32]})).is_ok());
        for empty in [json!({"people": []}), json!({"people": [{"pose_keypoints_2d": vec![0.0; 54]}]})] {
            assert_eq!(Pose::from_value(&empty), Err(PoseError::Empty));
        }
        for nothing in
            [json!({}), json!(3), json!([]), json!({"people": 3}), json!({"people": [7]}), json!({"pose": 1})]
        {
            assert!(matches!(Pose::from_value(&nothing), Err(PoseError::NotAPose { .. })), "{nothing}");
        }
        assert!(matches!(Pose::from_json("{"), Err(PoseError::NotJson { .. })));
    }

    #[test]
    fn pixels_need_a_canvas_and_shares_do_not() {
        let pixels: Vec<f64> = [128.0, 384.0, 0.9].repeat(BODY_POINTS);
        let text = refused(&json!({"people": [{"pose_keypoints_2d": pixels}]}));
        assert!(
            text.contains("people[0].pose_keypoints_2d[1] is 384") || text.contains("canvas_width"),
            "{text}"
        );
        let pose =
            json!({"people": [{"pose_keypoints_2d": pixels}], "canvas_width": 512, "canvas_height": 768});
        let pose = Pose::from_value(&pose).unwrap();
        assert_eq!(pose.people[0].body[3], Some(Keypoint { x: 0.25, y: 0.5 }));
        assert!((pose.people[0].confidence - 0.9).abs() < 1e-6);
        let shares = json!({"joints": {"nose": [0.25, 1.5]}, "canvas_width": 512, "canvas_height": 768});
        assert_eq!(body_of(&shares)[0], Some(Keypoint { x: 0.25, y: 1.5 }));
        for bad in [json!(0), json!(-4), json!(1.5), json!("512"), json!(1e9), json!(null)] {
            let text =
                refused(&json!({"joints": {"nose": [5, 5]}, "canvas_width": bad, "canvas_height": 512}));
            assert!(text.contains("canvas_width"), "{text}");
        }
        let far = json!({"joints": {"nose": [5, 5000]}, "canvas_width": 512, "canvas_height": 512});
        assert!(refused(&far).contains("joints.nose[1] is 5000, which lies far outside"));
    }

    #[test]
    fn bodies_of_25_and_17_points_become_bodies_of_18() {
        let numbered = |n: usize| -> Vec<f64> { (0..n).flat_map(|i| [i as f64 / 100.0, 0.5, 1.0]).collect() };
        let x = |body: [Option<Keypoint>; BODY_POINTS], joint: Joint| {
            (body[joint.index()].unwrap().x * 100.0).round()
        };
        let of_25 = body_of(&json!({"people": [{"pose_keypoints_2d": numbered(25)}]}));
        let joints = [Joint::LeftWrist, Joint::RightHip, Joint::LeftAnkle, Joint::RightEye, Joint::LeftEar];
        assert_eq!(joints.map(|joint| x(of_25, joint)), [7.0, 9.0, 14.0, 15.0, 18.0]);
        let of_17 = body_of(&json!({"people": [{"pose_keypoints_2d": numbered(17)}]}));
        assert_eq!(joints.map(|joint| x(of_17, joint)), [9.0, 12.0, 15.0, 2.0, 3.0]);
        // The neck lies between shoulders 5 and 6.
        assert!((of_17[Joint::Neck.index()].unwrap().x - 0.055).abs() < 1e-6);
    }

    #[test]
    fn joints_by_name_come_in_many_forms() {
        let forms = [
            json!({"joints": {"left_shoulder": [0.6, 0.2], "right_shoulder": [0.4, 0.2], "spine": [9, 9], "nose": null}}),
            json!({"bones": {"LeftArm": {"x": 0.6, "y": 0.2, "z": 3}, "LeftShoulder": [0.5, 0.5], "RightArm": {"position": [0.4, 0.2]}}}),
            json!({"keypoints": [{"name": "lShoulder", "x": 0.6, "y": 0.2}, {"name": "rShoulder", "position": {"x": 0.4, "y": 0.2}}]}),
            json!({"people": [{"joints": {"shoulder.L": [0.6, 0.2], "shoulder.R": [0.4, 0.2, 0]}}]}),
        ];
        for form in forms {
            let body = body_of(&form);
            assert_eq!(body[Joint::LeftShoulder.index()], Some(Keypoint { x: 0.6, y: 0.2 }), "{form}");
            assert_eq!(body[Joint::Neck.index()], Some(Keypoint { x: 0.5, y: 0.2 }), "{form}");
            assert_eq!(body.iter().flatten().count(), 3, "{form}");
        }
        let text = refused(&json!({"joints": {"left_knees": [0.5, 0.5]}}));
        assert!(text.contains("joints.left_knees") && text.contains("did you mean left_knee?"), "{text}");
        assert!(refused(&json!({"joints": {"spine": [0.5, 0.5]}})).contains("right_shoulder"));
        let many: Map<String, Value> = (0..257).map(|i| (format!("b{i}"), json!([0, 0]))).collect();
        assert!(refused(&json!({"joints": many})).contains("257"));
    }

    #[test]
    fn a_pose_is_read_back_from_its_own_json() {
        let hand = [0.25, 0.5, 1.0].repeat(HAND_POINTS);
        let face = [0.125, 0.5, 1.0].repeat(68);
        let pose = json!({"people": [
            {"pose_keypoints_2d": middle(), "hand_left_keypoints_2d": hand, "hand_right_keypoints_2d": [], "confidence": 0.25},
            {"joints": {"nose": [1.5, -0.5]}, "face_keypoints_2d": face},
        ], "canvas_width": 640, "canvas_height": 480});
        let pose = Pose::from_value(&pose).unwrap();
        let text = serde_json::to_string(&pose).unwrap();
        assert_eq!(serde_json::from_str::<Pose>(&text).unwrap(), pose);
        assert!(serde_json::from_str::<Pose>(&text.replace("0.125", "\"x\"")).is_err());
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            (-2.0..700.0f64).prop_map(Value::from),
            "[a-z_]{0,6}|nose|left_knee".prop_map(Value::from),
            (0.0..1.0f64, prop_oneof![Just(17usize), Just(18), Just(21), Just(25)])
                .prop_map(|(v, n)| vec![v; n * 3].into()),
        ];
        leaf.prop_recursive(5, 60, 6, |inner| {
            let keys = "people|joints|bones|name|position|x|y|nose|neck|left_knee|canvas_width|canvas_height|\
                pose_keypoints_2d|hand_left_keypoints_2d|face_keypoints_2d|[a-zé.]{0,5}";
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::hash_map(keys, inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn whatever_json_comes_a_pose_is_whole_or_refused(value in any_json()) {
            if let Ok(pose) = Pose::from_value(&value) {
                let points = pose.people.iter().flat_map(|person| person.body.iter().flatten());
                prop_assert!(points.clone().all(|p| p.x.is_finite() && p.y.is_finite()));
                prop_assert!((1..=MAX_PEOPLE).contains(&pose.people.len()));
                let again = Pose::from_value(&Value::from(pose.clone())).unwrap();
                prop_assert_eq!(again.people.len(), pose.people.len());
            }
        }

        #[test]
        fn whatever_text_comes_nothing_panics(text in "[\\[\\]{}\",:\\\\a-zNI0-9.é-]{0,60}|\\{\"joints\":\\{\"nose\":\\[(NaN|-Infinity|1e999|0.5),0.5\\]\\}\\}") {
            let _ = Pose::from_json(&text);
        }
    }
}
