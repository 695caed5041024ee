//! Names of tasks, pictures, uploads and keys. All come from requests, so each is checked before it is one; none
//! can be a path.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::TaskKind;

/// A text that is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a {what} id")]
pub struct IdError {
    /// What it should have named.
    pub what: &'static str,
}

/// Names a task: its kind's prefix and a time-ordered UUID without dashes (`expr_0192…`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TaskId(String);

impl TaskId {
    /// A new one.
    pub fn new(kind: TaskKind) -> Self {
        Self(format!("{}_{}", kind.prefix(), Uuid::now_v7().simple()))
    }

    /// The id of this task's picture number `index`: the same each time, so that a picture drawn again after a
    /// crash takes the first one's place.
    pub fn image(&self, index: usize) -> ImageId {
        let digest = Sha256::digest(format!("{}/{index}", self.0).as_bytes());
        ImageId(hex::encode(&digest[..16]))
    }
}

/// Names a stored picture: 32 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageId(String);

/// Names bytes that came with a request (a source picture, a mask): their SHA-256, 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BlobId(String);

impl BlobId {
    /// The name of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(hex::encode(Sha256::digest(bytes)))
    }
}

/// Names an API key; not the secret itself. 16 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ApiKeyId(String);

impl ApiKeyId {
    /// A new one.
    pub fn random() -> Self {
        Self(Uuid::new_v4().simple().to_string()[..16].to_owned())
    }
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_task_id(text: &str) -> bool {
    text.rsplit_once('_').is_some_and(|(prefix, rest)| {
        is_hex(rest, 32)
            && (1..=32).contains(&prefix.len())
            && prefix.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
    })
}

macro_rules! checked_text {
    ($name:ident, $what:literal, $valid:expr) => {
        impl $name {
            /// As text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                let valid: fn(&str) -> bool = $valid;
                if valid(text) { Ok(Self(text.to_owned())) } else { Err(IdError { what: $what }) }
            }
        }
        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

checked_text!(TaskId, "task", is_task_id);
checked_text!(ImageId, "picture", |text| is_hex(text, 32));
checked_text!(BlobId, "upload", |text| is_hex(text, 64));
checked_text!(ApiKeyId, "key", |text| is_hex(text, 16));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_and_nothing_else_is_one() {
        let id = TaskId::new(TaskKind::Expressions);
        assert!(id.as_str().starts_with("expr_"), "{id}");
        assert_eq!(id.as_str().parse(), Ok(id.clone()));
        assert_eq!(id.image(3).as_str().parse(), Ok(id.image(3)));
        for hostile in
            ["", "_", "expr_", "../../etc/passwd", "expr_../0", "EXPR_00000000000000000000000000000000"]
        {
            assert!(hostile.parse::<TaskId>().is_err(), "{hostile}");
            assert!(hostile.parse::<ImageId>().is_err(), "{hostile}");
        }
    }

    #[test]
    fn a_tasks_pictures_have_names_of_their_own_that_stay() {
        let (one, other) = (TaskId::new(TaskKind::Images), TaskId::new(TaskKind::Images));
        assert_eq!(one.image(0), one.image(0));
        assert_ne!(one.image(0), one.image(1));
        assert_ne!(one.image(0), other.image(0));
    }
}
