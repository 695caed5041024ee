//! WAS Node Suite: texts and numbers.

use crate::workflow::Context;
use crate::workflow::context::{Inputs, NodeError, Outputs};
use crate::workflow::interface::{Interface, combo, float, link, string};
use crate::workflow::registry::Registry;
use crate::workflow::value::{Kind, Value};

use super::substitute::substitute;

const MODULE: &str = "custom_nodes.was-node-suite-comfyui";
const NUMBER: Kind = Kind::other("NUMBER");

/// Adds them.
pub(super) fn register(registry: &mut Registry) {
    let text = |class, category| Interface::new(class, category).module(MODULE);
    let forced = |name| string(name).with("forceInput", true);
    let line = |name| string(name).with("default", "").with("multiline", false);
    registry.add(
        text("Text Concatenate", "WAS Suite/Text")
            .input(string("delimiter").with("default", ", "))
            .input(combo("clean_whitespace", ["true", "false"]))
            .optional(forced("text_a"))
            .optional(forced("text_b"))
            .optional(forced("text_c"))
            .optional(forced("text_d"))
            .output(Kind::STRING),
        concatenate,
    );
    registry.add(
        text("Text Multiline", "WAS Suite/Text")
            .input(string("text").with("default", "").with("multiline", true).with("dynamicPrompts", true))
            .output(Kind::STRING),
        multiline,
    );
    registry.add(
        text("Text String", "WAS Suite/Text")
            .input(line("text"))
            .optional(line("text_b"))
            .optional(line("text_c"))
            .optional(line("text_d"))
            .named_output("TEXT", Kind::STRING)
            .named_output("TEXT_B", Kind::STRING)
            .named_output("TEXT_C", Kind::STRING)
            .named_output("TEXT_D", Kind::STRING),
        strings,
    );
    registry.add(
        text("Text Find and Replace", "WAS Suite/Text/Search")
            .input(forced("text"))
            .input(line("find"))
            .input(line("replace"))
            .named_output("result_text", Kind::STRING)
            .named_output("replacement_count_number", NUMBER)
            .named_output("replacement_count_float", Kind::FLOAT)
            .named_output("replacement_count_int", Kind::INT),
        replace,
    );
    const END: f64 = u64::MAX as f64;
    registry.add(
        text("Constant Number", "WAS Suite/Number")
            .input(combo("number_type", ["integer", "float", "bool"]))
            .input(
                float("number", 0.0, -END, END).with("default", 0).with("max", u64::MAX).with("step", 0.01),
            )
            .optional(forced("number_as_text"))
            .output(NUMBER)
            .output(Kind::FLOAT)
            .output(Kind::INT),
        constant,
    );
    registry.add(
        text("Number to Int", "WAS Suite/Number/Operations").input(link("number", NUMBER)).output(Kind::INT),
        |inputs, _| Ok(Outputs::one(Value::Int(whole("number", number(inputs, "number")?)?))),
    );
    registry.add(
        text("Number to Float", "WAS Suite/Number/Operations")
            .input(link("number", NUMBER))
            .output(Kind::FLOAT),
        |inputs, _| Ok(Outputs::one(Value::Float(number(inputs, "number")?.float()))),
    );
}

/// A number of either sort.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Number {
    Int(i128),
    Float(f64),
}

impl Number {
    fn float(self) -> f64 {
        match self {
            Self::Int(value) => value as f64,
            Self::Float(value) => value,
        }
    }
}

/// Python's `int(...)`.
fn whole(name: &str, number: Number) -> Result<i128, NodeError> {
    match number {
        Number::Int(value) => Ok(value),
        Number::Float(value) if value.abs() < 1e38 => Ok(value as i128),
        Number::Float(value) => Err(NodeError::input(name, format!("{value} is no whole number"))),
    }
}

fn number(inputs: &Inputs, name: &str) -> Result<Number, NodeError> {
    match inputs.get(name) {
        Some(Value::Int(value)) => Ok(Number::Int(*value)),
        Some(Value::Float(value)) => Ok(Number::Float(*value)),
        Some(Value::Boolean(value)) => Ok(Number::Int(i128::from(*value))),
        Some(Value::String(text)) => read(name, text, "float"),
        _ => Err(NodeError::input(name, "is no number")),
    }
}

/// A number written as text, by what Python's constructor of that name takes.
fn read(name: &str, text: &str, kind: &str) -> Result<Number, NodeError> {
    let plain = text.trim().replace('_', "");
    let number = if kind == "integer" {
        plain.parse().map(Number::Int).ok()
    } else {
        plain.parse().map(Number::Float).ok()
    };
    number.ok_or_else(|| NodeError::input(name, format!("'{text}' is no {kind}")))
}

