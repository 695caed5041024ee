//! Texts searched and changed by patterns written for Python's `re`.
//!
//! Patterns run in an engine of another dialect; [`translated`] says the same in that. One that backtracks without end
//! is stopped by a limit instead of holding a thread.

use std::fmt::Write;
use std::ops::Range;

use fancy_regex::{Captures, Regex, RegexBuilder};

use super::strings::{check_length, give, lines, node};
use crate::workflow::Context;
use crate::workflow::context::{Inputs, NodeError, Outputs};
use crate::workflow::interface::{boolean, int, tagged_combo};
use crate::workflow::registry::Registry;
use crate::workflow::value::{Kind, Value};

/// Longest pattern, bytes.
const LONGEST_PATTERN: usize = 16 << 10;
/// Steps back before a search is given up.
const BACKTRACKS: usize = 1_000_000;
/// Most memory for a compiled pattern, bytes.
const COMPILED: usize = 8 << 20;

/// Adds them.
pub(super) fn register(registry: &mut Registry) {
    let flags = [boolean("case_insensitive", true), boolean("multiline", false), boolean("dotall", false)];
    let [case, multi, dot] = flags;
    registry.add(
        node("RegexMatch")
            .display("Regex Match")
            .input(lines("string"))
            .input(lines("regex_pattern"))
            .input(case.clone())
            .input(multi.clone())
            .input(dot.clone())
            .named_output("matches", Kind::BOOLEAN),
        matches,
    );
    registry.add(
        node("RegexExtract")
            .display("Regex Extract")
            .input(lines("string"))
            .input(lines("regex_pattern"))
            .input(tagged_combo("mode", ["First Match", "All Matches", "First Group", "All Groups"]))
            .input(case.clone())
            .input(multi.clone())
            .input(dot.clone())
            .input(int("group_index", 1, 0, 100))
            .output(Kind::STRING),
        extract,
    );
    registry.add(
        node("RegexReplace")
            .display("Regex Replace")
            .description("Replaces what a pattern finds.")
            .input(lines("string"))
            .input(lines("regex_pattern"))
            .input(lines("replace"))
            .optional(case)
            .optional(multi)
            .optional(dot)
            .optional(int("count", 0, 0, 100))
            .output(Kind::STRING),
        replace,
    );
}

/// The pattern with its flags; `None` where it is none that Python takes.
fn pattern(inputs: &Inputs) -> Result<Option<Regex>, NodeError> {
    let flag = |name: &str, default: bool| match inputs.get(name) {
        Some(_) => inputs.boolean(name),
        None => Ok(default),
    };
    let text = inputs.string("regex_pattern")?;
    if text.len() > LONGEST_PATTERN {
        return Err(NodeError::input("regex_pattern", format!("is longer than {LONGEST_PATTERN} bytes")));
    }
    let multiline = flag("multiline", false)?;
    let Some(translated) = translated(&text, multiline) else { return Ok(None) };
    let mut builder = RegexBuilder::new(&translated);
    builder
        .case_insensitive(flag("case_insensitive", true)?)
        .multi_line(multiline)
        .dot_matches_new_line(flag("dotall", false)?)
        .backtrack_limit(BACKTRACKS)
        .delegate_size_limit(COMPILED);
    Ok(builder.build().ok())
}

fn too_long(error: &fancy_regex::Error) -> NodeError {
    NodeError::input("regex_pattern", format!("was given up: {error}"))
}

