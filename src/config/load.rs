//! Brings a configuration together: flags before the environment, before the file, before the defaults. Whatever
//! is said is checked against the declared fields where it was said, so that errors can name the place.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Table;
use toml::de::DeTable;

use super::{Config, ConfigError, Field, Origin};

/// Largest configuration file, bytes; ones by people are far smaller.
const MAX_FILE: u64 = 1 << 20;
/// What the names of all variables begin with.
const PREFIX: &str = "DARKROOM_";
/// The variable that names the file where no flag does.
const FILE_VARIABLE: &str = "DARKROOM_CONFIG";

/// Where a configuration comes from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// `--config`; without it, the variable `DARKROOM_CONFIG`; without that, no file is read.
    pub file: Option<PathBuf>,
    /// Environment variables that begin with `DARKROOM_`. Empty ones count as not set.
    pub variables: BTreeMap<String, OsString>,
    /// What each flag that was given says, in order.
    pub flags: Vec<(&'static Field, Vec<String>)>,
}

/// A configuration, and where its values came from.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// The configuration; valid.
    pub config: Config,
    /// Where each setting that is not at its default was said, by `section.name`.
    pub origins: BTreeMap<String, Origin>,
    /// Variables that look like settings and are none.
    pub unknown_variables: Vec<String>,
}

/// The process's environment variables that begin with `DARKROOM_`.
pub fn darkroom_variables() -> BTreeMap<String, OsString> {
    let named = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
    named.filter(|(name, _)| name.starts_with(PREFIX)).collect()
}

impl Sources {
    /// Reads, merges and checks them all.
    pub fn load(&self) -> Result<Loaded, ConfigError> {
        let mut merged = Merged { table: defaults()?, origins: BTreeMap::new() };
        let variables = self.variables.iter().filter(|(_, value)| !value.is_empty());
        let variables: BTreeMap<&str, &OsString> =
            variables.map(|(name, value)| (name.as_str(), value)).collect();

        let named = variables.get(FILE_VARIABLE).map(PathBuf::from);
        if let Some(path) = self.file.clone().or(named) {
            merged.file(&path, &read(&path)?)?;
        }
        let mut unknown =
            variables.keys().copied().filter(|name| is_like_a_setting(name)).collect::<Vec<_>>();
        for field in Config::fields() {
            let name = field.variable();
            unknown.retain(|unknown| *unknown != name);
            if let Some(value) = variables.get(name.as_str()) {
                let text = value.to_str().unwrap_or("\u{fffd}");
                merged.texts(field, &[text], Origin::Variable(name))?;
            }
        }
        for (field, texts) in &self.flags {
            merged.texts(field, texts, Origin::Flag(field.shown_flag()))?;
        }

        let Merged { table, origins } = merged;
        let config = Config::deserialize(table).map_err(|e| not_a_config(&e.message()))?;
        config.check_together(&origins)?;
        let unknown_variables = unknown.into_iter().map(str::to_owned).collect();
        Ok(Loaded { config, origins, unknown_variables })
    }
}

/// A configuration on its way.
struct Merged {
    table: Table,
    origins: BTreeMap<String, Origin>,
}

impl Merged {
    /// Adds what `text`, the file's content, says.
    fn file(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        let line_of = |at: usize| text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1;
        let syntax = |error: toml::de::Error| ConfigError::Syntax {
            path: path.to_owned(),
            line: error.span().map(|span| line_of(span.start)),
            message: error.message().to_owned(),
        };
        // Once for the places, once for the values.
        let places = DeTable::parse(text).map_err(syntax)?;
        let values: Table = toml::from_str(text).map_err(syntax)?;
        for (section, place) in places.get_ref() {
            let origin = |at: usize| Origin::File { path: path.to_owned(), line: line_of(at) };
            let name = section.get_ref().as_ref();
            if !Config::SECTIONS.iter().any(|known| known.name == name) {
                return Err(unknown_section(name, origin(section.span().start)));
            }
            let (Some(keys), Some(values)) =
                (place.get_ref().as_table(), values.get(name).and_then(|v| v.as_table()))
            else {
                let message = format!("must be a section: [{name}]");
                let origin = origin(section.span().start);
                return Err(ConfigError::Value { origin, setting: name.to_owned(), message });
            };
            for key in keys.keys() {
                let origin = origin(key.span().start);
                let key = key.get_ref().as_ref();
                let field = Config::fields().find(|field| field.section == name && field.name == key);
                let field = field.ok_or_else(|| unknown_setting(name, key, origin.clone()))?;
                let Some(value) = values.get(key) else { continue };
                match field.accept(value) {
                    Ok(value) => self.set(field, Some(value), origin),
                    Err(message) => {
                        return Err(ConfigError::Value { origin, setting: field.path(), message });
                    }
                }
            }
        }
        Ok(())
    }

