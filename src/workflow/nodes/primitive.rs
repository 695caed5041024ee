//! Plain values: numbers, texts, yes and no.

use crate::workflow::Context;
use crate::workflow::context::{Inputs, NodeError, Outputs};
use crate::workflow::interface::{Interface, boolean, string};
use crate::workflow::registry::Registry;
use crate::workflow::value::{Kind, Value};

/// Adds them.
pub(super) fn register(registry: &mut Registry) {
    registry.add(
        Interface::new("PrimitiveString", "utils/primitive")
            .display("String")
            .input(string("value").with("multiline", false))
            .output(Kind::STRING)
            .module("comfy_extras.nodes_primitive"),
        pass,
    );
    let mut value = boolean("value", false);
    value.options.clear();
    registry.add(
        Interface::new("PrimitiveBoolean", "utils/primitive")
            .display("Boolean")
            .input(value)
            .output(Kind::BOOLEAN)
            .module("comfy_extras.nodes_primitive"),
        pass,
    );
}

fn pass(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    Ok(Outputs::one(inputs.get("value").cloned().unwrap_or(Value::None)))
}
