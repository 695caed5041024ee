//! Texts: joined, cut, searched, changed, by Python's rules, which count characters and not bytes.

use std::sync::Arc;

use super::arithmetic::slice;
use crate::workflow::Context;
use crate::workflow::context::{Inputs, NodeError, Outputs};
use crate::workflow::interface::{Input, Interface, boolean, int, string, tagged_combo};
use crate::workflow::registry::Registry;
use crate::workflow::value::{Kind, Value};

/// The longest text that a node makes, bytes.
const LONGEST_TEXT: usize = 16 << 20;

/// Adds them.
pub(super) fn register(registry: &mut Registry) {
    let compare = tagged_combo("mode", ["Starts With", "Ends With", "Equal"]);
    registry.add(
        node("StringConcatenate")
            .newer_schema()
            .display("Concatenate")
            .input(lines("string_a"))
            .input(lines("string_b"))
            .input(string("delimiter").with("default", "").with("multiline", false))
            .output(Kind::STRING),
        concatenate,
    );
    registry.add(
        node("StringSubstring")
            .display("Substring")
            .input(lines("string"))
            .input(bare_int("start"))
            .input(bare_int("end"))
            .output(Kind::STRING),
        substring,
    );
    registry.add(
        node("StringLength").display("Length").input(lines("string")).named_output("length", Kind::INT),
        length,
    );
    registry.add(
        node("CaseConverter")
            .display("Case Converter")
            .input(lines("string"))
            .input(tagged_combo("mode", ["UPPERCASE", "lowercase", "Capitalize", "Title Case"]))
            .output(Kind::STRING),
        convert_case,
    );
    registry.add(
        node("StringTrim")
            .display("Trim")
            .input(lines("string"))
            .input(tagged_combo("mode", ["Both", "Left", "Right"]))
            .output(Kind::STRING),
        trim,
    );
    registry.add(
        node("StringReplace")
            .display("Replace")
            .input(lines("string"))
            .input(lines("find"))
            .input(lines("replace"))
            .output(Kind::STRING),
        replace,
    );
    registry.add(
        node("StringContains")
            .display("Contains")
            .input(lines("string"))
            .input(lines("substring"))
            .input(boolean("case_sensitive", true))
            .named_output("contains", Kind::BOOLEAN),
        |inputs, _| compared(inputs, "string", "substring", |a, b| a.contains(b)),
    );
    registry.add(
        node("StringCompare")
            .display("Compare")
            .input(lines("string_a"))
            .input(lines("string_b"))
            .input(compare)
            .input(boolean("case_sensitive", true))
            .output(Kind::BOOLEAN),
        |inputs, _| {
            let mode = inputs.string("mode")?;
            compared(inputs, "string_a", "string_b", |a, b| match &*mode {
                "Starts With" => a.starts_with(b),
                "Ends With" => a.ends_with(b),
                _ => a == b,
            })
        },
    );
}

pub(super) fn node(class: &'static str) -> Interface {
    Interface::new(class, "utils/string").module("comfy_extras.nodes_string")
}

/// A text of several lines.
pub(super) fn lines(name: &'static str) -> Input {
    string(name).with("multiline", true)
}

/// A whole number with neither default nor bounds.
fn bare_int(name: &'static str) -> Input {
    let mut input = int(name, 0, i64::MIN, i64::MAX as u64);
    input.options.clear();
    input
}

/// A text as a node's result, unless it is too long.
pub(super) fn give(text: impl Into<Arc<str>>) -> Result<Outputs, NodeError> {
    let text = text.into();
    check_length(text.len())?;
    Ok(Outputs::one(Value::String(text)))
}

/// Refuses a text before it is made.
pub(super) fn check_length(bytes: usize) -> Result<(), NodeError> {
    if bytes > LONGEST_TEXT {
        let limit = LONGEST_TEXT >> 20;
        return Err(NodeError::Failed(format!("the text would be longer than {limit} MiB")));
    }
    Ok(())
}

