//! A configuration as a file that people can read and `load` can read again: every setting with what it is for,
//! secrets left out.

use std::collections::BTreeMap;

use toml::{Table, Value};
use url::Url;

use super::{Config, ConfigError, Field, Kind, Origin, size};

/// What stands in place of a password.
const MASK: &str = "***";

impl Config {
    /// The configuration as TOML. `origins` says which values to mark with where they came from.
    pub fn to_toml(&self, origins: &BTreeMap<String, Origin>) -> Result<String, ConfigError> {
        let table = Table::try_from(self).map_err(|e| ConfigError::Value {
            origin: Origin::Default,
            setting: "configuration".to_owned(),
            message: e.to_string(),
        })?;
        let mut text = String::new();
        for section in &Self::SECTIONS {
            if !text.is_empty() {
                text.push('\n');
            }
            text.push_str(&format!("#{}\n[{}]\n", section.doc, section.name));
            for field in section.fields {
                let value = table.get(section.name).and_then(|section| section.get(field.name));
                text.push_str(&format!("#{}\n{}", field.doc, line(field, value)));
                if let Some(origin) = origins.get(&field.path()) {
                    text.push_str(&format!("  # from {}", origin.to_string().replace(['\n', '\r'], " ")));
                }
                text.push('\n');
            }
        }
        Ok(text)
    }
}

/// `name = value`; a comment where there is no value or it must not be shown.
fn line(field: &Field, value: Option<&Value>) -> String {
    let name = field.name;
    let Some(value) = value else { return format!("# {name} is not set") };
    if field.secret {
        return format!("# {name} is set, and not shown");
    }
    match value {
        Value::String(text) if mask_password(text) != *text => {
            format!("# {name} has a password: {}", mask_password(text))
        }
        Value::Integer(bytes) if matches!(field.kind, Kind::Bytes { .. }) => {
            let units = size::in_units(*bytes).map(|size| format!("  # {size}"));
            format!("{name} = {bytes}{}", units.unwrap_or_default())
        }
        _ => format!("{name} = {value}"),
    }
}

/// An address without its password: that of the user and those among the parameters. Other texts as they are.
pub fn mask_password(text: &str) -> String {
    let parsed = Url::parse(text).ok();
    // A password with a / or # in it makes the address another one, or none; then all that may be one goes.
    let odd = |url: &Url| url.path().contains('@') || url.fragment().is_some();
    let Some(mut url) = parsed.filter(|url| !odd(url)) else { return mask_user(text) };
    let secret =
        |name: &str| ["pass", "secret", "token"].iter().any(|part| name.to_lowercase().contains(part));
    let parameters = url.query_pairs().any(|(name, _)| secret(&name));
    if url.password().is_none() && !parameters {
        return text.to_owned();
    }
    if url.password().is_some() && url.set_password(Some(MASK)).is_err() {
        return mask_user(text);
    }
    if parameters {
        let pairs: Vec<(String, String)> = url.query_pairs().into_owned().collect();
        let masked = pairs.iter().map(|(name, value)| (name, if secret(name) { MASK } else { value }));
        url.query_pairs_mut().clear().extend_pairs(masked);
    }
    url.into()
}

/// A text without what stands between `://` and the last `@`.
fn mask_user(text: &str) -> String {
    match text.split_once("://").map(|(scheme, rest)| (scheme, rest.rsplit_once('@'))) {
        Some((scheme, Some((_, host)))) => format!("{scheme}://{MASK}@{host}"),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_masked_wherever_an_address_has_them() {
        let masked = mask_password("postgres://ann:hunter2@db/darkroom");
        assert_eq!(masked, "postgres://ann:***@db/darkroom");
        for address in [
            "postgres://db/darkroom?user=ann&password=hunter2",
            "postgres://ann:12/hunter2@db/darkroom",
            "postgres://ann:hunter2#3@db/darkroom",
            "postgres://ann:a b@hunter2@db/darkroom",
        ] {
            assert!(!mask_password(address).contains("hunter2"), "{}", mask_password(address));
        }
        for plain in ["sqlite:tasks.db", "postgres://ann@db/darkroom", "no address: at all"] {
            assert_eq!(mask_password(plain), plain);
        }
    }
}
