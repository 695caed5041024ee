//! Python's `re.subn`, for nodes that replace by patterns: which matches count, and what `\1`, `\g<name>` and `\n` in
//! a replacement mean. Patterns come from prompts, so their work and what comes out are bounded.

use fancy_regex::{Captures, Regex, RegexBuilder};

/// Steps that a pattern may go back before it is given up.
const BACKTRACKS: usize = 1_000_000;
/// Bytes of a compiled pattern.
const COMPILED: usize = 4 << 20;
/// Bytes of a pattern.
const PATTERN: usize = 16 << 10;
/// Bytes of what comes out.
const RESULT: usize = 16 << 20;

/// A piece of a replacement.
enum Piece {
    Text(String),
    Group(usize),
    Name(String),
}

/// `text` with each match of `pattern` replaced, and how many there were.
///
/// # Errors
/// When the pattern or the replacement is malformed, takes too long, or too much comes out; in words.
pub(super) fn substitute(pattern: &str, replacement: &str, text: &str) -> Result<(String, usize), String> {
    if pattern.len() > PATTERN {
        return Err(format!("a pattern of {} bytes is too long; {PATTERN} is the limit", pattern.len()));
    }
    let regex = RegexBuilder::new(pattern)
        .backtrack_limit(BACKTRACKS)
        .delegate_size_limit(COMPILED)
        .build()
        .map_err(|error| format!("the pattern cannot be read: {error}"))?;
    let pieces = pieces(replacement)?;
    let mut result = String::new();
    let (mut copied, mut from, mut count) = (0, 0, 0);
    let mut empty_at = None;
    while from <= text.len() {
        let found = regex.captures_from_pos(text, from).map_err(|error| format!("the pattern: {error}"))?;
        let Some((captures, whole)) = found.and_then(|found| found.get(0).map(|whole| (found, whole))) else {
            break;
        };
        let (start, end) = (whole.start(), whole.end());
        // Nothing is found twice at one place; but right behind a match that is not empty, nothing counts.
        if start == end && empty_at == Some(start) {
            from = start + text[start..].chars().next().map_or(1, char::len_utf8);
            continue;
        }
        result.push_str(&text[copied..start]);
        expand(&pieces, &regex, &captures, &mut result)?;
        if result.len() > RESULT {
            return Err(format!("more than {RESULT} bytes come out"));
        }
        count += 1;
        (copied, from) = (end, end);
        empty_at = (start == end).then_some(start);
    }
    result.push_str(text.get(copied..).unwrap_or_default());
    if result.len() > RESULT {
        Err(format!("more than {RESULT} bytes come out"))
    } else {
        Ok((result, count))
    }
}

fn expand(
    pieces: &[Piece],
    regex: &Regex,
    captures: &Captures<'_>,
    result: &mut String,
) -> Result<(), String> {
    for piece in pieces {
        // A group that took no part is empty.
        let group = match piece {
            Piece::Text(text) => {
                result.push_str(text);
                continue;
            }
            Piece::Group(number) if *number >= captures.len() => {
                return Err(format!("the replacement names group {number}, which the pattern does not have"));
            }
            Piece::Group(number) => captures.get(*number),
            Piece::Name(name) if !regex.capture_names().flatten().any(|known| known == name) => {
                return Err(format!("the replacement names group '{name}', which the pattern does not have"));
            }
            Piece::Name(name) => captures.name(name),
        };
        result.push_str(group.map_or("", |group| group.as_str()));
    }
    Ok(())
}

fn pieces(replacement: &str) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut text = String::new();
    let mut rest = replacement.chars().peekable();
    while let Some(c) = rest.next() {
        if c != '\\' {
            text.push(c);
            continue;
        }
        let group = match rest.next() {
            Some('g') => {
                if rest.next() != Some('<') {
                    return Err("the replacement has \\g without <".into());
                }
                let name: String = rest.by_ref().take_while(|c| *c != '>').collect();
                name.parse().map_or_else(|_| Piece::Name(name), Piece::Group)
            }
            Some('0') => {
                let mut code = 0;
                for _ in 0..2 {
                    let Some(digit) = rest.peek().and_then(|c| c.to_digit(8)) else { break };
                    code = code * 8 + digit;
                    rest.next();
                }
                text.extend(char::from_u32(code));
                continue;
            }
            Some(digit @ '1'..='9') => {
                let mut number = digit as usize - '0' as usize;
                if let Some(second) = rest.peek().and_then(|c| c.to_digit(10)) {
                    number = number * 10 + second as usize;
                    rest.next();
                }
                Piece::Group(number)
            }
            Some(letter) => {
                let meant = match letter {
                    'n' => '\n',
                    't' => '\t',
                    'r' => '\r',
                    'a' => '\x07',
                    'b' => '\x08',
                    'f' => '\x0c',
                    'v' => '\x0b',
                    '\\' => '\\',
                    letter if letter.is_ascii_alphabetic() => {
                        return Err(format!("the replacement has \\{letter}, which means nothing"));
                    }
                    other => {
                        text.push('\\');
                        other
                    }
                };
                text.push(meant);
                continue;
            }
            None => return Err("the replacement ends in a backslash".into()),
        };
        pieces.push(Piece::Text(std::mem::take(&mut text)));
        pieces.push(group);
    }
    pieces.push(Piece::Text(text));
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use super::substitute;

    #[test]
    fn matches_and_replacements_are_pythons() {
        // What Python 3.12's re.subn says.
        for (pattern, replacement, text, expected) in [
            ("x*", "-", "abxd", ("-a-b--d-", 5)),
            ("", "-", "ab", ("-a-b-", 3)),
            ("(a)(b)?", r"[\1\2]", "ab a", ("[ab] [a]", 2)),
            (r"(?P<word>\w+)", r"<\g<word>\g<0>>", "hi", ("<hihi>", 1)),
            (r"\s+", r"\n", "a  b", ("a\nb", 1)),
            (r"(?<=a)b", "c", "ab bb", ("ac bb", 1)),
            ("é", "e", "éé", ("ee", 2)),
            ("x*", "-", "é", ("-é-", 2)),
            ("b", r"\.", "abc", (r"a\.c", 1)),
        ] {
            let (result, count) = substitute(pattern, replacement, text).unwrap();
            assert_eq!((&*result, count), expected, "{pattern} in {text}");
        }
    }

    #[test]
    fn what_would_take_for_ever_or_mean_nothing_is_refused() {
        assert!(substitute(r"(?=(a+)+b)\1c", "", &("a".repeat(40) + "!")).is_err());
        assert!(substitute("(", "", "a").unwrap_err().contains("cannot be read"));
        assert!(substitute("a", r"\2", "a").unwrap_err().contains("group 2"));
        assert!(substitute("a", r"\q", "a").unwrap_err().contains("means nothing"));
        let long = "x".repeat(1 << 16);
        assert!(substitute("", &long, &"a".repeat(1 << 12)).unwrap_err().contains("bytes come out"));
    }
}
