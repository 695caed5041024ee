//! Poses by name, from a file that people can edit.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Pose, PoseError};

const EMBEDDED: &str = include_str!("../../../../assets/poses.toml");
/// How many names an error suggests.
const SUGGESTIONS: usize = 3;
/// Canvas of presets that do not say theirs: 2:3.
const CANVAS: [u32; 2] = [1024, 1536];

/// A pose with a name.
#[derive(Debug, Clone, PartialEq)]
pub struct PosePreset {
    /// What it is called: `standing_neutral`.
    pub id: String,
    /// What it shows, in a few words.
    pub about: String,
    /// Other names that mean it.
    pub also: Vec<String>,
    /// The pose.
    pub pose: Pose,
}

/// Presets by id.
#[derive(Debug, Clone, PartialEq)]
pub struct PosePresets {
    presets: BTreeMap<String, PosePreset>,
    /// Which id another name means.
    aliases: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    about: String,
    #[serde(default)]
    also: Vec<String>,
    canvas: Option<[u32; 2]>,
    joints: Value,
}

impl PosePresets {
    /// The presets that are compiled in.
    ///
    /// # Errors
    /// If the file is wrong, which a test rules out.
    pub fn embedded() -> Result<Self, PoseError> {
        Self::from_toml(EMBEDDED)
    }

    /// Presets from a file's text: a table for each, with `about`, `joints` by name as shares of the canvas, and
    /// perhaps `also` (other names) and `canvas` (width and height; 2:3 if not said).
    ///
    /// # Errors
    /// If the text is no TOML of that form, a pose is wrong, or a name is taken twice.
    pub fn from_toml(text: &str) -> Result<Self, PoseError> {
        let wrong = |reason: String| PoseError::Presets { reason };
        let entries: BTreeMap<String, Entry> = toml::from_str(text).map_err(|e| wrong(e.to_string()))?;
        let mut all = Self { presets: BTreeMap::new(), aliases: BTreeMap::new() };
        for (name, entry) in entries {
            let [width, height] = entry.canvas.unwrap_or(CANVAS);
            let value = json!({ "joints": entry.joints, "canvas_width": width, "canvas_height": height });
            let pose = Pose::from_value(&value).map_err(|e| wrong(format!("{name}: {e}")))?;
            let id = plain(&name);
            for other in entry.also.iter().map(String::as_str).chain([name.as_str()]) {
                if all.aliases.insert(plain(other), id.clone()).is_some() {
                    return Err(wrong(format!("{name}: '{other}' is the name of another preset too")));
                }
            }
            let preset = PosePreset { id: id.clone(), about: entry.about, also: entry.also, pose };
            all.presets.insert(id, preset);
        }
        Ok(all)
    }

    /// The preset called `id`, or by one of its other names; capitals, spaces and hyphens do not matter.
    ///
    /// # Errors
    /// [`PoseError::UnknownPreset`] with the nearest names.
    pub fn get(&self, id: &str) -> Result<&PosePreset, PoseError> {
        let wanted = plain(id);
        let found = self.aliases.get(&wanted).and_then(|id| self.presets.get(id));
        found.ok_or_else(|| {
            let mut scored: Vec<(f64, &str)> = self.presets.keys().map(|id| (0.0, id.as_str())).collect();
            for (name, id) in &self.aliases {
                let score = strsim::jaro_winkler(&wanted, name);
                for entry in scored.iter_mut().filter(|(_, other)| other == id) {
                    entry.0 = entry.0.max(score);
                }
            }
            scored.sort_by(|a, b| b.0.total_cmp(&a.0));
            let nearest = scored.into_iter().take(SUGGESTIONS).map(|(_, id)| id.to_owned()).collect();
            let id = id.chars().filter(|c| !c.is_control()).take(40).collect();
            PoseError::UnknownPreset { id, nearest }
        })
    }

    /// All ids, in alphabetical order.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.presets.keys().map(String::as_str)
    }

    /// All presets, by id.
    pub fn iter(&self) -> impl Iterator<Item = &PosePreset> {
        self.presets.values()
    }
}

/// Lower case, underscores between words.
fn plain(name: &str) -> String {
    let of = |c: char| if c == '-' || c.is_whitespace() { '_' } else { c.to_ascii_lowercase() };
    name.trim().chars().take(80).map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Joint;
    use super::*;

    #[test]
    fn the_embedded_presets_are_whole_bodies_inside_a_canvas_of_2_to_3() {
        let presets = PosePresets::embedded().unwrap();
        assert!(presets.ids().count() >= 12);
        for preset in presets.iter() {
            let person = &preset.pose.people[0];
            assert_eq!(
                (preset.pose.people.len(), preset.pose.canvas),
                (1, Some((1024, 1536))),
                "{}",
                preset.id
            );
            assert!(!preset.about.is_empty());
            for joint in Joint::ALL {
                let head = matches!(
                    joint,
                    Joint::Nose | Joint::LeftEye | Joint::RightEye | Joint::LeftEar | Joint::RightEar
                );
                let point = person.body[joint.index()];
                assert!(head || point.is_some(), "{}: no {}", preset.id, joint.name());
                let inside =
                    |p: super::super::Keypoint| (0.0..=1.0).contains(&p.x) && (0.0..=1.0).contains(&p.y);
                assert!(point.is_none_or(inside), "{}: {} is outside", preset.id, joint.name());
            }
        }
    }

    #[test]
    fn a_preset_is_found_by_any_of_its_names_and_an_unknown_one_names_the_nearest() {
        let presets = PosePresets::embedded().unwrap();
        assert_eq!(presets.get("Standing Neutral").unwrap().id, "standing_neutral");
        assert_eq!(presets.get("standing").unwrap().id, "standing_neutral");
        let error = presets.get("runing").unwrap_err();
        assert!(
            matches!(&error, PoseError::UnknownPreset { nearest, .. } if nearest[0] == "running"),
            "{error}"
        );
        assert!(presets.get("\u{1b}[2J").unwrap_err().to_string().chars().all(|c| !c.is_control()));
    }

    #[test]
    fn a_file_with_a_mistake_says_where() {
        let of = |text| PosePresets::from_toml(text).unwrap_err().to_string();
        assert!(of("[a]\nabout = 'x'\njoints.nose = [0.5, 'high']").contains("a: joints.nose[1]"));
        assert!(
            of("[a]\nabout = 'x'\njoints.nose = [0.5, nan]").contains("a: joints.nose[1] is not a finite")
        );
        assert!(of("[a]\njoints.nose = [0.5, 0.5]").contains("about"));
        let twice = "[a]\nabout='x'\nalso=['b']\njoints.nose=[0,0]\n[b]\nabout='x'\njoints.nose=[0,0]";
        assert!(of(twice).contains("'b' is the name of another preset"));
    }
}
