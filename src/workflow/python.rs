//! What Python makes of JSON values: how it writes them (`str`, `repr`, `json.dumps`) and what it converts them to
//! (`int`, `float`, `bool`), with its words for what it refuses. Clients of ComfyUI see both.

use std::fmt::Write;

use serde_json::Number;

use super::ordered::Ordered;

/// `json.dumps`, all beyond ASCII escaped.
pub fn dumps(value: &Ordered) -> String {
    let mut text = String::new();
    write_json(value, &mut text);
    text
}

/// `str`: texts as they are, the rest as [`repr`].
pub fn str(value: &Ordered) -> String {
    value.as_str().map_or_else(|| repr(value), str::to_owned)
}

/// `repr`: `None`, `True`, `'text'`, `[1, 2.0]`, `{'a': 1}`.
pub fn repr(value: &Ordered) -> String {
    let mut text = String::new();
    write_repr(value, &mut text);
    text
}

/// `repr` of a list of texts.
pub fn repr_list<T: AsRef<str>>(items: &[T]) -> String {
    let mut text = String::from("[");
    for (index, item) in items.iter().enumerate() {
        text.push_str(if index > 0 { ", " } else { "" });
        repr_text(item.as_ref(), &mut text);
    }
    text.push(']');
    text
}

/// `type(value).__name__`.
pub fn type_name(value: &Ordered) -> &'static str {
    match value {
        Ordered::Null => "NoneType",
        Ordered::Bool(_) => "bool",
        Ordered::Number(number) if number.is_f64() => "float",
        Ordered::Number(_) => "int",
        Ordered::String(_) => "str",
        Ordered::Array(_) => "list",
        Ordered::Object(_) => "dict",
    }
}

/// `int(value)`; beyond 128 bits the nearest that there is.
///
/// # Errors
/// Python's message.
pub fn int(value: &Ordered) -> Result<i128, String> {
    match value {
        Ordered::Bool(value) => Ok(i128::from(*value)),
        Ordered::Number(number) => Ok(whole(number)),
        Ordered::String(text) => int_of_text(text)
            .ok_or_else(|| format!("invalid literal for int() with base 10: {}", repr(value))),
        other => Err(format!(
            "int() argument must be a string, a bytes-like object or a real number, not '{}'",
            type_name(other)
        )),
    }
}

/// A number cut to a whole one.
fn whole(number: &Number) -> i128 {
    match (number.as_i64(), number.as_u64(), number.as_f64()) {
        (Some(value), ..) => value.into(),
        (_, Some(value), _) => value.into(),
        (_, _, Some(value)) if value.abs() >= 2f64.powi(63) => beyond_64_bits(value),
        (_, _, Some(value)) => value as i128,
        _ => 0,
    }
}

/// What was most likely written where a floating-point number was read: round numbers with all their zeros, others as
/// exactly as they were kept.
fn beyond_64_bits(value: f64) -> i128 {
    /// Every decimal number of so many digits can be told from the next.
    const SURE_DIGITS: usize = 15;
    let shortest = format!("{:e}", value.abs());
    let digits = shortest.split('e').next().unwrap_or_default().bytes().filter(u8::is_ascii_digit).count();
    let written = if digits <= SURE_DIGITS { value.to_string().parse().ok() } else { None };
    written.unwrap_or(value as i128)
}

/// Decimal digits with an optional sign, single underscores between digits, white space around.
fn int_of_text(text: &str) -> Option<i128> {
    let text = text.trim();
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let digits = without_underscores(digits)?;
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let size = digits.parse().unwrap_or(i128::MAX);
    Some(if negative { -size } else { size })
}

/// `None` where an underscore is not between two digits.
fn without_underscores(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let digit =
        |index: Option<usize>| index.and_then(|index| bytes.get(index)).is_some_and(u8::is_ascii_digit);
    let fits = |(index, byte): (usize, &u8)| {
        *byte != b'_' || (digit(index.checked_sub(1)) && digit(index.checked_add(1)))
    };
    bytes.iter().enumerate().all(fits).then(|| text.replace('_', ""))
}