fn concatenate(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let (a, b) = (inputs.string("string_a")?, inputs.string("string_b")?);
    let delimiter = inputs.string("delimiter")?;
    check_length(a.len() + b.len() + delimiter.len())?;
    give(format!("{a}{delimiter}{b}"))
}

fn substring(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let text = inputs.string("string")?;
    let range = slice(inputs.int("start")?, inputs.int("end")?, text.chars().count());
    give(text.chars().skip(range.start).take(range.len()).collect::<String>())
}

fn length(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    Ok(Outputs::one(Value::Int(inputs.string("string")?.chars().count() as i128)))
}

fn convert_case(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let text = inputs.string("string")?;
    give(match &*inputs.string("mode")? {
        "UPPERCASE" => text.to_uppercase(),
        "lowercase" => text.to_lowercase(),
        "Capitalize" => with_capitals(&text, |at, _| at == 0),
        "Title Case" => with_capitals(&text, |_, before| !before),
        _ => text.to_string(),
    })
}

/// In lower case but for the characters that `capital` picks by their place and whether the one before has a case.
fn with_capitals(text: &str, capital: impl Fn(usize, bool) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    let mut before = false;
    let mut rest = text.chars();
    let mut at = 0;
    while let Some(c) = rest.next() {
        if capital(at, before) {
            out.extend(title_case(c));
        } else if c == 'Σ' {
            // At the end of a word it has a form of its own.
            let ends = before && !rest.clone().next().is_some_and(has_case);
            out.push(if ends { 'ς' } else { 'σ' });
        } else {
            out.extend(c.to_lowercase());
        }
        before = has_case(c);
        at += 1;
    }
    out
}

fn has_case(c: char) -> bool {
    c.is_lowercase() || c.is_uppercase() || title_form(c).is_some()
}

/// The letter that a digraph begins a word with.
fn title_form(c: char) -> Option<char> {
    match c {
        'Ǆ' | 'ǅ' | 'ǆ' => Some('ǅ'),
        'Ǉ' | 'ǈ' | 'ǉ' => Some('ǈ'),
        'Ǌ' | 'ǋ' | 'ǌ' => Some('ǋ'),
        'Ǳ' | 'ǲ' | 'ǳ' => Some('ǲ'),
        _ => None,
    }
}

fn title_case(c: char) -> impl Iterator<Item = char> {
    let upper: Vec<char> = title_form(c).map_or_else(|| c.to_uppercase().collect(), |title| vec![title]);
    // What becomes several letters begins with a capital only.
    upper.into_iter().enumerate().flat_map(|(i, c)| {
        let letters: Vec<char> = if i == 0 { vec![c] } else { c.to_lowercase().collect() };
        letters
    })
}

fn trim(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let text = inputs.string("string")?;
    // Python takes the four separators of ASCII for white space as well.
    let white = |c: char| c.is_whitespace() || ('\x1c'..='\x1f').contains(&c);
    give(match &*inputs.string("mode")? {
        "Both" => text.trim_matches(white),
        "Left" => text.trim_start_matches(white),
        "Right" => text.trim_end_matches(white),
        _ => &text,
    })
}

fn replace(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let (text, find, new) = (inputs.string("string")?, inputs.string("find")?, inputs.string("replace")?);
    let times = text.matches(&*find).count();
    check_length(times.saturating_mul(new.len()).saturating_add(text.len()) - times * find.len())?;
    give(text.replace(&*find, &new))
}

fn compared(
    inputs: &Inputs,
    first: &str,
    second: &str,
    holds: impl Fn(&str, &str) -> bool,
) -> Result<Outputs, NodeError> {
    let (a, b) = (inputs.string(first)?, inputs.string(second)?);
    let found = if inputs.boolean("case_sensitive")? {
        holds(&a, &b)
    } else {
        holds(&a.to_lowercase(), &b.to_lowercase())
    };
    Ok(Outputs::one(Value::Boolean(found)))
}
