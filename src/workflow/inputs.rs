//! From the values of a prompt to the inputs of a node: each as the type that its socket declares, and the declared
//! default where the prompt leaves an optional one out.

use super::context::Inputs;
use super::graph::{constant, link};
use super::interface::{Input, Interface, Socket};
use super::ordered::{Members, Ordered};
use super::python;
use super::value::Value;

/// The inputs that are values, not links, with defaults for those that are left out.
pub(super) fn constants(interface: &Interface, given: Option<&Members>) -> Inputs {
    let mut inputs = Inputs::default();
    for input in &interface.inputs {
        let value = given.and_then(|given| given.get(input.name));
        match value {
            Some(value) if link(value).is_some() => {}
            Some(value) => {
                inputs.0.insert(input.name.to_owned(), typed(input, constant(value)));
            }
            None => {
                if let Some(value) = default(input) {
                    inputs.0.insert(input.name.to_owned(), value);
                }
            }
        }
    }
    for (name, value) in given.into_iter().flatten() {
        if is_open(interface, name) && link(value).is_none() {
            inputs.0.insert(name.clone(), untyped(constant(value)));
        }
    }
    inputs
}

/// Whether the node takes an input of this name though it is not declared.
pub(super) fn is_open(interface: &Interface, name: &str) -> bool {
    interface.open_prefix.is_some_and(|prefix| name.starts_with(prefix)) && interface.find(name).is_none()
}

/// What counts where an input is left out; `None` where nothing is declared.
pub(super) fn default(input: &Input) -> Option<Value> {
    input.default().map(|value| typed(input, &Ordered::from(value.clone())))
}

/// A value as an input's type. Values that do not convert were refused when the prompt was checked.
fn typed(input: &Input, value: &Ordered) -> Value {
    let name = match &input.socket {
        Socket::Int { .. } => "INT",
        Socket::Float { .. } => "FLOAT",
        Socket::String => "STRING",
        Socket::Boolean => "BOOLEAN",
        Socket::Link(kind) => kind.name(),
        Socket::Combo { .. } => "",
    };
    match name {
        "INT" => python::int(value).map_or_else(|_| untyped(value), Value::Int),
        "FLOAT" => python::float(value).map_or_else(|_| untyped(value), Value::Float),
        "STRING" => Value::String(python::str(value).into()),
        "BOOLEAN" => Value::Boolean(python::truth(value)),
        _ => untyped(value),
    }
}

/// A value as the type that JSON gives it.
fn untyped(value: &Ordered) -> Value {
    match value {
        Ordered::Null => Value::None,
        Ordered::Bool(value) => Value::Boolean(*value),
        Ordered::Number(number) => match number.as_f64() {
            Some(value) if number.is_f64() => Value::Float(value),
            _ => python::int(value).map_or(Value::None, Value::Int),
        },
        Ordered::String(text) => Value::String(text.as_str().into()),
        Ordered::Array(_) | Ordered::Object(_) => Value::Json(value.to_json()),
    }
}
