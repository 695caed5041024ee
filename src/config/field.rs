//! One setting as data: where it is, what it is for, and which values it takes. `section!` declares a section's
//! struct, its defaults and its fields in one place, so that files, variables, flags and the printed
//! configuration all know the same settings.

use std::net::IpAddr;
use std::path::PathBuf;

use toml::Value;

use super::{LogFormat, PrecisionConfig, PreviewMethod};

/// Largest number of TOML.
const MOST: i64 = i64::MAX;
/// Longest time that can be set, seconds: a year. Longer ones would overflow clocks.
const LONGEST: f64 = 31_536_000.0;

/// What may stand in a setting.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// `true` or `false`.
    Switch,
    /// A whole number within bounds.
    Integer {
        /// Smallest.
        least: i64,
        /// Largest.
        most: i64,
    },
    /// A number within bounds.
    Number {
        /// Smallest.
        least: f64,
        /// Largest.
        most: f64,
    },
    /// Bytes, plain or with a unit: `8GiB`, `512MB`.
    Bytes {
        /// Fewest.
        least: i64,
    },
    /// Any text but an empty one.
    Text,
    /// A path of a file or folder.
    Path,
    /// One of these names.
    Choice(&'static [&'static str]),
    /// Texts, none of them empty.
    List,
}

/// A type that a setting may have.
pub(super) trait Setting {
    /// What its values look like.
    const KIND: Kind;
    /// Whether it may be left out without a default.
    const OPTIONAL: bool = false;
}

macro_rules! settings {
    ($($type:ty: $kind:expr;)+) => {
        $(impl Setting for $type { const KIND: Kind = $kind; })+
    };
}

settings! {
    bool: Kind::Switch;
    u16: Kind::Integer { least: 0, most: u16::MAX as i64 };
    u32: Kind::Integer { least: 0, most: u32::MAX as i64 };
    u64: Kind::Integer { least: 0, most: MOST };
    usize: Kind::Integer { least: 0, most: MOST };
    f64: Kind::Number { least: 0.0, most: LONGEST };
    IpAddr: Kind::Text;
    String: Kind::Text;
    PathBuf: Kind::Path;
    Vec<String>: Kind::List;
    PrecisionConfig: Kind::Choice(&["auto", "full", "bf16", "f16", "fp8"]);
    LogFormat: Kind::Choice(&["text", "json"]);
    PreviewMethod: Kind::Choice(&["none", "auto", "latent2rgb"]);
}

impl<T: Setting> Setting for Option<T> {
    const KIND: Kind = T::KIND;
    const OPTIONAL: bool = true;
}

/// Checks a text further; the error says what it must be.
pub(super) type Check = fn(&str) -> Result<(), &'static str>;

/// A setting.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// Its section in the file: `queue`.
    pub section: &'static str,
    /// Its key there: `max_tasks`.
    pub name: &'static str,
    /// What it is for; one paragraph.
    pub doc: &'static str,
    /// Which values it takes.
    pub kind: Kind,
    /// Whether it may be left out without a default.
    pub optional: bool,
    /// Whether it must not be shown.
    pub secret: bool,
    /// A flag's name that is shorter than `--section-name`, without the dashes.
    pub short: Option<&'static str>,
    /// What its texts must be beyond that.
    pub(super) check: Option<Check>,
}

impl Field {
    /// A setting of type `T`.
    pub(super) const fn of<T: Setting>(section: &'static str, name: &'static str, doc: &'static str) -> Self {
        let (kind, optional) = (T::KIND, T::OPTIONAL);
        Self { section, name, doc, kind, optional, secret: false, short: None, check: None }
    }

    /// With a short flag.
    pub(super) const fn flag(self, short: &'static str) -> Self {
        Self { short: Some(short), ..self }
    }

    /// With a smallest value.
    pub(super) const fn least(self, least: i64) -> Self {
        let kind = match self.kind {
            Kind::Integer { most, .. } => Kind::Integer { least, most },
            Kind::Bytes { .. } => Kind::Bytes { least },
            Kind::Number { most, .. } => Kind::Number { least: least as f64, most },
            other => other,
        };
        Self { kind, ..self }
    }