/// Hands on what a pattern finds from left to right, at most so many. As Python since 3.7, an empty match may follow on
/// any other.
fn each_match(
    regex: &Regex,
    text: &str,
    most: usize,
    context: &Context<'_>,
    mut take: impl FnMut(&Captures<'_>) -> Result<(), NodeError>,
) -> Result<(), NodeError> {
    let mut from = 0;
    for _ in 0..most {
        context.check_interrupt()?;
        let found = regex.captures_from_pos(text, from).map_err(|error| too_long(&error))?;
        let Some(captures) = found else { break };
        let range = captures.get(0).map_or(from..from, |whole| whole.range());
        take(&captures)?;
        from = range.end;
        if range.is_empty() {
            from += text[from..].chars().next().map_or(1, char::len_utf8);
        }
        if from > text.len() {
            break;
        }
    }
    Ok(())
}

fn matches(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let text = inputs.string("string")?;
    let found = match pattern(inputs)? {
        Some(regex) => regex.is_match(&text).map_err(|error| too_long(&error))?,
        None => false,
    };
    Ok(Outputs::one(Value::Boolean(found)))
}

fn extract(inputs: &Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
    let text = inputs.string("string")?;
    let Some(regex) = pattern(inputs)? else { return give("") };
    let mode = inputs.string("mode")?;
    let most = if mode.starts_with("First") { 1 } else { usize::MAX };
    let groups = regex.captures_len() - 1;
    let group = match &*mode {
        "First Match" => 0,
        // Python's `findall` gives groups where there are any; the node takes the first.
        "All Matches" => groups.min(1),
        _ => {
            let group = inputs.size("group_index")?;
            let none = &*mode == "All Groups" && groups == 0;
            if none || group > groups {
                return give("");
            }
            group
        }
    };
    let mut out: Option<String> = None;
    each_match(&regex, &text, most, context, |captures| {
        let part = captures.get(group).map_or("", |part| part.as_str());
        match &mut out {
            Some(out) => out.extend(["\n", part]),
            None => out = Some(part.to_owned()),
        }
        check_length(out.as_ref().map_or(0, String::len))
    })?;
    give(out.unwrap_or_default())
}

fn replace(inputs: &Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
    let text = inputs.string("string")?;
    let regex = pattern(inputs)?
        .ok_or_else(|| NodeError::input("regex_pattern", "is no pattern that Python would take"))?;
    let parts = template(&inputs.string("replace")?, &regex)?;
    let count = if inputs.get("count").is_some() { inputs.size("count")? } else { 0 };
    let mut out = String::new();
    let mut end = 0;
    each_match(&regex, &text, if count == 0 { usize::MAX } else { count }, context, |captures| {
        let Some(whole) = captures.get(0) else { return Ok(()) };
        out.push_str(&text[end..whole.start()]);
        for part in &parts {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Group(group) => out.push_str(captures.get(*group).map_or("", |group| group.as_str())),
            }
        }
        end = whole.end();
        check_length(out.len())
    })?;
    out.push_str(&text[end..]);
    give(out)
}

/// A piece of what matches are replaced by.
enum Part {
    Text(String),
    Group(usize),
}

/// Python's `\1`, `\g<name>`, `\n` and so on.
fn template(text: &str, regex: &Regex) -> Result<Vec<Part>, NodeError> {
    let refused = |what: String| NodeError::input("replace", what);
    let group = |name: &str| -> Result<Part, NodeError> {
        let number = name.parse().ok();
        let named = || regex.capture_names().position(|own| own == Some(name));
        match number.or_else(named) {
            Some(number) if number < regex.captures_len() => Ok(Part::Group(number)),
            _ => Err(refused(format!("the pattern has no group '{name}'"))),
        }
    };
    let mut parts = vec![];
    let mut plain = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        plain.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let Some(c) = rest.chars().next() else {
            return Err(refused("ends with a single backslash".into()));
        };
        rest = &rest[c.len_utf8()..];
        let reference = match c {
            'g' => {
                let end = rest.strip_prefix('<').and_then(|name| name.find('>'));
                let end = end.ok_or_else(|| refused("has a \\g without <name>".into()))?;
                let name = &rest[1..=end];
                rest = &rest[end + 2..];
                Some(group(name)?)
            }
            '1'..='9' => {
                // Two digits at most; three octal ones are a character.
                let more = rest.chars().take_while(char::is_ascii_digit).count();
                let octal = c <= '3' && more >= 2 && rest[..2].bytes().all(|digit| digit < b'8');
                let digits = format!("{c}{}", &rest[..if octal { 2 } else { more.min(1) }]);
                rest = &rest[digits.len() - 1..];
                if octal {
                    plain.extend(u32::from_str_radix(&digits, 8).ok().and_then(char::from_u32));
                    None
                } else {
                    Some(group(&digits)?)
                }
            }
            '0' => {
                let more = rest.bytes().take(2).take_while(|digit| (b'0'..b'8').contains(digit)).count();
                let code = u32::from_str_radix(&rest[..more], 8).unwrap_or(0);
                plain.extend(char::from_u32(code));
                rest = &rest[more..];
                None
            }
            _ => {
                match c {
                    'a' => plain.push('\x07'),
                    'b' => plain.push('\x08'),
                    'f' => plain.push('\x0c'),
                    'n' => plain.push('\n'),
                    'r' => plain.push('\r'),
                    't' => plain.push('\t'),
                    'v' => plain.push('\x0b'),
                    '\\' => plain.push('\\'),
                    c if c.is_ascii_alphabetic() => {
                        return Err(refused(format!("has \\{c}, which means nothing")));
                    }
                    c => plain.extend(['\\', c]),
                }
                None
            }
        };
        if let Some(reference) = reference {
            parts.push(Part::Text(std::mem::take(&mut plain)));
            parts.push(reference);
        }
    }
    plain.push_str(rest);
    parts.push(Part::Text(plain));
    Ok(parts)
}

