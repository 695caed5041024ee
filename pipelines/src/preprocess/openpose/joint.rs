//! The eighteen joints and what people call them.

/// The points of a body, in OpenPose's order of 18 (COCO with a neck). Right and left are the person's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "they are called what they are")]
pub enum Joint {
    Nose,
    Neck,
    RightShoulder,
    RightElbow,
    RightWrist,
    LeftShoulder,
    LeftElbow,
    LeftWrist,
    RightHip,
    RightKnee,
    RightAnkle,
    LeftHip,
    LeftKnee,
    LeftAnkle,
    RightEye,
    LeftEye,
    RightEar,
    LeftEar,
}

impl Joint {
    /// All of them, in order.
    pub const ALL: [Self; super::BODY_POINTS] = [
        Self::Nose,
        Self::Neck,
        Self::RightShoulder,
        Self::RightElbow,
        Self::RightWrist,
        Self::LeftShoulder,
        Self::LeftElbow,
        Self::LeftWrist,
        Self::RightHip,
        Self::RightKnee,
        Self::RightAnkle,
        Self::LeftHip,
        Self::LeftKnee,
        Self::LeftAnkle,
        Self::RightEye,
        Self::LeftEye,
        Self::RightEar,
        Self::LeftEar,
    ];

    /// `nose`, `right_shoulder`, …
    pub fn name(self) -> &'static str {
        match self {
            Self::Nose => "nose",
            Self::Neck => "neck",
            Self::RightShoulder => "right_shoulder",
            Self::RightElbow => "right_elbow",
            Self::RightWrist => "right_wrist",
            Self::LeftShoulder => "left_shoulder",
            Self::LeftElbow => "left_elbow",
            Self::LeftWrist => "left_wrist",
            Self::RightHip => "right_hip",
            Self::RightKnee => "right_knee",
            Self::RightAnkle => "right_ankle",
            Self::LeftHip => "left_hip",
            Self::LeftKnee => "left_knee",
            Self::LeftAnkle => "left_ankle",
            Self::RightEye => "right_eye",
            Self::LeftEye => "left_eye",
            Self::RightEar => "right_ear",
            Self::LeftEar => "left_ear",
        }
    }

    /// Its place in [`Person::body`](super::Person::body).
    pub fn index(self) -> usize {
        self as usize
    }
}

/// All names in a sentence.
pub(super) fn names() -> String {
    Joint::ALL.map(Joint::name).join(", ")
}

/// How well a name fits; where two names mean one joint, the better fit counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fit {
    /// A bone of a rig that begins at the joint, or a shoulder that may be a collar bone.
    Loose,
    /// The joint's own name, or the rig's bone that begins at it where the joint's name may mean another.
    Exact,
}

/// What a name says about the joint it means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Named {
    /// A joint.
    Joint(Joint, Fit),
    /// Not a joint, but almost this one's name.
    Nearly(Joint),
    /// Something else: spines, toes, fingers.
    Other,
}

/// Names this similar (Jaro-Winkler) are taken for misspelt.
const MISSPELT: f64 = 0.94;

/// Reads a name in snake_case, camelCase, with dots or spaces; sides as `left`, `l`, before or after; joints, or the
/// bones of common rigs that begin at them.
pub(super) fn read(name: &str) -> Named {
    let words = words(name);
    let side_of = |word: &str| match word {
        "left" | "l" => Some(true),
        "right" | "r" => Some(false),
        _ => None,
    };
    let side = words.iter().find_map(|word| side_of(word));
    let part: String =
        words.iter().map(String::as_str).filter(|word| side_of(word).is_none() && !filler(word)).collect();
    if let Some((joint, fit)) = joint(side, &part) {
        return Named::Joint(joint, fit);
    }
    if side.is_none() {
        // `lknee`, `rightknee`
        for (prefix, left) in [("left", true), ("right", false), ("l", true), ("r", false)] {
            if let Some((joint, fit)) = part.strip_prefix(prefix).and_then(|part| joint(Some(left), part)) {
                return Named::Joint(joint, fit);
            }
        }
    }
    let plain = words.join("_");
    let similar = |joint: &Joint| strsim::jaro_winkler(&plain, joint.name());
    let nearest = Joint::ALL.into_iter().max_by(|a, b| similar(a).total_cmp(&similar(b)));
    match nearest {
        // Rigs number the bones between joints: `neck1`.
        _ if plain.ends_with(|c: char| c.is_ascii_digit()) => Named::Other,
        // `left_eyebrow` is similar too, and something else: only what is as long is misspelt.
        Some(joint) if similar(&joint) >= MISSPELT && plain.len().abs_diff(joint.name().len()) <= 1 => {
            Named::Nearly(joint)
        }
        _ => Named::Other,
    }
}