    /// With a largest value.
    pub(super) const fn most(self, most: i64) -> Self {
        let kind = match self.kind {
            Kind::Integer { least, .. } => Kind::Integer { least, most },
            other => other,
        };
        Self { kind, ..self }
    }

    /// A part of a whole, 0 to 1.
    pub(super) const fn share(self) -> Self {
        Self { kind: Kind::Number { least: 0.0, most: 1.0 }, ..self }
    }

    /// Seconds within which something must happen, so more than none: a millisecond or longer.
    pub(super) const fn deadline(self) -> Self {
        Self { kind: Kind::Number { least: 0.001, most: LONGEST }, ..self }
    }

    /// Counted in bytes.
    pub(super) const fn bytes(self) -> Self {
        Self { kind: Kind::Bytes { least: 0 }, ..self }
    }

    /// Never shown.
    pub(super) const fn secret(self) -> Self {
        Self { secret: true, ..self }
    }

    /// With a check of its texts.
    pub(super) const fn checked(self, check: Check) -> Self {
        Self { check: Some(check), ..self }
    }

    /// `queue.max_tasks`.
    pub fn path(&self) -> String {
        format!("{}.{}", self.section, self.name)
    }

    /// `queue-max-tasks`.
    pub fn long_flag(&self) -> String {
        format!("{}-{}", self.section, self.name.replace('_', "-"))
    }

    /// The flag as people read it: the short one where there is one, with its dashes.
    pub fn shown_flag(&self) -> String {
        format!("--{}", self.short.map_or_else(|| self.long_flag(), str::to_owned))
    }

    /// `DARKROOM_QUEUE_MAX_TASKS`.
    pub fn variable(&self) -> String {
        format!("DARKROOM_{}_{}", self.section.to_uppercase(), self.name.to_uppercase())
    }

