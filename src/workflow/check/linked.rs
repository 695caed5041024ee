//! Checks of inputs that are links.

use serde_json::{Value as Json, json};

use super::constant::{TypeOf, config, type_of};
use super::{ChoicesOf, Exception, PromptError};
use crate::workflow::graph::Graph;
use crate::workflow::interface::{Input, Socket};
use crate::workflow::ordered::Ordered;
use crate::workflow::python;
use crate::workflow::registry::Registry;
use crate::workflow::value::Kind;

/// Why a link does not do.
pub(super) enum Problem {
    /// ComfyUI says so.
    Error(Box<PromptError>),
    /// ComfyUI stumbles over it.
    Raise(Exception),
}

fn raise(kind: &'static str, message: impl Into<String>) -> Problem {
    Problem::Raise(Exception { kind, message: message.into() })
}

/// The node that an input comes from, if what it gives there fits.
pub(super) fn source(
    items: &[Ordered],
    input: &Input,
    graph: &Graph,
    registry: &Registry,
    choices: &ChoicesOf<'_>,
) -> Result<String, Problem> {
    let [node, slot] = items else {
        let error = PromptError::new(
            "bad_linked_input",
            "Bad linked input, must be a length-2 list of [node_id, slot_index]",
            input.name,
        );
        return Err(Problem::Error(Box::new(error.with(json!({
            "input_name": input.name,
            "input_config": config(input, choices),
            "received_value": items.iter().map(Ordered::to_json).collect::<Json>(),
        })))));
    };
    let id = match node {
        Ordered::String(id) if graph.contains(id) => id,
        Ordered::Array(_) | Ordered::Object(_) => {
            return Err(raise("TypeError", format!("unhashable type: '{}'", python::type_name(node))));
        }
        other => return Err(raise("KeyError", python::repr(other))),
    };
    // Classes of all nodes are known by now.
    let outputs = registry.get(graph.class(id)).map_or(&[][..], |node| &node.interface.outputs);
    let slot = match slot {
        Ordered::Bool(value) => i64::from(*value),
        Ordered::Number(number) if !number.is_f64() => number.as_i64().unwrap_or(i64::MAX),
        other => {
            let message =
                format!("tuple indices must be integers or slices, not {}", python::type_name(other));
            return Err(raise("TypeError", message));
        }
    };
    let index = output_index(slot, outputs.len());
    let Some(output) = index.and_then(|index| outputs.get(index)) else {
        return Err(raise("IndexError", "tuple index out of range"));
    };
    if fits(output.kind, input) {
        return Ok(id.clone());
    }
    let expected = match type_of(input, choices) {
        TypeOf::Name(name) => name.to_owned(),
        TypeOf::List(list) => python::repr_list(&list),
    };
    let received = output.kind.name();
    let details = format!("{}, received_type({received}) mismatch input_type({expected})", input.name);
    let error =
        PromptError::new("return_type_mismatch", "Return type mismatch between linked nodes", details);
    Err(Problem::Error(Box::new(error.with(json!({
        "input_name": input.name,
        "input_config": config(input, choices),
        "received_type": received,
        "linked_node": items.iter().map(Ordered::to_json).collect::<Json>(),
    })))))
}

/// Which output a slot number means: negative ones count from the end.
pub(crate) fn output_index(slot: i64, count: usize) -> Option<usize> {
    let count = i64::try_from(count).ok()?;
    let index = if slot < 0 { slot.checked_add(count)? } else { slot };
    usize::try_from(index).ok().filter(|_| index < count)
}

/// Whether what comes from an output may go into this input.
fn fits(from: Kind, input: &Input) -> bool {
    match &input.socket {
        Socket::Link(kind) => kind.accepts(from),
        Socket::Int { .. } => Kind::INT.accepts(from),
        Socket::Float { .. } => Kind::FLOAT.accepts(from),
        Socket::String => Kind::STRING.accepts(from),
        Socket::Boolean => Kind::BOOLEAN.accepts(from),
        Socket::Combo { .. } => Kind::other("COMBO").accepts(from),
    }
}
