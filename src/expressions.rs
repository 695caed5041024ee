//! The expressions that packs know, and what the embedded model understands: read from `assets/tiny-sdxl.tags.json`
//! and `assets/expressions.toml`, which are compiled in. The tags are common ones, so other models trained on tags draw
//! them too.

use serde::Deserialize;

const TAGS: &str = include_str!("../assets/tiny-sdxl.tags.json");
const MORE: &str = include_str!("../assets/expressions.toml");

/// Why there is no vocabulary.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VocabularyError {
    /// The file of the embedded model.
    #[error("tiny-sdxl.tags.json: {0}")]
    Tags(#[from] serde_json::Error),
    /// The file of further expressions.
    #[error("expressions.toml: {0}")]
    More(#[from] Box<toml::de::Error>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MoreExpressions {
    expression: Vec<Expression>,
}

/// What the embedded model understands and how it draws best.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Vocabulary {
    /// The model's name.
    pub model: String,
    /// Expressions that it draws, in the order a pack shows them.
    pub expressions: Vec<Expression>,
    /// Further ones, for models that know more.
    #[serde(skip)]
    pub more: Vec<Expression>,
    /// Sampling that suits the model.
    pub sampler: Sampling,
    /// A negative prompt that suits the model.
    pub negative_prompt: String,
    /// Sizes that the model draws well.
    pub sizes: Sizes,
}

/// One expression.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Expression {
    /// Name on the command line and in files: `smile_gentle`.
    pub name: String,
    /// What a person calls it: `Gentle smile`.
    pub label: String,
    /// What is added to the character's prompt.
    pub tags: String,
    /// Other words for it.
    #[serde(default)]
    pub synonyms: Vec<String>,
}

/// Sampling that suits a model.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Sampling {
    /// Sampler, ComfyUI's name.
    pub name: String,
    /// Scheduler, ComfyUI's name.
    pub scheduler: String,
    /// Steps.
    pub steps: usize,
    /// Classifier-free guidance scale.
    pub cfg: f64,
}

/// Sizes that a model draws well, `[width, height]` in pixels.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Sizes {
    /// The size it was trained at.
    pub trained: [usize; 2],
    /// Sizes that work as well.
    pub good: Vec<[usize; 2]>,
    /// What to tell a person who asks for another size.
    pub hint: String,
}

/// Why expressions could not be chosen.
#[derive(Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ExpressionError {
    /// No expression of that name.
    #[error("no expression is called '{name}'{}; known: {known}, or all", meant(.closest))]
    Unknown {
        /// What was asked for.
        name: String,
        /// The nearest known names.
        closest: Vec<String>,
        /// All names.
        known: String,
    },
    /// An empty list.
    #[error("no expression is named; write names separated by commas, or all")]
    None,
}

fn meant(closest: &[String]) -> String {
    if closest.is_empty() { String::new() } else { format!(" (did you mean {}?)", closest.join(" or ")) }
}

impl Vocabulary {
    /// The vocabulary that is compiled in.
    pub fn embedded() -> Result<Self, VocabularyError> {
        let more: MoreExpressions = toml::from_str(MORE).map_err(Box::new)?;
        Ok(Self { more: more.expression, ..serde_json::from_str(TAGS)? })
    }

    /// Every expression that packs know, those of the embedded model first.
    pub fn every(&self) -> impl Iterator<Item = &Expression> {
        self.expressions.iter().chain(&self.more)
    }

    /// The expressions called `names`, in that order and each once; `all` stands for those of the embedded model. A synonym is as
    /// good as a name; case, spaces, dashes and underscores do not matter.
    pub fn choose(&self, names: &[String]) -> Result<Vec<&Expression>, ExpressionError> {
        let mut chosen: Vec<&Expression> = Vec::new();
        for name in names.iter().map(|name| name.trim()).filter(|name| !name.is_empty()) {
            let wanted = plain(name);
            if wanted == "all" {
                chosen.extend(&self.expressions);
            } else {
                chosen.push(self.find(&wanted).ok_or_else(|| self.unknown(name, &wanted))?);
            }
        }
        let mut once: Vec<&Expression> = Vec::with_capacity(chosen.len());
        for expression in chosen {
            if !once.iter().any(|known| known.name == expression.name) {
                once.push(expression);
            }
        }
        if once.is_empty() { Err(ExpressionError::None) } else { Ok(once) }
    }