    /// What stands for the value in help.
    pub fn placeholder(&self) -> &'static str {
        match self.kind {
            Kind::Switch => "BOOL",
            Kind::Integer { .. } => "N",
            Kind::Number { .. } if self.name.ends_with("_per_second") => "N",
            Kind::Number { most: 1.0, .. } => "SHARE",
            Kind::Number { .. } => "SECONDS",
            Kind::Bytes { .. } => "BYTES",
            Kind::Text => "TEXT",
            Kind::Path => "PATH",
            Kind::Choice(_) => "NAME",
            Kind::List => "A,B,…",
        }
    }

    /// What may stand here, as the end of a sentence that begins with "must be".
    fn allowed(&self) -> String {
        match self.kind {
            Kind::Switch => "true or false".into(),
            Kind::Integer { least, most: MOST } => format!("a whole number, {least} or more"),
            Kind::Integer { least, most } => format!("a whole number, {least} to {most}"),
            Kind::Number { least, most } => format!("a number, {least} to {most}"),
            Kind::Bytes { least: 0 } => "bytes, such as 8589934592, 8GiB or 512MB".into(),
            Kind::Bytes { least } => format!("bytes, {least} or more, such as 8589934592, 8GiB or 512MB"),
            Kind::Text | Kind::Path => "a text that is not empty".into(),
            Kind::Choice(names) => names.join(" or "),
            Kind::List => "a list of texts, none of them empty".into(),
        }
    }

    /// The value that `texts` stand for, from flags or a variable; lists are separated by commas and may be
    /// repeated, of everything else the last counts. `None` is no value: an empty text where one may be left
    /// out. The error says what is wrong and what is allowed.
    pub fn parse(&self, texts: &[impl AsRef<str>]) -> Result<Option<Value>, String> {
        if self.kind == Kind::List {
            let texts = texts.iter().flat_map(|text| text.as_ref().split(','));
            let parts = texts.map(str::trim).filter(|part| !part.is_empty());
            return self.accept(&Value::Array(parts.map(Value::from).collect())).map(Some);
        }
        let text = texts.last().map(|text| text.as_ref().trim()).unwrap_or_default();
        if text.is_empty() && self.optional {
            return Ok(None);
        }
        let value = match self.kind {
            Kind::Switch => text.parse().map(Value::Boolean).ok(),
            Kind::Integer { .. } => text.parse().map(Value::Integer).ok(),
            Kind::Number { .. } => text.parse().map(Value::Float).ok(),
            _ => Some(Value::from(text)),
        };
        match value {
            Some(value) => self.accept(&value).map(Some),
            None => Err(self.refusal(text)),
        }
    }

    /// The value as the configuration holds it, if it may stand here. The error says what is wrong and what is
    /// allowed.
    pub fn accept(&self, value: &Value) -> Result<Value, String> {
        let fits = match (self.kind, value) {
            (Kind::Switch, Value::Boolean(_)) => true,
            (Kind::Integer { least, most }, Value::Integer(number)) => (least..=most).contains(number),
            (Kind::Number { least, most }, Value::Integer(number)) => {
                let number = *number as f64;
                if (least..=most).contains(&number) {
                    return Ok(Value::Float(number));
                }
                false
            }
            (Kind::Number { least, most }, Value::Float(number)) => (least..=most).contains(number),
            (Kind::Bytes { least }, Value::Integer(bytes)) => *bytes >= least,
            (Kind::Bytes { least }, Value::String(text)) => match super::size::parse_bytes(text) {
                Some(bytes) if bytes >= least => return Ok(Value::Integer(bytes)),
                _ => false,
            },
            (Kind::Choice(names), Value::String(name)) => names.contains(&name.as_str()),
            (Kind::Text | Kind::Path, Value::String(text)) => {
                self.check_text(text)?;
                !text.is_empty()
            }
            (Kind::List, Value::Array(parts)) => {
                for text in parts.iter().filter_map(Value::as_str) {
                    self.check_text(text)?;
                }
                parts.iter().all(|part| part.as_str().is_some_and(|text| !text.is_empty()))
            }
            _ => false,
        };
        if fits { Ok(value.clone()) } else { Err(self.refusal(&value.to_string())) }
    }

    fn check_text(&self, text: &str) -> Result<(), String> {
        match self.check.map(|check| check(text)) {
            Some(Err(must_be)) if self.secret => Err(format!("must be {must_be}")),
            Some(Err(must_be)) => Err(format!("'{}' must be {must_be}", super::mask_password(text))),
            _ => Ok(()),
        }
    }

    fn refusal(&self, found: &str) -> String {
        if self.secret {
            return format!("must be {}", self.allowed());
        }
        // Long values would bury what is wrong with them.
        let shown: String = found.trim_matches('"').chars().filter(|c| !c.is_control()).take(60).collect();
        format!("'{shown}' must be {}", self.allowed())
    }
}

/// A section of the file.
#[derive(Debug, Clone, Copy)]
pub struct Section {
    /// Its name: `queue`.
    pub name: &'static str,
    /// What is in it.
    pub doc: &'static str,
    /// Its settings, in the order of the struct.
    pub fields: &'static [Field],
}

/// Declares a section: `field: Type = default, rules;` each with its documentation. Rules are the builders of
/// [`Field`].
macro_rules! section {
    (
        $(#[doc = $about:literal])+
        $name:ident in $section:literal {
            $(
                $(#[doc = $doc:literal])+
                $field:ident: $type:ty = $default:expr $(, $rule:ident $(($argument:expr))?)*;
            )+
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $($(#[doc = $doc])+ pub $field: $type,)+
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)+ }
            }
        }

        impl $name {
            /// The section and its settings as data.
            pub const SECTION: Section = Section {
                name: $section,
                doc: concat!($($about),+),
                fields: &[$(
                    Field::of::<$type>($section, stringify!($field), concat!($($doc),+))
                        $(.$rule($($argument)?))*,
                )+],
            };
        }
    };
}

pub(super) use section;
