//! The words of packs and scenes: from a character's design, an art style, a camera angle, a mood or an expression to
//! prompts. What each word adds stands in files that people can read and change: `assets/character_design.toml`,
//! `assets/art_styles.toml`, `assets/scenes.toml`, `assets/expressions.toml` and `assets/tiny-sdxl.tags.json`, all
//! compiled in.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::error::{ApiError, did_you_mean, shown};
use crate::expressions::{Expression, ExpressionError, Vocabulary, VocabularyError};

const DESIGN: &str = include_str!("../../assets/character_design.toml");
const STYLES: &str = include_str!("../../assets/art_styles.toml");
const SCENES: &str = include_str!("../../assets/scenes.toml");

/// Most fields of a character's design.
const DESIGN_FIELDS: usize = 64;
/// Most tags in a list of a character's design.
const DESIGN_TAGS: usize = 64;
/// Longest name of a camera angle or a mood, characters.
const WORD_CHARACTERS: usize = 200;

/// Why a word list cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WordsError {
    /// One of `assets/*.toml`.
    #[error("{file}: {source}")]
    Toml {
        /// The file.
        file: &'static str,
        /// Where and what.
        source: Box<toml::de::Error>,
    },
    /// The expressions.
    #[error("the expressions: {0}")]
    Expressions(#[from] VocabularyError),
}

/// What packs and scenes can be described with.
#[derive(Debug)]
pub(super) struct Words {
    /// Expressions by name.
    pub(super) vocabulary: Vocabulary,
    design: Vec<DesignField>,
    styles: BTreeMap<String, Style>,
    scenes: Scenes,
}