/// `float(value)`.
///
/// # Errors
/// Python's message.
pub fn float(value: &Ordered) -> Result<f64, String> {
    match value {
        Ordered::Bool(value) => Ok(f64::from(u8::from(*value))),
        Ordered::Number(number) => Ok(number.as_f64().unwrap_or(0.0)),
        Ordered::String(text) => {
            float_of_text(text).ok_or_else(|| format!("could not convert string to float: {}", repr(value)))
        }
        other => {
            Err(format!("float() argument must be a string or a real number, not '{}'", type_name(other)))
        }
    }
}

fn float_of_text(text: &str) -> Option<f64> {
    // Rust reads the same words for infinities and NaN, and neither hexadecimal nor underscores.
    without_underscores(text.trim())?.parse().ok()
}

/// `bool(value)`: whether it is neither empty, zero nor nothing.
pub fn truth(value: &Ordered) -> bool {
    match value {
        Ordered::Null => false,
        Ordered::Bool(value) => *value,
        Ordered::Number(number) => number.as_f64() != Some(0.0),
        Ordered::String(text) => !text.is_empty(),
        Ordered::Array(items) => !items.is_empty(),
        Ordered::Object(members) => !members.is_empty(),
    }
}

/// `repr` of a floating-point number: the shortest digits that read back to it.
pub fn float_repr(value: f64) -> String {
    if !value.is_finite() {
        let sign = if value < 0.0 { "-" } else { "" };
        return if value.is_nan() { "nan".into() } else { format!("{sign}inf") };
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) || value == 0.0 {
        let plain = format!("{value}");
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

fn write_number(number: &Number, text: &mut String) {
    match number.as_f64() {
        Some(value) if number.is_f64() => text.push_str(&float_repr(value)),
        _ => {
            let _ = write!(text, "{number}");
        }
    }
}

fn write_json(value: &Ordered, text: &mut String) {
    match value {
        Ordered::Null => text.push_str("null"),
        Ordered::Bool(value) => text.push_str(if *value { "true" } else { "false" }),
        Ordered::Number(number) => write_number(number, text),
        Ordered::String(content) => json_text(content, text),
        Ordered::Array(items) => {
            text.push('[');
            for (index, item) in items.iter().enumerate() {
                text.push_str(if index > 0 { ", " } else { "" });
                write_json(item, text);
            }
            text.push(']');
        }
        Ordered::Object(members) => {
            text.push('{');
            for (index, (key, item)) in members.iter().enumerate() {
                text.push_str(if index > 0 { ", " } else { "" });
                json_text(key, text);
                text.push_str(": ");
                write_json(item, text);
            }
            text.push('}');
        }
    }
}

fn json_text(content: &str, text: &mut String) {
    text.push('"');
    for c in content.chars() {
        match c {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '\u{8}' => text.push_str("\\b"),
            '\u{c}' => text.push_str("\\f"),
            ' '..='~' => text.push(c),
            _ => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(text, "\\u{unit:04x}");
                }
            }
        }
    }
    text.push('"');
}

fn write_repr(value: &Ordered, text: &mut String) {
    match value {
        Ordered::Null => text.push_str("None"),
        Ordered::Bool(value) => text.push_str(if *value { "True" } else { "False" }),
        Ordered::Number(number) => write_number(number, text),
        Ordered::String(content) => repr_text(content, text),
        Ordered::Array(items) => {
            text.push('[');
            for (index, item) in items.iter().enumerate() {
                text.push_str(if index > 0 { ", " } else { "" });
                write_repr(item, text);
            }
            text.push(']');
        }
        Ordered::Object(members) => {
            text.push('{');
            for (index, (key, item)) in members.iter().enumerate() {
                text.push_str(if index > 0 { ", " } else { "" });
                repr_text(key, text);
                text.push_str(": ");
                write_repr(item, text);
            }
            text.push('}');
        }
    }
}

