//! Checks of inputs that are values, and what they are converted to.

use serde_json::{Map, Number, Value as Json, json};

use super::{ChoicesOf, PromptError};
use crate::workflow::interface::{Choices, Input, Socket, input_info};
use crate::workflow::ordered::Ordered;
use crate::workflow::python;

/// Choices are listed in an error up to this many.
const MOST_CHOICES_TOLD: usize = 20;

/// The type of an input as ComfyUI declares it.
pub(super) enum TypeOf {
    Name(&'static str),
    List(Vec<String>),
}

pub(super) fn type_of(input: &Input, choices: &ChoicesOf<'_>) -> TypeOf {
    match &input.socket {
        Socket::Link(kind) => TypeOf::Name(kind.name()),
        Socket::Int { .. } => TypeOf::Name("INT"),
        Socket::Float { .. } => TypeOf::Name("FLOAT"),
        Socket::String => TypeOf::Name("STRING"),
        Socket::Boolean => TypeOf::Name("BOOLEAN"),
        Socket::Combo { tagged: true, .. } => TypeOf::Name("COMBO"),
        Socket::Combo { choices: list, tagged: false } => TypeOf::List(choices(list)),
    }
}

/// An input's declaration, `[type, options]`.
pub(super) fn config(input: &Input, choices: &ChoicesOf<'_>) -> Json {
    let mut info = input_info(input, choices);
    if let Json::Array(parts) = &mut info
        && parts.len() < 2
    {
        parts.push(json!({}));
    }
    info
}

/// What `value` is converted to; `None` where it stays as it is. `own_check`: the node looks at it itself, so that
/// neither bounds nor choices count.
pub(super) fn convert(
    value: &Ordered,
    input: &Input,
    own_check: bool,
    choices: &ChoicesOf<'_>,
) -> Result<Option<Ordered>, Box<PromptError>> {
    let name = input.name;
    let kind = match &input.socket {
        Socket::Int { .. } => "INT",
        Socket::Float { .. } => "FLOAT",
        Socket::String => "STRING",
        Socket::Boolean => "BOOLEAN",
        Socket::Link(kind) => kind.name(),
        Socket::Combo { .. } => "",
    };
    // What bounds are compared with, and how messages write it; a whole number beyond 64 bits is still one there.
    let mut number = match value {
        Ordered::Number(number) if !number.is_f64() => python::int(value).ok().map(Size::Whole),
        Ordered::Number(_) => python::float(value).ok().map(Size::Broken),
        _ => None,
    };
    let converted = match kind {
        "INT" => python::int(value).map(|value| {
            number = Some(Size::Whole(value));
            Some(int(value))
        }),
        "FLOAT" => python::float(value).and_then(|value| {
            number = Some(Size::Broken(value));
            let value = Number::from_f64(value).ok_or("it is not a finite number")?;
            Ok(Some(Ordered::Number(value)))
        }),
        "STRING" => Ok((!matches!(value, Ordered::String(_))).then(|| Ordered::String(python::str(value)))),
        "BOOLEAN" => Ok(Some(Ordered::Bool(python::truth(value)))),
        _ => Ok(None),
    };
    let converted = converted.map_err(|message| {
        Box::new(
            PromptError::new(
                "invalid_input_type",
                format!("Failed to convert an input value to a {kind} value"),
                format!("{name}, {}, {message}", python::str(value)),
            )
            .with(json!({
                "input_name": name,
                "input_config": config(input, choices),
                "received_value": value.to_json(),
                "exception_message": message,
            })),
        )
    })?;
    if !own_check {
        let value = converted.as_ref().unwrap_or(value);
        if let Some(number) = number {
            in_range(number, value, input, choices)?;
        }
        // The lists of newer nodes (`COMBO`) are theirs to check, as in ComfyUI.
        if let Socket::Combo { choices: list, tagged: false } = &input.socket {
            in_list(value, input, &choices(list), choices)?;
        }
    }
    Ok(converted)
}

/// A whole number as JSON; beyond 64 bits as a floating-point number.
fn int(value: i128) -> Ordered {
    let number = i64::try_from(value).map(Number::from).or_else(|_| u64::try_from(value).map(Number::from));
    number.ok().or_else(|| Number::from_f64(value as f64)).map_or(Ordered::Null, Ordered::Number)
}

/// A number as Python compares it.
#[derive(Clone, Copy)]
enum Size {
    Whole(i128),
    Broken(f64),
}

impl Size {
    fn compare(self, limit: &Ordered) -> Option<std::cmp::Ordering> {
        match (self, limit) {
            (Self::Whole(value), Ordered::Number(number)) if !number.is_f64() => {
                Some(value.cmp(&python::int(limit).ok()?))
            }
            (Self::Whole(value), limit) => (value as f64).partial_cmp(&python::float(limit).ok()?),
            (Self::Broken(value), limit) => value.partial_cmp(&python::float(limit).ok()?),
        }
    }

    fn text(self) -> String {
        match self {
            Self::Whole(value) => value.to_string(),
            Self::Broken(value) => python::float_repr(value),
        }
    }
}

/// The bounds that `object_info` tells.
fn in_range(
    number: Size,
    value: &Ordered,
    input: &Input,
    choices: &ChoicesOf<'_>,
) -> Result<(), Box<PromptError>> {
    let bounds = [("min", "value_smaller_than_min", "smaller"), ("max", "value_bigger_than_max", "bigger")];
    for (bound, kind, word) in bounds {
        let Some(limit) = input.options.get(bound) else { continue };
        let limit = Ordered::from(limit.clone());
        let Some(order) = number.compare(&limit) else { continue };
        let beyond = if bound == "min" { order.is_lt() } else { order.is_gt() };
        if beyond {
            let message = format!("Value {} {word} than {bound} of {}", number.text(), python::str(&limit));
            return Err(Box::new(PromptError::new(kind, message, input.name).with(json!({
                "input_name": input.name,
                "input_config": config(input, choices),
                "received_value": value.to_json(),
            }))));
        }
    }
    Ok(())
}

/// The name under which the same weights are safe to load: workflows name upscalers and detectors by the pickles that
/// they are published as, and a converted file beside stands for one.
fn as_safetensors(name: &str) -> Option<String> {
    const PICKLES: [&str; 5] = [".pth", ".pt", ".ckpt", ".bin", ".pkl"];
    let stem = PICKLES.iter().find_map(|extension| name.strip_suffix(extension))?;
    Some(format!("{stem}.safetensors"))
}

fn in_list(
    value: &Ordered,
    input: &Input,
    list: &[String],
    choices: &ChoicesOf<'_>,
) -> Result<(), Box<PromptError>> {
    let weights = matches!(input.socket, Socket::Combo { choices: Choices::Models { .. }, .. });
    let listed = |name: &str| list.iter().any(|choice| choice == name);
    let known = |name: &str| {
        listed(name) || (weights && as_safetensors(name).is_some_and(|converted| listed(&converted)))
    };
    if value.as_str().is_some_and(known) {
        return Ok(());
    }
    let (told, config) = if list.len() > MOST_CHOICES_TOLD {
        (format!("(list of length {})", list.len()), Json::Null)
    } else {
        (python::repr_list(list), config(input, choices))
    };
    let details = format!("{}: '{}' not in {told}", input.name, python::str(value));
    let mut extra = Map::new();
    extra.insert("input_name".into(), json!(input.name));
    extra.insert("input_config".into(), config);
    extra.insert("received_value".into(), value.to_json());
    Err(Box::new(PromptError::new("value_not_in_list", "Value not in list", details).with(extra.into())))
}