    fn find(&self, wanted: &str) -> Option<&Expression> {
        let by_name = self.every().find(|expression| plain(&expression.name) == wanted);
        by_name.or_else(|| {
            self.every().find(|expression| expression.synonyms.iter().any(|s| plain(s) == wanted))
        })
    }

    fn unknown(&self, name: &str, wanted: &str) -> ExpressionError {
        let mut scored: Vec<(f64, &str)> = self
            .every()
            .map(|expression| {
                let words = std::iter::once(&expression.name).chain(&expression.synonyms);
                let score = words.map(|word| strsim::jaro_winkler(wanted, &plain(word))).fold(0.0, f64::max);
                (score, expression.name.as_str())
            })
            .filter(|(score, _)| *score > 0.8)
            .collect();
        scored.sort_by(|a, b| b.0.total_cmp(&a.0));
        let names: Vec<&str> = self.every().map(|expression| expression.name.as_str()).collect();
        ExpressionError::Unknown {
            name: name.chars().take(80).collect(),
            closest: scored.into_iter().take(2).map(|(_, name)| name.to_owned()).collect(),
            known: names.join(", "),
        }
    }
}

fn plain(name: &str) -> String {
    name.trim().to_lowercase().replace([' ', '-'], "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(names: &[&str]) -> Result<Vec<String>, ExpressionError> {
        let vocabulary = Vocabulary::embedded().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        Ok(vocabulary.choose(&names)?.into_iter().map(|expression| expression.name.clone()).collect())
    }

    #[test]
    fn all_is_a_pack_of_at_least_twelve_each_once() {
        let all = choose(&["all"]).unwrap();
        assert!(all.len() >= 12, "{all:?}");
        assert_eq!(choose(&["angry", "all"]).unwrap().len(), all.len());
        assert_eq!(choose(&["angry", "all"]).unwrap()[0], "angry");
    }

    #[test]
    fn names_labels_and_synonyms_are_found_however_they_are_spelt() {
        assert_eq!(choose(&["Smile-Gentle", " ANGRY "]).unwrap(), ["smile_gentle", "angry"]);
        assert_eq!(choose(&["happy", "one eye closed"]).unwrap(), ["smile_gentle", "wink"]);
    }

    #[test]
    fn an_unknown_name_suggests_close_ones_and_lists_all() {
        let error = choose(&["angyr"]).unwrap_err().to_string();
        assert!(error.contains("did you mean angry"), "{error}");
        assert!(error.contains("sleepy"), "{error}");
        let error = choose(&["zzzz"]).unwrap_err().to_string();
        assert!(!error.contains("did you mean"), "{error}");
    }

    #[test]
    fn an_empty_list_is_an_error() {
        assert_eq!(choose(&["", " "]), Err(ExpressionError::None));
    }

    #[test]
    fn no_word_means_two_expressions_and_a_full_pack_of_24_can_be_named() {
        let vocabulary = Vocabulary::embedded().unwrap();
        let mut words: Vec<String> = vocabulary
            .every()
            .flat_map(|expression| std::iter::once(&expression.name).chain(&expression.synonyms))
            .map(|word| plain(word))
            .collect();
        words.sort();
        words.dedup();
        // A name may be among its own synonyms.
        let own: usize = vocabulary
            .every()
            .map(|e| {
                let mut words: Vec<String> =
                    std::iter::once(&e.name).chain(&e.synonyms).map(|w| plain(w)).collect();
                words.sort();
                words.dedup();
                words.len()
            })
            .sum();
        assert_eq!(words.len(), own);
        let names: Vec<String> = vocabulary.every().map(|expression| expression.name.clone()).collect();
        assert!(names.len() >= 24, "{}", names.len());
        assert_eq!(vocabulary.choose(&names).unwrap().len(), names.len());
    }

    #[test]
    fn every_expression_has_a_name_fit_for_a_file_and_tags() {
        let vocabulary = Vocabulary::embedded().unwrap();
        for expression in vocabulary.every() {
            let fit = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            assert!(!expression.name.is_empty() && expression.name.chars().all(fit), "{}", expression.name);
            assert!(!expression.tags.is_empty() && !expression.label.is_empty());
        }
    }
}
