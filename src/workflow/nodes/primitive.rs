//! Plain values: numbers, texts, yes and no.

use crate::workflow::Context;
use crate::workflow::context::{Inputs, NodeError, Outputs};
use crate::workflow::interface::{Interface, boolean, float, int, string};
use crate::workflow::registry::Registry;
use crate::workflow::value::{Kind, Value};

/// Adds them.
pub(super) fn register(registry: &mut Registry) {
    let node = |class| Interface::new(class, "utils/primitive").module("comfy_extras.nodes_primitive");
    registry.add(
        node("PrimitiveString")
            .newer_schema()
            .display("String")
            .input(string("value").with("multiline", false))
            .output(Kind::STRING),
        pass,
    );
    registry.add(
        node("PrimitiveStringMultiline")
            .newer_schema()
            .display("String (Multiline)")
            .input(string("value").with("multiline", true))
            .output(Kind::STRING),
        pass,
    );
    // None of the numbers has a default.
    let mut whole = int("value", 0, -i64::MAX, i64::MAX as u64).with("control_after_generate", true);
    whole.options.remove("default");
    registry.add(node("PrimitiveInt").newer_schema().display("Int").input(whole).output(Kind::INT), pass);
    let mut number = float("value", 0.0, -(i64::MAX as f64), i64::MAX as f64);
    number.options.remove("default");
    number = number.with("min", -i64::MAX).with("max", i64::MAX);
    registry
        .add(node("PrimitiveFloat").newer_schema().display("Float").input(number).output(Kind::FLOAT), pass);
    let mut value = boolean("value", false);
    value.options.clear();
    registry.add(
        node("PrimitiveBoolean").newer_schema().display("Boolean").input(value).output(Kind::BOOLEAN),
        pass,
    );
}

fn pass(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    Ok(Outputs::one(inputs.get("value").cloned().unwrap_or(Value::None)))
}
