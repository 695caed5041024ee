//! Python's `float()` on text, which decides what is a weight: `(a: 1_0)` has one, `(a:b)` has none.
//!
//! Reference: `PyFloat_FromString`, `_PyUnicode_TransformDecimalAndSpaceToASCII` and
//! `_Py_string_to_number_with_underscores` in CPython 3.

/// The number that Python reads, or none where `float()` raises `ValueError`.
pub(super) fn python_float(text: &str) -> Option<f64> {
    let ascii =
        if text.is_ascii() { text.to_owned() } else { text.chars().map(to_ascii).collect::<Option<_>>()? };
    let number = ascii.trim_matches([' ', '\t', '\n', '\x0b', '\x0c', '\r']);
    let number = without_underscores(number)?;
    let unsigned = number.strip_prefix(['+', '-']).unwrap_or(&number);
    let word = ["inf", "infinity", "nan"].iter().any(|word| unsigned.eq_ignore_ascii_case(word));
    let digits = unsigned.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-'));
    if word || digits { number.parse().ok() } else { None }
}

/// White space counts as a space and a decimal digit of any script as the ASCII one, but only beyond ASCII.
fn to_ascii(c: char) -> Option<char> {
    if c.is_ascii() {
        return Some(c);
    }
    if c.is_whitespace() {
        return Some(' ');
    }
    let zero = DIGIT_ZEROS[..DIGIT_ZEROS.partition_point(|&zero| zero <= c)].last()?;
    char::from_digit(c as u32 - *zero as u32, 10)
}

/// An underscore is allowed between two digits only.
fn without_underscores(number: &str) -> Option<String> {
    let bytes = number.as_bytes();
    let digit = |at: Option<usize>| at.and_then(|at| bytes.get(at)).is_some_and(u8::is_ascii_digit);
    let mut underscores = bytes.iter().enumerate().filter(|&(_, &byte)| byte == b'_');
    underscores
        .all(|(at, _)| digit(at.checked_sub(1)) && digit(Some(at + 1)))
        .then(|| number.replace('_', ""))
}

/// Where the decimal digits of each script begin beyond ASCII (general category Nd, Unicode 15); each run has ten.
#[rustfmt::skip]
const DIGIT_ZEROS: [char; 67] = [
    '\u{660}', '\u{6F0}', '\u{7C0}', '\u{966}', '\u{9E6}', '\u{A66}', '\u{AE6}', '\u{B66}',
    '\u{BE6}', '\u{C66}', '\u{CE6}', '\u{D66}', '\u{DE6}', '\u{E50}', '\u{ED0}', '\u{F20}',
    '\u{1040}', '\u{1090}', '\u{17E0}', '\u{1810}', '\u{1946}', '\u{19D0}', '\u{1A80}', '\u{1A90}',
    '\u{1B50}', '\u{1BB0}', '\u{1C40}', '\u{1C50}', '\u{A620}', '\u{A8D0}', '\u{A900}', '\u{A9D0}',
    '\u{A9F0}', '\u{AA50}', '\u{ABF0}', '\u{FF10}', '\u{104A0}', '\u{10D30}', '\u{11066}', '\u{110F0}',
    '\u{11136}', '\u{111D0}', '\u{112F0}', '\u{11450}', '\u{114D0}', '\u{11650}', '\u{116C0}', '\u{11730}',
    '\u{118E0}', '\u{11950}', '\u{11C50}', '\u{11D50}', '\u{11DA0}', '\u{11F50}', '\u{16A60}', '\u{16AC0}',
    '\u{16B50}', '\u{1D7CE}', '\u{1D7D8}', '\u{1D7E2}', '\u{1D7EC}', '\u{1D7F6}', '\u{1E140}', '\u{1E2F0}',
    '\u{1E4F0}', '\u{1E950}', '\u{1FBF0}',
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_is_read_as_python_reads_it() {
        let golden: Vec<(String, Option<String>)> =
            serde_json::from_str(include_str!("../../tests/data/python_floats.json")).unwrap();
        assert!(golden.len() > 80);
        for (text, python) in golden {
            let expected = python.map(|value| value.parse::<f64>().unwrap());
            let found = python_float(&text);
            let same = match (found, expected) {
                (Some(found), Some(expected)) => {
                    found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan()
                }
                (found, expected) => found == expected,
            };
            assert!(same, "{text:?}: {found:?} instead of {expected:?}");
        }
    }

    #[test]
    fn the_scripts_digits_are_in_order_and_do_not_overlap() {
        assert!(DIGIT_ZEROS.windows(2).all(|pair| pair[1] as u32 - pair[0] as u32 >= 10));
    }
}