fn joint(left: Option<bool>, part: &str) -> Option<(Joint, Fit)> {
    use Joint::{
        LeftAnkle, LeftEar, LeftElbow, LeftEye, LeftHip, LeftKnee, LeftShoulder, LeftWrist, Neck, Nose,
        RightAnkle, RightEar, RightElbow, RightEye, RightHip, RightKnee, RightShoulder, RightWrist,
    };
    let (left_joint, right_joint, fit) = match part {
        "nose" if left.is_none() => return Some((Nose, Fit::Exact)),
        "neck" if left.is_none() => return Some((Neck, Fit::Exact)),
        // In rigs a shoulder is the collar bone, and the upper arm begins where OpenPose has the shoulder.
        "upperarm" | "arm" => (LeftShoulder, RightShoulder, Fit::Exact),
        "shoulder" => (LeftShoulder, RightShoulder, Fit::Loose),
        "elbow" => (LeftElbow, RightElbow, Fit::Exact),
        "forearm" | "lowerarm" => (LeftElbow, RightElbow, Fit::Loose),
        "wrist" => (LeftWrist, RightWrist, Fit::Exact),
        "hand" => (LeftWrist, RightWrist, Fit::Loose),
        "hip" => (LeftHip, RightHip, Fit::Exact),
        "upleg" | "upperleg" | "thigh" => (LeftHip, RightHip, Fit::Loose),
        "knee" => (LeftKnee, RightKnee, Fit::Exact),
        "leg" | "lowerleg" | "shin" | "calf" => (LeftKnee, RightKnee, Fit::Loose),
        "ankle" => (LeftAnkle, RightAnkle, Fit::Exact),
        "foot" => (LeftAnkle, RightAnkle, Fit::Loose),
        "eye" => (LeftEye, RightEye, Fit::Exact),
        "ear" => (LeftEar, RightEar, Fit::Exact),
        _ => return None,
    };
    Some((if left? { left_joint } else { right_joint }, fit))
}

/// Words that rigs put around a name.
fn filler(word: &str) -> bool {
    matches!(word, "mixamorig" | "joint" | "bone" | "bip01" | "def" | "keypoint")
}

/// Lower-case words of a name, cut at punctuation and before capitals.
fn words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut after_lower = false;
    let mut characters = name.chars().take(80).peekable();
    while let Some(c) = characters.next() {
        // `LShoulder`: a side's letter before a capitalised word is a word of its own.
        let side = matches!(words.last().map(String::as_str), Some("l" | "r"))
            && characters.peek().is_some_and(|next| next.is_lowercase());
        if !c.is_alphanumeric() || (c.is_uppercase() && (after_lower || side)) {
            words.push(String::new());
        }
        if let (true, Some(word)) = (c.is_alphanumeric(), words.last_mut()) {
            word.extend(c.to_lowercase());
        }
        after_lower = c.is_lowercase() || c.is_ascii_digit();
    }
    words.retain(|word| !word.is_empty());
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joints_have_the_order_of_openpose() {
        assert!(Joint::ALL.iter().enumerate().all(|(i, joint)| joint.index() == i));
        assert!(
            Joint::ALL
                .iter()
                .all(|joint| matches!(read(joint.name()), Named::Joint(read, _) if read == *joint))
        );
    }

    #[test]
    fn a_joint_has_many_names() {
        for (names, joint) in [
            (
                &[
                    "left_knee",
                    "leftKnee",
                    "LeftKnee",
                    "LKnee",
                    "l_knee",
                    "knee_l",
                    "knee.L",
                    "lknee",
                    "LEFT KNEE",
                ][..],
                Joint::LeftKnee,
            ),
            (&["mixamorig:LeftLeg", "left_lower_leg", "leftknee", "shin.L"], Joint::LeftKnee),
            (
                &["right_shoulder", "RShoulder", "mixamorig:RightArm", "rightUpperArm", "upper_arm.R"],
                Joint::RightShoulder,
            ),
            (&["Nose", "NOSE", "nose_keypoint"], Joint::Nose),
            (&["r_hand", "RightWrist"], Joint::RightWrist),
        ] {
            for name in names {
                assert!(
                    matches!(read(name), Named::Joint(read, _) if read == joint),
                    "{name}: {:?}",
                    read(name)
                );
            }
        }
    }

    #[test]
    fn what_is_almost_a_joint_is_misspelt_and_the_rest_is_something_else() {
        for (name, joint) in [
            ("left_knees", Joint::LeftKnee),
            ("rigth_elbow", Joint::RightElbow),
            ("left_ancle", Joint::LeftAnkle),
        ] {
            assert_eq!(read(name), Named::Nearly(joint), "{name}");
        }
        for name in [
            "spine",
            "hips",
            "Spine2",
            "left_toe_base",
            "LeftHandThumb1",
            "head",
            "",
            "knee",
            "neck1",
            "💃",
            "left_eyebrow",
        ] {
            assert_eq!(read(name), Named::Other, "{name}");
        }
    }
}