fn constant(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let kind = inputs.string("number_type")?;
    let text = match inputs.get("number_as_text") {
        Some(Value::String(text)) if !text.is_empty() => Some(text),
        _ => None,
    };
    let number = match text {
        // Any text that is not empty is true.
        Some(_) if &*kind == "bool" => Number::Int(1),
        Some(text) => read("number_as_text", text, &kind)?,
        None => Number::Float(inputs.float("number")?),
    };
    let int = match &*kind {
        "bool" => i128::from(number.float() > 0.5),
        _ => whole("number", number)?,
    };
    Ok(match &*kind {
        "float" => Outputs::of([Value::Float(number.float()), Value::Float(number.float()), Value::Int(int)]),
        "integer" => Outputs::of([Value::Int(int), Value::Float(number.float()), Value::Int(int)]),
        _ => Outputs::of([Value::Int(int), Value::Float(int as f64), Value::Int(int)]),
    })
}

fn text_of(inputs: &Inputs, name: &str) -> String {
    match inputs.get(name) {
        Some(Value::String(text)) => text.to_string(),
        _ => String::new(),
    }
}

fn concatenate(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let delimiter = inputs.string("delimiter")?.replace("\\n", "\n");
    let delimiter = if delimiter == "\n" { delimiter } else { inputs.string("delimiter")?.to_string() };
    let clean = &*inputs.string("clean_whitespace")? == "true";
    let texts = ["text_a", "text_b", "text_c", "text_d"].map(|name| {
        let text = text_of(inputs, name);
        if clean { text.trim().to_owned() } else { text }
    });
    let texts: Vec<String> = texts.into_iter().filter(|text| !text.is_empty()).collect();
    Ok(Outputs::one(Value::String(texts.join(&delimiter).into())))
}

fn multiline(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let text = inputs.string("text")?;
    let lines = text.split_inclusive('\n').filter(|line| !line.trim().starts_with('#'));
    let lines: Vec<&str> = lines.map(|line| line.strip_suffix('\n').unwrap_or(line)).collect();
    Ok(Outputs::one(Value::String(with_time(&lines.join("\n"), "text")?.into())))
}

fn strings(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let mut texts = Vec::new();
    for name in ["text", "text_b", "text_c", "text_d"] {
        texts.push(Value::String(with_time(&text_of(inputs, name), name)?.into()));
    }
    Ok(Outputs::of(texts))
}

fn replace(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let (find, replace) = (inputs.string("find")?, inputs.string("replace")?);
    let (text, count) = substitute(&find, &replace, &inputs.string("text")?)
        .map_err(|message| NodeError::input("find", message))?;
    Ok(Outputs::of([
        Value::String(text.into()),
        Value::Int(count as i128),
        Value::Float(count as f64),
        Value::Int(count as i128),
    ]))
}

/// `[time]` and `[time(%Y-%m-%d)]` replaced by the time. The suite's words about the machine (`[hostname]`, `[user]`,
/// …) stay as they are: clients are not told of the server.
fn with_time(text: &str, name: &str) -> Result<String, NodeError> {
    if !text.contains("[time") {
        return Ok(text.to_owned());
    }
    let now = jiff::Zoned::now();
    let text = text.replace("[time]", &now.timestamp().as_second().to_string());
    let mut result = String::new();
    let mut rest = &*text;
    while let Some((before, after)) = rest.split_once("[time(") {
        result.push_str(before);
        let Some((format, after)) = after.split_once(")]") else {
            result.push_str("[time(");
            rest = after;
            continue;
        };
        let time = jiff::fmt::strtime::format(format, &now)
            .map_err(|error| NodeError::input(name, format!("'{format}' is no format of a time: {error}")))?;
        result.push_str(&time);
        rest = after;
    }
    result.push_str(rest);
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_cut_as_python_cuts_them() {
        assert_eq!(whole("n", Number::Float(-2.7)).unwrap(), -2);
        assert!(whole("n", Number::Float(f64::NAN)).is_err());
        assert!(whole("n", Number::Float(f64::INFINITY)).is_err());
        assert_eq!(read("n", " 1_000 ", "integer").unwrap(), Number::Int(1000));
        assert!(read("n", "1.5", "integer").is_err());
    }

    #[test]
    fn words_of_time_become_the_time() {
        let year = with_time("a [time(%Y)] b [time(", "text").unwrap();
        assert!(year.starts_with("a 20") && year.ends_with(" b [time("), "{year}");
        assert!(with_time("[time]", "text").unwrap().parse::<u64>().is_ok());
        assert!(with_time("[time(%!)]", "text").is_err());
        assert_eq!(with_time("[hostname]", "text").unwrap(), "[hostname]");
    }
}
