//! What can be wrong with a configuration, with where it was said.

use std::fmt;
use std::path::PathBuf;

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody said anything.
    Default,
    /// The file.
    File {
        /// Its path.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// An environment variable of this name.
    Variable(String),
    /// A flag, with its dashes.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}, line {line}", path.display()),
            Self::Variable(name) | Self::Flag(name) => f.write_str(name),
        }
    }
}

/// A configuration that cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {reason}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The file is no TOML.
    #[error("{}{}: {message}", path.display(), line.map(|line| format!(", line {line}")).unwrap_or_default())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1, where it is known.
        line: Option<usize>,
        /// What the parser says.
        message: String,
    },
    /// The file has a section or a key that does not exist.
    #[error("{origin}: there is no {what} '{name}'{hint}")]
    Unknown {
        /// Where.
        origin: Origin,
        /// `section` or `setting`.
        what: &'static str,
        /// What it is called there.
        name: String,
        /// What may have been meant: `; …`, or empty.
        hint: String,
    },
    /// A value cannot stand where it stands.
    #[error("{origin}: {setting}: {message}")]
    Value {
        /// Where it was said.
        origin: Origin,
        /// `section.name`.
        setting: String,
        /// What is wrong, and what is allowed.
        message: String,
    },
}
