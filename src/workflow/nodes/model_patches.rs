//! Changes to how a model is drawn with: what it is taken to predict, guidance, features on the way up.

use darkroom_pipelines::schedule::Prediction;

use crate::workflow::context::{Inputs, NodeError, Outputs};
use crate::workflow::interface::{Input, Interface, boolean, combo, float, link};
use crate::workflow::registry::{Registry, Run};
use crate::workflow::value::{Kind, SamplingChange, Value};

/// Adds them.
pub(super) fn register(registry: &mut Registry) {
    registry.add(
        Interface::new("ModelSamplingDiscrete", "advanced/model")
            .display("ModelSamplingDiscrete")
            .input(link("model", Kind::MODEL))
            .input(combo("sampling", ["eps", "v_prediction", "lcm", "x0", "img_to_img"]))
            .input(boolean("zsnr", false))
            .output(Kind::MODEL)
            .module("comfy_extras.nodes_model_advanced"),
        discrete,
    );
    registry.add(
        Interface::new("RescaleCFG", "advanced/model")
            .display("RescaleCFG")
            .input(link("model", Kind::MODEL))
            .input(float("multiplier", 0.7, 0.0, 1.0).with("step", 0.01))
            .output(Kind::MODEL)
            .module("comfy_extras.nodes_model_advanced"),
        |inputs, _| {
            let mut model = inputs.model("model")?;
            model.rescale_cfg = Some(inputs.float("multiplier")?);
            Ok(Outputs::one(Value::Model(model)))
        },
    );
    let scale = |name, default| -> Input { float(name, default, 0.0, 10.0).with("step", 0.01) };
    registry.add(
        Interface::new("FreeU_V2", "model_patches/unet")
            .display("FreeU_V2")
            .input(link("model", Kind::MODEL))
            .input(scale("b1", 1.3))
            .input(scale("b2", 1.4))
            .input(scale("s1", 0.9))
            .input(scale("s2", 0.2))
            .output(Kind::MODEL)
            .module("comfy_extras.nodes_freelunch"),
        |inputs, _| {
            let mut model = inputs.model("model")?;
            let scale = |name| inputs.float(name);
            model.free_u.push([scale("b1")?, scale("b2")?, scale("s1")?, scale("s2")?]);
            Ok(Outputs::one(Value::Model(model)))
        },
    );
    registry.add(
        Interface::new("DifferentialDiffusion", "_for_testing")
            .display("Differential Diffusion")
            .input(link("model", Kind::MODEL))
            .optional(float("strength", 1.0, 0.0, 1.0).with("step", 0.01))
            .output(Kind::MODEL)
            .module("comfy_extras.nodes_differential_diffusion"),
        |inputs, _| {
            let mut model = inputs.model("model")?;
            model.differential =
                Some(if inputs.get("strength").is_some() { inputs.float("strength")? } else { 1.0 });
            Ok(Outputs::one(Value::Model(model)))
        },
    );
    flow(registry);
}

fn discrete(inputs: &Inputs, _: &crate::workflow::Context<'_>) -> Result<Outputs, NodeError> {
    let mut model = inputs.model("model")?;
    let prediction = match &*inputs.string("sampling")? {
        "eps" => Prediction::Epsilon,
        "v_prediction" => Prediction::V,
        "lcm" => Prediction::Lcm,
        "x0" => Prediction::X0,
        "img_to_img" => Prediction::ImgToImg,
        other => return Err(NodeError::input("sampling", format!("'{other}' is not known"))),
    };
    model.sampling = Some(SamplingChange::Discrete { prediction, zero_snr: inputs.boolean("zsnr")? });
    Ok(Outputs::one(Value::Model(model)))
}

/// For models that predict a flow (Stable Diffusion 3, AuraFlow, Qwen-Image); ComfyUI applies them to any.
fn flow(registry: &mut Registry) {
    let shift = |default| -> Input { float("shift", default, 0.0, 100.0).with("step", 0.01) };
    let mut add = |class, default, run: Run| {
        registry.add(
            Interface::new(class, "advanced/model")
                .display(class)
                .input(link("model", Kind::MODEL))
                .input(shift(default))
                .output(Kind::MODEL)
                .module("comfy_extras.nodes_model_advanced"),
            run,
        );
    };
    add("ModelSamplingAuraFlow", 1.73, |inputs, _| shifted(inputs, 1.0));
    add("ModelSamplingSD3", 3.0, |inputs, _| shifted(inputs, 1000.0));
    registry.add(
        Interface::new("CFGNorm", "advanced/guidance")
            .newer_schema()
            .experimental()
            .input(link("model", Kind::MODEL))
            .input(float("strength", 1.0, 0.0, 100.0).with("step", 0.01))
            .named_output("patched_model", Kind::MODEL)
            .module("comfy_extras.nodes_cfg"),
        |inputs, _| {
            let mut model = inputs.model("model")?;
            model.cfg_norms.push(inputs.float("strength")?);
            Ok(Outputs::one(Value::Model(model)))
        },
    );
}

fn shifted(inputs: &Inputs, multiplier: f64) -> Result<Outputs, NodeError> {
    let (mut model, shift) = (inputs.model("model")?, inputs.float("shift")?);
    if shift <= 0.0 {
        return Err(NodeError::input("shift", "must be above 0: with 0 every noise level is 0"));
    }
    model.sampling = Some(SamplingChange::Flow { shift, multiplier });
    Ok(Outputs::one(Value::Model(model)))
}