/// A pattern of Python's in the engine's dialect; `None` where Python refuses it for an escape.
fn translated(pattern: &str, multiline: bool) -> Option<String> {
    let mut out = String::with_capacity(pattern.len() + 8);
    let mut at = 0;
    // Where the set began that is open.
    let mut set: Option<usize> = None;
    while let Some(c) = pattern[at..].chars().next() {
        let rest = &pattern[at + c.len_utf8()..];
        let mut taken = c.len_utf8();
        match (c, set) {
            ('\\', _) => taken += escape(rest, set.is_some(), &mut out)?,
            ('[', None) => {
                let negated = rest.starts_with('^');
                out.push_str(if negated { "[^" } else { "[" });
                taken += usize::from(negated);
                // A bracket that closes stands for itself in the first place.
                if rest[usize::from(negated)..].starts_with(']') {
                    out.push_str("\\]");
                    taken += 1;
                }
                set = Some(at);
            }
            (']', Some(_)) => {
                out.push(']');
                set = None;
            }
            // Operators on sets, which Python has not.
            ('[' | '&' | '~', Some(_)) => out.extend(['\\', c]),
            ('-', Some(_)) if rest.starts_with('-') => out.push_str("\\-"),
            (_, Some(_)) => out.push(c),
            // Also before a last line break.
            ('$', None) if !multiline => out.push_str(r"(?=\n?(?![\s\S]))"),
            ('{', None) => match repetition(rest) {
                Some((range, text)) => {
                    out.push_str(&text);
                    taken += range.end;
                }
                None => out.push_str("\\{"),
            },
            ('}', None) => out.push_str("\\}"),
            ('(', None) if rest.starts_with("?#") => taken += rest.find(')')? + 1,
            _ => out.push(c),
        }
        at += taken;
    }
    Some(out)
}

/// What follows a backslash, and how many bytes that takes.
fn escape(rest: &str, in_set: bool, out: &mut String) -> Option<usize> {
    let c = rest.chars().next()?;
    let code = |digits: &str, out: &mut String| -> Option<()> {
        let code = u32::from_str_radix(digits, 16).ok()?;
        write!(out, "\\x{{{:X}}}", u32::from(char::from_u32(code)?)).ok()
    };
    match c {
        'x' | 'u' | 'U' => {
            let length = match c {
                'x' => 2,
                'u' => 4,
                _ => 8,
            };
            code(rest.get(1..=length)?, out)?;
            return Some(1 + length);
        }
        'b' if in_set => out.push_str("\\x08"),
        // The engine's own take every line's end where lines count.
        'Z' if !in_set => out.push_str(r"(?![\s\S])"),
        'A' if !in_set => out.push_str(r"(?<![\s\S])"),
        'b' | 'B' if !in_set => out.extend(['\\', c]),
        'd' | 'D' | 's' | 'S' | 'w' | 'W' | 'a' | 'f' | 'n' | 'r' | 't' | 'v' => out.extend(['\\', c]),
        '0' => {
            let digits = rest.bytes().take(3).take_while(|digit| (b'0'..b'8').contains(digit)).count();
            let code = u32::from_str_radix(&rest[..digits], 8).ok()?;
            write!(out, "\\x{{{code:X}}}").ok()?;
            return Some(digits);
        }
        '1'..='9' if !in_set => {
            let digits = rest.bytes().take(2).take_while(u8::is_ascii_digit).count();
            write!(out, "(?:\\{})", &rest[..digits]).ok()?;
            return Some(digits);
        }
        c if c.is_ascii_alphanumeric() => return None,
        c if c.is_ascii() => write!(out, "\\x{:02X}", u32::from(c)).ok()?,
        c => out.push(c),
    }
    Some(c.len_utf8())
}

/// `3}`, `3,}`, `,3}` or `3,5}` as a repetition.
fn repetition(rest: &str) -> Option<(Range<usize>, String)> {
    let end = rest.find('}')?;
    let (low, high) = match rest[..end].split_once(',') {
        Some((low, high)) => (low, Some(high)),
        None => (&rest[..end], None),
    };
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(low) || !high.is_none_or(digits) || (low.is_empty() && high.is_none()) {
        return None;
    }
    let low = if low.is_empty() { "0" } else { low };
    let text = high.map_or_else(|| format!("{{{low}}}"), |high| format!("{{{low},{high}}}"));
    Some((0..end + 1, text))
}