/// Single quotes, unless only they are inside.
fn repr_text(content: &str, text: &mut String) {
    let quote = if content.contains('\'') && !content.contains('"') { '"' } else { '\'' };
    text.push(quote);
    for c in content.chars() {
        match c {
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            c if c == quote => {
                text.push('\\');
                text.push(c);
            }
            c if c.is_ascii_control() => {
                let _ = write!(text, "\\x{:02x}", u32::from(c));
            }
            c => text.push(c),
        }
    }
    text.push(quote);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Ordered {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn values_are_written_as_python_writes_them() {
        let value = json(r#"{"a": [true, null, "x'y", 1e16, 1e-5, 1.5, 100.0, 0.0001, -0.0]}"#);
        assert_eq!(str(&value), r#"{'a': [True, None, "x'y", 1e+16, 1e-05, 1.5, 100.0, 0.0001, -0.0]}"#);
        assert_eq!(str(&json(r#""it's""#)), "it's");
        assert_eq!(repr(&json(r#""a'b\"c\n\u0001""#)), r#"'a\'b"c\n\x01'"#);
        assert_eq!(float_repr(123_456_789_012_345_680.0), "1.2345678901234568e+17");
        assert_eq!(float_repr(5e-324), "5e-324");
        assert_eq!(float_repr(9_007_199_254_740_993.0), "9007199254740992.0");
    }

    #[test]
    fn whole_numbers_are_read_as_python_reads_them() {
        let good =
            [("\" 1_6 \"", 16), ("-3.7", -3), ("true", 1), ("\"-0012\"", -12), ("-1e30", -(10i128.pow(30)))];
        for (text, expected) in good {
            assert_eq!(int(&json(text)), Ok(expected), "{text}");
        }
        assert_eq!(int(&json("18446744073709551616")), Ok(1 << 64));
        assert_eq!(int(&json(&format!("1{}", "0".repeat(300)))), Ok(i128::MAX));
        assert_eq!(int(&json("18446744073709551615")), Ok(i128::from(u64::MAX)));
        let refused = [
            ("\"abc\"", "invalid literal for int() with base 10: 'abc'"),
            ("\"1__6\"", "invalid literal for int() with base 10: '1__6'"),
            ("\"1.0\"", "invalid literal for int() with base 10: '1.0'"),
            ("\"\"", "invalid literal for int() with base 10: ''"),
            ("null", "int() argument must be a string, a bytes-like object or a real number, not 'NoneType'"),
            ("{}", "int() argument must be a string, a bytes-like object or a real number, not 'dict'"),
        ];
        for (text, message) in refused {
            assert_eq!(int(&json(text)), Err(message.to_owned()));
        }
    }

    #[test]
    fn numbers_are_read_as_python_reads_them() {
        for (text, expected) in
            [("\" 1.5\"", 1.5), ("\"1e-1\"", 0.1), ("\"1_0\"", 10.0), ("\"-inf\"", f64::NEG_INFINITY)]
        {
            assert_eq!(float(&json(text)), Ok(expected), "{text}");
        }
        assert!(float(&json("\"nan\"")).unwrap().is_nan());
        assert_eq!(float(&json("\"x1\"")), Err("could not convert string to float: 'x1'".to_owned()));
        assert_eq!(
            float(&json("null")),
            Err("float() argument must be a string or a real number, not 'NoneType'".to_owned())
        );
    }

    #[test]
    fn truth_is_pythons() {
        for text in ["\"false\"", "1", "[0]", "true", "0.5"] {
            assert!(truth(&json(text)), "{text}");
        }
        for text in ["\"\"", "0", "[]", "{}", "null", "0.0", "false"] {
            assert!(!truth(&json(text)), "{text}");
        }
    }
}
