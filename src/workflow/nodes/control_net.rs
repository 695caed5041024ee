//! ControlNets on conditioning.

use std::sync::Arc;

use crate::workflow::Context;
use crate::workflow::context::{Inputs, NodeError, Outputs};
use crate::workflow::interface::{Input, Interface, combo, float, link};
use crate::workflow::registry::Registry;
use crate::workflow::value::{Cond, CondControl, Kind, Value};

/// Most ControlNets on one prompt: each is a network call of its own at every step.
const MOST: usize = 64;

/// Adds them.
pub(super) fn register(registry: &mut Registry) {
    let strength = || -> Input { float("strength", 1.0, 0.0, 10.0).with("step", 0.01) };
    registry.add(
        Interface::new("ControlNetApply", "conditioning/controlnet")
            .deprecated()
            .display("Apply ControlNet (OLD)")
            .input(link("conditioning", Kind::CONDITIONING))
            .input(link("control_net", Kind::CONTROL_NET))
            .input(link("image", Kind::IMAGE))
            .input(strength())
            .output(Kind::CONDITIONING),
        |inputs, _| {
            let conds = inputs.conditioning("conditioning")?;
            let control = control(inputs, (0.0, 1.0))?;
            Ok(Outputs::one(Value::Conditioning(steered(&conds, control, true)?)))
        },
    );
    registry.add(
        Interface::new("ControlNetApplyAdvanced", "conditioning/controlnet")
            .display("Apply ControlNet")
            .input(link("positive", Kind::CONDITIONING))
            .input(link("negative", Kind::CONDITIONING))
            .input(link("control_net", Kind::CONTROL_NET))
            .input(link("image", Kind::IMAGE))
            .input(strength())
            .input(float("start_percent", 0.0, 0.0, 1.0).with("step", 0.001))
            .input(float("end_percent", 1.0, 0.0, 1.0).with("step", 0.001))
            .optional(link("vae", Kind::VAE))
            .named_output("positive", Kind::CONDITIONING)
            .named_output("negative", Kind::CONDITIONING),
        apply_advanced,
    );
    registry.add(
        Interface::new("SetUnionControlNetType", "conditioning/controlnet")
            .display("SetUnionControlNetType")
            .input(link("control_net", Kind::CONTROL_NET))
            .input(combo(
                "type",
                [
                    "auto",
                    "openpose",
                    "depth",
                    "hed/pidi/scribble/ted",
                    "canny/lineart/anime_lineart/mlsd",
                    "normal",
                    "segment",
                    "tile",
                    "repaint",
                ],
            ))
            .output(Kind::CONTROL_NET)
            .module("comfy_extras.nodes_controlnet"),
        |inputs, _| {
            let (mut net, kind) = (inputs.control_net("control_net")?, inputs.string("type")?);
            net.union_type = (&*kind != "auto").then(|| kind.to_string());
            Ok(Outputs::one(Value::ControlNet(net)))
        },
    );
}

/// `ControlNetApplyAdvanced`.
pub(super) fn apply_advanced(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let control = control(inputs, (inputs.float("start_percent")?, inputs.float("end_percent")?))?;
    let both = [inputs.conditioning("positive")?, inputs.conditioning("negative")?];
    let [positive, negative] = both.map(|conds| steered(&conds, control.clone(), false));
    Ok(Outputs::of([Value::Conditioning(positive?), Value::Conditioning(negative?)]))
}

/// What the inputs say; `None` where it would do nothing.
fn control(inputs: &Inputs, (start, end): (f64, f64)) -> Result<Option<CondControl>, NodeError> {
    let strength = inputs.float("strength")?;
    let (net, image) = (inputs.control_net("control_net")?, inputs.image("image")?);
    Ok((strength != 0.0).then_some(CondControl { net, image, strength, start, end }))
}

fn steered(
    conds: &Arc<Vec<Cond>>,
    control: Option<CondControl>,
    both: bool,
) -> Result<Arc<Vec<Cond>>, NodeError> {
    let Some(control) = control else { return Ok(Arc::clone(conds)) };
    let mut conds = conds.to_vec();
    for cond in &mut conds {
        if cond.controls.len() >= MOST {
            let message = format!("more than {MOST} ControlNets cannot act on one prompt");
            return Err(NodeError::input("control_net", message));
        }
        cond.controls.push(control.clone());
        cond.controls_both = both;
    }
    Ok(Arc::new(conds))
}