    /// Adds what a flag or a variable says.
    fn texts(&mut self, field: &Field, texts: &[impl AsRef<str>], origin: Origin) -> Result<(), ConfigError> {
        match field.parse(texts) {
            Ok(value) => self.set(field, value, origin),
            Err(message) => return Err(ConfigError::Value { origin, setting: field.path(), message }),
        }
        Ok(())
    }

    fn set(&mut self, field: &Field, value: Option<toml::Value>, origin: Origin) {
        self.origins.insert(field.path(), origin);
        let Some(section) = self.table.get_mut(field.section).and_then(toml::Value::as_table_mut) else {
            return;
        };
        match value {
            Some(value) => section.insert(field.name.to_owned(), value),
            None => section.remove(field.name),
        };
    }
}

impl Config {
    /// Checks every value against its bounds, and the values against each other; for configurations that were
    /// not loaded but made.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let table = Table::try_from(self).map_err(|e| not_a_config(&e))?;
        for field in Self::fields() {
            let value = table.get(field.section).and_then(|section| section.get(field.name));
            if let Some(Err(message)) = value.map(|value| field.accept(value)) {
                return Err(ConfigError::Value { origin: Origin::Default, setting: field.path(), message });
            }
        }
        self.check_together(&BTreeMap::new())
    }

    /// Checks what one value says about another.
    fn check_together(&self, origins: &BTreeMap<String, Origin>) -> Result<(), ConfigError> {
        let refuse = |setting: &str, message: &str| {
            let origin = origins.get(setting).cloned().unwrap_or(Origin::Default);
            Err(ConfigError::Value { origin, setting: setting.to_owned(), message: message.to_owned() })
        };
        match (&self.server.tls_cert, &self.server.tls_key) {
            (Some(_), None) => refuse("server.tls_cert", "needs server.tls_key as well (--tls-key)"),
            (None, Some(_)) => refuse("server.tls_key", "needs server.tls_cert as well (--tls-cert)"),
            _ => Ok(()),
        }?;
        if self.engine.devices.is_empty() {
            return refuse("engine.devices", "must name a device: auto, cpu or cuda:0");
        }
        if self.speed.guidance_start > self.speed.guidance_end {
            return refuse("speed.guidance_start", "must not be above speed.guidance_end");
        }
        Ok(())
    }
}

fn defaults() -> Result<Table, ConfigError> {
    Table::try_from(Config::default()).map_err(|e| not_a_config(&e))
}

/// What serde refuses although every field took its value.
fn not_a_config(message: &impl ToString) -> ConfigError {
    let setting = "configuration".to_owned();
    ConfigError::Value { origin: Origin::Default, setting, message: message.to_string() }
}

fn read(path: &Path) -> Result<String, ConfigError> {
    let unreadable = |reason: String| ConfigError::Unreadable { path: path.to_owned(), reason };
    let file = std::fs::File::open(path).map_err(|e| unreadable(e.to_string()))?;
    let mut text = String::new();
    file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(|e| unreadable(e.to_string()))?;
    if text.len() as u64 > MAX_FILE {
        return Err(unreadable(format!("larger than {MAX_FILE} bytes")));
    }
    Ok(text)
}

/// `DARKROOM_QUEUE_…`: in a section, so meant as a setting. Others may be anyone's.
fn is_like_a_setting(name: &str) -> bool {
    let name = name.strip_prefix(PREFIX).unwrap_or_default();
    let section = name.split('_').next().unwrap_or_default().to_lowercase();
    Config::SECTIONS.iter().any(|known| known.name == section)
}

fn unknown_section(name: &str, origin: Origin) -> ConfigError {
    let hint = match Config::fields().find(|field| field.name == name) {
        Some(field) => format!("; '{name}' is a setting of [{}]", field.section),
        None => {
            let names: Vec<String> =
                Config::SECTIONS.iter().map(|known| format!("[{}]", known.name)).collect();
            format!("; there are {}", names.join(", "))
        }
    };
    ConfigError::Unknown { origin, what: "section", name: shown(name), hint }
}

fn unknown_setting(section: &str, name: &str, origin: Origin) -> ConfigError {
    let elsewhere = Config::fields().find(|field| field.name == name);
    let near = Config::fields().filter(|field| field.section == section);
    let near = near.max_by(|a, b| likeness(a.name, name).total_cmp(&likeness(b.name, name)));
    let hint = match (elsewhere, near) {
        (Some(field), _) => format!("; it belongs to [{}]", field.section),
        (None, Some(field)) if likeness(field.name, name) > 0.8 => format!("; did you mean {}?", field.name),
        _ => "; `darkroom config --defaults` lists all".to_owned(),
    };
    ConfigError::Unknown { origin, what: "setting", name: shown(&format!("{section}.{name}")), hint }
}

fn likeness(a: &str, b: &str) -> f64 {
    strsim::jaro_winkler(a, b)
}

/// A name from a file, fit for a line of an error.
fn shown(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(80).collect()
}

#[cfg(test)]
mod tests;
