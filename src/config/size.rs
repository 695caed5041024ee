//! Sizes as people write them: `8GiB`, `512MB`, `1.5 GiB`, plain bytes.

/// Units by name, the longest names first so that `GiB` is not read as `B`.
const UNITS: [(&str, u64); 13] = [
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
    ("kb", 1000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("k", 1 << 10),
    ("m", 1 << 20),
    ("g", 1 << 30),
    ("t", 1 << 40),
    ("b", 1),
];

/// The bytes that a text stands for; `None` if it is no size, negative, or more than TOML can hold.
pub(crate) fn parse_bytes(text: &str) -> Option<i64> {
    let text = text.trim().to_ascii_lowercase();
    let unit = UNITS.iter().find_map(|(name, bytes)| Some((text.strip_suffix(name)?, *bytes)));
    let (number, unit) = unit.unwrap_or((&text, 1));
    let number = number.trim_end();
    if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return None;
    }
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(unit).and_then(|bytes| i64::try_from(bytes).ok());
    }
    let bytes = number.parse::<f64>().ok()? * unit as f64;
    // A fraction of a byte is a mistake, and beyond 2^53 a fraction cannot be meant exactly.
    (bytes.fract() == 0.0 && bytes < 9_007_199_254_740_992.0).then_some(bytes as i64)
}

/// A size in the largest binary unit that gives a whole number; `None` below 1 KiB or where there is none.
pub(super) fn in_units(bytes: i64) -> Option<String> {
    let units = [("TiB", 1_i64 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    let (name, unit) = units.into_iter().find(|(_, unit)| bytes >= *unit && bytes % unit == 0)?;
    Some(format!("{} {name}", bytes / unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("0", 0),
            ("123", 123),
            ("8GiB", 8 << 30),
            ("8 gib", 8 << 30),
            ("512MB", 512_000_000),
            ("1.5GiB", 3 << 29),
            ("4g", 4 << 30),
            ("7b", 7),
        ] {
            assert_eq!(parse_bytes(text), Some(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_no_size() {
        for text in
            ["", "GiB", "-1", "-1GiB", "1.2.3GiB", "1e3", "0.3B", "nan", "inf", "8 potatoes", "99999999TiB"]
        {
            assert_eq!(parse_bytes(text), None, "{text}");
        }
    }

    #[test]
    fn a_size_is_shown_in_its_largest_whole_unit() {
        assert_eq!(in_units(32 << 20).as_deref(), Some("32 MiB"));
        assert_eq!(in_units(1000), None);
    }
}
