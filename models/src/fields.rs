//! Reading the JSON objects that diffusers and transformers keep beside their weights (`config.json`): typed,
//! bounded fields with the reference's defaults. The network configs are built on it; it knows none of them.

use serde_json::{Map, Value};

/// Why a config cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A field holds something that is not of its kind.
    #[error("config field '{field}' is {found}; {expected} is needed")]
    Value {
        /// The field's name in `config.json`.
        field: &'static str,
        /// What is there, shortened.
        found: String,
        /// What would be understood.
        expected: String,
    },
    /// An option that changes the network in a way that is not implemented.
    #[error("config option '{field}' = {found} is not supported (supported: {supported})")]
    Unsupported {
        /// The field's name in `config.json`.
        field: &'static str,
        /// What is there, shortened.
        found: String,
        /// What is supported.
        supported: String,
    },
    /// Two fields contradict each other.
    #[error("the config contradicts itself: {reason}")]
    Contradiction {
        /// Which fields, and how.
        reason: String,
    },
}

/// A JSON object whose fields are read one at a time. Absent and `null` mean the default, as in the reference.
pub(crate) struct Fields(Map<String, Value>);

impl Fields {
    pub(crate) fn new(object: Map<String, Value>) -> Self {
        Self(object)
    }

    pub(crate) fn get(&self, field: &str) -> Option<&Value> {
        self.0.get(field).filter(|value| !value.is_null())
    }

    /// A whole number within `1..=max`.
    pub(crate) fn size(&self, field: &'static str, default: usize, max: usize) -> Result<usize, ConfigError> {
        self.get(field).map_or(Ok(default), |value| size(field, value, max))
    }

    /// A list of `1..=max_len` sizes.
    pub(crate) fn sizes(
        &self,
        field: &'static str,
        default: &[usize],
        max: usize,
        max_len: usize,
    ) -> Result<Vec<usize>, ConfigError> {
        match self.get(field) {
            None => Ok(default.to_vec()),
            Some(Value::Array(list)) if (1..=max_len).contains(&list.len()) => {
                list.iter().map(|value| size(field, value, max)).collect()
            }
            Some(other) => Err(wrong(field, other, format!("a list of 1 to {max_len} numbers"))),
        }
    }

    /// One size for each of `len` blocks: a list of that length, or one number for all.
    pub(crate) fn per_block(
        &self,
        field: &'static str,
        default: usize,
        max: usize,
        len: usize,
    ) -> Result<Vec<usize>, ConfigError> {
        match self.get(field) {
            None => Ok(vec![default; len]),
            Some(Value::Array(list)) if list.len() == len => {
                list.iter().map(|value| size(field, value, max)).collect()
            }
            Some(value @ Value::Number(_)) => Ok(vec![size(field, value, max)?; len]),
            Some(other) => Err(wrong(field, other, format!("one number, or a list of {len} numbers"))),
        }
    }

    /// A list of `1..=max_len` names.
    pub(crate) fn names(
        &self,
        field: &'static str,
        default: &[&str],
        max_len: usize,
    ) -> Result<Vec<String>, ConfigError> {
        match self.get(field) {
            None => Ok(default.iter().map(ToString::to_string).collect()),
            Some(Value::Array(list)) if (1..=max_len).contains(&list.len()) => list
                .iter()
                .map(|value| value.as_str().map(str::to_owned).ok_or_else(|| wrong(field, value, "a name")))
                .collect(),
            Some(other) => Err(wrong(field, other, format!("a list of 1 to {max_len} names"))),
        }
    }

    /// A finite number above zero.
    pub(crate) fn positive(&self, field: &'static str, default: f64) -> Result<f64, ConfigError> {
        let Some(value) = self.get(field) else { return Ok(default) };
        value
            .as_f64()
            .filter(|number| number.is_finite() && *number > 0.0)
            .ok_or_else(|| wrong(field, value, "a number above 0"))
    }

    pub(crate) fn flag(&self, field: &'static str, default: bool) -> Result<bool, ConfigError> {
        let Some(value) = self.get(field) else { return Ok(default) };
        value.as_bool().ok_or_else(|| wrong(field, value, "true or false"))
    }

    pub(crate) fn text(&self, field: &'static str) -> Result<Option<&str>, ConfigError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| wrong(field, value, "a name"))
    }

    /// Fails unless `field` is absent, `null` or `only` (numbers compare by value).
    pub(crate) fn require(&self, field: &'static str, only: &Value) -> Result<(), ConfigError> {
        match self.get(field) {
            None => Ok(()),
            Some(value) if value == only => Ok(()),
            Some(value) if value.as_f64().is_some() && value.as_f64() == only.as_f64() => Ok(()),
            Some(value) => Err(unsupported(field, value, only.to_string())),
        }
    }

    /// Fails unless `field` is absent or `null`.
    pub(crate) fn require_absent(&self, field: &'static str) -> Result<(), ConfigError> {
        self.require(field, &Value::Null)
    }
}

fn size(field: &'static str, value: &Value, max: usize) -> Result<usize, ConfigError> {
    value
        .as_u64()
        .and_then(|number| usize::try_from(number).ok())
        .filter(|number| (1..=max).contains(number))
        .ok_or_else(|| wrong(field, value, format!("a whole number from 1 to {max}")))
}

pub(crate) fn wrong(field: &'static str, found: &Value, expected: impl Into<String>) -> ConfigError {
    ConfigError::Value { field, found: shortened(found), expected: expected.into() }
}

pub(crate) fn unsupported(field: &'static str, found: &Value, supported: impl Into<String>) -> ConfigError {
    ConfigError::Unsupported { field, found: shortened(found), supported: supported.into() }
}

/// JSON text, cut where an error line would drown in it.
fn shortened(value: &Value) -> String {
    const LONGEST: usize = 80;
    let text = value.to_string();
    if text.chars().count() <= LONGEST {
        return text;
    }
    text.chars().take(LONGEST).chain(['…']).collect()
}