/// What an art style adds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Style {
    /// To the prompt.
    pub(super) tags: String,
    /// To the negative prompt.
    pub(super) negative: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DesignFile {
    field: Vec<DesignField>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DesignField {
    name: String,
    template: String,
    #[serde(default)]
    values: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Scenes {
    camera_angle: BTreeMap<String, String>,
    mood: BTreeMap<String, String>,
}

impl Words {
    /// The words that are compiled in.
    pub(super) fn embedded() -> Result<Self, WordsError> {
        let toml = |file| move |source| WordsError::Toml { file, source: Box::new(source) };
        let design: DesignFile = toml::from_str(DESIGN).map_err(toml("character_design.toml"))?;
        Ok(Self {
            vocabulary: Vocabulary::embedded()?,
            design: design.field,
            styles: toml::from_str(STYLES).map_err(toml("art_styles.toml"))?,
            scenes: toml::from_str(SCENES).map_err(toml("scenes.toml"))?,
        })
    }

    /// A character's prompt: known fields in the list's order, others after them by name.
    pub(super) fn character(&self, design: &Map<String, Value>) -> Result<String, ApiError> {
        if design.len() > DESIGN_FIELDS {
            let message = format!("has {} fields; {DESIGN_FIELDS} is the most", design.len());
            return Err(ApiError::invalid("character_design", message));
        }
        let mut tags = Vec::new();
        for field in &self.design {
            if let Some(value) = design.get(&field.name) {
                for text in texts(&field.name, value)? {
                    tags.extend(field.tag(&text));
                }
            }
        }
        for (name, value) in design {
            if self.design.iter().all(|field| field.name != *name) {
                tags.extend(
                    texts(name, value)?.iter().filter(|text| !adds_nothing(text)).map(|text| plain(text)),
                );
            }
        }
        if tags.is_empty() {
            return Err(ApiError::invalid("character_design", "describes nothing")
                .hint("give at least one field, such as hair_color"));
        }
        Ok(tags.join(", "))
    }

    /// An art style by name; none adds nothing.
    pub(super) fn style(&self, name: Option<&str>) -> Result<Style, ApiError> {
        let Some(name) = name else { return Ok(Style::default()) };
        self.styles.get(&keyed(name)).cloned().ok_or_else(|| {
            let names: Vec<&str> = self.styles.keys().map(String::as_str).collect();
            let hint = did_you_mean(&keyed(name), names.iter().copied());
            ApiError::invalid("art_style", format!("cannot be '{}'", shown(name)))
                .hint(hint.unwrap_or_else(|| format!("known: {}", names.join(", "))))
        })
    }

    /// What a camera angle adds.
    pub(super) fn camera_angle(&self, name: Option<&str>) -> Result<String, ApiError> {
        scene_word("camera_angle", &self.scenes.camera_angle, name)
    }

    /// What a mood adds.
    pub(super) fn mood(&self, name: Option<&str>) -> Result<String, ApiError> {
        scene_word("mood", &self.scenes.mood, name)
    }

    /// Expressions by their names or synonyms.
    pub(super) fn expressions(&self, names: &[String]) -> Result<Vec<&Expression>, ApiError> {
        self.vocabulary.choose(names).map_err(|error| match error {
            ExpressionError::Unknown { ref name, ref closest, ref known } => {
                let hint = if closest.is_empty() {
                    format!("known: {known}, or all")
                } else {
                    format!("did you mean {}?", closest.join(" or "))
                };
                let field = names
                    .iter()
                    .position(|given| given.trim().starts_with(name.as_str()))
                    .map_or("expression_tags".to_owned(), |index| format!("expression_tags[{index}]"));
                ApiError::invalid(field, format!("is no known expression: '{name}'")).hint(hint)
            }
            ExpressionError::None => ApiError::invalid("expression_tags", "names no expression")
                .hint("name at least one, such as smile_gentle, or all"),
        })
    }
}

impl DesignField {
    fn tag(&self, text: &str) -> Option<String> {
        let value = self.values.get(&keyed(text));
        let value = value.map_or_else(|| plain(text), Clone::clone);
        if adds_nothing(&value) {
            return None;
        }
        // `blue eyes` for an eye colour is already the whole tag; so is what the list itself has put in.
        let noun = self.template.rsplit(' ').next().unwrap_or_default();
        let whole = self.values.contains_key(&keyed(text)) || (noun != "{}" && value.ends_with(noun));
        Some(if whole { value } else { self.template.replace("{}", &value) })
    }
}

/// The texts of a design's field: a text, a number, a list of them; `true` stands for the field's own name.
fn texts(name: &str, value: &Value) -> Result<Vec<String>, ApiError> {
    let refused = |message: String| {
        Err(ApiError::invalid(format!("character_design.{}", shown(name)), message)
            .hint("give a text, a number, true or a list of texts"))
    };
    match value {
        Value::Null | Value::Bool(false) => Ok(Vec::new()),
        Value::Bool(true) => Ok(vec![name.to_owned()]),
        Value::String(text) => Ok(vec![text.trim().to_owned()]),
        Value::Number(number) => Ok(vec![number.to_string()]),
        Value::Array(list) if list.len() > DESIGN_TAGS => {
            refused(format!("has {} entries; {DESIGN_TAGS} is the most", list.len()))
        }
        Value::Array(list) => {
            let mut all = Vec::with_capacity(list.len());
            for entry in list {
                match entry {
                    Value::String(text) => all.push(text.trim().to_owned()),
                    Value::Number(number) => all.push(number.to_string()),
                    _ => return refused("may only list texts".into()),
                }
            }
            Ok(all)
        }
        Value::Object(_) => refused("cannot be an object".into()),
    }
}

fn scene_word(
    field: &'static str,
    words: &BTreeMap<String, String>,
    name: Option<&str>,
) -> Result<String, ApiError> {
    let Some(name) = name else { return Ok(String::new()) };
    let length = name.chars().count();
    if length > WORD_CHARACTERS {
        return Err(ApiError::invalid(
            field,
            format!("has {length} characters; {WORD_CHARACTERS} is the most"),
        ));
    }
    Ok(words.get(&keyed(name)).cloned().unwrap_or_else(|| plain(name)))
}

/// Parts of a prompt in order, without empty ones.
pub(super) fn join(parts: &[&str]) -> String {
    let parts = parts.iter().map(|part| part.trim().trim_matches(',').trim());
    parts.filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ")
}

fn adds_nothing(text: &str) -> bool {
    matches!(keyed(text).as_str(), "" | "auto" | "none")
}

/// As a tag: `young_adult` → `young adult`.
fn plain(text: &str) -> String {
    text.trim().replace('_', " ")
}

/// As a key of the lists: `Semi-Realistic` → `semi_realistic`.
fn keyed(text: &str) -> String {
    text.trim().to_lowercase().replace([' ', '-'], "_")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn character(design: Value) -> Result<String, ApiError> {
        let Value::Object(design) = design else { panic!("not an object") };
        Words::embedded().unwrap().character(&design)
    }

    #[test]
    fn a_design_becomes_tags_in_the_lists_order_and_other_fields_follow() {
        let prompt = character(json!({
            "zodiac": "leo", "hair_color": "blonde", "gender": "female", "eye_color": "blue eyes",
            "age_appearance": "young_adult", "hair_length": "long", "face_shape": "oval", "eye_size": "auto",
            "glasses": true, "hat": false, "extras": ["red shirt", "cat_ears"]
        }));
        assert_eq!(
            prompt.unwrap(),
            "1girl, young adult, oval face, blonde hair, long hair, blue eyes, red shirt, cat ears, glasses, leo"
        );
    }

    #[test]
    fn a_design_without_words_or_with_objects_is_refused_by_field() {
        let field = |design| character(design).unwrap_err().detail().field.clone().unwrap();
        assert_eq!(field(json!({})), "character_design");
        assert_eq!(field(json!({"mood": "none"})), "character_design");
        assert_eq!(field(json!({"hair": {"color": "red"}})), "character_design.hair");
        assert_eq!(field(json!({"tags": ["a", ["b"]]})), "character_design.tags");
        let many: Map<String, Value> = (0..65).map(|n| (format!("f{n}"), json!("x"))).collect();
        assert_eq!(field(Value::Object(many)), "character_design");
    }

    #[test]
    fn an_unknown_style_is_refused_with_the_nearest_name() {
        let words = Words::embedded().unwrap();
        assert_eq!(
            words.style(Some("Semi-Realistic")).unwrap(),
            words.style(Some("semi_realistic")).unwrap()
        );
        assert_eq!(words.style(None).unwrap(), Style::default());
        let error = words.style(Some("anme")).unwrap_err();
        assert_eq!(error.status().as_u16(), 422);
        assert_eq!(error.detail().hint.as_deref(), Some("did you mean anime?"));
    }

    #[test]
    fn auto_adds_nothing_and_unlisted_moods_are_taken_as_they_are() {
        let words = Words::embedded().unwrap();
        assert_eq!(words.mood(Some("auto")).unwrap(), "");
        assert_eq!(words.mood(None).unwrap(), "");
        assert_eq!(words.mood(Some("bitter_sweet")).unwrap(), "bitter sweet");
        assert_eq!(words.camera_angle(Some("low_angle")).unwrap(), "from below, low angle");
        assert_eq!(words.camera_angle(Some(&"x".repeat(201))).unwrap_err().status().as_u16(), 422);
    }

    #[test]
    fn an_unknown_expression_is_named_by_its_place_with_near_names() {
        let words = Words::embedded().unwrap();
        let error = words.expressions(&["sad".into(), "angyr".into()]).unwrap_err();
        assert_eq!(error.detail().field.as_deref(), Some("expression_tags[1]"));
        assert!(error.detail().hint.as_deref().unwrap().contains("angry"));
        let error = words.expressions(&[]).unwrap_err();
        assert_eq!(error.status().as_u16(), 422);
    }

    #[test]
    fn parts_of_a_prompt_are_joined_without_empty_ones() {
        assert_eq!(join(&["a cat, ", "", " sitting", ",night"]), "a cat, sitting, night");
    }
}
